"""How a dot product is accumulated: `exact`, `tile` or `float32`.

exact    the sum over all of K, rounded once (runtime/exact_dot.py)
tile     one rounding per hardware tile, as first-generation chips are described; the fp32 partial sums are added in
         ascending order of K as the VXM adds, with subnormals flushed. A tile has as many rows as the planes take
         in one pass: all of a plane (320) where both operands are a byte wide, else half (160).
         int8 x int8 has no rounding to make.
float32  XLA's own float32 product; its order of summation is XLA's, so the machine has no such mode. Sums and functions
         of the VXM are XLA's too (runtime/xla_functions.py)
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from lpu_jax.runtime.casts import bits_of, decode
from lpu_jax.runtime.chip import GROQCHIP1
from lpu_jax.runtime.digits import widen
from lpu_jax.runtime.exact_dot import element_format, exact_dot
from lpu_jax.runtime.formats import NumberFormat
from lpu_jax.runtime.isa import DataFormat
from lpu_jax.runtime.numerics import Array, flush_to_float64, round_to_fp32, total

ACCUMULATIONS = ("exact", "tile", "float32")
Format = DataFormat | NumberFormat


def tile_rows(lhs_format: Format, rhs_format: Format, num_mxm_rows: int) -> int:
    """Rows of K that are summed before a rounding in mode `tile`."""
    is_narrow = _is_narrow(lhs_format) and _is_narrow(rhs_format)
    return num_mxm_rows if is_narrow else num_mxm_rows // 2


def _is_narrow(given: Format) -> bool:
    is_block = given.block_size > 0 if isinstance(given, NumberFormat) else given.is_block
    return is_block or given.num_bytes == 1


def accumulate(
    xp: Any,
    lhs: Array,
    rhs: Array,
    lhs_format: Format,
    rhs_format: Format,
    accumulation: str = "exact",
    num_mxm_rows: int = GROQCHIP1.num_mxm_rows,
) -> Array:
    """The matrix product of exact_dot in one of the modes of this module; shapes and dtypes as there."""
    if accumulation == "exact":
        return exact_dot(xp, lhs, rhs, lhs_format, rhs_format)
    if accumulation == "tile":
        return add_partial_sums(xp, partial_sums(xp, lhs, rhs, lhs_format, rhs_format, num_mxm_rows))
    if accumulation == "float32":
        return _float32_dot(xp, lhs, rhs, lhs_format, rhs_format)
    raise ValueError(f"accumulation={accumulation!r} is unknown; use one of {ACCUMULATIONS}")


def partial_sums(
    xp: Any, lhs: Array, rhs: Array, lhs_format: Format, rhs_format: Format, num_mxm_rows: int
) -> list[Array]:
    """The sums of mode `tile` before they are added, in ascending order of K; the last tile is filled up with zeros."""
    step = tile_rows(lhs_format, rhs_format, num_mxm_rows)
    left = xp.moveaxis(in_tiles(xp, lhs, step, -1), -2, 0)
    right = xp.moveaxis(in_tiles(xp, rhs, step, -2), -3, 0)
    return list(exact_dot(xp, left, right, lhs_format, rhs_format))


def in_tiles(xp: Any, x: Array, step: int, axis: int) -> Array:
    """Cuts an axis into (tiles, step), the last one filled up with zeros."""
    axis %= x.ndim
    padding = [(0, -size % step if i == axis else 0) for i, size in enumerate(x.shape)]
    if any(after for _, after in padding):
        x = xp.pad(x, padding)
    return x.reshape(*x.shape[:axis], -1, step, *x.shape[axis + 1 :])


def add_partial_sums(xp: Any, parts: list[Array]) -> Array:
    """Adds the sums of tiles in order: fp32 with one rounding each, int32 exactly."""
    result = parts[0]
    for partial_sum in parts[1:]:
        if result.dtype == np.int32:
            result = result + partial_sum
        else:
            added = total(xp, flush_to_float64(xp, result), flush_to_float64(xp, partial_sum))
            result = round_to_fp32(xp, added)
    return result


def _float32_dot(xp: Any, lhs: Array, rhs: Array, lhs_format: Format, rhs_format: Format) -> Array:
    if xp is np:
        raise ValueError("accumulation='float32' is XLA's order of summation, which the machine does not have")
    left, right = element_format(lhs_format), element_format(rhs_format)
    if left is DataFormat.INT8 and right is DataFormat.INT8:
        return exact_dot(xp, lhs, rhs, left, right)
    wide = [
        x.astype(np.float32) if form is DataFormat.INT8 or x.dtype == np.float32 else decode(xp, x, form.number_format)
        for x, form in ((lhs, left), (rhs, right))
    ]  # weights may be wide already
    return jnp.matmul(*wide, precision=lax.Precision.HIGHEST)


MAX_ACCUMULATOR_BITS = 100
"""The published width of the intermediate sums."""


def accumulator_bits(lhs: np.ndarray, rhs: np.ndarray, lhs_format: Format, rhs_format: Format) -> int:
    """Bits of a two's complement accumulator that holds every partial sum of these values, in any order, exactly.

    1 (sign) + bits of K * max |lhs| * max |rhs| in units of the product of the lowest bits in use. More bits than
    MAX_ACCUMULATOR_BITS are lost in the published accumulator. Infinities and NaN are left out; 1 if all is zero.
    """
    sides = [extent(np, np.asarray(x), form) for x, form in ((lhs, lhs_format), (rhs, rhs_format))]
    return bits_of_extents(sides[0], sides[1], lhs.shape[-1])


def extent(xp: Any, x: Array, given: Format) -> tuple[Array, Array]:
    """(float32 bits of the largest magnitude, lowest bit in use as a power of 2^-149) of the finite values; int32.

    (0, 512) if all are zero.
    """
    wide, _ = widen(xp, x, element_format(given))
    with np.errstate(invalid="ignore"):
        bits = bits_of(xp, wide.astype(np.float32)) & 0x7FFFFFFF
    is_used = (bits > 0) & (bits < 0x7F800000)
    significand = (bits & 0x7FFFFF) | xp.where(bits >= 0x800000, 0x800000, 0)
    lowest = xp.where(is_used, significand & -significand, 1)  # a power of two: its float32 exponent is its logarithm
    logarithm = (bits_of(xp, lowest.astype(np.float32)) >> 23) - 127
    low = xp.where(is_used, xp.maximum(bits >> 23, 1) - 1 + logarithm, 512)
    top = xp.max(xp.where(is_used, bits, 0), initial=0)
    return top.astype(np.int32), xp.min(low, initial=512).astype(np.int32)


def bits_of_extents(lhs: tuple[Any, Any], rhs: tuple[Any, Any], num_terms: int) -> int:
    """`accumulator_bits` of operands with these extents."""
    left, right = (_in_units(int(top), int(low)) for top, low in (lhs, rhs))
    return 1 + (left * right * num_terms).bit_length()


def _in_units(top: int, low: int) -> int:
    """float32 bits of a magnitude as an integer in units of 2^(low - 149)."""
    if not top:
        return 0
    significand = (top & 0x7FFFFF) | (0x800000 if top >> 23 else 0)
    return (significand << (max(top >> 23, 1) - 1)) >> low
