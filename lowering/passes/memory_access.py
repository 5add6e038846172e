"""Accesses to vectors as runs: which slice reads or writes which addresses, and in which cycles."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lpu_jax.lowering.passes.place import AllocatedGraph
from lpu_jax.lowering.passes.slots import Place
from lpu_jax.lowering.passes.template import Access, Accesses, Run, Slot, Template
from lpu_jax.lowering.tile_ir import IntArray, Storage, TileBlock
from lpu_jax.runtime.chip import ChipSpec
from lpu_jax.runtime.isa import Opcode, mem_queue


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


class _Pattern(NamedTuple):
    """Accesses to vectors of one storage, wherever it lies and whichever of its rows the first one is in.

    groups: slice group (of skewed storages: slice) of every vector.
    runs: (group, first cycle, count, interval, address, address step), group by group; cycles and addresses count from
    those of the first vector.
    """

    groups: IntArray
    runs: list[tuple[int, int, int, int, int, int]]


class _Home(NamedTuple):
    """A storage at its place: queue, column and first address of each of its slices, in the first turn of the loop.

    loop_step: addresses per turn; reach: addresses from the first turn to the last one.
    """

    storage: Storage
    queues: list[int]
    columns: list[int]
    bases: list[int]
    loop_step: int
    reach: int


class MemoryAccess:
    """Turns accesses to vectors into MEM rows, port and bank bookings.

    Ops repeat few patterns of accesses, row block by row block and tile by tile: each is divided into runs once.
    """

    def __init__(self, allocated: AllocatedGraph, block: TileBlock) -> None:
        self.chip: ChipSpec = allocated.tiles.chip
        self.storages = allocated.tiles.storages
        self.places = allocated.places
        self.looped, self.iterations, self.reverse = block.looped, block.num_iterations, block.reverse
        self._homes: dict[int, _Home] = {}
        self._patterns: dict[tuple[object, ...], _Pattern] = {}
        self.loads: dict[tuple[object, ...], tuple[Template, int]] = {}  # of weight tiles, see `template_product`

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
        times: range,
        outward_sign: int,
        operands: Mapping[int, tuple[int | Slot, ...]],
    ) -> None:
        """Books and emits the accesses to some byte planes.

        times[k]: cycle at which vector k would be handled by a slice in column 0; a slice in column c handles it
        outward_sign * c later (-1 for values that flow inward from the slice, +1 for those that come outward to it).
        operands: of the instructions for each byte.
        """
        touched = template.reads if opcode in (Opcode.READ, Opcode.GATHER) else template.writes
        port = "R" if touched is template.reads else "W"
        for storage_id, vectors, first, relative in _by_storage(refs, times):
            home = self._home_of(storage_id)
            touches: dict[tuple[int, ...], Access] = {}  # bytes in slices of the same columns are touched together
            for byte, fields in operands.items():
                row, pattern = self._pattern(home.storage, vectors, byte, relative)
                width = 1 if home.storage.skewed else home.storage.format.num_bytes
                lane = 0 if home.storage.skewed else byte
                delays = tuple([outward_sign * column for column in home.columns[lane::width]])
                runs = []
                for group, start, count, interval, address, step in pattern.runs:
                    place = group * width + lane
                    address += row + home.bases[place]
                    banks = self._banks(address, (count - 1) * step, home.reach)
                    begin = first + start + delays[group]
                    runs.append(Run(home.queues[place], port, begin, count, interval, address, step, banks))
                template.accesses.append(Accesses(0, opcode, home.loop_step, fields, runs))
                kind = (*delays, byte) if home.storage.skewed else delays
                if kind not in touches:
                    cycles = first + relative + (np.array(delays)[pattern.groups] if len(delays) > 1 else delays[0])
                    touches[kind] = Access(storage_id, vectors, cycles)
            if opcode in (Opcode.READ, Opcode.WRITE):
                touched += touches.values()

    def _home_of(self, storage_id: int) -> _Home:
        found = self._homes.get(storage_id)
        if found is None:
            storage, place = self.home(storage_id)
            loop_step = storage.loop_step if storage_id in self.looped else 0
            reach = loop_step * (self.iterations - 1)
            found = self._homes[storage_id] = _Home(
                storage,
                [mem_queue(self.chip, storage.hemisphere, s) for s in place.slices],
                [self.column(s) for s in place.slices],
                [base + reach if self.reverse else base for _, base in place.starts],
                -loop_step if self.reverse else loop_step,
                -reach if self.reverse else reach,
            )
        return found

    def _pattern(self, storage: Storage, vectors: IntArray, byte: int, times: IntArray) -> tuple[int, _Pattern]:
        """The address of the row of the first vector, and the pattern of accesses from there on."""
        interleave, first = storage.interleave, int(vectors[0])
        kind = (byte, storage.format) if storage.skewed else None
        rest = first % interleave
        key = (interleave, kind, rest, (vectors - first).tobytes(), times.tobytes())
        found = self._patterns.get(key)
        if found is None:
            found = self._patterns[key] = self._divide(storage, vectors - (first - rest), byte, times)
        return (first - rest) // interleave * (storage.format.num_bytes if storage.skewed else 1), found

    def _divide(self, storage: Storage, vectors: IntArray, byte: int, times: IntArray) -> _Pattern:
        """Divides accesses into runs."""
        groups = storage.slice_index(vectors, byte) if storage.skewed else vectors % storage.interleave
        order = np.argsort(groups, kind="stable")
        keys, times = groups[order], times[order]
        addresses = storage.address(vectors[order], byte)
        runs = []
        for start, length, interval, step in affine_runs(times, addresses, np.append(keys[1:] != keys[:-1], True)):
            for begin in range(start, start + length, self.chip.max_repeat):
                count = min(self.chip.max_repeat, start + length - begin)
                runs.append((int(keys[start]), int(times[begin]), count, interval, int(addresses[begin]), step))
        return _Pattern(groups, runs)

    def _banks(self, address: int, reach: int, turns: int) -> tuple[int, int]:
        """Lowest and highest bank of the addresses from `address` to address + reach, in all turns of the loop."""
        bank = self.chip.num_addresses_per_bank
        low = min(address, address + reach) + min(0, turns)
        high = max(address, address + reach) + max(0, turns)
        return low // bank, high // bank


@functools.lru_cache(maxsize=1024)
def _spaced(count: int, interval: int) -> IntArray:
    """Cycles from the first one on."""
    return np.arange(count) * interval


def _by_storage(refs: IntArray, times: range) -> Iterator[tuple[int, IntArray, int, IntArray]]:
    """(storage, vectors, first cycle, cycles from then on) of the accesses to each storage."""
    ids, vectors = refs[:, 0], refs[:, 1]
    cycles = _spaced(len(times), times.step)
    if (ids == ids[0]).all():
        yield int(ids[0]), vectors, times.start, cycles
        return
    order = np.argsort(ids, kind="stable")
    edges = np.flatnonzero(np.diff(ids[order])) + 1
    for mine in np.split(order, edges):
        first = int(cycles[mine[0]])
        yield int(ids[mine[0]]), vectors[mine], times.start + first, cycles[mine] - first
