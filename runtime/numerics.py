"""Arithmetic with equal bits in NumPy and under jax.jit on CPU: one rounding per float64 operation.

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


def conditional(xp: Any, condition: Any, then: Callable[[], Array], otherwise: Callable[[], Array]) -> Array:
    """A conditional of which one branch runs."""
    if xp is np:
        return then() if condition else otherwise()
    return lax.cond(condition, then, otherwise)
