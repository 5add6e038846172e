"""The command `lpu-jax profile`: compiles a function and shows where its cycles go, as tables or as a page."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lpu_jax.runtime.chip import PRESETS, ChipSpec, chip_by_name
from lpu_jax.runtime.progress import progress

if TYPE_CHECKING:
    from lpu_jax.stages import Compiled, Lowered
    from lpu_jax.transform import LpuFunction

MODELS = ("smollm2", "smollm2-prefill", "bert-layer")
"""Names of `lpu_jax.models.shipped.SHIPPED`, which takes a second to import."""

_DESCRIPTION = """\
Compiles a function and shows where its cycles go: tables here, with --html one page for any browser (timeline, floor
plan that plays cycle by cycle, SRAM map, cycles by module, assembly with search), with --trace a trace for Perfetto.

TARGET is one of
  smollm2, smollm2-prefill, bert-layer   a model of this package, at full size, no weights needed
  package.module:function                a function of an importable module; the current directory counts
  path/to/file.py:function               a function of a file

With --shapes the function is compiled for these arguments, one shape each. Without, it must take no arguments; it is
called, and what it returns is compiled: (function, arguments), where arguments is a tuple of arrays, pytrees of arrays,
or jax.ShapeDtypeStructs. Functions may be made with lpu_jax.lpu(...), which says what is resident or donated."""

_EXAMPLES = """\
examples:
  lpu-jax profile smollm2 --html report.html
  lpu-jax profile mypackage.layers:attention --shapes "float32[128,768]" "float32[768,768]" --resident 1
  lpu-jax profile train.py:example --trace program.pftrace"""


def add_profile(commands: Any) -> None:
    """Adds the command to a parser."""
    parser = commands.add_parser(
        "profile",
        help="show where the cycles of a function go",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("target", metavar="TARGET", help="what to compile, see above")
    parser.add_argument(
        "--shapes", nargs="*", metavar="SHAPE", help='the arguments, as "float32[8,128]"; "int32[]" is a scalar'
    )
    parser.add_argument(
        "--resident",
        nargs="*",
        type=int,
        default=(),
        metavar="N",
        help="numbers of arguments that stay in SRAM between calls (weights), for functions made without lpu",
    )
    parser.add_argument(
        "--chip", metavar="NAME", help=f"{', '.join(PRESETS)} (default: the function's, else groqchip1)"
    )
    parser.add_argument(
        "--context", type=int, default=512, metavar="N", help="positions in the KV cache of smollm2 (default: 512)"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the page")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="write a trace for the Perfetto UI")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="print the whole report as one JSON object, no tables")
    shown.add_argument("--csv", action="store_true", help="print cycles by module as comma-separated text, no tables")
    parser.set_defaults(run=run_profile)


def run_profile(arguments: argparse.Namespace) -> int:
    """Runs the command; returns 0.

    Raises:
      TargetError, LpuError, ValueError: what the command line names cannot be compiled.
    """
    for path in (arguments.html, arguments.trace):
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f"there is no directory {str(path.absolute().parent)!r} for {path.name!r}")
    compiled = _compile(arguments)
    report = compiled.report()
    if arguments.json:
        print(report.to_json())
    elif arguments.csv:
        print(report.to_csv(), end="")
    elif arguments.html is None and arguments.trace is None:
        console = Console() if sys.stdout.isatty() else Console(width=120, color_system=None)
        console.print(report.tables())
    quiet = arguments.json or arguments.csv
    if arguments.html is not None:
        report.write_html(arguments.html)
    if arguments.trace is not None:
        compiled.write_trace(arguments.trace)
    written = [path for path in (arguments.html, arguments.trace) if path is not None]
    if written and not quiet:
        print(f"{report.name} on {report.chip}: {report.cycles:,} cycles, {report.microseconds:,.2f} us")
        for path in written:
            print(f"{path}: {path.stat().st_size / 1e6:,.2f} MB")
    return 0


def _compile(arguments: argparse.Namespace) -> Compiled:
    chip: ChipSpec | None = chip_by_name(arguments.chip) if arguments.chip else None
    if arguments.target in MODELS:
        from lpu_jax.models.shipped import SHIPPED

        if arguments.shapes or arguments.resident:
            raise ValueError(f"{arguments.target!r} has its own arguments; --shapes and --resident are for functions")
        if arguments.context < 1:
            raise ValueError(f"--context {arguments.context} is not 1 or more")
        with progress(f"Making {arguments.target}"):
            function, args = SHIPPED[arguments.target][1](chip or chip_by_name("groqchip1"), arguments.context)
        return _lower(function, args, {}).compile()
    if ":" not in arguments.target:
        raise ValueError(
            f"{arguments.target!r} is no model of this package ({', '.join(MODELS)}); name a function as "
            "package.module:function or file.py:function"
        )
    from lpu_jax.targets import resolve

    function, args, kwargs = resolve(arguments.target, arguments.shapes, chip, arguments.resident)
    return _lower(function, args, kwargs).compile()


def _lower(function: LpuFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Lowered:
    with progress("Tracing and lowering"):
        return function.lower(*args, **kwargs)
