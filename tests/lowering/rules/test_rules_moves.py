"""Moves against NumPy and JAX: exact."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lpu_jax.runtime.ops import Reshape

X = np.arange(3 * 5 * 7, dtype=np.float32).reshape(3, 5, 7)
MOVES = {
    "reshape": lambda x: x.reshape(15, 7),
    "reshape to a vector": lambda x: x.reshape(-1),
    "transpose": lambda x: x.transpose(2, 0, 1),
    "expand and squeeze": lambda x: jnp.squeeze(x[:, None, :, :, None], axis=1),
    "expand_dims": lambda x: lax.expand_dims(x, (0, 3)),
    "slice": lambda x: x[1:3, ::2, 3:],
    "slice with a stride": lambda x: lax.slice(x, (0, 1, 0), (3, 5, 7), (2, 3, 2)),
    "concatenate": lambda x: jnp.concatenate([x, x[:, :1], x[:, 2:]], axis=1),
    "concatenate with a constant": lambda x: jnp.concatenate([x, jnp.zeros((3, 5, 2))], axis=2),
    "rev": lambda x: lax.rev(x, (0, 2)),
    "flip": lambda x: x[::-1],
    "split": lambda x: jnp.split(x, [1, 4], axis=1),
    "stack": lambda x: jnp.stack([x, x + 1], axis=1),
    "unstack": lambda x: jnp.unstack(x, axis=1),
    "tile": lambda x: jnp.tile(x, (2, 1, 3)),
    "repeat": lambda x: jnp.repeat(x, 2, axis=1),
    "broadcast": lambda x: jnp.broadcast_to(x[:, :1], (2, 3, 5, 7)),
    "broadcast_in_dim": lambda x: lax.broadcast_in_dim(x, (3, 2, 5, 7), (0, 2, 3)),
    "pad": lambda x: jnp.pad(x, ((0, 1), (2, 0), (1, 1)), constant_values=3),
    "pad with negative widths": lambda x: lax.pad(x, jnp.ones((), x.dtype), ((0, 0, 0), (-1, 2, 0), (1, -2, 0))),
    "roll": lambda x: jnp.roll(x, 2, axis=2),
    "tril": lambda x: jnp.tril(x),
    "swapaxes": lambda x: jnp.swapaxes(x, 0, 1),
    "copy": lambda x: lax.stop_gradient(x.copy()),
    "scalar of a vector": lambda x: x[0, 1, 2],
}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int32])
@pytest.mark.parametrize("name", list(MOVES))
def test_a_move_equals_jax(on_lpu, name, dtype):
    x = X.astype(dtype)
    result, wanted = on_lpu(MOVES[name], x), MOVES[name](jnp.asarray(x))
    for a, b in zip(*[r if isinstance(r, list | tuple) else [r] for r in (result, wanted)], strict=True):
        np.testing.assert_array_equal(a, b)


def test_moving_an_axis_of_size_one_is_a_reshape(lowered):
    graph = lowered(lambda x: x.transpose(1, 0, 2), np.ones((1, 5, 7), np.float32))
    assert [e.op for e in graph.equations] == [Reshape()]


def test_reshapes_that_undo_each_other_are_nothing(lowered):
    graph = lowered(lambda x: x.reshape(35, 3).reshape(3, 5, 7), X)
    assert not graph.equations


def test_a_large_iota_is_a_broadcast_of_one_axis(lowered, on_lpu):
    graph = lowered(lambda: lax.broadcasted_iota(jnp.int32, (300, 400), 1))
    assert [array.shape for _, array in graph.constants] == [(400,)]
    wanted = np.broadcast_to(np.arange(400, dtype=np.int32), (300, 400))
    np.testing.assert_array_equal(on_lpu(lambda: lax.broadcasted_iota(jnp.int32, (300, 400), 1)), wanted)


@pytest.mark.parametrize("value", [2.0, None])
@pytest.mark.parametrize("config", [((0, 0, 1), (1, -1, 2), (-1, 0, 0)), ((2, -3, 0), (0, 0, 3), (0, 1, 1))])
def test_padding_between_elements_and_with_a_run_time_value(on_lpu, config, value):
    def fun(x):
        return lax.pad(x, x[0, 0, 1] if value is None else jnp.asarray(value, x.dtype), config)

    np.testing.assert_array_equal(on_lpu(fun, X), fun(X))
