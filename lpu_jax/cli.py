"""The command `lpu-jax`: `generate` makes a language model speak through an emulated chip, `profile` shows where the
cycles of a program go, `chips` lists the chips."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from lpu_jax.cli_profile import add_profile
from lpu_jax.quality.command import add_parser as add_quality
from lpu_jax.runtime.chip import PRESETS, ChipSpec, chip_by_name
from lpu_jax.runtime.errors import LpuError
from lpu_jax.runtime.progress import progress

if TYPE_CHECKING:
    from lpu_jax.generate import Result
    from lpu_jax.report import Report

_FAILURE, _INTERRUPTED = 2, 130
_MIB = 1 << 20


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0 done, 2 a mistake that is told in one line, 130 interrupted."""
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
        return code
    except (LpuError, ValueError) as error:
        message = " ".join(str(error).split())
        print(f"lpu-jax {arguments.command}: {message}", file=sys.stderr)
        return _FAILURE
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:  # the reader went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lpu-jax",
        description="What would this JAX model do on an LPU, to the cycle and to the bit?",
        epilog="Example: lpu-jax generate --prompt 'What is the capital of France?'",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_generate(commands)
    add_profile(commands)
    add_quality(commands)
    chips = commands.add_parser("chips", help="list the chips", description="Lists the chips and their figures.")
    chips.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    chips.set_defaults(run=_chips)
    return parser


def _add_generate(commands: Any) -> None:
    parser = commands.add_parser(
        "generate",
        help="answer a prompt on one emulated chip",
        description="SmolLM2-135M-Instruct answers a prompt on one emulated chip. The answer streams to standard "
        "output; then come the exact cycles of the prompt and of each token, the use of the chip, and how far the "
        "logits are from the fp32 model.",
    )
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="what to ask")
    parser.add_argument(
        "--model",
        type=Path,
        metavar="PATH.gguf",
        help="a SmolLM2 model file (default: the 135M model, downloaded once into the cache directory)",
    )
    parser.add_argument("--max-tokens", type=_positive, default=128, metavar="N", help="longest answer (default: 128)")
    parser.add_argument(
        "--temperature",
        type=_not_negative,
        default=0.0,
        metavar="T",
        help="sample from softmax(logits / T); 0 always takes the likeliest token (default: 0)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the samples (default: 0)")
    parser.add_argument(
        "--context", type=_positive, default=512, metavar="N", help="positions in the KV cache (default: 512)"
    )
    parser.add_argument(
        "--chip", default="groqchip1", metavar="NAME", help=f"{', '.join(PRESETS)} (default: groqchip1)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end and nothing before")
    parser.set_defaults(run=_generate)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value


