"""The slack that the report gives an op is what the machine lets it have: so many cycles earlier, and no more."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lpu_jax
from lpu_jax.lowering.loader import load_sram, read_outputs
from lpu_jax.report.attribution import constraints
from lpu_jax.report.events import program_rows, unroll
from lpu_jax.runtime import machine
from lpu_jax.runtime.errors import ProgramError


def model(w, v, x):
    h = jnp.tanh(x @ w)
    h = h * jax.lax.rsqrt(jnp.mean(h * h, -1, keepdims=True) + 1e-3)
    return jax.nn.softmax(h @ v)


@pytest.fixture(scope="module")
def compiled():
    rng = np.random.default_rng(0)
    arguments = [rng.standard_normal(shape).astype(np.float32) for shape in ((24, 24), (24, 24), (3, 24))]
    compiled = lpu_jax.lpu(model).lower(*arguments).compile()
    inputs = compiled.lowered.edges.enter(arguments)
    assert len(compiled.program.blocks) == 2
    return compiled.compiled_graph, inputs, compiled.compiled_graph.simulate(inputs)[0]


def earlier(program, op, cycles):
    """The program with one op some cycles earlier."""
    cycle = program.cycle - cycles * (program.origin == op)
    block = np.searchsorted([b.row_start for b in program.blocks], np.arange(len(cycle)), side="right")
    order = np.lexsort((program.queue, cycle, block))
    columns = ("queue", "opcode", "count", "interval", "operands", "origin")
    return dataclasses.replace(program, cycle=cycle[order], **{name: getattr(program, name)[order] for name in columns})


def same_results(compiled, program):
    graph, inputs, wanted = compiled
    sram = load_sram(graph.allocated, inputs, graph.graph)
    machine.run(program, sram)
    return all(map(np.array_equal, read_outputs(graph.allocated, sram), wanted))


def test_an_op_can_be_earlier_by_its_slack_and_no_more(compiled):
    program = compiled[0].program
    rows = program_rows(program)
    found = constraints(unroll(rows, program.blocks[1]))
    ops = np.unique(program.origin[program.origin >= 0])
    slacks = {}
    for op in ops.tolist():
        start = int(rows.start[rows.origin == op].min())
        slacks[op] = min([start, *found.slack[found.after == op].tolist()]), start
    movable = [op for op, (slack, _) in slacks.items() if slack][:8]
    for op in movable:
        assert same_results(compiled, earlier(program, op, slacks[op][0])), op
    held = [op for op, (slack, start) in slacks.items() if slack < start]
    chosen = [*movable, *held[:: max(1, len(held) // 12)]]
    refused = 0
    for op in chosen:
        try:
            refused += not same_results(compiled, earlier(program, op, slacks[op][0] + 1))
        except ProgramError:
            refused += 1
    # Repetitions that interleave with those of another op could be let in; the report takes a row as one span.
    assert refused >= 0.9 * len(chosen) > 0
