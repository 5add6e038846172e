"""The times at which all fixed bookings of a template are free, found for some thousand cycles at once.

The busy cycles of a resource are bits of integers. A booking [time + start, time + end) is in the way at `time` if any
of the bits start .. end - 1, seen from there, is set: the bits are smeared over the length of the booking, shifted by
its start, and joined with those of all other bookings. The bits that stay 0 are free times.
"""

from __future__ import annotations

from collections.abc import Callable

from lpu_jax.lowering.passes.template import ALTERNATE, Interval, Key

_SHIFT = 12
CHUNK = 1 << _SHIFT
"""Cycles of an integer, and of a window."""
_ALL = (1 << CHUNK) - 1
_EVEN = _ALL // 3
"""Every second bit, from the first one on."""
_CHECK = 32
"""After so many bookings it is asked whether any time is left."""


class BusyCycles:
    """Busy cycles of one resource: bits of one integer for every CHUNK cycles."""

    __slots__ = ("chunks", "end")

    def __init__(self) -> None:
        self.chunks: dict[int, int] = {}
        self.end = -(2**40)  # no later cycle was ever busy

    def book(self, start: int, end: int) -> None:
        """Marks [start, end) busy."""
        for number, mask in _masks(start, end):
            self.chunks[number] = self.chunks.get(number, 0) | mask
        self.end = max(self.end, end)

    def release(self, start: int, end: int) -> None:
        """Takes back the booking of [start, end)."""
        for number, mask in _masks(start, end):
            self.chunks[number] &= ~mask

    def window(self, start: int, length: int) -> int:
        """Bits of the cycles from `start` on: at least `length` of them."""
        number, offset = start >> _SHIFT, start & (CHUNK - 1)
        bits = self.chunks.get(number, 0) >> offset
        known = CHUNK - offset
        while known < length:
            number += 1
            bits |= self.chunks.get(number, 0) << known
            known += CHUNK
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


_Booking = tuple[BusyCycles, int, int]
"""A resource, and the first cycle and the length of a booking relative to time zero."""


class FreeTimes:
    """Times from `earliest` on at which bookings meet no busy cycle of their resources."""

    def __init__(
        self, resources_of: Callable[[Key], tuple[BusyCycles, ...]], fixed: list[Interval], earliest: int
    ) -> None:
        self.always: list[_Booking] = []
        self.at_parity: tuple[list[_Booking], list[_Booking]] = ([], [])  # at even times, at odd ones
        for key, start, end in fixed:
            for parity, busy in enumerate(resources_of(key)):
                if busy.end > earliest + start:  # others are free from `earliest` on
                    found = self.at_parity[(start + parity) % 2] if key[-1] == ALTERNATE else self.always
                    found.append((busy, start, end - start))
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


def _taken(bookings: list[_Booking], first: int, taken: int) -> int:
    """Adds to `taken` the times first + i at which a booking is in the way; ends early when no time is left."""
    for number, (busy, start, length) in enumerate(bookings):
        bits = busy.window(first + start, CHUNK + length - 1)
        taken |= smeared(bits, length) if length > 1 else bits
        if number % _CHECK == 0 and taken & _ALL == _ALL:
            break
    return taken
