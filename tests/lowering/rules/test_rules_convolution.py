"""Convolutions against JAX in float64, and machine against runtime."""

import jax
import numpy as np
import pytest
from jax import lax
from on_lpu import assert_machine_agrees

from lpu_jax.runtime.ops import MatMul

CASES = {
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


def _convolution(name):
    x_shape, _, options = CASES[name]
    rank = len(x_shape) - 2
    spatial = "DHW"[3 - rank :]
    numbers = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
    defaults = {"window_strides": (1,) * rank, "padding": [(1, 1)] * rank, "dimension_numbers": numbers}
    return lambda x, w: lax.conv_general_dilated(x, w, **{**defaults, **options})


def _arguments(random, name, dtype=np.float32):
    x_shape, w_shape, _ = CASES[name]
    return random.normal(size=x_shape).astype(dtype), random.normal(size=w_shape).astype(dtype)


@pytest.mark.parametrize("name", list(CASES))
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
    graph = lowered(_convolution("2-D strided"), *_arguments(random, "2-D strided"), precision="highest")
    assert [graph.avals[e.operands[0]].shape[-1] for e in graph.equations if isinstance(e.op, MatMul)] == [3 * 2 * 4]


def test_a_depthwise_convolution_needs_no_product(lowered, random):
    graph = lowered(_convolution("depthwise"), *_arguments(random, "depthwise"))
    assert not any(isinstance(e.op, MatMul) for e in graph.equations)


@pytest.mark.parametrize("name", ["1-D", "depthwise"])
def test_machine_equals_runtime(random, name):
    assert_machine_agrees(_convolution(name), *_arguments(random, name))
