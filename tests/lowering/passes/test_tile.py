"""Tiling: what is free costs no op, loops are tiled once, every vector that is read exists."""

import numpy as np
import pytest
from families import FAMILIES, build, loop_body
from helpers import Sketch, assert_same_bits

from lpu_jax.chips import groqchip1, tiny
from lpu_jax.lowering.passes.place import op_reads, op_writes
from lpu_jax.lowering.passes.tile import tile
from lpu_jax.lowering.pipeline import compile_graph
from lpu_jax.lowering.tile_ir import ChainOp, MatMulInput, PermuteOp, pack, unpack
from lpu_jax.runtime.ops import Broadcast, Concatenate, Immediate, Reshape, Reverse, Slice, Transpose


def ops_of(tiles):
    return [op for block in tiles.blocks for op in block.ops]


def leading(s):
    return s.random((2, 3, 17))


FREE = {
    "transpose": lambda s: s.op(Transpose((1, 0, 2)), leading(s), shape=(3, 2, 17)),
    "reshape": lambda s: s.op(Reshape(), leading(s), shape=(6, 17)),
    "slice": lambda s: s.op(Slice((1, 0, 0), (2, 3, 17), (1, 2, 1)), leading(s), shape=(1, 2, 17)),
    "broadcast": lambda s: s.op(Broadcast((1, 2, 3)), leading(s), shape=(4, 2, 3, 17)),
    "concatenate": lambda s: s.op(Concatenate(1), leading(s), leading(s), shape=(2, 6, 17)),
    "reverse": lambda s: s.op(Reverse((0, 1)), leading(s)),
    "column_to_row": lambda s: s.op(Broadcast((0, 1)), s.random((3, 1)), shape=(3, 17)),
}


@pytest.mark.parametrize("move", FREE)
def test_moves_of_whole_vectors_emit_no_op(move):
    s = Sketch()
    graph = s.build((FREE[move](s),))
    tiles = tile(graph, tiny)
    assert ops_of(tiles) == []
    inputs = {int(r) for binding in tiles.inputs for r in binding.view.refs[:, 0]}
    assert {int(r) for r in tiles.outputs[0].view.refs[:, 0]} <= inputs


def test_moves_of_lanes_go_through_the_permuter():
    s = Sketch()
    tiles = tile(s.build((s.op(Transpose((0, 2, 1)), leading(s), shape=(2, 17, 3)),)), tiny)
    assert any(isinstance(op, PermuteOp) for op in ops_of(tiles))


def test_elementwise_ops_share_a_chain():
    s = Sketch()
    x = s.random((3, 80))
    y = s.fn("exp", s.fn("mul", s.fn("add", x, x), Immediate(0.5, "float32")))
    (op,) = ops_of(tile(s.build((y,)), tiny))
    assert isinstance(op, ChainOp)
    functions = [step.function for step in op.steps if step.function != "identity"]  # identity holds an operand
    assert functions == ["add", "mul", "exp"]
    assert op.num_vectors == 3 * 5


def test_product_feeds_the_chain_behind_it():
    s = Sketch()
    product = s.matmul(s.random((1, 2, 16), "float16"), s.random((1, 16, 16), "int8"))
    (op,) = ops_of(tile(s.build((s.fn("max", product, Immediate(0.0, "float32")),)), tiny))
    assert isinstance(op.inputs[0], MatMulInput)
    assert [step.function for step in op.steps] == ["max"]


def loop(num_iterations, n=17):
    s = Sketch()
    xs = s.random((num_iterations, 2, n))
    return s.build(s.scan(loop_body(n), [s.random((2, n))], [s.random((2, n))], [xs], num_iterations))


def test_loop_body_is_tiled_once():
    few, many = (compile_graph(loop(count), groqchip1) for count in (2, 20))
    assert few.program.num_rows == many.program.num_rows
    assert [len(block.ops) for block in few.tile_graph.blocks] == [len(block.ops) for block in many.tile_graph.blocks]


def test_loop_cycles_grow_by_one_period_an_iteration():
    few, many = (compile_graph(loop(count), groqchip1) for count in (2, 20))
    periods = [block.period_cycles for block in many.schedule.blocks if block.num_iterations == 20]
    assert len(periods) == 1
    assert many.cycles - few.cycles == 18 * periods[0]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("chip", "n"), [(tiny, 17), (groqchip1, 321)], ids=["tiny", "groqchip1"])
def test_ops_read_only_what_was_written(name, chip, n):
    tiles = tile(build(name, n)[0], chip)
    known = {s.id for s in tiles.storages if s.resident}
    for op in ops_of(tiles):
        assert set(op_reads(op)) <= known
        known |= set(op_writes(op))
    assert {int(s) for binding in tiles.outputs for s in binding.view.refs[:, 0]} <= known


@pytest.mark.parametrize("name", FAMILIES)
def test_refs_lie_inside_their_storages(name):
    tiles = tile(build(name, 33)[0], tiny)
    sizes = np.array([s.num_vectors * s.num_iterations for s in tiles.storages])
    views = [b.view for b in tiles.inputs + tiles.outputs]
    for refs in [view.refs for view in views] + [refs for _, refs in tiles.constants]:
        assert (refs[:, 1] >= 0).all()
        assert (refs[:, 1] < sizes[refs[:, 0]]).all()


@pytest.mark.parametrize("shape", [(), (1,), (5,), (16,), (17,), (2, 3, 33), (4, 1)])
@pytest.mark.parametrize("splat", [False, True])
def test_unpack_inverts_pack(shape, splat):
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    vectors = pack(array, splat, 16)
    assert vectors.shape[1] == 16
    assert_same_bits(unpack(vectors, shape, splat), array)


def test_the_tiles_of_a_few_rows_can_be_read_at_a_time():
    s = Sketch()
    tiles = tile(s.build((s.fn("neg", s.random((3, 33))),)), tiny)
    refs = tiles.inputs[0].view.refs.reshape(3, 3, 2)
    assert all(len(set(row[:, 0].tolist())) == 3 for row in refs)
    assert len(set(refs[:, 0, 0].tolist())) == 1
