"""The times at which all fixed bookings of a template are free.

An interval [a, b) of a table forbids the booking [time + start, time + end) at a - end < time < b - start. First the
bookings are asked one after the other, each from where the last one ended; if one was in the way, the forbidden times
of all are counted at once, in a window of some thousand cycles.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable

import numpy as np

from lpu_jax.lowering.passes.reservation_table import Table
from lpu_jax.lowering.passes.template import ALTERNATE, Interval, Key
from lpu_jax.lowering.tile_ir import IntArray

_WINDOW = 1024
_LARGEST_WINDOW = 16384

_Obstacle = tuple["array[int]", "array[int]", int, int]
"""Starts and ends of a table's intervals, and the start and end of a booking relative to time zero."""


class FreeTimes:
    """Times from `earliest` on at which bookings meet no interval of their tables."""

    def __init__(self, tables_of: Callable[[Key], tuple[Table, ...]], fixed: list[Interval], earliest: int) -> None:
        self.always: list[_Obstacle] = []
        self.at_parity: tuple[list[_Obstacle], list[_Obstacle]] = ([], [])  # at even times, at odd ones
        for key, start, end in fixed:
            for parity, table in enumerate(tables_of(key)):
                if table.ends and table.ends[-1] > earliest + start:  # others are free from `earliest` on
                    found = self.at_parity[(start + parity) % 2] if key[-1] == ALTERNATE else self.always
                    found.append((table.starts, table.ends, start, end))
        self.first, self.width = 0, 0  # times that were looked at
        self.free = np.zeros(0, np.int64)  # those of them that are free

    def next(self, time: int) -> int:
        """The first free time from `time` on."""
        if not self.first <= time < self.first + self.width:
            moved = self._moved(time)
            if moved == time:
                return time
            self._look(moved, _WINDOW)
            time = moved
        while True:
            index = int(np.searchsorted(self.free, time))
            if index < len(self.free):
                return int(self.free[index])
            time = self.first + self.width
            self._look(time, min(2 * self.width, _LARGEST_WINDOW))

    def _moved(self, time: int) -> int:
        """`time` if it is free, else a later time before which none is."""
        for starts, ends, start, end in self.always:  # as Table.free_from
            index = bisect_left(starts, time + end)
            if index and ends[index - 1] > time + start:
                time = ends[index - 1] - start
        return time + any(_is_taken(obstacle, time) for obstacle in self.at_parity[time % 2])

    def _look(self, first: int, width: int) -> None:
        """Counts the intervals that forbid each of the times first .. first + width - 1."""
        taken = _forbidding(self.always, first, width)
        self.first, self.width = first, width
        for parity, obstacles in enumerate(self.at_parity):
            if obstacles:
                mine = slice((first + parity) % 2, None, 2)
                taken[mine] += _forbidding(obstacles, first, width)[mine]
        self.free = first + np.nonzero(taken == 0)[0]


def _is_taken(obstacle: _Obstacle, time: int) -> bool:
    starts, ends, start, end = obstacle
    index = bisect_left(starts, time + end)
    return bool(index) and ends[index - 1] > time + start


def _forbidding(obstacles: list[_Obstacle], first: int, width: int) -> IntArray:
    """Intervals that forbid each of the times first .. first + width - 1: int64 [width]."""
    lows, highs = array("q"), array("q")
    counts, begins, stops = array("q"), array("q"), array("q")
    for starts, ends, start, end in obstacles:
        low = bisect_right(ends, first + start)
        high = bisect_left(starts, first + width - 1 + end, low)
        if low < high:
            lows.extend(starts[low:high])
            highs.extend(ends[low:high])
            counts.append(high - low)
            begins.append(start)
            stops.append(end)
    repeats = np.array(counts)
    forbidden = np.array(lows) - np.repeat(np.array(stops), repeats) + 1 - first
    allowed = np.array(highs) - np.repeat(np.array(begins), repeats) - first
    change = np.bincount(np.clip(forbidden, 0, width), minlength=width + 1)
    change -= np.bincount(np.clip(allowed, 0, width), minlength=width + 1)
    return np.cumsum(change)[:width]
