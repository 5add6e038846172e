"""Rules of scatter: rows of a table are replaced, or combined with what is there, at computed row numbers.

Distinct windows are one ScatterRows; windows that may overlap are a loop, one after the other, and the last one wins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from lpu_jax.lowering.emit import Operand
from lpu_jax.lowering.registry import RuleContext, register_lowering
from lpu_jax.lowering.rules.windows_of_indices import Windows

Combine = Callable[[Any, Any], Any]
_COMBINE: dict[str, Combine] = {
    "scatter": lambda old, new: new,
    "scatter-add": lax.add,
    "scatter-sub": lax.sub,
    "scatter-mul": lax.mul,
    "scatter-min": lax.min,
    "scatter-max": lax.max,
}


def _windows(ctx: RuleContext, numbers: Any) -> Windows:
    shape, updates = ctx.avals_in[0].shape, ctx.avals_in[2].shape
    sizes = [1] * len(shape)
    absent = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    kept = [d for d in range(len(shape)) if d not in absent]
    for axis, position in zip(kept, numbers.update_window_dims, strict=True):
        sizes[axis] = updates[position]
    return Windows(
        shape=shape,
        sizes=tuple(sizes),
        index_map=tuple(numbers.scatter_dims_to_operand_dims),
        batching=dict(zip(numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True)),
        batch_shape=ctx.avals_in[1].shape[:-1],
    )


def _update_rows(updates: Any, windows: Windows, numbers: Any) -> Any:
    """The updates as [batch and window offsets, row elements]."""
    batch = [i for i in range(updates.ndim) if i not in numbers.update_window_dims]
    moved = lax.transpose(updates, (*batch, *numbers.update_window_dims))
    in_operand_order = lax.reshape(moved, (*windows.batch_shape, *windows.sizes))
    rank = len(batch)
    order = [*windows.numbered, *windows.rows]
    spread = lax.transpose(in_operand_order, (*range(rank), *(rank + d for d in order)))
    width = int(np.prod([windows.shape[d] for d in windows.rows], dtype=np.int64))
    return lax.reshape(spread, (updates.size // width, width))


@register_lowering("scatter")
@register_lowering("scatter-add")
@register_lowering("scatter-sub")
@register_lowering("scatter-mul")
@register_lowering("scatter-min")
@register_lowering("scatter-max")
def _scatter(
    ctx: RuleContext,
    table: Operand,
    indices: Operand,
    updates: Operand,
    *,
    dimension_numbers: Any,
    indices_are_sorted: bool,
    unique_indices: bool,
    mode: Any,
    update_jaxpr: Any,
    update_consts: Any,
) -> Sequence[Operand]:
    """Every form and mode; windows not promised to be distinct are written by a loop. What lies outside is dropped,
    also if the opposite was promised, but for several distinct windows."""
    del indices_are_sorted, update_jaxpr, update_consts  # the name of the primitive says the function
    if 0 in (*ctx.avals_in[0].shape, *ctx.avals_in[2].shape):
        raise ctx.unsupported("a scatter of or into an empty array")
    windows = _windows(ctx, dimension_numbers)
    is_one = int(np.prod(windows.batch_shape)) == 1
    is_distinct = unique_indices or is_one
    is_checked = "fill" in str(mode).lower() or ("promise" in str(mode).lower() and (is_one or not is_distinct))
    keeps = is_checked and is_one and ctx.primitive != "scatter"
    drops = is_checked and not keeps
    combine = _COMBINE[ctx.primitive]

    def numbers_and_rows(i: Any, u: Any) -> tuple[Any, Any, Any]:
        starts, is_inside = windows.starts(i)
        numbers = windows.row_numbers(starts)
        rows = _update_rows(u, windows, dimension_numbers)
        if drops:  # what lies outside goes to spare rows behind the table
            inside = lax.broadcast_in_dim(is_inside, numbers.shape, range(is_inside.ndim))
            spare = np.arange(numbers.size, dtype=np.int32).reshape(numbers.shape) + np.int32(windows.num_rows)
            numbers = jnp.where(inside, numbers, spare)
        return lax.reshape(numbers, (numbers.size,)), rows, lax.reshape(is_inside, (is_inside.size,))

    def combined(old: Any, new: Any, is_inside: Any) -> Any:
        """What a single window writes; outside it writes what is there already."""
        return jnp.where(is_inside[:, None], combine(old, new), old) if keeps else combine(old, new)

    def extended(x: Any, rows: Any) -> Any:
        return lax.pad(windows.table(x), jnp.zeros((), x.dtype), [(0, rows.shape[0] * drops, 0), (0, 0, 0)])

    if is_distinct:
        return [_distinct(ctx, (table, indices, updates), numbers_and_rows, extended, combined, windows)]

    def loop(x: Any, i: Any, u: Any) -> Any:
        numbers, rows, _ = numbers_and_rows(i, u)

        def step(present: Any, update: tuple[Any, Any]) -> tuple[Any, None]:
            number, row = update
            old = lax.dynamic_slice_in_dim(present, number, 1)
            return lax.dynamic_update_slice_in_dim(present, combine(old, row[None]), number, 0), None

        return windows.operand(lax.scan(step, extended(x, rows), (numbers, rows))[0][: windows.num_rows])

    return ctx.rewrite(loop, table, indices, updates)


def _distinct(
    ctx: RuleContext,
    operands: Sequence[Operand],
    numbers_and_rows: Callable[[Any, Any], tuple[Any, Any, Any]],
    extended: Combine,
    combined: Callable[[Any, Any, Any], Any],
    windows: Windows,
) -> Operand:
    """One GatherRows, the function, one ScatterRows."""

    def before(x: Any, i: Any, u: Any) -> tuple[Any, Any, Any]:
        numbers, rows, is_inside = numbers_and_rows(i, u)
        whole = extended(x, rows)
        return whole, numbers, combined(whole.at[numbers].get(mode="promise_in_bounds"), rows, is_inside)

    dtype = ctx.avals_in[0].dtype
    avals = [type(ctx.avals_in[0])(a.shape, a.dtype) for a in ctx.avals_in]
    results = ctx.rewrite(before, *operands, avals=avals)
    num_rows = ctx.aval(results[2]).shape[0] if isinstance(results[2], int) else None
    width = int(np.prod([windows.shape[d] for d in windows.rows], dtype=np.int64))
    count = num_rows or int(np.prod(windows.batch_shape)) * int(np.prod([windows.sizes[d] for d in windows.numbered]))
    total = windows.num_rows + (count if _spares(ctx, results, windows) else 0)
    aval = type(avals[0])
    ids = [
        ctx.value(results[0], aval((total, width), dtype)),
        ctx.value(results[2], aval((count, width), dtype)),
        ctx.value(results[1], aval((count,), "int32")),
    ]
    written = ctx.scatter_rows(*ids)
    whole = aval(ctx.aval(written).shape, dtype)
    return ctx.rewrite(lambda t: windows.operand(t[: windows.num_rows]), written, avals=[whole])[0]


def _spares(ctx: RuleContext, results: Sequence[Operand], windows: Windows) -> bool:
    return isinstance(results[0], int) and ctx.aval(results[0]).shape[0] > windows.num_rows
