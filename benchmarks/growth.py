"""Compile time against the number of scheduled instructions, up to about a million; draws docs/growth.svg.

The programs are stacks of int8 layers of distinct widths, so that no layer is scheduled for another one.

Usage: python benchmarks/growth.py [--layers 2 4 8 ...] [--svg PATH]
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
from programs import Built, Shape
from rich.console import Console
from rich.table import Table

import lpu_jax

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "growth"  # equal figures, equal bytes


import matplotlib.pyplot as plt  # noqa: E402

SVG = Path(__file__).parents[1] / "docs" / "growth.svg"
NUM_ROWS, FIRST_WIDTH, WIDTH_STEP = 128, 640, 8


def stack(num_layers: int) -> Built:
    """128 rows through num_layers distinct matrices, widths 640, 648, 656, ..."""
    widths = [FIRST_WIDTH + WIDTH_STEP * i for i in range(num_layers + 1)]

    def function(weights: Sequence[Any], x: Any) -> Any:
        for matrix in weights:
            x = jnp.maximum(jax.lax.dot(x, matrix, preferred_element_type=jnp.float32), 0)
        return x

    matrices = tuple(Shape(shape, jnp.int8) for shape in itertools.pairwise(widths))
    return lpu_jax.lpu(function, resident_argnums=0), (matrices, Shape((NUM_ROWS, widths[0]), jnp.float32))


def compile_stack(num_layers: int) -> tuple[int, float]:
    """(instructions with all repetitions, seconds from trace to program)."""
    function, arguments = stack(num_layers)
    start = time.perf_counter()
    compiled = function.lower(*arguments).compile()
    return int(compiled.program.count.sum()), time.perf_counter() - start


def exponent(counts: Sequence[float], seconds: Sequence[float]) -> float:
    """Slope of log(seconds) over log(counts), least squares."""
    return float(np.polyfit(np.log(counts), np.log(seconds), 1)[0])


def draw(counts: Sequence[int], seconds: Sequence[float], slope: float, path: Path) -> None:
    """The measured points and the fitted power law, both axes logarithmic."""
    figure, axes = plt.subplots(figsize=(6, 4))
    scale = np.exp(np.mean(np.log(seconds)) - slope * np.mean(np.log(counts)))
    axes.loglog(counts, seconds, "o", color="tab:blue", label="measured")
    axes.loglog(counts, scale * np.power(counts, slope), color="tab:gray", label=f"instructions ^ {slope:.2f}")
    axes.set(xlabel="scheduled instructions", ylabel="compile time, s", title="Distinct int8 layers, groqchip1")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Measures, prints and draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--svg", type=Path, default=SVG)
    options = parser.parse_args()
    compile_stack(1)  # JAX's own start-up is not what is measured
    table = Table("layers", "instructions", "compile s", "instructions/s", title="growth of compile time")
    points = []
    for layers in options.layers:
        count, seconds = compile_stack(layers)
        points.append((count, seconds))
        table.add_row(str(layers), f"{count:,}", f"{seconds:.2f}", f"{count / seconds:,.0f}")
    counts, times = zip(*points, strict=True)
    slope = exponent(counts, times)
    Console().print(table)
    print(f"compile time ~ instructions ^ {slope:.2f}")
    draw(counts, times, slope, options.svg)


if __name__ == "__main__":
    main()
