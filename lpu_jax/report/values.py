"""Values on streams: who puts each one there and who takes it, and how many streams are in use."""

from __future__ import annotations

import dataclasses

import numpy as np

from lpu_jax.report.events import BoolArray, Events, IntArray, direction_sign, hemisphere_of
from lpu_jax.runtime.errors import ProgramError


@dataclasses.dataclass(frozen=True, eq=False)
class StreamEvents:
    """Drives or takes of the bytes of values, [n]: event (index into Events), stream, cycle, along, keep."""

    event: IntArray
    stream: IntArray
    cycle: IntArray
    along: IntArray
    keep: BoolArray

    @property
    def diagonal(self) -> IntArray:
        """cycle - along, the same for a value all its life."""
        return self.cycle - self.along


@dataclasses.dataclass(frozen=True, eq=False)
class Values:
    """Every byte vector that moves in one iteration of a block.

    drives [d] and takes [t]; maker[t] is the drive whose value a take sees; last_take[d] the cycle of the last take.
    """

    drives: StreamEvents
    takes: StreamEvents
    maker: IntArray
    last_take: IntArray


def stream_values(events: Events) -> Values:
    """Pairs takes with drives: a register (stream, diagonal) is seen in order of time.

    In a cycle with a take and a drive of one register, the take sees the older value if there still is one.

    Raises:
      ProgramError: a take without a value, or a value that nobody takes; neither is in a program that runs.
    """
    drives, takes = _drives(events), _takes(events)
    num_drives, num_takes = len(drives.event), len(takes.event)
    both = [np.concatenate(pair) for pair in ((drives.stream, takes.stream), (drives.diagonal, takes.diagonal))]
    stream, diagonal = both
    cycle = np.concatenate([drives.cycle, takes.cycle])
    # At one cycle: takes that keep, the final take, then the drive.
    rank = np.concatenate([np.full(num_drives, 2), np.where(takes.keep, 0, 1)])
    order = np.lexsort((rank, cycle, diagonal, stream))
    is_drive = order < num_drives
    group = np.cumsum(
        np.diff(stream[order], prepend=-1).astype(bool) | np.diff(diagonal[order], prepend=-(2**62)).astype(bool)
    )
    before = np.cumsum(is_drive)
    live = before - np.cumsum(rank[order] == 1)
    first = np.searchsorted(group, group)  # values of other registers do not count
    live_outside = np.where(first > 0, live[first - 1], 0)
    live_before = live - live_outside + (rank[order] == 1)
    seen = before - 1 + (live_before < 1)
    of_drive, of_take = order[is_drive], order[~is_drive] - num_drives
    seen = seen[~is_drive]
    bad = (seen < 0) | (seen >= num_drives)
    maker = np.full(num_takes, -1, np.int64)
    maker[of_take[~bad]] = of_drive[seen[~bad]]
    wrong = (
        bad.any() or (drives.stream[maker] != takes.stream).any() or (drives.diagonal[maker] != takes.diagonal).any()
    )
    last_take = np.full(num_drives, -1, np.int64)
    np.maximum.at(last_take, maker, takes.cycle)
    if wrong or (last_take < drives.cycle).any():
        raise ProgramError("a stream operand has no value, or a value is never taken; the machine would refuse this")
    return Values(drives, takes, maker, last_take)


def _drives(events: Events) -> StreamEvents:
    rows = events.rows
    parts = []
    for result in (0, 1):
        counts = rows.drive_count[events.row, result]
        at = events.cycle + rows.drive_offset[events.row, result]
        parts.append(_bytes(counts, rows.drive_stream[events.row, result], at, rows.drive_along[events.row, result]))
    event, stream, cycle, along = (np.concatenate(p) for p in zip(*parts, strict=True))
    return StreamEvents(event, stream, cycle, along, np.zeros(len(event), np.bool_))


def _takes(events: Events) -> StreamEvents:
    rows = events.rows
    parts, keeps = [], []
    for operand in (0, 1):
        counts = rows.take_count[events.row, operand]
        at = events.cycle + rows.take_offset[events.row, operand]
        parts.append(_bytes(counts, rows.take_stream[events.row, operand], at, rows.take_along[events.row, operand]))
        keeps.append(np.repeat(rows.take_keep[events.row, operand], counts))
    event, stream, cycle, along = (np.concatenate(p) for p in zip(*parts, strict=True))
    return StreamEvents(event, stream, cycle, along, np.concatenate(keeps))


def _bytes(counts: IntArray, stream: IntArray, cycle: IntArray, along: IntArray) -> tuple[IntArray, ...]:
    """(event, stream, cycle, along) of every byte of values that lie on `counts` streams from `stream` on."""
    event = np.repeat(np.arange(len(counts)), counts)
    byte = np.arange(len(event)) - np.repeat(np.cumsum(counts) - counts, counts)
    return event, stream[event] + byte, cycle[event], along[event]


def streams_in_use(events: Events, values: Values) -> IntArray:
    """Streams that hold a value in each cycle of an iteration, [2 directions, 2 hemispheres, length_cycles].

    A stream is in use in a hemisphere while any value lies on it there, from the cycle in which it is driven to the
    one in which it is last taken.
    """
    chip, drives = events.rows.program.chip, values.drives
    size, length = chip.num_streams_per_direction, events.length_cycles + 1
    sign = direction_sign(chip, drives.stream)
    # Eastward values leave the western hemisphere before position 0, westward ones the eastern after it.
    crossing = drives.cycle - drives.along + np.where(sign > 0, 0, 1)
    first = hemisphere_of(sign * drives.along)
    middle = np.clip(crossing, drives.cycle, values.last_take + 1)
    one_side = crossing <= drives.cycle
    middle = np.where(one_side, values.last_take + 1, middle)
    found = np.zeros((2, 2, events.length_cycles), np.int64)
    for direction in (0, 1):
        for hemisphere in (0, 1):
            steps = np.zeros((size, length + 1), np.int32)
            mine = drives.stream // size == direction
            for side, start, stop in ((first, drives.cycle, middle), (1 - first, middle, values.last_take + 1)):
                part = mine & (side == hemisphere) & (stop > start)
                stream = drives.stream[part] % size
                np.add.at(steps, (stream, np.minimum(start[part], length)), 1)
                np.add.at(steps, (stream, np.minimum(stop[part], length)), -1)
            found[direction, hemisphere] = (np.cumsum(steps, axis=1) > 0).sum(axis=0)[: events.length_cycles]
    return found
