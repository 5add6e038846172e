"""Pictures of a compiled program with matplotlib, one call each; every one draws on `ax` or on new axes and returns it.

Colours are those of Okabe and Ito, which people with any colour vision tell apart; nothing rests on colour alone
where a label can say it. Cycles are on the horizontal axis wherever there is time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lpu_jax.report.costs import Costs, measure, op_names
from lpu_jax.report.events import UNIT_KINDS, IntArray, Rows, program_rows
from lpu_jax.report.memory import Tensor
from lpu_jax.runtime.chip import ChipSpec, Hemisphere
from lpu_jax.runtime.isa import Opcode

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lpu_jax.lowering.pipeline import CompiledGraph
    from lpu_jax.stages import Compiled

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
"""Blue, orange, green, purple, light blue, vermilion, yellow."""

GREY = "#999999"

_MARKERS = "osD^vPX"
_WHOLE = "whole program"

_GROUPS = (
    ("MEM read", ("mem read",)),
    ("MEM write", ("mem write",)),
    ("VXM", ("alu",)),
    ("MXM load", ("mxm load", "mxm install")),
    ("MXM multiply", ("mxm multiply", "mxm result")),
    ("SXM", ("permuter", "transposer", "distributor")),
)
"""Units as the pictures show them; the position gives the colour."""


def timeline(
    compiled: Compiled | CompiledGraph, *, ax: Axes | None = None, start: int = 0, stop: int | None = None
) -> Axes:
    """Units by cycles: one line per unit that works between `start` and `stop`, a bar for each row of the program.

    Loops are drawn in all iterations; a row's bar reaches from the first to the last of its repetitions.
    """
    graph, ax = _graph(compiled), _axes(ax)
    rows = program_rows(graph.program)
    stop = graph.cycles if stop is None else stop
    begin, end, port, group = _bars(rows, start, stop)
    used = np.unique(port)
    line = {unit: index for index, unit in enumerate(used.tolist())}
    for index, (name, _) in enumerate(_GROUPS):
        mine = np.flatnonzero(group == index)
        if not len(mine):
            continue
        corners = _rectangles(begin[mine], end[mine], np.array([line[p] for p in port[mine].tolist()]))
        _boxes(ax, corners, PALETTE[index], name)
    ax.set_xlim(start, max(stop, start + 1))
    ax.set_ylim(max(len(used), 1) - 0.5, -0.5)
    every = max(1, -(-len(used) // 40))
    ax.set_yticks(range(0, len(used), every), [rows.units.names[p] for p in used[::every]], fontsize=6)
    ax.set_xlabel("time (cycles)")
    ax.set_ylabel("unit")
    ax.set_title(f"{len(used)} units at work, cycles {start:,} to {stop:,}")
    _legend(ax)
    return ax


def sram_map(
    compiled: Compiled | CompiledGraph, *, ax: Axes | None = None, cycle: int | None = None, num_names: int = 6
) -> Axes:
    """SRAM by slice and address: a box for every slice of every tensor, coloured by tensor.

    Args:
      compiled: a compiled function, or the stages of a program.
      ax: axes to draw on.
      cycle: shows what is in SRAM at that cycle; by default everything that ever is, the later above the earlier.
      num_names: tensors with a colour of their own, the largest ones; the others are grey.
    """
    graph, ax = _graph(compiled), _axes(ax)
    chip = graph.tile_graph.chip
    shown = [t for t in _costs(compiled).tensors if cycle is None or t.first_cycle <= cycle < t.end_cycle]
    sizes: dict[str, int] = {}
    for tensor in shown:
        sizes[tensor.name] = sizes.get(tensor.name, 0) + tensor.num_bytes
    named = sorted(sizes, key=lambda name: (-sizes[name], name))[: min(num_names, len(PALETTE))]
    for color, name in [*zip(PALETTE, named, strict=False), (GREY, "")]:
        mine = [t for t in shown if (t.name == name if name else t.name not in named)]
        corners = [box for tensor in mine for box in _tensor_boxes(tensor, chip.num_slices)]
        if corners:
            _boxes(ax, np.array(corners), color, name or f"{len(sizes) - len(named)} smaller ones")
    _sram_axes(ax, chip)
    ax.set_title("SRAM" if cycle is None else f"SRAM at cycle {cycle:,}")
    _legend(ax)
    return ax


def utilization(compiled: Compiled | CompiledGraph, *, ax: Axes | None = None, num_bins: int = 100) -> Axes:
    """Share of the units of a kind that work, over time: one stepped line per kind."""
    ax, costs = _axes(ax), _costs(compiled, num_bins)
    line = costs.timeline
    widths = np.diff(line.edges)
    for index, (name, kinds) in enumerate(_GROUPS):
        chosen = [UNIT_KINDS.index(kind) for kind in kinds]
        number = max(1, sum(costs.num_units[kind] for kind in kinds))
        busy = line.busy[chosen].sum(axis=0)
        if busy.any():
            ax.stairs(100 * busy / (number * widths), line.edges, color=PALETTE[index], label=name, linewidth=1.5)
    ax.set_xlim(0, costs.cycles)
    ax.set_ylim(0, min(100.0, 1.1 * ax.dataLim.ymax) if ax.dataLim.ymax > 0 else 100.0)
    ax.set_xlabel("time (cycles)")
    ax.set_ylabel("units at work (%)")
    ax.set_title("Utilisation over time")
    _legend(ax)
    return ax


def roofline(compiled: Compiled | CompiledGraph, *, ax: Axes | None = None, num_names: int = 6) -> Axes:
    """MACs per cycle over MACs per byte read from SRAM: the chip's two roofs, the matmuls by name, and the program.

    Roofs: planes x rows x lanes MACs per cycle (int8), and MACs per byte x bytes that all slices read per cycle. A name
    stands at its MACs over the cycles in which planes multiply or load for it, all planes at once, so what is above it
    is lost in the planes; the program stands at all MACs over all cycles.
    """
    graph, ax = _graph(compiled), _axes(ax)
    chip, costs = graph.tile_graph.chip, _costs(compiled)
    peak = chip.macs_per_cycle_int8
    bandwidth = len(_read_ports(costs)) * chip.num_lanes
    points = _macs_by_name(graph)
    whole = tuple(sum(column) for column in zip(*(p[1:3] for p in points), strict=True)) if points else (0, 0)
    shown = [(name, macs / max(1, size), macs / max(1, time)) for name, macs, size, time in points[:num_names]]
    if points:
        shown.append((_WHOLE, whole[0] / max(1, whole[1]), whole[0] / costs.cycles))
    intensities = [x for _, x, _ in shown] or [1.0]
    low, high = min([*intensities, peak / bandwidth]) / 4, max([*intensities, peak / bandwidth]) * 4
    x = np.geomspace(low, high, 200)
    ax.loglog(x, np.minimum(peak, x * bandwidth), color="black", label="chip (int8, SRAM reads)")
    for index, (name, intensity, speed) in enumerate(shown):
        last = name == _WHOLE
        color, marker = ("black", "*") if last else (PALETTE[index % len(PALETTE)], _MARKERS[index % len(_MARKERS)])
        style = {"linestyle": "none", "markersize": 11, "markerfacecolor": "none", "markeredgewidth": 1.5}
        ax.loglog([intensity], [speed], marker=marker, color=color, label=name, **style)
    ax.set_xlim(low, high)
    ax.set_xlabel("MACs per byte read from SRAM")
    ax.set_ylabel("MACs per cycle")
    ax.set_title(f"Roofline of {chip.name}")
    _legend(ax)
    return ax


def cycles_per_module(compiled: Compiled | CompiledGraph, *, ax: Axes | None = None, depth: int = 3) -> Axes:
    """Wall cycles of every module down to `depth` names, as bars in the order of the tree; deeper names lie inside."""
    ax, costs = _axes(ax), _costs(compiled)
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
    ax.set_xlabel("wall cycles")
    ax.set_ylabel("module")
    ax.set_title(f"Where the {costs.cycles:,} cycles go")
    return ax


def binding_chain(compiled: Compiled | CompiledGraph, *, ax: Axes | None = None, block: int | None = None) -> Axes:
    """The binding chain of one block: what every cycle of an iteration belongs to, coloured by what it waited for.

    block: number of the block; by default the one with the most cycles.
    """
    ax, costs = _axes(ax), _costs(compiled)
    longest = max(range(len(costs.blocks)), key=lambda number: costs.blocks[number].total_cycles)
    chosen = longest if block is None else block
    links = [link for link in costs.chain if link.block == chosen]
    names = list(dict.fromkeys(link.name or "(unnamed)" for link in links))
    reasons = {
        "memory": "an operand or a word",
        "unit": "a unit",
        "bank": "a bank",
        "stream": "a stream",
        "": "nothing",
    }
    for index, (reason, text) in enumerate(reasons.items()):
        mine = [link for link in links if link.reason == reason]
        if mine:
            begin, end = (np.array([getattr(link, side) for link in mine]) for side in ("start", "stop"))
            lines = np.array([names.index(link.name or "(unnamed)") for link in mine])
            _boxes(ax, _rectangles(begin, end, lines), PALETTE[index], f"waited for {text}")
    ax.set_xlim(0, max(1, costs.blocks[chosen].cycles_per_iteration))
    ax.set_ylim(max(len(names), 1) - 0.5, -0.5)
    ax.set_yticks(range(len(names)), names, fontsize=7)
    ax.set_xlabel("time in an iteration (cycles)")
    ax.set_ylabel("module")
    ax.set_title(f"Binding chain of block {chosen} ({costs.blocks[chosen].kind})")
    _legend(ax)
    return ax


# Data ---------------------------------------------------------------------------------------------------------------


def _graph(compiled: Compiled | CompiledGraph) -> CompiledGraph:
    graph: Any = getattr(compiled, "compiled_graph", compiled)  # a Compiled has one, a CompiledGraph is one
    return graph  # type: ignore[no-any-return]


def _costs(compiled: Any, num_bins: int = 100) -> Costs:
    names = [name for name, *_ in compiled.memory_map()] if hasattr(compiled, "compiled_graph") else None
    return measure(_graph(compiled), tensor_names=names, num_bins=num_bins)


def _bars(rows: Rows, start: int, stop: int) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    """(first cycle, cycle after the last, port, group) of every row on each of its ports in every iteration, where it
    meets start .. stop - 1."""
    kind_group = np.array([next(i for i, (_, kinds) in enumerate(_GROUPS) if kind in kinds) for kind in UNIT_KINDS])
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


def _tensor_boxes(tensor: Tensor, num_slices: int) -> list[tuple[float, float, float, float]]:
    """(left, bottom, width, height) of every slice of a tensor."""
    side = Hemisphere[tensor.hemisphere]
    return [(_slice_place(side, s, num_slices) - 0.5, tensor.base, 1, tensor.num_addresses) for s in tensor.slices]


def _slice_place(side: Hemisphere, mem_slice: int, num_slices: int) -> int:
    """Slices as they lie on the chip: slice 0 of both hemispheres in the middle, at the VXM."""
    return num_slices + mem_slice if side is Hemisphere.EAST else num_slices - 1 - mem_slice


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


# Drawing ------------------------------------------------------------------------------------------------------------


def _axes(ax: Axes | None) -> Axes:
    """The given axes, or those of a new figure, which belongs to no window.

    Raises:
      ImportError: matplotlib is not installed.
    """
    if ax is not None:
        return ax
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'lpu_jax[pictures]'") from error
    made: Axes = Figure(figsize=(10, 5), layout="constrained").add_subplot()
    return made


def _rectangles(begin: IntArray, end: IntArray, line: IntArray) -> Any:
    """(left, bottom, width, height) of bars on numbered lines."""
    return np.stack([begin, line - 0.4, end - begin, np.full(len(line), 0.8)], axis=1)


def _boxes(ax: Axes, corners: Any, color: str, label: str) -> None:
    """Rectangles [n, 4] of one colour as one artist, which stays fluid for very many."""
    from matplotlib.collections import PolyCollection

    left, bottom, width, height = np.asarray(corners, float).T
    right, top = left + width, bottom + height
    vertices: Any = np.stack([left, bottom, left, top, right, top, right, bottom], axis=1).reshape(-1, 4, 2)
    ax.add_collection(PolyCollection(vertices, facecolors=color, edgecolors="none", label=label))


def _sram_axes(ax: Axes, chip: ChipSpec) -> None:
    """Slices as they lie on the chip, addresses upwards, a line between hemispheres and a dotted one between banks."""
    ax.set_xlim(-0.5, 2 * chip.num_slices - 0.5)
    ax.set_ylim(0, chip.num_addresses_per_slice)
    ax.axvline(chip.num_slices - 0.5, color="black", linewidth=1.5)
    for bank in range(1, chip.num_banks):
        ax.axhline(bank * chip.num_addresses_per_bank, color="black", linewidth=0.7, linestyle=":")
    step = max(1, chip.num_slices // 4)
    ticks = [
        (_slice_place(side, s, chip.num_slices), f"{side.name[0]}{s}")
        for side in Hemisphere
        for s in range(0, chip.num_slices, step)
    ]
    ax.set_xticks([position for position, _ in ticks], [text for _, text in ticks])
    ax.set_xlabel("MEM slice (W west, E east hemisphere, the VXM between them)")
    ax.set_ylabel("address (vector words); banks dotted")


def _legend(ax: Axes) -> None:
    handles, labels = ax.get_legend_handles_labels()
    if handles:
        ax.legend(handles, labels, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False)
