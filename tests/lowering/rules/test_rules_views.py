"""Elementwise work in front of moves: moves go outward and back, and rows are found where they lie densely."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

from lpu_jax.lowering.rules.views import Moved
from lpu_jax.runtime.ops import Reshape, Slice, Transpose


class Arrays:
    """Moves of NumPy arrays, as an Emitter moves values."""

    transpose = staticmethod(np.transpose)
    reshape = staticmethod(np.reshape)

    @staticmethod
    def slice(x, start, limit, stride):
        return x[tuple(map(slice, start, limit, stride))]


def moved(shape, *ops):
    """Moved of these (op, shape after) from a base of `shape`."""
    steps, before = [], shape
    for op, after in ops:
        steps.append((op, before, after))
        before = after
    return Moved(0, tuple(steps))


def heads(rows, num_heads, width, order):
    """[rows, heads * width] as [heads, rows, width] (order 1, 0, 2), or with the heads elsewhere."""
    split = (rows, num_heads, width)
    return moved((rows, num_heads * width), (Reshape(), split), (Transpose(order), tuple(split[i] for i in order)))


@given(st.permutations(range(3)), st.tuples(*[st.integers(1, 4)] * 3))
def test_inward_undoes_outward(order, sizes):
    rows, num_heads, width = sizes
    view = heads(rows, num_heads, width, tuple(order))
    x = np.arange(rows * num_heads * width).reshape(rows, -1)
    assert np.array_equal(view.inward(Arrays, view.outward(Arrays, x)), x)


@given(st.permutations(range(3)), st.tuples(*[st.integers(1, 4)] * 3))
def test_work_along_the_rows_is_that_in_the_base(order, sizes):
    """Where an axis is named, a maximum over it in the base is the maximum over axis 1, [B, C] in order."""
    rows, num_heads, width = sizes
    view = heads(rows, num_heads, width, tuple(order))
    axis = view.axis_of_rows()
    if axis is None:
        return
    x = np.random.default_rng(0).permutation(rows * num_heads * width).reshape(rows, -1)
    outside = view.outward(Arrays, x)
    assert np.array_equal(x.max(axis, keepdims=True).reshape(outside[:, 0].shape), outside.max(1))


def test_heads_of_keys_have_their_rows_in_the_base():
    assert heads(5, 3, 4, (1, 0, 2)).axis_of_rows() == 0


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_other_orders_have_none(order):
    assert heads(5, 3, 4, order).axis_of_rows() is None


def test_values_without_moves_and_slices():
    assert Moved(0, ()).axis_of_rows() == 1
    part = moved((2, 6, 4), (Slice((0, 0, 0), (2, 3, 4), (1, 1, 1)), (2, 3, 4)))
    assert part.axis_of_rows() is None
    assert part.outward(Arrays, np.zeros((2, 6, 4))).shape == (2, 3, 4)
    with pytest.raises(AssertionError):
        part.inward(Arrays, np.zeros((2, 3, 4)))


def test_joined_operands_of_a_product_are_scaled_and_narrowed_part_by_part(lowered):
    a, b, w = np.ones((1, 4), np.float32), np.ones((1, 8), np.float32), np.ones((12, 3), np.int8)

    def product(a, b, w):
        joined = jnp.concatenate([a, b], axis=1)
        return lax.dot_general(joined, w, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)

    graph = lowered(product, a, b, w)
    kinds = [getattr(e.op, "function", type(e.op).__name__) for e in graph.equations]
    assert kinds.count("to_fp16") == 2
    last = len(kinds) - 1 - kinds[::-1].index("to_fp16")
    assert "Concatenate" in kinds[last:]  # what is joined at the end is narrow
