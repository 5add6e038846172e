"""The times at which all fixed bookings of a template are free, found for some thousand cycles at once.

The busy cycles of a resource are bits of integers. A booking [time + start, time + end) is in the way at `time` if any
of the bits start .. end - 1, seen from there, is set: the bits are smeared over the length of the booking, shifted by
its start, and joined with those of all other bookings. The bits that stay 0 are free times. Most ops book many
resources for the same cycles: their bits are joined first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from lpu_jax.lowering.passes.template import ALTERNATE, Interval, Key

_SHIFT = 12
CHUNK = 1 << _SHIFT
"""Cycles of an integer, and of a window."""
_ALL = (1 << CHUNK) - 1
_EVEN = _ALL // 3
"""Every second bit, from the first one on."""
_CHECK = 8
"""After so many groups of bookings it is asked whether any time is left."""


class BusyCycles:
    """Busy cycles of one resource: bits of one integer for every CHUNK cycles."""

    __slots__ = ("chunks", "end")

    def __init__(self) -> None:
        self.chunks: dict[int, int] = {}
        self.end = -(2**40)  # no later cycle was ever busy


def book(resources: Sequence[BusyCycles], start: int, end: int) -> None:
    """Marks [start, end) busy."""
    masks = _masks(start, end)
    for busy in resources:
        chunks = busy.chunks
        for number, mask in masks:
            chunks[number] = chunks.get(number, 0) | mask
        if end > busy.end:
            busy.end = end


def release(resources: Sequence[BusyCycles], start: int, end: int) -> None:
    """Takes back the booking of [start, end)."""
    masks = _masks(start, end)
    for busy in resources:
        for number, mask in masks:
            busy.chunks[number] &= ~mask


def window(resources: Sequence[BusyCycles], start: int, length: int) -> int:
    """Bits of the cycles from `start` on in which any resource is busy: at least `length` of them."""
    number, offset = start >> _SHIFT, start & (CHUNK - 1)
    bits = _chunk(resources, number) >> offset
    known = CHUNK - offset
    while known < length:
        number += 1
        bits |= _chunk(resources, number) << known
        known += CHUNK
    return bits


def _chunk(resources: Sequence[BusyCycles], number: int) -> int:
    bits = 0
    for busy in resources:
        bits |= busy.chunks.get(number, 0)
    return bits


def _masks(start: int, end: int) -> list[tuple[int, int]]:
    """(number of a chunk, its bits) of the cycles [start, end)."""
    number, last = start >> _SHIFT, (end - 1) >> _SHIFT
    if number == last:
        return [(number, ((1 << (end - start)) - 1) << (start & (CHUNK - 1)))]
    found = [(number, _ALL >> (start & (CHUNK - 1)) << (start & (CHUNK - 1)))]
    found += [(middle, _ALL) for middle in range(number + 1, last)]
    return [*found, (last, (1 << (end - last * CHUNK)) - 1)]


def smeared(bits: int, length: int) -> int:
    """Bit i of the result: whether any of the bits i .. i + length - 1 is set."""
    done = 1
    while done < length:
        step = min(done, length - done)
        bits |= bits >> step
        done += step
    return bits


class Bookings(NamedTuple):
    """Resources that are booked for the same cycles [start, end) after time zero.

    always: whatever the time is; at_parity: only if the first cycle is even, only if it is odd.
    """

    start: int
    end: int
    always: list[BusyCycles]
    at_parity: tuple[list[BusyCycles], list[BusyCycles]]

    def at(self, time: int) -> list[BusyCycles]:
        """All that is booked when time zero is `time`."""
        more = self.at_parity[(time + self.start) % 2]
        return self.always + more if more else self.always


def grouped(resources_of: Callable[[Key], tuple[BusyCycles, ...]], fixed: Sequence[Interval]) -> list[Bookings]:
    """The fixed bookings of a template, those of equal cycles together."""
    found: dict[tuple[int, int], Bookings] = {}
    for key, start, end in fixed:
        group = found.get((start, end))
        if group is None:
            group = found[start, end] = Bookings(start, end, [], ([], []))
        if key[-1] == ALTERNATE:
            even, odd = resources_of(key)
            group.at_parity[0].append(even)
            group.at_parity[1].append(odd)
        else:
            group.always.extend(resources_of(key))
    return list(found.values())


_Taken = tuple[list[BusyCycles], int, int]
"""Resources, and the first cycle and the length of their booking relative to time zero."""


class FreeTimes:
    """Times from `earliest` on at which bookings meet no busy cycle of their resources."""

    def __init__(self, bookings: Sequence[Bookings], earliest: int) -> None:
        self.always: list[_Taken] = []
        self.at_parity: tuple[list[_Taken], list[_Taken]] = ([], [])  # at even times, at odd ones
        for start, end, always, at_parity in bookings:
            for resources, found in (
                (always, self.always),
                (at_parity[0], self.at_parity[start % 2]),
                (at_parity[1], self.at_parity[(start + 1) % 2]),
            ):
                late = [busy for busy in resources if busy.end > earliest + start] if resources else None
                if late:  # others are free from `earliest` on
                    found.append((late, start, end - start))
        self.first = earliest - CHUNK
        self.free = 0  # bit i: first + i is free

    def next(self, time: int) -> int:
        """The first free time from `time` on; `time` never becomes less from call to call."""
        while True:
            if time >= self.first + CHUNK:
                self._look(time)
            bits = self.free >> (time - self.first)
            if bits:
                return time + (bits & -bits).bit_length() - 1
            time = self.first + CHUNK

    def _look(self, first: int) -> None:
        """Finds the free times of a window."""
        taken = _taken(self.always, first, 0)
        for parity, bookings in enumerate(self.at_parity):
            mine = _EVEN << ((first + parity) % 2)
            if bookings and taken & mine != mine & _ALL:
                taken |= _taken(bookings, first, taken | ~mine & _ALL) & mine
        self.first, self.free = first, _ALL & ~taken


def _taken(bookings: list[_Taken], first: int, taken: int) -> int:
    """Adds to `taken` the times first + i at which a booking is in the way; ends early when no time is left."""
    for number, (resources, start, length) in enumerate(bookings):
        bits = window(resources, first + start, CHUNK + length - 1)
        taken |= smeared(bits, length) if length > 1 else bits
        if number % _CHECK == 0 and taken & _ALL == _ALL:
            break
    return taken
