"""Wall cycles: every cycle of a program belongs to exactly one op, or to the barrier, to waiting, or to the skew.

An op is rigid: all its instructions move together. So it could not be earlier than its tightest constraint allows: an
operand still to be written, a word still to be read, a unit, a bank or a stream still in use by another op. (Words at
run-time addresses, those of Gather and Scatter, are known to the machine only; the units and streams count.) Walking
back from the op that finishes last, each op owns the cycles from the finish of the op behind its tightest constraint
to its own finish.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from lpu_jax.report.events import UNIT_KINDS, Events, IntArray, Rows, direction_sign, hemisphere_of, unroll
from lpu_jax.runtime.isa import Opcode
from lpu_jax.runtime.program import Block

BARRIER, IDLE, SKEW = -1, -2, -3
"""Owners that are no op: rows without an op, cycles before the first op of a chain, and the chip's vertical skew."""

REASONS = ("memory", "unit", "bank", "stream")
"""Kinds of constraints, in the order in which one is named when several are equally tight."""

_MEMORY, _UNIT, _BANK, _STREAM = range(4)


@dataclasses.dataclass(frozen=True, slots=True)
class Link:
    """Cycles start .. stop - 1 of an iteration that an op owns, and why it was not earlier.

    op: number in the schedule, or BARRIER or IDLE; waited_for: the op behind the tightest constraint, -1 for none;
    slack_cycles: by how much the op could have been earlier all the same.
    """

    op: int
    start: int
    stop: int
    waited_for: int = -1
    reason: str = ""
    slack_cycles: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Constraints:
    """Op `after[i]` cannot be more than slack[i] cycles earlier because of op `before[i]`; reason indexes REASONS."""

    before: IntArray
    after: IntArray
    slack: IntArray
    reason: IntArray


@dataclasses.dataclass(frozen=True, slots=True)
class BlockWall:
    """Owners of a block: `links` cover an iteration of `cycles`; the last iteration lasts `last_cycles`.

    Wall cycles of the block: (num_iterations - 1) * cycles + last_cycles.
    """

    links: tuple[Link, ...]
    num_iterations: int
    cycles: int
    last_cycles: int

    def owned(self) -> dict[int, int]:
        """Wall cycles by owner; they sum to those of the block."""
        found: dict[int, int] = {}
        for link in self.links:
            shared = max(0, min(link.stop, self.cycles) - link.start) * (self.num_iterations - 1)
            once = max(0, min(link.stop, self.last_cycles) - link.start)
            if shared + once:
                found[link.op] = found.get(link.op, 0) + shared + once
        return found


def block_walls(rows: Rows, end_cycle: int) -> list[BlockWall]:
    """Owners of all cycles before end_cycle, block by block."""
    blocks = rows.program.blocks
    starts = [block.start_cycle for block in blocks[1:]] + [max(end_cycle, blocks[-1].start_cycle)] if blocks else []
    walls = []
    for block, stop in zip(blocks, starts, strict=True):
        stop = min(stop, max(end_cycle, block.start_cycle))
        last = stop - block.start_cycle - (block.num_iterations - 1) * block.period_cycles
        iteration = block.period_cycles if block.num_iterations > 1 else last
        links = _chain(rows, block, max(iteration, last))
        walls.append(BlockWall(links, block.num_iterations, iteration, last))
    return walls


def _chain(rows: Rows, block: Block, cycles: int) -> tuple[Link, ...]:
    """Owners of cycles 0 .. cycles - 1 of an iteration, in order."""
    span = slice(block.row_start, block.row_stop)
    ops, inverse = np.unique(rows.origin[span], return_inverse=True)
    if len(ops) == 0:
        return (Link(IDLE, 0, cycles),) if cycles else ()
    start, finish = np.full(len(ops), 2**62), np.zeros(len(ops), np.int64)
    np.minimum.at(start, inverse, rows.start[span])
    np.maximum.at(finish, inverse, rows.finish[span])
    found = constraints(unroll(rows, block))
    order = np.lexsort((found.reason, found.slack, found.after))
    bounds = np.searchsorted(found.after[order], [ops, ops + 1])
    time, links, visited = cycles, [], set()
    current = int(np.lexsort((ops, finish))[-1])
    if finish[current] < time:
        links.append(Link(IDLE, int(finish[current]), time))
        time = int(finish[current])
    while time > 0:
        visited.add(current)
        choices = order[bounds[0][current] : bounds[1][current]].tolist()
        chosen = next((i for i in choices if int(np.searchsorted(ops, found.before[i])) not in visited), None)
        if chosen is None or found.slack[chosen] >= start[current] >= 0:  # nothing but the block's start holds it
            begin = min(time, max(0, int(start[current])))
            links.append(Link(int(ops[current]), begin, time, slack_cycles=begin))
            links.append(Link(IDLE, 0, begin))
            break
        before = int(np.searchsorted(ops, found.before[chosen]))
        begin = min(time, int(finish[before]))
        reason, slack = REASONS[found.reason[chosen]], int(found.slack[chosen])
        links.append(Link(int(ops[current]), begin, time, int(ops[before]), reason, slack))
        time, current = begin, before
    return tuple(link for link in reversed(links) if link.stop > link.start)


