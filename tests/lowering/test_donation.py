"""Loop results that take over the storage of a donated loop input, and those that must not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_same_bits

from lpu_jax.lowering.lower import lower_jaxpr
from lpu_jax.lowering.pipeline import compile_graph
from lpu_jax.runtime.chip import TINY
from lpu_jax.runtime.execute import execute


def run(body, stack, donated=True):
    """Compiles a scan of `body` over a donated stack; returns the program and asserts that it keeps the bits."""
    graph = lower_jaxpr(jax.make_jaxpr(lambda c, xs: jax.lax.scan(body, c, xs))(jnp.float32(1.5), stack))
    arguments = [np.float32(1.5), stack]
    compiled = compile_graph(graph, TINY, donated={1: 1} if donated else {})
    outputs, cycles = compiled.simulate(arguments)
    assert cycles == compiled.cycles
    for ours, fast in zip(outputs, execute(graph, arguments), strict=True):
        assert_same_bits(ours, np.asarray(fast))
    return compiled


def stack_of(rows):
    return np.random.default_rng(rows).standard_normal((3, rows, 16)).astype(np.float32)


def is_in_place(compiled):
    """Whether the stacked result lies in the storages of the stacked argument."""
    (argument,) = [b for b in compiled.tile_graph.inputs if b.num_iterations == 3]
    result = compiled.tile_graph.outputs[1]
    return set(result.view.refs[:, 0].tolist()) == set(argument.view.refs[:, 0].tolist())


BODIES = {
    "update": lambda c, x: (c, x * c + 2),
    "backwards": lambda c, x: (c, jnp.flip(x, 0) * c),
    "shift_up": lambda c, x: (c, jnp.concatenate([x[1:], x[:1] * c])),
    "shift_down": lambda c, x: (c, jnp.concatenate([x[:1] * c, x[:-1]])),
    "unchanged": lambda c, x: (c, x),
    "from_the_carry": lambda c, x: (c + 1, jnp.zeros_like(x) + c),
}


@pytest.mark.parametrize("rows", [4, 32])
@pytest.mark.parametrize("name", BODIES)
def test_a_donated_stack_never_changes_the_result(name, rows):
    run(BODIES[name], stack_of(rows))


def test_an_update_element_by_element_is_done_in_place():
    assert is_in_place(run(BODIES["update"], stack_of(32)))
    assert not is_in_place(run(BODIES["update"], stack_of(32), donated=False))


@pytest.mark.parametrize("name", ["backwards", "shift_up", "shift_down"])
def test_moved_rows_are_written_elsewhere(name):
    assert not is_in_place(run(BODIES[name], stack_of(32)))


def test_one_value_may_be_two_results():
    def body(c, x):
        y = x * c
        return c, (y, y)

    stack = stack_of(4)
    graph = lower_jaxpr(jax.make_jaxpr(lambda c, xs: jax.lax.scan(body, c, xs))(jnp.float32(1.5), stack))
    outputs, _ = compile_graph(graph, TINY).simulate([np.float32(1.5), stack])
    for ours, fast in zip(outputs, execute(graph, [np.float32(1.5), stack]), strict=True):
        assert_same_bits(ours, np.asarray(fast))
