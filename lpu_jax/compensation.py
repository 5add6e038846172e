"""Rounds weights so that the errors of a product's later rows make up for those of earlier ones.

Rows k of a weight W [K, N] are rounded one after the other. With H the second moments of the product's inputs,
sum x x^T + d I, and U the upper Cholesky factor of its inverse, the error of row k is taken off the rows behind it:

  e = (W[k] - Q[k]) / U[k, k];  W[k + 1 :] -= U[k, k + 1 :]^T e

which keeps |x W - x Q|^2 over the inputs as small as the rows behind can make it (Frantar et al., GPTQ, 2022).
"""

from __future__ import annotations

import numpy as np

from lpu_jax.runtime.block_floating_point import to_blocks
from lpu_jax.runtime.formats import NumberFormat

Array = np.ndarray
DAMPING = 0.01
"""d over the mean of the diagonal of the second moments."""


def compensate(weights: Array, moments: Array, number_format: NumberFormat) -> Array:
    """Weights float32 [K, N] as values of a block format, their rounding errors made up for.

    Args:
      weights: float32 [K, N], contracted over K.
      moments: sum of x x^T over inputs x [K] of the product, [K, K].
      number_format: block floating point; its blocks lie along K.

    Raises:
      ValueError: another format, or moments of another size.
    """
    rows, block = weights.shape[0], number_format.block_size
    if not block:
        raise ValueError(f"{number_format}: only the shared exponents of block floating point are compensated for")
    if moments.shape != (rows, rows):
        raise ValueError(f"moments {list(moments.shape)} of weights {list(weights.shape)}: expected {[rows, rows]}")
    mean = np.trace(moments) / rows or 1.0
    inverse = np.linalg.inv(moments.astype(np.float64) / mean + DAMPING * np.eye(rows))
    upper = np.linalg.cholesky(inverse).T.astype(np.float32)
    left, rounded = weights.astype(np.float32).copy(), np.zeros_like(weights, np.float32)
    largest = np.float32(number_format.largest)
    for start in range(0, rows, block):
        stop = min(start + block, rows)
        unit = _units(left[start:stop], number_format)
        errors = np.zeros_like(left[start:stop])
        for k in range(start, stop):
            rounded[k] = np.clip(np.rint(left[k] / unit), -largest, largest) * unit
            errors[k - start] = (left[k] - rounded[k]) / upper[k, k]
            left[k + 1 : stop] -= upper[k, k + 1 : stop, None] * errors[k - start]
        left[stop:] -= upper[start:stop, stop:].T @ errors
    return rounded


def _units(block: Array, number_format: NumberFormat) -> Array:
    """2^unit of every column of a block, with the least squared error, float32 [N]."""
    _, units = to_blocks(np, block, number_format, optimal=True)
    steps: Array = np.exp2(units[0].astype(np.float32))
    return steps
