"""Moves at the edges of a graph: the host does them, bits stay, and what others need stays on the chip."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Sketch

from lpu_jax import lpu
from lpu_jax.chips import tiny
from lpu_jax.lowering.edges import split_edges
from lpu_jax.runtime.execute import execute
from lpu_jax.runtime.ops import Elementwise, Reshape, Reverse, Slice, Transpose


def ops(graph):
    return [type(e.op) for e in graph.equations]


def test_ordering_moves_leave_the_chip_and_bits_stay():
    s = Sketch()
    x = s.random((3, 5))
    y = s.fn("neg", s.op(Reverse((0,)), s.op(Transpose((1, 0)), x, shape=(5, 3)), shape=(5, 3)))
    graph = s.build((s.op(Reshape(), s.op(Transpose((1, 0)), y, shape=(3, 5)), shape=(15,)),))
    edges = split_edges(graph)
    assert ops(edges.graph) == [Elementwise]
    found = edges.leave([np.asarray(r) for r in execute(edges.graph, edges.enter(s.arguments))])
    np.testing.assert_array_equal(found[0], np.asarray(execute(graph, s.arguments)[0]))


def test_what_others_use_and_what_was_donated_stays():
    s = Sketch()
    x = s.random((3, 5))
    turned = s.op(Transpose((1, 0)), x, shape=(5, 3))
    graph = s.build((s.fn("neg", x), turned))
    assert ops(split_edges(graph).graph).count(Elementwise) == 1
    assert ops(split_edges(graph).graph).count(Transpose) == 0  # as a result it is the host's
    s = Sketch()
    x = s.random((3, 5))
    turned = s.op(Transpose((1, 0)), x, shape=(5, 3))
    graph = s.build((s.fn("neg", turned), s.fn("neg", x)))
    assert Transpose in ops(split_edges(graph).graph)
    s = Sketch()
    graph = s.build((s.fn("neg", s.op(Transpose((1, 0)), s.random((3, 5)), shape=(5, 3))),))
    assert Transpose not in ops(split_edges(graph).graph)
    assert Transpose in ops(split_edges(graph, kept_inputs={0}).graph)


def test_moves_that_drop_elements_stay():
    s = Sketch()
    x = s.op(Slice((0, 0), (2, 5), (1, 1)), s.random((3, 5)), shape=(2, 5))
    assert ops(split_edges(s.build((s.fn("neg", x),))).graph) == [Slice, Elementwise]


@pytest.mark.parametrize(
    "function", [lambda x: x.T, lambda x: x.T * 2, lambda x: (x * 2).T, lambda x: (x.T @ x).reshape(-1), lambda x: x]
)
def test_programs_without_their_edges_agree_with_the_call(function):
    x = jnp.arange(15.0).reshape(3, 5)
    compiled = lpu(function, chip=tiny).lower(x).compile()
    outputs, cycles = compiled.simulate(x)
    np.testing.assert_array_equal(outputs, compiled(x))
    assert cycles == compiled.cycles


def test_a_transposed_argument_costs_no_cycles():
    x = jnp.ones((3, 5))
    plain, turned = (
        lpu(f, chip=tiny).lower(x).compile().cycles for f in (lambda x: jnp.exp(x), lambda x: jnp.exp(x.T).T)
    )
    assert abs(turned - plain) <= 2  # five vectors in place of three
