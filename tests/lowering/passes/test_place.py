"""Placement: no word is taken from a value that is still needed, dead values make room, overflow tells what to do."""

import dataclasses
import itertools
import re
from types import SimpleNamespace

import numpy as np
import pytest
from families import FAMILIES, build
from helpers import Sketch, assert_agrees

from lpu_jax.chips import groqchip1, tiny
from lpu_jax.lowering import pipeline
from lpu_jax.lowering.passes.filling import share
from lpu_jax.lowering.passes.place import place, verify_allocation
from lpu_jax.lowering.passes.slots import lowest_gap, with_range
from lpu_jax.lowering.passes.tile import tile
from lpu_jax.lowering.passes.tile_storage import SPREADS
from lpu_jax.lowering.pipeline import compile_graph
from lpu_jax.lowering.tile_ir import (
    ChainOp,
    GatherInput,
    InputRef,
    MatMulInput,
    MemoryInput,
    MemoryOutput,
    PermuteOp,
    Step,
    StepRef,
    Storage,
    SxmUnit,
    TileBlock,
    TransposeOp,
)
from lpu_jax.runtime.chip import Hemisphere
from lpu_jax.runtime.errors import ScheduleError, SramOverflowError
from lpu_jax.runtime.isa import DataFormat
from lpu_jax.runtime.ops import Aval, Immediate, Reverse


class Owners:
    """Which storage last wrote every word, op by op, loops unrolled; knows nothing of live ranges."""

    def __init__(self, allocated):
        self.allocated = allocated
        self.storages = allocated.tiles.storages
        self.owner = {}
        for storage in self.storages:
            if storage.resident and allocated.places[storage.id] is not None:
                count = storage.num_vectors * storage.num_iterations
                self.write([(storage.id, v) for v in range(count)], 0)

    def words(self, refs, iteration, looped=frozenset()):
        for storage_id, vector in refs:
            storage, spot = self.storages[storage_id], self.allocated.places[storage_id]
            if storage_id in looped:
                vector += iteration * storage.num_vectors
            for byte in range(storage.format.num_bytes):
                mem_slice = spot.slices[int(storage.slice_index(vector, byte))]
                yield storage_id, (storage.hemisphere, mem_slice, spot.base + int(storage.address(vector, byte)))

    def write(self, refs, iteration, looped=frozenset()):
        for storage_id, word in self.words(refs, iteration, looped):
            self.owner[word] = storage_id

    def read(self, refs, iteration, looped=frozenset()):
        for storage_id, word in self.words(refs, iteration, looped):
            assert self.owner.get(word) == storage_id, f"{word} of {self.storages[storage_id]}"

    def table(self, storage_id):
        return [(storage_id, v) for v in range(self.storages[storage_id].num_vectors)]

    def run(self):
        for block in self.allocated.tiles.blocks:
            for iteration in range(block.num_iterations):
                for op in block.ops:
                    reads, writes = self.accesses(op)
                    self.read(reads, iteration, block.looped)
                    self.write(writes, iteration, block.looped)
        for binding in self.allocated.tiles.outputs:
            self.read(binding.view.refs.tolist(), 0)

    def accesses(self, op):
        if isinstance(op, PermuteOp):
            return [*op.source_refs.tolist(), *op.maps.tolist()], op.targets.tolist()
        if isinstance(op, TransposeOp):
            return op.source_refs.tolist(), op.targets.tolist()
        reads, writes = [], []
        for item in op.inputs:
            if isinstance(item, MemoryInput):
                reads += item.refs.tolist()
            elif isinstance(item, GatherInput):
                reads += item.maps.tolist() + self.table(item.table)
            else:
                assert isinstance(item, MatMulInput)
                reads += [ref for refs in item.activations for ref in refs.tolist()]
                reads += [(w.storage, w.first + r) for w in item.weights for r in range(w.num_rows)]
        for output in op.outputs:
            if isinstance(output, MemoryOutput):
                writes += output.refs.tolist()
            else:
                reads += output.maps.tolist()
                writes += self.table(output.table)
        return reads, writes


