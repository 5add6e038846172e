"""Templates: what one tile op needs, cycle by cycle, relative to its own time zero.

A template lists fixed resources (MEM ports and banks, MXM planes, the permuter), flexible ones (streams, ALUs), the
vectors read and written with the cycle of each access, and the instruction rows. The scheduler only has to find a
time zero at which all of it fits; `emit` then fills in the chosen streams and ALUs.

Times are those of vector 0; vector k follows k * interval later. Streams are booked per direction and hemisphere at
the cycle in which vector 0 passes (or would pass) the VXM boundary of that hemisphere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from lpu_jax.lowering.tile_ir import IntArray
from lpu_jax.runtime.chip import ChipSpec, Hemisphere, inward, outward
from lpu_jax.runtime.isa import Opcode

Key = tuple[object, ...]
Interval = tuple[Key, int, int]

ALTERNATE = "alternate"
"""Last part of a key whose interval takes only every second cycle, from its first one on."""

ACCUMULATOR = 0
"""Number of the flexible resource that stands for the accumulators, in all pieces of an op with a product."""


class Slot(NamedTuple):
    """Placeholder in a row: the stream (or ALU) chosen for flexible resource `flex`, plus an offset."""

    flex: int
    offset: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Flexible:
    """A resource that can be chosen: `width` neighbours of a pool, taken from start to end."""

    pool: str  # "stream", "alu", "transposer", "distributor" or "accumulator"
    inwards: bool
    hemisphere: Hemisphere
    width: int
    start: int
    end: int
    planes: tuple[int, ...] = ()  # whose accumulators
    group: int = -1  # the only group of streams (as many as a load takes) that will do

    def later(self, shift: int) -> Flexible:
        """The same, so many cycles later."""
        start, end = self.start + shift, self.end + shift
        return Flexible(self.pool, self.inwards, self.hemisphere, self.width, start, end, self.planes, self.group)


class Row(NamedTuple):
    """An instruction row; operands and queue may hold slots."""

    offset: int
    queue: int | Slot
    opcode: Opcode
    operands: tuple[int | Slot, ...]
    repeats: int = 1
    interval: int = 1


class Run(NamedTuple):
    """Evenly spaced accesses of a MEM slice: cycles first, first + interval, ..., banks low to high."""

    queue: int
    port: str  # "R" or "W"
    first: int
    repeats: int
    interval: int
    address: int
    address_step: int
    banks: tuple[int, int]

    def busy(self, shift: int) -> tuple[int, int, int]:
        """(start, end, stride) of the cycles it takes, so much later."""
        first = self.first + shift
        return first, first + (self.repeats - 1) * self.interval + 1, self.interval if self.repeats > 1 else 1


class Accesses(NamedTuple):
    """Runs of one kind, `shift` cycles later than they say."""

    shift: int
    opcode: Opcode
    loop_step: int
    operands: tuple[int | Slot, ...]
    runs: list[Run]

    def rows(self) -> Iterator[Row]:
        """Their instruction rows."""
        for run in self.runs:
            operands = (run.address, run.address_step, self.loop_step, *self.operands)
            first = run.first + self.shift
            yield Row(first, run.queue, self.opcode, operands, run.repeats, max(run.interval, 1))


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Access:
    """Vectors of one storage touched at given cycles (relative issue of the MEM instruction)."""

    storage: int
    vectors: IntArray
    cycles: IntArray


@dataclasses.dataclass(slots=True, eq=False)
class Template:
    """Everything one tile op needs; filled by the builders of template_chain and template_permute."""

    fixed: list[Interval] = dataclasses.field(default_factory=list)
    flexible: list[Flexible] = dataclasses.field(default_factory=list)
    reads: list[Access] = dataclasses.field(default_factory=list)
    writes: list[Access] = dataclasses.field(default_factory=list)
    rows: list[Row] = dataclasses.field(default_factory=list)
    accesses: list[Accesses] = dataclasses.field(default_factory=list)  # until `merge_own` books them
    first_flex: int = 0  # number of the first flexible resource; 1 in the pieces of a product, 0 being ACCUMULATOR
    product: Product | None = None  # what has to be multiplied before this chain starts

    def stream(self, inwards: bool, side: Hemisphere, width: int, start: int, duration: int) -> int:
        """Asks for `width` streams of a direction; returns the number of the flexible resource."""
        self.flexible.append(Flexible("stream", inwards, side, width, start, start + duration))
        return self.first_flex + len(self.flexible) - 1

    def alu(self, slots: int, start: int, duration: int) -> int:
        """Asks for an ALU (and the next slots - 1 ones)."""
        self.flexible.append(Flexible("alu", False, Hemisphere.WEST, slots, start, start + duration))
        return self.first_flex + len(self.flexible) - 1

    def sxm(self, pool: str, side: Hemisphere, width: int, start: int, duration: int) -> int:
        """Asks for `width` neighbouring transposers or distributors of a hemisphere."""
        self.flexible.append(Flexible(pool, False, side, width, start, start + duration))
        return len(self.flexible) - 1

    def first_cycle(self) -> int:
        """Earliest cycle of any row."""
        return min(row.offset for row in self.rows)

    def last_cycle(self) -> int:
        """Latest issue of any row."""
        return max(row.offset + (row.repeats - 1) * row.interval for row in self.rows)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class ProductTile:
    """One K tile: its load and its multiplication are placed one by one.

    load: time zero is the first LW; multiply: time zero is the first ABC, the plane is busy for `span` cycles.
    weights: (storage, first row, row of the MXM) of the tile; rows: how many of them it uses.
    """

    weights: tuple[int, int, int]
    rows: int
    load: Template
    load_cycles: int
    multiply: Template
    span: int


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Product:
    """A matrix product as pieces; the chain that reads its sums starts ACC `acc` cycles after the chain's time zero.

    accumulator: the accumulators as flexible resource 0 of the op; its times are set when all pieces have theirs.
    """

    hemisphere: Hemisphere
    planes: tuple[int, ...]
    tiles: tuple[ProductTile, ...]
    accumulator: Flexible
    acc: int
    acc_span: int


def spaced(first: int, count: int, interval: int = 1) -> range:
    """Cycles of `count` vectors."""
    return range(first, first + count * interval, interval)


def issues(chip: ChipSpec, queue: int, first: int, count: int, interval: int) -> list[Interval]:
    """Bookings of a queue for an instruction and its repetitions; beyond max_repeat of them it is issued again."""
    step = chip.max_repeat * interval
    return [(("Q", queue), cycle, cycle + 1) for cycle in range(first, first + count * interval, step)]


def stream_direction(flexible: Flexible) -> int:
    """Direction of a flexible stream."""
    toward = inward if flexible.inwards else outward
    return int(toward(flexible.hemisphere))


def merge_own(template: Template) -> bool:
    """Makes rows and bookings of the accesses of one op; False if the op would collide with itself.

    Strided runs of one op may interleave (rows spread over slices); their exact cycles are compared. Runs that take
    only even or only odd cycles leave the others to other ops (`ALTERNATE`).
    """
    found: dict[Key, list[tuple[int, int, int]]] = {}
    for key, start, end in template.fixed:
        found.setdefault(key, []).append((start, end, 1))
    runs_of = [(run, item.shift) for item in template.accesses for run in item.runs]
    for queue, issues in _by_queue((run.queue, run.first + shift) for run, shift in runs_of).items():
        if len(set(issues)) < len(issues):
            return False
        found["Q", queue] = [(cycle, cycle + 1, 1) for cycle in issues]
    for run, shift in runs_of:
        busy = run.busy(shift)
        found.setdefault((run.port, run.queue), []).append(busy)
        for number in range(run.banks[0], run.banks[1] + 1):
            found.setdefault(("B", run.queue, number), []).append(busy)
    bookings: list[Interval] = []
    for key, runs in found.items():
        runs.sort()
        before = len(bookings)
        for group in _overlapping(runs) if len(runs) > 1 else [runs]:
            if len(group) > 1:
                if not _disjoint(group):
                    return False
                bookings += _bookings(key, group)
                continue
            start, end, stride = group[0]
            if stride % 2 == 0:
                bookings.append(((*key, ALTERNATE), start, end))
            elif len(bookings) > before and bookings[-1][0] is key and bookings[-1][2] == start:
                bookings[-1] = key, bookings[-1][1], end
            else:
                bookings.append((key, start, end))
    template.rows += [row for item in template.accesses for row in item.rows()]
    template.fixed, template.accesses = bookings, []
    return True


def _by_queue(issues: Iterable[tuple[int, int]]) -> dict[int, list[int]]:
    """Issue cycles of every queue."""
    found: dict[int, list[int]] = {}
    for queue, cycle in issues:
        found.setdefault(queue, []).append(cycle)
    return found


def _overlapping(runs: list[tuple[int, int, int]]) -> Iterator[list[tuple[int, int, int]]]:
    """Sorted runs in groups whose spans overlap."""
    high, group = runs[0][1], [runs[0]]
    for run in runs[1:]:
        if run[0] < high:
            group.append(run)
            high = max(high, run[1])
        else:
            yield group
            high, group = run[1], [run]
    yield group


def _bookings(key: Key, runs: list[tuple[int, int, int]]) -> list[Interval]:
    """The intervals of overlapping runs: one, or (as for a run alone) one for even and one for odd cycles."""
    if not any(stride % 2 == 0 for _, _, stride in runs):
        return [(key, runs[0][0], max(end for _, end, _ in runs))]
    if not all(stride % 2 == 0 or end == start + 1 for start, end, stride in runs):
        return [(key, runs[0][0], max(end for _, end, _ in runs))]
    parities = [[run for run in runs if run[0] % 2 == parity] for parity in range(2)]
    return [((*key, ALTERNATE), part[0][0], max(end for _, end, _ in part)) for part in parities if part]


def _disjoint(runs: list[tuple[int, int, int]]) -> bool:
    """Whether strided runs (start, end, stride) never meet in a cycle."""
    cycles = np.concatenate([np.arange(start, end, stride) for start, end, stride in runs])
    return len(np.unique(cycles)) == len(cycles)
