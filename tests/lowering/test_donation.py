"""Loop results that take over the storage of a donated loop input, and those that must not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_same_bits

from lpu_jax.lowering.lower import lower_jaxpr
from lpu_jax.lowering.pipeline import compile_graph
from lpu_jax.lowering.tile_ir import ChainOp
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


def with_readers(order):
    """An update in place of a stack that products, a move and a sum read; `order`: before the update, or after it."""

    def body(c, x):
        def read():
            return jnp.sum(x[:1] @ x.T) + jnp.sum(jnp.flip(x, 0)[:1] * 3)

        total = read() if order == "before" else jnp.float32(0)
        y = x * c + 2
        total = read() if order == "after" else total
        return c + total, y

    return body


def own_reader(c, x):
    """The update itself reads another row than the one it writes."""
    return c, x * jnp.flip(x, 0)


BODIES = {
    "read_before": with_readers("before"),
    "read_after": with_readers("after"),
    "own_reader": own_reader,
    "moved_to_the_carry": lambda c, x: (c + x[0, 0], x * 2),
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


def test_readers_of_the_old_content_come_before_the_update_or_get_a_copy():
    assert is_in_place(run(BODIES["read_before"], stack_of(32)))
    assert not is_in_place(run(BODIES["read_after"], stack_of(32)))


def test_a_product_of_the_old_content_may_be_asked_for_late():
    def body(c, x):
        product = jax.lax.dot(jnp.ones((1, 32), np.float16), x, preferred_element_type=jnp.float32)
        y = x * c.astype(np.float16) + np.float16(2)
        return c + jnp.sum(jnp.flip(y, 0)[:1].astype(np.float32)) + jnp.sum(product), y

    assert is_in_place(run(body, stack_of(32).astype(np.float16)))


def test_elements_are_replaced_in_place_by_one_chain():
    """Only those who read the old content are emitted before the update; what the update is made of is not."""

    def body(c, x):
        product = jax.lax.dot(jnp.ones((1, 32), np.float16), x, preferred_element_type=jnp.float32)
        return c + jnp.sum(product), jnp.where(np.arange(16) == 3, c.astype(np.float16), x)

    compiled = run(body, stack_of(32).astype(np.float16))
    assert is_in_place(compiled)
    ops = [op for block in compiled.tile_graph.blocks for op in block.ops if isinstance(op, ChainOp)]
    assert any({"mask", "mask_bar", "or"} <= {step.function for step in op.steps} for op in ops)


@pytest.mark.parametrize("name", ["backwards", "shift_up", "shift_down", "own_reader"])
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
