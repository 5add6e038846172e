"""Exact dot products against rational arithmetic, and the same bits from NumPy and XLA."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpu_jax.runtime import numerics
from lpu_jax.runtime.exact_dot import exact_dot
from lpu_jax.runtime.isa import DataFormat
from lpu_jax.runtime.wide_sums import exact_sum

FP32, FP16, INT8 = DataFormat.FP32, DataFormat.FP16, DataFormat.INT8
DTYPES = {FP32: np.float32, FP16: np.float16, INT8: np.int8}
PAIRS = [(a, b) for a in DTYPES for b in DTYPES]


def reference_round(value: Fraction) -> int:
    """Bits of the fp32 nearest to a rational, ties to even: by search over the ordered magnitudes."""
    magnitude, sign = abs(value), 0x80000000 if value < 0 else 0

    def decode(bits: int) -> Fraction:
        exponent, fraction = bits >> 23, bits & 0x7FFFFF
        if exponent == 0:
            return Fraction(fraction, 2**149)
        return Fraction(fraction + 2**23) * Fraction(2) ** (exponent - 150)

    low, high = 0, 0x7F800000  # infinity decodes as 2^128, the value that overflow is measured from
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if decode(middle) <= magnitude else (low, middle)
    below, above = magnitude - decode(low), decode(high) - magnitude
    bits = low if below < above or (below == above and low % 2 == 0) else high
    return bits | sign


def reference_dot(lhs: np.ndarray, rhs: np.ndarray) -> np.ndarray:
    """Fractions for finite operands, IEEE rules for the others; uint32 bits."""
    out = np.empty((lhs.shape[0], rhs.shape[1]), np.uint32)
    for m in range(lhs.shape[0]):
        for n in range(rhs.shape[1]):
            pairs = [(float(a), float(b)) for a, b in zip(lhs[m], rhs[:, n], strict=True)]
            special = [a * b for a, b in pairs if not (np.isfinite(a) and np.isfinite(b))]
            if special:
                total = sum(special)
                out[m, n] = 0x7FC00000 if np.isnan(total) else (0x7F800000 if total > 0 else 0xFF800000)
            else:
                out[m, n] = reference_round(sum((Fraction(a) * Fraction(b) for a, b in pairs), Fraction(0)))
    return out


def both(function, *arrays) -> np.ndarray:
    """The NumPy result, after checking that jit gives the same bits."""
    expected = function(np, *arrays)
    with jax.enable_x64(True):
        traced = np.asarray(jax.jit(lambda *a: function(jnp, *a))(*arrays))
    assert traced.dtype == expected.dtype
    np.testing.assert_array_equal(traced.view(np.uint32), expected.view(np.uint32))
    return expected


def dot(lhs: np.ndarray, rhs: np.ndarray) -> np.ndarray:
    formats = {np.dtype(dtype): data_format for data_format, dtype in DTYPES.items()}
    return both(lambda xp, a, b: exact_dot(xp, a, b, formats[lhs.dtype], formats[rhs.dtype]), lhs, rhs)


def random_bits(rng: np.random.Generator, data_format: DataFormat, shape: tuple[int, ...]) -> np.ndarray:
    """Any finite value of a format, subnormals and zeros included."""
    unsigned = {FP32: np.uint32, FP16: np.uint16, INT8: np.uint8}[data_format]
    values = rng.integers(0, np.iinfo(unsigned).max, shape, unsigned, endpoint=True).view(DTYPES[data_format])
    return values if data_format is INT8 else np.where(np.isfinite(values), values, values.dtype.type(0))


def normal(rng: np.random.Generator, data_format: DataFormat, shape: tuple[int, ...]) -> np.ndarray:
    scale = 50 if data_format is INT8 else 1
    return np.clip(rng.standard_normal(shape) * scale, -128, 127).astype(DTYPES[data_format])


def check_against_reference(lhs: np.ndarray, rhs: np.ndarray) -> None:
    result = dot(lhs, rhs)
    if result.dtype == np.int32:
        np.testing.assert_array_equal(result, lhs.astype(object) @ rhs.astype(object))
    else:
        np.testing.assert_array_equal(result.view(np.uint32), reference_dot(lhs, rhs))


@pytest.mark.parametrize(("lhs_format", "rhs_format"), PAIRS)
@pytest.mark.parametrize("values", [random_bits, normal])
@pytest.mark.parametrize("length", [1, 7, 300])
def test_dot_is_the_exact_sum_rounded_once(lhs_format, rhs_format, values, length):
    rng = np.random.default_rng(length)
    columns = 3 if length < 300 else 1
    check_against_reference(values(rng, lhs_format, (2, length)), values(rng, rhs_format, (length, columns)))


@pytest.mark.parametrize(("lhs_format", "rhs_format"), [pair for pair in PAIRS if pair != (INT8, INT8)])
def test_cancelling_pairs_leave_the_residue(lhs_format, rhs_format):
    rng = np.random.default_rng(1)
    half = normal(rng, lhs_format, (3, 40)), normal(rng, rhs_format, (40, 2))
    if lhs_format is INT8:
        half = (np.maximum(half[0], np.int8(-127)), half[1])
    residue = random_bits(rng, lhs_format, (3, 1)), random_bits(rng, rhs_format, (1, 2))
    lhs = np.concatenate([half[0], residue[0], -half[0]], axis=1)
    rhs = np.concatenate([half[1], residue[1], half[1]], axis=0)
    check_against_reference(lhs, rhs)
    lhs[:, 40] = 0
    assert not dot(lhs, rhs).view(np.uint32).any()  # an exact zero is +0


def test_ties_go_to_even_unless_a_hidden_term_breaks_them():
    tie, tiny, huge = 2.0**-24, 2.0**-140, 2.0**100
    rows = []
    for one in (1.0, 1.0 + 2.0**-23):
        for breaker in (0.0, tiny, -tiny):
            rows.append([huge, one, tie, -huge, breaker])
            rows.append([-value for value in rows[-1]])
    lhs = np.array(rows, np.float32)
    for ones in (np.ones((5, 1), np.int8), np.ones((5, 1), np.float16), np.ones((5, 1), np.float32)):
        check_against_reference(lhs, ones)
    even, up, down = dot(lhs, np.ones((5, 1), np.int8))[[0, 2, 4], 0]
    assert (even, up, down) == (1.0, np.float32(1 + 2.0**-23), 1.0)


def test_fp16_ties_and_hidden_terms():
    # 2048 * 2048 + 2^-2 is a tie of fp32 (ulp 1/2 at 2^22); 2^-48 is the smallest product
    small = 2.0**-24
    lhs = np.array([[2048, 0.5, 0, 60000, -60000], [2048, 0.5, small, 60000, -60000], [2048, 0.5, -small, 1, -1]])
    rhs = np.array([[2048], [0.5], [small], [60000], [60000]])
    check_against_reference(lhs.astype(np.float16), rhs.astype(np.float16))


def test_results_overflow_and_keep_subnormals():
    largest = float(np.finfo(np.float32).max)
    half_ulp = 2.0**103
    lhs = np.array([[largest, half_ulp], [largest, half_ulp * 0.999], [-largest, -half_ulp], [largest, largest]])
    check_against_reference(lhs.astype(np.float32), np.ones((2, 1), np.int8))
    small = np.array([[2.0**-75, 2.0**-80], [2.0**-75, 0], [-(2.0**-75), 0], [2.0**-63, -(2.0**-80)], [2.0**-70, 0]])
    check_against_reference(small.astype(np.float32), (np.array([[1, 1.5], [0.5, 0.75]]) * 2.0**-74).astype(np.float32))
    just_below_normal = np.array([[2.0**-126, -(2.0**-149)]], np.float32)
    assert dot(just_below_normal, np.ones((2, 1), np.int8)).view(np.uint32)[0, 0] == 0x007FFFFF


@pytest.mark.parametrize(("lhs_format", "rhs_format"), [pair for pair in PAIRS if pair != (INT8, INT8)])
def test_special_values_follow_ieee(lhs_format, rhs_format):
    rng = np.random.default_rng(3)
    lhs, rhs = normal(rng, lhs_format, (40, 6)), normal(rng, rhs_format, (6, 8))
    for x, data_format in ((lhs, lhs_format), (rhs, rhs_format)):
        x[rng.random(x.shape) < 0.2] = 0
        if data_format is not INT8:
            for value in (np.inf, -np.inf, np.nan):
                x[rng.random(x.shape) < 0.05] = value
            tiniest = np.finfo(x.dtype).smallest_subnormal
            x[rng.random(x.shape) < 0.1] = tiniest  # infinity times a subnormal is infinity
    check_against_reference(lhs, rhs)


@pytest.mark.parametrize(("lhs_format", "rhs_format"), PAIRS)
def test_a_row_alone_equals_the_row_in_a_batch(lhs_format, rhs_format):
    rng = np.random.default_rng(4)
    lhs, rhs = normal(rng, lhs_format, (2, 5, 33)), normal(rng, rhs_format, (2, 33, 4))
    batch = dot(lhs, rhs)
    alone = exact_dot(np, lhs[1, 3:4], rhs[1, :, 2:3], lhs_format, rhs_format)
    assert alone.view(np.uint32) == batch[1, 3, 2].view(np.uint32)


def test_long_sums_of_full_digits_stay_exact():
    # 9001 * (2^20 - 1)^2 is odd and above 2^53; taking away its upper bits leaves the lowest 20 as the result
    digit, count = 2**20 - 1, 9001
    total = count * digit * digit
    upper = [-(total >> 40) * 2.0**40, -(total >> 20 & digit) * 2.0**20]
    unit = 2.0**-49  # a digit boundary: 100 = 5 * 20 above 2^-149
    lhs = np.array([[digit * unit] * count + [term * unit for term in upper]], np.float32)
    rhs = np.array([[digit * unit]] * count + [[unit]] * 2, np.float32)
    check_against_reference(lhs, rhs)
    assert dot(lhs, rhs)[0, 0] == (total & digit) * unit * unit


def test_products_and_quotients_round_as_in_numpy():
    # XLA would fuse a * b + c and turn a division by a constant into a product
    a, b, c = np.random.default_rng(10).standard_normal((3, 10_000))

    def expressions(xp, a, b, c):
        divisor = xp.full((1,), 49.0)
        return xp.stack([numerics.product(xp, a, b) + c, numerics.quotient(xp, a, divisor), numerics.total(xp, a, c)])

    with jax.enable_x64(True):
        traced = np.asarray(jax.jit(lambda *arrays: expressions(jnp, *arrays))(a, b, c))
    np.testing.assert_array_equal(traced, expressions(np, a, b, c))


@pytest.mark.parametrize("shape", [(1, 64), (3, 577), (2, 4, 96), (300,)])
def test_sum_has_the_bits_of_a_dot_with_ones(shape):
    rng = np.random.default_rng(7)
    arrays = [normal(rng, FP32, shape), random_bits(rng, FP32, shape), np.zeros(shape, np.float32)]
    with_special = arrays[0].copy()
    with_special.reshape(-1)[5] = np.inf
    for x in [*arrays, with_special]:
        ones = np.ones((*shape[:-2], shape[-1], 1), np.int8)
        rows = x if x.ndim > 1 else x[None]
        expected = exact_dot(np, rows, ones, FP32, INT8)[..., 0].reshape(shape[:-1])
        result = both(exact_sum, x)
        np.testing.assert_array_equal(result.view(np.uint32), expected.view(np.uint32))


def test_sum_takes_any_axis():
    x = np.random.default_rng(8).standard_normal((5, 6, 7)).astype(np.float32)
    expected = exact_sum(np, np.moveaxis(x, 1, -1))
    np.testing.assert_array_equal(both(lambda xp, a: exact_sum(xp, a, axis=1), x), expected)


def test_rounding_to_fp32_flushes_before_it_rounds():
    below = np.nextafter(2.0**-126, 0.0)  # would round up to the smallest normal
    x = np.array([below, -below, 2.0**-126, 1 + 2.0**-24, 1 + 3 * 2.0**-24, 1e300, np.nan, -np.nan])
    with jax.enable_x64(True):
        traced = np.asarray(jax.jit(lambda a: numerics.round_to_fp32(jnp, a))(x))
    with np.errstate(all="ignore"):
        plain = numerics.round_to_fp32(np, x)
    expected = [0, 0x80000000, 0x00800000, 0x3F800000, 0x3F800002, 0x7F800000, 0x7FC00000, 0x7FC00000]
    for result in (plain, traced):
        np.testing.assert_array_equal(result.view(np.uint32), np.array(expected, np.uint32))
