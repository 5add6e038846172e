"""Accesses to vectors as runs: which slice reads or writes which addresses, and in which cycles."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator
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
        both = zip(self.storages, self.places, strict=True)
        self.differs = np.array([s.skewed or bool(place and place.bases) for s, place in both])  # from byte to byte
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
        """Accesses storage by storage, those of a slice together; most are equal for all bytes."""
        differ = bool(self.differs[refs[:, 0]].any())
        key = (id(refs), byte if differ else 0, times.tobytes())
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
        for storage_id in dict.fromkeys(ids[self.differs[ids]].tolist()):
            mine, (storage, place) = ids == storage_id, self.home(storage_id)
            index = storage.slice_index(vectors[mine], byte)
            if storage.skewed:
                groups[mine] = index
            addresses[mine] = storage.address(vectors[mine], byte) + place.base_at(index) - place.base
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
