"""Where there is room in SRAM, and where a storage would meet those that are accessed together with it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from lpu_jax.lowering.analysis.contention import Contention
from lpu_jax.lowering.tile_ir import IntArray, Storage
from lpu_jax.runtime.chip import ChipSpec, Hemisphere


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
            blocked = np.concatenate([self.ever[side, s] for s in slices])
            blocked = blocked[(blocked[:, 1] > base) & (blocked[:, 0] < end)]
        else:
            rows = np.concatenate([self.taken[side, s].rows for s in slices])
            meets = (rows[:, 2] <= live[1]) & (rows[:, 3] >= live[0]) & (rows[:, 1] > base) & (rows[:, 0] < end)
            blocked = rows[meets, :2]
        return lowest_gap(blocked, base, end, size)

    def take(
        self, side: Hemisphere, slices: tuple[int, ...], base: int, size: int, live: tuple[int, int], storage: int
    ) -> tuple[int, ...]:
        """Marks a range as taken; returns the dead storages it overlaps."""
        old: set[int] = set()
        for s in slices:
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


class Busy:
    """Cycles that every storage would lose in every bank and slice, next to those that have a place already."""

    def __init__(self, chip: ChipSpec, storages: Sequence[Storage], costs: Contention) -> None:
        self.costs, self.per_bank = costs, chip.num_addresses_per_bank
        self.sides = np.array([storage.hemisphere for storage in storages], np.int64)
        self.lost = np.zeros((len(storages), chip.num_banks, chip.num_slices), np.int64)

    def add(self, storage: Storage, slices: tuple[int, ...], base: int) -> None:
        """A storage has got its place."""
        others, slice_cost, bank_cost = self.costs.of(storage.id)
        near = self.sides[others] == storage.hemisphere
        others, slice_cost, bank_cost = others[near], slice_cost[near], bank_cost[near]
        banks = range(base // self.per_bank, (base + storage.num_addresses - 1) // self.per_bank + 1)
        for bank in range(self.lost.shape[1]):
            lost = slice_cost + bank_cost if bank in banks else slice_cost
            self.lost[others[:, None], bank, np.array(slices)] += lost[:, None]

    def by_cost(
        self, storage: int, candidates: Sequence[tuple[int, ...]], banks: Sequence[int | None]
    ) -> list[list[tuple[tuple[int, ...], int | None]]]:
        """Slices and banks to choose from, those of equal cost together, cheap ones first; without a bank all count."""
        per_bank = self.lost[storage].tolist()
        in_all = self.lost[storage].sum(axis=0).tolist()
        priced: list[tuple[int, tuple[tuple[int, ...], int | None]]] = []
        for slices in candidates:
            for bank in banks:
                cycles = in_all if bank is None else per_bank[bank]
                priced.append((sum([cycles[s] for s in slices]), (slices, bank)))
        priced.sort(key=lambda pair: pair[0])
        return [[option for _, option in equals] for _, equals in itertools.groupby(priced, key=lambda pair: pair[0])]
