"""Fills a chip with weights to the brim: all slices of a hemisphere, each storage with a first address per slice.

A storage of weights needs as many addresses in each of 16 slices, whichever they are. So slices are bins: each takes
some storages of every size, and what is left over is at least a reserve, for everything else. Which slices hold which
storage of a size does not matter for that; a storage takes those of its plane's slice set where it can.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.optimize import LinearConstraint, milp

from lpu_jax.lowering.passes.slots import Place, Slots, slice_sets
from lpu_jax.lowering.tile_ir import Storage
from lpu_jax.runtime.chip import ChipSpec, Hemisphere

RESERVES = (1 / 12, 1 / 16, 1 / 24, 1 / 32, 1 / 48, 1 / 64, 1 / 96)
"""Shares of every slice that are kept free of weights, at the end of its addresses: the first that leaves enough."""
_SMALL = 1 / 128
"""Share of a slice up to which weights are not filled in, but placed as everything else is."""
_MAX_MIXES = 20_000
"""Mixes of more kinds of weights take too long to list, and the program that chooses among them too long to solve."""
_MAX_NODES = 10_000
"""Nodes of the search for one that fits: a limit of time would give other programs on other machines."""


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class _Kind:
    """Storages that can stand for each other: those that must lie in one bank first, then the large ones."""

    in_two_banks: bool
    negative_size: int
    gathered: bool

    @property
    def size(self) -> int:
        return -self.negative_size


def fill(
    slots: Slots, storages: Sequence[Storage], written: set[int], never: dict[int, set[int]], reserve: float
) -> dict[int, Place] | None:
    """Places of all weights but small ones; None if they find none.

    Args:
      slots: what is taken already.
      storages: those that are live; only weights are looked at.
      written: storages that the program writes, which must lie in one bank if they can.
      never: storage -> slices of its hemisphere that it cannot share.
      reserve: share of every slice that stays free.
    """
    places: dict[int, Place] = {}
    for side in Hemisphere:
        found = _fill_side(slots, side, storages, written, never, reserve)
        if found is None:
            return None
        places |= found
    return places


def _fill_side(
    slots: Slots,
    side: Hemisphere,
    storages: Sequence[Storage],
    written: set[int],
    never: dict[int, set[int]],
    reserve: float,
) -> dict[int, Place] | None:
    chip = slots.chip
    limit, small = (int(part * chip.num_addresses_per_slice) for part in (1 - reserve, _SMALL))
    kinds: dict[_Kind, list[Storage]] = {}
    for s in storages:
        if s.plane is not None and s.hemisphere == side and s.num_addresses > small:
            one_bank = s.id in written and s.num_addresses <= chip.num_addresses_per_bank
            kinds.setdefault(_Kind(not one_bank, -s.num_addresses, bool(never.get(s.id))), []).append(s)
    order = sorted(kinds)
    barred = {s for kind in order for storage in kinds[kind] for s in never.get(storage.id, ())}
    slices = sorted(chip.usable_slices(side))
    starts = {s: int(slots.taken[side, s].rows[:, 1].max(initial=0)) for s in slices}
    room, is_barred = [limit - starts[s] for s in slices], [s in barred for s in slices]
    shares = share(order, [len(kinds[k]) for k in order], room, is_barred, chip.num_streams_per_load)
    if shares is None:
        return None
    return _assigned(chip, side, order, kinds, dict(zip(slices, shares, strict=True)), starts)


def share(
    kinds: Sequence[_Kind], counts: Sequence[int], room: Sequence[int], is_barred: Sequence[bool], width: int
) -> list[tuple[int, ...]] | None:
    """How many storages of every kind each slice holds; None if they do not fit.

    An integer program over the mixes that a slice can hold: as many slices of each mix as make width * counts[k] of
    kind k. A slice holds at most counts[k] of it, so that as many storages find slices of their own; those that
    addresses come from hold no gathered ones.
    """
    sizes = [kind.size for kind in kinds]
    groups: list[tuple[list[int], list[tuple[int, ...]]]] = []
    for barred in (True, False):
        slices = [i for i, is_so in enumerate(is_barred) if is_so == barred]
        most = [0 if barred and kind.gathered else count for kind, count in zip(kinds, counts, strict=True)]
        mixes = _mixes(sizes, most, min((room[i] for i in slices), default=0))
        if mixes is None:
            return None
        groups.append((slices, mixes))
    columns = [(group, mix) for group, (_, mixes) in enumerate(groups) for mix in mixes]
    matrix = np.array([[*(group == g for g in range(len(groups))), *mix] for group, mix in columns], float).T
    wanted = np.array([*(len(slices) for slices, _ in groups), *(count * width for count in counts)], float)
    result = milp(
        np.zeros(len(columns)),
        integrality=np.ones(len(columns)),
        constraints=LinearConstraint(matrix, wanted, wanted),
        options={"node_limit": _MAX_NODES},
    )
    if result.x is None:
        return None
    found: list[tuple[int, ...]] = [()] * len(room)
    for group, (slices, _) in enumerate(groups):
        times = np.rint(result.x).astype(int).tolist()
        mixes = [mix for (g, mix), n in zip(columns, times, strict=True) if g == group for _ in range(n)]
        for number, mix in zip(slices, sorted(mixes, reverse=True), strict=True):
            found[number] = mix
    return found


def _mixes(sizes: Sequence[int], most: Sequence[int], free: int) -> list[tuple[int, ...]] | None:
    """All numbers of storages of every size that fit; None if there are too many."""
    mixes: list[tuple[tuple[int, ...], int]] = [((), max(free, 0))]
    for size, high in zip(sizes, most, strict=True):
        if sum(min(high, rest // size) + 1 for _, rest in mixes) > _MAX_MIXES:
            return None
        mixes = [((*taken, n), rest - n * size) for taken, rest in mixes for n in range(min(high, rest // size) + 1)]
    return [taken for taken, _ in mixes]


def _assigned(
    chip: ChipSpec,
    side: Hemisphere,
    order: Sequence[_Kind],
    kinds: dict[_Kind, list[Storage]],
    shares: dict[int, tuple[int, ...]],
    starts: dict[int, int],
) -> dict[int, Place] | None:
    """Slices of every storage: those that have most of its kind left, as then the others find theirs, too."""
    _, sets = slice_sets(chip, side)
    next_start, places = dict(starts), dict[int, Place]()
    for number, kind in enumerate(order):
        left = {s: share[number] for s, share in shares.items() if share[number]}
        for storage in kinds[kind]:
            own = sets[storage.plane or 0]
            chosen = sorted(sorted(left, key=lambda s: (-left[s], s not in own, s))[: storage.num_slices])
            bases = tuple(next_start[s] for s in chosen)
            if not kind.in_two_banks and any(_crosses(chip, base, kind.size) for base in bases):
                return None
            for s in chosen:
                next_start[s] += kind.size
                left[s] -= 1
                if not left[s]:
                    del left[s]
            places[storage.id] = Place(tuple(chosen), bases[0], bases if len(set(bases)) > 1 else ())
    return places


def _crosses(chip: ChipSpec, base: int, size: int) -> bool:
    return base // chip.num_addresses_per_bank != (base + size - 1) // chip.num_addresses_per_bank