def _not_negative(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{value} is not a finite number of 0 or more")
    return value


# chips ---------------------------------------------------------------------------------------------------------------


def _chip_figures(chip: ChipSpec) -> dict[str, str]:
    """Figure: value with its unit."""
    return {
        "clock": f"{chip.clock_hz / 1e6:,.0f} MHz",
        "lanes": f"{chip.num_lanes}",
        "streams": f"2 x {chip.num_streams_per_direction}",
        "MEM slices": f"2 x {chip.num_slices}",
        "SRAM": f"{chip.sram_bytes / _MIB:,.2f} MiB",
        "SRAM for programs": f"{chip.usable_sram_bytes / _MIB:,.2f} MiB",
        "MXM planes": f"2 x {chip.num_planes}, {chip.num_mxm_rows} x {chip.num_lanes}",
        "int8 peak": f"{2 * chip.macs_per_cycle_int8 * chip.clock_hz / 1e12:,.2f} TOP/s",
        "VXM ALUs per lane": f"{chip.num_alus}",
        "SRAM bandwidth": f"{chip.mem_bytes_per_cycle * chip.clock_hz / 1e12:,.2f} TB/s",
        "stream bandwidth": f"{chip.stream_bytes_per_cycle * chip.clock_hz / 1e12:,.2f} TB/s",
        "PCIe each way": f"{chip.pcie_latency_seconds * 1e6:,.0f} us, {chip.pcie_bytes_per_second / 1e9:,.0f} GB/s",
        "assumptions": "\n".join(chip.assumptions) or "see docs/assumptions.md",
    }


def _chips(arguments: argparse.Namespace) -> int:
    if arguments.json:
        figures = {
            name: {
                "clock_hz": chip.clock_hz,
                "num_lanes": chip.num_lanes,
                "sram_bytes": chip.sram_bytes,
                "usable_sram_bytes": chip.usable_sram_bytes,
                "macs_per_cycle_int8": chip.macs_per_cycle_int8,
                "mem_bytes_per_cycle": chip.mem_bytes_per_cycle,
                "assumptions": list(chip.assumptions),
            }
            for name, chip in PRESETS.items()
        }
        print(json.dumps(figures, indent=2))
        return 0
    table = Table(title="Chips", title_justify="left", show_lines=False)
    table.add_column("figure")
    columns = {name: _chip_figures(chip) for name, chip in PRESETS.items()}
    for name in columns:
        table.add_column(name)
    for figure in columns["groqchip1"]:
        table.add_row(figure, *(column[figure] for column in columns.values()))
    _console().print(table)
    return 0


def _console() -> Console:
    """Standard output, at least wide enough for the tables when it is no terminal."""
    return Console(soft_wrap=False) if sys.stdout.isatty() else Console(width=120, color_system=None)


# generate ------------------------------------------------------------------------------------------------------------


def _generate(arguments: argparse.Namespace) -> int:
    chip = chip_by_name(arguments.chip)
    if not arguments.prompt.strip():
        raise ValueError("the prompt is empty. Pass some text with --prompt.")
    from lpu_jax.generate import Job, generate  # after the arguments are known to be good: this import takes a second
    from lpu_jax.models.download import default_model_path

    job = Job(
        prompt=arguments.prompt,
        model_path=arguments.model or default_model_path(),
        chip=chip,
        max_tokens=arguments.max_tokens,
        temperature=arguments.temperature,
        seed=arguments.seed,
        context=arguments.context,
    )
    result = generate(job, (lambda text: None) if arguments.json else _write, _status)
    if arguments.json:
        print(json.dumps(result.to_dict(), indent=2))
        return 0
    print("\n")
    _print_result(result)
    return 0


def _write(text: str) -> None:
    if text:
        sys.stdout.write(text)
        sys.stdout.flush()


def _status(text: str) -> contextlib.AbstractContextManager[Any]:
    """Says what is being done, on standard error if that is a terminal."""
    return progress(text.capitalize())


def _print_result(result: Result) -> None:
    console = _console()
    table = Table(title=f"SmolLM2 on {result.chip.name}", title_justify="left")
    for column in ("", "prefill", "one token"):
        table.add_column(column, justify="left" if not column else "right")
    prompt, token = result.prefill, result.decode
    rate = result.chip.clock_hz / 1e6
    table.add_row("tokens", f"{result.prompt_tokens}", f"{len(result.tokens)} generated")
    table.add_row("cycles", f"{result.prefill_cycles:,}", f"{token.cycles:,}")
    table.add_row("chip time, us", f"{result.prefill_cycles / rate:,.2f}", f"{token.microseconds:,.2f}")
    table.add_row("resource bound, cycles", _cell(prompt, _resource_bound), _resource_bound(token))
    table.add_row("dependency bound, cycles", _cell(prompt, _dependency_bound), _dependency_bound(token))
    table.add_row("bounded by", _cell(prompt, lambda r: r.bounded_by), token.bounded_by)
    for unit, share in token.utilization.items():
        table.add_row(f"use of {unit}", _cell(prompt, lambda r, u=unit: f"{r.utilization[u]:.1%}"), f"{share:.1%}")
    table.add_row("SRAM in use, MiB", _cell(prompt, _sram), _sram(token))
    table.add_row("PCIe in, us (apart)", _cell(prompt, _pcie_in), _pcie_in(token))
    table.add_row("PCIe out, us (apart)", _cell(prompt, _pcie_out), _pcie_out(token))
    console.print(table)
    if result.prefill_problem:
        console.print(
            f"There is no prefill program, so the prompt went through the decode program token by token: "
            f"{result.prefill_problem}",
            highlight=False,
        )
    distance, wall = result.distance, result.host_seconds_per_token
    for line in (
        f"{result.chip_tokens_per_second:,.0f} tokens/s of chip time, "
        f"{result.tokens_per_second_with_pcie:,.0f} with PCIe",
        f"SRAM {token.sram_used_bytes / _MIB:,.1f} of {token.sram_capacity_bytes / _MIB:,.1f} MiB; largest: "
        + "; ".join(f"{name} ({side.lower()}) {size / _MIB:,.1f}" for name, side, size in token.sram_map[:4]),
        f"logits against the fp32 model over {distance.positions} positions: KL mean {distance.kl_mean:.2e}, "
        f"max {distance.kl_max:.2e} nats; top-1 agreement {distance.top1_agreement:.1%}",
        *([] if wall is None else [f"emulated in {wall:.3f} s of wall time per token"]),
        *(f"assumed: {text}" for text in token.assumptions),
    ):
        console.print(line, highlight=False, markup=False)


def _cell(report: Report | None, text: Any) -> str:
    return "-" if report is None else str(text(report))


def _resource_bound(report: Report) -> str:
    return f"{report.resource_bound_cycles:,}"


def _dependency_bound(report: Report) -> str:
    return f"{report.dependency_bound_cycles:,}"


def _sram(report: Report) -> str:
    return f"{report.sram_used_bytes / _MIB:,.1f}"


def _pcie_in(report: Report) -> str:
    return f"{report.pcie_in_seconds * 1e6:,.2f}"


def _pcie_out(report: Report) -> str:
    return f"{report.pcie_out_seconds * 1e6:,.2f}"