@pytest.mark.parametrize("width", [DataFormat.UINT8, DataFormat.FP16, DataFormat.FP32])
def test_a_skewed_storage_reads_one_byte_of_16_vectors_or_all_bytes_of_its_neighbours_at_once(width):
    storage = Storage(0, 64, width, Hemisphere.WEST, interleave=16, skewed=True)
    vectors, side_by_side = np.arange(64), 16 // width.num_bytes
    index = np.stack([storage.slice_index(vectors, b) for b in range(width.num_bytes)])
    address = np.stack([storage.address(vectors, b) for b in range(width.num_bytes)])
    words = set(zip(index.reshape(-1).tolist(), address.reshape(-1).tolist(), strict=True))
    assert len(words) == 64 * width.num_bytes == storage.num_slices * storage.num_addresses
    assert max(word for _, word in words) < storage.num_addresses
    for byte in index:
        assert all(len(set(byte[g : g + 16])) == 16 for g in range(0, 64, 16))
    for first in range(0, 64, side_by_side):
        assert len(set(index[:, first : first + side_by_side].reshape(-1))) == 16


def words(allocated, storage):
    """Every word that a storage takes."""
    spot = allocated.places[storage.id]
    return {
        (storage.hemisphere, mem_slice, base + address)
        for mem_slice, base in spot.starts
        for address in range(storage.num_addresses)
    }


def loop_of_reversals(count, rows, turns):
    """A loop whose body reverses the lanes of x `count` times and keeps the result of every turn."""
    body = reversals(count, rows)[0]
    s = Sketch()
    return s.build(tuple(s.scan(body, [], [], [s.random((turns, rows, 16))], turns))), s.arguments


CROWDED = dataclasses.replace(tiny, num_addresses_per_bank=16)
LOOPS = [(8, 16, 8), (8, 24, 4), (8, 32, 2)]


@pytest.mark.parametrize(("count", "rows", "turns"), LOOPS)
def test_of_two_storages_at_one_address_the_later_one_knows_the_earlier_one(count, rows, turns):
    """Whichever found its place first: results of loops do, although they are written last."""
    allocated = place(tile(loop_of_reversals(count, rows, turns)[0], CROWDED, spread=SPREADS[2]))
    storages = [s for s in allocated.tiles.storages if allocated.places[s.id] is not None]
    taken = {s.id: words(allocated, s) for s in storages}
    pairs = [(a.id, b.id) for a, b in itertools.combinations(storages, 2) if taken[a.id] & taken[b.id]]
    for pair in pairs:
        before, after = sorted(pair, key=lambda s: allocated.live[s])
        assert before in allocated.reuses[after]
    assert sum(map(len, allocated.reuses)) == len(pairs) > 0


@pytest.mark.parametrize(("count", "rows", "turns"), LOOPS)
def test_what_a_loop_has_filled_in_one_turn_is_not_overwritten_in_the_next(count, rows, turns):
    graph, arguments = loop_of_reversals(count, rows, turns)
    assert_agrees(graph, CROWDED, arguments)
    Owners(place(tile(graph, CROWDED))).run()


def reversals(count, rows):
    """A chain of lane reversals, each of which has to be written to memory."""
    s = Sketch()
    x = s.random((rows, 16))
    for _ in range(count):
        x = s.op(Reverse((1,)), s.fn("add", x, Immediate(1.0, "float32")))
    return s.build((x,)), s.arguments


def size(storage):
    return storage.num_slices * storage.num_addresses


@pytest.mark.parametrize("name", FAMILIES)
def test_every_read_word_was_last_written_by_its_own_storage(name):
    for chip, n in ((tiny, 17), (groqchip1, 33)):
        Owners(place(tile(build(name, n)[0], chip))).run()


def test_reused_words_are_owned_by_their_reader():
    Owners(place(tile(reversals(28, 128)[0], tiny))).run()


