"""Modes of accumulation and the width that a lossless sum needs."""

import dataclasses

import exact_reference as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpu_jax.lowering.lower import lower_jaxpr
from lpu_jax.lowering.pipeline import compile_graph
from lpu_jax.runtime import execute as fast
from lpu_jax.runtime.accumulation import accumulate, accumulator_bits, tile_rows
from lpu_jax.runtime.chip import GROQCHIP1
from lpu_jax.runtime.isa import DataFormat

FP32, FP16, INT8, E4M3 = DataFormat.FP32, DataFormat.FP16, DataFormat.INT8, DataFormat.E4M3


def operands(lhs_name, rhs_name, shape=(3, 700, 4)):
    rng = np.random.default_rng(1)
    return reference.normal(rng, lhs_name, shape[:2]), reference.normal(rng, rhs_name, shape[1:])


@pytest.mark.parametrize(("lhs_name", "rhs_name", "rows"), [("fp16", "fp16", 160), ("e4m3", "int8", 320)])
def test_tiles_are_rounded_one_by_one_and_added_in_order(lhs_name, rhs_name, rows):
    lhs, rhs = operands(lhs_name, rhs_name)
    lhs_format, rhs_format = DataFormat[lhs_name.upper()], DataFormat[rhs_name.upper()]
    assert tile_rows(lhs_format, rhs_format, 320) == rows
    expected = np.zeros((3, 4), np.float32)
    for begin in range(0, 700, rows):
        part = reference.dot(lhs_name, lhs[:, begin : begin + rows], rhs_name, rhs[begin : begin + rows])
        expected = expected + part.view(np.float32)
    result = accumulate(np, lhs, rhs, lhs_format, rhs_format, "tile")
    np.testing.assert_array_equal(result, expected)
    exact = accumulate(np, lhs, rhs, lhs_format, rhs_format)
    np.testing.assert_array_equal(exact.view(np.uint32), reference.dot(lhs_name, lhs, rhs_name, rhs))
    with jax.enable_x64(True):
        traced = jax.jit(lambda a, b: accumulate(jnp, a, b, lhs_format, rhs_format, "tile"))(lhs, rhs)
    np.testing.assert_array_equal(np.asarray(traced), result)


def test_integers_are_exact_in_every_mode():
    lhs, rhs = operands("int8", "int8")
    for mode in ("exact", "tile"):
        result = accumulate(np, lhs, rhs, INT8, INT8, mode)
        np.testing.assert_array_equal(result, lhs.astype(np.int64) @ rhs.astype(np.int64))


def test_the_order_of_xla_is_for_xla_alone():
    lhs, rhs = operands("fp16", "e4m3")
    result = jax.jit(lambda a, b: accumulate(jnp, a, b, FP16, E4M3, "float32"))(lhs, rhs)
    exact = accumulate(np, lhs, rhs, FP16, E4M3)
    np.testing.assert_allclose(result, exact, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="which the machine does not have"):
        accumulate(np, lhs, rhs, FP16, E4M3, "float32")
    with pytest.raises(ValueError, match="accumulation='fast' is unknown"):
        accumulate(np, lhs, rhs, FP16, E4M3, "fast")


def test_machine_and_runtime_agree_in_mode_tile_and_differ_from_exact():
    def function(x, w):
        product = jax.lax.dot_general(x, w, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)
        return product, jnp.sum(x.astype(jnp.float32) * 1.37, axis=1)

    x, w = operands("fp16", "fp16", (2, 700, 40))
    graph = lower_jaxpr(jax.make_jaxpr(function)(x, w))
    chip = dataclasses.replace(GROQCHIP1, accumulation="tile")
    on_machine, _ = compile_graph(graph, chip).simulate([x, w])
    for result, expected in zip(on_machine, fast.execute(graph, [x, w], fast.Mode("tile")), strict=True):
        np.testing.assert_array_equal(result, expected)
    assert (np.asarray(fast.execute(graph, [x, w])[0]) != on_machine[0]).any()


def test_weights_in_runs_of_rows_are_rounded_in_the_tiles_of_the_runtime():
    """Rows 96 .. 191, then 0 .. 95: one tile of 160 rows and one of 32, not two of 96."""

    def function(x, w):
        swapped = jnp.concatenate([w[96:], w[:96]])
        return jax.lax.dot_general(x, swapped, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)

    x, w = operands("fp16", "fp16", (30, 192, 5))
    graph = lower_jaxpr(jax.make_jaxpr(function)(x, w))
    (on_machine,), _ = compile_graph(graph, dataclasses.replace(GROQCHIP1, accumulation="tile")).simulate([x, w])
    np.testing.assert_array_equal(on_machine, fast.execute(graph, [x, w], fast.Mode("tile"))[0])
    assert (np.asarray(fast.execute(graph, [x, w])[0]) != on_machine).any()


def test_narrow_weights_take_the_bits_of_the_runtime_and_fewer_cycles():
    def function(x, w):
        y = jax.lax.dot_general(x, w, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)
        return (y * 2).astype(w.dtype), jnp.maximum(y, 0)

    cycles = {}
    for name in ("fp16", "bf16", "e4m3", "e5m2"):
        x, w = operands("fp16", name, (40, 640, 640))
        graph = lower_jaxpr(jax.make_jaxpr(function)(x, w))
        compiled = compile_graph(graph, GROQCHIP1)
        results, cycles[name] = compiled.simulate([x, w])
        assert cycles[name] == compiled.cycles
        for result, expected in zip(results, fast.execute(graph, [x, w]), strict=True):
            assert result.dtype == expected.dtype
            np.testing.assert_array_equal(result.view(np.uint8), np.asarray(expected).view(np.uint8))
    assert cycles["e4m3"] == cycles["e5m2"] < cycles["fp16"]


def test_the_width_of_a_lossless_sum():
    tiny, largest = 2.0**-24, 65504.0
    full = np.array([[tiny, largest]], np.float16)
    assert accumulator_bits(full, full.T, FP16, FP16) == 1 + 80 + 1
    long = np.full((1, 2**19), tiny, np.float16)
    long[0, 0] = largest
    assert accumulator_bits(long, long.T, FP16, FP16) == 100  # K = 2^19 is the longest that the published width holds
    for name in ("fp32", "e4m3"):
        rng = np.random.default_rng(2)
        lhs, rhs = reference.random_bits(rng, name, (3, 9)), reference.random_bits(rng, name, (9, 2))
        magnitude = [[abs(a) for a in row] for row in reference.decode_all(name, lhs)]
        other = [[abs(b) for b in row] for row in reference.decode_all(name, rhs)]
        lowest = [min(v & -v for row in side for v in row if v) for side in (magnitude, other)]
        largest_sum = 9 * max(map(max, magnitude)) * max(map(max, other)) // (lowest[0] * lowest[1])
        bits = accumulator_bits(lhs, rhs, DataFormat[name.upper()], DataFormat[name.upper()])
        assert bits == 1 + largest_sum.bit_length()
    assert accumulator_bits(np.zeros((2, 3), np.float32), np.zeros((3, 1), np.float32), FP32, FP32) == 1
