"""Exact products with weights that were brought into the form of the multiplication once, at load."""

from __future__ import annotations

from typing import Any

import numpy as np

from lpu_jax.runtime.digits import DIGIT_BITS, fixed_digits, fp16_units, has_special, matmul, panel_matmul, with_special
from lpu_jax.runtime.isa import DataFormat
from lpu_jax.runtime.numerics import Array, conditional

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
    units = fp16_units(xp, lhs)
    is_special = has_special(xp, lhs)
    if prepared.dtype == np.float32 and lhs.shape[0] <= 4:
        result = _short_matmul(xp, units, prepared)
        return conditional(xp, is_special, lambda: with_special(xp, lhs, prepared, result), lambda: result)
    weights = prepared.astype(np.float64)
    is_small = xp.max(xp.sum(xp.abs(units), axis=-1)) < 2.0**46

    def one_matmul() -> Array:
        return matmul(xp, units, weights).astype(np.int64).astype(np.float32) * np.float32(2.0**-24)

    def two_matmuls() -> Array:
        high, low = (panel_matmul(xp, digit, weights) for digit in reversed(fixed_digits(xp, lhs, DataFormat.FP16)))
        result = ((high << DIGIT_BITS) + low).astype(np.float32) * np.float32(2.0**-24)
        return conditional(xp, is_special, lambda: with_special(xp, lhs, weights, result), lambda: result)

    return conditional(xp, is_small & ~is_special, one_matmul, two_matmuls)
