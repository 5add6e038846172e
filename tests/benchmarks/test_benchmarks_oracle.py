"""The oracle is never worse than the list schedule, its bound holds, its schedules pass verifier and machine."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("ortools")

import jax.numpy as jnp
import oracle
from programs import Shape, random_arguments

import lpu_jax
from lpu_jax.lowering.passes.emit import emit
from lpu_jax.lowering.passes.schedule import Schedule
from lpu_jax.lowering.passes.schedule_checks import verify_schedule


def compiled(rows=3):
    function = lpu_jax.lpu(lambda x, y: (x * y) @ y.T + 1.0)
    arguments = (Shape((rows, 16), jnp.float32), Shape((rows, 16), jnp.float32))
    return function.lower(*arguments).compile(), arguments


@pytest.fixture(scope="module")
def improved():
    made, arguments = compiled()
    blocks = made.compiled_graph.schedule.blocks
    return made, arguments, blocks, [oracle.improve(made.compiled_graph.allocated, block, 5) for block in blocks]


def test_the_oracle_is_between_its_bound_and_the_list_schedule(improved):
    _, _, blocks, found = improved
    for old, (new, bound, optimal) in zip(blocks, found, strict=True):
        assert bound <= new.period_cycles <= old.period_cycles
        assert not optimal or new.period_cycles == bound


def test_its_schedule_is_a_program_with_the_same_bits(improved):
    made, arguments, _, found = improved
    graph = made.compiled_graph
    plan = Schedule(allocated=graph.allocated, blocks=tuple(block for block, _, _ in found))
    verify_schedule(plan)
    better = dataclasses.replace(graph, schedule=plan, program=emit(plan))
    values = [np.asarray(x) for x in random_arguments(arguments)]
    old, _ = graph.simulate(values)
    new, cycles = better.simulate(values)
    assert cycles == better.cycles
    assert [x.tobytes() for x in new] == [x.tobytes() for x in old]


def test_waits_hold_in_every_list_schedule():
    graph = compiled(5)[0].compiled_graph
    checked = 0
    for block in graph.schedule.blocks:
        for second, op in enumerate(block.ops):
            for first in block.ops[:second]:
                wait = oracle.waits(graph.allocated, first, op)
                if wait is not None:
                    assert op.time_zero >= first.time_zero + wait
                    checked += 1
    assert checked
