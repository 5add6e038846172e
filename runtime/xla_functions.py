"""Functions of the VXM as XLA computes them in float32: what mode `float32` is made of, for speed and comparison.

Within a few ulp of `vxm.apply`, whose bits they are not: no rounding, flush or NaN of theirs is promised. Integer
functions and moves of bits are those of the VXM.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import lax

from lpu_jax.runtime import vxm
from lpu_jax.runtime.numerics import Array

_UNARY: dict[str, Callable[[Array], Array]] = {
    "sign": lax.sign,
    "exp": lax.exp,
    "log": lax.log,
    "tanh": lax.tanh,
    "rsqrt": lax.rsqrt,
    "sqrt": lax.sqrt,
    "erf": lax.erf,
    "sin": lax.sin,
    "cos": lax.cos,
    "floor": lax.floor,
    "ceil": lax.ceil,
    "round": lambda x: lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN),
    "log1p": lax.log1p,
    "expm1": lax.expm1,
    "neg": lax.neg,
    "abs": lax.abs,
    "to_int": lambda x: lax.convert_element_type(x, np.int32),
    "to_float": lambda x: lax.convert_element_type(x, np.float32),
    "to_fp16": lambda x: x.astype(np.float16).astype(np.float32),
    "is_finite": lambda x: jnp.isfinite(x).astype(np.int32),
}
_BINARY: dict[str, Callable[[Array, Array], Array]] = {
    "add": jnp.add,
    "sub": jnp.subtract,
    "mul": jnp.multiply,
    "div": jnp.divide,
    "pow": jnp.power,
    "rem": lambda x, y: lax.rem(*jnp.broadcast_arrays(x, y)),
    "max": jnp.maximum,
    "min": jnp.minimum,
}
_COMPARISONS: dict[str, Callable[[Array, Array], Array]] = {
    "eq": jnp.equal,
    "ne": jnp.not_equal,
    "lt": jnp.less,
    "le": jnp.less_equal,
    "gt": jnp.greater,
    "ge": jnp.greater_equal,
}
_REDUCTIONS: dict[str, Callable[..., Array]] = {
    "sum": jnp.sum,
    "max": jnp.max,
    "min": jnp.min,
    "imax": jnp.max,
    "imin": jnp.min,
}


def apply(function_name: str, lhs: Array, rhs: Array = None) -> Array:
    """As `vxm.apply` of jax.numpy arrays, in float32."""
    if (unary := _UNARY.get(function_name)) is not None:
        return unary(lhs)
    if (binary := _BINARY.get(function_name)) is not None:
        return binary(lhs, rhs)
    if (compare := _COMPARISONS.get(function_name)) is not None:
        return compare(lhs, rhs).astype(np.int32)
    return vxm.apply(jnp, function_name, lhs, rhs)


def lane_reduce(function_name: str, x: Array) -> Array | None:
    """[..., K] -> [..., 1] in XLA's own order; None where XLA has no such reduction."""
    reduce = _REDUCTIONS.get(function_name)
    return None if reduce is None else reduce(x, axis=-1, keepdims=True)
