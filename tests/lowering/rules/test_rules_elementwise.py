"""Elementwise rules against JAX (integers, exact) and float64 NumPy (floats, one unit in the last place)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax import lax

from lpu_jax.runtime.errors import UnsupportedPrimitiveError

ULP = 2.0**-23
FLOAT_UNARY = {
    "neg": (lax.neg, np.negative), "abs": (lax.abs, np.abs), "sign": (lax.sign, np.sign),
    "floor": (lax.floor, np.floor), "ceil": (lax.ceil, np.ceil), "exp": (lax.exp, np.exp), "tanh": (lax.tanh, np.tanh),
    "sin": (lax.sin, np.sin), "cos": (lax.cos, np.cos), "expm1": (lax.expm1, np.expm1),
    "square": (lax.square, np.square), "exp2": (lax.exp2, np.exp2),
}  # fmt: skip
POSITIVE_UNARY = {
    "log": (lax.log, np.log), "sqrt": (lax.sqrt, np.sqrt), "rsqrt": (lax.rsqrt, lambda x: 1 / np.sqrt(x)),
    "log1p": (lax.log1p, np.log1p),
}  # fmt: skip


@pytest.mark.parametrize("name", [*FLOAT_UNARY, *POSITIVE_UNARY])
def test_a_float_function_is_within_one_ulp_of_the_real_one(on_lpu, random, name):
    fun, reference = {**FLOAT_UNARY, **POSITIVE_UNARY}[name]
    x = (random.normal(size=(3, 7)) * 3).astype(np.float32)
    x = np.abs(x) if name in POSITIVE_UNARY else x
    np.testing.assert_allclose(on_lpu(fun, x), reference(x.astype(np.float64)), rtol=ULP)


@pytest.mark.parametrize("name", ["add", "sub", "mul", "div", "max", "min", "pow", "rem"])
def test_a_binary_float_function_is_within_one_ulp_of_the_real_one(on_lpu, random, name):
    x, y = np.abs(random.normal(size=(2, 5, 3))).astype(np.float32)
    reference = {"sub": np.subtract, "mul": np.multiply, "div": np.divide, "max": np.maximum, "min": np.minimum}
    reference |= {"add": np.add, "pow": np.power, "rem": np.fmod}
    wanted = reference[name](x.astype(np.float64), y.astype(np.float64))
    np.testing.assert_allclose(on_lpu(getattr(lax, name), x, y), wanted, rtol=ULP)


@pytest.mark.parametrize("name", ["add", "sub", "mul", "max", "min"])
def test_float16_is_rounded_once_from_float32(on_lpu, random, name):
    x, y = random.normal(size=(2, 40)).astype(np.float16)
    wide = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "max": np.maximum, "min": np.minimum}[name]
    wanted = wide(x.astype(np.float32), y.astype(np.float32)).astype(np.float16)
    np.testing.assert_array_equal(on_lpu(getattr(lax, name), x, y), wanted)


LOGIC = ["bitwise_and", "bitwise_or", "bitwise_xor"]
INTEGER_BINARY = ["add", "sub", "mul", "max", "min", *LOGIC, "eq", "ne", "lt", "le", "gt", "ge"]


@pytest.mark.parametrize("name", [*INTEGER_BINARY, "shift_left", "shift_right_logical", "shift_right_arithmetic"])
def test_an_integer_function_equals_jax(on_lpu, random, name):
    x, y = random.integers(-(2**31), 2**31, size=(2, 33), dtype=np.int32)
    y = y % np.int32(40) if name.startswith("shift") else y
    fun = getattr(lax, name)
    np.testing.assert_array_equal(on_lpu(fun, x, y), fun(x, y))


@pytest.mark.parametrize("name", ["div", "rem"])
def test_integer_division_rounds_towards_zero(on_lpu, random, name):
    x, y = random.integers(-1000, 1000, size=(2, 50), dtype=np.int32)
    y = np.where(y == 0, 3, y).astype(np.int32)
    fun = getattr(lax, name)
    np.testing.assert_array_equal(on_lpu(fun, x, y), fun(x, y))


@pytest.mark.parametrize("name", ["eq", "ne", "lt", "le", "gt", "ge"])
def test_float_comparisons_equal_jax_with_nan_and_zeros(on_lpu, name):
    values = np.array([np.nan, -np.inf, -1, -0.0, 0.0, 1, np.inf], np.float32)
    x, y = (a.reshape(-1) for a in np.meshgrid(values, values))
    fun = getattr(lax, name)
    np.testing.assert_array_equal(on_lpu(fun, x, y), fun(x, y))


@pytest.mark.parametrize("name", ["bitwise_and", "bitwise_or", "bitwise_xor", "eq", "ne"])
def test_logic_of_bools_equals_jax(on_lpu, name):
    x, y = np.array([0, 0, 1, 1], bool), np.array([0, 1, 0, 1], bool)
    fun = getattr(lax, name)
    np.testing.assert_array_equal(on_lpu(fun, x, y), fun(x, y))


def test_not_of_bool_and_int32(on_lpu):
    x = np.array([0, 1, -7], np.int32)
    np.testing.assert_array_equal(on_lpu(lambda x: (~x, ~(x > 0)), x)[0], ~x)
    np.testing.assert_array_equal(on_lpu(lambda x: ~(x > 0), x), ~(x > 0))


@pytest.mark.parametrize("y", [-3, -1, 0, 1, 2, 3, 7])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_integer_pow_rounds_at_most_once_per_product(on_lpu, random, y, dtype):
    x = (1 + np.abs(random.normal(size=9))).astype(dtype)
    unit = ULP * 4 if dtype == np.float32 else 2.0**-10
    np.testing.assert_allclose(on_lpu(lambda x: lax.integer_pow(x, y), x), x.astype(np.float64) ** y, rtol=unit)


def test_logistic_and_erfc(on_lpu, random):
    x = random.normal(size=(4, 4)).astype(np.float32) * 3
    np.testing.assert_allclose(on_lpu(jax.nn.sigmoid, x), 1 / (1 + np.exp(-x.astype(np.float64))), rtol=3 * ULP)
    # erfc is 1 - erf(x): an absolute error of one rounding of a number below 2
    np.testing.assert_allclose(on_lpu(lax.erfc, x), lax.erfc(x), atol=2 * ULP)


@pytest.mark.parametrize("method", list(lax.RoundingMethod))
def test_round_equals_jax(on_lpu, method):
    x = np.array([-2.5, -1.5, -0.5, -0.2, -0.0, 0.0, 0.49999997, 0.5, 1.5, 2.5, 8388609, np.inf, -np.inf], np.float32)
    result = on_lpu(lambda x: lax.round(x, method), x)
    np.testing.assert_array_equal(result.view(np.int32), np.asarray(lax.round(x, method)).view(np.int32))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int32, np.int8, bool])
def test_select_keeps_every_bit(on_lpu, random, dtype):
    predicate = random.integers(0, 2, size=(3, 11)).astype(bool)
    x, y = random.integers(-100, 100, size=(2, 3, 11)).astype(dtype)
    np.testing.assert_array_equal(on_lpu(jnp.where, predicate, x, y), np.where(predicate, x, y))


def test_select_keeps_negative_zero_infinity_and_nan(on_lpu):
    x = np.array([-0.0, np.inf, np.nan, 1.0], np.float32)
    predicate = np.array([True, True, True, False])
    result = on_lpu(lambda p, x: jnp.where(p, x, -jnp.inf), predicate, x)
    np.testing.assert_array_equal(result.view(np.int32), np.where(predicate, x, np.float32(-np.inf)).view(np.int32))


def test_select_by_a_scalar_and_by_an_integer(on_lpu, random):
    x, y, z = random.normal(size=(3, 4)).astype(np.float32)
    np.testing.assert_array_equal(on_lpu(lambda p, x, y: lax.select_n(p, x, y), np.bool_(True), x, y), y)
    which = np.array([0, 2, 1, 2], np.int32)
    wanted = np.choose(which, [x, y, z])
    np.testing.assert_array_equal(on_lpu(lambda w, x, y, z: lax.select_n(w, x, y, z), which, x, y, z), wanted)


def test_select_of_zero_is_one_mask(lowered):
    graph = lowered(lambda p, x: jnp.where(p, x, 0.0), np.ones(4, bool), np.ones(4, np.float32))
    assert [e.op.function for e in graph.equations] == ["mask"]


def test_clamp_with_scalar_bounds_and_nan(on_lpu):
    x = np.array([-5, 0.25, 5, np.nan], np.float32)
    np.testing.assert_array_equal(on_lpu(lambda x: lax.clamp(0.0, x, 1.0), x), lax.clamp(0.0, x, 1.0))


@pytest.mark.skipif(not hasattr(lax, "polynomial"), reason="lax.polynomial came with JAX 0.12")
def test_primitives_of_newer_releases(on_lpu, random):
    x = random.normal(size=(3, 4)).astype(np.float32)
    coefficients = [np.float32(c) for c in (1, -2, 0.5)]
    wanted = 1 - 2 * x.astype(np.float64) + x.astype(np.float64) ** 2 / 2
    np.testing.assert_allclose(on_lpu(lambda x: lax.polynomial(x, coefficients), x), wanted, atol=8 * ULP, rtol=2 * ULP)
    np.testing.assert_allclose(on_lpu(lax.one_minus_square, x), 1 - x.astype(np.float64) ** 2, atol=ULP, rtol=2 * ULP)


CONVERSIONS = [
    (np.float32, np.float16), (np.float16, np.float32), (np.float32, np.int32), (np.int32, np.float32),
    (bool, np.float32), (bool, np.int32), (bool, np.float16), (np.int8, np.float32), (np.int8, np.int32),
    (np.float32, bool), (np.int32, bool), (np.float16, np.int32), (np.int32, np.float16), (np.int8, np.float16),
]  # fmt: skip


@pytest.mark.parametrize(("source", "target"), CONVERSIONS)
def test_conversions_equal_jax(on_lpu, random, source, target):
    x = (random.normal(size=(5, 5)) * 50).astype(source)
    wanted = lax.convert_element_type(x, target)
    np.testing.assert_array_equal(on_lpu(lambda x: lax.convert_element_type(x, target), x), wanted)


def test_conversion_to_int_saturates_and_takes_nan_to_zero(on_lpu):
    x = np.array([3e9, -3e9, np.nan, np.inf, -np.inf, 2.9, -2.9], np.float32)
    result = on_lpu(lambda x: x.astype(jnp.int32), x)
    np.testing.assert_array_equal(result, [2**31 - 1, -(2**31), 0, 2**31 - 1, -(2**31), 2, -2])


def test_reduce_precision_rounds_to_the_fp16_grid(on_lpu, random):
    x = random.normal(size=20).astype(np.float32)
    wanted = x.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(on_lpu(lambda x: lax.reduce_precision(x, 5, 10), x), wanted)


def test_bitcast_keeps_bits(on_lpu, random):
    x = random.normal(size=20).astype(np.float32)
    np.testing.assert_array_equal(on_lpu(lambda x: lax.bitcast_convert_type(x, jnp.int32), x), x.view(np.int32))


def test_is_finite(on_lpu):
    x = np.array([1, np.inf, -np.inf, np.nan, 0], np.float32)
    np.testing.assert_array_equal(on_lpu(jnp.isfinite, x), np.isfinite(x))


def test_scalar_constants_are_immediates(lowered):
    graph = lowered(lambda x: jnp.maximum(2 * x + jnp.full((3, 4), 0.5), 0), np.ones((3, 4), np.float32))
    assert not graph.constants
    assert [e.op.function for e in graph.equations] == ["mul", "add", "max"]


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False), min_size=5, max_size=5))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_add_equals_ieee_arithmetic(on_lpu, values):
    x = np.array(values, np.float32)
    wanted = x + x[::-1] * 0.5
    is_normal = (np.abs(wanted) >= 2.0**-125) | (wanted == 0)
    result = on_lpu(lambda x: x + x[::-1] * 0.5, x)
    np.testing.assert_array_equal(result[is_normal], wanted[is_normal])


def test_a_parameter_without_an_implementation_is_refused(lowered):
    with pytest.raises(UnsupportedPrimitiveError, match=r"accuracy=.*HIGHEST.* is not implemented"):
        lowered(lambda x: lax.exp(x, accuracy=lax.AccuracyMode.HIGHEST), np.ones(3, np.float32))
