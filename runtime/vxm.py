"""Arithmetic of the VXM: every function of the instruction set, on NumPy arrays or traced JAX arrays, with equal bits.

fp32 functions flush subnormal operands to signed zero, work in float64 and round once, flushing results below 2^-126;
a NaN result is always 0x7fc00000. neg, abs, identity, mask and mask_bar move bits and flush nothing; to_bf16 rounds and
flushes nothing. JAX callers trace inside `jax.enable_x64(True)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from lpu_jax.runtime import casts, formats
from lpu_jax.runtime.isa import DataFormat
from lpu_jax.runtime.numerics import (
    CANONICAL_NAN,
    Array,
    bitcast,
    canonical_nan,
    flush_to_float64,
    product,
    quotient,
    round_to_fp32,
    square_root,
    total,
)

_INT32_MIN = -(2**31)
_INT32_MAX = 2**31 - 1

# 2^52 + 2^51: adding it to a small integer leaves that integer in the low bits of the significand.
_INTEGER_BIAS = 6755399441055744.0
_LOG2_E = float(int(math.log2(math.e) * 2**28)) / 2**28  # 29 bits: the product with an fp32 is exact
_LN2_HIGH = float(int(math.log(2) * 2**40)) / 2**40  # 40 bits: the product with an exponent is exact
_LN2_LOW = 7.371002565167799e-13  # ln 2 - _LN2_HIGH
_SQRT_HALF_BITS = 0x3FE6A09E667F3BCD

# exp(r) - 1 = r + r^2 (1/2! + r/3! + ...), |r| <= ln(2) / 2: truncation below 2^-43
_EXP_COEFFICIENTS = tuple(1.0 / math.factorial(k) for k in range(11, 1, -1))
# log((1 + s) / (1 - s)) = 2 s + s (2/3 z + 2/5 z^2 + ...), z = s^2 <= 0.0295: truncation below 2^-54
_LOG_COEFFICIENTS = tuple(2.0 / (2 * k + 1) for k in range(10, 0, -1))
# sin r = r + r z (-1/3! + z/5! - ...), cos r = 1 + z (-1/2! + z/4! - ...), z = r^2, |r| <= pi/4: truncation below 2^-44
_SIN_COEFFICIENTS = tuple((-1.0) ** k / math.factorial(2 * k + 1) for k in range(7, 0, -1))
_COS_COEFFICIENTS = tuple((-1.0) ** k / math.factorial(2 * k) for k in range(7, 0, -1))
# erf x = x P(x^2) / Q(x^2) for |x| <= 4: minimax fit, relative error 2^-36.8; beyond 4 the fp32 result is 1
_ERF_NUMERATOR = (
    3.004716086215811e-09, 7.527944942474924e-07, 2.1788166818231086e-05, 0.0005130513423727952,
    0.004962303335474835, 0.05811887929302883, 0.20034667936678566, 1.1283791670860888,
)  # fmt: skip
_ERF_DENOMINATOR = (
    7.329854582994122e-08, 4.519250000165679e-06, 0.00011151861012532698, 0.0017152588771149036,
    0.017719255014347565, 0.12180183765075125, 0.5108859545772003, 1.0,
)  # fmt: skip

_TWO_OVER_PI_320_BITS = int("a2f9836e4e441529fc2757d1f534ddc0db6295993c439041fe5163abdebbc561b7246e3a424dd2e0", 16)


def _quarter_turns() -> tuple[np.ndarray, np.ndarray]:
    """2^(e - 150) * 2/pi mod 4 for each fp32 exponent field e: 64 bits in units of 2^-62, then the next 32 bits."""
    high, low = [], []
    for exponent in range(256):
        shift = (exponent - 150) + 94 - 320
        bits = (_TWO_OVER_PI_320_BITS << shift if shift > 0 else _TWO_OVER_PI_320_BITS >> -shift) & (2**96 - 1)
        high.append(bits >> 32)
        low.append(bits & 0xFFFFFFFF)
    return np.array(high, np.uint64).view(np.int64), np.array(low, np.int64)


_QUARTER_TURNS_HIGH, _QUARTER_TURNS_LOW = _quarter_turns()
_RADIANS_PER_UNIT = math.pi / 2 * 2.0**-62


def _polynomial(xp: Any, x: Array, coefficients: tuple[float, ...]) -> Array:
    """Horner's rule, highest power first."""
    result = product(xp, x, coefficients[0]) + coefficients[1]
    for coefficient in coefficients[2:]:
        result = product(xp, x, result) + coefficient
    return result


