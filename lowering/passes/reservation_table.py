"""The reservation table of one resource, and the keys under which fixed bookings have theirs."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from lpu_jax.lowering.passes.template import ALTERNATE, Key


class Table:
    """Busy intervals [start, end) of one resource, sorted and disjoint."""

    __slots__ = ("ends", "starts")

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.ends: list[int] = []

    def free_from(self, start: int, end: int) -> int:
        """`start` if [start, end) is free, else the end of the last interval in the way."""
        index = bisect_left(self.starts, end)
        if index and self.ends[index - 1] > start:
            return self.ends[index - 1]
        return start

    def release(self, start: int, end: int) -> None:
        """Takes back the booking of [start, end)."""
        index = bisect_right(self.starts, start) - 1
        first, last = self.starts[index], self.ends[index]
        assert first <= start
        assert end <= last
        rest = [(a, b) for a, b in ((first, start), (end, last)) if a < b]
        self.starts[index : index + 1] = [a for a, _ in rest]
        self.ends[index : index + 1] = [b for _, b in rest]

    def book(self, start: int, end: int) -> None:
        """Marks [start, end) busy; merges with neighbours that touch."""
        index = bisect_right(self.starts, start)
        if index and self.ends[index - 1] == start:
            self.ends[index - 1] = end
        else:
            self.starts.insert(index, start)
            self.ends.insert(index, end)


def is_port(key: Key) -> bool:
    """Whether a key is a port or bank of a MEM slice; those have one table for even and one for odd cycles."""
    return key[0] in ("R", "W", "B")


def table_keys(key: Key) -> tuple[Key, ...]:
    """Keys of the tables that a booking takes, one or both; with ALTERNATE that for even first cycles, then for odd."""
    if not is_port(key):
        return (key,)
    if key[-1] == ALTERNATE:
        return ((*key[:-1], 0), (*key[:-1], 1))
    return ((*key, 0), (*key, 1))


def booked_keys(key: Key, start: int) -> tuple[Key, ...]:
    """Keys of the tables that an interval from cycle `start` on takes."""
    keys = table_keys(key)
    return (keys[start % 2],) if key[-1] == ALTERNATE else keys
