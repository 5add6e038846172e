"""Random JAX programs over mixed dtypes, with control flow: machine and executor agree in bits, turns and cycles.

Integers and flags must also equal plain JAX. LPU_JAX_RANDOM_PROGRAMS=10000 in the environment draws so many of them,
other ones in every run.
"""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
from helpers import jitted_counted
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from jax import lax

from lpu_jax.lowering.lower import lower_jaxpr
from lpu_jax.lowering.pipeline import compile_graph
from lpu_jax.runtime.chip import TINY as tiny
from lpu_jax.runtime.errors import SramOverflowError

CROWDED = dataclasses.replace(tiny, num_addresses_per_bank=32)
"""So little SRAM that values take over addresses of others."""
IN_CI = 20
COUNT = int(os.environ.get("LPU_JAX_RANDOM_PROGRAMS", str(IN_CI)))
FLOATS = (np.float32, np.float16, jnp.bfloat16)
INTEGERS = (np.int32, np.int8, np.uint8, np.int16, np.uint16, np.uint32, np.bool_)
SHAPES = ((), (3,), (2, 3), (20,), (3, 2, 2), (1, 17))

BINARY = {
    "f": (jnp.add, jnp.subtract, jnp.multiply, jnp.maximum, lax.min, lambda x, y: jnp.where(x < y, x, -y)),
    "i": (jnp.add, jnp.multiply, jnp.bitwise_xor, jnp.minimum, lambda x, y: jnp.where(x > y, x, y * 2)),
    "b": (jnp.logical_and, jnp.logical_xor, lambda x, y: x != y),
}
UNARY = {
    "f": (
        jnp.abs,
        jnp.tanh,
        lax.floor,
        lambda x: x * 0.5 - 1,
        lambda x: jnp.flip(x),
        lambda x: x.T,
        lambda x: jnp.broadcast_to(x.sum(), x.shape),
        lambda x: x - x.max(),
        lambda x: lax.exp(-lax.abs(x)),
        lambda x: jnp.cumsum(x).reshape(x.shape).astype(x.dtype),
    ),
    "i": (
        lambda x: x >> 1,
        lambda x: x * 3 + 1,
        lambda x: jnp.flip(x),
        lambda x: jnp.sort(x, axis=None).reshape(x.shape),
        lambda x: jnp.broadcast_to(x.max(), x.shape),
        lambda x: jnp.roll(x, 1),
        lambda x: lax.population_count(x),
        lambda x: jnp.broadcast_to(jnp.argmax(x), x.shape).astype(x.dtype),
    ),
    "b": (jnp.logical_not, lambda x: jnp.flip(x), lambda x: jnp.broadcast_to(x.all(), x.shape)),
}


def kind(x):
    return "b" if x.dtype == np.bool_ else "f" if jnp.issubdtype(x.dtype, jnp.floating) else "i"


@st.composite
def programs(draw):
    """(list of choices that a program makes, dtypes and shapes of its arguments); every third has integers alone."""
    dtypes = INTEGERS if draw(st.integers(0, 2)) == 0 else (*FLOATS, *INTEGERS)
    arguments = draw(st.lists(st.tuples(st.sampled_from(dtypes), st.sampled_from(SHAPES)), min_size=2, max_size=4))
    choice = st.tuples(st.integers(0, 12), st.integers(0, 99), st.integers(0, 99))
    steps = draw(st.lists(choice, min_size=5, max_size=40))
    return steps, arguments, draw(st.integers(0, 2**31))


def step(values, what, first, second):
    """One more value, made of earlier ones."""
    x, y = values[first % len(values)], values[second % len(values)]
    if what <= 3:
        y = jnp.broadcast_to(y.reshape(-1)[0], x.shape) if x.shape != y.shape else y
        operations = BINARY[kind(x)]
        return operations[(first + second) % len(operations)](x, y.astype(x.dtype))
    if what <= 5:
        operations = UNARY[kind(x)]
        return operations[second % len(operations)](x)
    if what == 6:
        dtypes = FLOATS if kind(x) == "f" else INTEGERS
        return x.astype(dtypes[second % len(dtypes)])
    if what == 10:  # a row or element at an index that is computed
        table, index = y.reshape(-1, y.shape[-1]) if y.ndim > 1 else y.reshape(-1), jnp.ravel(x != 0).sum() - 1
        return table[index]
    if what == 11:
        index = jnp.ravel(x != 0).sum()
        return y.reshape(-1).at[index].set(y.reshape(-1)[0]).reshape(y.shape)
    if what == 12:
        matrix = y.reshape(-1, y.shape[-1]) if y.ndim else y.reshape(1, 1)
        return matrix @ matrix.T if kind(y) != "b" else jnp.concatenate([matrix, matrix])
    is_high = (x > 0).any() if kind(x) != "b" else x.any()
    if what == 7:
        return lax.cond(is_high, lambda y: y, lambda y: jnp.flip(y), y)
    if what == 8:
        return lax.fori_loop(0, (first + second) % 4 + is_high.astype(jnp.int32), lambda i, y: jnp.flip(y), y)
    carry, rows = lax.scan(lambda c, r: (jnp.maximum(c, r), c), y.reshape(-1)[0], y.reshape(-1))
    return rows if y.shape == rows.shape else carry


def run(steps, *arguments):
    values = list(arguments)
    for what, first, second in steps:
        values.append(step(values, what, first, second))
    return values[len(arguments) :]


def sample(random, dtype, shape):
    if dtype == np.bool_:
        return random.integers(0, 2, shape).astype(dtype)
    if dtype in FLOATS:
        return (random.normal(size=shape) * 4).astype(dtype)
    return random.integers(-40, 40, shape).astype(dtype)


def compiled_for(graph, chip):
    """The program, for the chip with more SRAM if it does not fit."""
    try:
        return compile_graph(graph, chip)
    except SramOverflowError:
        return compile_graph(graph, tiny)


# Without shrinking, which takes minutes: the program that fails is printed and can be made smaller by hand.
@settings(
    max_examples=COUNT,
    deadline=None,
    derandomize=COUNT == IN_CI,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)
@given(programs())
def test_random_programs(program):
    steps, described, seed = program
    random = np.random.default_rng(seed)
    arguments = [np.asarray(sample(random, dtype, shape)) for dtype, shape in described]
    traced = jax.make_jaxpr(lambda *xs: run(steps, *xs))(*arguments)
    graph = lower_jaxpr(traced)
    held = [x.astype(graph.avals[v].dtype) for x, v in zip(arguments, graph.inputs, strict=True)]
    results, counts, _ = jitted_counted(graph, held)
    compiled = compiled_for(graph, CROWDED if seed % 2 else tiny)
    ran = compiled.run(held)
    for actual, ours in zip(ran.outputs, results, strict=True):
        assert np.asarray(actual).tobytes() == np.asarray(ours).tobytes()
    assert ran.trip_counts == tuple(int(n) for n in counts)
    assert ran.cycles == compiled.cycles_taken(ran.trip_counts)
    if all(dtype not in FLOATS for dtype, _ in described):
        for ours, wanted in zip(results, jax.jit(lambda *xs: run(steps, *xs))(*arguments), strict=True):
            np.testing.assert_array_equal(np.asarray(ours).astype(wanted.dtype), wanted)
