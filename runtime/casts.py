"""Casts between float32 and the floating formats: round to nearest even, with equal bits in NumPy and under XLA.

All work is on integers, so that neither flushed subnormals nor double rounding can show. NaN becomes the canonical
one of the target: 0x7fc00000, 0x7fc0, 0x7e00, 0x7f (e4m3) and 0x7e (e5m2).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lpu_jax.runtime.formats import BF16, E4M3, FP16, FP32, NumberFormat, element_dtype
from lpu_jax.runtime.numerics import Array, bitcast, canonical_nan

_FP32_INFINITY = 0x7F800000
_FP32_SIGN = -(2**31)


def bits_of(xp: Any, x: Array) -> Array:
    """The bits of any element type as non-negative int32 (fp32: as int32)."""
    x = np.asarray(x) if xp is np else x
    unsigned = {1: np.uint8, 2: np.uint16, 4: np.int32}[x.dtype.itemsize]
    return bitcast(xp, x, unsigned).astype(np.int32)


def decode(xp: Any, x: Array, number_format: NumberFormat) -> Array:
    """Elements of a floating format as float32; exact, NaN 0x7fc00000."""
    if number_format == FP32:
        return canonical_nan(xp, x)
    if number_format == FP16:
        return canonical_nan(xp, x.astype(np.float32))
    bits = bits_of(xp, x)
    if number_format == BF16:
        return canonical_nan(xp, bitcast(xp, bits << 16, np.float32))
    f, bias = number_format.fraction_bits, number_format.bias
    magnitude = bits & 0x7F
    normal = bitcast(xp, (magnitude << (23 - f)) + ((127 - bias) << 23), np.float32)
    subnormal = magnitude.astype(np.float32) * np.float32(2.0 ** (1 - bias - f))
    value = xp.where(magnitude < (1 << f), subnormal, normal)
    if number_format == E4M3:
        value = xp.where(magnitude == 0x7F, np.float32(math.nan), value)
    else:
        value = xp.where(magnitude == 0x7C, np.float32(math.inf), value)
        value = xp.where(magnitude > 0x7C, np.float32(math.nan), value)
    signed = bitcast(xp, value, np.int32) | ((bits >> 7) << 31)
    return canonical_nan(xp, bitcast(xp, signed, np.float32))


def encode(xp: Any, x: Array, number_format: NumberFormat, saturate: bool = False) -> Array:
    """float32 to a floating format, rounded to nearest even.

    Overflow gives infinity, or NaN in e4m3, which has none; with `saturate` it gives the largest finite value, for
    infinities too. NaN stays NaN in both.
    """
    dtype = element_dtype(number_format)
    bits = bitcast(xp, x, np.int32)
    magnitude = bits & 0x7FFFFFFF
    f, bias, width = number_format.fraction_bits, number_format.bias, number_format.element_bits
    top = ((1 << number_format.exponent_bits) - 1) << f
    if number_format.has_infinity:
        nan, overflow = top | (1 << (f - 1)), top
    else:
        nan, overflow = top | ((1 << f) - 1), top | ((1 << f) - 1)
    if number_format == FP32:
        code = magnitude
    elif number_format == BF16:
        code = (magnitude + 0x7FFF + ((magnitude >> 16) & 1)) >> 16
    else:
        code = _round_narrow(xp, magnitude, f, bias)
    code = xp.minimum(code, overflow - 1 if saturate else overflow)
    code = xp.where(magnitude > _FP32_INFINITY, nan, code)
    is_negative = (bits < 0) & (magnitude <= _FP32_INFINITY)
    code = code | xp.where(is_negative, np.int32(_FP32_SIGN if width == 32 else 1 << (width - 1)), np.int32(0))
    unsigned = {8: np.uint8, 16: np.uint16, 32: np.int32}[width]
    return bitcast(xp, code.astype(unsigned), dtype)


def _round_narrow(xp: Any, magnitude: Array, f: int, bias: int) -> Array:
    """Code of an fp32 magnitude in a format of f fraction bits; what is too large gives a code beyond the format's."""
    shift = 23 - f
    rounded = magnitude + ((1 << (shift - 1)) - 1) + ((magnitude >> shift) & 1)
    normal = (rounded >> shift) - ((127 - bias) << f)
    value = bitcast(xp, xp.minimum(magnitude, np.int32(127 << 23)), np.float32)
    subnormal = xp.rint(value * np.float32(2.0 ** (bias - 1 + f))).astype(np.int32)
    return xp.where(magnitude < ((128 - bias) << 23), subnormal, normal)


def round_to(xp: Any, x: Array, number_format: NumberFormat, saturate: bool = False) -> Array:
    """float32 rounded to the grid of a floating format, as float32."""
    return decode(xp, encode(xp, x, number_format, saturate), number_format)
