"""Which float64 sums of products round to the right float32, and exact sums where that is not known.

A sum hi + lo is off by no more than row bound * column bound. Where both ends of that interval round to the same
float32, this is the exact sum, rounded once. The other results are marked by a NaN that is no result, so that one pass
over the sums tells all, and nothing more is done unless there is a mark. Then, if there are many, sums whose terms are
short enough for float64 are taken as they are (exact ties, quantised operands); what is left is summed again,
`_CHUNK` results at a time.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lpu_jax.runtime.digits import finite_dot
from lpu_jax.runtime.isa import DataFormat
from lpu_jax.runtime.numerics import CANONICAL_NAN, Array

UNCERTAIN = CANONICAL_NAN + 1
"""Bits of a NaN that is no result."""
MARGIN = 1 + 2.0**-30  # for the roundings of norms and bounds
MIN_CERTAIN = 2.0**-125
"""Sums below it may be subnormal float32, which conversions flush."""
_CHUNK = 32
_MANY = 64
_MAX_PAIR_TERMS = 4096


@functools.partial(jax.tree_util.register_dataclass, data_fields=["norm", "lowest"], meta_fields=[])
@dataclasses.dataclass(frozen=True, eq=False)
class Statistics:
    """Of rows or columns, per panel: at least their norms, at most their lowest bits in use; float64 [panels, ...].

    The lowest bit is infinite for zeros and 0 if nothing is known (beside fp32 subnormals).
    """

    norm: Array
    lowest: Array

    @property
    def units(self) -> Array:
        """Norms in units of the lowest bits, per panel."""
        return self.norm / self.lowest

    @property
    def all_units(self) -> Array:
        """Over all panels."""
        if self.norm.shape[0] == 1:
            return self.units[0]
        return jnp.sqrt(jnp.sum(self.norm * self.norm, axis=0)) * MARGIN / jnp.min(self.lowest, axis=0)


def rounded(hi: Array, lo: Array | None, rows: Statistics, columns: Statistics, panel_width: int) -> Array:
    """Bits of the results, or UNCERTAIN, as for all that are not finite.

    Args:
      hi: float64 [..., M, N], sums of panels of at most `panel_width` products, each panel in any order.
      lo: what adding the panels lost; None for one panel.
      rows: of the lhs, [panels, ..., M].
      columns: of the rhs, [panels, ..., N].
      panel_width: terms.

    Returns:
      int32 [..., M, N].
    """
    num_panels = rows.norm.shape[0]
    # |hi| is no larger than the norms, whose roundings and those of the two ends below count as four terms more
    weighted = rows.norm * ((panel_width + 4) * 2.0**-53 * MARGIN)
    bounds = [_outer(weighted[p], columns.norm[p]) for p in range(num_panels)]
    if num_panels > 1:
        fits = [_outer(rows.units[p], columns.units[p]) <= 2.0**53 for p in range(num_panels)]
        lost = [_outer(rows.norm[p] * 2.0**-89, columns.norm[p]) for p in range(num_panels)]
        parts = [jnp.where(*choice) for choice in zip(fits, lost, bounds, strict=True)]
        bounds = [functools.reduce(lambda a, b: a + b, parts) * MARGIN + jnp.abs(hi) * 2.0**-51]
    is_exact = _outer(rows.all_units, columns.all_units) <= 2.0**52
    error = jnp.where(is_exact, 0.0, bounds[0])
    down, up = (-error, error) if lo is None else (lo - error, lo + error)
    low, high = (hi + down).astype(np.float32), (hi + up).astype(np.float32)
    bits = jnp.where((low == high) & (jnp.abs(low) >= MIN_CERTAIN) & (jnp.abs(low) < np.inf), _bits(low), UNCERTAIN)
    return jnp.where((hi == 0.0) & (error == 0.0), 0, bits)


def _not_finite(hi: Array) -> Array:
    """Bits of float64 sums that are not finite, which are the results; UNCERTAIN elsewhere."""
    return jnp.where(hi != hi, CANONICAL_NAN, jnp.where(jnp.abs(hi) == np.inf, _bits(hi.astype(np.float32)), UNCERTAIN))


def _outer(row: Array, column: Array) -> Array:
    return row[..., :, None] * column[..., None, :]


def short_sums(hi: Array, rows: Statistics, columns: Statistics) -> Array:
    """Bits [..., M, N] of sums that float64 holds in any order, or UNCERTAIN; int32."""
    is_normal = (hi == 0.0) | (jnp.abs(hi) >= MIN_CERTAIN)
    is_known = (_outer(rows.all_units, columns.all_units) <= 2.0**52) & is_normal
    return jnp.where(is_known, _bits(positive_zero(hi.astype(np.float32))), UNCERTAIN)


def _bits(x: Array) -> Array:
    return lax.bitcast_convert_type(x, np.int32)


def repaired(
    bits: Array,
    hi: Array,
    short: Callable[[], Array] | None,
    factors: Callable[[Array, Array], tuple[Array, Array]],
    kinds: tuple[DataFormat, DataFormat],
) -> Array:
    """float32 [M, N] without UNCERTAIN.

    Args:
      bits: int32 [M, N] of `rounded`.
      hi: float64 [M, N], its argument.
      short: the bits [M, N] of results that are certain for reasons that are dearer to find; UNCERTAIN elsewhere.
      factors: rows of the lhs and columns of the rhs [T, K], for indices [T] of both, in the dtypes of their kinds.
      kinds: of the operands (digits.widen).
    """

    def all_of_them(state: tuple[Array, Array]) -> tuple[Array, Array]:
        _, bits = state
        bits = jnp.where(bits == UNCERTAIN, _not_finite(hi), bits)
        if short is not None:
            are_many = jnp.sum(bits == UNCERTAIN, dtype=np.int32) > _MANY
            bits = lax.cond(are_many, lambda bits: jnp.where(bits == UNCERTAIN, short(), bits), lambda bits: bits, bits)
        return jnp.zeros((), np.bool_), _one_by_one(bits, factors, kinds)

    is_any = jnp.sum((bits == UNCERTAIN).astype(np.float32)) > 0  # XLA adds float32 faster than it joins flags
    _, bits = lax.while_loop(lambda state: state[0], all_of_them, (is_any, bits))
    return lax.bitcast_convert_type(bits, np.float32)


def _one_by_one(
    bits: Array, factors: Callable[[Array, Array], tuple[Array, Array]], kinds: tuple[DataFormat, DataFormat]
) -> Array:
    """One result of up to `_CHUNK` rows in every turn."""
    num_rows, num_columns = bits.shape
    ranks = np.arange(min(_CHUNK, num_rows), dtype=np.int32)
    columns = np.arange(num_columns, dtype=np.int32)

    def turn(state: tuple[Array, Array]) -> tuple[Array, Array]:
        counts, bits = state
        before = jnp.cumsum(counts > 0, dtype=np.int32)
        row = jnp.sum(before[None, :] <= ranks[:, None], axis=1, dtype=np.int32)  # num_rows if there are no more
        marked = jnp.take(bits, row, axis=0, mode="clip") == UNCERTAIN
        column = jnp.max(jnp.where(marked, columns, 0), axis=1)
        exact = _bits(_exact(*factors(jnp.minimum(row, num_rows - 1), column), kinds))
        return counts.at[row].add(-1, mode="drop"), bits.at[row, column].set(exact, mode="drop")

    counts = jnp.sum(bits == UNCERTAIN, axis=1, dtype=np.int32)
    return lax.while_loop(lambda state: jnp.any(state[0] > 0), turn, (counts, bits))[1]


def _exact(rows: Array, columns: Array, kinds: tuple[DataFormat, DataFormat]) -> Array:
    """float32 [T] of finite factors [T, K]."""
    if DataFormat.FP32 not in kinds and rows.shape[1] <= _MAX_PAIR_TERMS:
        return _in_two_parts(rows.astype(np.float64) * columns.astype(np.float64))
    return finite_dot(jnp, rows[:, None, :], columns[:, :, None], *kinds)[:, 0, 0]


def _in_two_parts(terms: Array) -> Array:
    """Sums over the last axis of K <= 4096 products of float16, [..., K] float64, rounded once to float32.

    A power of two s >= (K + 2) * max |term| cuts each term in two (Rump, Ogita, Oishi: ExtractVector): multiples of
    2^-53 s, whose sums are below s, and rests below 2^-53 s, which are multiples of 2^-48. Both sums are exact, as
    K * 2^-53 * s <= K * 2^-53 * 4 K * 2^32 <= 2^53 * 2^-48.
    """
    largest = jnp.max(jnp.abs(terms), axis=-1, keepdims=True) * (2.0 * (terms.shape[-1] + 2))
    power = lax.bitcast_convert_type(largest, np.int64) & 0x7FF0000000000000
    sigma = lax.bitcast_convert_type(power, np.float64)
    high = (sigma + terms) - sigma
    return positive_zero(rounded_sum(jnp.sum(high, axis=-1), jnp.sum(terms - high, axis=-1)))


def positive_zero(x: Array) -> Array:
    """+0 for zeros."""
    return jnp.where(x == 0, np.float32(0), x)


def rounded_sum(a: Array, b: Array) -> Array:
    """a + b rounded once to float32: the float64 sum is first rounded to odd, which no second rounding can spoil."""
    total, error = two_sum(a, b)
    bits = lax.bitcast_convert_type(total, np.int64)
    is_even = (error != 0) & ((bits & 1) == 0)
    step = jnp.where((error > 0) == (total > 0), 1, -1)
    odd = lax.bitcast_convert_type(jnp.where(is_even, bits + step, bits), np.float64)
    return odd.astype(np.float32)


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """a + b = sum + error, exactly (Knuth)."""
    total = a + b
    back = total - a
    return total, (a - (total - back)) + (b - back)


def add_panels(parts: Sequence[Array]) -> tuple[Array, Array | None]:
    """(hi, lo): the float64 sum of panels and what it lost, together nearly exact; lo is None for one panel."""
    hi, lo = parts[0], None
    for part in parts[1:]:
        hi, error = two_sum(hi, part)
        lo = error if lo is None else lo + error
    return hi, lo
