"""Reductions: integers and extrema exact, float sums exact over lanes and rounded once per level over other axes."""

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lpu_jax.runtime.ops import LaneReduce

AXES = [axes for n in (1, 2, 3) for axes in itertools.combinations(range(3), n)]


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 4, 1), (2, 1, 33)])
def test_a_float_sum_rounds_once_per_level(on_lpu, random, axes, shape):
    x = random.normal(size=shape).astype(np.float32)
    result = on_lpu(lambda x: jnp.sum(x, axis=axes), x)
    magnitude = np.sum(np.abs(x.astype(np.float64)), axis=axes)
    wanted = np.sum(x.astype(np.float64), axis=axes)
    levels = 1 + sum(math.ceil(math.log2(shape[a])) for a in axes if a != 2)
    assert np.all(np.abs(result - wanted) <= levels * 2.0**-24 * magnitude)


def test_a_sum_over_lanes_is_exact_and_rounded_once(on_lpu, random):
    x = (random.normal(size=(4, 1001)) * 10.0 ** random.integers(-12, 12, size=(4, 1001))).astype(np.float32)
    wanted = [np.float32(math.fsum(row)) for row in x.astype(np.float64)]
    np.testing.assert_array_equal(on_lpu(lambda x: jnp.sum(x, axis=1), x), wanted)


def test_a_float16_sum_is_summed_in_float32(on_lpu, random):
    x = random.normal(size=(4, 501)).astype(np.float16)
    wanted = np.array([np.float32(math.fsum(row)) for row in x.astype(np.float64)]).astype(np.float16)
    result = on_lpu(lambda x: lax.reduce(x, np.float16(0), lax.add, (1,)), x)
    np.testing.assert_array_equal(result, wanted)


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("name", ["max", "min"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int32, bool])
def test_an_extremum_equals_numpy(on_lpu, random, axes, name, dtype):
    x = (random.normal(size=(3, 5, 6)) * 9).astype(dtype)
    fun = getattr(jnp, name)
    np.testing.assert_array_equal(on_lpu(lambda x: fun(x, axis=axes), x), getattr(np, name)(x, axis=axes))


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("name", ["all", "any"])
def test_all_and_any_equal_numpy(on_lpu, random, axes, name):
    x = random.integers(0, 2, size=(2, 3, 2)).astype(bool)
    fun = getattr(jnp, name)
    np.testing.assert_array_equal(on_lpu(lambda x: fun(x, axis=axes), x), getattr(np, name)(x, axis=axes))


@pytest.mark.parametrize("axes", AXES)
def test_an_integer_sum_wraps_as_in_jax(on_lpu, random, axes):
    x = random.integers(-(2**31), 2**31, size=(3, 5, 7), dtype=np.int32)
    np.testing.assert_array_equal(on_lpu(lambda x: jnp.sum(x, axis=axes), x), jnp.sum(x, axis=axes))


def test_a_count_goes_through_an_exact_float_sum(lowered, on_lpu, random):
    x = random.normal(size=(3, 100)).astype(np.float32)
    graph = lowered(lambda x: jnp.sum(x > 0, axis=-1), x)
    assert LaneReduce("sum") in [e.op for e in graph.equations]
    np.testing.assert_array_equal(on_lpu(lambda x: jnp.sum(x > 0, axis=-1), x), np.sum(x > 0, axis=-1))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("name", ["argmax", "argmin"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int32, bool])
def test_argmax_takes_the_first_of_equal_values(on_lpu, random, axis, name, dtype):
    x = random.integers(0, 3, size=(4, 5, 6)).astype(dtype)
    fun = getattr(jnp, name)
    np.testing.assert_array_equal(on_lpu(lambda x: fun(x, axis=axis), x), getattr(np, name)(x, axis=axis))


def test_argmax_takes_the_first_nan_and_equal_zeros(on_lpu):
    x = np.array([[1, np.nan, 3, np.nan], [-0.0, 0.0, -1, -2], [-np.inf] * 4], np.float32)
    result = on_lpu(lambda x: jnp.argmax(x, axis=1), x)
    np.testing.assert_array_equal(result, jnp.argmax(x, axis=1))
    np.testing.assert_array_equal(result, [1, 0, 0])


def test_a_maximum_with_nan_is_nan(on_lpu):
    x = np.array([[1, np.nan], [2, 3]], np.float32)
    for axis in (0, 1):
        np.testing.assert_array_equal(on_lpu(lambda x, a=axis: jnp.max(x, axis=a), x), np.max(x, axis=axis))
