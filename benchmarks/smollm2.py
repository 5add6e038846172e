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
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from lpu_jax.lowering.ir import Graph
from lpu_jax.lowering.lower import lower_jaxpr
from lpu_jax.lowering.pipeline import CompiledGraph, compile_graph
from lpu_jax.models.smollm2 import Smollm2, decode
from lpu_jax.models.smollm2_config import Smollm2Config
from lpu_jax.runtime import execute as fast
from lpu_jax.runtime.chip import GROQCHIP1


def config(num_layers: int, context: int) -> Smollm2Config:
    """SmolLM2-135M with another number of layers."""
    return Smollm2Config(
        num_layers=num_layers,
        d_model=576,
        num_heads=9,
        num_kv_heads=3,
        d_ff=1536,
        vocab_size=49152,
        context=context,
        rope_base=100000.0,
        rms_eps=1e-5,
    )


def arguments(sizes: Smollm2Config, weights: str) -> tuple[list[Any], Any]:
    """Flat arguments of one decode step, and the function that takes them."""
    model = Smollm2.random(sizes, seed=0, weights=weights)
    flat, tree = jax.tree.flatten((model, jnp.int32(5), jnp.int32(3), *model.empty_caches()))
    return flat, lambda *leaves: decode(*jax.tree.unflatten(tree, leaves))


def compile_decode(sizes: Smollm2Config) -> tuple[float, Graph, CompiledGraph, list[Any]]:
    """Seconds from the jaxpr to the program; the caches are donated."""
    flat, function = arguments(sizes, "int8")
    jaxpr = jax.make_jaxpr(function)(*flat)
    start = time.perf_counter()
    graph = lower_jaxpr(jaxpr)
    compiled = compile_graph(graph, GROQCHIP1, donated={2: len(flat) - 2, 3: len(flat) - 1})
    return time.perf_counter() - start, graph, compiled, flat


def decode_seconds(graph: Graph, flat: list[Any], sizes: Smollm2Config, rounds: int) -> tuple[float, float, float]:
    """Median seconds per token of the fast executor and of plain jit in fp32, and the median of their ratios."""
    ids = fast.prepared_inputs(graph)
    prepared = fast.prepare(graph, {v: np.asarray(flat[graph.inputs.index(v)]) for v in ids})
    inputs = [prepared.get(v, flat[i]) for i, v in enumerate(graph.inputs)]
    ours = jax.jit(lambda *args: fast.execute(graph, args))
    plain_inputs, plain_function = arguments(sizes, "fp32")
    plain = jax.jit(plain_function)
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds + 2):
        for record, function, args in zip(times, (ours, plain), (inputs, plain_inputs), strict=True):
            start = time.perf_counter()
            jax.block_until_ready(function(*args))
            if turn >= 2:
                record.append(time.perf_counter() - start)
    ratio = statistics.median(b / a for a, b in zip(*times, strict=True))
    return statistics.median(times[0]), statistics.median(times[1]), ratio


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    half, *_ = compile_decode(config(15, options.context))
    seconds, graph, compiled, flat = compile_decode(config(30, options.context))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    _, _, layer, layer_flat = compile_decode(config(1, options.context))
    host = [np.asarray(leaf) for leaf in layer_flat]
    layer.simulate(host)  # once for caches and page faults
    start = time.perf_counter()
    _, cycles = layer.simulate(host)
    machine_rate = cycles / (time.perf_counter() - start)
    ours, plain, ratio = decode_seconds(graph, flat, config(30, options.context), options.rounds)
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
