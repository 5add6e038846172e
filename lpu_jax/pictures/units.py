"""Units over time: each one as a line of bars, and the use of each kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lpu_jax.pictures.drawing import (
    PALETTE,
    UNIT_GROUPS,
    axes,
    boxes,
    costs_of,
    count_axis,
    graph_of,
    legend,
    rectangles,
)
from lpu_jax.report.events import UNIT_KINDS, IntArray, Rows, program_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lpu_jax.lowering.pipeline import CompiledGraph
    from lpu_jax.stages import Compiled

_MAX_NAMES = 40
"""Lines up to which each one has its name; more of them are named by group."""


def timeline(
    compiled: Compiled | CompiledGraph, *, ax: Axes | None = None, start: int = 0, stop: int | None = None
) -> Axes:
    """Units by cycles: one line per unit that works between `start` and `stop`, a bar for each row of the program.

    Loops are drawn in all iterations; a row's bar reaches from the first to the last of its repetitions.
    """
    graph, ax = graph_of(compiled), axes(ax)
    rows = program_rows(graph.program)
    stop = graph.cycles if stop is None else stop
    begin, end, port, group = _bars(rows, start, stop)
    places = {unit: (_side(rows, unit), unit) for unit in np.unique(port).tolist()}
    used = sorted(places, key=places.__getitem__)
    line = {unit: index for index, unit in enumerate(used)}
    for index, (name, _) in enumerate(UNIT_GROUPS):
        mine = np.flatnonzero(group == index)
        if len(mine):
            corners = rectangles(begin[mine], end[mine], np.array([line[p] for p in port[mine].tolist()]))
            # A hair of an edge keeps bars visible that are thinner than a pixel.
            boxes(ax, corners, PALETTE[index], name, edgecolors=PALETTE[index], linewidths=0.2)
    ax.set_xlim(start, max(stop, start + 1))
    ax.set_ylim(max(len(used), 1) - 0.5, -0.5)
    _name_lines(ax, rows, used)
    count_axis(ax, "x")
    ax.set_xlabel("time (cycles)")
    ax.set_ylabel("unit")
    ax.set_title(f"{len(used)} units at work, cycles {start:,} to {stop:,}")
    legend(ax)
    return ax


def _side(rows: Rows, port: int) -> str:
    """Group of a unit's line: "MEM west read", "VXM" and the like, which sort as they are numbered."""
    kind, _, letter = rows.units.names[port].partition("_")
    if not letter:
        return "VXM"
    side = "west" if letter[0] == "W" else "east"
    what = f" {rows.units.names[port].rpartition(' ')[2]}" if kind == "MEM" else ""
    return f"{kind} {side}{what}"


def _name_lines(ax: Axes, rows: Rows, used: list[int]) -> None:
    """Names of units, or of groups with lines between them if there are too many."""
    if len(used) <= _MAX_NAMES:
        ax.set_yticks(range(len(used)), [rows.units.names[p] for p in used], fontsize=7)
        return
    groups: dict[str, list[int]] = {}
    for index, unit in enumerate(used):
        groups.setdefault(_side(rows, unit), []).append(index)
    for lines in list(groups.values())[1:]:
        ax.axhline(lines[0] - 0.5, color="black", linewidth=0.4)
    middles = [(lines[0] + lines[-1]) / 2 for lines in groups.values()]
    ax.set_yticks(middles, [f"{name} ({len(lines)})" for name, lines in groups.items()], fontsize=8)
    ax.tick_params(axis="y", length=0)


def _bars(rows: Rows, start: int, stop: int) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    """(first cycle, cycle after the last, port, group) of every row on each of its ports in every iteration, where it
    meets start .. stop - 1."""
    kind_group = np.array([next(i for i, (_, kinds) in enumerate(UNIT_GROUPS) if kind in kinds) for kind in UNIT_KINDS])
    parts = []
    for block in rows.program.blocks:
        chosen = block.row_start + np.flatnonzero(rows.kind[block.row_start : block.row_stop] >= 0)
        for shift in block.start_cycle + block.period_cycles * np.arange(block.num_iterations):
            begin = rows.start[chosen] + rows.work_offset[chosen] + shift
            end = rows.last[chosen] + rows.work_offset[chosen] + rows.duration[chosen] + shift
            here = (begin < stop) & (end > start)
            for number in range(int(rows.num_ports[chosen].max(initial=0))):
                some = here & (rows.num_ports[chosen] > number)
                port = rows.port[chosen[some]] + number * rows.port_stride[chosen[some]]
                parts.append(np.stack([begin[some], end[some], port, kind_group[rows.kind[chosen[some]]]]))
    table = np.concatenate(parts, axis=1) if parts else np.zeros((4, 0), np.int64)
    return table[0], table[1], table[2], table[3]


def utilization(compiled: Compiled | CompiledGraph, *, ax: Axes | None = None, num_bins: int = 200) -> Axes:
    """Share of the units of a kind that work, over time: a band of its own per kind, from 0 to 100 % of its units."""
    ax, costs = axes(ax), costs_of(compiled, num_bins)
    line = costs.timeline
    widths, names = np.diff(line.edges), []
    for index, (name, kinds) in enumerate(UNIT_GROUPS):
        chosen = [UNIT_KINDS.index(kind) for kind in kinds]
        number = max(1, sum(costs.num_units[kind] for kind in kinds))
        share = line.busy[chosen].sum(axis=0) / (number * widths)
        floor = len(UNIT_GROUPS) - 1 - index
        ax.axhspan(floor, floor + 0.9, color=PALETTE[index], alpha=0.08, linewidth=0)
        ax.stairs(
            floor + 0.9 * share, line.edges, baseline=floor, fill=True, color=PALETTE[index], label=name, linewidth=0
        )
        names.append(f"{name}\n{share @ widths / max(1, costs.cycles):.1%}")
    ax.set_xlim(0, max(1, costs.cycles))
    ax.set_ylim(0, len(UNIT_GROUPS))
    ax.set_yticks([len(UNIT_GROUPS) - 1 - i + 0.45 for i in range(len(UNIT_GROUPS))], names, fontsize=8)
    ax.tick_params(axis="y", length=0)
    count_axis(ax, "x")
    ax.set_xlabel("time (cycles)")
    ax.set_ylabel("units at work, mean below the name")
    ax.set_title("Utilisation over time; a full band is all units of its kind")
    return ax
