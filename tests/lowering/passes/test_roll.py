"""roll: layers written out one by one become one loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_same_bits

from lpu_jax.lowering.lower import lower_jaxpr
from lpu_jax.lowering.passes.roll import roll
from lpu_jax.lowering.pipeline import compile_graph
from lpu_jax.runtime.chip import GROQCHIP1
from lpu_jax.runtime.execute import execute
from lpu_jax.runtime.ops import Scan


def layers(x, weights):
    """A stack of residual layers, each with its own weights; every layer's hidden state is a result, too."""
    hidden = []
    for w, b in weights:
        h = jnp.tanh(x @ w + b)
        hidden.append(h)
        x = x + h * jax.nn.sigmoid(x)
    return x, hidden


def lowered(num_layers, function=layers):
    rng = np.random.default_rng(0)
    weights = [
        (rng.standard_normal((24, 24)).astype(np.float32), rng.standard_normal(24).astype(np.float32))
        for _ in range(num_layers)
    ]
    x = rng.standard_normal((2, 24)).astype(np.float32)
    return lower_jaxpr(jax.make_jaxpr(function)(x, weights)), [x, *jax.tree.leaves(weights)]


def scans(graph):
    return [e.op for e in graph.equations if isinstance(e.op, Scan)]


def test_layers_of_one_shape_become_one_loop():
    graph, _ = lowered(6)
    (scan,) = scans(roll(graph))
    assert scan.num_iterations >= 5  # the first layer may keep what all layers share
    assert len(roll(graph).equations) < len(graph.equations)


def test_moves_alone_are_no_loop():
    def windows(x):
        return jnp.stack([x[:, i : i + 4] for i in range(32)], axis=1) + 1.0

    graph = lower_jaxpr(jax.make_jaxpr(windows)(np.ones((2, 40), np.float32)))
    assert roll(graph) is graph


def test_a_rolled_graph_gives_the_same_bits():
    graph, arguments = lowered(4)
    for plain, rolled in zip(execute(graph, arguments), execute(roll(graph), arguments), strict=True):
        assert_same_bits(np.asarray(rolled), np.asarray(plain))


def test_rolled_programs_agree_with_the_unrolled_graph():
    graph, arguments = lowered(4)
    compiled = compile_graph(graph, GROQCHIP1)
    outputs, cycles = compiled.simulate(arguments)
    assert cycles == compiled.cycles
    for ours, fast in zip(outputs, execute(graph, arguments), strict=True):
        assert_same_bits(ours, np.asarray(fast))


@pytest.mark.parametrize("function", [layers, lambda x, weights: layers(x, weights)[0]])
def test_the_schedule_does_not_grow_with_the_layers(function):
    programs = [compile_graph(lowered(n, function)[0], GROQCHIP1) for n in (5, 10)]
    ops = [sum(len(block.ops) for block in p.schedule.blocks) for p in programs]
    assert ops[0] == ops[1]


def test_layers_that_differ_stay_as_they_are():
    def different(x, weights):
        for index, (w, b) in enumerate(weights):
            x = (jnp.tanh if index % 2 else jnp.exp)(x @ w) + b * (index + 2)
        return x

    graph, _ = lowered(3, different)
    assert roll(graph) is graph
