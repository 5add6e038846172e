"""Two chains: what each cycle of the schedule waited for, and what no schedule can do without."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lpu_jax.pictures.drawing import PALETTE, axes, boxes, costs_of, count_axis, graph_of, legend, rectangles

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lpu_jax.lowering.pipeline import CompiledGraph
    from lpu_jax.stages import Compiled

_REASONS = {
    "memory": "waited for an operand or a word",
    "unit": "waited for a unit",
    "bank": "waited for a bank",
    "stream": "waited for a stream",
    "": "waited for nothing",
}

_WORK = (("MatMul", "product"), ("LaneReduce", "over lanes"), ("Elementwise", "elementwise"), ("", "other"))
"""Operations by the beginning of their text."""

_Stretch = tuple[int, int, str, str]


def binding_chain(compiled: Compiled | CompiledGraph, *, ax: Axes | None = None, block: int | None = None) -> Axes:
    """The binding chain of one block: what every cycle of an iteration belongs to, coloured by what it waited for.

    block: number of the block; by default the one with the most cycles.
    """
    ax, costs = axes(ax), costs_of(compiled)
    longest = max(range(len(costs.blocks)), key=lambda number: costs.blocks[number].total_cycles)
    chosen = longest if block is None else block
    stretches = [
        (link.start, link.stop, link.name or "(unnamed)", _REASONS[link.reason])
        for link in costs.chain
        if link.block == chosen
    ]
    _draw(ax, stretches, tuple(_REASONS.values()), max(1, costs.blocks[chosen].cycles_per_iteration))
    ax.set_xlabel("time in an iteration (cycles)")
    cost = costs.blocks[chosen]
    trips = f", one of {cost.num_iterations} trips" if cost.num_iterations > 1 else ""
    ax.set_title(f"Binding chain of block {chosen} ({cost.kind}{trips})")
    return ax


def dependency_chain(
    compiled: Compiled | CompiledGraph, *, ax: Axes | None = None, start: int = 0, stop: int | None = None
) -> Axes:
    """The longest chain of latencies, which no schedule can shorten, link by link; coloured by the kind of operation.

    start, stop: the part of the chain to be drawn, in cycles along it; by default all of it.
    """
    bound, ax = graph_of(compiled).dependency_bound, axes(ax)
    ends = np.cumsum([0, *(link.cycles for link in bound.chain)]).tolist()
    stop = max(1, bound.cycles) if stop is None else stop
    kinds = [next(name for prefix, name in _WORK if link.op.startswith(prefix)) for link in bound.chain]
    stretches = [
        (ends[i], ends[i + 1], link.name or ("(unnamed)" if "(" in link.op else link.op), kinds[i])
        for i, link in enumerate(bound.chain)
        if ends[i] < stop and ends[i + 1] > start
    ]
    _draw(ax, stretches, tuple(name for _, name in _WORK), stop, start)
    ax.set_xlabel("time along the chain (cycles)")
    ax.set_title(f"The chain of the dependency bound, {bound.cycles:,} cycles in all")
    return ax


def _draw(ax: Axes, stretches: list[_Stretch], kinds: tuple[str, ...], stop: int, start: int = 0) -> None:
    """Stretches (first cycle, end, name, kind) on one line per name, in the order in which the names come."""
    sums: dict[str, int] = {}
    for first, end, name, _ in stretches:
        sums[name] = sums.get(name, 0) + end - first
    line = {name: index for index, name in enumerate(sums)}
    whole = max(1, sum(sums.values()))
    for index, kind in enumerate(kinds):
        mine = [stretch for stretch in stretches if stretch[3] == kind]
        if mine:
            begins, ends = (np.array([stretch[side] for stretch in mine]) for side in (0, 1))
            share = f"{int((ends - begins).sum()) / whole:.0%}"
            corners = rectangles(begins, ends, np.array([line[stretch[2]] for stretch in mine]))
            boxes(ax, corners, PALETTE[index], f"{kind} ({share})")
    ax.set_xlim(start, max(stop, start + 1))
    ax.set_ylim(max(len(line), 1) - 0.5, -0.5)
    ax.set_yticks(range(len(line)), [f"{name}  {cycles:,} ({cycles / whole:.0%})" for name, cycles in sums.items()])
    ax.tick_params(axis="y", labelsize=8)
    count_axis(ax, "x")
    ax.set_ylabel("module, its cycles in the chain")
    legend(ax)
