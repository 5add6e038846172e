"""Rules of reductions: over lanes by LaneReduce, over other axes by a tree of slices.

Several axes: the last axis first, then the others in descending order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from lpu_jax.lowering.emit import FLOATS, Emitter, Operand
from lpu_jax.lowering.registry import RuleContext, register_lowering
from lpu_jax.lowering.rules.elementwise import convert
from lpu_jax.lowering.rules.integers import WIDTHS, cut, ordered
from lpu_jax.runtime.ops import Immediate

_PARTS = 4
"""Slices that a chain of the VXM combines at a time: each more is an operand more, each fewer a trip to SRAM more."""
_MAX_EXACT_INTEGER = 2.0**24
"""float32 holds every integer up to here."""
_EXTREMA = {"reduce_max": ("max", "imax"), "reduce_min": ("min", "imin")}
_LOGIC = {"reduce_and": "and", "reduce_or": "or", "reduce_xor": "xor"}


def fold_axis(ctx: Emitter, x: int, axis: int, combine: Callable[[int, int], int]) -> int:
    """Combines the slices along an axis, which stays with size 1: four parts at a time, then what is left over."""
    rest: list[int] = []
    while (size := ctx.aval(x).shape[axis]) > 1:
        count = min(_PARTS, size)
        part = size // count
        parts = [ctx.slice_axis(x, axis, i * part, (i + 1) * part) for i in range(count)]
        rest += [ctx.slice_axis(x, axis, i, i + 1) for i in range(count * part, size)]
        x = _combined(parts, combine)
    return _combined([x, *rest], combine)


def _combined(values: Sequence[int], combine: Callable[[int, int], int]) -> int:
    """A tree of pairs: neighbours first."""
    while len(values) > 1:
        pairs = [combine(a, b) for a, b in zip(values[::2], values[1::2], strict=False)]
        values = [*pairs, values[-1]] if len(values) % 2 else pairs
    return values[0]


def _reduce(ctx: RuleContext, x: int, axes: Sequence[int], lane_function: str | None, function: str) -> int:
    """Reduces axes, which stay with size 1; without a lane function the last axis is folded as a leading one."""
    last = len(ctx.aval(x).shape) - 1

    def combine(a: int, b: int) -> int:
        return ctx.elementwise(function, a, b, dtype=ctx.aval(a).dtype)

    for axis in sorted(axes, reverse=True):
        if axis == last and lane_function is not None:
            x = ctx.lane_reduce(lane_function, x) if ctx.aval(x).shape[axis] > 1 else x
        elif axis == last:
            order = (last, *range(last))
            folded = fold_axis(ctx, ctx.transpose(x, order), 0, combine)
            x = ctx.reshape(folded, (*ctx.aval(x).shape[:-1], 1))
        else:
            x = fold_axis(ctx, x, axis, combine)
    return x


def _operand(ctx: RuleContext, x: Operand, axes: Sequence[int]) -> int:
    """The operand as a value; a reduction of nothing has no LPU operation."""
    if 0 in ctx.avals_in[0].shape:
        raise ctx.unsupported("a reduction of an empty array")
    return ctx.value(x, ctx.avals_in[0])


def _extremum(ctx: RuleContext, x: Operand, *, axes: Any, out_sharding: Any = None) -> Sequence[Operand]:
    ctx.require(out_sharding=(out_sharding, [None]))
    if isinstance(x, Immediate):
        return [x]
    dtype = ctx.avals_in[0].dtype
    function = _EXTREMA[ctx.primitive][0 if dtype in FLOATS else 1]
    value = ordered(ctx, _operand(ctx, x, axes), dtype)
    reduced = ordered(ctx, _reduce(ctx, value, axes, function, function), dtype)  # type: ignore[arg-type]
    return [ctx.reshape(reduced, ctx.avals_out[0].shape)]


def _logic(ctx: RuleContext, x: Operand, *, axes: Any, out_sharding: Any = None) -> Sequence[Operand]:
    ctx.require(out_sharding=(out_sharding, [None]))
    function = _LOGIC[ctx.primitive]
    lane_function = function if function != "xor" else None
    reduced = _reduce(ctx, _operand(ctx, x, axes), axes, lane_function, function)
    return [ctx.reshape(reduced, ctx.avals_out[0].shape)]


for _name in _EXTREMA:
    register_lowering(_name)(_extremum)
for _name in _LOGIC:
    register_lowering(_name)(_logic)


@register_lowering("reduce_sum")
def _reduce_sum(ctx: RuleContext, x: Operand, *, axes: Any, out_sharding: Any = None) -> Sequence[Operand]:
    """float: lanes exactly, rounded once, then a tree in float32. Integers: through float32 where that is exact."""
    ctx.require(out_sharding=(out_sharding, [None]))
    aval = ctx.avals_in[0]
    value = _operand(ctx, x, axes)
    if aval.dtype in FLOATS:
        wide = convert(ctx, value, aval.dtype, "float32")
        total = _reduce(ctx, wide, axes, "sum", "add")
        return [ctx.reshape(convert(ctx, total, "float32", aval.dtype), ctx.avals_out[0].shape)]
    value = ctx.elementwise("identity", value, dtype="int32") if aval.dtype == "int8" else value
    last = len(aval.shape) - 1
    if last in axes and aval.shape[-1] * ctx.ranges.of(value).magnitude <= _MAX_EXACT_INTEGER:
        total = ctx.lane_reduce("sum", convert(ctx, value, "int32", "float32"))
        value = convert(ctx, total, "float32", "int32")
        axes = tuple(axis for axis in axes if axis != last)
    total = cut(ctx, _reduce(ctx, value, axes, None, "iadd"), aval.dtype)  # type: ignore[assignment]
    return [ctx.reshape(total, ctx.avals_out[0].shape)]


def _argument(ctx: RuleContext, x: Operand, *, axes: Any, index_dtype: Any) -> Sequence[Operand]:
    """The first index at which x equals its extremum or is NaN."""
    target = str(np.dtype(index_dtype))
    if target not in WIDTHS:
        raise ctx.unsupported(f"index_dtype={target}")
    (axis,) = axes
    value: int = ordered(ctx, _operand(ctx, x, axes), ctx.avals_in[0].dtype)  # type: ignore[assignment]
    shape = ctx.aval(value).shape
    order = (*(i for i in range(len(shape)) if i != axis), axis)
    value = ctx.transpose(value, order)
    shape = ctx.aval(value).shape
    is_float = ctx.avals_in[0].dtype in FLOATS
    prefix = "" if is_float else "i"
    extremum = ctx.lane_reduce(prefix + ctx.primitive[3:], value)
    is_chosen = ctx.elementwise(prefix + "eq", value, extremum)
    if is_float:
        is_chosen = ctx.elementwise("or", is_chosen, ctx.elementwise("ne", value, value), dtype="bool")
    size = shape[-1]
    lanes = ctx.constant(np.arange(size, dtype=np.int32))
    candidates = ctx.select(is_chosen, ctx.broadcast_to(lanes, shape), ctx.immediate(size, "int32"), "int32")
    found = cut(ctx, ctx.lane_reduce("imin", candidates), target)  # type: ignore[arg-type]
    return [ctx.reshape(found, ctx.avals_out[0].shape)]


def _across(ctx: RuleContext, *operands: Operand, axes: Any, axis_index_groups: Any) -> Sequence[Operand]:
    """Collectives over axes that `vmap` has mapped, which are reductions of the batch."""
    ctx.require(axis_index_groups=(axis_index_groups, [None]))
    if named := [axis for axis in axes if not isinstance(axis, int)]:
        raise ctx.unsupported(f"the axis {named[0]!r} belongs to a mapping outside of lpu")
    reductions: dict[str, Callable[..., Any]] = {"psum": jnp.sum, "pmax": jnp.max, "pmin": jnp.min}
    reduce = reductions[ctx.primitive]
    return ctx.rewrite(lambda *xs: [reduce(x, axis=tuple(axes)).astype(x.dtype) for x in xs], *operands)


for _name in ("psum", "pmax", "pmin"):
    register_lowering(_name)(_across)
register_lowering("argmax")(_argument)
register_lowering("argmin")(_argument)
