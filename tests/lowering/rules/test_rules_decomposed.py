"""Primitives made of others, and products of integers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from on_lpu import assert_machine_agrees

X = np.arange(24, dtype=np.float32).reshape(4, 6) % 7


def equal(found, wanted):
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int32", "uint32", "bool"])
def test_products_of_integers_wrap_as_in_jax(on_lpu, random, dtype):
    low, high = (0, 2) if dtype == "bool" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    a, b = (random.integers(low, high, size, dtype="int64").astype(dtype) for size in ((2, 3, 5), (2, 5, 4)))
    equal(on_lpu(lax.batch_matmul, a, b), lax.batch_matmul(a, b))


def test_products_of_different_dtypes(on_lpu):
    a, b = X.astype(np.int32) - 3, X.T
    equal(on_lpu(lambda a, b: lax.dot(a, b, preferred_element_type=jnp.float32), a, b, precision="highest"), a @ b)
    equal(on_lpu(lambda a: lax.dot(a, a.T, preferred_element_type=jnp.int32), a.astype(np.int16)), a @ a.T)


def test_integer_products_on_the_machine():
    assert_machine_agrees(lambda a: a @ a.T, X.astype(np.int32) * 70_000)


@pytest.mark.parametrize(("start", "dtype"), [(-2, np.int32), (1, np.int8), (-2, np.uint32)])
def test_windows_of_the_last_axis(on_lpu, start, dtype):
    start = np.asarray(start).astype(dtype)

    def fun(x, i):
        taken = lax.dynamic_slice_in_dim(x, i, 3, 1), lax.dynamic_slice(x[0], (i,), (2,))
        put = lax.dynamic_update_slice(x, x[:2, :3] + 10, (i, i)), lax.dynamic_update_slice(x[0], x[1, :2] + 10, (i,))
        return taken, put

    equal(on_lpu(fun, X, start), fun(X, start))


def test_windows_of_the_last_axis_on_the_machine():
    assert_machine_agrees(lambda x, i: lax.dynamic_slice(x, (0, i), (2, 3)), X, np.int32(2))
    assert_machine_agrees(lambda x, i: lax.dynamic_update_slice(x, x[:2, :3] + 10, (0, i)), X, np.int32(2))


def test_a_reduction_of_several_operands(on_lpu):
    def fun(x, places):
        def best(a, b):
            keeps = a[0] >= b[0]
            return jnp.where(keeps, a[0], b[0]), jnp.where(keeps, a[1], b[1])

        return lax.reduce((x, places), (np.float32(-np.inf), np.int32(-1)), best, (1,))

    places = np.broadcast_to(np.arange(6, dtype=np.int32), X.shape)
    equal(on_lpu(fun, X, places), (X.max(1), X.argmax(1)))


@pytest.mark.parametrize("dtype", [np.int8, np.uint16])
def test_index_dtypes(on_lpu, dtype):
    found = on_lpu(lambda x: lax.argmax(x, 1, dtype), X)
    assert found.dtype == dtype
    equal(found, X.argmax(1))


def test_gradients_of_windows(on_lpu):
    def fun(x, y):
        def pool(x):
            return lax.reduce_window(x, -jnp.inf, lax.max, (2, 3), (1, 2), "SAME")

        return jax.vjp(pool, x)[1](y), jax.jvp(pool, (x,), (x * x,))[1]

    y = np.arange(12, dtype=np.float32).reshape(4, 3)
    equal(on_lpu(fun, X, y), fun(X, y))


def test_the_users_own_solver(on_lpu):
    def fun(a, b):
        return lax.custom_linear_solve(lambda x: a * x, b, lambda matvec, b: b / a + 0 * matvec(b))

    equal(on_lpu(fun, X + 1, X), fun(X + 1, X))


def test_approx_top_k_is_exact(on_lpu):
    x = np.random.default_rng(0).permutation(32).astype(np.float32).reshape(2, 16)
    equal(on_lpu(lambda x: lax.approx_max_k(x, 3), x), lax.top_k(x, 3))
    equal(on_lpu(lambda x: lax.approx_min_k(x, 3)[0], x), np.sort(x, 1)[:, :3])


def test_reshape_in_another_order(on_lpu):
    equal(on_lpu(lambda x: lax.reshape(x, (8, 3), (1, 0)), X), X.T.reshape(8, 3))


def test_top_k_orders_nan_by_its_sign_and_zeros_too(on_lpu):
    x = np.array([np.inf, np.nan, -np.nan, 3, -0.0, 0.0, -np.inf], np.float32)
    equal(on_lpu(lambda x: lax.top_k(x, 7)[1], x), lax.top_k(x, 7)[1])