def _clip(xp: Any, x: Array, low: float, high: float) -> Array:
    return xp.minimum(xp.maximum(x, low), high)


def _keep_zero(xp: Any, x: Array, result: Array) -> Array:
    """An odd function of a signed zero is that zero."""
    return xp.where(x == 0.0, x, result)


def _expm1_parts(xp: Any, x: Array) -> tuple[Array, Array]:
    """(p, s) with exp(x) = s * (1 + p), s a power of two; x beyond +-200 counts as +-200, outside fp32 anyway."""
    x = _clip(xp, x, -200.0, 200.0)
    n = xp.rint(product(xp, x, _LOG2_E))
    r = (x - n * _LN2_HIGH) - product(xp, n, _LN2_LOW)
    bias = bitcast(xp, n + _INTEGER_BIAS, np.int64)
    scale = bitcast(xp, (bias + 1023) << 52, np.float64)
    return r + product(xp, product(xp, r, r), _polynomial(xp, r, _EXP_COEFFICIENTS)), scale


def _exp(xp: Any, x: Array) -> Array:
    p, scale = _expm1_parts(xp, x)
    return scale * p + scale


def _expm1(xp: Any, x: Array) -> Array:
    p, scale = _expm1_parts(xp, x)
    return _keep_zero(xp, x, scale * p + (scale - 1.0))


def _tanh(xp: Any, x: Array) -> Array:
    p, scale = _expm1_parts(xp, _clip(xp, x, -20.0, 20.0) * 2.0)
    e = scale * p + (scale - 1.0)
    return _keep_zero(xp, x, quotient(xp, e, e + 2.0))


def _log_of(xp: Any, u: Array, u_minus_1: Array | None) -> Array:
    """log(u) for u in float64, negative and special operands included; u_minus_1 is used where u is near 1."""
    bits = bitcast(xp, u, np.int64)
    exponent = (bits - _SQRT_HALF_BITS) >> 52
    significand = bitcast(xp, bits - (exponent << 52), np.float64)
    numerator = significand - 1.0
    if u_minus_1 is not None:
        numerator = xp.where(exponent == 0, u_minus_1, numerator)
    s = quotient(xp, numerator, numerator + 2.0)
    z = product(xp, s, s)
    log_significand = product(xp, s, product(xp, z, _polynomial(xp, z, _LOG_COEFFICIENTS)) + 2.0)
    e = exponent.astype(np.float64)
    result = e * _LN2_HIGH + (log_significand + product(xp, e, _LN2_LOW))
    special = xp.where(u == 0.0, -math.inf, xp.where(u > 0.0, math.inf, math.nan))
    return xp.where((u > 0.0) & (u < math.inf), result, special)


def _log(xp: Any, x: Array) -> Array:
    return _log_of(xp, x, None)


def _log1p(xp: Any, x: Array) -> Array:
    return _keep_zero(xp, x, _log_of(xp, x + 1.0, x))


def _pow(xp: Any, x: Array, y: Array) -> Array:
    """x^y with the special cases of C99."""
    magnitude = xp.abs(x)
    result = _exp(xp, product(xp, y, _log_of(xp, magnitude, None)))
    is_integer = xp.floor(y) == y
    is_odd = is_integer & (xp.floor(y * 0.5) != y * 0.5)
    result = xp.where(is_odd & (bitcast(xp, x, np.int64) < 0), -result, result)
    result = xp.where((x < 0.0) & (magnitude < math.inf) & ~is_integer, math.nan, result)
    return xp.where((y == 0.0) | (x == 1.0) | ((x == -1.0) & (xp.abs(y) == math.inf)), 1.0, result)


def _erf(xp: Any, x: Array) -> Array:
    x = _clip(xp, x, -4.0, 4.0)
    t = product(xp, x, x)
    ratio = quotient(xp, _polynomial(xp, t, _ERF_NUMERATOR), _polynomial(xp, t, _ERF_DENOMINATOR))
    return product(xp, x, ratio)


