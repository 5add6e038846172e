"""sort and top_k equal JAX in every bit, with equal keys, NaN, infinities and zeros of both signs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from on_lpu import assert_machine_agrees

from lpu_jax.runtime.errors import UnsupportedPrimitiveError

SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.5, -2.0, 1.5], np.float32)


def _assert_equal(on_lpu, fun, *args):
    actual, wanted = (jax.tree.leaves(x) for x in (on_lpu(fun, *args), fun(*args)))
    for a, b in zip(actual, wanted, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("size", [2, 7])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int32, np.uint32, np.int8, bool])
def test_sort_along_both_axes(on_lpu, random, size, dtype):
    x = random.integers(-9, 9, size=(size, 3)).astype(dtype)
    _assert_equal(on_lpu, lambda x: [lax.sort(x, dimension=d) for d in (0, 1)], x)


def test_two_keys_and_a_payload_are_sorted_stably(on_lpu, random):
    a, b = random.integers(0, 3, size=(2, 21)).astype(np.int32)
    payload = np.arange(21, dtype=np.float32)
    _assert_equal(on_lpu, lambda a, b, p: lax.sort((a, b, p), num_keys=2), a, b, payload)
    _assert_equal(on_lpu, jnp.argsort, SPECIAL)
    _assert_equal(on_lpu, lambda x: jnp.sort(x), SPECIAL)


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint8])
def test_top_k(on_lpu, random, dtype):
    x = random.integers(0, 9, size=(3, 13)).astype(dtype)
    _assert_equal(on_lpu, lambda x: lax.top_k(x, 4), x)


def test_top_k_of_infinities_and_of_the_smallest_integer(on_lpu):
    _assert_equal(on_lpu, lambda x: lax.top_k(x, 3), np.full(3, -(2**31), np.int32))
    _assert_equal(on_lpu, lambda x: lax.top_k(x, 3), SPECIAL[1:3].repeat(2))


def test_long_sorts_and_many_largest_are_refused(lowered):
    with pytest.raises(UnsupportedPrimitiveError, match="sort of 5000 elements"):
        lowered(jnp.sort, np.ones(5000, np.float32))
    with pytest.raises(UnsupportedPrimitiveError, match="k=65"):
        lowered(lambda x: lax.top_k(x, 65), np.ones(80, np.float32))


def test_machine_equals_runtime(random):
    x = random.normal(size=(4, 3)).astype(np.float32)
    assert_machine_agrees(lambda x: lax.sort(x, dimension=0), x)
    assert_machine_agrees(lambda x: lax.top_k(x, 2), x)
