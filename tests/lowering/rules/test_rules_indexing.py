"""Indexing at run time against JAX: exact, also for indices out of bounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lpu_jax.runtime.ops import ScatterRows, Slice

TABLE = np.arange(6 * 4, dtype=np.float32).reshape(6, 4) - 7
CUBE = np.arange(2 * 5 * 3 * 4, dtype=np.float32).reshape(2, 5, 3, 4)


@pytest.mark.parametrize("mode", ["fill", "clip", "wrap"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int32])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_take_equals_jax(on_lpu, random, mode, dtype, shape):
    index = random.integers(-9, 9, size=shape, dtype=np.int32)
    table = TABLE.astype(dtype)

    def take(t, i):
        return jnp.take(t, i, axis=0, mode=mode)

    np.testing.assert_array_equal(on_lpu(take, table, index), take(table, index))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_take_along_any_axis(on_lpu, random, axis):
    index = random.integers(0, 2, size=(3,), dtype=np.int32)
    wanted = np.take(CUBE[0], index, axis=axis)
    np.testing.assert_array_equal(on_lpu(lambda t, i: jnp.take(t, i, axis=axis), CUBE[0], index), wanted)


def test_rows_by_negative_index(on_lpu):
    index = np.array([-1, 0, 2], np.int32)
    np.testing.assert_array_equal(on_lpu(lambda t, i: t[i], TABLE, index), TABLE[index])
    np.testing.assert_array_equal(on_lpu(lambda t, i: t[i], TABLE, np.int32(-2)), TABLE[-2])


GATHERS = {
    "take_along_axis": lambda t, i: jnp.take_along_axis(t, i, axis=1),
    "several axes": lambda t, i: t[i[:, 0], i[:, 1]],
    "windows": lambda t, i: jax.vmap(lambda a: lax.dynamic_slice(t, (a[0], a[1]), (2, 3)))(i),
    "batched": lambda t, i: jax.vmap(lambda row, k: row[k])(t, i),
    "clip": lambda t, i: t.at[i[:, 0], i[:, 1]].get(mode="clip"),
    "fill": lambda t, i: t.at[:, i[:, 1]].get(mode="fill", fill_value=3),
}


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
@pytest.mark.parametrize("name", list(GATHERS))
def test_a_gather_equals_jax(on_lpu, random, name, dtype):
    index, table = random.integers(-7, 7, size=(6, 2), dtype=np.int32), TABLE.astype(dtype)
    np.testing.assert_array_equal(on_lpu(GATHERS[name], table, index), GATHERS[name](jnp.asarray(table), index))


SLICES = [
    ((6, 4), (2, 4)), ((6, 4), (1, 4)), ((6, 4), (6, 1)), ((6, 4), (3, 1)), ((2, 5, 3, 4), (2, 2, 3, 4)),
    ((2, 5, 3, 4), (1, 2, 2, 4)), ((2, 5, 3, 4), (2, 5, 1, 4)), ((2, 5, 3, 4), (1, 1, 1, 1)), ((7,), (1,)),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "sizes"), SLICES)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int32, np.int8, bool])
def test_dynamic_slice_clamps_as_jax(on_lpu, random, shape, sizes, dtype):
    x = random.integers(-50, 50, size=shape).astype(dtype)
    for start in (0, 1, 3, 100, -4):
        starts = [np.int32(start + i) for i in range(len(shape))]
        wanted = lax.dynamic_slice(x, starts, sizes)
        np.testing.assert_array_equal(on_lpu(lambda x, *s: lax.dynamic_slice(x, s, sizes), x, *starts), wanted)


def test_dynamic_slice_with_constant_starts_is_a_slice(lowered):
    graph = lowered(lambda x: lax.dynamic_slice(x, (2, 1), (2, 2)), TABLE)
    assert [type(e.op) for e in graph.equations] == [Slice]


UPDATES = [
    ((6, 4), (2, 4)), ((6, 4), (1, 4)), ((6, 4), (6, 1)), ((6, 4), (6, 4)), ((2, 5, 3, 4), (2, 1, 3, 4)),
    ((2, 5, 3, 4), (1, 2, 2, 4)), ((2, 5, 3, 4), (2, 5, 3, 1)), ((1, 8, 2, 4), (1, 1, 2, 4)), ((7,), (1,)),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "sizes"), UPDATES)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int32, np.int8])
def test_dynamic_update_slice_clamps_as_jax(on_lpu, random, shape, sizes, dtype):
    x, update = (random.integers(-50, 50, size=s).astype(dtype) for s in (shape, sizes))
    for start in (0, 1, 3, 100, -4):
        starts = [np.int32(start + i) for i in range(len(shape))]
        wanted = lax.dynamic_update_slice(x, update, starts)
        np.testing.assert_array_equal(
            on_lpu(lambda x, u, *s: lax.dynamic_update_slice(x, u, s), x, update, *starts), wanted
        )


@pytest.mark.parametrize("starts", [(0, 0), (2, 1), (4, 2), (9, -3)])
def test_an_update_at_constant_starts_is_a_concatenation(on_lpu, lowered, starts):
    update = np.full((2, 2), 100, np.float32)

    def replace(x, u):
        return lax.dynamic_update_slice(x, u, starts)

    assert not any(isinstance(e.op, ScatterRows) for e in lowered(replace, TABLE, update).equations)
    np.testing.assert_array_equal(on_lpu(replace, TABLE, update), replace(TABLE, update))


def test_a_cache_update_scatters_rows_of_whole_trailing_axes(lowered):
    cache, row = np.zeros((1, 16, 3, 64), np.float16), np.ones((1, 1, 3, 64), np.float16)
    graph = lowered(lambda c, r, p: lax.dynamic_update_slice(c, r, (0, p, 0, 0)), cache, row, np.int32(3))
    (scatter,) = [e for e in graph.equations if isinstance(e.op, ScatterRows)]
    assert graph.avals[scatter.operands[0]].shape == (16, 3, 64)
    assert graph.avals[scatter.operands[2]].shape == (1,)


def test_indexing_in_a_loop_over_positions(on_lpu):
    def count(x):
        def step(c, i):
            return lax.dynamic_update_index_in_dim(c, x[i] * 2, i, 0), c[i]

        return jax.lax.scan(step, jnp.zeros((6, 4)), jnp.arange(6))

    for a, b in zip(on_lpu(count, TABLE), count(jnp.asarray(TABLE)), strict=True):
        np.testing.assert_array_equal(a, b)
