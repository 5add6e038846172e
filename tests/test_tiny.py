"""Small programs from a JAX function to the machine, on a chip of 16 lanes: the answer is that of JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lpu_jax.chips import tiny
from lpu_jax.lowering.lower import lower_jaxpr
from lpu_jax.lowering.pipeline import compile_graph

RNG = np.random.default_rng(0)
X, Y = (RNG.standard_normal((3, 20)).astype(np.float32) for _ in range(2))
COUNTS, STEPS = (RNG.integers(-7, 8, shape).astype(np.float32) for shape in ((3, 18), (18, 5)))
INDEX = np.array([2, 0], np.int32)


def compiled(fun, *args):
    return compile_graph(lower_jaxpr(jax.make_jaxpr(fun)(*args)), tiny)


def update(table, row, index):
    return lax.dynamic_update_slice(table, row, (index, jnp.int32(0)))


def running_sum(x):
    return lax.scan(lambda total, row: (total + row, total * row), jnp.zeros(x.shape[1], x.dtype), x)


# Exact: every operation is rounded once as in IEEE 754, or moves bits, or works on integers that fp16 holds.
EXACT = {
    "add_and_scale": (lambda x, y: (x + y) * 0.5, X, Y),
    "select_and_count": (lambda x, y: jnp.where(x < y, x, -y).astype(jnp.int32) + 3, X, Y),
    "transpose_and_reverse": (lambda x: jnp.concatenate([x.T[::-1], x.T], axis=1), X),
    "perceptron": (lambda x, w: jax.nn.relu(x @ w - 2.0) @ w.T[:5, :3], COUNTS, STEPS),
    "row_maximum_and_its_place": (lambda x: (x.max(axis=1), jnp.argmax(x, axis=1)), X),
    "loop": (running_sum, COUNTS),
    "look_up": (lambda table, index: table.at[index].get(mode="promise_in_bounds"), X, INDEX),
    "replace_row": (update, X, Y[:1], np.int32(1)),
}

# The LPU rounds sums and functions once and flushes subnormals; XLA rounds every partial sum: 20 of them at most.
ROUNDED = {
    "softmax": (lambda x: jax.nn.softmax(x, axis=-1), X),
    "norm": (lambda x, y: x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-5) * y, X, Y),
}


def run(fun, *args):
    """(leaves of the machine's results, those of XLA); the machine takes the cycles that were predicted."""
    program = compiled(fun, *args)
    outputs, cycles = program.simulate([np.asarray(a) for a in args])
    assert cycles == program.cycles
    return outputs, [np.asarray(leaf) for leaf in jax.tree.leaves(jax.jit(fun)(*args))]


@pytest.mark.parametrize("name", EXACT)
def test_exact_program_equals_jax(name):
    for actual, expected in zip(*run(*EXACT[name]), strict=True):
        assert actual.dtype == expected.dtype
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("name", ROUNDED)
def test_rounded_program_is_close_to_jax(name):
    for actual, expected in zip(*run(*ROUNDED[name]), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=20 * 2.0**-24, atol=2.0**-24)


def test_every_further_row_costs_one_cycle():
    few, many = (compiled(lambda x: x + 1.0, np.zeros((rows, 16), np.float32)).cycles for rows in (3, 11))
    assert many - few == 8


def test_a_program_without_work_takes_no_instruction():
    assert compiled(lambda x: x.reshape(3, 2, 10).transpose(1, 0, 2)[::-1], X.reshape(6, 10)).program.num_rows == 0