def _sin_cos(xp: Any, x: Array, quadrant_offset: int) -> Array:
    """sin(x + quadrant_offset * pi/2) of an fp32 value held in float64, exact range reduction at any size."""
    bits = bitcast(xp, x.astype(np.float32), np.int32)
    exponent = (bits >> 23) & 0xFF
    significand = ((bits & 0x7FFFFF) | 0x800000).astype(np.int64)
    high = xp.asarray(_QUARTER_TURNS_HIGH)[exponent]
    low = xp.asarray(_QUARTER_TURNS_LOW)[exponent]
    turns = significand * high + ((significand * low) >> 32)  # quarter turns, 2^-62 each, modulo 4
    quadrant = (turns + (1 << 61)) >> 62
    reduced = (turns - (quadrant << 62)).astype(np.float64) * _RADIANS_PER_UNIT
    magnitude = xp.abs(x)
    is_small = magnitude < 0.78
    r = xp.where(is_small, magnitude, reduced)
    quadrant = xp.where(is_small, 0, quadrant)
    is_negative = x < 0.0
    quadrant = xp.where(is_negative, -quadrant, quadrant) + quadrant_offset
    r = xp.where(is_negative, -r, r)
    z = product(xp, r, r)
    sine = r + product(xp, product(xp, r, z), _polynomial(xp, z, _SIN_COEFFICIENTS))
    cosine = product(xp, z, _polynomial(xp, z, _COS_COEFFICIENTS)) + 1.0
    result = xp.where((quadrant & 1) == 1, cosine, sine)
    result = xp.where((quadrant & 2) == 2, -result, result)
    return xp.where(magnitude < math.inf, result, math.nan)


def _sin(xp: Any, x: Array) -> Array:
    return _keep_zero(xp, x, _sin_cos(xp, x, 0))


def _rem(xp: Any, x: Array, y: Array) -> Array:
    if xp is np:
        return np.fmod(x, y)
    from jax import lax

    return lax.rem(x, y)


_FLOAT64_UNARY: dict[str, Callable[[Any, Array], Array]] = {
    "sign": lambda xp, x: xp.where(x > 0.0, 1.0, xp.where(x < 0.0, -1.0, x)),
    "exp": _exp,
    "log": _log,
    "tanh": _tanh,
    "rsqrt": lambda xp, x: quotient(xp, xp.ones_like(x), square_root(xp, x)),
    "sqrt": square_root,
    "erf": lambda xp, x: _keep_zero(xp, x, _erf(xp, x)),
    "sin": _sin,
    "cos": lambda xp, x: _sin_cos(xp, x, 1),
    "floor": lambda xp, x: xp.floor(x),
    "ceil": lambda xp, x: xp.ceil(x),
    "round": lambda xp, x: xp.rint(x),
    "log1p": _log1p,
    "expm1": _expm1,
}
"""Functions of one fp32 operand: float64 (subnormals flushed) -> float64, rounded afterwards."""

_FLOAT64_BINARY: dict[str, Callable[[Any, Array, Array], Array]] = {
    "add": total,
    "sub": lambda xp, x, y: total(xp, x, -y),
    "mul": lambda xp, x, y: x * y,
    "div": quotient,
    "pow": _pow,
    "rem": _rem,
}
"""Functions of two fp32 operands: float64 (subnormals flushed) -> float64, rounded afterwards."""

FLUSHING = frozenset(_FLOAT64_UNARY) | frozenset(_FLOAT64_BINARY) | {"max", "min"}
"""Functions whose fp32 results are never subnormal."""

_COMPARISONS: dict[str, Callable[[Array, Array], Array]] = {
    "eq": lambda x, y: x == y,
    "ne": lambda x, y: x != y,
    "lt": lambda x, y: x < y,
    "le": lambda x, y: x <= y,
    "gt": lambda x, y: x > y,
    "ge": lambda x, y: x >= y,
}
"""Comparisons; with the prefix `i` they compare int32."""


def ordered(xp: Any, bits: Array) -> Array:
    """Maps fp32 bits to integers of the same order (-0 just below +0); its own inverse."""
    return bits ^ ((bits >> 31) & _INT32_MAX)


def _extremum(xp: Any, choose: Callable[[Array, Array], Array], lhs: Array, rhs: Array) -> Array:
    """max or min: NaN if either operand is NaN, -0 < +0; flushing commutes with the choice, so it is done once."""
    key = choose(ordered(xp, bitcast(xp, lhs, np.int32)), ordered(xp, bitcast(xp, rhs, np.int32)))
    bits = ordered(xp, key)
    bits = xp.where((bits & 0x7F800000) == 0, bits & _INT32_MIN, bits)
    bits = xp.where((lhs != lhs) | (rhs != rhs), CANONICAL_NAN, bits)
    return bitcast(xp, bits, np.float32)


