"""Operands that are parts of one value: cut apart, or taken segment by segment, so that nothing is copied first."""

import numpy as np
import pytest
from helpers import Sketch, assert_agrees
from on_lpu import lower

from lpu_jax.chips import groqchip1, tiny
from lpu_jax.lowering.passes.tile import tile
from lpu_jax.lowering.passes.tile_cuts import find_cuts
from lpu_jax.runtime.ops import Broadcast, Slice


def rows_of(s, x, start, stop):
    size = s.avals[x].shape[-1]
    return s.op(Slice((start, 0), (stop, size), (1, 1)), x, shape=(stop - start, size))


def names(graph, chip):
    """Of all storages that tile ops use."""
    return {storage.name for storage in tile(graph, chip).storages}


def met(num_rows, *parts):
    """max over parts (first, last row) of a value that was computed."""
    s = Sketch(seed=3)
    x = s.fn("neg", s.random((num_rows, 12)))
    total = rows_of(s, x, *parts[0])
    for part in parts[1:]:
        total = s.fn("max", total, rows_of(s, x, *part))
    return s.build((total,)), s.arguments, x


def test_values_are_cut_where_parts_that_meet_begin_and_end():
    graph, _, x = met(12, (0, 3), (3, 6), (7, 10))
    assert find_cuts(graph) == {x: (3, 6, 7, 10)}


def test_parts_that_overlap_or_are_alone_cut_nothing():
    assert find_cuts(met(12, (0, 3), (2, 5))[0]) == {}
    s = Sketch()
    x = s.fn("neg", s.random((12, 12)))
    assert find_cuts(s.build((s.fn("abs", rows_of(s, x, 0, 6)),))) == {}


@pytest.mark.parametrize("chip", [tiny, groqchip1], ids=lambda chip: chip.name)
def test_parts_of_one_value_meet_without_a_copy(chip):
    graph, arguments, _ = met(12, (0, 6), (6, 12))
    assert "operand copy" not in names(graph, chip)
    assert_agrees(graph, chip, arguments)


def test_neighbouring_rows_of_one_storage_are_copied():
    """Rows k and k + 1 lie in one slice wherever it is cut: one of them has to move."""
    graph, arguments, _ = met(160, (0, 159), (1, 160))
    assert "operand copy" in names(graph, groqchip1)
    assert_agrees(graph, groqchip1, arguments)


def test_operands_that_share_storages_at_different_times_are_taken_segment_by_segment():
    """Rows k and k + 70 of pieces of 64 rows: never in one piece, though both operands read the middle one."""
    s = Sketch(seed=5)
    x = s.random((192, 12))
    total = s.fn("max", rows_of(s, x, 0, 122), rows_of(s, x, 70, 192))
    graph = s.build((total,))
    pieces = tile(graph, groqchip1)
    assert "operand copy" not in {storage.name for storage in pieces.storages}
    assert_agrees(graph, groqchip1, s.arguments)


@pytest.mark.parametrize("num_rows", [96, 99])
def test_a_fold_over_rows_copies_nothing(num_rows):
    graph = lower(lambda x: (-x).max(0), np.ones((num_rows, 12), np.float32))
    assert "operand copy" not in names(graph, groqchip1)


def scaled(num_rows):
    """Rows times a number each lane shares: one vector for all of them."""
    s = Sketch(seed=6)
    x, scale = s.random((num_rows, 12)), s.random((1, 12))
    rows = s.op(Broadcast((0, 1)), scale, shape=(num_rows, 12))
    return s.build((s.fn("mul", x, rows),)), s.arguments


@pytest.mark.parametrize(("num_rows", "parts"), [(512, 2), (64, 1)])
def test_parts_of_a_long_chain_have_their_own_scale(num_rows, parts):
    """Else all would read one slice, a vector a cycle; in each hemisphere two parts or more run side by side."""
    graph, arguments = scaled(num_rows)
    tiles = tile(graph, groqchip1)
    chains = [op for block in tiles.blocks for op in block.ops if op.steps[-1].function == "mul"]
    scales = [int(op.inputs[1].refs[0, 0]) for op in chains]
    sides = [tiles.storages[int(op.outputs[0].refs[0, 0])].hemisphere for op in chains]
    for side in set(sides):
        own = [scale for scale, home in zip(scales, sides, strict=True) if home is side]
        assert len(set(own)) == len(own) >= parts
    assert_agrees(graph, groqchip1, arguments)