def test_a_word_taken_too_early_is_noticed():
    s = Sketch()
    x, y = s.random((2, 16)), s.random((2, 16))
    allocated = place(tile(s.build((s.fn("add", x, y),)), tiny))
    first, second = (int(binding.view.refs[0, 0]) for binding in allocated.tiles.inputs)
    storages, places = list(allocated.tiles.storages), list(allocated.places)
    storages[second] = dataclasses.replace(storages[second], hemisphere=storages[first].hemisphere)
    places[second] = places[first]
    tiles = dataclasses.replace(allocated.tiles, storages=tuple(storages))
    broken = dataclasses.replace(allocated, tiles=tiles, places=tuple(places))
    with pytest.raises(ScheduleError, match="share address"):
        verify_allocation(broken)
    with pytest.raises(AssertionError):
        Owners(broken).run()


def test_dead_values_make_room():
    graph, arguments = reversals(28, 128)
    assert_agrees(graph, tiny, arguments)
    tiles = tile(graph, tiny)  # as written, not rolled into a loop
    capacity = 2 * tiny.num_slices * tiny.num_addresses_per_slice
    assert sum(size(s) for s in tiles.storages) > capacity
    verify_allocation(place(tiles))


def test_storages_written_by_a_program_stay_in_one_bank():
    for name in FAMILIES:
        allocated = place(tile(build(name, 17)[0], tiny))
        for storage, spot in zip(allocated.tiles.storages, allocated.places, strict=True):
            if spot is not None and not storage.resident and storage.num_addresses <= tiny.num_addresses_per_bank:
                last = spot.base + storage.num_addresses - 1
                assert spot.base // tiny.num_addresses_per_bank == last // tiny.num_addresses_per_bank


def test_overflow_names_value_size_and_chips():
    s = Sketch()
    rows = 30_000
    x = s.input(Aval((rows, 16), "float32"))
    graph = s.build((s.fn("neg", x),))
    with pytest.raises(SramOverflowError) as info:
        compile_graph(graph, tiny)
    text = str(info.value)
    num_bytes = rows * 16 * 4
    assert "SRAM overflow: %0 (" in text
    assert "bytes as FP32" in text
    assert f"{num_bytes:_} of {tiny.usable_sram_bytes:_} usable bytes" in text
    chips = int(re.search(r"at least (\d+) chips", text).group(1))
    assert (chips - 1) * tiny.usable_sram_bytes < num_bytes <= chips * tiny.usable_sram_bytes


def test_slices_are_usable_ones():
    for name in FAMILIES:
        allocated = place(tile(build(name, 33)[0], groqchip1))
        for storage, spot in zip(allocated.tiles.storages, allocated.places, strict=True):
            if spot is not None:
                assert set(spot.slices) <= set(groqchip1.usable_slices(storage.hemisphere))
                assert spot.base + storage.num_addresses <= groqchip1.num_addresses_per_slice


@pytest.mark.parametrize("fitting", range(len(SPREADS)))
def test_what_does_not_fit_generously_is_packed_tighter(fitting, monkeypatch):
    s = Sketch(seed=9)
    graph = s.build((s.matmul(s.random((1, 3, 40), "int8"), s.random((1, 40, 20), "int8")),))
    tried = []

    def tile_and_note(*args, spread, **kwargs):
        tried.append(spread)
        return tile(*args, spread=spread, **kwargs)

    def place_or_refuse(tiles, reserve):
        if len(tried) <= fitting:
            raise SramOverflowError("full")
        return place(tiles, reserve=reserve)

    monkeypatch.setattr(pipeline, "tile", tile_and_note)
    monkeypatch.setattr(pipeline, "place", place_or_refuse)
    assert_agrees(graph, tiny, s.arguments)
    assert tuple(tried) == SPREADS[: fitting + 1]


