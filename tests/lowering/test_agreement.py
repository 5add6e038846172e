"""Every op family at awkward sizes: the machine's bits are those of the executor, its cycles those predicted."""

import numpy as np
import pytest
from families import FAMILIES, build, loop_body
from helpers import Sketch, assert_agrees, jitted

from lpu_jax.chips import groqchip1, tiny
from lpu_jax.runtime.ops import Broadcast, GatherRows, Pad, ScatterRows

CHIPS = {"tiny": tiny, "groqchip1": groqchip1}
SIZES = [("tiny", n) for n in (1, 15, 16, 17, 33)] + [("groqchip1", n) for n in (1, 319, 320, 321, 641)]


@pytest.mark.parametrize(("chip", "n"), SIZES)
@pytest.mark.parametrize("name", FAMILIES)
def test_machine_agrees_with_definition(name, chip, n):
    graph, arguments = build(name, n)
    assert_agrees(graph, CHIPS[chip], arguments)


@pytest.mark.parametrize("name", FAMILIES)
def test_machine_agrees_with_jitted_executor(name):
    graph, arguments = build(name, 17)
    assert_agrees(graph, tiny, arguments, model=jitted)


@pytest.mark.parametrize(("chip", "n"), [("tiny", 15), ("tiny", 17), ("groqchip1", 321)])
def test_donated_stack_is_updated_in_place(chip, n):
    b = Sketch()
    index, carry, cache = b.argument(np.array([2], np.int32)), b.random((1, n)), b.random((4, n))
    body = b.build((b.fn("neg", carry), b.op(ScatterRows(), cache, carry, index)))
    s = Sketch(seed=1)
    arguments = [s.argument(np.array([2], np.int32)), s.random((1, n)), s.random((3, 4, n))]
    graph = s.build(s.scan(body, arguments[:1], arguments[1:2], arguments[2:], 3))
    compiled = assert_agrees(graph, CHIPS[chip], s.arguments, donated={1: 2})
    given = next(b for b in compiled.tile_graph.inputs if b.value == graph.inputs[2])
    kept = compiled.tile_graph.outputs[1]
    assert set(given.view.refs[:, 0]) == set(kept.view.refs[:, 0])


@pytest.mark.parametrize(("chip", "n"), [("tiny", 17), ("groqchip1", 320)])
def test_reversed_loop_visits_slices_backwards(chip, n):
    s = Sketch(seed=2)
    results = s.scan(loop_body(n), [s.random((2, n))], [s.random((2, n))], [s.random((3, 2, n))], 3, reverse=True)
    assert_agrees(s.build(results), CHIPS[chip], s.arguments)


@pytest.mark.parametrize(("function", "dtype", "wide"), [("mul", "float16", "float32"), ("iadd", "int8", "int32")])
def test_narrow_result_is_rounded_for_its_next_use_too(function, dtype, wide):
    s = Sketch()
    narrow = s.fn(function, s.random((8,), dtype), s.random((8,), dtype))
    graph = s.build((s.fn("identity", narrow, dtype=wide),))
    assert_agrees(graph, tiny, s.arguments)


def test_padding_has_the_value_asked_for():
    s = Sketch()
    graph = s.build((s.op(Pad((1, 0), (0, 2), 1.5), s.random((2, 5)), shape=(3, 7)),))
    assert_agrees(graph, tiny, s.arguments)


@pytest.mark.parametrize("width", [1, 2])
def test_repeated_column_is_padded_with_zeros(width):
    s = Sketch()
    x = s.op(Broadcast((0, 1)), s.random((2, 1)), shape=(2, width))
    graph = s.build((s.op(Pad((0, 0), (0, 1), 0.0), x, shape=(2, width + 1)),))
    assert_agrees(graph, tiny, s.arguments)


@pytest.mark.parametrize("num_rows", [1, 2])
def test_every_row_can_be_replaced(num_rows):
    s = Sketch()
    table, rows = s.random((num_rows, 5)), s.random((num_rows, 5))
    index = s.argument(np.arange(num_rows, dtype=np.int32))
    assert_agrees(s.build((s.op(ScatterRows(), table, rows, index),)), tiny, s.arguments)


@pytest.mark.parametrize("op", ["gather", "scatter"])
def test_rows_of_a_broadcast_vector(op):
    s = Sketch()
    x, index = s.random((15,)), s.argument(np.array([1, 0], np.int32))
    table = s.op(Broadcast((1,)), x, shape=(4, 15))
    if op == "gather":
        result = s.op(GatherRows(), table, index, shape=(2, 15))
    else:
        result = s.op(ScatterRows(), table, s.random((2, 15)), index)
    assert_agrees(s.build((result, s.fn("neg", x))), tiny, s.arguments)


def test_gathered_rows_may_need_more_than_one_storage():
    s = Sketch()
    table, index = s.random((2, 6 * 16)), s.argument(np.zeros(3, np.int32))
    assert_agrees(s.build((s.op(GatherRows(), table, index, shape=(3, 6 * 16)),)), tiny, s.arguments)


@pytest.mark.parametrize("num_rows", [100, 300])
def test_many_rows_are_gathered_from_a_table_in_many_slices(num_rows):
    s = Sketch()
    table, index = s.random((num_rows, 5)), s.argument((np.arange(40) * 7 % num_rows).astype(np.int32))
    assert_agrees(s.build((s.op(GatherRows(), table, index, shape=(40, 5)),)), groqchip1, s.arguments)
