"""Reservation tables: which cycles of every resource are taken, and where a template fits."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

from lpu_jax.lowering.passes.template import ALTERNATE, Flexible, Key, Template, stream_direction
from lpu_jax.runtime.chip import ChipSpec
from lpu_jax.runtime.errors import ChipLimitError
from lpu_jax.runtime.isa import sxm_queue

MAX_TRIES = 100
"""After so many vain attempts to find streams and ALUs, an op is checked against an idle chip."""


_FIELDS = {
    "stream": "num_streams_per_direction",
    "alu": "num_alus",
    "transposer": "num_transposers",
    "distributor": "num_distributors",
    "accumulator": "num_accumulator_vectors",
}
"""Fields of ChipSpec that say how many there are of what can be chosen."""


def _too_few(chip: ChipSpec, flexible: list[Flexible]) -> ChipLimitError:
    """The error of one operation that finds no place on an idle chip."""
    wanted: dict[str, int] = {}
    for item in flexible:
        wanted[item.pool] = wanted.get(item.pool, 0) + item.width
    fields = ", ".join(
        f"{_FIELDS[pool]}={getattr(chip, _FIELDS[pool])} (wanted: {n} in all)" for pool, n in wanted.items()
    )
    return ChipLimitError(
        f"chip {chip.name!r} has too few units for one operation: ChipSpec.{fields}. Use a chip with more of them, or "
        "cut the operation into smaller ones."
    )


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


NUM_ACCUMULATOR_PARTS = 32
"""The accumulators of a plane are handed out in parts, so that one op fills some while ACC still reads others."""


def accumulator_parts(chip: ChipSpec) -> tuple[int, int]:
    """(vectors of a part, number of parts) of the accumulators of a plane."""
    size = max(1, chip.num_accumulator_vectors // NUM_ACCUMULATOR_PARTS)
    return size, chip.num_accumulator_vectors // size


def is_port(key: Key) -> bool:
    """Whether a key is a port or bank of a MEM slice; those have one table for even and one for odd cycles."""
    return key[0] in ("R", "W", "B")


def booked_keys(key: Key, start: int) -> tuple[Key, ...]:
    """Keys of the tables that an interval from cycle `start` on takes."""
    if not is_port(key):
        return (key,)
    if key[-1] == ALTERNATE:
        return ((*key[:-1], start % 2),)
    return ((*key, 0), (*key, 1))


_Obstacle = tuple[list[int], list[int], int, int]
"""Starts and ends of a table's intervals, and the start and end of a booking relative to time zero."""


class _Alternate:
    """A booking of every second cycle: of the table for even or for odd cycles."""

    __slots__ = ("end", "even", "odd", "start")

    def __init__(self, even: Table, odd: Table, start: int, end: int) -> None:
        self.even, self.odd, self.start, self.end = even, odd, start, end

    def free_from(self, time: int) -> int:
        """First time zero >= `time` at which the interval is free, as far as the next interval in the way tells."""
        start, end = time + self.start, time + self.end
        own, other = (self.even, self.odd) if start % 2 == 0 else (self.odd, self.even)
        free = own.free_from(start, end)
        return time if free == start else min(free, other.free_from(start + 1, end + 1)) - self.start


