"""`measure`: everything that a program's rows say about its costs, attributed to the ops they were made for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lpu_jax.report.attribution import BARRIER, IDLE, BlockWall, block_walls, busy_by_op, times_run
from lpu_jax.report.events import UNIT_KINDS, Rows, program_rows
from lpu_jax.report.memory import Tensor, tensors
from lpu_jax.report.movement import NO_MOVEMENT, DataMovement, data_movement
from lpu_jax.report.timeline import Timeline, timeline
from lpu_jax.report.tree import Node, roll_up, tree_records
from lpu_jax.runtime.isa import DataFormat

if TYPE_CHECKING:
    from lpu_jax.lowering.pipeline import CompiledGraph


@dataclasses.dataclass(frozen=True, slots=True)
class BlockCost:
    """Rows that run together: `kind` is "barrier", "once" or "loop"; total_cycles covers all iterations."""

    kind: str
    start_cycle: int
    num_iterations: int
    cycles_per_iteration: int
    total_cycles: int


@dataclasses.dataclass(frozen=True, slots=True)
class ChainLink:
    """A stretch of the binding chain: cycles of one iteration that an op owns, and why it was not earlier.

    Attributes:
      block: number of the block; start, stop: cycles from the start of its iteration.
      reason: "memory" (an operand, or a word still to be read), "unit", "bank" or "stream", "" at the head.
      slack_cycles: by how much the op could have been earlier all the same.
    """

    block: int
    start: int
    stop: int
    name: str
    source: str
    reason: str
    slack_cycles: int


@dataclasses.dataclass(frozen=True, slots=True)
class UnitUse:
    """A unit: busy_cycles + idle_cycles are the cycles of the program."""

    name: str
    kind: str
    busy_cycles: int
    idle_cycles: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Costs:
    """What the rows of a program cost.

    Invariants:
      sum(block.total_cycles) + skew_cycles == cycles == tree.wall_cycles
      busy_cycles[kind] == sum of the units' busy cycles == tree.busy_cycles

    Attributes:
      op_names: (module path, file and line) of every scheduled op; the rows' origin counts them.
      chain: what every cycle of every block waited for, in order.
      bytes_in, bytes_out: bytes that units of a kind take from and put on streams.
      data_movement: the cycles of ops that only move data.
      macs: multiply-accumulates of the MXM by formats ("int8 x int8"), idle lanes of the last tiles counted.
    """

    cycles: int
    skew_cycles: int
    num_streams_per_direction: int
    blocks: tuple[BlockCost, ...]
    op_names: tuple[tuple[str, str], ...]
    chain: tuple[ChainLink, ...]
    units: tuple[UnitUse, ...]
    bytes_in: dict[str, int]
    bytes_out: dict[str, int]
    macs: dict[str, int]
    tree: Node
    timeline: Timeline
    tensors: tuple[Tensor, ...]
    data_movement: DataMovement = NO_MOVEMENT

    @property
    def busy_cycles(self) -> dict[str, int]:
        """Busy unit cycles by kind, all units of a kind together."""
        return dict(zip(UNIT_KINDS, self.tree.busy_cycles, strict=True))

    @property
    def num_units(self) -> dict[str, int]:
        """Units of each kind."""
        return {kind: sum(unit.kind == kind for unit in self.units) for kind in UNIT_KINDS}

    @property
    def sram_formats(self) -> dict[str, int]:
        """Bytes of all tensors by number format."""
        found: dict[str, int] = {}
        for tensor in self.tensors:
            found[tensor.format] = found.get(tensor.format, 0) + tensor.num_bytes
        return found

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        line = self.timeline
        return {
            "cycles": self.cycles,
            "skew_cycles": self.skew_cycles,
            "blocks": [dataclasses.asdict(block) for block in self.blocks],
            "chain": [dataclasses.asdict(link) for link in self.chain],
            "units": [dataclasses.asdict(unit) for unit in self.units],
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "macs": self.macs,
            "data_movement": dataclasses.asdict(self.data_movement),
            "sram_formats": self.sram_formats,
            "tree": tree_records(self.tree),
            "timeline": {
                "edges": line.edges.tolist(),
                "utilization": {k: line.utilization[i].tolist() for i, k in enumerate(UNIT_KINDS)},
                "streams": line.streams.tolist(),
                "peak_streams": line.peak_streams.tolist(),
                "sram_bytes": line.sram_bytes.tolist(),
            },
            "tensors": [dataclasses.asdict(tensor) for tensor in self.tensors],
        }


def measure(
    compiled: CompiledGraph, *, name: str = "program", tensor_names: Sequence[str] | None = None, num_bins: int = 100
) -> Costs:
    """The costs of a compiled graph.

    Args:
      compiled: every stage of the program.
      name: of the tree's root.
      tensor_names: one name per placed storage, see `memory.tensors`.
      num_bins: bins of the timeline.
    """
    rows, program = program_rows(compiled.program), compiled.program
    skew = program.chip.skew_cycles
    end = compiled.cycles - skew
    walls = block_walls(rows, end)
    names = op_names(compiled)
    found = tensors(compiled, rows, tensor_names)
    spans = [(t.first_cycle, t.end_cycle, t.num_bytes) for t in found]
    bytes_in, bytes_out = _bytes_moved(rows)
    return Costs(
        cycles=compiled.cycles,
        skew_cycles=skew,
        num_streams_per_direction=program.chip.num_streams_per_direction,
        blocks=_block_costs(rows, walls),
        op_names=names,
        chain=_chain_links(walls, names),
        units=_unit_uses(rows, compiled.cycles),
        bytes_in=bytes_in,
        bytes_out=bytes_out,
        macs=_macs(rows),
        tree=_tree(rows, walls, names, name, skew),
        timeline=timeline(rows, compiled.cycles, num_bins, spans),
        tensors=found,
        data_movement=_movement(compiled, walls),
    )


def _movement(compiled: CompiledGraph, walls: list[BlockWall]) -> DataMovement:
    owned: dict[int, int] = {}
    for wall in walls:
        for op, cycles in wall.owned().items():
            owned[op] = owned.get(op, 0) + cycles
    ops = [op.op for block in compiled.schedule.blocks for op in block.ops]
    return data_movement(ops, owned, compiled.cycles)


def op_names(compiled: CompiledGraph) -> tuple[tuple[str, str], ...]:
    """(module path, file and line) of every scheduled op, counted through the blocks."""
    return tuple((op.op.name, op.op.source) for block in compiled.schedule.blocks for op in block.ops)


def _path(names: tuple[tuple[str, str], ...], owner: int) -> tuple[str, ...]:
    if owner == BARRIER:
        return ("(barrier)",)
    if owner == IDLE:
        return ("(idle)",)
    name, source = names[owner]
    return (*(name.split("/") if name else ("(unnamed)",)), source or "(no source)")


def _tree(rows: Rows, walls: list[BlockWall], names: tuple[tuple[str, str], ...], name: str, skew_cycles: int) -> Node:
    nothing = (0,) * len(UNIT_KINDS)
    leaves = [(_path(names, owner), cycles, nothing) for wall in walls for owner, cycles in wall.owned().items()]
    busy = busy_by_op(rows, len(names))
    leaves += [(_path(names, op), 0, tuple(busy[op].tolist())) for op in range(len(names))]
    leaves.append((_path(names, BARRIER), 0, tuple(busy[-1].tolist())))
    leaves.append((("(skew)",), skew_cycles, nothing))
    return roll_up(name, leaves)


def _block_costs(rows: Rows, walls: list[BlockWall]) -> tuple[BlockCost, ...]:
    found = []
    for block, wall in zip(rows.program.blocks, walls, strict=True):
        has_op = bool((rows.program.origin[block.row_start : block.row_stop] >= 0).any())
        kind = "loop" if block.num_iterations > 1 else "once" if has_op else "barrier"
        total = (wall.num_iterations - 1) * wall.cycles + wall.last_cycles
        found.append(BlockCost(kind, block.start_cycle, block.num_iterations, wall.cycles, total))
    return tuple(found)


def _chain_links(walls: list[BlockWall], names: tuple[tuple[str, str], ...]) -> tuple[ChainLink, ...]:
    found = []
    for number, wall in enumerate(walls):
        for link in wall.links:
            name, source = names[link.op] if link.op >= 0 else (_path(names, link.op)[0], "")
            found.append(ChainLink(number, link.start, link.stop, name, source, link.reason, link.slack_cycles))
    return tuple(found)


def _unit_uses(rows: Rows, cycles: int) -> tuple[UnitUse, ...]:
    busy = np.zeros(len(rows.units.names), np.int64)
    work = rows.count * rows.duration * times_run(rows)
    chosen = np.flatnonzero(rows.kind >= 0)
    for number in range(int(rows.num_ports[chosen].max(initial=0))):
        some = chosen[rows.num_ports[chosen] > number]
        np.add.at(busy, rows.port[some] + number * rows.port_stride[some], work[some])
    return tuple(
        UnitUse(name, UNIT_KINDS[kind], used, cycles - used)
        for name, kind, used in zip(rows.units.names, rows.units.kind.tolist(), busy.tolist(), strict=True)
        if kind >= 0
    )


def _bytes_moved(rows: Rows) -> tuple[dict[str, int], dict[str, int]]:
    times, lanes = rows.count * times_run(rows), rows.program.chip.num_lanes
    found = []
    for counts in (rows.take_count, rows.drive_count):
        amount = times * counts.sum(axis=1) * lanes
        found.append({kind: int(amount[rows.kind == index].sum()) for index, kind in enumerate(UNIT_KINDS)})
    return found[0], found[1]


def _macs(rows: Rows) -> dict[str, int]:
    times = rows.count * times_run(rows)
    found: dict[str, int] = {}
    for lhs, rhs in np.unique(rows.formats[rows.macs > 0], axis=0).tolist():
        here = (rows.formats == (lhs, rhs)).all(axis=1)
        name = f"{DataFormat(lhs).name.lower()} x {DataFormat(rhs).name.lower()}"
        found[name] = int((rows.macs * times)[here].sum())
    return found
