"""Cycles by module."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lpu_jax.pictures.drawing import PALETTE, axes, costs_of, count_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lpu_jax.lowering.pipeline import CompiledGraph
    from lpu_jax.stages import Compiled


def cycles_per_module(compiled: Compiled | CompiledGraph, *, ax: Axes | None = None, depth: int = 3) -> Axes:
    """Wall cycles of every module down to `depth` names, as bars in the order of the tree; deeper names lie inside."""
    ax, costs = axes(ax), costs_of(compiled)
    shown = [
        (path, node)
        for path, node in costs.tree.walk()
        if 2 <= len(path) <= depth + 1 and node.wall_cycles and (node.children or len(path) == 2)
    ]
    for index, (path, node) in enumerate(shown):
        level = len(path) - 2
        ax.barh(index, node.wall_cycles, color=PALETTE[level % len(PALETTE)], height=0.8)
        ax.text(
            node.wall_cycles,
            index,
            f" {node.wall_cycles:,} ({node.wall_cycles / costs.cycles:.0%})",
            va="center",
            fontsize=7,
        )
    ax.set_yticks(range(len(shown)), ["    " * (len(path) - 2) + node.name for path, node in shown], ha="left")
    ax.tick_params(axis="y", pad=8 + 5 * max((len(label.get_text()) for label in ax.get_yticklabels()), default=0))
    ax.set_ylim(max(len(shown), 1) - 0.4, -0.6)
    ax.set_xlim(0, costs.cycles * 1.25)
    count_axis(ax, "x")
    ax.set_xlabel("wall cycles")
    ax.set_ylabel("module")
    ax.set_title(f"Where the {costs.cycles:,} cycles go")
    return ax