def _integer_quotient(xp: Any, x: Array, y: Array) -> Array:
    """Quotient of int32 rounded towards zero; x / 0 = -1 and INT_MIN / -1 = INT_MIN."""
    divisor = xp.where(y == 0, 1, y).astype(np.float64)
    ratio = quotient(xp, x.astype(np.float64), divisor).astype(np.int64)  # 53 bits decide the 32-bit quotient
    return xp.where(y == 0, np.int32(-1), ratio.astype(np.int32))


def _shift(xp: Any, name: str, x: Array, amount: Array) -> Array:
    """Shifts by an unsigned amount; 32 and more leave zeros, or copies of the sign for the arithmetic shift."""
    is_wide = (amount & ~31) != 0
    if name == "shift_right_arithmetic":
        return x >> xp.where(is_wide, 31, amount)
    if name == "shift_left":
        return xp.where(is_wide, 0, x << (amount & 31))
    shifted = bitcast(xp, bitcast(xp, x, np.uint32) >> bitcast(xp, amount & 31, np.uint32), np.int32)
    return xp.where(is_wide, 0, shifted)


_INT32: dict[str, Callable[[Any, Array, Array], Array]] = {
    "iadd": lambda xp, x, y: x + y,
    "isub": lambda xp, x, y: x - y,
    "imul": lambda xp, x, y: x * y,
    "imax": lambda xp, x, y: xp.maximum(x, y),
    "imin": lambda xp, x, y: xp.minimum(x, y),
    "ineg": lambda xp, x, _: -x,
    "iabs": lambda xp, x, _: xp.abs(x),
    "isign": lambda xp, x, _: xp.sign(x),
    "idiv": _integer_quotient,
    "irem": lambda xp, x, y: x - _integer_quotient(xp, x, y) * y,
    "and": lambda xp, x, y: x & y,
    "or": lambda xp, x, y: x | y,
    "xor": lambda xp, x, y: x ^ y,
    "not": lambda xp, x, _: ~x,
    "shift_left": lambda xp, x, y: _shift(xp, "shift_left", x, y),
    "shift_right_arithmetic": lambda xp, x, y: _shift(xp, "shift_right_arithmetic", x, y),
    "shift_right_logical": lambda xp, x, y: _shift(xp, "shift_right_logical", x, y),
}
"""int32 functions; all wrap around."""


def _mask(xp: Any, x: Array, mask: Array, keep_nonzero: bool) -> Array:
    bits = bitcast(xp, x, np.int32)
    kept = (bitcast(xp, mask, np.int32) != 0) if keep_nonzero else (bitcast(xp, mask, np.int32) == 0)
    return bitcast(xp, xp.where(kept, bits, 0), x.dtype)


def _to_int(xp: Any, x: Array) -> Array:
    x64 = flush_to_float64(xp, x)
    x64 = xp.where(x64 == x64, x64, 0.0)
    return _clip(xp, x64, float(_INT32_MIN), float(_INT32_MAX)).astype(np.int32)


_MOVES: dict[str, Callable[[Any, Array, Array], Array]] = {
    "identity": lambda xp, x, _: x,
    "neg": lambda xp, x, _: bitcast(xp, bitcast(xp, x, np.int32) ^ _INT32_MIN, np.float32),
    "abs": lambda xp, x, _: bitcast(xp, bitcast(xp, x, np.int32) & _INT32_MAX, np.float32),
    "max": lambda xp, x, y: _extremum(xp, xp.maximum, x, y),
    "min": lambda xp, x, y: _extremum(xp, xp.minimum, x, y),
    "mask": lambda xp, x, y: _mask(xp, x, y, True),
    "mask_bar": lambda xp, x, y: _mask(xp, x, y, False),
    "to_int": lambda xp, x, _: _to_int(xp, x),
    "to_float": lambda xp, x, _: x.astype(np.float32),
    "to_fp16": lambda xp, x, _: canonical_nan(xp, x.astype(np.float16).astype(np.float32)),
    "to_bf16": lambda xp, x, _: casts.round_to(xp, x, formats.BF16),
    "to_e4m3": lambda xp, x, _: casts.round_to(xp, x, formats.E4M3),
    "to_e5m2": lambda xp, x, _: casts.round_to(xp, x, formats.E5M2),
    "is_finite": lambda xp, x, _: ((bitcast(xp, x, np.int32) & 0x7F800000) != 0x7F800000).astype(np.int32),
}
"""Functions that choose, move or convert."""


