"""Whole models on the fast executor against plain `jax.jit`, dispatch, compile time, and shares of data movement.

Times are CPU time of one process, the programs taking turns; ratios are of medians. The weights are resident arrays, so
that they are laid out at the first call, which is not part of the times. Compile time is from the trace to the program,
per equation of its graph, loop bodies counted once. Data movement is what the report calls so
(lpu_jax/report/movement.py).

Usage: python benchmarks/models.py [--only NAME ...] [--parts runtime dispatch compile movement] [--rounds 9]
         [--markdown PATH] [--resnet50]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax_models
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from programs import bert, random_arguments, smollm2_config, smollm2_decode
from rich.console import Console
from rich.table import Table

import lpu_jax
from lpu_jax.models.minilm import MiniLm, MiniLmConfig, embed
from lpu_jax.models.smollm2 import Smollm2, decode, prefill
from lpu_jax.runtime.errors import SramOverflowError
from lpu_jax.runtime.ops import GraphLike, Scan, While

Case = tuple[Callable[..., Any], tuple[Any, ...]]
PARTS = ("runtime", "dispatch", "compile", "movement")
MODES = {"float32": "median <= 1.3, worst <= 2", "exact": "median <= 2.5"}
Rows = list[tuple[str, ...]]
RNG = np.random.default_rng(0)


def _flax(model: Any, *shape: int) -> Case:
    """A linen model with random weights and a random argument."""
    x = jnp.asarray(RNG.standard_normal(shape), jnp.float32)
    return model.apply, (jax.jit(model.init)(jax.random.key(0), x), x)


def _minilm() -> Case:
    graph, state = nnx.split(MiniLm(MiniLmConfig(vocab_size=2000)))
    tokens = jnp.asarray(RNG.integers(0, 2000, (1, 128)), jnp.int32)
    return lambda state, tokens, mask: embed(nnx.merge(graph, state), tokens, mask), (state, tokens, tokens >= 0)


def _smollm2(is_prefill: bool) -> Case:
    model = Smollm2.random(smollm2_config(4, 256, 4096), seed=0, weights="fp32")
    if is_prefill:
        return prefill, (model, jnp.asarray(RNG.integers(0, 4096, 64), jnp.int32), jnp.int32(64))
    return decode, (model, jnp.int32(5), jnp.int32(3), *model.empty_caches())


def _beams() -> Case:
    table = jnp.asarray(RNG.standard_normal((256, 256)), jnp.float32)
    return lambda table, first: flax_models.beam_search(table, first, width=4, length=32), (table, jnp.int32(3))


MODELS: dict[str, Callable[[], Case]] = {
    "ResNet block, 56 x 56 x 64": lambda: _flax(flax_models.ResNetBlock(64), 1, 56, 56, 64),
    "ResNet-26, 64 x 64": lambda: _flax(flax_models.ResNet((2, 2, 2, 2), 32, 100), 1, 64, 64, 3),
    "vision transformer, 4 layers of 192": lambda: _flax(
        flax_models.VisionTransformer(192, 16, 4, 3, 768, 100), 1, 224, 224, 3
    ),
    "encoder-decoder, 2 layers of 256": lambda: _flax(flax_models.EncoderDecoder(2, 4, 1024, 64, 1000), 1, 128, 256),
    "mixture of 8 experts": lambda: _flax(flax_models.Mixture(8), 2, 64, 256),
    "state-space scan": lambda: _flax(flax_models.StateSpace(), 1, 256, 256),
    "beam search": _beams,
    "MiniLM, 128 tokens": _minilm,
    "SmolLM2 prefill, 4 layers, 64 tokens": lambda: _smollm2(True),
    "SmolLM2 decode, 4 layers": lambda: _smollm2(False),
}


def _cpu_seconds(function: Callable[..., Any], arguments: Sequence[Any], times: int = 1) -> float:
    start = time.process_time()
    for _ in range(times):
        result = function(*arguments)
    jax.block_until_ready(result)
    return (time.process_time() - start) / times


def _medians(functions: Sequence[Callable[..., Any]], arguments: Sequence[Any], rounds: int, times: int) -> list[float]:
    """Median CPU seconds of each, called in turns; the first calls are not counted."""
    for function in functions:
        jax.block_until_ready(function(*arguments))
    found = [[_cpu_seconds(f, arguments, times) for f in functions] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*found, strict=True)]


def runtime(names: Sequence[str], rounds: int) -> Rows:
    """Every model in both modes against plain jit."""
    rows: Rows = []
    ratios: dict[str, list[float]] = {mode: [] for mode in MODES}
    for name in names:
        function, arguments = MODELS[name]()
        ours = [lpu_jax.lpu(function, resident_argnums=0, accumulation=mode) for mode in MODES]
        plain, *found = _medians([jax.jit(function), *ours], arguments, rounds, 1)
        for mode, seconds in zip(MODES, found, strict=True):
            ratios[mode].append(seconds / plain)
        rows.append((name, f"{1e3 * plain:.2f} ms", *(f"{seconds / plain:.2f}" for seconds in found)))
    for what, choose in (("median", statistics.median), ("worst", max)):
        rows.append((what, "", *(f"{choose(values):.2f}" for values in ratios.values())))
    rows.append(("target", "", *MODES.values()))
    return rows


def dispatch(rounds: int) -> Rows:
    """A call that computes next to nothing, with one argument and with a tree of 160 arrays."""
    x, tree = jnp.ones(4), {str(i): jnp.ones(4) for i in range(160)}

    def function(tree: Any, x: jax.Array) -> jax.Array:
        return x + 1

    rows: Rows = []
    cases = (("1 array", jnp.ones(4), {}), ("160 arrays", tree, {}), ("160 resident arrays", tree, {"resident": True}))
    for name, first, options in cases:
        ours = lpu_jax.lpu(function, resident_argnums=(0,) if options else ())
        plain, found = _medians([jax.jit(function), ours], (first, x), 3 * rounds, 200)
        rows.append((name, f"{1e6 * plain:.1f} us", f"{1e6 * found:.1f} us", f"{found / plain:.2f}", "<= 3"))
    return rows


def compile_times(names: Sequence[str], resnet50: bool) -> Rows:
    """CPU milliseconds from the trace to the program, per equation of the graph."""
    rows: Rows = []
    figures = []
    for name in names:
        function, arguments = MODELS[name]()
        try:
            seconds, equations, compiled = _compiled(function, arguments)
        except SramOverflowError as error:
            rows.append((name, "", "", "", "", f"refused: {str(error).split(';')[0]}"))
            continue
        figures.append(1e3 * seconds / equations)
        rows.append((name, str(equations), f"{seconds:.1f} s", f"{figures[-1]:.1f} ms", f"{compiled.cycles:,}", ""))
    if figures:
        rows.append(("median of those that fit", "", "", f"{statistics.median(figures):.1f} ms", "", "<= 5 ms"))
    if resnet50:
        model, x = flax_models.ResNet(), jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
        weights = jax.eval_shape(model.init, jax.random.key(0), x)
        seconds, equations, compiled = _compiled(model.apply, (weights, x))
        each = f"{1e3 * seconds / equations:.1f} ms"
        rows.append(
            ("ResNet-50, 224 x 224", str(equations), f"{seconds:.1f} s", each, f"{compiled.cycles:,}", "<= 15 s")
        )
    return rows


def _compiled(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[float, int, Any]:
    on_lpu = lpu_jax.lpu(function, resident_argnums=0)
    start = time.process_time()
    lowered = on_lpu.lower(*arguments)
    compiled = lowered.compile()
    return time.process_time() - start, num_equations(lowered.graph), compiled


def num_equations(graph: GraphLike) -> int:
    """Equations of a graph; those of the body of a loop count once."""
    bodies = [e.op.body for e in graph.equations if isinstance(e.op, Scan | While)]
    return len(graph.equations) + sum(map(num_equations, bodies))


def movement() -> Rows:
    """Share of cycles that belong to ops which only move data, and the ops with most of them."""
    block, decoder = MODELS["ResNet block, 56 x 56 x 64"](), smollm2_decode(1, 512)
    layer = bert(1, 768, 12, 3072, 128)
    cases: list[tuple[str, Any, tuple[Any, ...]]] = [
        ("ResNet block", lpu_jax.lpu(block[0], resident_argnums=0), block[1]),
        ("decoder layer and head, one token (SmolLM2)", *decoder),
        ("encoder layer, 128 tokens (BERT-base)", layer[0], random_arguments(layer[1])),
    ]
    rows: Rows = []
    for name, function, arguments in cases:
        report = function.lower(*arguments).compile().report()
        found = report.data_movement
        rows.append((name, f"{report.cycles:,}", f"{found.cycles:,}", f"{found.share:.1%}", "<= 15 %"))
        for move in found.moves[:6]:
            if move.cycles:
                where = f"  {move.kind} x {move.num_ops}, {move.name or move.source}"
                rows.append((where, "", f"{move.cycles:,}", f"{move.cycles / report.cycles:.1%}", ""))
    return rows


TITLES = {
    "runtime": ("Fast executor / plain jit, CPU time", ("model", "plain jit", *MODES)),
    "dispatch": ("Dispatch of a compiled call", ("arguments", "jit", "lpu", "ratio", "target")),
    "compile": ("Compile time", ("model", "equations", "CPU time", "per equation", "cycles", "target")),
    "movement": ("Data movement alone", ("program", "cycles", "moves", "share", "target")),
}


def markdown(found: dict[str, Rows]) -> str:
    """The tables as a page."""
    lines = ["# Speed", "", "Written by `python benchmarks/models.py --markdown docs/speed.md`; do not edit.", ""]
    lines += [" ".join(__doc__.split("\n\n")[1].split()), ""]
    for part, rows in found.items():
        title, columns = TITLES[part]
        lines += [f"## {title}", "", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
        lines += [f"| {' | '.join(cell.strip() for cell in row)} |" for row in rows]
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="models whose names start so")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--resnet50", action="store_true", help="compile a whole ResNet-50 too")
    parser.add_argument("--markdown", type=Path, help="write the tables here")
    options = parser.parse_args()
    names = [name for name in MODELS if options.only is None or name.startswith(tuple(options.only))]
    measures: dict[str, Callable[[], Rows]] = {
        "runtime": lambda: runtime(names, options.rounds),
        "dispatch": lambda: dispatch(options.rounds),
        "compile": lambda: compile_times(names, options.resnet50),
        "movement": movement,
    }
    found = {}
    for part in options.parts:
        found[part] = measures[part]()
        title, columns = TITLES[part]
        table = Table(*columns, title=title)
        for row in found[part]:
            table.add_row(*row)
        Console(width=None if Console().is_terminal else 160).print(table)
    if options.markdown:
        options.markdown.write_text(markdown(found), encoding="utf-8")


if __name__ == "__main__":
    main()
