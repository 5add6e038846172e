"""Windows: heads of a row are used where they lie, and come back together without the SXM."""

import numpy as np
import pytest
from helpers import Sketch, assert_agrees, jitted, random_array

from lpu_jax.chips import groqchip1, tiny
from lpu_jax.lowering.passes.tile import tile
from lpu_jax.lowering.passes.tile_moves import FILL, refs_codes
from lpu_jax.lowering.passes.tile_windows import find_windows
from lpu_jax.lowering.tile_ir import ChainOp, MatMulInput
from lpu_jax.runtime.ops import Broadcast, Concatenate, Immediate, Pad, Reshape, Slice, Transpose

ZERO = np.array([3, 0])
"""Where a vector of zeros lies."""


def ops_of(graph, chip):
    return [op for block in tile(graph, chip).blocks for op in block.ops]


def num_sxm_ops(graph, chip):
    return sum(not isinstance(op, ChainOp) for op in ops_of(graph, chip))


def weight_rows(graph, chip):
    """First MXM row of every weight tile, product by product."""
    products = [i for op in ops_of(graph, chip) if isinstance(op, ChainOp) for i in op.inputs]
    return [tuple(tile.lane for tile in p.weights) for p in products if isinstance(p, MatMulInput)]


def heads_of(s, x, num_heads):
    """[rows, heads * width] as [heads, rows, width]."""
    rows, width = s.avals[x].shape[0], s.avals[x].shape[1] // num_heads
    split = s.op(Reshape(), x, shape=(rows, num_heads, width))
    return s.op(Transpose((1, 0, 2)), split, shape=(num_heads, rows, width))


def joined(s, x):
    """[heads, rows, width] as [rows, heads * width]."""
    heads, rows, width = s.avals[x].shape
    swapped = s.op(Transpose((1, 0, 2)), x, shape=(rows, heads, width))
    return s.op(Reshape(), swapped, shape=(rows, heads * width))


def over_columns(s, x, columns):
    """[..., 1] broadcast to [..., columns]."""
    shape = s.avals[x].shape
    return s.op(Broadcast(tuple(range(len(shape)))), x, shape=(*shape[:-1], columns))


@pytest.mark.parametrize(("chip", "heads", "width"), [(tiny, 2, 8), (groqchip1, 5, 64), (groqchip1, 7, 64)])
def test_heads_are_multiplied_where_they_lie(chip, heads, width):
    s = Sketch(seed=heads)
    q = s.fn("to_fp16", s.random((3, heads * width)), dtype="float16")
    graph = s.build((s.matmul(heads_of(s, q, heads), s.random((heads, width, 6), "float16")),))
    assert num_sxm_ops(graph, chip) == 0
    per_vector = chip.num_lanes // width
    assert sorted(weight_rows(graph, chip)) == sorted((h % per_vector * width,) for h in range(heads))
    assert_agrees(graph, chip, s.arguments)


def test_rows_of_one_matrix_may_begin_at_different_lanes():
    s = Sketch(seed=1)
    q = s.fn("to_fp16", s.random((5, 16)), dtype="float16")
    rows = s.op(Reshape(), q, shape=(1, 10, 8))  # row 2 r + h is head h of row r
    graph = s.build((s.matmul(rows, s.random((1, 8, 6), "float16")),))
    assert num_sxm_ops(graph, tiny) == 0
    assert weight_rows(graph, tiny) == [(0,), (8,)]
    assert_agrees(graph, tiny, s.arguments)


def test_weights_that_are_windows_give_columns_that_join_on_the_vxm():
    s = Sketch(seed=2)
    weights = s.fn("to_fp16", s.random((4, 3, 7)), dtype="float16")
    v = s.fn("to_fp16", s.random((7, 16)), dtype="float16")
    mixed = s.matmul(weights, heads_of(s, v, 4))
    scaled = s.fn("mul", mixed, over_columns(s, s.random((4, 3, 1)), 4))
    graph = s.build((joined(s, scaled),))
    assert num_sxm_ops(graph, tiny) == 0
    assert_agrees(graph, tiny, s.arguments)


def test_lanes_beside_a_window_do_not_leak():
    """Infinities and NaN of one head stay in its columns, though every head is multiplied with all columns."""
    s = Sketch(seed=3)
    v = s.random((6, 16))
    s.arguments[0][:, 4:8] = np.inf
    s.arguments[0][:, 12:] = np.nan
    v16 = s.fn("to_fp16", v, dtype="float16")
    weights = s.fn("to_fp16", s.random((4, 3, 6)), dtype="float16")
    graph = s.build((joined(s, s.matmul(weights, heads_of(s, v16, 4))),))
    assert_agrees(graph, tiny, s.arguments)


