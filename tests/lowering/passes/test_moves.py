"""Composed moves: exact whatever the composition, free where vectors are whole again, and no work done twice."""

import numpy as np
import pytest
from helpers import Sketch, assert_agrees
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_random_graphs import STEPS

from lpu_jax.chips import groqchip1, tiny
from lpu_jax.lowering.passes.tile import tile
from lpu_jax.lowering.tile_ir import PermuteOp
from lpu_jax.runtime.ops import Broadcast, Concatenate, Reshape, Slice, Transpose

MOVES = ("reshape", "transpose", "take", "broadcast", "concatenate", "pad", "reverse")


@st.composite
def compositions(draw, sizes, max_elements):
    """(graph, arguments) of up to six moves in a row; the last value and one in between are results."""
    s = Sketch(draw(st.integers(0, 1000)))
    shape = (*draw(st.lists(st.sampled_from((1, 2, 3)), max_size=2)), draw(st.sampled_from(sizes)))
    values = [s.random(shape, draw(st.sampled_from(("float32", "float16", "int8"))))]
    for _ in range(draw(st.integers(2, 6))):
        value = STEPS[draw(st.sampled_from(MOVES))](s, draw, values[-1])
        if value is not None and np.prod(s.avals[value].shape) <= max_elements:
            values.append(value)
    return s.build((values[-1], draw(st.sampled_from(values)))), s.arguments


COMMON = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=100, **COMMON)
@given(compositions((1, 2, 3, 15, 16, 17, 33), 300))
def test_composed_moves_equal_numpy(composition):
    graph, arguments = composition
    assert_agrees(graph, tiny, arguments)


@settings(max_examples=20, **COMMON)
@given(compositions((1, 16, 64, 319, 320, 321), 3000))
def test_composed_moves_equal_numpy_on_320_lanes(composition):
    graph, arguments = composition
    assert_agrees(graph, groqchip1, arguments)


def sxm_vectors(graph, chip):
    """Vectors that pass a permuter or distributors."""
    ops = [op for block in tile(graph, chip).blocks for op in block.ops]
    return sum(len(op.maps) for op in ops if isinstance(op, PermuteOp))


def rotate_half(s, x, heads, width):
    """Halves of every head swapped: [1, heads * width] -> the same shape."""
    split = s.op(Reshape(), x, shape=(1, heads, width))
    low, high = (
        s.op(Slice((0, 0, i), (1, heads, i + width // 2), (1, 1, 1)), split, shape=(1, heads, width // 2))
        for i in (0, width // 2)
    )
    swapped = s.op(Concatenate(2), high, low, shape=(1, heads, width))
    return s.op(Reshape(), swapped, shape=(1, heads * width))


@pytest.mark.parametrize("heads", [1, 5, 9])
def test_a_permutation_within_vectors_is_one_pass_per_vector(heads):
    s = Sketch()
    graph = s.build((rotate_half(s, s.random((1, heads * 64)), heads, 64),))
    assert sxm_vectors(graph, groqchip1) == -(-heads * 64 // 320)
    assert_agrees(graph, groqchip1, s.arguments)


def test_moves_that_undo_each_other_are_free():
    s = Sketch()
    x = s.random((4, 5, 17))
    there = s.op(Transpose((2, 1, 0)), x, shape=(17, 5, 4))
    back = s.op(Transpose((2, 1, 0)), there, shape=(4, 5, 17))
    graph = s.build((back,))
    assert [op for block in tile(graph, tiny).blocks for op in block.ops] == []
    assert_agrees(graph, tiny, s.arguments)


def test_equal_result_vectors_are_built_once():
    s = Sketch()
    heads = s.op(Reshape(), s.random((1, 15)), shape=(3, 5))
    graph = s.build((s.op(Broadcast((1, 2)), heads, shape=(7, 3, 5)),))
    assert sxm_vectors(graph, tiny) == 2  # the first of the three vectors stays where it is
    assert_agrees(graph, tiny, s.arguments)


def test_a_value_used_twice_is_moved_once():
    s = Sketch()
    turned = s.op(Transpose((1, 0)), s.random((3, 5)), shape=(5, 3))
    graph = s.build((s.fn("neg", turned), s.fn("abs", turned)))
    assert sxm_vectors(graph, tiny) == 15 - 3  # three elements are in their lane already
    assert_agrees(graph, tiny, s.arguments)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize(("chip", "size"), [(tiny, 40), (groqchip1, 192), (groqchip1, 400)])
@pytest.mark.parametrize("width", [1, 400])
def test_a_row_becomes_a_column(chip, size, width, dtype):
    s = Sketch()
    column = s.op(Transpose((1, 0)), s.random((1, size), dtype), shape=(size, 1))
    graph = s.build((s.op(Broadcast((0, 1)), column, shape=(size, width)),))
    assert_agrees(graph, chip, s.arguments)
    assert sxm_vectors(graph, chip) <= 2 * size + 2 * -(-size // 16)
