"""The exact dot product of runtime/digits.py at nearly the speed of an ordinary one, under XLA on CPU.

Level 0 multiplies in bfloat16 where every partial sum is a short integer in some unit, so that nothing rounds. Level 1
multiplies panels of K in float64 and adds them as pairs (hi, lo); with u = 2^-53 its error is at most

  E[m, n] = sum_p width_p * u * |lhs[m, p]| * |rhs[p, n]|     (norms; in any order, with or without FMA)

and a panel has none where |lhs[m, p]| * |rhs[p, n]| <= 2^53 * q[m, p] * q[p, n], q the lowest bit in use. What that
does not make certain is summed again, some at a time (runtime/certificate.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from lpu_jax.runtime.casts import bits_of
from lpu_jax.runtime.certificate import MARGIN, UNCERTAIN, Statistics, add_panels, repaired, rounded, short_sums
from lpu_jax.runtime.digits import UNIT_EXPONENT, unit_bits, widen
from lpu_jax.runtime.formats import element_dtype
from lpu_jax.runtime.isa import DataFormat
from lpu_jax.runtime.numerics import CANONICAL_NAN, Array

PANEL_WIDTH = 512
_MAX_PANELS = 16
_INT8_PANEL = 1024  # 2^14 * 1024 = 2^24: float32 sums of products of int8 are exact
_BLOCK_COLUMNS = 512
_MAX_WHOLE_TERMS = 2**15


def panels(size: int, width: int = PANEL_WIDTH) -> list[slice]:
    """Panels of K: at most 16, of about `width` terms."""
    count = min(_MAX_PANELS, -(-size // width))
    step = -(-size // count)
    return [slice(begin, min(begin + step, size)) for begin in range(0, size, step)]


def to_float64(x: Array, kind: DataFormat) -> Array:
    """A widened operand as float64; fp32 subnormals survive."""
    if kind is not DataFormat.FP32:
        return x.astype(np.float64)
    bits = bits_of(jnp, x)
    magnitude = bits & 0x7FFFFFFF
    subnormal = jnp.where(bits < 0, -magnitude, magnitude).astype(np.float64) * 2.0**-149
    return jnp.where(magnitude < 0x800000, subnormal, x.astype(np.float64))


def lowest_bit(x: Array, kind: DataFormat) -> Array:
    """Weight of the lowest bit in use, float32: |x - x without it|."""
    single = x.astype(np.float32)
    bits = bits_of(jnp, single)
    rest = lax.bitcast_convert_type(bits & (bits - 1), np.float32)
    lowest = jnp.where((bits & 0x7FFFFF) == 0, jnp.abs(single), jnp.abs(single - rest))
    if kind is DataFormat.FP32:
        magnitude = bits & 0x7FFFFFFF
        return jnp.where(magnitude == 0, np.float32(np.inf), jnp.where(magnitude < 24 << 23, np.float32(0), lowest))
    return jnp.where(single == 0, np.float32(np.inf), lowest)


def statistics(x: Array, kind: DataFormat, axis: int, cuts: list[slice], is_tight: bool = False) -> Statistics:
    """Statistics of a widened array whose axis `axis` is contracted over.

    Significands of float16 count as whole: that takes less time and is right for most sums. is_tight: they do not.
    """
    norms, lowest = [], []
    for cut in cuts:
        panel = lax.slice_in_dim(x, cut.start, cut.stop, axis=axis) if len(cuts) > 1 else x
        norms.append(_norm(panel, kind, axis))
        if kind is DataFormat.FP16 and not is_tight and cut.stop - cut.start <= _MAX_WHOLE_TERMS:
            lowest.append(_lowest_of_whole(panel, axis))
        else:
            lowest.append(jnp.min(lowest_bit(panel, kind), axis=axis).astype(np.float64))
    return Statistics(jnp.stack(norms), jnp.stack(lowest))


def _norm(x: Array, kind: DataFormat, axis: int) -> Array:
    """Products multiply the same float64 values, so that XLA need not convert them again."""
    wide = to_float64(x, kind)
    return jnp.sqrt(jnp.sum(wide * wide, axis=axis)) * MARGIN


def _lowest_of_whole(x: Array, axis: int) -> Array:
    """At most the weight of the last place of the smallest nonzero float16: sum(x^-2)^-1/2 is hardly less than that.

    XLA on CPU adds float32 several times faster than it finds minima. The margin is for up to 2^15 roundings.
    """
    single = x.astype(np.float32)
    squares = jnp.where(single == 0, np.float32(np.inf), single * single)
    least = 1 / jnp.sqrt(jnp.sum(1 / squares, axis=axis) * np.float32(1 + 2.0**-7))
    exponent = jnp.maximum((lax.bitcast_convert_type(least, np.int32) >> 23) - 127, -14) - 10
    return lax.bitcast_convert_type((jnp.minimum(exponent, 100) + 127) << 23, np.float32).astype(np.float64)


def _short_norm(x: Array, axis: int) -> Array:
    """Bound of the norm by float32 sums of squares, where none of these is subnormal; n of them lose n * 2^-24."""
    single = x.astype(np.float32)
    norm = jnp.sqrt(jnp.sum(single * single, axis=axis)).astype(np.float64)
    return norm * (1 + (x.shape[axis] + 8) * 2.0**-23)


def certified_dot(
    lhs: Array,
    rhs: Array,
    lhs_format: DataFormat,
    rhs_format: DataFormat,
    is_short: bool = False,
    panel_width: int = PANEL_WIDTH,
    columns: Statistics | None = None,
) -> Array:
    """exact_dot of matrices [M, K], [K, N].

    Args:
      lhs: [M, K] in its storage dtype.
      rhs: [K, N] likewise.
      lhs_format: format of lhs.
      rhs_format: format of rhs.
      is_short: both are bf16 with so few significant bits that level 0 is worth a try.
      panel_width: terms of a panel.
      columns: `short_statistics` of rhs if it is known, for level 0; weights have theirs from load time on.

    Returns:
      float32 [M, N]; int32 for INT8 x INT8.
    """
    if lhs_format is DataFormat.INT8 and rhs_format is DataFormat.INT8:
        return _int8_dot(lhs, rhs)
    left, lhs_kind = widen(jnp, lhs, lhs_format)
    right, rhs_kind = widen(jnp, rhs, rhs_format)
    if unit_bits(lhs_kind) + unit_bits(rhs_kind) + lhs.shape[1].bit_length() <= 53:
        return _singlematmul(left, right, lhs_kind, rhs_kind)
    cuts = panels(lhs.shape[1], panel_width)

    def by_float64() -> Array:
        rows = statistics(left, lhs_kind, 1, cuts, True)
        wide = [to_float64(left[:, cut], lhs_kind) for cut in cuts]

        def block(part: Array) -> Array:
            columns = statistics(part, rhs_kind, 0, cuts, True)
            pairs = zip(wide, cuts, strict=True)
            hi, lo = add_panels([matmul(x, to_float64(part[cut], rhs_kind), np.float64) for x, cut in pairs])

            def factors(row: Array, column: Array) -> tuple[Array, Array]:
                return left[row], jnp.take(part, column, axis=1, mode="clip").T

            bits = rounded(hi, lo, rows, columns, cuts[0].stop)
            return repaired(bits, hi, None, factors, (lhs_kind, rhs_kind))

        return _block_by_block(block, right)

    if not is_short:
        return by_float64()
    known = short_statistics(rhs, 0, panel_width) if columns is None else columns
    fits = _is_short(short_statistics(lhs, 1, panel_width), known)
    pieces = [lax.bitcast_convert_type(lhs[:, cut], np.uint16) for cut in cuts]  # bf16 would be widened in the loop
    return lax.cond(fits, lambda: _block_by_block(lambda part: _bf16_dot(pieces, part, cuts), rhs), by_float64)


def _block_by_block(product: Callable[[Array], Array], rhs: Array) -> Array:
    """A product [M, N] with blocks of columns of rhs [K, N], one after the other, so that its panels stay in the cache.

    The last block begins early enough to be as wide as the others.
    """
    num_columns = rhs.shape[1]
    if num_columns < 2 * _BLOCK_COLUMNS:
        return product(rhs)
    count = -(-num_columns // _BLOCK_COLUMNS)
    carrier = {2: np.uint16, 4: np.float32}.get(rhs.dtype.itemsize, rhs.dtype)
    carried = lax.bitcast_convert_type(rhs, carrier)  # XLA would widen an array of narrow floats in front of the loop

    def step(_: Any, start: Array) -> tuple[None, Array]:
        part = lax.dynamic_slice_in_dim(carried, start, _BLOCK_COLUMNS, axis=1)
        return None, product(lax.bitcast_convert_type(part, rhs.dtype))

    last = num_columns - _BLOCK_COLUMNS
    starts = np.minimum(np.arange(count, dtype=np.int32) * _BLOCK_COLUMNS, last)
    _, blocks = lax.scan(step, None, starts)
    whole = jnp.moveaxis(blocks[:-1], 0, 1).reshape(blocks.shape[1], -1)
    return jnp.concatenate([whole, blocks[-1][:, whole.shape[1] - last :]], axis=1)


def short_statistics(x: Array, axis: int, panel_width: int = PANEL_WIDTH) -> Statistics:
    """Statistics of bf16 without float64; only good where all bits in use are at least 2^-60, see `_is_short`."""
    parts = [x[cut] if axis == 0 else x[:, cut] for cut in panels(x.shape[axis], panel_width)]
    single = [lax.bitcast_convert_type(bits_of(jnp, part) << 16, np.float32) for part in parts]
    lowest = [jnp.min(lowest_bit(part, DataFormat.FP32), axis=axis).astype(np.float64) for part in single]
    return Statistics(jnp.stack([_short_norm(part, axis) for part in single]), jnp.stack(lowest))


def matmul(lhs: Array, rhs: Array, dtype: Any) -> Array:
    """Matrix product with sums in a dtype."""
    return lax.dot(lhs, rhs, precision=lax.Precision.HIGHEST, preferred_element_type=dtype)


def _int8_dot(lhs: Array, rhs: Array) -> Array:
    """int8 x int8 in bfloat16, which holds int8 exactly."""
    result = jnp.zeros((lhs.shape[0], rhs.shape[1]), np.int32)
    for begin in range(0, lhs.shape[1], _INT8_PANEL):
        cut = slice(begin, begin + _INT8_PANEL)
        narrow = element_dtype(DataFormat.BF16.number_format)
        result += matmul(lhs[:, cut].astype(narrow), rhs[cut].astype(narrow), np.float32).astype(np.int32)
    return result


def _singlematmul(lhs: Array, rhs: Array, lhs_kind: DataFormat, rhs_kind: DataFormat) -> Array:
    """Where all sums fit 53 bits by format alone and no result is subnormal."""
    assert UNIT_EXPONENT[lhs_kind] + UNIT_EXPONENT[rhs_kind] > -126
    result = matmul(lhs.astype(np.float64), rhs.astype(np.float64), np.float64).astype(np.float32)
    return canonical(result)


def canonical(result: Array) -> Array:
    """One NaN, and +0 for zero."""
    bits = lax.bitcast_convert_type(result, np.int32)
    bits = jnp.where(result == 0, 0, jnp.where(result != result, CANONICAL_NAN, bits))
    return lax.bitcast_convert_type(bits, np.float32)


def _largest_ratio(side: Statistics) -> Array:
    """The most units that a row or column is long, per panel."""
    return jnp.max(side.norm / side.lowest, axis=1, keepdims=True)


def _is_short(rows: Statistics, columns: Statistics) -> Array:
    """Whether bf16 panels, float32 sums of a panel and float64 sums of panels are exact, and no result subnormal."""
    in_panels = jnp.all(_largest_ratio(rows) * _largest_ratio(columns) <= 2.0**24)
    smallest = jnp.min(rows.lowest) * jnp.min(columns.lowest)
    length = _length(rows).max() * _length(columns).max()
    no_square_is_subnormal = (jnp.min(rows.lowest) >= 2.0**-60) & (jnp.min(columns.lowest) >= 2.0**-60)
    return in_panels & (length <= 2.0**52 * smallest) & no_square_is_subnormal & (length <= 2.0**120)


def _length(side: Statistics) -> Array:
    """Norm over all panels."""
    return jnp.sqrt(jnp.sum(side.norm * side.norm, axis=0)) * MARGIN


def _bf16_dot(lhs_panels: list[Array], rhs: Array, cuts: list[slice]) -> Array:
    """Level 0; lhs_panels: the bits of bf16 [M, width]."""
    total = jnp.zeros((lhs_panels[0].shape[0], rhs.shape[1]), np.float64)
    for panel, cut in zip(lhs_panels, cuts, strict=True):
        lhs = lax.bitcast_convert_type(panel, rhs.dtype)
        total += matmul(lhs, rhs[cut], np.float32).astype(np.float64)
    return canonical(total.astype(np.float32))


def products_in_float64(lhs: Array, rhs: Array) -> Array:
    """exact_dot of float16 [..., M, K] x [..., K, N] in one float64 product."""
    batch, (num_rows, num_columns) = lhs.shape[:-2], (lhs.shape[-2], rhs.shape[-1])
    lhs, rhs = (x.reshape(-1, *x.shape[-2:]) for x in (lhs, rhs))
    hi = jnp.matmul(lhs.astype(np.float64), rhs.astype(np.float64), precision=lax.Precision.HIGHEST)
    fp16 = DataFormat.FP16
    cuts = [slice(0, lhs.shape[-1])]
    bits = rounded(hi, None, statistics(lhs, fp16, 2, cuts), statistics(rhs, fp16, 1, cuts), lhs.shape[-1])

    def short() -> Array:
        tight = statistics(lhs, fp16, 2, cuts, True), statistics(rhs, fp16, 1, cuts, True)
        return short_sums(hi, *tight).reshape(-1, num_columns)

    def factors(row: Array, column: Array) -> tuple[Array, Array]:
        return lhs.reshape(-1, lhs.shape[-1])[row], rhs[row // num_rows, :, column]

    result = repaired(bits.reshape(-1, num_columns), hi.reshape(-1, num_columns), short, factors, (fp16, fp16))
    return result.reshape(*batch, num_rows, num_columns)


def slow_path_share(lhs: Array, rhs: Array, lhs_format: DataFormat, rhs_format: DataFormat) -> Array:
    """Share of the results [M, N] that level 1 leaves to level 2."""
    left, lhs_kind = widen(jnp, lhs, lhs_format)
    right, rhs_kind = widen(jnp, rhs, rhs_format)
    cuts = panels(lhs.shape[1])
    parts = [matmul(to_float64(left[:, cut], lhs_kind), to_float64(right[cut], rhs_kind), np.float64) for cut in cuts]
    sides = statistics(left, lhs_kind, 1, cuts, True), statistics(right, rhs_kind, 0, cuts, True)
    bits = rounded(*add_panels(parts), *sides, cuts[0].stop)
    return jnp.mean(bits == UNCERTAIN, dtype=np.float64)
