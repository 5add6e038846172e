"""execute_stepwise has the bits of execute, loops, modes and numbers among the operands included."""

import jax
import jax.numpy as jnp
import numpy as np

from lpu_jax.lowering.lower import lower_jaxpr
from lpu_jax.runtime.execute import Mode, execute
from lpu_jax.runtime.stepwise import execute_stepwise

RNG = np.random.default_rng(0)
X, W = (RNG.standard_normal(shape).astype(np.float32) for shape in ((3, 20), (2, 20, 20)))


def model(x, w, unused):
    y, ys = jax.lax.scan(lambda y, m: (jnp.tanh(y @ m), y[0]), x, w)
    return 1 - y, ys, x


def test_the_bits_are_those_of_execute():
    mode = Mode("tile", 16)
    graph = lower_jaxpr(jax.make_jaxpr(model)(X, W, X))
    wanted = jax.jit(lambda *args: execute(graph, args, mode))(X, W, X)
    for found, expected in zip(execute_stepwise(graph, [X, W, X], mode), wanted, strict=True):
        assert np.asarray(found).tobytes() == np.asarray(expected).tobytes()
