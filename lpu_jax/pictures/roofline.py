"""The roofline of the chip with the matrix products of a program on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lpu_jax.pictures.drawing import GREY, PALETTE, axes, costs_of, graph_of, legend
from lpu_jax.report.costs import Costs, op_names
from lpu_jax.report.events import UNIT_KINDS, program_rows
from lpu_jax.runtime.chip import ChipSpec
from lpu_jax.runtime.isa import Opcode

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lpu_jax.lowering.pipeline import CompiledGraph
    from lpu_jax.stages import Compiled

_MARKERS = "osD^vPX"
_WHOLE = "whole program"


def roofline(compiled: Compiled | CompiledGraph, *, ax: Axes | None = None, num_names: int = 6) -> Axes:
    """MACs per cycle over MACs per byte read from SRAM: the chip's roofs, the matmuls by name, and the program.

    Roofs: planes x rows x lanes MACs per cycle (int8; fp16 below it), and MACs per byte x bytes that all slices read
    per cycle. A name stands at its MACs over the cycles in which planes multiply or load for it, all planes at once, so
    what is above it is lost in the planes; the program stands at all MACs over all cycles.
    """
    graph, ax = graph_of(compiled), axes(ax)
    chip, costs = graph.tile_graph.chip, costs_of(compiled)
    peak, bandwidth = chip.macs_per_cycle_int8, len(_read_ports(costs)) * chip.num_lanes
    points = _macs_by_name(graph)
    whole = tuple(sum(column) for column in zip(*(p[1:3] for p in points), strict=True)) if points else (0, 0)
    shown = [(name, macs / max(1, size), macs / max(1, time)) for name, macs, size, time in points[:num_names]]
    if points:
        shown.append((_WHOLE, whole[0] / max(1, whole[1]), whole[0] / costs.cycles))
    intensities = [x for _, x, _ in shown] or [1.0]
    low, high = min([*intensities, peak / bandwidth]) / 4, max([*intensities, peak / bandwidth]) * 4
    x = np.geomspace(low, high, 200)
    ax.loglog(x, np.minimum(peak, x * bandwidth), color="black", label="chip (int8, SRAM reads)")
    half = _fp16_peak(chip)
    ax.loglog([half / bandwidth, high], [half, half], color=GREY, linestyle="--", label="_fp16")
    for value, name in ((peak, "int8"), (half, "fp16")):
        ax.annotate(f"{name}: {value:,}", (high, value), (-4, 3), textcoords="offset points", ha="right", fontsize=8)
    for index, (name, intensity, speed) in enumerate(shown):
        last = name == _WHOLE
        color, marker = ("black", "*") if last else (PALETTE[index % len(PALETTE)], _MARKERS[index % len(_MARKERS)])
        # Points that coincide stay visible: the earlier, the larger.
        size = 10 if last else 8 + 1.6 * (len(shown) - 1 - index)
        style = {"linestyle": "none", "markersize": size, "markerfacecolor": "none", "markeredgewidth": 1.5}
        ax.loglog([intensity], [speed], marker=marker, color=color, label=f"{name}: {speed:,.0f}", **style)
    ax.set_xlim(low, high)
    ax.grid(visible=True, which="major", color="#dddddd", linewidth=0.5)
    ax.set_xlabel("MACs per byte read from SRAM")
    ax.set_ylabel("MACs per cycle")
    ax.set_title(f"Roofline of {chip.name}; beside the names MACs per cycle")
    legend(ax)
    return ax


def _fp16_peak(chip: ChipSpec) -> int:
    """MACs per cycle of all planes with fp16 on both sides."""
    tiles = 2 * chip.num_planes // chip.planes_per_tile(2)
    return tiles * chip.num_mxm_rows * chip.num_lanes // chip.cycles_per_vector(chip.num_mxm_rows, 2, 2)


def _read_ports(costs: Costs) -> list[str]:
    return [unit.name for unit in costs.units if unit.kind == "mem read"]


def _macs_by_name(graph: CompiledGraph) -> list[tuple[str, int, int, int]]:
    """(name, MACs, bytes read from SRAM, cycles) of modules with matmuls, most MACs first; loops counted.

    cycles: busy cycles of the planes (multiplying and loading) over the number of planes.
    """
    rows, names = program_rows(graph.program), op_names(graph)
    chip = graph.program.chip
    iterations = np.ones(rows.program.num_rows, np.int64)
    for block in rows.program.blocks:
        iterations[block.row_start : block.row_stop] = block.num_iterations
    times = rows.count * iterations
    macs, busy = rows.macs * times, rows.duration * rows.num_ports * times
    reads = np.isin(rows.program.opcode, (Opcode.READ, Opcode.GATHER)) * times * chip.num_lanes
    planes = np.isin(rows.kind, [UNIT_KINDS.index(kind) for kind in ("mxm load", "mxm multiply")])
    found: dict[str, list[int]] = {}
    for op in np.unique(rows.origin[rows.origin >= 0]).tolist():
        mine = rows.origin == op
        if macs[mine].sum():
            total = found.setdefault(names[op][0] or "(unnamed)", [0, 0, 0])
            total[0] += int(macs[mine].sum())
            total[1] += int(reads[mine].sum())
            total[2] += int((busy * planes)[mine].sum())
    units = 2 * chip.num_planes
    points = [(name, m, size, -(-time // units)) for name, (m, size, time) in found.items()]
    return sorted(points, key=lambda point: (-point[1], point[0]))
