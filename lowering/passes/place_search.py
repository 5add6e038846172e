"""Where a storage would meet those that are accessed together with it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from lpu_jax.lowering.analysis.contention import Contention
from lpu_jax.lowering.passes.slots import Place
from lpu_jax.lowering.tile_ir import Storage
from lpu_jax.runtime.chip import ChipSpec


class Busy:
    """Cycles that every storage would lose in every bank and slice, next to those that have a place already."""

    def __init__(self, chip: ChipSpec, storages: Sequence[Storage], costs: Contention) -> None:
        self.costs, self.per_bank = costs, chip.num_addresses_per_bank
        self.sides = np.array([storage.hemisphere for storage in storages], np.int64)
        self.lost = np.zeros((len(storages), chip.num_banks, chip.num_slices), np.int64)

    def add(self, storage: Storage, place: Place) -> None:
        """A storage has got its place."""
        for base in dict.fromkeys(first for _, first in place.starts):
            self._add(storage, tuple(s for s, first in place.starts if first == base), base)

    def _add(self, storage: Storage, slices: tuple[int, ...], base: int) -> None:
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
