"""Rules of primitives that move data without computing: each becomes one move or none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lpu_jax.lowering.emit import FLOATS, Operand
from lpu_jax.lowering.registry import RuleContext, register_lowering
from lpu_jax.runtime.ops import Immediate


def _same(ctx: RuleContext, *operands: Operand) -> Sequence[Operand]:
    return operands


for _name in ("stop_gradient", "copy", "copy_p", "optimization_barrier"):
    register_lowering(_name)(_same)


@register_lowering("name")
def _name_rule(ctx: RuleContext, x: Operand, *, name: str) -> Sequence[Operand]:
    del name  # a label for rematerialisation policies
    return [x]


@register_lowering("device_put")
def _device_put(
    ctx: RuleContext, *operands: Operand, devices: Any, srcs: Any, copy_semantics: Any
) -> Sequence[Operand]:
    del srcs, copy_semantics  # where a value comes from does not change it
    if any(device is not None for device in devices):
        raise ctx.unsupported(f"devices={devices!r}: a value cannot leave the LPU in the middle of a program")
    return operands


@register_lowering("broadcast_in_dim")
def _broadcast_in_dim(
    ctx: RuleContext, x: Operand, *dynamic: Operand, shape: Any, broadcast_dimensions: Any, sharding: Any = None
) -> Sequence[Operand]:
    ctx.require(sharding=(sharding, [None]))
    if dynamic:
        raise ctx.unsupported("dynamic shapes")
    return [ctx.broadcast(x, tuple(shape), tuple(broadcast_dimensions))]


@register_lowering("reshape")
def _reshape(
    ctx: RuleContext, x: Operand, *, new_sizes: Any, dimensions: Any, sharding: Any = None
) -> Sequence[Operand]:
    ctx.require(sharding=(sharding, [None]))
    x = x if dimensions is None else ctx.transpose(x, dimensions)
    return [ctx.reshape(x, tuple(new_sizes))]


@register_lowering("squeeze")
def _squeeze(ctx: RuleContext, x: Operand, *, dimensions: Any) -> Sequence[Operand]:
    del dimensions  # the shape of the result says it
    return [ctx.reshape(x, ctx.avals_out[0].shape)]


@register_lowering("expand_dims")
def _expand_dims(ctx: RuleContext, x: Operand, *, dimensions: Any) -> Sequence[Operand]:
    del dimensions
    return [ctx.reshape(x, ctx.avals_out[0].shape)]


@register_lowering("transpose")
def _transpose(ctx: RuleContext, x: Operand, *, permutation: Any) -> Sequence[Operand]:
    return [ctx.transpose(x, tuple(permutation))]


@register_lowering("slice")
def _slice(ctx: RuleContext, x: Operand, *, start_indices: Any, limit_indices: Any, strides: Any) -> Sequence[Operand]:
    return [ctx.slice(x, tuple(start_indices), tuple(limit_indices), strides)]


@register_lowering("rev")
def _rev(ctx: RuleContext, x: Operand, *, dimensions: Any) -> Sequence[Operand]:
    return [ctx.reverse(x, tuple(dimensions))]


@register_lowering("concatenate")
def _concatenate(ctx: RuleContext, *operands: Operand, dimension: int) -> Sequence[Operand]:
    return [ctx.concatenate(ctx.values(operands), dimension)]


@register_lowering("split")
def _split(ctx: RuleContext, x: Operand, *, sizes: Any, axis: int) -> Sequence[Operand]:
    parts, start = [], 0
    for size in map(int, sizes):
        parts.append(ctx.slice_axis(x, axis, start, start + size))
        start += size
    return parts


@register_lowering("stack")
def _stack(ctx: RuleContext, *operands: Operand, axis: int) -> Sequence[Operand]:
    shape = list(ctx.avals_out[0].shape)
    shape[axis] = 1
    return [ctx.concatenate([ctx.reshape(x, shape) for x in ctx.values(operands)], axis)]


@register_lowering("unstack")
def _unstack(ctx: RuleContext, x: Operand, *, axis: int) -> Sequence[Operand]:
    rows = [ctx.slice_axis(x, axis, i, i + 1) for i in range(ctx.avals_in[0].shape[axis])]
    return [ctx.reshape(row, aval.shape) for row, aval in zip(rows, ctx.avals_out, strict=True)]


@register_lowering("tile")
def _tile(ctx: RuleContext, x: Operand, *, reps: Any) -> Sequence[Operand]:
    """[n, m] -> [r, n, s, m] -> [r n, s m]"""
    shape = ctx.avals_in[0].shape
    spread = tuple(n for pair in zip(reps, shape, strict=True) for n in pair)
    repeated = ctx.broadcast(x, spread, tuple(range(1, 2 * len(shape), 2)))
    return [ctx.reshape(repeated, ctx.avals_out[0].shape)]


@register_lowering("pad")
def _pad(ctx: RuleContext, x: Operand, value: Operand, *, padding_config: Any) -> Sequence[Operand]:
    """Negative padding slices; interior padding pads an axis of size 1 behind each; a run-time value is selected."""
    config = [(int(low), int(high), int(interior)) for low, high, interior in padding_config]
    if x == value and isinstance(x, Immediate):
        return [x]
    if 0 in ctx.avals_out[0].shape or 0 in ctx.avals_in[0].shape:
        return [ctx.broadcast(value, ctx.avals_out[0].shape, ())]
    x = ctx.value(x, ctx.avals_in[0])
    constant = value if isinstance(value, Immediate) else ctx.immediate(0, value_dtype(ctx.avals_in[0].dtype))
    padded = _padded(ctx, x, config, constant)
    if isinstance(value, Immediate):
        return [padded]
    ones = ctx.constant(np.ones(ctx.avals_in[0].shape, np.bool_))
    is_inside = _padded(ctx, ones, config, ctx.immediate(0, "int32"))
    return [ctx.select(is_inside, padded, value, ctx.avals_out[0].dtype)]


def value_dtype(dtype: str) -> str:
    """The dtype of an immediate for a dtype."""
    return dtype if dtype in FLOATS else "int32"


def _padded(ctx: RuleContext, x: int, config: Sequence[tuple[int, int, int]], value: Immediate) -> int:
    for axis, (_, _, interior) in enumerate(config):
        shape = ctx.aval(x).shape
        if interior and shape[axis] > 1:
            apart: int = ctx.reshape(x, (*shape[: axis + 1], 1, *shape[axis + 1 :]))
            widths = [interior if i == axis + 1 else 0 for i in range(len(shape) + 1)]
            apart = ctx.pad(apart, [0] * len(widths), widths, value)
            size = shape[axis] * (1 + interior)
            spread = ctx.reshape(apart, (*shape[:axis], size, *shape[axis + 1 :]))
            x = ctx.slice_axis(spread, axis, 0, size - interior)
    shape = ctx.aval(x).shape
    low, high = [max(0, a) for a, _, _ in config], [max(0, b) for _, b, _ in config]
    x = ctx.pad(x, low, high, value)
    start = [max(0, -a) for a, _, _ in config]
    limit = [n - max(0, -b) for n, (_, b, _) in zip(ctx.aval(x).shape, config, strict=True)]
    return ctx.slice(x, start, limit)


@register_lowering("iota")
def _iota(ctx: RuleContext, *, dtype: Any, shape: Any, dimension: int, sharding: Any = None) -> Sequence[Operand]:
    """Small ones are constants already; a large one is the broadcast of one axis."""
    ctx.require(sharding=(sharding, [None]))
    axis = ctx.constant(np.arange(shape[dimension], dtype=dtype))
    return [ctx.broadcast(axis, tuple(shape), (dimension,))]
