"""Chains over many vectors run side by side: they fill the ALUs, and their parts share neither storage nor slice."""

import numpy as np
import pytest
from helpers import Sketch, assert_agrees

from lpu_jax.chips import groqchip1
from lpu_jax.lowering.passes.tile_close import side_by_side
from lpu_jax.lowering.pipeline import compile_graph
from lpu_jax.lowering.tile_ir import ChainOp, InputRef, MemoryInput, MemoryOutput, Step
from lpu_jax.runtime.isa import DataFormat
from lpu_jax.runtime.ops import Immediate


def chain_graph(num_steps, rows):
    s = Sketch()
    x = s.random((rows, 320))
    for step in range(num_steps):
        x = s.fn("mul" if step % 2 else "max", x, Immediate(1.0 + step, "float32"))
    return s.build((x,)), s.arguments


@pytest.mark.parametrize("num_steps", [2, 4, 8])
def test_all_alus_work_all_the_time(num_steps):
    rows = 8192
    compiled = compile_graph(chain_graph(num_steps, rows)[0], groqchip1)
    assert rows * num_steps / groqchip1.num_alus <= compiled.cycles <= 1.15 * rows * num_steps / groqchip1.num_alus


def test_parts_have_ports_and_banks_of_their_own():
    """A slice may serve one read and one write, in different banks."""
    allocated = compile_graph(chain_graph(2, 8192)[0], groqchip1).allocated
    ops = allocated.tiles.blocks[0].ops
    assert len(ops) == groqchip1.num_alus // 2
    storages, places, per_bank = allocated.tiles.storages, allocated.places, groqchip1.num_addresses_per_bank
    ports, banks = [], []
    for op in ops:
        for item in (*op.inputs, *op.outputs):
            slices = {(storages[i].hemisphere, s, i) for i in set(item.refs[:, 0].tolist()) for s in places[i].slices}
            ports.append({(side, s, item in op.outputs) for side, s, _ in slices})
            banks.append({(side, s, places[i].base // per_bank) for side, s, i in slices})
    for taken in (ports, banks):
        assert sum(map(len, taken)) == len(set().union(*taken))


def test_the_machine_agrees():
    graph, arguments = chain_graph(2, 2048)
    assert_agrees(graph, groqchip1, arguments)


def chain_over(*operands):
    count = len(operands[0])
    refs = [np.stack([np.array(ids), np.arange(count)], axis=1) for ids in operands]
    inputs = tuple(MemoryInput(r, DataFormat.FP32) for r in refs[:-1])
    steps = (Step("add", (InputRef(0), InputRef(len(inputs) - 1))),)
    return ChainOp(count, inputs, steps, (MemoryOutput(0, refs[-1], DataFormat.FP32),))


def test_parts_share_no_storage_and_cover_every_vector_once():
    first, second = np.repeat(np.arange(8), 128), 100 + np.repeat(np.arange(4), 256)
    op = chain_over(first, second, 200 + np.repeat(np.arange(16), 64))
    parts = side_by_side(op, np.arange(1024), 4)
    assert len(parts) == 4
    assert np.sort(np.concatenate(parts)).tolist() == list(range(1024))
    for column in (first, second):
        assert sum(len(set(column[part])) for part in parts) == len(set(column))


def test_what_shares_a_storage_stays_together():
    broadcast = chain_over(np.repeat(np.arange(8), 128), np.full(1024, 50), 200 + np.repeat(np.arange(8), 128))
    assert len(side_by_side(broadcast, np.arange(1024), 4)) == 1
    assert len(side_by_side(chain_over(np.arange(64), 100 + np.arange(64)), np.arange(64), 4)) == 1
