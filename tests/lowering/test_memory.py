"""The SRAM at its fullest: words in use, holes between them, and the promise that what does not fit is refused."""

import dataclasses

import numpy as np
import pytest
from families import FAMILIES, build
from helpers import Sketch

import lpu_jax
from lpu_jax.chips import groqchip1, tiny
from lpu_jax.lowering.analysis.memory import memory_use, peak_position
from lpu_jax.lowering.passes.place import place
from lpu_jax.lowering.passes.slots import Place
from lpu_jax.lowering.passes.tile import tile
from lpu_jax.lowering.pipeline import compile_graph
from lpu_jax.runtime.errors import SramOverflowError
from lpu_jax.runtime.ops import Aval, Immediate
from lpu_jax.runtime.program import Program


def words_in_use(allocated, position):
    """(hemisphere, slice, address) of everything that lives at an op position, word by word."""
    return {
        (storage.hemisphere, s, spot.base + word)
        for storage, spot, (first, last) in zip(allocated.tiles.storages, allocated.places, allocated.live, strict=True)
        if spot is not None and first <= position <= last
        for s in spot.slices
        for word in range(storage.num_addresses)
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_use_and_holes_equal_a_count_word_by_word(name):
    allocated = place(tile(build(name, 17)[0], tiny))
    count = sum(len(block.ops) for block in allocated.tiles.blocks)
    sizes = [len(words_in_use(allocated, position)) for position in range(count + 1)]
    use = memory_use(allocated)
    assert use.used_bytes == max(sizes) * tiny.num_lanes
    banks = {}
    for side, s, word in words_in_use(allocated, peak_position(allocated)):
        banks.setdefault((side, s, word // tiny.num_addresses_per_bank), []).append(word)
    spanned = sum(max(words) - min(words) + 1 for words in banks.values())
    assert use.spanned_bytes == spanned * tiny.num_lanes
    assert 0 <= use.fragmentation < 1


def test_a_hole_counts_as_such():
    s = Sketch()
    x = s.random((4, 16))
    allocated = place(tile(s.build((s.fn("add", x, Immediate(1.0, "float32")),)), tiny))
    assert memory_use(allocated).fragmentation == 0
    first, second = allocated.tiles.storages
    assert first.num_addresses == second.num_addresses == 4
    spot = allocated.places[first.id]
    storages = (first, dataclasses.replace(second, hemisphere=first.hemisphere))
    tiles = dataclasses.replace(allocated.tiles, storages=storages)
    places = (spot, Place(spot.slices, spot.base + 4 + 12))
    allocated = dataclasses.replace(allocated, tiles=tiles, places=places)
    assert memory_use(allocated).fragmentation == pytest.approx(1 - 8 / 20)


def test_a_large_program_leaves_few_holes():
    compiled = lpu_jax.lpu(lambda x: (x * 2 + 1) / 3).lower(np.zeros((4096, 2048), np.float32)).compile()
    stats = compiled.memory_analysis()
    assert stats.sram_bytes >= 0.3 * stats.sram_capacity_bytes
    assert 0 <= stats.sram_fragmentation <= 0.05


def test_what_fits_stays_in_sram_and_what_does_not_is_refused():
    """There are no spills: argument and result that take 9/10 of the SRAM find a place, 11/10 are refused."""
    capacity = groqchip1.usable_sram_bytes // (4 * groqchip1.num_lanes)

    def graph(rows):
        s = Sketch()
        return s.build((s.fn("neg", s.input(Aval((rows, 320), "float32"))),))

    compiled = compile_graph(graph(capacity * 9 // 20), groqchip1)
    assert isinstance(compiled.program, Program)
    places = compiled.allocated.places
    assert all(p is not None for p, s in zip(places, compiled.tile_graph.storages, strict=True) if s.num_vectors)
    with pytest.raises(SramOverflowError):
        compile_graph(graph(capacity * 11 // 20), groqchip1)
