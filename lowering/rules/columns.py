"""Columns of matrices that are weights of products, too: `matrices[t, :, n]` of a resident [T, K, N] at run time.

In the format of the products the matrices are held once: matrix t is gathered whole (`tile_shared`), all lanes but n
are masked, and sums over lanes, of one term that is not zero, bring its elements together. A zero comes out as +0.

  blocks   the words of a column are picked as bytes; its elements are unpacked where they lie side by side
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lpu_jax.lowering.emit import FLOATS, NARROW_FLOATS, Operand
from lpu_jax.lowering.passes.tile_storage import FORMATS
from lpu_jax.lowering.registry import RuleContext
from lpu_jax.lowering.rules.elementwise import convert
from lpu_jax.lowering.rules.matmul import enter_weights
from lpu_jax.runtime.formats import NumberFormat
from lpu_jax.runtime.ops import Immediate

_EXPONENT_BIAS = 127
_FRACTION_BITS = 23


def is_column(ctx: RuleContext, table: int, starts: Sequence[Operand], sizes: Sequence[int]) -> bool:
    """Whether a dynamic slice takes one column of one of several resident matrices."""
    shape, dtype = ctx.aval(table).shape, ctx.aval(table).dtype
    if len(shape) != 3 or shape[0] == 1 or shape[1] == 1 or dtype not in (*FLOATS, "int8"):
        return False
    is_one = tuple(sizes) == (1, shape[1], 1) and not any(isinstance(starts[axis], Immediate) for axis in (0, 2))
    return is_one and ctx.magnitudes.is_resident(table)


def column(ctx: RuleContext, table: int, number: int, lane: int) -> Operand:
    """table[number, :, lane] of a resident [T, K, N], as [1, K] of its dtype; indices are int32 scalars in range.

    The table is held in the format that the policy has for this lookup, else as it is given; where that is the format
    of the products' weights, too, it is held once.
    """
    dtype, num_rows = ctx.aval(table).dtype, ctx.aval(table).shape[1]
    form = ctx.formats(None, table).rhs
    held, data_format, scale = (table, FORMATS[dtype], None) if form is None else enter_weights(ctx, table, form)
    tile: int = ctx.reshape(number, (1,))
    picked = _pick(ctx, held, tile, lane)
    if data_format.is_block:
        number_format = data_format.number_format
        words = ctx.aval(picked)
        found = ctx.rewrite(lambda w: _unpacked(w, number_format)[:, :num_rows], picked, avals=[words])[0]
    else:
        found = convert(ctx, picked, ctx.aval(picked).dtype, "float32")
    if scale is not None:
        found = ctx.elementwise("mul", found, _scale_of(ctx, scale, tile, lane))
    if dtype == "int8":
        return ctx.elementwise("to_int", found, dtype="int8")
    return convert(ctx, found, "float32", dtype)


def _scale_of(ctx: RuleContext, scale: Operand, tile: int, lane: int) -> Operand:
    """The scale [T or 1, 1, N or 1] of a column, as [1, 1]."""
    if not isinstance(scale, int):
        return scale
    matrices, _, columns = ctx.aval(scale).shape
    if columns > 1:
        return _pick(ctx, scale, tile, lane)
    rows = ctx.reshape(scale, (matrices, 1))
    return ctx.gather_rows(rows, tile) if matrices > 1 else rows


def _pick(ctx: RuleContext, held: int, tile: int, lane: int) -> int:
    """held[tile, :, lane] as [1, rows]; int8 through bfloat16, which holds it exactly and is summed in one pass."""
    rows: Operand = ctx.gather_rows(held, tile)
    shape, dtype = ctx.aval(rows).shape, ctx.aval(rows).dtype
    lanes = ctx.constant(np.arange(shape[-1], dtype=np.int32))
    own = ctx.broadcast_to(ctx.elementwise("ieq", lanes, lane), shape)
    if dtype == "int8":
        rows = convert(ctx, convert(ctx, rows, "int8", "float32"), "float32", "bfloat16")
    narrow = ctx.aval(rows).dtype
    masked = ctx.elementwise("mask", rows, own, dtype=narrow)
    total: Operand = ctx.lane_reduce("sum", masked, dtype="float32")  # type: ignore[arg-type]
    if dtype == "int8":
        total = ctx.elementwise("to_int", total, dtype="int8")
    elif dtype in NARROW_FLOATS:
        total = convert(ctx, total, "float32", dtype)
    return ctx.reshape(total, (1, shape[1]))  # type: ignore[return-value]


def _unpacked(words: Any, number_format: NumberFormat) -> Any:
    """float32 [1, elements] of the words int8 [1, words] of one column; see runtime/block_words.py."""
    m, size = number_format.element_bits, number_format.block_size
    blocks = words.reshape(-1, 1 + size * m // 8).astype(jnp.int32)
    unit = jnp.broadcast_to(blocks[:, :1], (blocks.shape[0], size)).reshape(1, -1)
    first, shift = np.arange(size) * m // 8, np.arange(size) * m % 8

    def bytes_at(places: np.ndarray) -> Any:
        return jnp.concatenate([blocks[:, 1 + p : 2 + p] for p in places.tolist()], axis=1).reshape(1, -1) & 0xFF

    code = bytes_at(first)
    if m != 8:
        last = np.minimum(first + 1, size * m // 8 - 1)
        pairs = code | (bytes_at(last) << 8)
        code = (pairs >> np.tile(shift, blocks.shape[0])[None].astype(np.int32)) & ((1 << m) - 1)
    sign = 1 << (m - 1)
    mantissa = ((code ^ sign) - sign).astype(jnp.float32)
    half = unit >> 1
    return mantissa * _power(half) * _power(unit - half)


def _power(exponent: Any) -> Any:
    """2^exponent as float32, -126 <= exponent <= 127."""
    return jax.lax.bitcast_convert_type((exponent + _EXPONENT_BIAS) << _FRACTION_BITS, jnp.float32)
