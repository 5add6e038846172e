"""Rules of sort and top_k: a bitonic network over a leading axis, in selects of whole arrays.

Keys become int32 of the same order (floats: -0 = 0, every NaN last); the position is the last key, which makes the sort
stable. n is padded to a power of two; log2(n) (log2(n) + 1) / 2 stages, each one comparison and a select per operand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from lpu_jax.lowering.emit import FLOATS, Operand
from lpu_jax.lowering.registry import RuleContext, register_lowering

INT_MAX = 2**31 - 1
MAX_SORTED = 4096
"""Longer axes would make programs of hundreds of stages over large arrays."""
MAX_TOP = 64


def sort_key(x: Any) -> Any:
    """int32 in the order in which JAX sorts a dtype."""
    dtype = str(x.dtype)
    if dtype in FLOATS:
        wide = lax.convert_element_type(x, jnp.float32)
        bits = lax.bitcast_convert_type(wide, jnp.int32)
        bits = jnp.where(wide == 0.0, 0, bits)
        bits = bits ^ (lax.shift_right_arithmetic(bits, jnp.full_like(bits, 31)) & INT_MAX)
        return jnp.where(wide != wide, INT_MAX, bits)
    if dtype == "uint32":
        return lax.bitcast_convert_type(x, jnp.int32) ^ jnp.int32(-(2**31))
    return lax.convert_element_type(x, jnp.int32)


def _is_less(low: Sequence[Any], high: Sequence[Any]) -> Any:
    """Lexicographic comparison, the first key first."""
    result = low[-1] < high[-1]
    for a, b in zip(low[-2::-1], high[-2::-1], strict=True):
        result = (a < b) | ((a == b) & result)
    return result


def bitonic(arrays: Sequence[Any], num_keys: int) -> list[Any]:
    """Sorts the rows of arrays [2^m, ...] by the first num_keys of them, whose rows are all different."""
    size = arrays[0].shape[0]
    block = 2
    while block <= size:
        distance = block // 2
        while distance:
            arrays = _stage(arrays, num_keys, block, distance)
            distance //= 2
        block *= 2
    return list(arrays)


def _stage(arrays: Sequence[Any], num_keys: int, block: int, distance: int) -> list[Any]:
    """Compares rows a distance apart; blocks ascend and descend in turn."""
    size, rest = arrays[0].shape[0], arrays[0].shape[1:]
    groups = size // (2 * distance)
    halves = [lax.reshape(x, (groups, 2, distance, *rest)) for x in arrays]
    low, high = ([lax.index_in_dim(x, i, 1, keepdims=False) for x in halves] for i in range(2))
    ascends = (np.arange(groups) * 2 * distance) & block == 0
    ascends = np.broadcast_to(ascends.reshape(-1, *[1] * (1 + len(rest))), low[0].shape)
    keeps = (
        _is_less(low[:num_keys], high[:num_keys]) == ascends
        if block < size
        else _is_less(low[:num_keys], high[:num_keys])
    )
    sorted_arrays = []
    for a, b in zip(low, high, strict=True):
        pair = [lax.expand_dims(lax.select(keeps, *x), (1,)) for x in ((a, b), (b, a))]
        sorted_arrays.append(lax.reshape(lax.concatenate(pair, 1), (size, *rest)))
    return sorted_arrays


def sort_rows(operands: Sequence[Any], num_keys: int) -> list[Any]:
    """Stable sort of arrays of one shape along axis 0."""
    size = operands[0].shape[0]
    padding = (1 << (size - 1).bit_length()) - size
    shape = operands[0].shape
    position = lax.broadcasted_iota(jnp.int32, (size + padding, *shape[1:]), 0)
    config = [(0, padding, 0)] + [(0, 0, 0)] * (len(shape) - 1)
    keys = [lax.pad(sort_key(x), jnp.int32(INT_MAX), config) for x in operands[:num_keys]]
    carried = [lax.pad(x, jnp.zeros((), x.dtype), config) for x in operands]
    results = bitonic([*keys, position, *carried], num_keys + 1)[num_keys + 1 :]
    return [lax.slice_in_dim(x, 0, size) for x in results]


@register_lowering("sort")
def _sort(ctx: RuleContext, *operands: Operand, dimension: int, is_stable: bool, num_keys: int) -> Sequence[Operand]:
    """Several keys, always stable; axes of up to 4096 elements."""
    del is_stable  # always
    size = ctx.avals_in[0].shape[dimension]
    if 0 in ctx.avals_in[0].shape or size == 1:
        return operands
    if size > MAX_SORTED:
        raise ctx.unsupported(f"a sort of {size} elements; at most {MAX_SORTED}")

    def fun(*values: Any) -> list[Any]:
        rows = [jnp.moveaxis(x, dimension, 0) for x in values]
        return [jnp.moveaxis(x, 0, dimension) for x in sort_rows(rows, num_keys)]

    return ctx.rewrite(fun, *operands)


@register_lowering("top_k")
def _top_k(ctx: RuleContext, x: Operand, *, k: int, axis: int = -1) -> Sequence[Operand]:
    """k times the largest of the rest, the first of equals, k up to 64; NaN is the largest, with a sign smallest."""
    shape = ctx.avals_in[0].shape
    if 0 in (*shape, k):
        raise ctx.unsupported("the largest of an empty array, or none of them")
    if k > MAX_TOP:
        raise ctx.unsupported(f"k={k}; at most {MAX_TOP}")

    def fun(value: Any) -> list[Any]:
        rows = jnp.moveaxis(value, axis, -1)
        results = _largest(rows, k)
        return [jnp.moveaxis(r, -1, axis) for r in results]

    return ctx.rewrite(fun, x)


def _total_order(x: Any) -> Any:
    """As `sort_key`, but a NaN with a sign is smaller than everything, and -0 smaller than 0."""
    if str(x.dtype) not in FLOATS:
        return sort_key(x)
    bits = lax.bitcast_convert_type(lax.convert_element_type(x, jnp.float32), jnp.int32)
    return bits ^ (lax.shift_right_arithmetic(bits, jnp.full_like(bits, 31)) & INT_MAX)


def _largest(rows: Any, k: int) -> tuple[Any, Any]:
    """[..., n] -> values and positions [..., k]; the bits of a value are picked by a masked sum of one term."""
    key, size = _total_order(rows), rows.shape[-1]
    lanes = lax.broadcasted_iota(jnp.int32, key.shape, key.ndim - 1)
    is_taken = jnp.zeros(key.shape, bool)
    values, positions = [], []
    last = key.ndim - 1
    is_float = str(rows.dtype) in FLOATS
    wide = lax.convert_element_type(rows, jnp.float32) if is_float else rows
    for _ in range(k):
        rest = jnp.where(is_taken, -(2**31), key)
        largest = lax.expand_dims(lax.reduce_max(rest, (last,)), (last,))
        position = lax.reduce_min(jnp.where((rest == largest) & ~is_taken, lanes, size), (last,))
        is_chosen = lanes == lax.expand_dims(position, (last,))
        positions.append(position)
        values.append(_picked(wide, is_chosen, last))
        is_taken = is_taken | is_chosen
    picked = lax.convert_element_type(jnp.stack(values, -1), rows.dtype)
    return picked, jnp.stack(positions, -1)


def _picked(x: Any, is_chosen: Any, axis: int) -> Any:
    """The one chosen element along an axis, bits and all."""
    if x.dtype == jnp.float32:
        bits = lax.bitcast_convert_type(x, jnp.int32)
        return lax.bitcast_convert_type(_picked(bits, is_chosen, axis), jnp.float32)
    wide = lax.convert_element_type(x, jnp.uint32 if x.dtype == jnp.uint32 else jnp.int32)
    bits = lax.bitcast_convert_type(wide, jnp.int32)
    found = lax.reduce_or(jnp.where(is_chosen, bits, 0), (axis,))
    return lax.convert_element_type(lax.bitcast_convert_type(found, wide.dtype), x.dtype)
