"""Convolutions against JAX in float64, and machine against runtime."""

import jax
import numpy as np
import pytest
from helpers import assert_agrees, jitted
from jax import lax
from on_lpu import assert_machine_agrees, lower

from lpu_jax.chips import groqchip1
from lpu_jax.lowering.edges import split_edges
from lpu_jax.lowering.passes.tile import tile
from lpu_jax.lowering.tile_ir import ChainOp, MatMulInput, PermuteOp
from lpu_jax.runtime.isa import DataFormat
from lpu_jax.runtime.ops import MatMul

PLAIN_CASES = {
    "1-D": ((2, 9, 4), (3, 4, 5), {}),
    "2-D strided": ((2, 9, 8, 4), (3, 2, 4, 5), {"window_strides": (2, 3)}),
    "3-D": ((1, 4, 5, 3, 2), (2, 2, 2, 2, 3), {}),
    "pointwise": ((2, 5, 4, 7), (1, 1, 7, 3), {}),
    "kernel dilation": ((1, 9, 9, 3), (3, 3, 3, 4), {"rhs_dilation": (2, 3)}),
    "transposed": ((1, 5, 4, 3), (3, 3, 3, 4), {"lhs_dilation": (2, 3), "padding": [(2, 1), (1, 2)]}),
    "negative padding": ((1, 7, 6, 3), (2, 2, 3, 4), {"padding": [(-1, 1), (2, -2)]}),
    "groups": ((2, 5, 5, 6), (3, 3, 3, 8), {"feature_group_count": 2}),
    "depthwise": ((2, 5, 5, 6), (3, 3, 1, 6), {"feature_group_count": 6}),
    "depthwise times two": ((2, 5, 5, 6), (3, 3, 1, 12), {"feature_group_count": 6}),
    "batch groups": ((4, 5, 5, 3), (3, 3, 3, 6), {"batch_group_count": 2}),
}

WIDE_CASES = {
    "strided, padded": ((2, 6, 5, 16), (3, 3, 16, 8), {"window_strides": (2, 1)}),
    "dilated": ((1, 7, 4, 16), (2, 3, 16, 8), {"rhs_dilation": (2, 1), "padding": [(0, 0), (2, 2)]}),
    "channels that fill no whole load": ((1, 5, 4, 20), (2, 2, 20, 8), {}),
    "feature groups": ((1, 4, 4, 32), (3, 2, 16, 8), {"feature_group_count": 2}),
    "batch groups": ((2, 4, 4, 16), (2, 2, 16, 8), {"batch_group_count": 2}),
}
FEW_CHANNELS = {
    "colours": ((1, 6, 230, 3), (3, 3, 3, 4), {"window_strides": (1, 2)}),
    "one channel, 3-D": ((1, 3, 4, 9, 1), (2, 2, 3, 1, 3), {}),
    "more taps than a band": ((1, 4, 9, 9), (2, 4, 9, 3), {"padding": [(0, 1), (2, 5)]}),
}
CASES = PLAIN_CASES | WIDE_CASES | FEW_CHANNELS


def _convolution(name, **more):
    x_shape, _, options = CASES[name]
    options = options | more
    rank = len(x_shape) - 2
    spatial = "DHW"[3 - rank :]
    numbers = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
    defaults = {"window_strides": (1,) * rank, "padding": [(1, 1)] * rank, "dimension_numbers": numbers}
    return lambda x, w: lax.conv_general_dilated(x, w, **{**defaults, **options})


def _arguments(random, name, dtype=np.float32):
    x_shape, w_shape, _ = CASES[name]
    return random.normal(size=x_shape).astype(dtype), random.normal(size=w_shape).astype(dtype)


@pytest.mark.parametrize("name", [*PLAIN_CASES, "channels that fill no whole load", "colours"])
def test_a_convolution_is_no_further_from_the_real_one_than_xla(on_lpu, random, name):
    fun, args = _convolution(name), _arguments(random, name)
    with jax.enable_x64(True):
        real = np.asarray(fun(*(a.astype(np.float64) for a in args)))
    xla = np.asarray(fun(*args))
    allowed = 2 * np.abs(xla - real).max() + 2.0**-23 * np.abs(real).max()
    result = on_lpu(fun, *args, precision="highest")
    assert result.dtype == xla.dtype
    assert np.abs(result - real).max() <= allowed


def test_float16_and_channels_first(on_lpu, random):
    x, w = random.normal(size=(1, 3, 5, 5)).astype(np.float16), random.normal(size=(4, 3, 3, 3)).astype(np.float16)

    def fun(x, w):
        return lax.conv_general_dilated(x, w, (1, 1), "SAME")

    wanted = fun(x.astype(np.float32), w.astype(np.float32))
    np.testing.assert_allclose(on_lpu(fun, x, w), wanted, rtol=2.0**-10, atol=2.0**-12)


