"""Rules of primitives that are made of others: JAX's own decompositions, or short ones of ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from lpu_jax.lowering.emit import Operand
from lpu_jax.lowering.registry import RuleContext, Value, register_lowering


@register_lowering("custom_linear_solve", higher_order=True)
def _custom_linear_solve(ctx: RuleContext, *values: Value, const_lengths: Any, jaxprs: Any) -> Sequence[Value]:
    """The user's own solver."""
    counts = list(const_lengths)
    start = sum(counts[: list(jaxprs._fields).index("solve")])
    consts = values[start : start + const_lengths.solve]
    return ctx.interpreter.inline(ctx, jaxprs.solve, [*consts, *values[sum(counts) :]])


@register_lowering("approx_top_k")
def _approx_top_k(
    ctx: RuleContext,
    x: Operand,
    *,
    k: int,
    reduction_dimension: int,
    recall_target: float,
    is_max_k: bool,
    reduction_input_size_override: int,
    aggregate_to_topk: bool,
) -> Sequence[Operand]:
    """The exact ones: a recall of 1."""
    del recall_target, reduction_input_size_override
    ctx.require(aggregate_to_topk=(aggregate_to_topk, [True]))

    def fun(value: Any) -> Any:
        moved = jnp.moveaxis(value, reduction_dimension, -1)
        found, places = lax.top_k(moved if is_max_k else -moved, k)
        found = found if is_max_k else -found
        return jnp.moveaxis(found, -1, reduction_dimension), jnp.moveaxis(places, -1, reduction_dimension)

    return ctx.rewrite(fun, x)


def _chosen_of_window(source: Any, wins: Any, **config: Any) -> Any:
    """For every window the position (row-major) of the element that wins, the first of equals; int32."""
    positions = jnp.arange(source.size, dtype=jnp.int32).reshape(source.shape)
    values = _views(source, **config)
    places = _views(positions, fill=-1, **config)
    best, place = values[0], places[0]
    for value, other in zip(values[1:], places[1:], strict=True):
        keeps = (place >= 0) & ((other < 0) | wins(best, value))
        best, place = jnp.where(keeps, best, value), jnp.where(keeps, place, other)
    return place


def _views(
    x: Any,
    *,
    window_dimensions: Any,
    window_strides: Any,
    padding: Any,
    fill: int = 0,
    base_dilation: Any = None,
    window_dilation: Any = None,
) -> list[Any]:
    """Element k of every window, for every k in row-major order."""
    rank = x.ndim
    base, steps = base_dilation or (1,) * rank, window_dilation or (1,) * rank
    config = [(int(a), int(b), int(d) - 1) for (a, b), d in zip(padding, base, strict=True)]
    views = [lax.pad(x, jnp.asarray(fill, x.dtype), config)]
    for axis, (size, stride, step) in enumerate(zip(window_dimensions, window_strides, steps, strict=True)):
        count = (views[0].shape[axis] - (size - 1) * step - 1) // stride + 1
        views = [
            lax.slice_in_dim(view, k * step, k * step + (count - 1) * stride + 1, stride, axis)
            for view in views
            for k in range(size)
        ]
    return views


_WINS = {"ge": lambda a, b: a >= b, "le": lambda a, b: a <= b, "gt": lambda a, b: a > b, "lt": lambda a, b: a < b}


@register_lowering("select_and_gather_add")
def _select_and_gather_add(
    ctx: RuleContext, tangents: Operand, x: Operand, *, select_prim: Any, **config: Any
) -> Sequence[Operand]:
    """For every window the tangent of the element that wins; zero if it is padding."""
    wins = _WINS[str(select_prim.name)]

    def fun(given: Any, source: Any) -> Any:
        place = _chosen_of_window(source, wins, **config)
        found = given.reshape(-1)[jnp.maximum(place, 0)]
        return jnp.where(place >= 0, found, jnp.zeros_like(found))

    return ctx.rewrite(fun, tangents, x)


@register_lowering("select_and_scatter_add")
def _select_and_scatter_add(
    ctx: RuleContext, source: Operand, operand: Operand, *, select_prim: Any, **config: Any
) -> Sequence[Operand]:
    """Every window adds its source to the element that wins."""
    wins = _WINS[str(select_prim.name)]

    def fun(added: Any, x: Any) -> Any:
        place = _chosen_of_window(x, wins, **config)
        working = added.astype(jnp.int32) if added.dtype == np.bool_ else added
        zeros = jnp.zeros((x.size,), working.dtype)
        found = zeros.at[place.reshape(-1)].add(working.reshape(-1), mode="drop").reshape(x.shape)
        return found != 0 if added.dtype == np.bool_ else found

    return ctx.rewrite(fun, source, operand)
