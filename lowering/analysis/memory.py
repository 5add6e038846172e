"""How full the SRAM is at its fullest, and how much of it lies in holes."""

from __future__ import annotations

import dataclasses
from collections import Counter

from lpu_jax.lowering.passes.place import AllocatedGraph
from lpu_jax.runtime.chip import Hemisphere


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryUse:
    """SRAM at the op at which most of it is in use.

    fragmentation = 1 - used / spanned, where a bank is spanned from its first to its last word in use: the share of
    words that lie between values and hold nothing. 0 <= fragmentation < 1.
    """

    used_bytes: int
    spanned_bytes: int

    @property
    def fragmentation(self) -> float:
        """Share of the spanned words that hold nothing."""
        return 1 - self.used_bytes / self.spanned_bytes if self.spanned_bytes else 0.0


def peak_position(allocated: AllocatedGraph) -> int:
    """The first op position at which the most words are in use."""
    changes: Counter[int] = Counter()
    for storage, place, (first, last) in zip(allocated.tiles.storages, allocated.places, allocated.live, strict=True):
        if place is not None:
            size = storage.num_slices * storage.num_addresses
            changes[first] += size
            changes[last + 1] -= size
    used = peak = position = 0
    for step in sorted(changes):
        used += changes[step]
        if used > peak:
            peak, position = used, step
    return position


def memory_use(allocated: AllocatedGraph) -> MemoryUse:
    """Words in use at the peak and words that they span, bank by bank."""
    chip, position = allocated.tiles.chip, peak_position(allocated)
    bank_size = chip.num_addresses_per_bank
    used, spans = 0, dict[tuple[Hemisphere, int, int], tuple[int, int]]()
    for storage, place, (first, last) in zip(allocated.tiles.storages, allocated.places, allocated.live, strict=True):
        if place is None or not first <= position <= last:
            continue
        used += storage.num_slices * storage.num_addresses
        for mem_slice, start in place.starts:
            stop = start + storage.num_addresses
            for bank in range(start // bank_size, (stop - 1) // bank_size + 1):
                key = (storage.hemisphere, mem_slice, bank)
                inside = max(start, bank * bank_size), min(stop, (bank + 1) * bank_size)
                low, high = spans.get(key, inside)
                spans[key] = min(low, inside[0]), max(high, inside[1])
    spanned = sum(high - low for low, high in spans.values())
    return MemoryUse(used_bytes=used * chip.num_lanes, spanned_bytes=spanned * chip.num_lanes)