def test_all_taps_are_one_product(lowered, random):
    """The four channels of every tap, with zeros up to a load of 16 rows."""
    graph = lowered(_convolution("2-D strided"), *_arguments(random, "2-D strided"), precision="highest")
    products = [graph.avals[e.operands[0]].shape[-1] for e in graph.equations if isinstance(e.op, MatMul)]
    assert products == [3 * 16]  # the two taps along the last axis are one window of eight elements


def test_a_depthwise_convolution_needs_no_product(lowered, random):
    graph = lowered(_convolution("depthwise"), *_arguments(random, "depthwise"))
    assert not any(isinstance(e.op, MatMul) for e in graph.equations)


@pytest.mark.parametrize("name", ["1-D", "depthwise"])
def test_machine_equals_runtime(random, name):
    assert_machine_agrees(_convolution(name), *_arguments(random, name))


def _tile_ops(name, random, precision="fp16"):
    graph = split_edges(lower(_convolution(name), *_arguments(random, name), precision=precision)).graph
    return [op for block in tile(graph, groqchip1).blocks for op in block.ops]


@pytest.mark.parametrize(("precision", "form"), [("fp16", DataFormat.FP16), ("int8", DataFormat.INT8)])
@pytest.mark.parametrize("name", list(WIDE_CASES))
def test_taps_are_multiplied_where_they_lie(random, name, precision, form):
    """One segment of K per tap, and no SXM but for lanes' maxima and results of groups, which come together."""
    ops = _tile_ops(name, random, precision)
    taps = CASES[name][1][0] * CASES[name][1][1]
    products = [i for op in ops for i in getattr(op, "inputs", ()) if isinstance(i, MatMulInput)]
    assert all(isinstance(op, ChainOp) for op in ops) or "groups" in name or form is DataFormat.INT8
    assert {len(p.weights) for p in products if p.lhs_format is form} == {taps}


@pytest.mark.parametrize("name", list(FEW_CHANNELS))
def test_bands_of_few_channels_are_all_that_moves(random, name):
    """Fewer vectors pass an SXM than there are pixels: rows of pixels, cut into bands."""
    moved = sum(len(op.maps) for op in _tile_ops(name, random) if isinstance(op, PermuteOp))
    assert 0 < moved <= np.prod(CASES[name][0][:-1])


@pytest.mark.parametrize("name", ["strided, padded", "feature groups", "batch groups", *FEW_CHANNELS])
def test_machine_equals_runtime_on_a_whole_chip(random, name):
    graph = lower(_convolution(name), *_arguments(random, name))
    assert_agrees(graph, groqchip1, list(_arguments(random, name)), model=jitted)


@pytest.mark.parametrize("dtype", [np.float16, np.int8])
def test_narrow_images_are_multiplied_as_they_are(random, dtype):
    name = "channels that fill no whole load"
    x, w = _arguments(random, name)
    arguments = [(8 * x).astype(dtype), w]
    convolution = _convolution(name, preferred_element_type=np.float32)
    graph = lower(lambda x, w: convolution(x, w.astype(dtype)), *arguments)
    compiled = assert_agrees(graph, groqchip1, arguments, model=jitted)
    ops = [op for block in compiled.tile_graph.blocks for op in block.ops]
    products = [i for op in ops for i in getattr(op, "inputs", ()) if isinstance(i, MatMulInput)]
    assert {len(p.weights) for p in products if p.lhs_format is not DataFormat.FP32} == {4}


@pytest.mark.parametrize("name", ["2-D strided", "strided, padded"])
def test_an_image_has_the_same_result_alone_and_among_others(random, name):
    """Its scale is its own: another image a million times as large changes no bit."""
    x, w = _arguments(random, name)
    many, one = (
        jitted(lower(_convolution(name), images, w), [images, w])[0]
        for images in (np.stack([x[0], 2.0**20 * x[1]]).astype(np.float32), x[:1])
    )
    np.testing.assert_array_equal(many[0], one[0])


def test_an_infinite_pixel_reaches_only_the_windows_that_hold_it(random):
    x, w = _arguments(random, "colours")
    graph = lower(_convolution("colours"), x, w)
    clean = jitted(graph, [x, w])[0]
    x[0, 3, 100, 1] = np.inf
    spoilt = jitted(graph, [x, w])[0]
    reached = np.zeros(clean.shape[:3], bool)
    reached[0, 2:5, 50] = (
        True  # rows 2 .. 4; of the columns, two apart from each other, only the one of pixels 99 .. 101
    )
    np.testing.assert_array_equal(np.isfinite(spoilt).all(-1), ~reached)
    np.testing.assert_allclose(spoilt[~reached], clean[~reached], rtol=2.0**-9, atol=2.0**-9)
