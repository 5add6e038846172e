"""Rules of cumulative reductions: log-step scans over a leading axis, ceil(log2 n) combinations of whole arrays.

    d = 1, 2, 4, ...:   x[i] <- combine(x[i - d], x[i])   for i >= d

Floats accumulate in float32 and are rounded to a narrower dtype once; integers wrap, as in JAX.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from lpu_jax.lowering.emit import FLOATS, Operand
from lpu_jax.lowering.registry import RuleContext, register_lowering

Combine = Callable[[Any, Any], Any]


def _log_add_exp(x: Any, y: Any) -> Any:
    """max + log1p(exp(min - max)); infinities of one sign stay what they are."""
    high, low = lax.max(x, y), lax.min(x, y)
    difference = lax.select(high == low, jnp.zeros_like(high), low - high)
    return high + lax.log1p(lax.exp(difference))


_COMBINE: dict[str, Combine] = {
    "cumsum": lax.add,
    "cumprod": lax.mul,
    "cummax": lax.max,
    "cummin": lax.min,
    "cumlogsumexp": _log_add_exp,
}


def log_step_scan(x: Any, combine: Combine, axis: int, reverse: bool) -> Any:
    """Inclusive scan of a JAX array along an axis."""
    order = [axis, *(i for i in range(x.ndim) if i != axis)]
    x = lax.transpose(x, order)
    size, distance = x.shape[0], 1
    while distance < size:
        if reverse:
            folded = combine(x[distance:], x[:-distance])
            x = lax.concatenate([folded, x[size - distance :]], 0)
        else:
            folded = combine(x[:-distance], x[distance:])
            x = lax.concatenate([x[:distance], folded], 0)
        distance *= 2
    return lax.transpose(x, [int(i) for i in np.argsort(order)])


def _cumulative(ctx: RuleContext, x: Operand, *, axis: int, reverse: bool) -> Sequence[Operand]:
    """Log-step scan over the axis, which is moved to the front."""
    aval = ctx.avals_in[0]
    working = "float32" if aval.dtype in FLOATS else "int32" if aval.dtype == "int8" else aval.dtype
    if math.prod(aval.shape) == 0:
        return [x]

    def fun(value: Any) -> Any:
        wide = lax.convert_element_type(value, working)
        return lax.convert_element_type(log_step_scan(wide, _COMBINE[ctx.primitive], axis, reverse), aval.dtype)

    return ctx.rewrite(fun, x)


for _name in _COMBINE:
    register_lowering(_name)(_cumulative)
