"""Reservation tables: which cycles of every resource are taken, and where a template fits."""

from __future__ import annotations

from collections.abc import Iterator

from lpu_jax.lowering.passes.free_times import Bookings, BusyCycles, FreeTimes, book, grouped, release
from lpu_jax.lowering.passes.reservation_table import Table, table_keys
from lpu_jax.lowering.passes.template import Flexible, Interval, Key, Template, stream_direction
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


NUM_ACCUMULATOR_PARTS = 32
"""The accumulators of a plane are handed out in parts, so that one op fills some while ACC still reads others."""


def accumulator_parts(chip: ChipSpec) -> tuple[int, int]:
    """(vectors of a part, number of parts) of the accumulators of a plane."""
    size = max(1, chip.num_accumulator_vectors // NUM_ACCUMULATOR_PARTS)
    return size, chip.num_accumulator_vectors // size


def _is_own(own: dict[Table, list[tuple[int, int]]], tables: list[Table], start: int, end: int) -> bool:
    """Whether an op has chosen one of some tables already for a part of [start, end)."""
    for table in tables:
        for first, stop in own.get(table, ()):
            if first < end and start < stop:
                return True
    return False


class Tables:
    """Reservation tables of a block, made on first use: busy cycles for fixed bookings, intervals for all others."""

    def __init__(self, chip: ChipSpec) -> None:
        self.chip = chip
        self.tables: dict[Key, Table] = {}
        self.fixed: dict[Key, BusyCycles] = {}
        self.homes: dict[Key, tuple[BusyCycles, ...]] = {}
        self.bookings: dict[int, tuple[list[Interval], list[Bookings]]] = {}
        self.pools: dict[tuple[object, ...], dict[int, list[Table]]] = {}

    def of(self, key: Key) -> tuple[BusyCycles, ...]:
        """The busy cycles that a fixed booking meets, as `table_keys` names them."""
        found = self.homes.get(key)
        if found is None:
            found = self.homes[key] = tuple(self.fixed.setdefault(k, BusyCycles()) for k in table_keys(key))
        return found

    def fixed_of(self, template: Template) -> list[Bookings]:
        """The fixed bookings of a template with the busy cycles that they meet; known by the list of them, which
        variants of a template share."""
        found = self.bookings.get(id(template.fixed))
        if found is None:  # the list is kept, so that its id stays its own
            found = self.bookings[id(template.fixed)] = template.fixed, grouped(self.of, template.fixed)
        return found[1]

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
        free = FreeTimes(self.fixed_of(template), earliest)
        pools = [self.choices(item) for item in template.flexible]
        time, tries = free.next(earliest), 0
        while True:
            chosen, moved = self._choose(template.flexible, pools, time)
            if chosen is not None:
                return time, chosen
            tries += 1
            if tries == MAX_TRIES and Tables(self.chip).never_fits(template.flexible):
                raise _too_few(self.chip, template.flexible)
            time = free.next(moved)

    def never_fits(self, flexible: list[Flexible]) -> bool:
        """Whether an op finds no room for its flexible resources even on an idle chip."""
        return self._choose(flexible, [self.choices(item) for item in flexible], 0)[0] is None

    @staticmethod
    def _choose(
        flexible: list[Flexible], pools: list[dict[int, list[Table]]], time: int
    ) -> tuple[tuple[int, ...] | None, int]:
        """First free choice of every flexible resource; bookings of the same op count as taken."""
        chosen: list[int] = []
        own: dict[Table, list[tuple[int, int]]] = {}
        for item, pool in zip(flexible, pools, strict=True):
            start, end = time + item.start, time + item.end
            wait = None
            for choice, tables in pool.items():
                if own and _is_own(own, tables, start, end):
                    continue
                free = start
                for table in tables:
                    free = max(free, table.free_from(start, end))
                if free == start:
                    chosen.append(choice)
                    for table in tables:
                        own.setdefault(table, []).append((start, end))
                    break
                wait = free - start if wait is None else min(wait, free - start)
            else:  # taken by others, or by this op itself because others pushed its first choices aside
                return None, time + (wait or 1)
        return tuple(chosen), time

    def _chosen(self, template: Template, time: int, chosen: tuple[int, ...]) -> Iterator[tuple[Table, int, int]]:
        for item, choice in zip(template.flexible, chosen, strict=True):
            for table in self.choices(item)[choice]:
                yield table, time + item.start, time + item.end

    def book(self, template: Template, time: int, chosen: tuple[int, ...]) -> None:
        """Books a template at a time zero."""
        for bookings in self.fixed_of(template):
            book(bookings.at(time), time + bookings.start, time + bookings.end)
        for table, start, end in self._chosen(template, time, chosen):
            table.book(start, end)

    def release(self, template: Template, time: int, chosen: tuple[int, ...]) -> None:
        """Takes back the bookings of a template."""
        for bookings in self.fixed_of(template):
            release(bookings.at(time), time + bookings.start, time + bookings.end)
        for table, start, end in self._chosen(template, time, chosen):
            table.release(start, end)
