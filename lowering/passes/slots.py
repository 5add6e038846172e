"""Places in SRAM, and the address ranges that are taken."""

from __future__ import annotations

import dataclasses

import numpy as np

from lpu_jax.lowering.tile_ir import IntArray
from lpu_jax.runtime.chip import ChipSpec, Hemisphere


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Slices (interleave x bytes of them) and first address (13 bits: bank and word) of a storage.

    bases: first address in every slice where they differ; empty if it is `base` in all.
    """

    slices: tuple[int, ...]
    base: int
    bases: tuple[int, ...] = ()

    @property
    def starts(self) -> tuple[tuple[int, int], ...]:
        """(slice, first address) of every slice."""
        return tuple(zip(self.slices, self.bases or (self.base,) * len(self.slices), strict=True))

    def base_at(self, index: IntArray) -> IntArray:
        """First address in slices[index]."""
        return np.array(self.bases, np.int64)[index] if self.bases else np.full(np.shape(index), self.base, np.int64)


class Ranges:
    """Address ranges taken in one slice: rows (first, stop, live start, live end, storage), as many as were taken."""

    def __init__(self) -> None:
        self._rows = np.zeros((16, 5), np.int64)
        self._count = 0

    @property
    def rows(self) -> IntArray:
        """int64 [ranges, 5]."""
        return self._rows[: self._count]

    def append(self, *row: int) -> None:
        """Adds a range."""
        if self._count == len(self._rows):
            self._rows = np.concatenate([self._rows, np.zeros_like(self._rows)])
        self._rows[self._count] = row
        self._count += 1


class Slots:
    """Address ranges taken in every slice."""

    def __init__(self, chip: ChipSpec) -> None:
        self.chip = chip
        self.taken = {(side, s): Ranges() for side in Hemisphere for s in range(chip.num_slices)}
        self.ever = {key: np.zeros((0, 2), np.int64) for key in self.taken}  # the same, without gaps and lives
        # the smallest size that found no fresh addresses: they only become fewer
        self.too_large: dict[tuple[Hemisphere, tuple[int, ...], int | None], int] = {}

    def fit(
        self, side: Hemisphere, slices: tuple[int, ...], size: int, live: tuple[int, int] | None, bank: int | None
    ) -> int | None:
        """Lowest base at which `size` addresses are free in all slices, within one bank if it is given.

        live=None: addresses that were never used by anybody.
        """
        base, end = 0, self.chip.num_addresses_per_slice
        if bank is not None:
            base, end = (number * self.chip.num_addresses_per_bank for number in (bank, bank + 1))
        if live is None:
            return self._fit_fresh(side, slices, size, bank, base, end)
        rows = np.concatenate([self.taken[side, s].rows for s in slices])
        meets = (rows[:, 2] <= live[1]) & (rows[:, 3] >= live[0]) & (rows[:, 1] > base) & (rows[:, 0] < end)
        return lowest_gap(rows[meets, :2], base, end, size)

    def _fit_fresh(
        self, side: Hemisphere, slices: tuple[int, ...], size: int, bank: int | None, base: int, end: int
    ) -> int | None:
        if size >= self.too_large.get((side, slices, bank), size + 1):
            return None
        blocked = np.concatenate([self.ever[side, s] for s in slices])
        found = lowest_gap(blocked[(blocked[:, 1] > base) & (blocked[:, 0] < end)], base, end, size)
        if found is None:
            self.too_large[side, slices, bank] = size
        return found

    def take(self, side: Hemisphere, place: Place, size: int, live: tuple[int, int], storage: int) -> tuple[int, ...]:
        """Marks a range as taken; returns the storages that have it before or after."""
        old: set[int] = set()
        for s, base in place.starts:
            rows = self.taken[side, s].rows
            old.update(rows[(rows[:, 0] < base + size) & (rows[:, 1] > base), 4].tolist())
            self.taken[side, s].append(base, base + size, *live, storage)
            self.ever[side, s] = with_range(self.ever[side, s], base, base + size)
        return tuple(sorted(old))


def lowest_gap(blocked: IntArray, base: int, end: int, size: int) -> int | None:
    """Lowest b >= base so that [b, b + size) lies before `end` and meets none of the ranges [n, 2]."""
    blocked = blocked[np.argsort(blocked[:, 0], kind="stable")]
    bases = np.maximum.accumulate(np.concatenate([[base], blocked[:, 1]]))
    fits = bases + size <= np.concatenate([blocked[:, 0], [end]])
    first = int(fits.argmax())
    return int(bases[first]) if fits[first] else None


def with_range(ranges: IntArray, start: int, stop: int) -> IntArray:
    """Sorted, disjoint ranges [n, 2] and one more; those that touch become one."""
    low = int(np.searchsorted(ranges[:, 1], start))
    high = int(np.searchsorted(ranges[:, 0], stop, side="right"))
    if low < high:
        start, stop = min(start, int(ranges[low, 0])), max(stop, int(ranges[high - 1, 1]))
    return np.concatenate([ranges[:low], [[start, stop]], ranges[high:]])


def slice_sets(chip: ChipSpec, hemisphere: Hemisphere) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """(slices for activations, slice set of every plane): the far slices hold weights, the near ones activations.

    On chips with too few slices the planes share one set.
    """
    usable = chip.usable_slices(hemisphere)
    width = chip.num_streams_per_load
    num_sets = chip.num_planes if len(usable) >= width * chip.num_planes + 4 else 1
    near = usable[: len(usable) - width * num_sets]
    sets = [usable[len(near) + i * width :][:width] for i in range(num_sets)]
    return near, tuple(sets[plane % num_sets] for plane in range(chip.num_planes))
