"""Rules of cumulative reductions: log-step scans over a leading axis, ceil(log2 n) combinations of whole arrays.

    d = 1, 2, 4, ...:   x[i] <- combine(x[i - d], x[i])   for i >= d

Floats accumulate in float32 and are rounded to a narrower dtype once; integers wrap, as in JAX. Sums of float32 carry
the rounding errors of their additions along: where terms cancel, another order of the additions alone would make the
result differ from XLA's by more than either is wrong elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
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
    """Inclusive scan of a JAX array, or of a tuple of them, along an axis; combine takes and gives the same."""
    order = [axis, *(i for i in range(jax.tree.leaves(x)[0].ndim) if i != axis)]
    x = jax.tree.map(lambda part: lax.transpose(part, order), x)
    size, distance = jax.tree.leaves(x)[0].shape[0], 1
    while distance < size:
        late, early = (jax.tree.map(lambda part, s=s: part[s], x) for s in (slice(distance, None), slice(-distance)))
        folded = combine(late, early) if reverse else combine(early, late)
        kept = slice(size - distance, None) if reverse else slice(distance)
        x = jax.tree.map(
            lambda new, part, kept=kept: lax.concatenate([new, part[kept]] if reverse else [part[kept], new], 0),
            folded,
            x,
        )
        distance *= 2
    return jax.tree.map(lambda part: lax.transpose(part, [int(i) for i in np.argsort(order)]), x)


def compensated_add(x: tuple[Any, Any], y: tuple[Any, Any]) -> tuple[Any, Any]:
    """(sum, error) of two such pairs: s = a + b, the error of that addition is found exactly (Knuth)."""
    (a, first), (b, second) = x, y
    total = a + b
    part = total - a
    return total, ((a - (total - part)) + (b - part)) + (first + second)


def _compensated_sum(x: Any, axis: int, reverse: bool) -> Any:
    """Cumulative sums that are wrong by little more than one rounding; infinities stay what they are."""
    total, error = log_step_scan((x, jnp.zeros_like(x)), compensated_add, axis, reverse)
    return jnp.where(lax.is_finite(total), total + error, total)


def _cumulative(ctx: RuleContext, x: Operand, *, axis: int, reverse: bool) -> Sequence[Operand]:
    """Log-step scan over the axis, which is moved to the front."""
    aval = ctx.avals_in[0]
    working = "float32" if aval.dtype in FLOATS else "int32" if aval.dtype == "int8" else aval.dtype
    if math.prod(aval.shape) == 0:
        return [x]

    def fun(value: Any) -> Any:
        if ctx.primitive == "cumsum" and aval.dtype == "float32":
            return _compensated_sum(value, axis, reverse)
        wide = lax.convert_element_type(value, working)
        return lax.convert_element_type(log_step_scan(wide, _COMBINE[ctx.primitive], axis, reverse), aval.dtype)

    return ctx.rewrite(fun, x)


for _name in _COMBINE:
    register_lowering(_name)(_cumulative)
