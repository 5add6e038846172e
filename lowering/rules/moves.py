"""Rules of primitives that move data without computing: each becomes one move or none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lpu_jax.lowering.emit import Operand
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
    ctx.require(dimensions=(dimensions, [None]), sharding=(sharding, [None]))
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
    return [ctx.concatenate([ctx.reshape(x, shape) for x in ctx.values(operands)], axis)]  # type: ignore[misc]


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
    """Negative padding slices."""
    config = [tuple(map(int, axis)) for axis in padding_config]
    if any(interior for _, _, interior in config):
        raise ctx.unsupported(f"interior padding {config}")
    if not isinstance(value, Immediate):
        raise ctx.unsupported("the padding value must be a constant")
    if x == value:
        return [x]
    x = ctx.value(x, ctx.avals_in[0])
    shape = ctx.avals_in[0].shape
    x = ctx.slice(
        x,
        [max(0, -low) for low, _, _ in config],
        [n - max(0, -high) for n, (_, high, _) in zip(shape, config, strict=True)],
    )
    return [ctx.pad(x, [max(0, low) for low, _, _ in config], [max(0, high) for _, high, _ in config], value)]  # type: ignore[arg-type]


@register_lowering("iota")
def _iota(ctx: RuleContext, *, dtype: Any, shape: Any, dimension: int, sharding: Any = None) -> Sequence[Operand]:
    """Small ones are constants already; a large one is the broadcast of one axis."""
    import numpy as np

    ctx.require(sharding=(sharding, [None]))
    axis = ctx.constant(np.arange(shape[dimension], dtype=dtype))
    return [ctx.broadcast(axis, tuple(shape), (dimension,))]
