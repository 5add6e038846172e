"""Short ways of calls: the results of the long way, nothing compiled twice, and every check in its place."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lpu_jax

W = jnp.asarray(np.random.default_rng(0).standard_normal((8, 4)), jnp.float32)
X = jnp.asarray(np.random.default_rng(1).standard_normal((2, 8)), jnp.float32)


def lpu(fun, accumulation="float32", **options):
    """Products by XLA, which compiles them fastest."""
    return lpu_jax.lpu(fun, accumulation=accumulation, **options)


def product(w, x, scale=1):
    return jnp.tanh(x @ w) * scale


@pytest.fixture
def compilations(monkeypatch):
    """Names of the programs that XLA compiles."""
    found = []

    def listen(event, duration, fun_name="", **_):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


def test_resident_weights_have_the_bits_of_moving_ones():
    wanted = lpu(product, accumulation="exact")(np.asarray(W), np.asarray(X))
    np.testing.assert_array_equal(lpu(product, accumulation="exact", resident_argnums=0)(W, X), wanted)


@pytest.mark.parametrize("options", [{}, {"resident_argnums": 0}, {"donate_argnums": 1}, {"static_argnames": "scale"}])
def test_the_second_call_compiles_nothing_and_gives_the_same_bits(options, compilations):
    on_lpu = lpu(product, **options)
    first = on_lpu(W, X + 0)
    count = len(compilations)
    assert count
    second = on_lpu(W, X + 0)
    assert len(compilations) == count
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, lpu(product)(np.asarray(W), np.asarray(X)))


def test_other_resident_arrays_count_and_changing_ones_are_not_laid_out():
    on_lpu = lpu(product, resident_argnums=0)
    for scale in (1, 1, 2, 3, 1, 4):
        np.testing.assert_array_equal(on_lpu(W * scale, X), lpu(product)(W * scale, X))
    assert not on_lpu._resident_calls._latest


def test_what_was_laid_out_goes_with_its_arrays():
    on_lpu = lpu(product, resident_argnums=0)
    weights = W + 1
    on_lpu(weights, X)
    (held,) = on_lpu._resident_calls._latest
    assert held.is_in_use
    del weights
    gc.collect()
    assert not held.is_in_use
    np.testing.assert_array_equal(on_lpu(W + 1, X), lpu(product)(W + 1, X))


def test_kinds_of_calls_do_not_mix():
    for options in ({}, {"resident_argnums": 0}):
        on_lpu = lpu(product, **options)
        for x in (X, X[:1], np.asarray(X), X.astype(jnp.float16), X):
            np.testing.assert_array_equal(on_lpu(W, x), lpu(product)(np.asarray(W), np.asarray(x)))
        with pytest.raises(lpu_jax.UnsupportedInputError, match="argument x: float64"):
            on_lpu(W, np.asarray(X, np.float64))
        with pytest.raises(TypeError, match="argument x is 'no'"):
            on_lpu(W, "no")


def test_donated_arguments_are_refused_after_a_short_call():
    on_lpu = lpu(lambda w, x: (x @ w) @ w.T, resident_argnums=0, donate_argnums=1)
    x = X + 0
    on_lpu(W, X + 0)
    on_lpu(W, x)
    with pytest.raises(lpu_jax.arguments.DonatedArgumentError, match="argument x"):
        on_lpu(W, x)


def test_endless_loops_are_refused_by_name_every_time():
    on_lpu = lpu(lambda x: jax.lax.while_loop(lambda y: y > 0, lambda y: y + 1, x), max_trip_count=3)
    np.testing.assert_array_equal(on_lpu(jnp.float32(-1)), -1)
    for _ in range(2):
        with pytest.raises(lpu_jax.runtime.errors.TripCountError):
            on_lpu(jnp.float32(1))


@pytest.mark.parametrize("options", [{}, {"resident_argnums": 0}])
def test_derivatives_and_maps_take_the_long_way(options):
    on_lpu = lpu(product, **options)
    on_lpu(W, X)
    found = jax.grad(lambda x: on_lpu(W, x).sum())(X)
    np.testing.assert_allclose(found, jax.grad(lambda x: product(W, x).sum())(X), atol=1e-2)
    np.testing.assert_array_equal(jax.vmap(on_lpu, (None, 0))(W, X[:, None]), on_lpu(W, X)[:, None])