def test_tighter_spreads_cut_less_and_fill_more_evenly():
    assert [s.unevenness for s in SPREADS] == sorted((s.unevenness for s in SPREADS), reverse=True)
    assert [s.max_piece for s in SPREADS] == sorted(s.max_piece for s in SPREADS)
    assert SPREADS[-1].unevenness == 0


def test_maps_find_a_slice_beside_values_that_could_fill_all_of_them():
    """Three results of a loop, 16 slices each, go to one distributor, which reads its map in the same cycles."""
    values = [Storage(i, 252, DataFormat.FP32, Hemisphere.WEST, interleave=4, num_iterations=3) for i in range(3)]
    maps = Storage(3, 1, DataFormat.UINT8, Hemisphere.WEST, resident=True, column="maps")
    result = Storage(4, 252, DataFormat.FP32, Hemisphere.WEST)
    sources = np.array([[i, 0] for i in range(3)])
    targets = np.array([[4, i] for i in range(3)])
    maps_of = np.array([[3, 0]] * 3)
    op = PermuteOp(sources, maps_of, targets, DataFormat.FP32, Hemisphere.WEST, unit=SxmUnit.DISTRIBUTOR)
    graph = Sketch().build(())
    empty = tile(graph, groqchip1)
    rows = [np.stack([np.full(252, i), np.arange(252)], axis=1) for i in range(5)]
    read_at_once = tuple(MemoryInput(refs, DataFormat.FP32) for refs in rows[:3])
    steps = Step("add", (InputRef(0), InputRef(1))), Step("add", (StepRef(0), InputRef(2)))
    chain = ChainOp(252, read_at_once, steps, (MemoryOutput(1, rows[4], DataFormat.FP32),), "", "")
    block = TileBlock((op, chain), 3, frozenset(range(3)))
    tiles = dataclasses.replace(empty, storages=(*values, maps, result), blocks=(block,))
    places = place(tiles).places
    for value in places[:3]:
        assert places[3].slices[0] not in value.slices


def first_gap(blocked, base, end, size):
    """As lowest_gap, word by word."""
    taken = {word for start, stop in blocked for word in range(start, stop)}
    return next((b for b in range(base, end - size + 1) if taken.isdisjoint(range(b, b + size))), None)


def test_the_lowest_gap_is_found_whatever_is_taken():
    rng = np.random.default_rng(0)
    for _ in range(300):
        starts = rng.integers(0, 60, rng.integers(0, 12))
        blocked = np.stack([starts, starts + rng.integers(1, 9, len(starts))], axis=1)
        base, size = int(rng.integers(0, 30)), int(rng.integers(1, 20))
        assert lowest_gap(blocked, base, 64, size) == first_gap(blocked, base, 64, size)


def test_ranges_that_touch_become_one():
    rng = np.random.default_rng(1)
    for _ in range(100):
        ranges, taken = np.zeros((0, 2), np.int64), set()
        for start, length in zip(rng.integers(0, 60, 9).tolist(), rng.integers(1, 9, 9).tolist(), strict=True):
            ranges = with_range(ranges, start, start + length)
            taken |= set(range(start, start + length))
            assert {word for low, high in ranges for word in range(low, high)} == taken
            assert (ranges[1:, 0] > ranges[:-1, 1]).all()


def kinds_of(*sizes):
    return [SimpleNamespace(size=size, gathered=False) for size in sizes]


def test_slices_share_weights_so_that_every_storage_finds_slices_of_its_own():
    sizes, counts, room, width = (5, 3, 2), (2, 3, 4), [18] * 8, 4
    shares = share(kinds_of(*sizes), counts, room, [False] * 8, width)
    held = np.array(shares)
    assert (held.sum(axis=0) == width * np.array(counts)).all()
    assert (held <= counts).all()
    assert (held @ sizes <= room).all()


def test_too_many_kinds_of_weights_are_refused_and_not_searched_for():
    """Seven numbers each of six kinds are 117,649 mixes."""
    assert share(kinds_of(*[1] * 6), [6] * 6, [36] * 40, [False] * 40, 16) is None
