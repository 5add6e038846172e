"""Sums of float32 that lose nothing and are rounded once."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from lpu_jax.runtime.certified_dot import lowest_bit
from lpu_jax.runtime.digits import (
    UNIT_EXPONENT,
    digit_range,
    for_range,
    fp32_digit,
    fp32_fields,
    has_special,
    round_limbs,
    with_special,
)
from lpu_jax.runtime.isa import DataFormat
from lpu_jax.runtime.numerics import Array, conditional

_SUM_DIGIT_BITS = 30  # sums need no room for products
_MIN_TRIED_TERMS = 256
"""Fewer terms are not worth the longer compilation."""


def exact_sum(xp: Any, x: Array, axis: int = -1) -> Array:
    """Sum of float32 along an axis, exact and rounded once: the bits of exact_dot with a column of int8 ones."""
    x = xp.moveaxis(x, axis, -1)
    if xp is np or x.size < _MIN_TRIED_TERMS:
        return _by_digits(xp, x)
    result, is_certain = _tried_in_float64(x)
    return lax.cond(is_certain, lambda: result, lambda: _by_digits(xp, x))


def _tried_in_float64(x: Array) -> tuple[Array, Array]:
    """Sums over the last axis in float64, and whether all of them are certainly the exact ones, rounded once."""
    wide = x.astype(np.float64)  # subnormals may become 0: each is below 2^-126
    total = jnp.sum(wide, axis=-1)
    size = jnp.sum(jnp.abs(wide), axis=-1) * (1 + 2.0**-20)
    bound = size * (x.shape[-1] * 2.0**-53) + x.shape[-1] * 2.0**-126 + jnp.abs(total) * 2.0**-51
    lowest = jnp.min(lowest_bit(x, DataFormat.FP32), axis=-1).astype(np.float64)  # 0 beside subnormals
    bound = jnp.where(size <= 2.0**53 * lowest, 0.0, bound)
    low, high = (total - bound).astype(np.float32), (total + bound).astype(np.float32)
    return low, jnp.all((low == high) & (jnp.abs(total) >= 2.0**-100) & (jnp.abs(total) < np.inf))


def _by_digits(xp: Any, x: Array) -> Array:
    fields = fp32_fields(xp, x)
    first, last = digit_range(xp, fields, _SUM_DIGIT_BITS)
    num_limbs = -(-(254 + 24) // _SUM_DIGIT_BITS)
    state = xp.zeros((num_limbs, *x.shape[:-1]), np.int64)

    def step(index: Any, limbs: Array) -> Array:
        limb = xp.sum(fp32_digit(xp, fields, index, _SUM_DIGIT_BITS), axis=-1)
        if xp is not np:
            return limbs.at[index].set(limb)
        limbs[index] = limb
        return limbs

    state = for_range(xp, first, last, step, state)
    result = round_limbs(xp, [state[i] for i in range(num_limbs)], _SUM_DIGIT_BITS, UNIT_EXPONENT[DataFormat.FP32])

    def special() -> Array:
        ones = xp.ones((*x.shape[:-2], x.shape[-1], 1), np.int8)
        rows = x if x.ndim > 1 else x[None]
        return with_special(xp, rows, ones, result.reshape((*rows.shape[:-1], 1))).reshape(result.shape)

    return conditional(xp, has_special(xp, x), special, lambda: result)
