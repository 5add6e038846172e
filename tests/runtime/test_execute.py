"""The vectorised executor on graphs built by hand: NumPy's bits, under every JAX transformation, whatever x64 is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpu_jax.lowering.ir import GraphBuilder
from lpu_jax.runtime import vxm
from lpu_jax.runtime.execute import execute, prepare, prepared_inputs
from lpu_jax.runtime.isa import DataFormat
from lpu_jax.runtime.ops import (
    Aval,
    Elementwise,
    GatherRows,
    Immediate,
    LaneReduce,
    MatMul,
    Pad,
    Reshape,
    Scan,
    ScatterRows,
)

SPECIAL = np.array([0.0, -0.0, 1.5, -2.5, np.inf, -np.inf, np.nan, 3e38, 1e-40], np.float32)


def _graph(op, *avals, result):
    builder = GraphBuilder()
    operands = tuple(builder.input(a) if isinstance(a, Aval) else a for a in avals)
    return builder.build(builder.add(op, operands, result))


def _bits(x):
    return np.asarray(x).view(np.int32)


@pytest.mark.parametrize("function", ["add", "sub", "mul", "div", "max", "min"])
def test_a_function_has_the_bits_of_numpy(function):
    x, y = (a.reshape(-1).copy() for a in np.meshgrid(SPECIAL, SPECIAL))
    aval = Aval(x.shape, "float32")
    (result,) = execute(_graph(Elementwise(function), aval, aval, result=aval), [x, y])
    np.testing.assert_array_equal(_bits(result), _bits(vxm.apply(np, function, x, y)))


def test_an_integer_function_reads_and_makes_the_bits_of_floats():
    aval = Aval((9,), "float32")
    graph = _graph(Elementwise("and"), aval, Immediate(0x7F800000, "int32"), result=Aval((9,), "int32"))
    np.testing.assert_array_equal(execute(graph, [SPECIAL])[0], SPECIAL.view(np.int32) & 0x7F800000)
    graph = _graph(Elementwise("isub"), Aval((9,), "int32"), Immediate(0, "int32"), result=aval)
    np.testing.assert_array_equal(_bits(execute(graph, [SPECIAL.view(np.int32)])[0]), _bits(SPECIAL))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 320, 321])
@pytest.mark.parametrize("function", ["max", "min"])
def test_a_lane_maximum_has_the_bits_of_folding_the_function(function, size):
    x = np.random.default_rng(size).choice(SPECIAL, size=(50, size))
    graph = _graph(LaneReduce(function), Aval(x.shape, "float32"), result=Aval((50, 1), "float32"))
    wanted = x[:, :1]
    for i in range(1, size):
        wanted = vxm.apply(np, function, wanted, x[:, i : i + 1])
    result = np.asarray(execute(graph, [x])[0])
    if size > 1:
        np.testing.assert_array_equal(_bits(result), _bits(wanted))


@pytest.mark.parametrize(("function", "fold"), [("imax", np.max), ("imin", np.min)])
def test_an_integer_lane_reduction(function, fold):
    x = np.random.default_rng(0).integers(-(2**31), 2**31, size=(4, 13), dtype=np.int32)
    graph = _graph(LaneReduce(function), Aval(x.shape, "int32"), result=Aval((4, 1), "int32"))
    np.testing.assert_array_equal(execute(graph, [x])[0], fold(x, axis=1, keepdims=True))


def test_a_fp16_result_is_rounded_and_its_nan_canonical():
    graph = _graph(Elementwise("to_fp16"), Aval((9,), "float32"), result=Aval((9,), "float16"))
    result = np.asarray(execute(graph, [SPECIAL])[0])
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(result, SPECIAL.astype(np.float16))
    assert result.view(np.uint16)[6] == 0x7E00


def test_padding_gathering_and_scattering():
    table, index = np.arange(12, dtype=np.float16).reshape(4, 3), np.array([3, 0], np.int32)
    avals = Aval((4, 3), "float16"), Aval((2,), "int32")
    graph = _graph(GatherRows(), *avals, result=Aval((2, 3), "float16"))
    np.testing.assert_array_equal(execute(graph, [table, index])[0], table[index])
    graph = _graph(ScatterRows(), avals[0], Aval((2, 3), "float16"), avals[1], result=avals[0])
    wanted = table.copy()
    wanted[index] = -1
    np.testing.assert_array_equal(execute(graph, [table, np.full((2, 3), -1, np.float16), index])[0], wanted)
    graph = _graph(Pad((1, 0), (0, 2), -np.inf), avals[0], result=Aval((5, 5), "float16"))
    wanted = np.pad(table, ((1, 0), (0, 2)), constant_values=-np.inf)
    np.testing.assert_array_equal(execute(graph, [table])[0], wanted)


def _matmul_graph(batch=1):
    builder = GraphBuilder()
    x, w = builder.input(Aval((batch, 2, 6), "float16")), builder.input(Aval((batch, 6, 4), "int8"))
    return builder.build(builder.add(MatMul(DataFormat.FP16, DataFormat.INT8), (x, w), Aval((batch, 2, 4), "float32")))


def _matmul_arguments(batch=1):
    random = np.random.default_rng(1)
    x = random.normal(size=(batch, 2, 6)).astype(np.float16)
    return x, random.integers(-128, 128, size=(batch, 6, 4), dtype=np.int8)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_product_is_exact_and_rounded_once(batch):
    x, w = _matmul_arguments(batch)
    wanted = (x.astype(np.float64) @ w.astype(np.float64)).astype(np.float32)
    np.testing.assert_array_equal(execute(_matmul_graph(batch), [x, w])[0], wanted)


def test_prepared_weights_give_the_same_bits():
    graph, (x, w) = _matmul_graph(), _matmul_arguments()
    assert prepared_inputs(graph) == (graph.inputs[1],)
    prepared = prepare(graph, {graph.inputs[1]: w})[graph.inputs[1]]
    plain = execute(graph, [x, w])[0]
    np.testing.assert_array_equal(_bits(jax.jit(lambda *a: execute(graph, a))(x, prepared)[0]), _bits(plain))


def _scan_graph():
    """h <- fp16(h @ w[i]) over stacked int8 weights, which enter through a reshape."""
    body = GraphBuilder()
    h, w = body.input(Aval((1, 2, 4), "float16")), body.input(Aval((4, 4), "int8"))
    (matrix,) = body.add(Reshape(), (w,), Aval((1, 4, 4), "int8"))
    (y,) = body.add(MatMul(DataFormat.FP16, DataFormat.INT8), (h, matrix), Aval((1, 2, 4), "float32"))
    (scaled,) = body.add(Elementwise("mul"), (y, Immediate(2.0**-9, "float32")), Aval((1, 2, 4), "float16"))
    op = Scan(body.build((scaled, scaled)), num_iterations=3, num_consts=0, num_carry=1)
    builder = GraphBuilder()
    h, ws = builder.input(Aval((1, 2, 4), "float16")), builder.input(Aval((3, 4, 4), "int8"))
    results = builder.add(op, (h, ws), Aval((1, 2, 4), "float16"), Aval((3, 1, 2, 4), "float16"))
    return builder.build(results)


def test_a_scan_over_weights_plain_and_prepared():
    graph, random = _scan_graph(), np.random.default_rng(2)
    h = random.normal(size=(1, 2, 4)).astype(np.float16)
    ws = random.integers(-128, 128, size=(3, 4, 4), dtype=np.int8)
    wanted, stacked = h, []
    for w in ws:
        product = (wanted.astype(np.float64) @ w.astype(np.float64)).astype(np.float32)
        wanted = (product * np.float32(2.0**-9)).astype(np.float16)
        stacked.append(wanted)
    assert prepared_inputs(graph) == (graph.inputs[1],)
    prepared = prepare(graph, {graph.inputs[1]: ws})[graph.inputs[1]]
    for weights in (ws, prepared):
        final, ys = execute(graph, [h, weights])
        np.testing.assert_array_equal(final, wanted)
        np.testing.assert_array_equal(ys, np.stack(stacked))


@pytest.mark.parametrize("x64", [False, True])
def test_jit_vmap_and_scan_keep_bits_and_dtypes(x64):
    graph, (x, w) = _matmul_graph(), _matmul_arguments()
    with jax.enable_x64(x64):
        plain = _bits(execute(graph, [x, w])[0])
        results = {
            "jit": jax.jit(lambda x: execute(graph, [x, w])[0])(x),
            "vmap": jax.vmap(lambda x: execute(graph, [x, w])[0])(jnp.stack([x, x]))[1],
            "scan": jax.lax.scan(lambda c, x: (c, execute(graph, [x, w])[0]), 0, jnp.stack([x, x]))[1][1],
        }
        for name, result in results.items():
            assert result.dtype == jnp.float32, name
            np.testing.assert_array_equal(_bits(result), plain, err_msg=name)
