"""VXM functions: the same bits from NumPy and XLA, exact operations exact, the others within a stated error."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from lpu_jax.runtime import vxm
from lpu_jax.runtime.isa import VECTOR_FORMATS, VXM_FUNCTIONS, DataFormat

INT32_FUNCTIONS = {
    "iadd", "isub", "imul", "imax", "imin", "ineg", "iabs", "isign", "ieq", "ine", "ilt", "ile", "igt", "ige",
    "and", "or", "xor", "not", "shift_left", "shift_right_arithmetic", "shift_right_logical", "idiv", "irem",
    "to_float",
}  # fmt: skip
ADVERSARIAL = np.array(
    [
        0, 0x80000000, 1, 0x80000001, 0x7FFFFF, 0x807FFFFF, 0x800000, 0x80800000, 0x800001,  # around 2^-126
        0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00001, 0x7F800001, 0x7F7FFFFF, 0xFF7FFFFF,  # infinity, NaN, largest
        0x3F800000, 0xBF800000, 0x3F000000, 0x3F800001, 0x3F7FFFFF, 0x40490FDB, 0x42B17218, 0x33000000,
        7, 31, 32, 33, 0xFFFFFFFF, 0x477FF000, 0x4F000000, 0xCF000000, 0x4B800000, 0x42440000,
    ],
    np.uint32,
)  # fmt: skip
MIN_NORMAL = 2.0**-126


def on_jax(name, lhs, rhs=None):
    with jax.enable_x64(True):
        if rhs is None:
            return np.asarray(jax.jit(lambda x: vxm.apply(jnp, name, x))(lhs))
        return np.asarray(jax.jit(lambda x, y: vxm.apply(jnp, name, x, y))(lhs, rhs))


def assert_same_bits(actual, expected):
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(actual.view(np.uint32), expected.view(np.uint32))


def operand_dtype(name):
    return np.int32 if name in INT32_FUNCTIONS else np.float32


def random_operands(name, count, seed):
    """Random bit patterns, then values of ordinary size."""
    rng = np.random.default_rng(seed)
    patterns = rng.integers(0, 2**32, count, np.uint32).view(operand_dtype(name))
    ordinary = rng.standard_normal(count) * np.exp(4 * rng.standard_normal(count))
    return np.concatenate([patterns, ordinary.astype(operand_dtype(name))])


MOVE_BITS = ("identity", "neg", "abs", "mask", "mask_bar", "to_bf16")


def every_pair(name):
    lhs, rhs = np.meshgrid(ADVERSARIAL, ADVERSARIAL)
    return lhs.ravel().view(operand_dtype(name)), rhs.ravel().view(operand_dtype(name))


def flush(x):
    """Reference flush, by bits."""
    bits = x.view(np.uint32)
    return np.where((bits & 0x7F800000) == 0, bits & 0x80000000, bits).view(np.float32)


def value(x):
    """float64 value of a flushed fp32 operand."""
    return flush(np.asarray(x, np.float32)).astype(np.float64)


def rounded(x):
    """Reference rounding of float64 to fp32 with flush and canonical NaN."""
    with np.errstate(all="ignore"):
        result = np.where(np.abs(x) < MIN_NORMAL, np.copysign(0.0, x), x).astype(np.float32)
    return np.where(np.isnan(result), np.float32(math.nan), result)


@pytest.mark.parametrize("name", VXM_FUNCTIONS)
def test_numpy_and_xla_give_the_same_bits(name):
    pairs = every_pair(name)
    lhs = np.concatenate([pairs[0], random_operands(name, 50_000, 1)])
    rhs = np.concatenate([pairs[1], random_operands(name, 50_000, 2)])
    result = vxm.apply(np, name, lhs, rhs)
    assert result.dtype in (np.float32, np.int32)
    assert_same_bits(on_jax(name, lhs, rhs), result)
    if result.dtype == np.float32 and name not in MOVE_BITS:
        bits = result.view(np.uint32)
        assert (bits[np.isnan(result)] == 0x7FC00000).all()
        assert not ((bits & 0x7F800000 == 0) & (bits & 0x7FFFFF != 0)).any()  # no subnormal comes out


@pytest.mark.parametrize("name", ["add", "sub", "mul", "div", "max", "lt", "pow", "idiv", "irem", "mask", "shift_left"])
@pytest.mark.parametrize("constant_bits", [0, 0x80000000, 0x3F800000, 0xBF800000, 0x42440000, 7, 0xFFFFFFFF])
def test_a_constant_operand_changes_no_bit(name, constant_bits):
    # XLA drops x + 0 and divides by a constant through its reciprocal
    x = np.concatenate([every_pair(name)[0][: len(ADVERSARIAL)], random_operands(name, 5_000, 3)])
    constant = np.array([constant_bits], np.uint32).view(operand_dtype(name))
    with jax.enable_x64(True):
        as_rhs, as_lhs = jax.jit(
            lambda x: (vxm.apply(jnp, name, x, constant[0]), vxm.apply(jnp, name, jnp.asarray(constant[0]), x))
        )(x)
    assert_same_bits(np.asarray(as_rhs), vxm.apply(np, name, x, constant))
    assert_same_bits(np.asarray(as_lhs), vxm.apply(np, name, constant, x))


def test_chained_operations_are_not_fused():
    x, y, z = (random_operands("add", 100_000, seed) for seed in (4, 5, 6))
    with jax.enable_x64(True):
        chained = jax.jit(lambda x, y, z: vxm.apply(jnp, "add", vxm.apply(jnp, "mul", x, y), z))(x, y, z)
    assert_same_bits(np.asarray(chained), vxm.apply(np, "add", vxm.apply(np, "mul", x, y), z))


@pytest.mark.parametrize(
    ("name", "reference"),
    [("add", np.add), ("sub", np.subtract), ("mul", np.multiply), ("div", np.divide), ("rem", np.fmod)],
)
def test_arithmetic_is_the_fp32_operation_between_flushes(name, reference):
    pairs = every_pair(name)
    x = np.concatenate([pairs[0], random_operands(name, 50_000, 7)])
    y = np.concatenate([pairs[1], random_operands(name, 50_000, 8)])
    with np.errstate(all="ignore"):
        single = reference(flush(x), flush(y))
        # just below 2^-126 fp32 rounds up first, the VXM flushes first
        boundary = (np.abs(single) == MIN_NORMAL) & (np.abs(reference(value(x), value(y))) < MIN_NORMAL)
    expected = np.where(np.isnan(single), np.float32(math.nan), flush(single))
    expected = np.where(boundary, np.copysign(np.float32(0), single), expected)
    assert_same_bits(vxm.apply(np, name, x, y), expected)


@pytest.mark.parametrize(
    ("name", "reference", "max_ulp"),
    [
        ("exp", np.exp, 0.50002),
        ("expm1", np.expm1, 0.50002),
        ("log", np.log, 0.50002),
        ("log1p", np.log1p, 0.50002),
        ("tanh", np.tanh, 0.50002),
        ("sin", np.sin, 0.50002),
        ("cos", np.cos, 0.50002),
        ("rsqrt", lambda x: 1.0 / np.sqrt(x), 0.50002),
        ("sqrt", np.sqrt, 0.5),
        ("erf", scipy.special.erf, 0.5002),
    ],
)
def test_functions_are_nearly_correctly_rounded(name, reference, max_ulp):
    x = np.concatenate([ADVERSARIAL.view(np.float32), random_operands(name, 200_000, 9)])
    with np.errstate(all="ignore"):
        exact = reference(value(x))
    result, expected = vxm.apply(np, name, x), rounded(exact)
    is_ordinary = np.isfinite(expected) & (expected != 0)
    assert_same_bits(result[~is_ordinary], expected[~is_ordinary])
    ulp = np.spacing(np.abs(expected[is_ordinary])).astype(np.float64)
    assert (np.abs(result[is_ordinary].astype(np.float64) - exact[is_ordinary]) / ulp).max() <= max_ulp


def test_pow_follows_c99():
    special = [0.0, -0.0, 1, -1, 2, -2, 0.5, -0.5, 3, -3, 2.5, -2.5, 1e30, 16777215, 16777216, np.inf, -np.inf, np.nan]
    x, y = (a.ravel().astype(np.float32) for a in np.meshgrid(special, special))
    with np.errstate(all="ignore"):
        expected = rounded(np.power(value(x), value(y)))
    assert_same_bits(vxm.apply(np, "pow", x, y), expected)
    rng = np.random.default_rng(10)
    x, y = np.exp(rng.standard_normal(50_000) * 4).astype(np.float32), (rng.standard_normal(50_000) * 6).astype("f4")
    exact = np.power(x.astype(np.float64), y.astype(np.float64))
    keep = (exact > MIN_NORMAL) & (exact < 3e38)
    error = np.abs(vxm.apply(np, "pow", x, y)[keep] - exact[keep]) / np.spacing(exact[keep].astype(np.float32))
    assert error.max() < 0.5001


def check(name, lhs, rhs, expected, dtype=np.float32):
    """Both executors give the expected values, signs of zero included."""
    lhs = np.array(lhs, operand_dtype(name))
    rhs = None if rhs is None else np.array(rhs, operand_dtype(name))
    expected = np.array(expected, dtype)
    assert_same_bits(vxm.apply(np, name, lhs, rhs), expected)
    assert_same_bits(on_jax(name, lhs, rhs), expected)


def test_rounding_and_choice():
    x = [0.5, 1.5, 2.5, -0.5, -0.2, -0.0, 1e9, np.inf]
    check("round", x, None, [0, 2, 2, -0.0, -0.0, -0.0, 1e9, np.inf])
    check("ceil", x, None, [1, 2, 3, -0.0, -0.0, -0.0, 1e9, np.inf])
    check("floor", x, None, [0, 1, 2, -1, -1, -0.0, 1e9, np.inf])
    check("sign", [3, -0.0, 0.0, -2, np.nan, 1e-40], None, [1, -0.0, 0.0, -1, np.nan, 0.0])
    lhs, rhs = [-0.0, 0.0, 1, np.nan, 1, -np.inf, 1e-40, -1e-40], [0.0, -0.0, 2, 1, np.nan, 5, -1, 1]
    check("max", lhs, rhs, [0.0, 0.0, 2, np.nan, np.nan, 5, 0.0, 1])
    check("min", lhs, rhs, [-0.0, -0.0, 1, np.nan, np.nan, -np.inf, -1, -0.0])
    check("eq", [1e-40, 0.0, np.nan, np.inf], [0.0, -0.0, np.nan, np.inf], [1, 1, 0, 1], np.int32)
    check("lt", [1e-40, -1, np.nan], [2e-40, 1, 1], [0, 1, 0], np.int32)
    check("is_finite", [1, np.inf, -np.inf, np.nan, 1e-40], None, [1, 0, 0, 0, 1], np.int32)


def test_moves_flush_nothing():
    subnormal = np.array([1, 0x80000001, 0x7F800001], np.uint32).view(np.float32)
    for name, expected in (
        ("identity", [1, 0x80000001, 0x7F800001]),
        ("neg", [0x80000001, 1, 0xFF800001]),
        ("abs", [1, 1, 0x7F800001]),
    ):
        for result in (vxm.apply(np, name, subnormal), on_jax(name, subnormal)):
            np.testing.assert_array_equal(result.view(np.uint32), np.array(expected, np.uint32))


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
@pytest.mark.parametrize("mask_dtype", [np.float32, np.int32])
def test_masks_look_at_bits(dtype, mask_dtype):
    x = np.array([1, 0x7F800001, 5, 9], np.uint32).view(dtype)
    mask = np.array([0, 1, 0x80000000, 2], np.uint32).view(mask_dtype)
    for name, expected in (("mask", [0, 0x7F800001, 5, 9]), ("mask_bar", [1, 0, 0, 0])):
        for result in (vxm.apply(np, name, x, mask), on_jax(name, x, mask)):
            assert_same_bits(result, np.array(expected, np.uint32).view(dtype))


def test_integer_functions_wrap_and_truncate():
    low, high = -(2**31), 2**31 - 1
    check("iadd", [high, low], [1, -1], [low, high], np.int32)
    check("imul", [65536, low], [65536, -1], [0, low], np.int32)
    check("ineg", [low, 5], None, [low, -5], np.int32)
    check("iabs", [low, -5], None, [low, 5], np.int32)
    check("idiv", [7, -7, 7, -7, low, 5, high], [2, 2, -2, -2, -1, 0, 3], [3, -3, -3, 3, low, -1, high // 3], np.int32)
    check("irem", [7, -7, 7, -7, low, 5], [2, 2, -2, -2, -1, 0], [1, -1, 1, -1, 0, 5], np.int32)
    check("shift_left", [1, 1, 1, 1], [31, 32, -1, 0], [low, 0, 0, 1], np.int32)
    check("shift_right_arithmetic", [-8, -8, 8, -8], [1, 32, 99, -1], [-4, -1, 0, -1], np.int32)
    check("shift_right_logical", [-1, -1, -1], [31, 32, 0], [1, 0, -1], np.int32)


def test_integer_functions_are_those_of_lax():
    # XLA's own division by zero and wide shifts are what a user's program would see
    x, y = every_pair("idiv")
    for name, function in (
        ("idiv", jax.lax.div),
        ("irem", jax.lax.rem),
        ("shift_left", jax.lax.shift_left),
        ("shift_right_arithmetic", jax.lax.shift_right_arithmetic),
        ("shift_right_logical", jax.lax.shift_right_logical),
    ):
        assert_same_bits(vxm.apply(np, name, x, y), np.asarray(jax.jit(function)(x, y)))


def test_conversions():
    low, high = -(2**31), 2**31 - 1
    check("to_int", [1.9, -1.9, 1e30, -1e30, np.nan, np.inf, 1e-40], None, [1, -1, high, low, 0, high, 0], np.int32)
    check("to_float", [2**24 + 1, 2**24 + 3, high], None, [2**24, 2**24 + 4, 2**31])
    check(
        "to_fp16",
        [65519, 65520, 2.0**-24, 2.0**-25, 3 * 2.0**-26, 1 + 2.0**-11, -np.inf, np.nan, -1e-40],
        None,
        [65504, np.inf, 2.0**-24, 0, 2.0**-24, 1, -np.inf, np.nan, -0.0],
    )


@pytest.mark.parametrize("data_format", VECTOR_FORMATS)
def test_storage_formats(data_format):
    dtype = vxm.storage_dtype(data_format)
    unsigned = np.dtype(f"u{data_format.num_bytes}")
    count = min(2**16, 2 ** (8 * data_format.num_bytes))
    stored = np.arange(count).astype(unsigned).view(dtype)
    working = vxm.from_format(np, stored, data_format)
    assert working.dtype == (np.float32 if data_format.is_float else np.int32)
    returned = vxm.to_format(np, working, data_format)
    expected = stored.copy()
    if data_format.is_float and data_format is not DataFormat.FP32:
        expected[np.isnan(working)] = math.nan
    assert returned.dtype == dtype
    np.testing.assert_array_equal(returned.view(unsigned), expected.view(unsigned))
    wide = random_operands("iadd" if working.dtype == np.int32 else "add", 20_000, 11)
    narrowed = vxm.to_format(np, wide, data_format)
    if working.dtype == np.int32:
        np.testing.assert_array_equal(narrowed.view(unsigned), wide.astype(np.int64) % 2 ** (8 * data_format.num_bytes))
    with jax.enable_x64(True):
        on_xla = jax.jit(lambda x: vxm.from_format(jnp, x, data_format))(stored)
        narrowed_on_xla = jax.jit(lambda x: vxm.to_format(jnp, x, data_format))(wide)
    assert_same_bits(np.asarray(on_xla), working)
    np.testing.assert_array_equal(np.asarray(narrowed_on_xla).view(unsigned), narrowed.view(unsigned))


def test_unknown_function_is_an_error():
    with pytest.raises(ValueError, match="unknown VXM function 'iexp'"):
        vxm.apply(np, "iexp", np.zeros(4, np.float32))