def constraints(events: Events) -> Constraints:
    """What keeps each op of a block from being earlier, the neighbours in time on every word, unit, bank and stream."""
    parts = [_memory(events), _units(events), _queues(events), _planes(events), _banks(events), _streams(events)]
    before, after, slack, reason = (np.concatenate(p) for p in zip(*parts, strict=True))
    keep = (before != after) & (slack >= 0) & (before >= 0) & (after >= 0)
    return Constraints(before[keep], after[keep], slack[keep], reason[keep])


_Part = tuple[IntArray, IntArray, IntArray, IntArray]


def _memory(events: Events) -> _Part:
    """Reads after the last write of their word, writes after its last read and write."""
    rows = events.rows
    chip = rows.program.chip
    opcode = rows.program.opcode[events.row]
    chosen = np.flatnonzero((opcode == Opcode.READ) | (opcode == Opcode.WRITE))
    row, cycle = events.row[chosen], events.cycle[chosen]
    word = rows.word[row] + rows.word_step[row] * events.repetition[chosen]
    is_write = opcode[chosen] == Opcode.WRITE
    order = np.lexsort((is_write, cycle, word))
    row, cycle, word, is_write = row[order], cycle[order], word[order], is_write[order]
    op = rows.origin[row]
    index = np.arange(len(order))
    parts = []
    for earlier, later, delay in (
        (is_write, ~is_write, chip.mem_write_cycles),
        (~is_write, is_write, 1),
        (is_write, is_write, 1),
    ):
        last = np.maximum.accumulate(np.where(earlier, index, -1))
        last = np.concatenate([[-1], last[:-1]]) if len(last) else last
        here = np.flatnonzero(later & (last >= 0))
        here = here[word[last[here]] == word[here]]
        parts.append((op[last[here]], op[here], cycle[here] - cycle[last[here]] - delay))
    before, after, slack = (np.concatenate(p) for p in zip(*parts, strict=True))
    return before, after, slack, np.full(len(before), _MEMORY)


def _neighbours(key: IntArray, op: IntArray, start: IntArray, stop: IntArray, reason: int) -> _Part:
    """Spans [start, stop) of one key: each after the one before it."""
    order = np.lexsort((start, key))
    key, op, start, stop = key[order], op[order], start[order], stop[order]
    same = key[1:] == key[:-1]
    slack = (start[1:] - stop[:-1])[same]
    return op[:-1][same], op[1:][same], slack, np.full(len(slack), reason)


def _spans(events: Events) -> tuple[IntArray, IntArray, IntArray]:
    """(rows with a unit, first cycle of work, cycle after the last one)."""
    rows, block = events.rows, events.block
    chosen = block.row_start + np.flatnonzero(rows.kind[block.row_start : block.row_stop] >= 0)
    offset = rows.work_offset[chosen]
    return chosen, rows.start[chosen] + offset, rows.last[chosen] + offset + rows.duration[chosen]


def _units(events: Events) -> _Part:
    rows = events.rows
    chosen, start, stop = _spans(events)
    index = np.repeat(np.arange(len(chosen)), rows.num_ports[chosen])
    number = np.arange(len(index)) - np.repeat(
        np.cumsum(rows.num_ports[chosen]) - rows.num_ports[chosen], rows.num_ports[chosen]
    )
    port = rows.port[chosen[index]] + number * rows.port_stride[chosen[index]]
    return _neighbours(port, rows.origin[chosen[index]], start[index], stop[index], _UNIT)


