"""Bounds of graphs: exact by formula where they can be, and never above the cycles of a program."""

import dataclasses

import numpy as np
import pytest
from families import FAMILIES, build
from helpers import Sketch, assert_agrees
from hypothesis import given, settings
from test_random_graphs import COMMON, sketches

from lpu_jax.chips import groqchip1, tiny
from lpu_jax.lowering.analysis.dependency_bound import dependency_bound
from lpu_jax.lowering.analysis.resource_bounds import ON_CHIP, resource_bounds
from lpu_jax.lowering.passes.roll import roll
from lpu_jax.lowering.pipeline import compile_graph
from lpu_jax.runtime.ops import Aval, Broadcast, Immediate, Scan

# machine.md, section 2.1: N -> cycles of [2304 x 4096] x [4096 x N] in fp16
TABLE = {1376: 149_760, 1600: 149_760, 2048: 209_664, 2560: 239_616, 3200: 299_520, 3500: 329_472}


def assert_bounded(compiled):
    cost = compiled.cost_analysis()
    bounds = cost["resource_bounds"]
    assert cost["resource_bound_cycles"] == max(bounds[kind] for kind in ON_CHIP) <= compiled.cycles, bounds
    assert cost["dependency_bound_cycles"] <= compiled.cycles, compiled.dependency_bound.chain
    bound = compiled.dependency_bound
    assert sum(link.cycles for link in bound.chain) == bound.cycles


@settings(max_examples=150, **COMMON)
@given(sketches())
def test_random_programs_take_at_least_both_bounds(sketch):
    graph, arguments = sketch
    assert_bounded(assert_agrees(graph, tiny, arguments))


@pytest.mark.parametrize("name", FAMILIES)
def test_families_take_at_least_both_bounds(name):
    for n in (1, 16, 17, 33):
        assert_bounded(compile_graph(build(name, n)[0], tiny))


@pytest.mark.parametrize("name", ["elementwise_float32", "lane_sum", "matmul_float16_int8", "gather_rows", "scan"])
def test_families_on_320_lanes(name):
    graph, arguments = build(name, 321)
    assert_bounded(assert_agrees(graph, groqchip1, arguments))


def product(rows, contracting, columns):
    s = Sketch()
    lhs, rhs = (
        s.input(a) for a in (Aval((1, rows, contracting), "float16"), Aval((1, contracting, columns), "float16"))
    )
    return s.build((s.matmul(lhs, rhs),))


@pytest.mark.parametrize("columns", TABLE)
def test_large_products_need_the_published_cycles(columns):
    bounds = resource_bounds(product(2304, 4096, columns), groqchip1)
    assert bounds["mxm"] == TABLE[columns] == max(bounds[kind] for kind in ON_CHIP)
    assert bounds["weight_load"] == -(-(-(-4096 * columns // 320) * 2 * 2) // (16 * 4))


def elementwise(count):
    s = Sketch()
    x = s.random((1, 16))
    for _ in range(count):
        x = s.fn("add", x, Immediate(0.5, "float32"))
    return s.build((x,))


@pytest.mark.parametrize("chip", [tiny, groqchip1], ids=["tiny", "groqchip1"])
def test_chain_of_functions_is_read_computed_and_written(chip):
    fixed = chip.barrier_cycles + chip.mem_read_cycles + chip.vxm_entry_cycles
    fixed += chip.vxm_operand_cycles + chip.mem_write_cycles + chip.skew_cycles
    for count in (1, 4):
        bound = dependency_bound(elementwise(count), chip).cycles
        assert bound == fixed + count * chip.vxm_op_cycles
        compiled = compile_graph(elementwise(count), chip)
        assert bound <= compiled.cycles <= bound + 2 * chip.num_mem_columns + chip.vxm_turn_cycles


def test_product_waits_for_its_weights():
    chip, graph = tiny, product(1, 16, 16)
    loads = 16 * 2 // chip.num_streams_per_load
    last = chip.barrier_cycles + chip.mem_read_cycles + chip.mxm_entry_cycles + loads - 1
    last += chip.mxm_install_tail_cycles + chip.mxm_multiply_cycles
    end = last + chip.mxm_accumulate_cycles + chip.mxm_exit_cycles + chip.mem_write_cycles + chip.skew_cycles
    assert dependency_bound(graph, chip).cycles == end
    assert compile_graph(graph, chip).cycles < 1.5 * end


def test_alu_bound_counts_vectors_and_slots():
    s = Sketch()
    graph = s.build((s.fn("erf", s.random((48, 321))),))
    vectors = -(-48 * 321 // 320)
    assert resource_bounds(graph, groqchip1)["alu"] == -(-vectors * groqchip1.alu_slots("erf") // 16)


def test_graph_without_work_has_no_bound_but_the_skew():
    s = Sketch()
    assert dependency_bound(s.build((s.random((2, 16)),)), tiny).cycles == tiny.skew_cycles


def layers(count):
    s = Sketch()
    x = s.random((1, 2, 16), "float16")
    for _ in range(count):
        y = s.matmul(x, s.random((1, 16, 16), "int8"))
        for function in ("neg", "abs", "exp", "tanh", "floor", "sign", "neg"):
            y = s.fn(function, y)
        x = s.fn("to_fp16", y, dtype="float16")
    return s.build((x,))


def test_loops_do_not_change_the_dependency_bound():
    graph = layers(5)
    rolled = roll(graph)
    assert any(isinstance(e.op, Scan) for e in rolled.equations)
    assert dependency_bound(graph, tiny).cycles == dependency_bound(rolled, tiny).cycles
    one, two = (resource_bounds(layers(n), tiny) for n in (5, 10))
    assert two["mxm"] == 2 * one["mxm"]
    assert resource_bounds(rolled, tiny)["mxm"] == one["mxm"]


@pytest.mark.parametrize("field", ["vxm_op_cycles", "mxm_multiply_cycles", "mxm_accumulate_cycles", "mem_read_cycles"])
def test_every_latency_counts(field):
    slow = dataclasses.replace(tiny, **{field: getattr(tiny, field) + 1})
    assert dependency_bound(layers(3), slow).cycles > dependency_bound(layers(3), tiny).cycles


def test_products_of_one_lhs_share_column_tiles():
    s = Sketch()
    lhs = s.random((1, 64, 32), "float16")
    apart = s.build(tuple(s.matmul(lhs, s.random((1, 32, n), "int8")) for n in (200, 60, 60)))
    assert resource_bounds(apart, groqchip1)["mxm"] == 64 // 4


def test_what_is_known_or_repeated_costs_nothing():
    s = Sketch()
    x = s.op(Broadcast((0, 1)), s.random((1, 320)), shape=(640, 320))
    assert resource_bounds(s.build((s.fn("exp", x),)), groqchip1)["alu"] == 1
    s = Sketch()
    known = s.fn("exp", s.constant(np.ones((64, 320), np.float32)))
    assert resource_bounds(s.build((known,)), groqchip1)["alu"] == 0


def large_product(s):
    return s.matmul(s.random((1, 2000, 16), "int8"), s.random((1, 16, 16), "int8"))


def large_function(s):
    return s.fn("erf", s.random((2000, 320)))


@pytest.mark.parametrize(("kind", "make", "factor"), [("mxm", large_product, 6), ("alu", large_function, 6)])
def test_bound_is_within_a_factor(kind, make, factor):
    """One plane of four at work, or four ALUs of sixteen, give a factor of 4; what is left is filling and emptying."""
    s = Sketch()
    cost = compile_graph(s.build((make(s),)), groqchip1).cost_analysis()
    assert cost["cycles"] < factor * cost["resource_bounds"][kind]