def _apply(xp: Any, function_name: str, lhs: Array, rhs: Array) -> Array:
    if (unary := _FLOAT64_UNARY.get(function_name)) is not None:
        return round_to_fp32(xp, unary(xp, flush_to_float64(xp, lhs)))
    if (binary := _FLOAT64_BINARY.get(function_name)) is not None:
        return round_to_fp32(xp, binary(xp, flush_to_float64(xp, lhs), flush_to_float64(xp, rhs)))
    if (integer := _INT32.get(function_name)) is not None:
        return integer(xp, lhs, rhs)
    if (move := _MOVES.get(function_name)) is not None:
        return move(xp, lhs, rhs)
    if (compare := _COMPARISONS.get(function_name)) is not None:
        return compare(flush_to_float64(xp, lhs), flush_to_float64(xp, rhs)).astype(np.int32)
    if (compare := _COMPARISONS.get(function_name[1:])) is not None and function_name[0] == "i":
        return compare(lhs, rhs).astype(np.int32)
    raise ValueError(f"unknown VXM function {function_name!r}; isa.VXM_FUNCTIONS lists the known ones")


def apply(xp: Any, function_name: str, lhs: Array, rhs: Array = None) -> Array:
    """Applies a VXM function elementwise.

    Args:
      xp: numpy or jax.numpy (then traced inside `jax.enable_x64(True)`); the bits of the result are the same.
      function_name: a name of isa.VXM_FUNCTIONS.
      lhs: float32 or int32 array, as the function asks; shapes broadcast.
      rhs: second operand, or None for functions of one operand.

    Returns:
      A float32 or int32 array. Within 0.501 ulp for functions that are not exact.

    Raises:
      ValueError: unknown function.
    """
    with np.errstate(all="ignore"):  # JAX also folds constants with NumPy while it traces
        if xp is not np:
            return _apply(xp, function_name, lhs, rhs)
        return _apply(xp, function_name, np.asarray(lhs), None if rhs is None else np.asarray(rhs))


_STORAGE_DTYPES: dict[DataFormat, Any] = {
    DataFormat.FP32: np.float32,
    DataFormat.INT32: np.int32,
    DataFormat.FP16: np.float16,
    DataFormat.INT16: np.int16,
    DataFormat.INT8: np.int8,
    DataFormat.UINT8: np.uint8,
    DataFormat.BF16: formats.element_dtype(formats.BF16),
    DataFormat.E4M3: formats.element_dtype(formats.E4M3),
    DataFormat.E5M2: formats.element_dtype(formats.E5M2),
    **{form: np.int8 for form in DataFormat if form.is_block},
}


_NARROW_FLOATS = (DataFormat.BF16, DataFormat.E4M3, DataFormat.E5M2)


def storage_dtype(data_format: DataFormat) -> Any:
    """NumPy dtype of a vector in SRAM or on streams."""
    return np.dtype(_STORAGE_DTYPES[data_format])


def to_format(xp: Any, x: Array, data_format: DataFormat) -> Array:
    """Converts a VXM value to its storage dtype.

    float32 -> FP32 (same bits) or FP16, BF16, E4M3, E5M2 (nearest even, overflow to infinity or, in E4M3, to NaN;
    canonical NaN); int32 -> INT32 (same bits) or INT16, INT8, UINT8 (low bits).
    """
    if data_format in _NARROW_FLOATS:
        return casts.encode(xp, x, data_format.number_format)
    if data_format is not DataFormat.FP16:
        return x.astype(_STORAGE_DTYPES[data_format])
    with np.errstate(all="ignore"):
        half = x.astype(np.float16)
    return xp.where(half == half, half, np.float16(math.nan))


def from_format(xp: Any, x: Array, data_format: DataFormat) -> Array:
    """Converts a stored vector to a VXM value: floats -> float32 (exact, NaN 0x7fc00000), integers -> int32."""
    if data_format is DataFormat.FP32:
        return x
    if data_format in _NARROW_FLOATS:
        return casts.decode(xp, x, data_format.number_format)
    if data_format is DataFormat.FP16:
        return canonical_nan(xp, x.astype(np.float32))
    return x.astype(np.int32)