class Tables:
    """Reservation tables of a block, made on first use."""

    def __init__(self, chip: ChipSpec) -> None:
        self.chip = chip
        self.tables: dict[Key, Table] = {}
        self.pools: dict[tuple[object, ...], dict[int, list[Table]]] = {}

    def __getitem__(self, key: Key) -> Table:
        table = self.tables.get(key)
        if table is None:
            table = self.tables[key] = Table()
        return table

    def pool(self, flexible: Flexible) -> list[tuple[int, list[Key]]]:
        """(choice, table keys) of a flexible resource, in order of preference."""
        width = flexible.width
        if flexible.pool == "accumulator":
            size, parts = accumulator_parts(self.chip)
            bases = range(0, parts - width + 1, width)
            return [
                (
                    base * size,
                    [("accumulator", flexible.hemisphere, p, base + i) for p in flexible.planes for i in range(width)],
                )
                for base in bases
            ]
        if flexible.pool == "alu":
            return [(a, [("alu", a + i) for i in range(width)]) for a in range(0, self.chip.num_alus - width + 1)]
        if flexible.pool != "stream":
            first = 1 if flexible.pool == "transposer" else 1 + self.chip.num_transposers
            number = self.chip.num_transposers if flexible.pool == "transposer" else self.chip.num_distributors
            units = [sxm_queue(self.chip, flexible.hemisphere, first + i) for i in range(number)]
            return [
                (units[i], [("Q", unit) for unit in units[i : i + width]]) for i in range(0, number - width + 1, width)
            ]
        direction, count = stream_direction(flexible), self.chip.num_streams_per_direction
        firsts = list(range(0, count - width + 1, width) if width > 1 else range(count - 1, -1, -1))
        if flexible.group >= 0:
            size = self.chip.num_streams_per_load
            firsts = [b for b in firsts if b // size == flexible.group]
        base_id = direction * count
        return [(base_id + b, [("stream", base_id + b + i, flexible.hemisphere) for i in range(width)]) for b in firsts]

    def choices(self, flexible: Flexible) -> dict[int, list[Table]]:
        """The tables of every choice of a flexible resource, in order of preference."""
        kind = (flexible.pool, flexible.inwards, flexible.hemisphere, flexible.width, flexible.planes, flexible.group)
        found = self.pools.get(kind)
        if found is None:
            found = self.pools[kind] = {c: [self[key] for key in keys] for c, keys in self.pool(flexible)}
        return found

    def fit(self, template: Template, earliest: int) -> tuple[int, tuple[int, ...]]:
        """Earliest time zero >= earliest at which a template fits, with the choices made."""
        obstacles, alternates = self._in_the_way(template, earliest)
        pools = [self.choices(item) for item in template.flexible]
        time, tries = earliest, 0
        while True:
            moved = self._next_fixed(obstacles, alternates, time)
            if moved > time:
                time = moved
                continue
            chosen, moved = self._choose(template.flexible, pools, time)
            if chosen is not None:
                return time, chosen
            tries += 1
            if tries == MAX_TRIES and Tables(self.chip).never_fits(template.flexible):
                raise _too_few(self.chip, template.flexible)
            time = moved

    def never_fits(self, flexible: list[Flexible]) -> bool:
        """Whether an op finds no room for its flexible resources even on an idle chip."""
        return self._choose(flexible, [self.choices(item) for item in flexible], 0)[0] is None

    def _in_the_way(self, template: Template, earliest: int) -> tuple[list[_Obstacle], list[_Alternate]]:
        """The tables of fixed bookings that have intervals after `earliest`; all others are free from there on."""
        obstacles: list[_Obstacle] = []
        alternates: list[_Alternate] = []
        for key, start, end in template.fixed:
            if key[-1] == ALTERNATE:
                even, odd = self[*key[:-1], 0], self[*key[:-1], 1]
                if any(table.ends and table.ends[-1] > earliest + start for table in (even, odd)):
                    alternates.append(_Alternate(even, odd, start, end))
                continue
            for booked in booked_keys(key, start):
                table = self.tables.get(booked)
                if table is not None and table.ends and table.ends[-1] > earliest + start:
                    obstacles.append((table.starts, table.ends, start, end))
        return obstacles, alternates

    @staticmethod
    def _next_fixed(obstacles: list[_Obstacle], alternates: list[_Alternate], time: int) -> int:
        """`time`, or where the latest of the bookings in the way ends."""
        latest = time
        for starts, ends, start, end in obstacles:  # as Table.free_from
            index = bisect_left(starts, time + end)
            if index and ends[index - 1] > time + start:
                latest = max(latest, ends[index - 1] - start)
        for item in alternates:
            latest = max(latest, item.free_from(time))
        return latest

    @staticmethod
    def _choose(
        flexible: list[Flexible], pools: list[dict[int, list[Table]]], time: int
    ) -> tuple[tuple[int, ...] | None, int]:
        """First free choice of every flexible resource; bookings of the same op count as taken."""
        chosen: list[int] = []
        own: list[tuple[Table, int, int]] = []
        for item, pool in zip(flexible, pools, strict=True):
            start, end = time + item.start, time + item.end
            wait = None
            for choice, tables in pool.items():
                if own and any(t is o and s < end and start < e for t in tables for o, s, e in own):
                    continue
                free = max(table.free_from(start, end) for table in tables)
                if free == start:
                    chosen.append(choice)
                    own += [(table, start, end) for table in tables]
                    break
                wait = free - start if wait is None else min(wait, free - start)
            else:  # taken by others, or by this op itself because others pushed its first choices aside
                return None, time + (wait or 1)
        return tuple(chosen), time

    def _spans(self, template: Template, time: int, chosen: tuple[int, ...]) -> Iterator[tuple[Table, int, int]]:
        for key, start, end in template.fixed:
            for booked in booked_keys(key, time + start):
                yield self[booked], time + start, time + end
        for item, choice in zip(template.flexible, chosen, strict=True):
            for table in self.choices(item)[choice]:
                yield table, time + item.start, time + item.end

    def book(self, template: Template, time: int, chosen: tuple[int, ...]) -> None:
        """Books a template at a time zero."""
        for table, start, end in self._spans(template, time, chosen):
            table.book(start, end)

    def release(self, template: Template, time: int, chosen: tuple[int, ...]) -> None:
        """Takes back the bookings of a template."""
        for table, start, end in self._spans(template, time, chosen):
            table.release(start, end)
