"""place: TileGraph -> AllocatedGraph. Every storage gets MEM slices, a base address and so a bank.

Linear scan over live ranges: a storage takes the first free addresses in one of its candidate slice groups; addresses
of dead storages are used again only when nothing else is free, and then the new writes wait for the old reads
(`reuses`). Storages that are written while a program runs stay within one bank, so that the scheduler can keep reads
and writes of a bank apart. Cost: O(S * live storages of a slice).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

from lpu_jax.lowering.analysis.contention import companions, contention, streamed
from lpu_jax.lowering.host_plan import loop_blocks, read_by_host
from lpu_jax.lowering.passes.filling import fill
from lpu_jax.lowering.passes.place_search import Busy
from lpu_jax.lowering.passes.slots import Place, Slots, slice_sets
from lpu_jax.lowering.tile_ir import (
    ChainOp,
    GatherInput,
    IntArray,
    MatMulInput,
    MemoryInput,
    MemoryOutput,
    PermuteOp,
    ScatterOutput,
    Storage,
    SxmUnit,
    TileGraph,
    TileOp,
    TransposeOp,
    storages_of,
)
from lpu_jax.runtime.chip import ChipSpec, Hemisphere
from lpu_jax.runtime.errors import ScheduleError, SramOverflowError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AllocatedGraph:
    """A TileGraph with a place for every storage.

    places[s] is None for storages that no op uses and the host does not fill.
    reuses[s]: storages whose addresses s takes over.
    Invariant: storages whose addresses overlap are never live together.
    """

    tiles: TileGraph
    places: tuple[Place | None, ...]
    reuses: tuple[tuple[int, ...], ...]
    live: tuple[tuple[int, int], ...]


def op_reads(op: TileOp) -> list[int]:
    """Storages that a tile op reads."""
    if isinstance(op, TransposeOp):
        return storages_of(op.source_refs)
    if isinstance(op, PermuteOp):
        return storages_of(op.source_refs) + storages_of(op.maps)
    found: list[int] = []
    for item in op.inputs:
        if isinstance(item, MemoryInput):
            found += storages_of(item.refs)
        elif isinstance(item, GatherInput):
            found += [*storages_of(item.maps), item.table]
        else:
            assert isinstance(item, MatMulInput)
            for refs in item.activations:
                found += storages_of(refs)
            found += [weight.storage for weight in item.weights]
    for output in op.outputs:
        if not isinstance(output, MemoryOutput):
            found += storages_of(output.maps)
    return found


def op_writes(op: TileOp) -> list[int]:
    """Storages that a tile op writes."""
    if not isinstance(op, ChainOp):
        return storages_of(op.targets)
    found: list[int] = []
    for output in op.outputs:
        found += storages_of(output.refs) if isinstance(output, MemoryOutput) else [output.table]
    return found


def live_ranges(tiles: TileGraph) -> list[tuple[int, int]]:
    """(first, last) op position at which each storage holds something; (0, -1) if it is never used.

    Resident storages live from the start, outputs to the end; what a loop takes in or leaves behind lives through it,
    and so does what it fills turn by turn.
    """
    count = sum(len(block.ops) for block in tiles.blocks)
    spans: list[list[int]] = [[] for _ in tiles.storages]
    position = 0
    for block in tiles.blocks:
        start, stop = position, position + len(block.ops)
        for op in block.ops:
            for touched in op_reads(op) + op_writes(op):
                spans[touched].append(position)
            position += 1
        if block.num_iterations > 1:
            for used, is_read in _read_first(block.ops).items():
                if spans[used][0] < start or is_read or used in block.looped:
                    spans[used] += [start, stop - 1]
    extend_through_loops(tiles, spans)
    last_use = [(min(s), max(s)) if s else (0, -1) for s in spans]
    output_ids = {int(s) for binding in tiles.outputs for s in binding.view.refs[:, 0]} | read_by_host(tiles.plan)
    ranges = []
    for storage, (first, last) in zip(tiles.storages, last_use, strict=True):
        if storage.resident:
            first = 0
            last = count if last >= 0 else last
        if storage.id in output_ids:
            last = count
        ranges.append((first, last))
    return ranges


def extend_through_loops(tiles: TileGraph, spans: list[list[int]]) -> None:
    """What a loop that the host starts takes in or leaves behind lives through all its blocks."""
    ends = [0, *itertools.accumulate(len(block.ops) for block in tiles.blocks)]
    for first, last in loop_blocks(tiles.plan):
        start, stop = ends[first], ends[last]
        is_read_first = _read_first(op for block in tiles.blocks[first:last] for op in block.ops)
        for used, is_read in is_read_first.items():
            if is_read or min(spans[used]) < start:
                spans[used] += [start, stop - 1]


def _read_first(ops: Iterable[TileOp]) -> dict[int, bool]:
    """For every storage that some ops touch: whether they read it before they write it."""
    found: dict[int, bool] = {}
    for op in ops:
        for used in op_reads(op):
            found.setdefault(used, True)
        for used in op_writes(op):
            found.setdefault(used, False)
    return found


def _strictly_apart(tiles: TileGraph) -> list[set[int]]:
    """For every storage, those that cannot share a slice with it: distributors take data and maps in the same cycle,
    and while weights are gathered or scattered all their slices are busy when addresses are read."""
    found: list[set[int]] = [set() for _ in tiles.storages]
    for block in tiles.blocks:
        for op in block.ops:
            for sources, maps in _read_together(tiles, op):
                for one in sources:
                    for other in storages_of(maps):
                        found[one].add(other)
                        found[other].add(one)
    return found


def _read_together(tiles: TileGraph, op: TileOp) -> list[tuple[list[int], IntArray]]:
    """(storages, maps) that an op reads in the same cycles, whatever its timing."""
    if isinstance(op, PermuteOp):
        return [(storages_of(op.source_refs), op.maps)] if op.unit is SxmUnit.DISTRIBUTOR else []
    if not isinstance(op, ChainOp):
        return []
    by_address = [item for item in (*op.inputs, *op.outputs) if isinstance(item, GatherInput | ScatterOutput)]
    return [([item.table], item.maps) for item in by_address if tiles.storages[item.table].plane is not None]


def _inside(chip: ChipSpec, hemisphere: Hemisphere, sets: tuple[tuple[int, ...], ...]) -> list[tuple[int, ...]]:
    """The slice sets of all planes one slice nearer: the addresses of what is gathered come from the farthest slice."""
    usable = chip.usable_slices(hemisphere)
    if usable[0] in {s for group in sets for s in group}:
        return list(sets)
    return [tuple(usable[usable.index(s) - 1] for s in group) for group in sets]


def _candidates(chip: ChipSpec, storage: Storage, turn: int) -> list[tuple[int, ...]]:
    """Slice groups to try, those that are best if nothing else is there first."""
    near, sets = slice_sets(chip, storage.hemisphere)
    if storage.gathered and storage.plane is not None:
        return [_inside(chip, storage.hemisphere, sets)[storage.plane or 0]]
    if storage.plane is not None:
        return [sets[storage.plane]]
    width = storage.num_slices
    if storage.column == "near":
        return [(s,) for s in chip.usable_slices(storage.hemisphere) if s < chip.num_slices_per_column]
    if storage.column == "far":
        last = (chip.num_mem_columns - 1) * chip.num_slices_per_column
        return [(s,) for s in chip.usable_slices(storage.hemisphere) if s >= last]
    if storage.column == "maps":
        return [(s,) for s in (*reversed(near), *(s for group in sets for s in group))]
    far = tuple(s for group in dict.fromkeys(sets) for s in group)
    if storage.interleave > 1:
        everything = near + far
        return [near[len(near) - width :]] * (width <= len(near)) + [
            everything[i : i + width] for i in range(0, len(everything) - width + 1)
        ]
    groups = [near[i : i + width] for i in range(0, len(near) - width + 1, width)]
    groups = groups[turn % len(groups) :] + groups[: turn % len(groups)] if groups else []
    spill = [far[i : i + width] for i in range(0, len(far) - width + 1, width)]
    start = turn % len(spill)
    return groups + spill[start:] + spill[:start]


def place(tiles: TileGraph, *, reserve: float | None = None) -> AllocatedGraph:
    """Places every storage.

    Args:
      tiles: the program.
      reserve: None keeps weights in the slice sets of their planes. With a number they fill all slices but that share
        (`filling`), which holds more, but planes wait for each other's loads.

    Raises:
      SramOverflowError: the program does not fit the chip.
    """
    chip = tiles.chip
    ranges = live_ranges(tiles)
    slots = Slots(chip)
    places: list[Place | None] = [None] * len(tiles.storages)
    reuses: list[list[int]] = [[] for _ in tiles.storages]
    busy = Busy(chip, tiles.storages, contention(tiles))
    strict, operand_of = _strictly_apart(tiles), companions(tiles)
    homes: dict[int, list[tuple[int, ...]]] = {}
    written = {s for block in tiles.blocks for op in block.ops for s in op_writes(op)}
    fixed_turn = {s for block in tiles.blocks for s in streamed(block)}
    order = [s for s in tiles.storages if ranges[s.id][1] >= ranges[s.id][0]]
    order.sort(key=lambda s: _order(s, ranges[s.id], s.id in written))
    if reserve is not None:  # what is bound to few slices comes before weights that could fill them
        order.sort(key=lambda s: (not s.column, s.plane is None))
    filled: dict[int, Place] | None = None
    for turn, storage in enumerate(order):
        live = ranges[storage.id]
        if reserve is not None and filled is None and not storage.column:
            never_of = {s.id: _never(tiles, places, strict, s) for s in order if s.plane is not None}
            filled = fill(slots, order, written, never_of, reserve)
            if filled is None:
                raise overflow(tiles, storage)
        never = _never(tiles, places, strict, storage)
        turn = 0 if storage.id in fixed_turn else turn  # few slices, so that results find others
        candidates = [slices for slices in _candidates(chip, storage, turn) if never.isdisjoint(slices)]
        home = homes.setdefault(operand_of[storage.id], []) if storage.id in operand_of else []
        if reserve is not None and storage.column == "far":
            candidates.reverse()  # all in the last slice, so that few slices are barred for what is gathered
        candidates.sort(key=lambda slices: slices not in home)
        found = (filled or {}).get(storage.id) or _search(slots, storage, candidates, live, busy, storage.id in written)
        if found is None:
            raise overflow(tiles, storage)
        size, side = storage.num_addresses, storage.hemisphere
        for other in slots.take(side, found, size, live, storage.id):
            before, after = sorted((storage.id, other), key=lambda s: ranges[s])
            reuses[after].append(before)
        busy.add(storage, found)
        places[storage.id] = found
        home.append(found.slices)
    return AllocatedGraph(
        tiles=tiles, places=tuple(places), reuses=tuple(tuple(sorted(r)) for r in reuses), live=tuple(ranges)
    )


def _never(tiles: TileGraph, places: Sequence[Place | None], strict: Sequence[set[int]], storage: Storage) -> set[int]:
    """Slices of what has a place already and cannot share one with a storage."""
    return {s for other in strict[storage.id] for s in _slices(tiles, places, storage, other)}


def _slices(tiles: TileGraph, places: Sequence[Place | None], storage: Storage, other: int) -> tuple[int, ...]:
    """Slices of another storage, if it has a place in the same hemisphere."""
    spot = places[other]
    return spot.slices if spot is not None and tiles.storages[other].hemisphere == storage.hemisphere else ()


def _search(
    slots: Slots,
    storage: Storage,
    candidates: list[tuple[int, ...]],
    live: tuple[int, int],
    busy: Busy,
    is_written: bool,
) -> Place | None:
    """The free place that costs least; among equals one that was never used before."""
    one_bank = is_written and storage.num_addresses <= slots.chip.num_addresses_per_bank
    banks: Sequence[int | None] = range(slots.chip.num_banks) if one_bank else (None,)
    for choices in busy.by_cost(storage.id, candidates, banks):
        for fresh in (None, live):
            for slices, bank in choices:
                base = slots.fit(storage.hemisphere, slices, storage.num_addresses, fresh, bank)
                if base is not None:
                    return Place(slices, base)
    return None


def _order(storage: Storage, live: tuple[int, int], is_written: bool) -> tuple[object, ...]:
    """Weights and tables first (those that must stay in one bank, then by size), then maps, as they keep out of the
    slices of what is distributed, then other large values and those bound to a column, then the rest as it becomes
    live."""
    if storage.resident and (storage.plane is not None or storage.interleave > 1):
        return (0, not is_written, -storage.num_addresses, storage.id)
    if storage.column == "maps":
        return (1, storage.id)
    if storage.column or (storage.interleave > 1 and storage.num_iterations > 1):
        return (2, -storage.num_addresses, storage.id)
    return (3, live[0], storage.id)


def resident_bytes(tiles: TileGraph) -> int:
    """Bytes of SRAM that arguments and constants take."""
    return sum(s.num_slices * s.num_addresses for s in tiles.storages if s.resident) * tiles.chip.num_lanes


def overflow(tiles: TileGraph, storage: Storage) -> SramOverflowError:
    """The error for a storage that finds no place: what, how much, and how many chips it would take."""
    chip = tiles.chip
    needed = resident_bytes(tiles)
    size = storage.num_slices * storage.num_addresses * chip.num_lanes
    chips = max(2, -(-needed // chip.usable_sram_bytes))
    return SramOverflowError(
        f"SRAM overflow: {storage.name or 'a value'} ({size:_} bytes as {storage.format.name}) finds no place in "
        f"hemisphere {storage.hemisphere.name} of {chip.name}; arguments and constants alone take {needed:_} of "
        f"{chip.usable_sram_bytes:_} usable bytes. It would take at least {chips} chips; or use a smaller batch or "
        f"context, int8 weights, or the policy that lpu_jax.calibrate finds for Budget(chips=1, reserved_bytes=...)."
    )


def verify_allocation(allocated: AllocatedGraph) -> None:
    """Checks from scratch that storages live together never share a word; raises ScheduleError."""
    chip = allocated.tiles.chip
    words: dict[tuple[int, int], list[tuple[int, int, int, int, int]]] = {}
    for storage, spot in zip(allocated.tiles.storages, allocated.places, strict=True):
        if spot is None:
            continue
        if len(spot.slices) != storage.num_slices or len(set(spot.slices)) != len(spot.slices):
            raise ScheduleError(f"place: storage {storage.id} needs {storage.num_slices} slices, has {spot.slices}")
        live = allocated.live[storage.id]
        for s, base in spot.starts:
            if base < 0 or base + storage.num_addresses > chip.num_addresses_per_slice:
                raise ScheduleError(f"place: storage {storage.id} leaves its slices at address {base}")
            span = (base, base + storage.num_addresses, *live, storage.id)
            words.setdefault((storage.hemisphere, s), []).append(span)
    for spans in words.values():
        spans.sort()
        for i, (_, stop, start, end, storage_id) in enumerate(spans):
            for first, _, other_start, other_end, other in spans[i + 1 :]:
                if first >= stop:
                    break
                if start <= other_end and other_start <= end:
                    raise ScheduleError(f"place: storages {storage_id} and {other} share address {first} while live")
