"""Calls are inlined; scans loop; scans in scans are unrolled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from on_lpu import assert_machine_agrees

from lpu_jax.runtime.errors import UnsupportedPrimitiveError
from lpu_jax.runtime.ops import Elementwise, Scan, While

XS = np.arange(12, dtype=np.float32).reshape(4, 3)


@jax.custom_vjp
def _twice(x):
    return x * 2


_twice.defvjp(lambda x: (x * 2, None), lambda _, g: (g * 2,))


@jax.custom_jvp
def _thrice(x):
    return x * 3


_thrice.defjvp(lambda primals, tangents: (primals[0] * 3, tangents[0] * 3))


@pytest.mark.parametrize(
    "wrap", [jax.jit, jax.checkpoint, lambda f: jax.jit(jax.jit(f)), lambda f: lambda x: _twice(f(x)) + _thrice(x)]
)
def test_a_call_is_inlined(on_lpu, lowered, wrap):
    fun = wrap(lambda x: x + 1)
    assert all(isinstance(e.op, Elementwise) for e in lowered(fun, XS).equations)
    np.testing.assert_array_equal(on_lpu(fun, XS), fun(XS))


@pytest.mark.parametrize("reverse", [False, True])
def test_scan_equals_jax(on_lpu, lowered, reverse):
    def fun(bias, start, xs):
        def step(c, x):
            return c + x * bias, (c * 2, x)

        return lax.scan(step, start, xs, reverse=reverse)

    args = (np.float32(2), np.ones(3, np.float32), XS)
    assert [e.op.num_iterations for e in lowered(fun, *args).equations if isinstance(e.op, Scan)] == [4]
    for a, b in zip(jax.tree.leaves(on_lpu(fun, *args)), jax.tree.leaves(fun(*args)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", [np.float16, np.int32, np.int8, bool])
def test_a_scan_carries_and_stacks_every_dtype(on_lpu, dtype):
    xs = (XS % 3).astype(dtype)

    def fun(xs):
        return lax.scan(lambda c, x: (x, c), xs[0], xs)

    for a, b in zip(on_lpu(fun, xs), fun(xs), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_scan_without_xs_and_one_over_a_constant(on_lpu):
    def fun(x):
        y, _ = lax.scan(lambda c, _: (c * 2, None), x, None, length=5)
        return lax.scan(lambda c, i: (c + i.astype(jnp.float32), i), y, jnp.arange(3))

    for a, b in zip(on_lpu(fun, XS), fun(XS), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("length", [0, 1])
def test_a_short_scan_is_unrolled(on_lpu, lowered, length):
    def fun(x, xs):
        return lax.scan(lambda c, r: (c + r, c), x, xs)

    args = (XS[0], XS[:length])
    assert not any(isinstance(e.op, Scan) for e in lowered(fun, *args).equations)
    for a, b in zip(on_lpu(fun, *args), fun(*args), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_scan_in_a_scan_is_unrolled(on_lpu, lowered):
    def fun(xs):
        def step(c, x):
            return lax.scan(lambda d, y: (d + y, d * y), c, jnp.stack([x, x + 1, x * 2]), reverse=True)

        return lax.scan(step, xs[0], xs)

    assert [type(e.op) for e in lowered(fun, XS).equations].count(Scan) == 1
    for a, b in zip(on_lpu(fun, XS), fun(XS), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_host_starts_the_turns_around_a_long_scan(on_lpu, lowered):
    def fun(xs):
        def step(c, x):
            d, _ = lax.scan(lambda d, _: (d + x, None), c, None, length=65)
            return d, (c, x)

        return lax.scan(step, xs[0], xs, reverse=True)

    (loop,) = [e.op for e in lowered(fun, XS).equations if isinstance(e.op, While)]
    assert loop.max_trip_count == 4
    assert [e.op.num_iterations for e in loop.body.equations if isinstance(e.op, Scan)] == [65]
    for a, b in zip(jax.tree.leaves(on_lpu(fun, XS)), jax.tree.leaves(fun(XS)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_known_constants_go_into_the_body(lowered):
    mask = jnp.arange(3) % 2

    def fun(xs):
        return lax.scan(lambda c, x: (c + x * mask, None), xs[0], xs)[0]

    (scan,) = [e.op for e in lowered(fun, XS).equations if isinstance(e.op, Scan)]
    assert scan.num_consts == 0
    assert len(scan.body.constants) == 1


def test_layers_scanned_over_stacked_weights(on_lpu, random):
    weights = random.normal(size=(3, 4, 4)).astype(np.float32)

    def loop(w, x):
        return lax.scan(lambda h, wi: (jnp.tanh(h @ wi), None), x, w)[0]

    def flat(w, x):
        for i in range(3):
            x = jnp.tanh(x @ w[i])
        return x

    x = random.normal(size=(2, 4)).astype(np.float32)
    np.testing.assert_array_equal(on_lpu(loop, weights, x), on_lpu(flat, weights, x))


@pytest.mark.parametrize("dtype", [np.float32, np.uint32, bool])
def test_cond_and_switch_equal_jax(on_lpu, dtype):
    xs = XS.astype(dtype)

    def fun(i, x):
        two = lax.cond(i > 1, lambda x: (x, x[0]), lambda x: (jnp.zeros_like(x), x[1]), x)
        return two, lax.switch(i, [lambda x: x, lambda x: x[::-1], lambda x: jnp.ones_like(x)], x)

    for i in (-1, 0, 1, 2, 9):
        pairs = zip(jax.tree.leaves(on_lpu(fun, np.int32(i), xs)), jax.tree.leaves(fun(i, xs)), strict=True)
        for actual, wanted in pairs:
            np.testing.assert_array_equal(actual, wanted)


def test_a_missing_primitive_in_a_branch_is_told(lowered):
    def fun(x):
        return lax.cond(x[0, 0] > 0, lambda x: lax.zeta(x, x), lambda x: x, x)

    with pytest.raises(UnsupportedPrimitiveError, match="'zeta'"):
        lowered(fun, XS)


def test_cond_on_the_machine():
    assert_machine_agrees(lambda x: lax.cond(x[0, 0] > 1, lambda x: x * 2, lambda x: x - 1, x), XS)


@pytest.mark.parametrize("shape", [(20,), (6, 1), (5, 2)])
def test_a_scan_over_rows_that_share_a_vector_on_the_machine(shape):
    x = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    assert_machine_agrees(lambda x: lax.scan(lambda c, r: (jnp.maximum(c, r), c + r), x[0], x * 2 + 1), x)
