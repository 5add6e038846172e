"""Contention: what is read or written at the same time should lie in different slices, or at least banks."""

from helpers import Sketch

from lpu_jax.chips import groqchip1, tiny
from lpu_jax.lowering.analysis.contention import companions, contention, operands, side_by_side, streamed
from lpu_jax.lowering.passes.place import place
from lpu_jax.lowering.passes.tile import tile
from lpu_jax.lowering.tile_ir import ChainOp, MatMulInput
from lpu_jax.runtime.ops import Broadcast, Immediate


def sum_of_two(rows=6):
    s = Sketch(seed=1)
    return s.build((s.fn("add", s.random((rows, 16)), s.random((rows, 16))),))


def costs_of(tiles):
    """Storage -> other -> (cost of a common slice, cost of a common bank)."""
    costs = contention(tiles)
    found = {}
    for storage in range(len(tiles.storages)):
        others, *both = (column.tolist() for column in costs.of(storage))
        found[storage] = dict(zip(others, zip(*both, strict=True), strict=True))
    return found


def test_operands_of_one_op_shun_slices_and_its_results_banks():
    tiles = tile(sum_of_two(), tiny)
    (op,) = tiles.blocks[0].ops
    first, second, result = ({*operand.words} for operand in operands(op))
    costs = costs_of(tiles)
    for one in first:
        assert all(costs[one][other][0] > 0 and costs[one][other][1] == 0 for other in second)
        assert all(costs[one][other][1] > 0 and costs[one][other][0] == 0 for other in result)


def test_costs_are_symmetric_and_grow_with_the_vectors():
    few, many = (costs_of(tile(sum_of_two(rows), tiny)) for rows in (4, 8))
    assert all(costs[b][a] == cost for costs in (few, many) for a, found in costs.items() for b, cost in found.items())
    total = [sum(sum(cost) for found in costs.values() for cost in found.values()) for costs in (few, many)]
    assert total[1] == 2 * total[0] > 0


def test_a_vector_that_is_read_again_and_again_counts_every_time():
    s = Sketch(seed=2)
    row = s.random((1, 16))
    rows = s.op(Broadcast((0, 1)), row, shape=(9, 16))
    graph = s.build((s.fn("add", s.random((9, 16)), rows),))
    tiles = tile(graph, tiny)
    (op,) = tiles.blocks[0].ops
    assert [list(operand.words.values()) for operand in operands(op)] == [[9], [9], [9]]
    assert {tiles.storages[s].num_vectors for operand in operands(op) for s in operand.words} == {1, 9}


def test_placement_keeps_operands_of_an_op_in_slices_of_their_own():
    allocated = place(tile(sum_of_two(300), groqchip1))
    storages, places = allocated.tiles.storages, allocated.places
    for op in allocated.tiles.blocks[0].ops:
        one, other = (operand.words for operand in operands(op) if not operand.is_write)
        slices = [{(storages[s].hemisphere, i) for s in words for i in places[s].slices} for words in (one, other)]
        assert slices[0].isdisjoint(slices[1])


def test_activations_and_results_of_long_products_overlap():
    s = Sketch(seed=3)
    graph = s.build((s.matmul(s.random((1, 70, 32), "int8"), s.random((1, 32, 16), "int8")),))
    tiles = tile(graph, tiny)
    (block,) = tiles.blocks
    products = [op for op in block.ops if isinstance(op, ChainOp) and isinstance(op.inputs[0], MatMulInput)]
    found = {int(s) for op in products for refs in op.inputs[0].activations for s in refs[:, 0]}
    long = {int(s) for op in products if op.num_vectors >= 64 for refs in op.inputs[0].activations for s in refs[:, 0]}
    assert streamed(block) == long <= found


def test_parts_of_one_chain_are_companions():
    s = Sketch(seed=4)
    x = s.random((2048, 320))
    tiles = tile(s.build((s.fn("mul", x, Immediate(2.0, "float32")),)), groqchip1)
    (block,) = tiles.blocks
    groups = side_by_side(tiles, block)
    assert max(map(len, groups)) > 1
    numbers = companions(tiles)
    for op in block.ops:
        for operand in operands(op):
            assert len({numbers.get(storage) for storage in operand.words}) == 1


def test_activations_on_different_planes_of_a_hemisphere_shun_slices():
    s = Sketch(seed=3)
    tiles = tile(s.build((s.reduce("sum", s.random((128, 640))),)), groqchip1)
    costs, read = costs_of(tiles), {}
    for op in tiles.blocks[0].ops:
        for item in op.inputs:
            storages = {int(storage) for refs in item.activations for storage in refs[:, 0]}
            read.setdefault((item.hemisphere, item.plane), set()).update(storages)
    assert len(read) == 2 * groqchip1.num_planes
    for (side, plane), mine in read.items():
        for (other_side, other), others in read.items():
            if side == other_side and plane != other:
                assert all(costs[one][two][0] > 0 for one in mine for two in others if one != two)
