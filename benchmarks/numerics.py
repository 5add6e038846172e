"""Exact products against XLA's float32 product: ratios of CPU time in one process, the two programs taking turns.

Operands are N(0, 1). Weights enter as stored: nothing is prepared, but for the last rows (one activation vector).

Usage: python benchmarks/numerics.py [--rows 1024] [--size 4096] [--rounds 5]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from lpu_jax.runtime import casts, formats
from lpu_jax.runtime.block_floating_point import quantize_blocks
from lpu_jax.runtime.certified_dot import certified_dot, short_statistics, slow_path_share
from lpu_jax.runtime.exact_dot import element_format, exact_dot
from lpu_jax.runtime.isa import DataFormat
from lpu_jax.runtime.prepared import exact_dot_prepared, prepare_weights

CASES = {
    ("fp16", "fp16"): "<= 2.5",
    ("int8", "int8"): "<= 0.6",
    ("bfp8", "bfp4"): "-",
    ("fp16", "bfp8"): "<= 2.5",
    ("fp16", "int8"): "-",
    ("e4m3", "e4m3"): "<= 2.7",
    ("bf16", "bf16"): "-",
    ("fp32", "fp32"): "-",
}
LOADED = {"fp16": "<= 2.0", "int8": "<= 1.3", "bfp8": "<= 1.3", "bfp4": "-", "e4m3": "-"}
"""Weights that were prepared at load, against one row."""


def stored(x: np.ndarray, name: str, is_lhs: bool) -> tuple[Any, Any]:
    """Values in a format, and the format; blocks lie along K."""
    number_format = formats.parse_format(name)
    if number_format.block_size:
        turned = x.T if is_lhs else x
        values = quantize_blocks(turned, number_format).decode()
        return np.ascontiguousarray(values.T if is_lhs else values), number_format
    data_format = DataFormat[name.upper()]
    if name == "int8":
        return np.clip(np.rint(x * 32), -127, 127).astype(np.int8), data_format
    return casts.encode(np, x, number_format), data_format


def cpu_seconds(function: Callable[..., Any], *arrays: Any) -> float:
    start = time.process_time()
    jax.block_until_ready(function(*arrays))
    return time.process_time() - start


def measure(ours: Callable[..., Any], arrays: Any, plain: Callable[..., Any], plain_arrays: Any, rounds: int) -> Any:
    """(ratio of median CPU times, milliseconds of ours, of plain, seconds of the first call).

    Medians: the clock of a process may miss the last time slice of its threads, so that the least is too little.
    """
    start = time.perf_counter()
    jax.block_until_ready(ours(*arrays))
    first = time.perf_counter() - start
    cpu_seconds(plain, *plain_arrays)
    times = [(cpu_seconds(plain, *plain_arrays), cpu_seconds(ours, *arrays)) for _ in range(rounds)]
    slow, fast = statistics.median(b for _, b in times), statistics.median(a for a, _ in times)
    return slow / fast, 1e3 * slow, 1e3 * fast, first


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    a = rng.standard_normal((options.rows, options.size)).astype(np.float32)
    b = rng.standard_normal((options.size, options.size)).astype(np.float32)
    plain = jax.jit(jnp.matmul)
    table = Table("product", "ratio", "target", "ms", "float32 ms", "first s", "slow path", title="exact / float32")
    with jax.enable_x64(True):
        for (lhs_name, rhs_name), target in CASES.items():
            (lhs, left), (rhs, right) = stored(a, lhs_name, True), stored(b, rhs_name, False)
            ours = jax.jit(lambda x, y, left=left, right=right: exact_dot(jnp, x, y, left, right))
            given = jnp.asarray(lhs), jnp.asarray(rhs)
            ratio, ms, plain_ms, first = measure(ours, given, plain, (jnp.asarray(a), jnp.asarray(b)), options.rounds)
            share = "-"
            if lhs_name != "int8" and "bfp" not in lhs_name and lhs_name != "e4m3":
                elements = element_format(left), element_format(right)
                share = f"{float(jax.jit(lambda x, y, e=elements: slow_path_share(x, y, *e))(*given)):.1e}"
            name = f"{lhs_name} x {rhs_name}"
            table.add_row(name, f"{ratio:.2f}", target, f"{ms:.0f}", f"{plain_ms:.0f}", f"{first:.1f}", share)
        (lhs, _), (rhs, _) = stored(a, "bfp8", True), stored(b, "bfp4", False)
        given = jnp.asarray(lhs), jnp.asarray(rhs), jax.jit(lambda y: short_statistics(y, 0))(jnp.asarray(rhs))
        bf16 = DataFormat.BF16
        ours = jax.jit(lambda x, y, known: certified_dot(x, y, bf16, bf16, is_short=True, columns=known))
        ratio, ms, plain_ms, first = measure(ours, given, plain, (jnp.asarray(a), jnp.asarray(b)), options.rounds)
        table.add_row(
            "bfp8 x bfp4, loaded", f"{ratio:.2f}", "<= 0.7", f"{ms:.0f}", f"{plain_ms:.0f}", f"{first:.1f}", "-"
        )
        row, narrow = (jnp.asarray(a[:1]), jnp.asarray(b)), jnp.asarray(a[:1].astype(np.float16))
        ours = jax.jit(lambda x, w: exact_dot_prepared(x, w, DataFormat.FP16))
        for name, target in LOADED.items():
            weights, form = stored(b, name, False)
            given = narrow, prepare_weights(weights, DataFormat[form.name.upper()])
            ratio, ms, plain_ms, first = measure(ours, given, plain, row, 4 * options.rounds)
            label = f"fp16 x {name}, one row, loaded"
            table.add_row(label, f"{ratio:.2f}", target, f"{ms:.1f}", f"{plain_ms:.1f}", f"{first:.1f}", "-")
    Console().print(table)


if __name__ == "__main__":
    main()
