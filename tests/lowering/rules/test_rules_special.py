"""Gamma and Bessel functions: no further from float64 than twice XLA's worst error plus one unit in the last place."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from on_lpu import assert_machine_agrees

from lpu_jax import lpu

LINE = np.concatenate([np.linspace(-9, 9, 241), [-20.3, -5e-3, 1e-6, 30, 1e9]]).astype(np.float32)
SHAPES = np.array([0.1, 0.9, 2, 7, 30, 0, -1], np.float32)
PLACES = np.array([0, 0.05, 0.3, 0.5, 0.8, 1, 3, 8, np.inf], np.float32)


def assert_as_exact_as_xla(fun, *arguments):
    with jax.enable_x64(True):
        real = np.asarray(fun(*(x.astype(np.float64) for x in arguments)))
    finite = np.isfinite(real)
    scale = np.maximum(np.abs(real), 2.0**-100)[finite]
    own = (np.abs(np.asarray(fun(*arguments))[finite] - real[finite]) / scale).max()
    result = np.asarray(lpu(fun, precision="highest")(*arguments))
    np.testing.assert_array_equal(result[~finite], real[~finite])
    assert (np.abs(result[finite] - real[finite]) / scale).max() <= 2 * own + 2.0**-23


@pytest.mark.parametrize("name", ["bessel_i0e", "bessel_i1e", "digamma", "lgamma"])
def test_a_function_of_one_argument(name):
    assert_as_exact_as_xla(getattr(lax, name), LINE)


def test_functions_that_iterate():
    a, x = (v.reshape(-1) for v in np.meshgrid(SHAPES, PLACES[:-1]))
    assert_as_exact_as_xla(lax.igamma, a, x)


@pytest.mark.skipif(not os.environ.get("LPU_JAX_ALL"), reason="a long compilation; set LPU_JAX_ALL=1")
@pytest.mark.parametrize("name", ["igammac", "igamma_grad_a", "random_gamma_grad"])
def test_more_functions_that_iterate(name):
    a, x = (v.reshape(-1) for v in np.meshgrid(SHAPES, PLACES[:-1]))
    assert_as_exact_as_xla(getattr(lax, name), a, x)


@pytest.mark.skipif(not os.environ.get("LPU_JAX_ALL"), reason="a long compilation; set LPU_JAX_ALL=1")
def test_the_incomplete_beta_function_is_as_exact_as_log_gamma():
    """Its factor is exp of log-gammas of up to 14, so of up to 23: ten units in the last place of that are 2e-5."""
    a, b, x = (v.reshape(-1) for v in np.meshgrid(SHAPES[1:4], SHAPES[1:4], PLACES[1:5]))
    with jax.enable_x64(True):
        real = lax.betainc(*(v.astype(np.float64) for v in (a, b, x)))
    np.testing.assert_allclose(lpu(lax.betainc)(a, b, x), real, rtol=2e-5)


def test_poles_and_infinities():
    x = np.array([0, -1, -2, np.inf, -np.inf, np.nan], np.float32)
    found = lpu(lambda x: (lax.lgamma(x), lax.digamma(x)))(x)
    np.testing.assert_array_equal(found[0], [np.inf] * 5 + [np.nan])
    np.testing.assert_array_equal(found[1], lax.digamma(jnp.asarray(x)))


def test_narrow_floats_are_computed_in_float32():
    x, fun = np.linspace(0.6, 9, 33).astype(np.float16), lpu(lax.lgamma)
    np.testing.assert_array_equal(fun(x), np.asarray(fun(x.astype(np.float32))).astype(np.float16))


@pytest.mark.skipif(not os.environ.get("LPU_JAX_ALL"), reason="a long compilation; set LPU_JAX_ALL=1")
def test_samples_of_the_gamma_distribution_are_those_of_jax():
    """The same draws are accepted; exp and log differ from XLA's in last places, which 1e-5 holds about 80 of."""
    alphas = np.array([0.3, 1, 4.5], np.float32)

    def sample(a):
        return jax.random.gamma(jax.random.key(3), a)

    np.testing.assert_allclose(lpu(sample)(alphas), sample(alphas), rtol=1e-5)


@pytest.mark.parametrize("name", ["bessel_i1e", "digamma", "lgamma"])
def test_machine_equals_runtime(name):
    assert_machine_agrees(getattr(lax, name), LINE[120:137])


def test_machine_equals_runtime_in_a_loop():
    fun = lpu(lambda a, x: lax.igamma(a, x))
    arguments = SHAPES[:3], PLACES[1:4]
    simulated, _ = fun.lower(*arguments).compile().simulate(*arguments)
    np.testing.assert_array_equal(np.asarray(simulated), np.asarray(fun(*arguments)))
