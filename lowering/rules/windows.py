"""Rules of windowed reductions: strided slices of the padded operand, combined axis by axis.

A window of w elements takes w - 1 combinations per axis; floats add in float32 and are rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lpu_jax.lowering import _jax_compat as compat
from lpu_jax.lowering.emit import FLOATS, Operand
from lpu_jax.lowering.registry import RuleContext, register_lowering

Combine = Callable[[Any, Any], Any]


def windowed(
    x: Any,
    initial: Any,
    combine: Combine,
    *,
    window_dimensions: Sequence[int],
    window_strides: Sequence[int],
    padding: Sequence[Sequence[int]],
    base_dilation: Sequence[int],
    window_dilation: Sequence[int],
) -> Any:
    """lax.reduce_window of a JAX array, without combining with `initial` outside the padding."""
    config = [(int(a), int(b), int(d) - 1) for (a, b), d in zip(padding, base_dilation, strict=True)]
    x = lax.pad(x, initial, config)
    for axis, (size, stride, step) in enumerate(zip(window_dimensions, window_strides, window_dilation, strict=True)):
        if size == 1 and stride == 1:
            continue
        count = (x.shape[axis] - (size - 1) * step - 1) // stride + 1
        views = [lax.slice_in_dim(x, k * step, k * step + (count - 1) * stride + 1, stride, axis) for k in range(size)]
        x = views[0]
        for view in views[1:]:
            x = combine(x, view)
    return x


def _identity(name: str, dtype: np.dtype) -> Any:
    if name == "sum":
        return np.zeros((), dtype)
    is_float = jnp.issubdtype(dtype, jnp.floating)
    if dtype == np.bool_:
        return np.array(name == "min", dtype)
    lowest, highest = (-jnp.inf, jnp.inf) if is_float else (jnp.iinfo(dtype).min, jnp.iinfo(dtype).max)
    return np.array(lowest if name == "max" else highest, dtype)


_COMBINE: dict[str, Combine] = {"sum": lax.add, "max": lax.max, "min": lax.min}


def _reduce_window(
    ctx: RuleContext,
    x: Operand,
    *,
    window_dimensions: Any,
    window_strides: Any,
    padding: Any,
    base_dilation: Any,
    window_dilation: Any,
) -> Sequence[Operand]:
    """Slices and elementwise functions; any stride, padding and dilation."""
    name, dtype = ctx.primitive.rpartition("_")[2], ctx.avals_in[0].dtype
    _check_not_empty(ctx)
    working = np.dtype("float32") if name == "sum" and dtype in FLOATS else jnp.dtype(dtype)

    def fun(value: Any) -> Any:
        result = windowed(
            lax.convert_element_type(value, working),
            _identity(name, working),
            _COMBINE[name],
            window_dimensions=window_dimensions,
            window_strides=window_strides,
            padding=padding,
            base_dilation=base_dilation,
            window_dilation=window_dilation,
        )
        return lax.convert_element_type(result, dtype)

    return ctx.rewrite(fun, x)


for _name in ("reduce_window_sum", "reduce_window_max", "reduce_window_min"):
    register_lowering(_name)(_reduce_window)


def _check_not_empty(ctx: RuleContext) -> None:
    if 0 in (*ctx.avals_in[0].shape, *ctx.avals_out[0].shape):
        raise ctx.unsupported("windows of or into an empty array")


def _elementwise_of(jaxpr: Any, consts: Sequence[Any]) -> Combine:
    """A function of two scalars, applied to arrays element by element."""
    inner, own = compat.open_jaxpr(jaxpr)
    scalar = compat.function_of(inner, own or tuple(consts))

    def combine(x: Any, y: Any) -> Any:
        flat = jax.vmap(lambda a, b: scalar(a, b)[0])(lax.reshape(x, (x.size,)), lax.reshape(y, (y.size,)))
        return lax.reshape(flat, x.shape)

    return combine


@register_lowering("reduce_window")
def _generic_reduce_window(
    ctx: RuleContext,
    x: Operand,
    initial: Operand,
    *rest: Operand,
    jaxpr: Any,
    consts: Any,
    window_dimensions: Any,
    window_strides: Any,
    padding: Any,
    base_dilation: Any,
    window_dilation: Any,
) -> Sequence[Operand]:
    """One operand; the function must be associative; it meets the initial value once more at the end."""
    if rest:
        raise ctx.unsupported("windows over several operands at once")
    _check_not_empty(ctx)
    combine = _elementwise_of(jaxpr, consts)

    def fun(value: Any, start: Any) -> Any:
        result = windowed(
            value,
            start,
            combine,
            window_dimensions=window_dimensions,
            window_strides=window_strides,
            padding=padding,
            base_dilation=base_dilation,
            window_dilation=window_dilation,
        )
        return combine(jnp.broadcast_to(start, result.shape), result)

    return ctx.rewrite(fun, x, initial)


@register_lowering("reduce")
def _reduce(
    ctx: RuleContext,
    *operands: Operand,
    computation: Any,
    jaxpr: Any,
    dimensions: Any,
    out_sharding: Any = None,
) -> Sequence[Operand]:
    """The function must be associative; it meets the initial values once more at the end."""
    del computation  # the Python function behind the jaxpr
    ctx.require(out_sharding=(out_sharding, [None]))
    _check_not_empty(ctx)
    count = len(operands) // 2
    scalar = compat.function_of(*compat.open_jaxpr(jaxpr))

    def combine(xs: Sequence[Any], ys: Sequence[Any]) -> list[Any]:
        shape = xs[0].shape
        flat = [lax.reshape(x, (x.size,)) for x in (*xs, *ys)]
        return [lax.reshape(x, shape) for x in jax.vmap(scalar)(*flat)]

    def fun(*arrays: Any) -> list[Any]:
        values = list(arrays[:count])
        for axis in dimensions:
            values = _fold_all(values, combine, axis)
        values = [lax.squeeze(value, dimensions) for value in values]
        return combine([jnp.broadcast_to(start, values[0].shape) for start in arrays[count:]], values)

    return ctx.rewrite(fun, *operands)


def _fold_all(xs: list[Any], combine: Any, axis: int) -> list[Any]:
    """`fold` of several arrays at once, in order."""
    while (size := xs[0].shape[axis]) > 1:
        half = size // 2
        even = [lax.slice_in_dim(x, 0, 2 * half, 2, axis) for x in xs]
        odd = [lax.slice_in_dim(x, 1, 2 * half, 2, axis) for x in xs]
        folded = combine(even, odd)
        rest = [lax.slice_in_dim(x, 2 * half, size, axis=axis) for x in xs]
        xs = [lax.concatenate(pair, axis) for pair in zip(folded, rest, strict=True)] if size % 2 else folded
    return xs


def fold(x: Any, combine: Combine, axis: int) -> Any:
    """Halves an axis until one element is left."""
    while (size := x.shape[axis]) > 1:
        half = size // 2
        low, high = (lax.slice_in_dim(x, i * half, (i + 1) * half, axis=axis) for i in range(2))
        folded = combine(low, high)
        rest = lax.slice_in_dim(x, 2 * half, size, axis=axis)
        x = lax.concatenate([folded, rest], axis) if size % 2 else folded
    return x


@register_lowering("reduce_prod")
def _reduce_prod(ctx: RuleContext, x: Operand, *, axes: Any, out_sharding: Any = None) -> Sequence[Operand]:
    """Halving, in float32 or wrapping integers."""
    ctx.require(out_sharding=(out_sharding, [None]))
    _check_not_empty(ctx)
    dtype = ctx.avals_in[0].dtype
    working = "float32" if dtype in FLOATS else dtype

    def fun(value: Any) -> Any:
        value = lax.convert_element_type(value, working)
        for axis in axes:
            value = fold(value, lax.mul, axis)
        return lax.convert_element_type(lax.squeeze(value, axes), dtype)

    return ctx.rewrite(fun, x)