def test_sums_over_the_lanes_of_a_window():
    s = Sketch(seed=4)
    graph = s.build((s.reduce("sum", s.fn("abs", heads_of(s, s.random((5, 192)), 3))),))
    assert num_sxm_ops(graph, groqchip1) == 0
    assert_agrees(graph, groqchip1, s.arguments)


def test_elementwise_results_stay_where_their_operands_are():
    s = Sketch(seed=5)
    x, y = (heads_of(s, s.random((5, 16)), 4) for _ in range(2))
    total = s.fn("add", s.fn("mul", x, Immediate(3.0, "float32")), y)
    graph = s.build((joined(s, total), total))
    ops = ops_of(graph, tiny)
    assert isinstance(ops[0], ChainOp)
    assert [step.function for step in ops[0].steps][-2:] == ["mul", "add"]
    assert_agrees(graph, tiny, s.arguments)


def test_operands_that_begin_at_different_lanes_meet_at_lane_0():
    s = Sketch(seed=6)
    x = s.random((5, 16))
    low = s.op(Slice((0, 0), (5, 4), (1, 1)), x, shape=(5, 4))
    high = s.op(Slice((0, 8), (5, 12), (1, 1)), x, shape=(5, 4))
    middle = s.op(Slice((0, 4), (5, 8), (1, 1)), x, shape=(5, 4))
    graph = s.build((s.fn("add", s.fn("sub", low, high), middle), s.fn("add", s.random((5, 4)), high)))
    assert_agrees(graph, tiny, s.arguments)


def test_windows_whose_weights_would_leave_the_mxm_are_moved():
    """The last load of 8 rows of fp16 would begin at row 13 of 16."""
    s = Sketch(seed=7)
    q = s.fn("to_fp16", s.random((3, 16)), dtype="float16")
    tail = s.op(Slice((0, 13), (3, 16), (1, 1)), q, shape=(3, 3))
    graph = s.build((s.matmul(s.op(Reshape(), tail, shape=(1, 3, 3)), s.random((1, 3, 5), "float16")),))
    assert weight_rows(graph, tiny) == [(0,)]
    assert_agrees(graph, tiny, s.arguments)


def test_a_loop_carries_what_was_a_window():
    body = Sketch()
    carry = body.random((3, 8))
    both = body.op(Concatenate(1), carry, body.fn("neg", carry), shape=(3, 16))
    upper = body.op(Slice((0, 8), (3, 16), (1, 1)), body.fn("abs", both), shape=(3, 8))
    inner = body.build((body.fn("add", upper, Immediate(1.0, "float32")),))
    s = Sketch(seed=8)
    graph = s.build(s.scan(inner, (), (s.random((3, 8)),), (), 3))
    assert_agrees(graph, tiny, s.arguments)


def test_find_windows():
    lanes = np.arange(4)
    rows = np.stack([(5 << 10) + 3 + lanes, (9 << 10) + 12 + lanes])
    found = find_windows(rows, 16, ZERO)
    assert found.offsets.tolist() == [[3], [12]]
    assert found.edges == (0, 4)
    assert np.array_equal(found.codes((2, 4)), rows)
    assert find_windows(rows + 1, 16, ZERO) is None  # the second row leaves its vector
    assert find_windows(rows[:, ::-1], 16, ZERO) is None
    assert find_windows(rows[:, :1], 16, ZERO) is None  # single elements lie in all lanes elsewhere
    assert find_windows(np.where(rows == rows[0, 2], -1, rows), 16, ZERO) is None


def test_rows_of_padding_are_windows_of_zeros():
    """As the border of a convolution: rows [data, data], [0, data], and 3 elements of padding behind both."""
    lanes = np.arange(4)
    first, second = (np.stack([(v << 10) + lane + lanes for v in (5, 9)]) for lane in (3, 8))
    first[1] = FILL
    rows = np.concatenate([first, second, np.full((2, 3), FILL)], axis=1)
    found = find_windows(rows, 16, ZERO, max_segments=2, skips_padding=True)
    assert (found.edges, found.sizes) == ((0, 4, 11), (4, 4))
    assert found.offsets.tolist() == [[3, 8], [3, 8]]
    assert found.refs[0][1, 0].tolist() == ZERO.tolist()
    assert found.refs[0][[0, 0, 1], [0, 1, 1]].tolist() == [[0, 5], [0, 5], [0, 9]]
    kept = find_windows(rows, 16, ZERO, max_segments=3)
    assert (kept.edges, kept.sizes) == ((0, 4, 8, 11), (4, 4, 3))
    assert kept.refs[0][:, 2].tolist() == [ZERO.tolist()] * 2


