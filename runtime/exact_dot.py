"""Matrix products that lose nothing and are rounded once, in every pair of formats.

NumPy (the machine) and small products under JAX work by digits. Larger ones take the certified levels of
runtime/certified_dot.py, which give the same bits for less.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

from lpu_jax.runtime import certified_dot
from lpu_jax.runtime.digits import finite_dot, has_special, panel_matmul, widen, with_special
from lpu_jax.runtime.formats import NumberFormat
from lpu_jax.runtime.isa import DataFormat
from lpu_jax.runtime.numerics import Array, conditional

_MIN_CERTIFIED_ROWS = 8
_MIN_CERTIFIED_PRODUCTS = 2**24
"""Smaller products are not worth the certificate, and the longer compilation."""
_MIN_TRIED_PRODUCTS, _MAX_TRIED_TERMS = 2**15, 1024
"""From and up to these sizes one float64 product is worth it: in all likelihood few of its results are uncertain."""


def exact_dot(
    xp: Any, lhs: Array, rhs: Array, lhs_format: DataFormat | NumberFormat, rhs_format: DataFormat | NumberFormat
) -> Array:
    """Matrix product with exact products, exact sums and one rounding.

    result[..., m, n] = RNE(sum_k lhs[..., m, k] * rhs[..., k, n]), the same in any order, tiling or batch. Subnormal
    operands count, subnormal results are kept. A zero sum is +0; NaN, inf * 0 and inf - inf give 0x7fc00000.

    Args:
      xp: numpy or jax.numpy.
      lhs: [..., M, K] in the storage dtype of lhs_format; decoded to bf16 for block floating point.
      rhs: [..., K, N] in the storage dtype of rhs_format, with the leading dimensions of lhs.
      lhs_format: format of lhs: one of isa.PRODUCT_FORMATS, or a block format.
      rhs_format: format of rhs.

    Returns:
      float32 [..., M, N]; int32 for INT8 x INT8 (K <= 131071).
    """
    left, right = element_format(lhs_format), element_format(rhs_format)
    num_products = lhs.shape[-2] * lhs.shape[-1] * rhs.shape[-1]
    is_large = lhs.shape[-2] >= _MIN_CERTIFIED_ROWS and num_products >= _MIN_CERTIFIED_PRODUCTS
    if xp is not np and is_large:
        is_short = isinstance(lhs_format, NumberFormat) and isinstance(rhs_format, NumberFormat)
        return _over_batch(lambda a, b: certified_dot.certified_dot(a, b, left, right, is_short), lhs, rhs)
    if left is DataFormat.INT8 and right is DataFormat.INT8:
        return panel_matmul(xp, lhs.astype(np.float64), rhs.astype(np.float64)).astype(np.int32)
    lhs, lhs_kind = widen(xp, lhs, left)
    rhs, rhs_kind = widen(xp, rhs, right)

    def by_digits() -> Array:
        result = finite_dot(xp, lhs, rhs, lhs_kind, rhs_kind)
        is_special = has_special(xp, lhs) | has_special(xp, rhs)
        return conditional(xp, is_special, lambda: with_special(xp, lhs, rhs, result), lambda: result)

    is_worth_a_try = math.prod(lhs.shape) * rhs.shape[-1] >= _MIN_TRIED_PRODUCTS and lhs.shape[-1] <= _MAX_TRIED_TERMS
    if xp is np or not is_worth_a_try or not lhs.dtype == rhs.dtype == np.float16:
        return by_digits()
    return certified_dot.products_in_float64(lhs, rhs)


def element_format(given: DataFormat | NumberFormat) -> DataFormat:
    """The format of the elements as they are passed."""
    if isinstance(given, NumberFormat):
        return DataFormat.BF16 if given.block_size else DataFormat[given.name.upper()]
    return DataFormat.BF16 if given.is_block else given


def _over_batch(function: Any, lhs: Array, rhs: Array) -> Array:
    """Applies a product of matrices to [..., M, K] and [..., K, N]."""
    if lhs.ndim == 2:
        return function(lhs, rhs)
    batch = lhs.shape[:-2]
    flat = jax.lax.map(
        lambda pair: function(*pair), (lhs.reshape(-1, *lhs.shape[-2:]), rhs.reshape(-1, *rhs.shape[-2:]))
    )
    return flat.reshape(*batch, *flat.shape[-2:])
