"""SmolLM2-135M: compile time, decode speed of both executors, and cycles of a token. Prints one table.

The decode comparison runs in one process, the two programs taking turns; medians of the ratios count. Weights are
random: neither cycles nor times depend on their values.

Usage: python benchmarks/smollm2.py [--context 512] [--rounds 10]
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from typing import Any

import jax
import numpy as np
from programs import smollm2_config, smollm2_decode
from rich.console import Console
from rich.table import Table

from lpu_jax.models.smollm2 import Smollm2, decode
from lpu_jax.stages import Compiled


def compile_decode(num_layers: int, context: int) -> tuple[float, Compiled, tuple[Any, ...]]:
    """Seconds from the jaxpr to the program, the program, and arguments of one token."""
    function, arguments = smollm2_decode(num_layers, context)
    traced = function.trace(*arguments)
    start = time.perf_counter()
    compiled = traced.lower().compile()
    return time.perf_counter() - start, compiled, arguments


def decode_seconds(
    compiled: Compiled, arguments: tuple[Any, ...], context: int, rounds: int
) -> tuple[float, float, float]:
    """Median seconds per token of the fast executor and of plain jit in fp32, and the median of their ratios."""
    model, *step = arguments
    plain_model = Smollm2.random(smollm2_config(30, context), seed=0, weights="fp32")
    loaded, plain = compiled.load(model), jax.jit(decode, donate_argnums=(3, 4))
    functions = (loaded, lambda *args: plain(plain_model, *args))
    caches = [step[2:], list(plain_model.empty_caches())]
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds + 2):
        for side, (record, function) in enumerate(zip(times, functions, strict=True)):
            start = time.perf_counter()
            results = jax.block_until_ready(function(*step[:2], *caches[side]))
            if turn >= 2:
                record.append(time.perf_counter() - start)
            caches[side] = list(results[2:])
    ratio = statistics.median(b / a for a, b in zip(*times, strict=True))
    return statistics.median(times[0]), statistics.median(times[1]), ratio


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    half, *_ = compile_decode(15, options.context)
    seconds, compiled, arguments = compile_decode(30, options.context)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    _, layer, layer_arguments = compile_decode(1, options.context)
    host = jax.tree.map(np.asarray, layer_arguments)
    layer.simulate(*host)  # once for caches and page faults
    start = time.perf_counter()
    _, cycles = layer.simulate(*host)
    machine_rate = cycles / (time.perf_counter() - start)
    ours, plain, ratio = decode_seconds(compiled, arguments, options.context, options.rounds)
    cost = compiled.cost_analysis()
    table = Table("what", "measured", "target", title=f"SmolLM2-135M decode, context {options.context}, groqchip1")
    table.add_row("compile, 30 layers", f"{seconds:.1f} s, process peak {peak:.1f} GiB", "<= 30 s, < 3 GB")
    table.add_row("compile, 30 against 15 layers", f"{seconds / half:.2f} x", "<= 1.2 x")
    table.add_row("fast runtime", f"{1 / ours:.1f} tokens/s", "-")
    table.add_row("plain jit, fp32", f"{1 / plain:.1f} tokens/s", "-")
    table.add_row("fast runtime / plain jit", f"{ratio:.2f} x", ">= 0.4 x")
    table.add_row("machine, one layer and the head", f"{machine_rate:,.0f} cycles/s", ">= 3,000")
    table.add_row("cycles of a token", f"{cost['cycles']:,}", "reported")
    table.add_row("resource bound", f"{cost['resource_bound_cycles']:,}", "reported")
    table.add_row("dependency bound", f"{cost['dependency_bound_cycles']:,}", "reported")
    Console().print(table)


if __name__ == "__main__":
    main()
