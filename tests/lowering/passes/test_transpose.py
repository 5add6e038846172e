"""Transpositions: exact, a few passes per vector whatever the number of rows, and quick to compile."""

import numpy as np
import pytest
from helpers import Sketch, assert_agrees
from test_moves import sxm_vectors

from lpu_jax.chips import groqchip1, tiny
from lpu_jax.lowering.passes.tile import tile
from lpu_jax.lowering.tile_ir import TransposeOp
from lpu_jax.runtime.ops import Concatenate, Pad, Reshape, Slice, Transpose

SHAPES = [(16, 16), (16, 320), (48, 64), (33, 100), (128, 64), (100, 321), (320, 48)]


def transposed(s, x):
    rows, columns = s.avals[x].shape
    return s.op(Transpose((1, 0)), x, shape=(columns, rows))


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("shape", SHAPES)
def test_matrices(shape, dtype):
    s = Sketch()
    graph = s.build((transposed(s, s.random(shape, dtype)),))
    assert_agrees(graph, groqchip1, s.arguments)


@pytest.mark.parametrize("shape", [(16, 16), (5, 7), (17, 16), (16, 33), (40, 18)])
def test_matrices_on_one_superlane(shape):
    s = Sketch()
    assert_agrees(s.build((transposed(s, s.random(shape)),)), tiny, s.arguments)


def heads(s, x, num_heads):
    """[rows, heads * width] -> [heads, width, rows]"""
    rows, columns = s.avals[x].shape
    split = s.op(Reshape(), x, shape=(rows, num_heads, columns // num_heads))
    return s.op(Transpose((1, 2, 0)), split, shape=(num_heads, columns // num_heads, rows))


def test_all_heads_are_transposed_as_one_matrix():
    s = Sketch()
    x = s.random((64, 384), "float16")
    graph = s.build((heads(s, x, 6),))
    groups = [op for block in tile(graph, groqchip1).blocks for op in block.ops if isinstance(op, TransposeOp)]
    assert sum(len(op.targets) for op in groups) == 64 * 2  # as many transposed vectors as there are
    assert sxm_vectors(graph, groqchip1) <= 2 * 64 * 2 + 2 * 384
    assert_agrees(graph, groqchip1, s.arguments)


def test_a_column_of_scalars_becomes_a_row_without_the_permuter():
    s = Sketch()
    graph = s.build((s.op(Reshape(), s.random((40, 1)), shape=(1, 40)),))
    assert_agrees(graph, groqchip1, s.arguments)
    assert sxm_vectors(graph, groqchip1) < 40


def test_padding_between_blocks_is_zero():
    s = Sketch()
    turned = transposed(s, s.random((48, 20)))
    left = s.op(Slice((0, 0), (20, 16), (1, 1)), turned, shape=(20, 16))
    right = s.op(Slice((0, 16), (20, 48), (1, 1)), turned, shape=(20, 32))
    padded = s.op(Pad((0, 3), (0, 29), 0.0), left, shape=(20, 48))
    graph = s.build((s.op(Concatenate(1), padded, right, shape=(20, 80)),))
    assert_agrees(graph, groqchip1, s.arguments)


def test_zeros_beside_a_transposed_matrix_come_from_nowhere():
    s = Sketch()
    zeros = s.constant(np.zeros((20, 300), np.float32))
    graph = s.build((s.op(Concatenate(1), transposed(s, s.random((48, 20))), zeros, shape=(20, 348)),))
    assert sxm_vectors(graph, groqchip1) < 3 * 20 + 48
    assert_agrees(graph, groqchip1, s.arguments)


def test_the_weights_of_a_product_may_be_transposed():
    s = Sketch()
    k = transposed(s, s.random((100, 64), "float16"))
    right = s.op(Reshape(), k, shape=(1, 64, 100))
    graph = s.build((s.matmul(s.random((1, 20, 64), "float16"), right), s.fn("neg", k)))
    assert_agrees(graph, groqchip1, s.arguments)


def test_large_matrices_compile_to_few_ops():
    s = Sketch()
    graph = s.build((transposed(s, s.random((128, 768), "float16")),))
    ops = [op for block in tile(graph, groqchip1).blocks for op in block.ops]
    assert len(ops) < 60
    assert np.sum([isinstance(op, TransposeOp) for op in ops]) <= 3
