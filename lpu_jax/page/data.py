"""Everything that the page shows, as a JSON head and integer columns: see `pack`.

Columns: `rows.*` [rows] what each row does and when; `flights.*` values on streams, sorted by block, with
`flights.block`; `links.from`, `links.to` pairs of rows of which the second takes a value of the first; `streams` [2
directions, 2 hemispheres, cycles of one iteration of each block in turn] streams in use; `ops.name` index into
head["names"] of every scheduled op; `tensors.*`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lpu_jax.page.flights import flights
from lpu_jax.report.costs import Costs
from lpu_jax.report.events import UNIT_KINDS, IntArray, Rows, program_rows, unroll
from lpu_jax.report.tree import Node
from lpu_jax.report.values import stream_values, streams_in_use
from lpu_jax.runtime.assembly import row_text
from lpu_jax.runtime.chip import ChipSpec, Hemisphere
from lpu_jax.runtime.isa import OPERANDS, VXM_FUNCTIONS, DataFormat, Opcode, queues

if TYPE_CHECKING:
    from lpu_jax.report import Report
    from lpu_jax.stages import Compiled

MAX_STREAM_CYCLES = 1_000_000
"""Cycles of all blocks up to which the streams in use are kept for every cycle; longer programs have no such curves."""


def page_data(compiled: Compiled, report: Report) -> tuple[dict[str, Any], dict[str, IntArray]]:
    """(head, columns) of a compiled function."""
    graph, costs = compiled.compiled_graph, report.costs
    rows = program_rows(graph.program)
    names = list(dict.fromkeys(costs.op_names))
    number = {name: index for index, name in enumerate(names)}
    moving, lengths = _moving(rows)
    columns = {
        **{f"rows.{name}": column for name, column in _row_columns(rows).items()},
        "ops.name": np.array([number[name] for name in costs.op_names], np.int64),
        **moving,
        **{f"tensors.{name}": column for name, column in _tensor_columns(costs).items()},
    }
    head = {
        "name": report.name,
        "report": report.to_dict(detail=False),
        "chip": chip_layout(graph.program.chip),
        "kinds": list(UNIT_KINDS),
        "functions": list(VXM_FUNCTIONS),
        "opcodes": [opcode.name for opcode in Opcode],
        "blocks": _blocks(rows, costs, lengths),
        "names": names,
        "tree": _tree(report.tree),
        "chain": [[link.block, link.start, link.stop, link.name, link.source, link.reason] for link in costs.chain],
        "units": [[unit.name, unit.kind, unit.busy_cycles] for unit in costs.units],
        "bytes": {kind: [costs.bytes_in[kind], costs.bytes_out[kind]] for kind in UNIT_KINDS},
        "macs": costs.macs,
        "tensor_names": sorted({tensor.name for tensor in costs.tensors}),
        "formats": [number_format.name.lower() for number_format in DataFormat],
        "text": "\n".join(row_text(graph.program, row) for row in range(graph.program.num_rows)),
    }
    return head, columns


def chip_layout(chip: ChipSpec) -> dict[str, Any]:
    """What the floor plan draws: positions in hops (west negative), counts, and the queues in order."""
    sides = (Hemisphere.WEST, Hemisphere.EAST)
    return {
        "name": chip.name,
        "clock_hz": chip.clock_hz,
        "num_lanes": chip.num_lanes,
        "streams": chip.num_streams_per_direction,
        "slices": chip.num_slices,
        "slices_per_column": chip.num_slices_per_column,
        "reserved": [list(chip.reserved_slices_west), list(chip.reserved_slices_east)],
        "addresses": chip.num_addresses_per_slice,
        "banks": chip.num_banks,
        "alus": chip.num_alus,
        "planes": chip.num_planes,
        "mxm_rows": chip.num_mxm_rows,
        "load_streams": chip.num_streams_per_load,
        "accumulators": chip.num_accumulator_vectors,
        "install_cycles": chip.mxm_install_tail_cycles,
        "transposers": chip.num_transposers,
        "distributors": chip.num_distributors,
        "vxm_edge": chip.vxm_pass_cycles // 2,
        "mem_edge": [chip.mem_position(side, chip.num_slices - 1) for side in sides],
        "sxm": [chip.sxm_position(side) for side in sides],
        "mxm": [chip.mxm_operand_position(side) for side in sides],
        "max_position": chip.max_position,
        "skew_cycles": chip.skew_cycles,
        "queues": [[str(queue), queue.kind.name, int(queue.hemisphere), queue.index] for queue in queues(chip)],
    }


def _row_columns(rows: Rows) -> dict[str, IntArray]:
    """Issue, work and operands of every row; `place` is a MEM address, the first loaded row of an LW, or a function."""
    program = rows.program
    place, step, loop = (np.zeros(program.num_rows, np.int64) for _ in range(3))
    for opcode in (Opcode.READ, Opcode.WRITE, Opcode.GATHER, Opcode.SCATTER):
        mine = program.opcode == opcode
        place[mine], step[mine], loop[mine] = program.operands[mine, :3].T
    loads = program.opcode == Opcode.LW
    names = OPERANDS[Opcode.LW]
    first, advance, number_format = (program.operands[loads, names.index(n)] for n in ("row", "row_step", "format"))
    sizes = np.array([f.num_bytes for f in DataFormat], np.int64)
    place[loads], step[loads] = first, advance
    loop[loads] = program.chip.num_streams_per_load // sizes[number_format]  # rows that one load fills
    chains = program.opcode == Opcode.VXM
    place[chains] = program.operands[chains, OPERANDS[Opcode.VXM].index("function")]
    return {
        "start": rows.start,
        "count": rows.count,
        "interval": rows.interval,
        "queue": program.queue.astype(np.int64),
        "opcode": program.opcode.astype(np.int64),
        "kind": rows.kind,
        "ports": rows.num_ports,
        "duration": rows.duration,
        "offset": rows.work_offset,
        "latency": rows.finish - rows.last,
        "op": rows.origin,
        "place": place,
        "step": step,
        "loop": loop,
    }


def _moving(rows: Rows) -> tuple[dict[str, IntArray], list[int]]:
    """(columns of flights and of streams in use, cycles of one iteration of each block until all of it is done)."""
    parts: dict[str, list[IntArray]] = {}
    used, lengths = [], []
    for number, block in enumerate(rows.program.blocks):
        events = unroll(rows, block)
        values = stream_values(events)
        found = flights(events, values)
        for name, column in found.columns().items():
            parts.setdefault(f"flights.{name}", []).append(column)
        parts.setdefault("flights.block", []).append(np.full(len(found.row), number))
        pairs = np.stack([events.row[values.drives.event[values.maker]], events.row[values.takes.event]])
        for name, column in zip(("from", "to"), np.unique(pairs, axis=1), strict=True):
            parts.setdefault(f"links.{name}", []).append(column)
        lengths.append(events.length_cycles)
        used.append(streams_in_use(events, values).reshape(4, -1))
    columns = {name: np.concatenate(columns) for name, columns in parts.items()}
    if used and sum(lengths) <= MAX_STREAM_CYCLES:
        columns["streams"] = np.concatenate(used, axis=1)
    return columns, lengths


def _blocks(rows: Rows, costs: Costs, lengths: list[int]) -> list[dict[str, Any]]:
    return [
        {
            "kind": cost.kind,
            "first": block.row_start,
            "stop": block.row_stop,
            "start": block.start_cycle,
            "iterations": block.num_iterations,
            "period": block.period_cycles,
            "length": length,
            "cycles": cost.cycles_per_iteration,
            "total": cost.total_cycles,
        }
        for block, cost, length in zip(rows.program.blocks, costs.blocks, lengths, strict=True)
    ]


def _tree(node: Node) -> list[Any]:
    """[name, wall cycles, busy cycles by kind, children]."""
    return [node.name, node.wall_cycles, list(node.busy_cycles), [_tree(child) for child in node.children]]


def _tensor_columns(costs: Costs) -> dict[str, IntArray]:
    """Places of tensors; slices are listed one after the other, `slices` of each tensor in turn."""
    names = {name: index for index, name in enumerate(sorted({tensor.name for tensor in costs.tensors}))}
    table = [
        (
            names[t.name], Hemisphere[t.hemisphere], DataFormat[t.format.upper()], len(t.slices),
            t.base, t.num_addresses, t.first_cycle, t.end_cycle, t.is_resident,
        )
        for t in costs.tensors
    ]  # fmt: skip
    keys = ("name", "hemisphere", "format", "slices", "base", "addresses", "first", "end", "resident")
    columns = np.array(table, np.int64).reshape(-1, len(keys)).T
    found: dict[str, IntArray] = dict(zip(keys, columns, strict=True))
    found["slice"] = np.array([s for tensor in costs.tensors for s in tensor.slices], np.int64)
    return found
