"""Scatters equal JAX: inside and outside the operand, distinct or not."""

import jax.numpy as jnp
import numpy as np
import pytest
from on_lpu import assert_machine_agrees

TABLE = np.arange(24, dtype=np.float32).reshape(6, 4)
INDEX = np.array([2, -9, 5, 2, 7], np.int32)
DISTINCT = np.array([4, 0, 9, 1, 3], np.int32)
OPS = ("set", "add", "multiply", "min", "max")


@pytest.mark.parametrize("mode", ["drop", "clip", "promise_in_bounds"])
@pytest.mark.parametrize("op", OPS)
def test_rows_that_may_repeat(on_lpu, random, op, mode):
    rows = random.integers(-5, 30, size=(5, 4)).astype(np.float32)

    def fun(t, i, r):
        return getattr(t.at[i], op)(r, mode=mode)

    wanted = fun(jnp.asarray(TABLE), INDEX, rows)
    np.testing.assert_array_equal(on_lpu(lambda t, i, r: fun(t, i, r), TABLE, INDEX, rows), wanted)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
@pytest.mark.parametrize("op", OPS)
def test_distinct_rows_and_elements(on_lpu, random, op, dtype):
    rows, table = random.integers(-5, 30, size=(5, 4)).astype(dtype), TABLE.astype(dtype)

    def fun(t, i, r):
        by_row = getattr(t.at[i], op)(r, unique_indices=True)
        return by_row, getattr(t.at[i, i % 4], op)(r[:, 0], unique_indices=True), getattr(t.at[:, i[1]], op)(5)

    for a, b in zip(on_lpu(fun, table, DISTINCT, rows), fun(jnp.asarray(table), DISTINCT, rows), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("mode", ["drop", "clip", "promise_in_bounds"])
@pytest.mark.parametrize("op", OPS)
def test_one_row_inside_or_outside(on_lpu, op, mode):
    def fun(t, i):
        return getattr(t.at[i], op)(7, mode=mode), getattr(t.at[:, i], op)(-1, mode=mode)

    for i in (np.int32(3), np.int32(6)):
        for a, b in zip(on_lpu(fun, TABLE, i), fun(jnp.asarray(TABLE), i), strict=True):
            np.testing.assert_array_equal(a, b)


def test_machine_equals_runtime(random):
    rows = random.normal(size=(5, 4)).astype(np.float32)
    assert_machine_agrees(lambda t, i, r: t.at[i].add(r, unique_indices=True), TABLE, DISTINCT, rows)
    assert_machine_agrees(lambda t, i, r: t.at[i].add(r), TABLE, INDEX, rows)
    assert_machine_agrees(lambda t, i: t.at[i].add(t[0]), TABLE, np.int32(6))
