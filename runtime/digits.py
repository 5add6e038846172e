"""Exact dot products by digits: always exact, the same in NumPy and JAX.

An operand is a sum of digits: digit i is an integer below 2^20 in magnitude, of weight 2^(20 i + unit). Products of
digits summed over 4096 terms stay below 2^53, so float64 matmuls are exact in any order; their int64 sums are the limbs
of a fixed-point number, which is rounded once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jax import lax

from lpu_jax.runtime.casts import bits_of
from lpu_jax.runtime.isa import DataFormat
from lpu_jax.runtime.numerics import CANONICAL_NAN, Array, bitcast

DIGIT_BITS = 20
_PANEL = 4096

_NUM_DIGITS = {DataFormat.FP32: 14, DataFormat.FP16: 2, DataFormat.E4M3: 1, DataFormat.INT8: 1}
UNIT_EXPONENT = {DataFormat.FP32: -149, DataFormat.FP16: -24, DataFormat.E4M3: -9, DataFormat.INT8: 0}
_UNIT_BITS = {DataFormat.FP32: 277, DataFormat.FP16: 40, DataFormat.E4M3: 18, DataFormat.INT8: 7}
"""By kind of operand (see `widen`): digits, weight of the lowest bit, and bits of the largest magnitude in it."""


def widen(xp: Any, x: Array, data_format: DataFormat) -> tuple[Array, DataFormat]:
    """An operand as float32, float16 or int8, which hold it exactly, and its kind: FP32, FP16, E4M3 or INT8."""
    if data_format is DataFormat.BF16:
        return bitcast(xp, bits_of(xp, x) << 16, np.float32), DataFormat.FP32
    if data_format is DataFormat.E5M2:
        return bitcast(xp, (bits_of(xp, x) << 8).astype(np.uint16), np.float16), DataFormat.FP16
    if data_format is DataFormat.E4M3:
        bits = bits_of(xp, x)
        code = ((bits & 0x80) << 8) | ((bits & 0x7F) << 7)  # 2^8 too small, for a bias of 15 in place of 7
        half = bitcast(xp, code.astype(np.uint16), np.float16) * np.float16(256)
        return xp.where((bits & 0x7F) == 0x7F, np.float16(np.nan), half), DataFormat.E4M3
    if data_format in _NUM_DIGITS:
        return x, data_format
    raise ValueError(f"the MXM does not multiply {data_format.name}")


def unit_bits(data_format: DataFormat) -> int:
    """Bits of the largest magnitude of a kind of operand, in units of its lowest bit."""
    return _UNIT_BITS[data_format]


def fp32_fields(xp: Any, x: Array) -> tuple[Array, Array, Array]:
    """(sign, significand, position) of float32: x = sign * significand * 2^(position - 149); non-finite gives 0."""
    bits = bitcast(xp, x, np.int32).astype(np.int64)
    exponent = (bits >> 23) & 0xFF
    fraction = bits & 0x7FFFFF
    significand = xp.where(exponent == 0, fraction, fraction | 0x800000)
    significand = xp.where(exponent == 0xFF, 0, significand)
    return xp.where(bits < 0, -1, 1), significand, xp.maximum(exponent, 1) - 1


def fp32_digit(xp: Any, fields: tuple[Array, Array, Array], index: Any, width: int) -> Array:
    """Digit `index` of `width` bits of float32 values in units of 2^-149, int64."""
    sign, significand, position = fields
    shift = position - index * width
    magnitude = (significand << xp.clip(shift, 0, width)) >> xp.clip(-shift, 0, 63)
    return sign * (magnitude & ((1 << width) - 1))


def digit_range(xp: Any, fields: tuple[Array, Array, Array], width: int) -> tuple[Any, Any]:
    """Range [first, last) of digits that can be nonzero; empty if all values are zero."""
    _, significand, position = fields
    is_nonzero = significand != 0
    first = xp.min(xp.where(is_nonzero, position, 512), initial=512) // width
    last = xp.max(xp.where(is_nonzero, position + 23, -width), initial=-width) // width + 1
    return first, last


def for_range(xp: Any, first: Any, last: Any, body: Callable[[Any, Array], Array], state: Array) -> Array:
    """Loops over first .. last - 1; the bounds may be traced."""
    if xp is not np:
        return lax.fori_loop(first, last, body, state)
    for index in range(int(first), int(last)):
        state = body(index, state)
    return state


def fp16_units(xp: Any, x: Array) -> Array:
    """float16 as a float64 integer in units of 2^-24; non-finite gives 0."""
    is_finite = (bitcast(xp, x, np.int16) & 0x7C00) != 0x7C00
    return xp.where(is_finite, x, np.float16(0)).astype(np.float64) * 2.0**24


def matmul(xp: Any, lhs: Array, rhs: Array) -> Array:
    """float64 matmul of integers whose sums stay exact."""
    return np.matmul(lhs, rhs) if xp is np else xp.matmul(lhs, rhs, precision=lax.Precision.HIGHEST)


def panel_matmul(xp: Any, lhs: Array, rhs: Array) -> Array:
    """int64 matmul of float64 digits, exact for any K."""
    result = matmul(xp, lhs[..., :_PANEL], rhs[..., :_PANEL, :]).astype(np.int64)
    for begin in range(_PANEL, lhs.shape[-1], _PANEL):
        panel = slice(begin, begin + _PANEL)
        result = result + matmul(xp, lhs[..., panel], rhs[..., panel, :]).astype(np.int64)
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


def round_limbs(xp: Any, limbs: list[Array], width: int, unit_exponent: int) -> Array:
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


def fixed_digits(xp: Any, x: Array, data_format: DataFormat) -> list[Array]:
    """All digits of an fp16, e4m3 or int8 operand as float64, lowest first."""
    if data_format is DataFormat.INT8:
        return [x.astype(np.float64)]
    if data_format is DataFormat.E4M3:
        return [fp16_units(xp, x) * 2.0**-15]
    units = fp16_units(xp, x)
    high = xp.floor(units * 2.0**-DIGIT_BITS)
    return [units - high * 2.0**DIGIT_BITS, high]


def fixed_limbs(xp: Any, lhs_digits: list[Array], rhs_digits: list[Array]) -> list[Array]:
    """Limbs of the dot product of operands given by all their digits."""
    limbs: list[Any] = [0] * (len(lhs_digits) + len(rhs_digits) - 1)
    for i, lhs_digit in enumerate(lhs_digits):
        for j, rhs_digit in enumerate(rhs_digits):
            limbs[i + j] = limbs[i + j] + panel_matmul(xp, lhs_digit, rhs_digit)
    return limbs


def fp32_limbs(xp: Any, lhs: Array, rhs: Array, lhs_format: DataFormat, rhs_format: DataFormat) -> list[Array]:
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
            for index, digit in enumerate(fixed_digits(xp, x, data_format)):
                limbs = body(index, digit, limbs)
            return limbs
        fields = fp32_fields(xp, x)
        first, last = digit_range(xp, fields, DIGIT_BITS)

        def step(index: Any, inner: Array) -> Array:
            return body(index, fp32_digit(xp, fields, index, DIGIT_BITS).astype(np.float64), inner)

        return for_range(xp, first, last, step, limbs)

    def with_lhs(i: Any, lhs_digit: Array, limbs: Array) -> Array:
        def with_rhs(j: Any, rhs_digit: Array, inner: Array) -> Array:
            return add(i + j, panel_matmul(xp, lhs_digit, rhs_digit), inner)

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


def with_special(xp: Any, lhs: Array, rhs: Array, result: Array) -> Array:
    """Puts NaN and infinities into a result that left the non-finite operands out."""
    lhs_nan, lhs_plus, lhs_minus, lhs_sign = _signs(xp, lhs)
    rhs_nan, rhs_plus, rhs_minus, rhs_sign = _signs(xp, rhs)

    def count(a: Array, b: Array) -> Array:
        return matmul(xp, a, b)

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


def has_special(xp: Any, x: Array) -> Any:
    """Whether a float array holds a NaN or an infinity; False for int8."""
    if x.dtype == np.float32:
        return xp.any((bitcast(xp, x, np.int32) & 0x7F800000) == 0x7F800000)
    if x.dtype == np.float16:
        return xp.any((bitcast(xp, x, np.int16) & 0x7C00) == 0x7C00)
    return np.bool_(False)


def finite_dot(xp: Any, lhs: Array, rhs: Array, lhs_kind: DataFormat, rhs_kind: DataFormat) -> Array:
    """The exact dot product, rounded once, of widened operands; what is not finite counts as 0."""
    unit_exponent = UNIT_EXPONENT[lhs_kind] + UNIT_EXPONENT[rhs_kind]
    if DataFormat.FP32 in (lhs_kind, rhs_kind):
        limbs = fp32_limbs(xp, lhs, rhs, lhs_kind, rhs_kind)
    else:
        limbs = fixed_limbs(xp, fixed_digits(xp, lhs, lhs_kind), fixed_digits(xp, rhs, rhs_kind))
    num_bits = _UNIT_BITS[lhs_kind] + _UNIT_BITS[rhs_kind] + max(lhs.shape[-1] - 1, 1).bit_length()
    if len(limbs) <= 2 and num_bits <= 63:
        joined = limbs[0] if len(limbs) == 1 else (limbs[1] << DIGIT_BITS) + limbs[0]
        return joined.astype(np.float32) * np.float32(2.0**unit_exponent)
    return round_limbs(xp, limbs, DIGIT_BITS, unit_exponent)