def _queues(events: Events) -> _Part:
    """A queue issues one row a cycle, whatever ports the rows use."""
    rows, block = events.rows, events.block
    span = slice(block.row_start, block.row_stop)
    start = rows.start[span]
    return _neighbours(rows.program.queue[span].astype(np.int64), rows.origin[span], start, start + 1, _UNIT)


def _planes(events: Events) -> _Part:
    """An op holds a plane's buffer from its first LW to its last IW, and the plane from then to its last ABC."""
    rows = events.rows
    tail = rows.program.chip.mxm_install_tail_cycles
    chosen, start, stop = _spans(events)
    opcode = rows.program.opcode[chosen]
    parts = []
    for opcodes, delay, held in (((Opcode.LW, Opcode.IW), 0, 0), ((Opcode.IW, Opcode.ABC), tail, 1)):
        some = np.isin(opcode, opcodes)
        shift = np.where(opcode[some] == Opcode.IW, delay, 0)
        row = chosen[some]
        index = np.repeat(np.arange(len(row)), rows.num_ports[row])
        number = np.arange(len(index)) - np.repeat(
            np.cumsum(rows.num_ports[row]) - rows.num_ports[row], rows.num_ports[row]
        )
        plane = (rows.port[row[index]] + number * rows.port_stride[row[index]]) // 4
        key = np.stack([2 * plane + held, rows.origin[row[index]]])
        keys, group = np.unique(key, axis=1, return_inverse=True)
        first, last = np.full(keys.shape[1], 2**62), np.zeros(keys.shape[1], np.int64)
        np.minimum.at(first, group, (start[some] + shift)[index])
        np.maximum.at(last, group, (stop[some] + np.minimum(shift, 0))[index])
        parts.append(_neighbours(keys[0], keys[1], first, last, _UNIT))
    before, after, slack, reason = (np.concatenate(p) for p in zip(*parts, strict=True))
    return before, after, slack, reason


def _banks(events: Events) -> _Part:
    """A bank serves one access a cycle; rows of Gather and Scatter may use any bank and are left out."""
    rows = events.rows
    chosen, start, stop = _spans(events)
    plain = np.isin(rows.program.opcode[chosen], (Opcode.READ, Opcode.WRITE))
    chosen, start, stop = chosen[plain], start[plain], stop[plain]
    bank = rows.word[chosen] // rows.program.chip.num_addresses_per_bank
    return _neighbours(bank, rows.origin[chosen], start, stop, _BANK)


def _streams(events: Events) -> _Part:
    """Values of two rows on one stream of one hemisphere follow each other on the diagonal."""
    rows, block = events.rows, events.block
    parts = []
    for result in (0, 1):
        chosen = block.row_start + np.flatnonzero(rows.drive_count[block.row_start : block.row_stop, result])
        counts = rows.drive_count[chosen, result]
        index = np.repeat(chosen, counts)
        byte = np.arange(len(index)) - np.repeat(np.cumsum(counts) - counts, counts)
        stream = rows.drive_stream[index, result] + byte
        along, offset = (
            rows.drive_along[index, result],
            rows.drive_offset[index, result] - rows.drive_along[index, result],
        )
        side = hemisphere_of(direction_sign(rows.program.chip, stream) * along)
        start, stop = rows.start[index] + offset, rows.last[index] + offset + 1
        parts.append((2 * stream + side, rows.origin[index], start, stop))
    key, op, start, stop = (np.concatenate(p) for p in zip(*parts, strict=True))
    return _neighbours(key, op, start, stop, _STREAM)


def busy_by_op(rows: Rows, num_ops: int) -> IntArray:
    """Busy unit cycles, [num_ops + 1, kinds]: all units of a kind together, repetitions and loops counted; the last
    row is of instructions without an op."""
    found = np.zeros((num_ops + 1, len(UNIT_KINDS)), np.int64)
    chosen = rows.kind >= 0
    np.add.at(found, (rows.origin[chosen], rows.kind[chosen]), busy_by_row(rows)[chosen])
    return found


def busy_by_row(rows: Rows) -> IntArray:
    """Busy unit cycles of each row in all iterations."""
    return rows.count * rows.duration * rows.num_ports * times_run(rows)


def times_run(rows: Rows) -> IntArray:
    """Iterations of each row's block."""
    found = np.ones(rows.program.num_rows, np.int64)
    for block in rows.program.blocks:
        found[block.row_start : block.row_stop] = block.num_iterations
    return found