def padded_window(s):
    """Rows [3, 10] cut from the middle of vectors, whose other lanes are no padding."""
    narrow = s.fn("to_fp16", s.random((3, 16)), dtype="float16")
    part = s.op(Slice((0, 4), (3, 10), (1, 1)), narrow, shape=(3, 6))
    return s.op(Pad((0, 0), (0, 4), 0.0), part, shape=(3, 10))


def test_padding_behind_a_window_is_zero():
    """exp(0) = 1."""
    s = Sketch(seed=8)
    graph = s.build((s.fn("exp", padded_window(s)),))
    assert_agrees(graph, tiny, s.arguments)


def test_padding_is_multiplied_unless_its_weights_are_zeros():
    """0 * inf is NaN in all sums."""
    s = Sketch(seed=8)
    weights = random_array(s.rng, (1, 10, 16), "float16", False)
    weights[0, 8, 3] = np.inf
    lhs = s.op(Reshape(), padded_window(s), shape=(1, 3, 10))
    graph = s.build((s.matmul(lhs, s.argument(weights)),))
    compiled = assert_agrees(graph, tiny, s.arguments)
    assert np.isnan(compiled.simulate(s.arguments)[0][0][0, :, 3]).all()


@pytest.mark.parametrize("chip", [tiny, groqchip1], ids=lambda chip: chip.name)
def test_sums_leave_padding_out(chip):
    """It adds nothing, not even to the sign of zeros."""
    s = Sketch(seed=8)
    x = s.argument(np.array([[1.0, -2.0, 3.0], [-0.0, -0.0, -0.0]], np.float32))
    padded = s.op(Pad((0, 0), (0, 4), 0.0), x, shape=(2, 7))
    graph = s.build((s.reduce("sum", padded),))
    assert_agrees(graph, chip, s.arguments, model=jitted)


def test_padding_in_front_of_the_very_first_vector():
    """Lane 0 of vector 0 of storage 0 has the code that follows that of padding."""
    s = Sketch(seed=8)
    padded = s.op(Pad((0, 1), (0, 0), 0.0), s.random((1, 8)), shape=(1, 9))
    graph = s.build((s.fn("exp", padded),))
    assert refs_codes(tile(graph, tiny).inputs[0].view.refs)[0] == FILL + 1
    assert_agrees(graph, tiny, s.arguments)


def test_find_windows_of_several_segments():
    lanes = np.arange(4)
    first, second = (np.stack([(v << 10) + lane + lanes for v in (5, 9)]) for lane in (3, 8))
    rows = np.concatenate([first, second, second + 4], axis=1)  # the last two follow each other in one vector
    found = find_windows(rows, 16, ZERO, max_segments=2)
    assert found.edges == (0, 4, 12)
    assert found.offsets.tolist() == [[3, 8], [3, 8]]
    assert find_windows(rows, 16, ZERO) is None
    assert find_windows(np.concatenate([rows, first], axis=1), 16, ZERO, max_segments=2) is None


def test_joined_rows_are_multiplied_segment_by_segment():
    """[a, b] @ w with a and b in lanes 4 .. 11 of vectors of their own: two K tiles of 8 rows, and nothing moves."""
    s = Sketch(seed=9)
    parts = []
    for _ in range(2):
        narrow = s.fn("to_fp16", s.random((3, 16)), dtype="float16")
        parts.append(s.op(Slice((0, 4), (3, 12), (1, 1)), narrow, shape=(3, 8)))
    joined_rows = s.op(Concatenate(1), *parts, shape=(3, 16))
    graph = s.build((s.matmul(s.op(Reshape(), joined_rows, shape=(1, 3, 16)), s.random((1, 16, 5), "float16")),))
    assert num_sxm_ops(graph, tiny) == 0
    assert weight_rows(graph, tiny) == [(4, 4)]
    assert_agrees(graph, tiny, s.arguments)


def test_weights_in_runs_of_rows_of_one_matrix_are_loaded_where_they_lie():
    """Rows 32 .. 63, then 0 .. 31 of an argument: two loads from its slices instead of a copy."""
    s = Sketch(seed=10)
    w = s.random((64, 5), "int8")
    halves = [s.op(Slice((start, 0), (start + 32, 5), (1, 1)), w, shape=(32, 5)) for start in (32, 0)]
    swapped = s.op(Reshape(), s.op(Concatenate(0), *halves, shape=(64, 5)), shape=(1, 64, 5))
    graph = s.build((s.matmul(s.fn("to_fp16", s.random((1, 3, 64)), dtype="float16"), swapped),))
    products = [i for op in ops_of(graph, groqchip1) for i in op.inputs if isinstance(i, MatMulInput)]
    assert [(tile.first, tile.num_rows, tile.lane) for tile in products[0].weights] == [(32, 32, 0), (0, 32, 32)]
    assert_agrees(graph, groqchip1, s.arguments)
