"""Rules of primitives that index at run time: rows are gathered and scattered by address maps of the MEM slices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lpu_jax.lowering.emit import FLOATS, Operand
from lpu_jax.lowering.registry import RuleContext, register_lowering
from lpu_jax.lowering.rules.columns import column, is_column
from lpu_jax.lowering.rules.integers import WIDTHS
from lpu_jax.lowering.rules.operand_formats import lookup_rows
from lpu_jax.lowering.rules.windows_of_indices import Windows, gathered
from lpu_jax.runtime.ops import Immediate


def _clamped(ctx: RuleContext, index: Operand, largest: int) -> Operand:
    """index clamped to 0 .. largest"""
    if largest == 0:
        return ctx.immediate(0, "int32")
    index = ctx.elementwise("imax", index, ctx.immediate(0, "int32"))
    return ctx.elementwise("imin", index, ctx.immediate(largest, "int32"))


def _check_index_dtype(ctx: RuleContext, dtypes: Sequence[str]) -> None:
    if any(dtype not in WIDTHS for dtype in dtypes):
        raise ctx.unsupported(f"indices of {sorted(set(dtypes))}; use int32")


def as_index(ctx: RuleContext, x: Operand, dtype: str) -> Operand:
    """An index as int32; of uint32 what is too large for it is the largest one."""
    if dtype == "uint32":
        return ctx.select(
            ctx.elementwise("ilt", x, ctx.immediate(0, "int32")), ctx.immediate(2**31 - 1, "int32"), x, "int32"
        )
    return ctx.elementwise("identity", x, dtype="int32") if dtype == "int8" else x


# gather


@register_lowering("gather")
def _gather(
    ctx: RuleContext,
    table: Operand,
    indices: Operand,
    *,
    dimension_numbers: Any,
    slice_sizes: Any,
    indices_are_sorted: bool,
    unique_indices: bool,
    mode: Any,
    fill_value: Any,
) -> Sequence[Operand]:
    """Rows by address maps; windows, several indexed axes and batches through computed row numbers."""
    del indices_are_sorted, unique_indices  # promises that are not needed
    if not _is_row_lookup(ctx, dimension_numbers, slice_sizes):
        return _general_gather(ctx, table, indices, dimension_numbers, slice_sizes, mode, fill_value)
    (axis,) = dimension_numbers.start_index_map
    table, indices = ctx.values([table, indices])
    num_rows, num_indices = ctx.avals_in[0].shape[axis], math.prod(ctx.avals_in[1].shape)
    order = (axis, *(i for i in range(len(ctx.avals_in[0].shape)) if i != axis))
    moved = ctx.transpose(table, order)
    flat = ctx.reshape(indices, (num_indices,))
    mode_name = str(mode).rpartition(".")[2].lower()
    safe = flat if "promise" in mode_name else _clamped(ctx, flat, num_rows - 1)
    safe_id = ctx.value(safe, ctx.aval(flat))
    rows: Operand = lookup_rows(ctx, moved, safe_id)
    if "fill" in mode_name:
        rows = _filled(ctx, rows, flat, num_rows, fill_value)
    return [_place_offsets(ctx, rows, dimension_numbers)]


def _is_row_lookup(ctx: RuleContext, numbers: Any, slice_sizes: Any) -> bool:
    """table[index]: one collapsed and indexed axis, all of the others, int32 indices."""
    shape, axes = ctx.avals_in[0].shape, tuple(numbers.start_index_map)
    is_plain = len(axes) == 1 and tuple(numbers.collapsed_slice_dims) == axes and not numbers.operand_batching_dims
    is_whole = all(s == n for i, (s, n) in enumerate(zip(slice_sizes, shape, strict=True)) if i not in axes)
    return is_plain and is_whole and ctx.avals_in[1].dtype == "int32" and 0 not in ctx.avals_out[0].shape


def _default_fill(dtype: str) -> Any:
    """NaN, the smallest signed or the largest unsigned integer, True."""
    if dtype in FLOATS:
        return math.nan
    if dtype == "bool":
        return True
    return np.iinfo(dtype).max if dtype.startswith("u") else np.iinfo(dtype).min


def _general_gather(
    ctx: RuleContext, table: Operand, indices: Operand, numbers: Any, slice_sizes: Any, mode: Any, fill_value: Any
) -> Sequence[Operand]:
    if 0 in (*ctx.avals_in[0].shape, *ctx.avals_out[0].shape):
        raise ctx.unsupported("a gather of or into an empty array")
    windows = Windows(
        shape=ctx.avals_in[0].shape,
        sizes=tuple(int(n) for n in slice_sizes),
        index_map=tuple(numbers.start_index_map),
        batching=dict(zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True)),
        batch_shape=ctx.avals_in[1].shape[:-1],
    )
    fill = None
    if "fill" in str(mode).lower():
        fill = _default_fill(ctx.avals_in[0].dtype) if fill_value is None else fill_value
    dropped = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    return ctx.rewrite(lambda x, i: gathered(x, i, windows, fill, numbers.offset_dims, dropped), table, indices)


def _filled(ctx: RuleContext, rows: Operand, flat: Operand, num_rows: int, fill_value: Any) -> Operand:
    """Rows at indices outside 0 .. num_rows-1 hold the fill value: NaN, or the smallest integer."""
    aval = ctx.aval(rows)
    if fill_value is None:
        fill_value = _default_fill(ctx.avals_in[0].dtype)
    is_inside = ctx.elementwise(
        "and",
        ctx.elementwise("ige", flat, ctx.immediate(0, "int32")),
        ctx.elementwise("ilt", flat, ctx.immediate(num_rows, "int32")),
        dtype="bool",
    )
    splat = ctx.broadcast(is_inside, aval.shape, (0,))
    fill = ctx.immediate(fill_value, aval.dtype if aval.dtype in FLOATS else "int32")
    return ctx.select(splat, rows, fill, aval.dtype)


def _place_offsets(ctx: RuleContext, rows: Operand, numbers: Any) -> Operand:
    """[n, ...] -> index axes and slice axes where the result wants them."""
    index_shape, slice_shape = ctx.avals_in[1].shape[:-1], ctx.aval(rows).shape[1:]
    rows = ctx.reshape(rows, (*index_shape, *slice_shape))
    rank = len(index_shape) + len(slice_shape)
    slices = list(range(len(index_shape), rank))
    indices = list(range(len(index_shape)))
    order = [slices.pop(0) if i in numbers.offset_dims else indices.pop(0) for i in range(rank)]
    return ctx.transpose(rows, order)


# dynamic slices


def _window(ctx: RuleContext, starts: Sequence[Operand], shape: Sequence[int], sizes: Sequence[int]) -> list[Operand]:
    """Clamped starts; whole axes start at 0."""
    _check_index_dtype(ctx, [aval.dtype for aval in ctx.avals_in[-len(starts) :]] if starts else [])
    dtypes = [aval.dtype for aval in ctx.avals_in[len(ctx.avals_in) - len(starts) :]]
    starts = [as_index(ctx, start, dtype) for start, dtype in zip(starts, dtypes, strict=True)]
    return [_clamped(ctx, start, n - size) for start, n, size in zip(starts, shape, sizes, strict=True)]


def _row_index(ctx: RuleContext, starts: Sequence[Operand], shape: Sequence[int], sizes: Sequence[int]) -> int:
    """Row numbers of a window over leading axes, as one int32 vector: sum of (start + i) * stride over the axes."""
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    grid = np.zeros(tuple(sizes), np.int32)
    for axis, (start, stride) in enumerate(zip(starts, strides, strict=True)):
        steps = np.arange(sizes[axis], dtype=np.int32)
        first = start.value if isinstance(start, Immediate) else 0
        grid += ((steps + np.int32(first)) * np.int32(stride)).reshape(
            [-1 if i == axis else 1 for i in range(len(sizes))]
        )
    count = grid.size
    has_offsets = count > 1 or grid.any() or all(isinstance(start, Immediate) for start in starts)
    index: Operand | None = ctx.constant(grid.reshape(-1)) if has_offsets else None
    for start, stride in zip(starts, strides, strict=True):
        if isinstance(start, Immediate):
            continue
        offset = ctx.elementwise("imul", start, ctx.immediate(stride, "int32")) if stride != 1 else start
        splat = ctx.broadcast(offset, (count,), ())
        index = splat if index is None else ctx.elementwise("iadd", splat, index)
    return index  # type: ignore[return-value]


def _last_dynamic_axis(starts: Sequence[Operand]) -> int:
    return max((i for i, start in enumerate(starts) if not isinstance(start, Immediate)), default=-1)


@register_lowering("dynamic_slice")
def _dynamic_slice(ctx: RuleContext, x: Operand, *starts: Operand, slice_sizes: Any) -> Sequence[Operand]:
    """Constant starts slice; run-time starts on leading axes gather rows, on the last axis rows of the transpose; there
    size 1 is a masked sum."""
    if isinstance(x, Immediate):
        return [x]
    shape, sizes = ctx.avals_in[0].shape, [int(n) for n in slice_sizes]
    clamped = _window(ctx, starts, shape, sizes)
    if is_column(ctx, x, clamped, sizes):
        return [ctx.reshape(column(ctx, x, clamped[0], clamped[2]), sizes)]  # type: ignore[arg-type]
    first = [int(start.value) if isinstance(start, Immediate) else 0 for start in clamped]
    limit = [a + n if isinstance(s, Immediate) else m for a, n, m, s in zip(first, sizes, shape, clamped, strict=True)]
    x = ctx.slice(x, first, limit)
    last = _last_dynamic_axis(clamped)
    if last == len(shape) - 1 and last >= 0:
        x = _dynamic_lane(ctx, x, clamped[last], sizes[last])
        last = _last_dynamic_axis(clamped[:-1])
    if last < 0:
        return [x]
    present = ctx.aval(x).shape
    axes = slice(0, last + 1)
    starts_here = [s if not isinstance(s, Immediate) else ctx.immediate(0, "int32") for s in clamped[axes]]
    table = ctx.reshape(x, (math.prod(present[axes]), *present[last + 1 :]))
    rows = lookup_rows(ctx, table, _row_index(ctx, starts_here, present[axes], sizes[axes]))
    return [ctx.reshape(rows, sizes)]


def _dynamic_lane(ctx: RuleContext, x: int, start: Operand, size: int) -> int:
    """One lane at a run-time position: all others are masked, the bits of the lanes are joined by `or`.

    Several are rows of the transpose.
    """
    aval = ctx.aval(x)
    if size != 1:
        rank, lanes = len(aval.shape), aval.shape[-1]
        table = ctx.reshape(ctx.transpose(x, (rank - 1, *range(rank - 1))), (lanes, max(1, math.prod(aval.shape[:-1]))))
        rows = ctx.gather_rows(table, _row_index(ctx, [start], [lanes], [size]))
        moved = ctx.reshape(rows, (size, *aval.shape[:-1]))
        return ctx.transpose(moved, (*range(1, rank), 0))
    is_chosen = ctx.broadcast_to(_lane_flags(ctx, aval.shape[-1], start), aval.shape)
    working = "int32" if aval.dtype != "float16" else "float32"
    masked = ctx.elementwise("mask", x, is_chosen, dtype=working)
    bits = masked if working == "int32" else ctx.elementwise("or", masked, ctx.immediate(0, "int32"), dtype="int32")
    lane = ctx.lane_reduce("or", bits)
    if aval.dtype == "int32":
        return lane
    return ctx.elementwise("or", lane, ctx.immediate(0, "int32"), dtype=aval.dtype)


def _lane_flags(ctx: RuleContext, size: int, start: Operand) -> Operand:
    """bool [size]: lane number == start"""
    lanes = ctx.constant(np.arange(size, dtype=np.int32))
    return ctx.elementwise("ieq", lanes, start)


@register_lowering("dynamic_update_slice")
def _dynamic_update_slice(ctx: RuleContext, x: Operand, update: Operand, *starts: Operand) -> Sequence[Operand]:
    """Constant starts concatenate; run-time starts on leading axes scatter rows, on the last axis elements.

    A size of 1 on the last axis selects.
    """
    shape, sizes = ctx.avals_in[0].shape, ctx.avals_in[1].shape
    if shape == sizes:
        return [update]
    x, update = ctx.values([x, update, *starts])[:2]
    clamped = _window(ctx, starts, shape, sizes)
    last = max(i for i in range(len(shape)) if shape[i] != sizes[i])
    if _last_dynamic_axis(clamped) < 0:
        return [_replaced(ctx, x, update, [int(s.value) for s in clamped], 0)]  # type: ignore[union-attr]
    if last < len(shape) - 1:
        rows_shape = (math.prod(sizes[: last + 1]), *shape[last + 1 :])
        table = ctx.reshape(x, (math.prod(shape[: last + 1]), *shape[last + 1 :]))
        index = _row_index(ctx, clamped[: last + 1], shape[: last + 1], sizes[: last + 1])
        scattered = ctx.scatter_rows(table, ctx.reshape(update, rows_shape), index)
        return [ctx.reshape(scattered, shape)]
    if sizes[last] != 1 or sizes[:last] != shape[:last]:
        table = ctx.reshape(x, (math.prod(shape), 1))
        new = ctx.reshape(update, (math.prod(sizes), 1))
        return [ctx.reshape(ctx.scatter_rows(table, new, _row_index(ctx, clamped, shape, sizes)), shape)]
    is_chosen = ctx.broadcast_to(_lane_flags(ctx, shape[-1], clamped[last]), shape)
    return [ctx.select(is_chosen, ctx.broadcast_to(update, shape), x, ctx.avals_out[0].dtype)]


def _replaced(ctx: RuleContext, x: Operand, update: Operand, starts: Sequence[int], axis: int) -> int:
    """The update between what is before and after it, axis by axis."""
    shape, sizes = ctx.aval(x).shape, ctx.aval(update).shape
    while axis < len(shape) and shape[axis] == sizes[axis]:
        axis += 1
    if axis == len(shape):
        return update  # type: ignore[return-value]
    start, limit = starts[axis], starts[axis] + sizes[axis]
    middle = _replaced(ctx, ctx.slice_axis(x, axis, start, limit), update, starts, axis + 1)
    parts = [ctx.slice_axis(x, axis, 0, start)] if start else []
    parts.append(middle)
    parts += [ctx.slice_axis(x, axis, limit, shape[axis])] if limit < shape[axis] else []
    return ctx.concatenate(parts, axis)  # type: ignore[arg-type]
