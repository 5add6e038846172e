"""`verify_schedule`: no resource is used twice in a cycle, and vectors are read and written in the order of the ops."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lpu_jax.lowering.passes.place import AllocatedGraph
from lpu_jax.lowering.passes.reservation_table import table_keys
from lpu_jax.lowering.passes.reservations import Tables
from lpu_jax.lowering.passes.schedule import Schedule, ScheduledBlock
from lpu_jax.lowering.passes.template import ALTERNATE, Key
from lpu_jax.lowering.tile_ir import IntArray
from lpu_jax.runtime.errors import ScheduleError


def verify_schedule(plan: Schedule) -> None:
    """Re-derives all bookings and accesses; raises ScheduleError if two of them meet or come in the wrong order."""
    tables = Tables(plan.allocated.tiles.chip)
    for block in plan.blocks:
        keys: dict[Key, int] = {}
        spans: list[tuple[int, int, int]] = []
        for op in block.ops:
            zero = op.time_zero
            spans += [
                (keys.setdefault(key, len(keys)), zero + start, zero + end) for key, start, end in op.template.fixed
            ]
            for item, choice in zip(op.template.flexible, op.chosen, strict=True):
                found = next(keys for option, keys in tables.pool(item) if option == choice)
                spans += [(keys.setdefault(key, len(keys)), zero + item.start, zero + item.end) for key in found]
        _verify_spans(list(keys), np.array(spans, np.int64).reshape(-1, 3))
        _verify_order(plan.allocated, block)


def _verify_spans(keys: list[Key], spans: IntArray) -> None:
    """Checks that no two of the spans [n, 3] (key, start, end) meet in a table."""
    numbers: dict[Key, int] = {}
    tables = np.array(
        [[numbers.setdefault(booked, len(numbers)) for booked in _both(table_keys(key))] for key in keys], np.int64
    ).reshape(-1, 2)
    alternates = np.array([key[-1] == ALTERNATE for key in keys], bool)
    number, start, end = spans.T
    even, odd = tables[number].T
    one = np.where(alternates[number] & (start % 2 == 1), odd, even)
    more = (even != odd) & ~alternates[number]
    table = np.concatenate([one, odd[more]])
    start, end = (np.concatenate([column, column[more]]) for column in (start, end))
    order = np.lexsort((end, start, table))
    table, start, end = table[order], start[order], end[order]
    for index in np.flatnonzero((table[1:] == table[:-1]) & (start[1:] < end[:-1]))[:1]:
        when = f"from {start[index]} to {end[index]} and at {start[index + 1]}"
        raise ScheduleError(f"schedule: {list(numbers)[table[index]]} booked twice, {when}")


def _both(keys: tuple[Key, ...]) -> tuple[Key, Key]:
    return keys[0], keys[-1]


class _Accesses(NamedTuple):
    """Reads and writes [n] of the storages that a block writes.

    order: twice the number of the op, and one more for writes; free: the cycle from which the next access may come.
    """

    storage: IntArray
    vector: IntArray
    order: IntArray
    cycle: IntArray
    free: IntArray


def _verify_order(allocated: AllocatedGraph, block: ScheduledBlock) -> None:
    """Checks that vectors are read after they were written, and written after the last read of what they held."""
    found = _accesses(allocated, block)
    order = np.lexsort((found.order, found.vector, found.storage))
    found = _Accesses(*(column[order] for column in found))
    is_write = found.order % 2 == 1
    same_vector = (np.diff(found.storage) == 0) & (np.diff(found.vector) == 0)
    vector = np.cumsum(np.append(0, ~same_vector))[: len(order)]
    is_first = np.append(True, ~same_vector | (np.diff(found.order) != 0))[: len(order)]  # of an op's reads or writes
    before = np.maximum.accumulate(np.where(is_first, np.arange(len(order)), 0)) - 1
    for is_earlier, is_later in ((is_write, slice(None)), (~is_write, is_write)):
        free = _latest(np.where(is_earlier, found.free, _NEVER), vector)
        known = (before >= 0) & (vector[before] == vector)
        late = np.flatnonzero((known & (found.cycle < free[before]))[is_later])
        if len(late):
            index = np.arange(len(order))[is_later][late[0]]
            what = "written" if is_write[index] else "read"
            raise ScheduleError(
                f"schedule: vector {found.vector[index]} of storage {found.storage[index]} is {what} at "
                f"{found.cycle[index]}, before cycle {free[before[index]]}"
            )
    _verify_reuse(allocated, found)


_NEVER = -(2**30)
_FAR = 2**32
"""More than all cycles."""


def _latest(cycles: IntArray, group: IntArray) -> IntArray:
    """The largest of the cycles up to each place, in its group; groups are numbered in order."""
    return np.maximum.accumulate(cycles + group * _FAR) - group * _FAR


def _accesses(allocated: AllocatedGraph, block: ScheduledBlock) -> _Accesses:
    """The accesses to storages that the block writes, and to those whose addresses they take over."""
    written = {access.storage for op in block.ops for access in op.template.writes}
    written |= {other for storage in written for other in allocated.reuses[storage]}
    columns: list[list[IntArray]] = [[] for _ in _Accesses._fields]
    for number, op in enumerate(block.ops):
        for kind, accesses in enumerate((op.template.reads, op.template.writes)):
            wait = allocated.tiles.chip.mem_write_cycles if kind else 1
            for access in accesses:
                if access.storage in written:
                    cycle, one = access.cycles + op.time_zero, np.ones(len(access.vectors), np.int64)
                    row = (access.storage * one, access.vectors, (2 * number + kind) * one, cycle, cycle + wait)
                    for column, values in zip(columns, row, strict=True):
                        column.append(values)
    return _Accesses(*(np.concatenate([np.zeros(0, np.int64), *column]) for column in columns))


def _verify_reuse(allocated: AllocatedGraph, found: _Accesses) -> None:
    """Checks that storages are done with before others that take over their addresses are written."""
    count = len(allocated.tiles.storages)
    first, last = np.full(count, _FAR), np.full(count, _NEVER)
    is_write = found.order % 2 == 1
    np.minimum.at(first, found.storage[is_write], found.cycle[is_write])
    np.maximum.at(last, found.storage, found.free)
    for storage, others in enumerate(allocated.reuses):
        for other in others:
            if first[storage] < last[other]:
                raise ScheduleError(
                    f"schedule: storage {storage} is written at {first[storage]} where storage {other} lies until "
                    f"cycle {last[other]}"
                )
