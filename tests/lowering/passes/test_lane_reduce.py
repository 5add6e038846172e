"""Lane reductions: bits of the definition for every number of rows and lanes, and cycles that grow slowly."""

import numpy as np
import pytest
from helpers import Sketch, assert_agrees

from lpu_jax.chips import groqchip1, tiny
from lpu_jax.lowering.passes.tile_reduce import IDENTITIES
from lpu_jax.lowering.pipeline import compile_graph

FLOAT_SIZES = [(1, 1), (3, 2), (16, 16), (17, 15), (33, 17), (2, 48), (5, 100)]
WIDE_SIZES = [(1, 16), (2, 33), (16, 64), (17, 128), (3, 320), (1, 700), (2, 1999)]


@pytest.mark.parametrize("function", ["max", "min"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("chip", "size"), [(tiny, s) for s in FLOAT_SIZES] + [(groqchip1, s) for s in WIDE_SIZES])
def test_extrema_keep_nan_zero_signs_and_infinities(chip, size, dtype, function):
    s = Sketch(seed=sum(size))
    graph = s.build((s.reduce(function, s.random(size, dtype, special=True)),))
    assert_agrees(graph, chip, s.arguments)


@pytest.mark.parametrize(("function", "dtype"), [("imax", "int32"), ("imin", "int8"), ("and", "bool"), ("or", "bool")])
@pytest.mark.parametrize(("chip", "size"), [(tiny, (17, 33)), (tiny, (1, 5)), (groqchip1, (18, 48))])
def test_integers_and_truth_values(chip, size, function, dtype):
    s = Sketch()
    graph = s.build((s.reduce(function, s.random(size, dtype)),))
    assert_agrees(graph, chip, s.arguments)


@pytest.mark.parametrize("function", ["max", "min"])
@pytest.mark.parametrize("position", [0, 15, 16, 319, 320, 511])
def test_every_lane_counts(function, position):
    value = np.full((9, 512), IDENTITIES[function], np.int32).view(np.float32)
    value[:, position] = np.arange(9)
    s = Sketch()
    graph = s.build((s.reduce(function, s.argument(value)),))
    assert_agrees(graph, groqchip1, s.arguments)


def cycles(rows, size):
    s = Sketch()
    return compile_graph(s.build((s.reduce("max", s.random((rows, size))),)), groqchip1).cycles


def test_a_few_rows_take_less_than_nine_passes_of_the_permuter():
    assert cycles(9, 512) < 9 * 60


def test_more_rows_cost_a_few_cycles_each():
    assert cycles(256, 128) - cycles(16, 128) < 4 * 240
