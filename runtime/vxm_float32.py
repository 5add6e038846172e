"""Functions of the VXM in float32 arithmetic under XLA, with the bits of `vxm.apply`, which works in float64.

float64 has more than twice the digits of float32 and two more, so that rounding its sums, products, quotients and roots
to float32 gives what float32 arithmetic gives. What is left to do is the flush of results below 2^-126, for which the
exact product counts: one that rounds up to 2^-126 is flushed. Its low bits tell: significands are 24 bits long, and a
product just below a power of two has the sign bit of its low word set.

Operands must hold no subnormals; what is known of values (`Known`) says where they have to be flushed first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax

from lpu_jax.runtime import vxm
from lpu_jax.runtime.numerics import Array, bitcast, canonical_nan, quotient, square_root, total
from lpu_jax.runtime.ops import Elementwise, Equation, GatherRows, Immediate, Move, Pad

_MIN_NORMAL = np.float32(2.0**-126)
_MIN_NORMAL_BITS, _SIGN, _MAGNITUDE = 0x800000, -(2**31), 0x7FFFFFFF


@dataclasses.dataclass(frozen=True, slots=True)
class Known:
    """What is known of a value.

    Attributes:
      is_flushed: as float32 it has no subnormals.
      is_constant: XLA may know its contents, and simplify what is done with them.
      is_magnitude: as float32 it has no negative sign, but perhaps that of a NaN.
    """

    is_flushed: bool = False
    is_constant: bool = False
    is_magnitude: bool = False


NOTHING = Known()


def known_constant(content: np.ndarray | float | int) -> Known:
    """Of a constant or an immediate."""
    array = np.asarray(content)
    if array.dtype.kind != "f" or array.dtype.itemsize < 4:
        return Known(False, True)
    return Known(not ((array != 0) & (np.abs(array) < 2.0**-126)).any(), True)


def known_of(operand: int | Immediate, known: dict[int, Known]) -> Known:
    """Of an operand."""
    if not isinstance(operand, Immediate):
        return known.get(operand, NOTHING)
    return known_constant(operand.value) if operand.dtype == "float32" else Known(False, True)


def known_result(equation: Equation, operands: Sequence[Known], dtype: str) -> Known:
    """Of the one result of an equation, of this dtype."""
    op = equation.op
    is_constant = bool(operands) and all(known.is_constant for known in operands)
    are_flushed = bool(operands) and all(known.is_flushed for known in operands)
    are_magnitudes = bool(operands) and all(known.is_magnitude for known in operands)
    if isinstance(op, Elementwise) and dtype == "float32":
        is_flushed = op.function in _FLUSHING or (op.function in _KEEPING and operands[0].is_flushed)
        is_chosen = op.function in ("mask", "mask_bar", "identity") and operands[0].is_magnitude
        is_magnitude = op.function == "abs" or is_chosen or (op.function in ("max", "min") and are_magnitudes)
        return Known(is_flushed, is_constant, is_magnitude)
    if isinstance(op, Move):
        return Known(are_flushed, is_constant, are_magnitudes and not isinstance(op, Pad))
    if isinstance(op, GatherRows):
        return Known(operands[0].is_flushed, is_constant)
    return Known(False, is_constant)


_KEEPING = frozenset(("neg", "abs", "mask", "mask_bar", "identity"))
"""Functions that change no magnitude of their first operand, but to zero."""
_FLUSHING = vxm.FLUSHING | {"to_float", "to_fp16", "to_e4m3", "to_e5m2"}
"""Functions whose float32 results are never subnormal."""


def apply(function_name: str, operands: Sequence[Array], known: Sequence[Known]) -> Array:
    """As `vxm.apply` of float32 or int32 arrays of jax.numpy."""
    if function_name not in _FORMS:
        return vxm.apply(jnp, function_name, *operands)
    flushed = [x if k.is_flushed else _flush(x) for x, k in zip(operands, known, strict=True)]
    return _FORMS[function_name](flushed, any(k.is_constant for k in known))


def _flush(x: Array) -> Array:
    return jnp.where(jnp.abs(x) < _MIN_NORMAL, x * np.float32(0), x)


def _sum(a: Array, b: Array, has_constant: bool) -> Array:
    """XLA drops a constant zero, see `numerics.total`."""
    return canonical_nan(jnp, _flush(total(jnp, a, b) if has_constant else a + b))


def _product(a: Array, b: Array) -> Array:
    """The select in front of the result also keeps XLA from fusing it with a sum."""
    result = a * b
    bits = bitcast(jnp, result, np.int32)
    magnitude = bits & _MAGNITUDE
    low = _significand(a) * _significand(b)
    is_tiny = (magnitude < _MIN_NORMAL_BITS) | ((magnitude == _MIN_NORMAL_BITS) & (low < 0))
    return canonical_nan(jnp, jnp.where(is_tiny, bitcast(jnp, bits & _SIGN, np.float32), result))


def _significand(x: Array) -> Array:
    return (bitcast(jnp, x, np.int32) & (_MIN_NORMAL_BITS - 1)) | _MIN_NORMAL_BITS


def _quotient(a: Array, b: Array) -> Array:
    """No quotient of 24-bit significands is so close below a power of two that it rounds up to it."""
    return canonical_nan(jnp, _flush(quotient(jnp, a, b)))


_FORMS: dict[str, Callable[[Sequence[Array], bool], Array]] = {
    "add": lambda x, has_constant: _sum(x[0], x[1], has_constant),
    "sub": lambda x, has_constant: _sum(x[0], -x[1], has_constant),
    "mul": lambda x, _: _product(x[0], x[1]),
    "div": lambda x, _: _quotient(x[0], x[1]),
    "sqrt": lambda x, _: canonical_nan(jnp, square_root(jnp, x[0])),
    "eq": lambda x, _: (x[0] == x[1]).astype(np.int32),
    "ne": lambda x, _: (x[0] != x[1]).astype(np.int32),
    "lt": lambda x, _: (x[0] < x[1]).astype(np.int32),
    "le": lambda x, _: (x[0] <= x[1]).astype(np.int32),
    "gt": lambda x, _: (x[0] > x[1]).astype(np.int32),
    "ge": lambda x, _: (x[0] >= x[1]).astype(np.int32),
}


def lane_reduce(function_name: str, x: Array) -> Array | None:
    """max, min, imax, imin, and, or over the last axis, kept with size 1; None for other functions.

    Which of the elements are compared first does not matter: -0 < +0 and NaN wins in `vxm`, which makes an order.
    """
    if function_name in ("imax", "imin"):
        return (jnp.max if function_name == "imax" else jnp.min)(x, axis=-1, keepdims=True)
    if function_name in ("and", "or"):
        start, join = (-1, lax.bitwise_and) if function_name == "and" else (0, lax.bitwise_or)
        return lax.reduce(x, np.int32(start), join, (x.ndim - 1,))[..., None]
    if function_name not in ("max", "min"):
        return None
    reduce = jnp.max if function_name == "max" else jnp.min
    keys = vxm.ordered(jnp, bitcast(jnp, x, np.int32))
    found = bitcast(jnp, vxm.ordered(jnp, reduce(keys, axis=-1, keepdims=True)), np.float32)
    is_nan = jnp.any(x != x, axis=-1, keepdims=True)
    return jnp.where(is_nan, np.float32(np.nan), _flush(found))
