"""Cumulative reductions: integers equal JAX, floats are no further from the real result than XLA."""

import math

import jax
import numpy as np
import pytest
from jax import lax
from on_lpu import assert_machine_agrees

NAMES = ("cumsum", "cumprod", "cummax", "cummin")


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("axis", [0, 2])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [np.int32, np.int8, np.uint32])
def test_integers_wrap_as_in_jax(on_lpu, random, name, axis, reverse, dtype):
    x = random.integers(0, 100, size=(3, 5, 9)).astype(dtype)

    def fun(x):
        return getattr(lax, name)(x, axis=axis, reverse=reverse)

    np.testing.assert_array_equal(on_lpu(fun, x), fun(x))


@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize("name", [*NAMES, "cumlogsumexp"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_floats_are_as_exact_as_xla(on_lpu, random, name, size, dtype):
    x = random.normal(size=(2, size)).astype(dtype)

    def fun(x):
        return getattr(lax, name)(x, axis=1)

    with jax.enable_x64(True):
        real = np.asarray(fun(x.astype(np.float64)))
    epsilon = np.finfo(dtype).eps
    allowed = 2 * np.abs(fun(x) - real) + 4 * epsilon * np.abs(real) + epsilon
    assert (np.abs(on_lpu(fun, x) - real) <= allowed).all()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("size", [8, 100])
def test_sums_that_cancel_are_wrong_by_one_rounding(on_lpu, random, size, reverse):
    x = (random.normal(size=(size, 9)) * 10.0 ** random.integers(-3, 4, size=(size, 9))).astype(np.float32)
    x[size // 2] = -x[: size // 2].sum(0)
    exact = np.array([[math.fsum(column[: i + 1]) for column in (x[::-1] if reverse else x).T] for i in range(size)])
    exact = exact[::-1] if reverse else exact
    found = on_lpu(lambda x: lax.cumsum(x, axis=0, reverse=reverse), x)
    assert (np.abs(found - exact) <= np.abs(exact) * 2.0**-23 + np.abs(x).max() * 2.0**-44).all()


def test_infinities_do_not_reach_back(on_lpu):
    x = np.array([1, np.inf, 2, -np.inf, 3], np.float32)
    np.testing.assert_array_equal(on_lpu(lambda x: lax.cumsum(x, axis=0), x), [1, np.inf, np.inf, np.nan, np.nan])
    low = np.array([-np.inf, -np.inf, 0, np.inf], np.float32)
    np.testing.assert_array_equal(on_lpu(lambda x: lax.cumlogsumexp(x, axis=0), low), [-np.inf, -np.inf, 0, np.inf])


@pytest.mark.parametrize("name", [*NAMES, "cumlogsumexp"])
def test_machine_equals_runtime(random, name):
    x = random.normal(size=(9, 5)).astype(np.float32)
    assert_machine_agrees(lambda x: getattr(lax, name)(x, axis=0), x)
