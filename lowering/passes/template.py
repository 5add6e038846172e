"""Templates: what one tile op needs, cycle by cycle, relative to its own time zero.

A template lists fixed resources (MEM ports and banks, MXM planes, the permuter), flexible ones (streams, ALUs), the
vectors read and written with the cycle of each access, and the instruction rows. The scheduler only has to find a
time zero at which all of it fits; `emit` then fills in the chosen streams and ALUs.

Times are those of vector 0; vector k follows k * interval later. Streams are booked per direction and hemisphere at
the cycle in which vector 0 passes (or would pass) the VXM boundary of that hemisphere.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lpu_jax.lowering.passes.place import AllocatedGraph, Place
from lpu_jax.lowering.tile_ir import IntArray, Storage, TileBlock
from lpu_jax.runtime.chip import ChipSpec, Hemisphere, inward, outward
from lpu_jax.runtime.isa import Opcode, mem_queue

Key = tuple[object, ...]
Interval = tuple[Key, int, int]

ALTERNATE = "alternate"
"""Last part of a key whose interval takes only every second cycle, from its first one on."""

ACCUMULATOR = 0
"""Number of the flexible resource that stands for the accumulators, in all pieces of an op with a product."""


@dataclasses.dataclass(frozen=True, slots=True)
class Slot:
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


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """An instruction row; operands and queue may hold slots."""

    offset: int
    queue: int | Slot
    opcode: Opcode
    operands: tuple[int | Slot, ...]
    count: int = 1
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
        return max(row.offset + (row.count - 1) * row.interval for row in self.rows)


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


def issues(chip: ChipSpec, queue: int, first: int, count: int, interval: int) -> list[Interval]:
    """Bookings of a queue for an instruction and its repetitions; beyond max_repeat of them it is issued again."""
    step = chip.max_repeat * interval
    return [(("Q", queue), cycle, cycle + 1) for cycle in range(first, first + count * interval, step)]


def stream_direction(flexible: Flexible) -> int:
    """Direction of a flexible stream."""
    toward = inward if flexible.inwards else outward
    return int(toward(flexible.hemisphere))


def affine_runs(
    times: IntArray, addresses: IntArray, is_last: npt.NDArray[np.bool_] | None = None
) -> Iterator[tuple[int, int, int, int]]:
    """Splits accesses into runs (first index, count, interval, address step) with constant steps.

    is_last[i]: access i is the last one of its slice, so that no run goes on behind it.
    """
    count, start = len(times), 0
    if is_last is None:
        is_last = np.arange(count) == count - 1
    time_steps, address_steps = times[1:] - times[:-1], addresses[1:] - addresses[:-1]
    is_end = is_last.copy()
    changes = (time_steps[1:] != time_steps[:-1]) | (address_steps[1:] != address_steps[:-1])
    is_end[1:-1] |= changes & ~is_last[:-2]
    ends = np.nonzero(is_end)[0].tolist()
    position = 0
    while start < count:
        if is_last[start]:
            yield start, 1, 1, 0
            start += 1
            continue
        position = bisect.bisect_right(ends, start, position)
        end = ends[position]
        yield start, end - start + 1, int(time_steps[start]), int(address_steps[start])
        start = end + 1


class MemoryAccess:
    """Turns accesses to vectors into MEM rows, port and bank bookings."""

    def __init__(self, allocated: AllocatedGraph, block: TileBlock) -> None:
        self.chip: ChipSpec = allocated.tiles.chip
        self.storages = allocated.tiles.storages
        self.places = allocated.places
        self.looped, self.iterations, self.reverse = block.looped, block.num_iterations, block.reverse
        self.interleaves = np.array([storage.interleave for storage in self.storages], np.int64)
        self.bases = np.array([-1 if place is None else place.base for place in self.places], np.int64)
        self.steps = np.array([s.loop_step if s.id in block.looped else 0 for s in self.storages], np.int64)
        self.skewed = np.array([storage.skewed for storage in self.storages], bool)
        self._known: dict[tuple[object, ...], tuple[IntArray, list[_StorageRuns]]] = {}
        self._split: dict[tuple[object, ...], tuple[IntArray, list[_Part]]] = {}

    def forget(self) -> None:
        """Lets go of the accesses of earlier ops; those of one op come again when it is tried in another way."""
        self._known.clear()
        self._split.clear()

    def home(self, storage: int) -> tuple[Storage, Place]:
        """A storage and its place."""
        place = self.places[storage]
        assert place is not None
        return self.storages[storage], place

    def column(self, mem_slice: int) -> int:
        """Hops between a slice and the VXM boundary."""
        return mem_slice // self.chip.num_slices_per_column

    def add(
        self,
        template: Template,
        opcode: Opcode,
        refs: IntArray,
        byte: int,
        times: IntArray,
        outward_sign: int,
        operands: tuple[int | Slot, ...],
    ) -> None:
        """Books and emits the accesses to one byte plane.

        times[k]: cycle at which vector k would be handled by a slice in column 0; a slice in column c handles it
        outward_sign * c later (-1 for values that flow inward from the slice, +1 for those that come outward to it).
        """
        touched = template.reads if opcode in (Opcode.READ, Opcode.GATHER) else template.writes
        shift = int(times[0])
        relative = times - shift
        key = (opcode, id(refs), byte, outward_sign, relative.tobytes())
        if key not in self._known:  # refs are kept, so that their id stays theirs
            self._known[key] = refs, list(self._runs_of(opcode, refs, byte, relative, outward_sign))
        for access, loop_step, runs in self._known[key][1]:
            if opcode in (Opcode.READ, Opcode.WRITE):
                touched.append(Access(access.storage, access.vectors, access.cycles + shift))
            template.accesses.append(Accesses(shift, opcode, loop_step, operands, runs))

    def _runs_of(
        self, opcode: Opcode, refs: IntArray, byte: int, times: IntArray, outward_sign: int
    ) -> Iterator[_StorageRuns]:
        """For every storage its accesses, addresses per turn of the loop, and its runs slice by slice."""
        port = "R" if opcode in (Opcode.READ, Opcode.GATHER) else "W"
        for part in self._parts(refs, byte, times):
            storage, place = self.home(part.storage)
            slices = place.slices if storage.skewed else place.slices[byte :: storage.format.num_bytes]
            delays = [outward_sign * self.column(s) for s in slices]
            queues = [mem_queue(self.chip, storage.hemisphere, s) for s in slices]
            runs = [
                Run(queues[group], port, first + delays[group], count, interval, address, step, banks)
                for group, first, count, interval, address, step, banks in part.runs
            ]
            cycles = part.times + (np.array(delays)[part.groups] if len(delays) > 1 else delays[0])
            yield Access(part.storage, part.vectors, cycles), part.loop_step, runs

    def _parts(self, refs: IntArray, byte: int, times: IntArray) -> list[_Part]:
        """Accesses storage by storage, those of a slice together; equal for all bytes unless storages are skewed."""
        is_skewed = bool(self.skewed[refs[:, 0]].any())
        key = (id(refs), byte if is_skewed else 0, times.tobytes())
        if key not in self._split:  # refs are kept, so that their id stays theirs
            self._split[key] = refs, self._parts_of(refs, byte, times)
        return self._split[key][1]

    def _parts_of(self, refs: IntArray, byte: int, times: IntArray) -> list[_Part]:
        numbers = {storage: i for i, storage in enumerate(dict.fromkeys(refs[:, 0].tolist()))}
        groups, addresses = self._places(refs, byte)
        widest = int(groups.max()) + 1
        keys = groups
        if len(numbers) > 1:
            keys = groups + widest * np.array([numbers[storage] for storage in refs[:, 0].tolist()])
        order = np.argsort(keys, kind="stable")
        keys, groups, addresses, times = keys[order], groups[order], addresses[order], times[order]
        edges = np.searchsorted(keys, np.arange(len(numbers) + 1) * widest).tolist()
        parts = [
            _Part(
                storage, refs[order[start:stop], 1], times[start:stop], groups[start:stop], self._loop_step(storage), []
            )
            for storage, (start, stop) in zip(numbers, itertools.pairwise(edges), strict=True)
        ]
        is_last = np.append(keys[1:] != keys[:-1], True)
        for start, length, interval, step in affine_runs(times, addresses, is_last):
            number, group = divmod(int(keys[start]), widest)
            part = parts[number]
            for begin in range(start, start + length, self.chip.max_repeat):
                count, address = min(self.chip.max_repeat, start + length - begin), int(addresses[begin])
                banks = self._banks(address, (count - 1) * step, part.loop_step)
                part.runs.append((group, int(times[begin]), count, interval, address, step, banks))
        return parts

    def _places(self, refs: IntArray, byte: int) -> tuple[IntArray, IntArray]:
        """Group of slices (of skewed storages: slice) and address of vectors, in the first turn of the loop."""
        ids, vectors = refs[:, 0], refs[:, 1]
        interleaves = self.interleaves[ids]
        groups, addresses = vectors % interleaves, vectors // interleaves
        for storage_id in dict.fromkeys(ids[self.skewed[ids]].tolist()):
            mine, storage = ids == storage_id, self.storages[storage_id]
            groups[mine] = storage.slice_index(vectors[mine], byte)
            addresses[mine] = storage.address(vectors[mine], byte)
        addresses = addresses + self.bases[ids]
        return groups, addresses + self.steps[ids] * (self.iterations - 1) if self.reverse else addresses

    def _loop_step(self, storage: int) -> int:
        step = int(self.steps[storage])
        return -step if self.reverse else step

    def _banks(self, address: int, reach: int, loop_step: int) -> tuple[int, int]:
        """Lowest and highest bank of the addresses from `address` to address + reach, in all turns of the loop."""
        bank, turns = self.chip.num_addresses_per_bank, loop_step * (self.iterations - 1)
        low = min(address, address + reach) + min(0, turns)
        high = max(address, address + reach) + max(0, turns)
        return low // bank, high // bank


class _Part(NamedTuple):
    """Accesses to one storage, slice by slice; runs hold the group of slices and then the fields of `Run`."""

    storage: int
    vectors: IntArray
    times: IntArray
    groups: IntArray
    loop_step: int
    runs: list[tuple[int, int, int, int, int, int, tuple[int, int]]]


_StorageRuns = tuple[Access, int, list[Run]]


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
