"""Exact arithmetic with equal bits in NumPy and under jax.jit on CPU: one rounding per float64 operation, exact dot
products with one rounding at the end.

Functions take the namespace (numpy or jax.numpy) as first argument; JAX callers trace inside `jax.enable_x64(True)`.
XLA flushes subnormals, contracts a * b + c and divides by a broadcast through its reciprocal; the helpers here are
written so that none of it can show.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jax import lax

from lpu_jax.runtime.isa import DataFormat

Array = Any
"""A NumPy array or a traced JAX array."""

CANONICAL_NAN = 0x7FC00000
_MIN_NORMAL = 2.0**-126
_NAN32 = np.float32(math.nan)


def bitcast(xp: Any, x: Array, dtype: Any) -> Array:
    """The same bits as another dtype of equal width."""
    return x.view(dtype) if xp is np else lax.bitcast_convert_type(x, dtype)


def canonical_nan(xp: Any, x: Array) -> Array:
    """Replaces every NaN of a float32 array by 0x7fc00000."""
    return xp.where(x != x, _NAN32, x)


def _flush(xp: Any, x: Array) -> Array:
    """float64 values below 2^-126 in magnitude become signed zeros."""
    if xp is np:
        return x * (np.abs(x) >= _MIN_NORMAL)
    return xp.where(xp.abs(x) < _MIN_NORMAL, x * 0.0, x)


def flush_to_float64(xp: Any, x: Array) -> Array:
    """Widens float32 to float64; subnormals become signed zeros, whether or not the host flushes them itself."""
    return _flush(xp, x.astype(np.float64))


def round_to_fp32(xp: Any, x: Array) -> Array:
    """Rounds float64 to nearest even float32; |x| < 2^-126 gives a signed zero, NaN gives 0x7fc00000."""
    return canonical_nan(xp, _flush(xp, x).astype(np.float32))


def product(xp: Any, a: Array, b: Array | float) -> Array:
    """a * b, rounded before it is used: a fused multiply-add would show, and XLA does not fuse through a select."""
    if xp is np:
        return a * b
    return xp.where(a != a, a, a * b)


def total(xp: Any, a: Array, b: Array) -> Array:
    """a + b; the selects keep XLA from dropping a constant zero, which turns -0 into +0."""
    if xp is np:
        return a + b
    return xp.where(b != b, b, a) + xp.where(a != a, a, b)


def quotient(xp: Any, a: Array, b: Array) -> Array:
    """a / b; the select keeps XLA from seeing a broadcast divisor, which it would invert first."""
    if xp is np:
        return a / b
    return a / xp.where(a != a, a, b)


def square_root(xp: Any, x: Array) -> Array:
    """Square root of float64; the select keeps XLA from joining it with a division to an rsqrt."""
    if xp is np:
        return np.sqrt(x)
    return xp.where(x != x, x, xp.sqrt(x))


# Exact dot products. An operand is a sum of digits: digit i is an integer below 2^20 in magnitude, of weight
# 2^(20 i + unit). Products of digits summed over 4096 terms stay below 2^53, so float64 matmuls are exact in any order;
# their int64 sums are the limbs of a fixed-point number, which is rounded once.
_DIGIT_BITS = 20
_PANEL = 4096
_SUM_DIGIT_BITS = 30  # for sums alone, which need no room for products

_NUM_DIGITS = {DataFormat.FP32: 14, DataFormat.FP16: 2, DataFormat.INT8: 1}
_UNIT_EXPONENT = {DataFormat.FP32: -149, DataFormat.FP16: -24, DataFormat.INT8: 0}


def _fp32_fields(xp: Any, x: Array) -> tuple[Array, Array, Array]:
    """(sign, significand, position) of float32: x = sign * significand * 2^(position - 149); non-finite gives 0."""
    bits = bitcast(xp, x, np.int32).astype(np.int64)
    exponent = (bits >> 23) & 0xFF
    fraction = bits & 0x7FFFFF
    significand = xp.where(exponent == 0, fraction, fraction | 0x800000)
    significand = xp.where(exponent == 0xFF, 0, significand)
    return xp.where(bits < 0, -1, 1), significand, xp.maximum(exponent, 1) - 1


def _fp32_digit(xp: Any, fields: tuple[Array, Array, Array], index: Any, width: int) -> Array:
    """Digit `index` of `width` bits of float32 values in units of 2^-149, int64."""
    sign, significand, position = fields
    shift = position - index * width
    magnitude = (significand << xp.clip(shift, 0, width)) >> xp.clip(-shift, 0, 63)
    return sign * (magnitude & ((1 << width) - 1))


def _digit_range(xp: Any, fields: tuple[Array, Array, Array], width: int) -> tuple[Any, Any]:
    """Range [first, last) of digits that can be nonzero; empty if all values are zero."""
    _, significand, position = fields
    is_nonzero = significand != 0
    first = xp.min(xp.where(is_nonzero, position, 512), initial=512) // width
    last = xp.max(xp.where(is_nonzero, position + 23, -width), initial=-width) // width + 1
    return first, last


def _for_range(xp: Any, first: Any, last: Any, body: Callable[[Any, Array], Array], state: Array) -> Array:
    """Loops over first .. last - 1; the bounds may be traced."""
    if xp is not np:
        return lax.fori_loop(first, last, body, state)
    for index in range(int(first), int(last)):
        state = body(index, state)
    return state


def _fp16_units(xp: Any, x: Array) -> Array:
    """float16 as a float64 integer in units of 2^-24; non-finite gives 0."""
    is_finite = (bitcast(xp, x, np.int16) & 0x7C00) != 0x7C00
    return xp.where(is_finite, x, np.float16(0)).astype(np.float64) * 2.0**24


def _matmul(xp: Any, lhs: Array, rhs: Array) -> Array:
    """float64 matmul of integers whose sums stay exact."""
    return np.matmul(lhs, rhs) if xp is np else xp.matmul(lhs, rhs, precision=lax.Precision.HIGHEST)


def _panel_matmul(xp: Any, lhs: Array, rhs: Array) -> Array:
    """int64 matmul of float64 digits, exact for any K."""
    result = _matmul(xp, lhs[..., :_PANEL], rhs[..., :_PANEL, :]).astype(np.int64)
    for begin in range(_PANEL, lhs.shape[-1], _PANEL):
        panel = slice(begin, begin + _PANEL)
        result = result + _matmul(xp, lhs[..., panel], rhs[..., panel, :]).astype(np.int64)
    return result


def _carry(limbs: list[Array], width: int) -> tuple[list[Array], Array]:
    """Digits in [0, 2^width) of a sum of signed limbs, and the carry out of the last one."""
    digits = []
    carry = limbs[0] * 0
    for limb in limbs:
        value = limb + carry
        digits.append(value & ((1 << width) - 1))
        carry = value >> width
    return digits, carry


def _round_limbs(xp: Any, limbs: list[Array], width: int, unit_exponent: int) -> Array:
    """Rounds sum_i limbs[i] * 2^(width i + unit_exponent), int64 limbs, to nearest even float32 (subnormals kept)."""
    limbs = list(limbs)
    zero = limbs[0] * 0
    limbs += [zero] * (-(-64 // width))
    _, carry = _carry(limbs, width)
    is_negative = carry < 0
    digits, _ = _carry([xp.where(is_negative, -limb, limb) for limb in limbs], width)
    # The window holds the leading nonzero digit and the ones below it (60 bits), its lowest bit is sticky.
    below = 60 // width - 1  # digits in the window under the leading one
    window, exponent, sticky = zero, zero, zero
    padded = [zero] * below + digits
    for index, digit in enumerate(digits):
        if index > 0:
            sticky = sticky | (padded[index - 1] != 0).astype(np.int64)
        value = digit
        for lower in range(1, below + 1):
            value = (value << width) | padded[index + below - lower]
        is_leading = digit != 0
        window = xp.where(is_leading, value | sticky, window)
        exponent = xp.where(is_leading, width * (index - below) + unit_exponent, exponent)
    return _round_window(xp, window, exponent, is_negative)


def _round_window(xp: Any, window: Array, exponent: Array, is_negative: Array) -> Array:
    """(-1)^is_negative * window * 2^exponent to nearest even float32, for 2^30 <= window < 2^62 or window = 0."""
    normal = bitcast(xp, window.astype(np.float32), np.int32).astype(np.int64)
    field = (normal >> 23) + exponent
    drop = xp.clip(-149 - exponent, 0, 62)
    half = (1 << xp.maximum(drop, 1)) >> 1
    subnormal = (window + (half - 1) + ((window >> drop) & 1)) >> drop
    bits = xp.where(field >= 1, normal + (exponent << 23), subnormal)
    bits = xp.where(field >= 255, 0x7F800000, bits)
    bits = xp.where(window == 0, 0, bits)
    bits = (bits | (is_negative.astype(np.int64) << 31)).astype(np.int32)
    return bitcast(xp, bits, np.float32)


def _fixed_digits(xp: Any, x: Array, data_format: DataFormat) -> list[Array]:
    """All digits of an fp16 or int8 operand as float64, lowest first."""
    if data_format is DataFormat.INT8:
        return [x.astype(np.float64)]
    units = _fp16_units(xp, x)
    high = xp.floor(units * 2.0**-_DIGIT_BITS)
    return [units - high * 2.0**_DIGIT_BITS, high]


def _fixed_limbs(xp: Any, lhs_digits: list[Array], rhs_digits: list[Array]) -> list[Array]:
    """Limbs of the dot product of operands given by all their digits."""
    limbs: list[Any] = [0] * (len(lhs_digits) + len(rhs_digits) - 1)
    for i, lhs_digit in enumerate(lhs_digits):
        for j, rhs_digit in enumerate(rhs_digits):
            limbs[i + j] = limbs[i + j] + _panel_matmul(xp, lhs_digit, rhs_digit)
    return limbs


def _fp32_limbs(xp: Any, lhs: Array, rhs: Array, lhs_format: DataFormat, rhs_format: DataFormat) -> list[Array]:
    """Limbs of a dot product with an fp32 operand; digits that are zero everywhere cost nothing."""
    num_limbs = _NUM_DIGITS[lhs_format] + _NUM_DIGITS[rhs_format] - 1
    state = xp.zeros((num_limbs, *lhs.shape[:-1], rhs.shape[-1]), np.int64)

    def add(index: Any, value: Array, limbs: Array) -> Array:
        if xp is not np:
            return limbs.at[index].add(value)
        limbs[index] += value
        return limbs

    def for_each_digit(
        x: Array, data_format: DataFormat, body: Callable[[Any, Array, Array], Array], limbs: Array
    ) -> Array:
        if data_format is not DataFormat.FP32:
            for index, digit in enumerate(_fixed_digits(xp, x, data_format)):
                limbs = body(index, digit, limbs)
            return limbs
        fields = _fp32_fields(xp, x)
        first, last = _digit_range(xp, fields, _DIGIT_BITS)

        def step(index: Any, inner: Array) -> Array:
            return body(index, _fp32_digit(xp, fields, index, _DIGIT_BITS).astype(np.float64), inner)

        return _for_range(xp, first, last, step, limbs)

    def with_lhs(i: Any, lhs_digit: Array, limbs: Array) -> Array:
        def with_rhs(j: Any, rhs_digit: Array, inner: Array) -> Array:
            return add(i + j, _panel_matmul(xp, lhs_digit, rhs_digit), inner)

        return for_each_digit(rhs, rhs_format, with_rhs, limbs)

    state = for_each_digit(lhs, lhs_format, with_lhs, state)
    return [state[index] for index in range(num_limbs)]


def _signs(xp: Any, x: Array) -> tuple[Array, Array, Array, Array]:
    """Indicators (NaN, +infinity, -infinity, and the sign as -1, 0, 1; 0 for NaN), exact for subnormals; float64."""
    if x.dtype in (np.float64, np.int8):
        zero = xp.zeros(x.shape, np.float64)
        return zero, zero, zero, xp.sign(x).astype(np.float64)
    integer, infinity = (np.int32, 0x7F800000) if x.dtype == np.float32 else (np.int16, 0x7C00)
    bits = bitcast(xp, x, integer).astype(np.int32)
    magnitude = bits & (0x7FFFFFFF if x.dtype == np.float32 else 0x7FFF)
    is_negative = bits < 0
    sign = xp.where((magnitude == 0) | (magnitude > infinity), 0.0, xp.where(is_negative, -1.0, 1.0))
    is_infinite = magnitude == infinity
    indicators = (magnitude > infinity, is_infinite & ~is_negative, is_infinite & is_negative)
    nan, plus, minus = (indicator.astype(np.float64) for indicator in indicators)
    return nan, plus, minus, sign


def _with_special(xp: Any, lhs: Array, rhs: Array, result: Array) -> Array:
    """Puts NaN and infinities into a result that left the non-finite operands out."""
    lhs_nan, lhs_plus, lhs_minus, lhs_sign = _signs(xp, lhs)
    rhs_nan, rhs_plus, rhs_minus, rhs_sign = _signs(xp, rhs)

    def count(a: Array, b: Array) -> Array:
        return _matmul(xp, a, b)

    lhs_zero, rhs_zero = (lhs_sign == 0.0).astype(np.float64), (rhs_sign == 0.0).astype(np.float64)
    lhs_up, lhs_down = (lhs_sign > 0.0).astype(np.float64), (lhs_sign < 0.0).astype(np.float64)
    rhs_up, rhs_down = (rhs_sign > 0.0).astype(np.float64), (rhs_sign < 0.0).astype(np.float64)
    nan = count(lhs_nan, xp.ones_like(rhs_nan)) + count(xp.ones_like(lhs_nan), rhs_nan)
    nan = nan + count(lhs_plus + lhs_minus, rhs_zero) + count(lhs_zero, rhs_plus + rhs_minus)
    plus = count(lhs_plus, rhs_up) + count(lhs_minus, rhs_down) + count(lhs_up, rhs_plus) + count(lhs_down, rhs_minus)
    minus = count(lhs_plus, rhs_down) + count(lhs_minus, rhs_up) + count(lhs_up, rhs_minus) + count(lhs_down, rhs_plus)
    bits = bitcast(xp, result, np.int32)
    bits = xp.where(plus > 0.0, 0x7F800000, bits)
    bits = xp.where(minus > 0.0, np.int32(0x7F800000 - 2**31), bits)
    bits = xp.where((nan > 0.0) | ((plus > 0.0) & (minus > 0.0)), CANONICAL_NAN, bits)
    return bitcast(xp, bits.astype(np.int32), np.float32)


def _has_special(xp: Any, x: Array) -> Any:
    """Whether a float array holds a NaN or an infinity; False for int8."""
    if x.dtype == np.float32:
        return xp.any((bitcast(xp, x, np.int32) & 0x7F800000) == 0x7F800000)
    if x.dtype == np.float16:
        return xp.any((bitcast(xp, x, np.int16) & 0x7C00) == 0x7C00)
    return np.bool_(False)


def _if(xp: Any, condition: Any, then: Callable[[], Array], otherwise: Callable[[], Array]) -> Array:
    """A conditional of which one branch runs."""
    if xp is np:
        return then() if condition else otherwise()
    return lax.cond(condition, then, otherwise)


def exact_dot(xp: Any, lhs: Array, rhs: Array, lhs_format: DataFormat, rhs_format: DataFormat) -> Array:
    """Matrix product with exact products, exact sums and one rounding.

    result[..., m, n] = RNE(sum_k lhs[..., m, k] * rhs[..., k, n]), the same in any order, tiling or batch. Subnormal
    operands count, subnormal results are kept. A zero sum is +0; NaN, inf * 0 and inf - inf give 0x7fc00000.

    Args:
      xp: numpy or jax.numpy.
      lhs: [..., M, K] in the storage dtype of lhs_format: FP32, FP16 or INT8.
      rhs: [..., K, N] in the storage dtype of rhs_format, with the leading dimensions of lhs.
      lhs_format: format of lhs.
      rhs_format: format of rhs.

    Returns:
      float32 [..., M, N]; int32 for INT8 x INT8 (K <= 131071).
    """
    if lhs_format is DataFormat.INT8 and rhs_format is DataFormat.INT8:
        return _panel_matmul(xp, lhs.astype(np.float64), rhs.astype(np.float64)).astype(np.int32)
    unit_exponent = _UNIT_EXPONENT[lhs_format] + _UNIT_EXPONENT[rhs_format]
    if DataFormat.FP32 in (lhs_format, rhs_format):
        limbs = _fp32_limbs(xp, lhs, rhs, lhs_format, rhs_format)
    else:
        limbs = _fixed_limbs(xp, _fixed_digits(xp, lhs, lhs_format), _fixed_digits(xp, rhs, rhs_format))
    if len(limbs) == 2 and lhs.shape[-1] <= 2**16 and DataFormat.INT8 in (lhs_format, rhs_format):
        result = ((limbs[1] << _DIGIT_BITS) + limbs[0]).astype(np.float32) * np.float32(2.0**unit_exponent)
    else:
        result = _round_limbs(xp, limbs, _DIGIT_BITS, unit_exponent)
    has_special = _has_special(xp, lhs) | _has_special(xp, rhs)
    return _if(xp, has_special, lambda: _with_special(xp, lhs, rhs, result), lambda: result)


_SHORT_DIGIT_BITS = 7
_NUM_SHORT_DIGITS = 6  # of 41 bits: |fp16| < 2^40 units, plus the sign
_MAX_SHORT_ROWS = 2048  # 64 * 128 * K <= 2^24: float32 sums of digits times int8 weights are exact
_MAX_SHORT_COLUMNS = 8192


def prepare_weights(rhs: np.ndarray) -> np.ndarray:
    """int8 weights [K, N] in the form that exact_dot_prepared multiplies: float32 or float64.

    A float64 GEMV reads twice the bytes of a float32 one. Six 7-bit digits of the activations against float32 weights
    read half of that, and win as long as the matrix is small; at 576 x 49152 they were measured to lose.
    """
    rows, columns = rhs.shape[-2:]
    short = rows <= _MAX_SHORT_ROWS and columns <= _MAX_SHORT_COLUMNS
    return np.asarray(rhs).astype(np.float32 if short else np.float64)


def _short_digits(xp: Any, units: Array) -> list[Array]:
    """Signed 7-bit digits of float64 integers below 2^41 in magnitude, highest first, as float32."""
    digits = []
    for position in range(_NUM_SHORT_DIGITS - 1, -1, -1):
        scale = 2.0 ** (_SHORT_DIGIT_BITS * position)
        digit = xp.round(units * (1.0 / scale))
        units = units - digit * scale
        digits.append(digit.astype(np.float32))
    return digits


def _short_matmul(xp: Any, units: Array, prepared: Array) -> Array:
    """units . weights, rounded once: exact float32 products of digits, joined in int64."""
    rows = units.shape[0]
    sums = xp.matmul(xp.concatenate(_short_digits(xp, units), axis=0), prepared).astype(np.int64)
    joined = sums[:rows]
    for position in range(1, _NUM_SHORT_DIGITS):
        joined = (joined << _SHORT_DIGIT_BITS) + sums[position * rows : (position + 1) * rows]
    return joined.astype(np.float32) * np.float32(2.0**-24)


def exact_dot_prepared(xp: Any, lhs: Array, prepared: Array, rhs_format: DataFormat = DataFormat.INT8) -> Array:
    """exact_dot(lhs, weights, FP16, INT8) for weights from prepare_weights: float16 [M, K], [K, N] -> float32 [M, N].

    float32 weights: six exact matmuls of digits in one. float64 weights: one matmul where the sums certainly stay below
    2^53 units, that is sum_k |lhs[m, k]| < 2^22; else two.
    """
    if rhs_format is not DataFormat.INT8:
        raise ValueError(f"prepared weights are INT8, not {rhs_format.name}")
    units = _fp16_units(xp, lhs)
    has_special = _has_special(xp, lhs)
    if prepared.dtype == np.float32 and lhs.shape[0] <= 4:
        result = _short_matmul(xp, units, prepared)
        return _if(xp, has_special, lambda: _with_special(xp, lhs, prepared, result), lambda: result)
    weights = prepared.astype(np.float64)
    is_small = xp.max(xp.sum(xp.abs(units), axis=-1)) < 2.0**46

    def one_matmul() -> Array:
        return _matmul(xp, units, weights).astype(np.int64).astype(np.float32) * np.float32(2.0**-24)

    def two_matmuls() -> Array:
        high, low = (_panel_matmul(xp, digit, weights) for digit in reversed(_fixed_digits(xp, lhs, DataFormat.FP16)))
        result = ((high << _DIGIT_BITS) + low).astype(np.float32) * np.float32(2.0**-24)
        return _if(xp, has_special, lambda: _with_special(xp, lhs, weights, result), lambda: result)

    return _if(xp, is_small & ~has_special, one_matmul, two_matmuls)


def exact_sum(xp: Any, x: Array, axis: int = -1) -> Array:
    """Sum of float32 along an axis, exact and rounded once: the bits of exact_dot with a column of int8 ones."""
    x = xp.moveaxis(x, axis, -1)
    fields = _fp32_fields(xp, x)
    first, last = _digit_range(xp, fields, _SUM_DIGIT_BITS)
    num_limbs = -(-(254 + 24) // _SUM_DIGIT_BITS)
    state = xp.zeros((num_limbs, *x.shape[:-1]), np.int64)

    def step(index: Any, limbs: Array) -> Array:
        limb = xp.sum(_fp32_digit(xp, fields, index, _SUM_DIGIT_BITS), axis=-1)
        if xp is not np:
            return limbs.at[index].set(limb)
        limbs[index] = limb
        return limbs

    state = _for_range(xp, first, last, step, state)
    result = _round_limbs(xp, [state[i] for i in range(num_limbs)], _SUM_DIGIT_BITS, _UNIT_EXPONENT[DataFormat.FP32])

    def special() -> Array:
        ones = xp.ones((*x.shape[:-2], x.shape[-1], 1), np.int8)
        rows = x if x.ndim > 1 else x[None]
        return _with_special(xp, rows, ones, result.reshape((*rows.shape[:-1], 1))).reshape(result.shape)

    return _if(xp, _has_special(xp, x), special, lambda: result)
