"""`verify_schedule`: no resource is used twice in a cycle."""

from __future__ import annotations

import numpy as np

from lpu_jax.lowering.passes.reservation_table import table_keys
from lpu_jax.lowering.passes.reservations import Tables
from lpu_jax.lowering.passes.schedule import Schedule
from lpu_jax.lowering.passes.template import ALTERNATE, Key
from lpu_jax.lowering.tile_ir import IntArray
from lpu_jax.runtime.errors import ScheduleError


def verify_schedule(plan: Schedule) -> None:
    """Re-derives all bookings: no resource is used twice in a cycle."""
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
