"""What both bounds assume of products and free functions."""

from __future__ import annotations

import numpy as np

from lpu_jax.runtime.chip import ChipSpec

FREE_FUNCTIONS = frozenset(("identity", "to_fp16"))
"""Functions that a format of a stream or a view may do instead of an ALU."""
SIGNIFICAND_BYTES = {"float32": 3, "float16": 2, "int8": 1, "bfloat16": 1, "float8_e4m3fn": 1, "float8_e5m2": 1}
"""Significand bytes of dtypes that enter the MXM."""


def passes_per_row(chip: ChipSpec, contracting: int, lhs_bytes: int, rhs_bytes: int) -> int:
    """Cycles that one row of the lhs keeps a plane (or pair) for one column tile, in the best K tiles.

    max(ceil(K * lhs_bytes * rhs_bytes / (num_mxm_rows * planes)), ceil(K / rows of a tile)); bytes of significands.
    """
    cells = chip.num_mxm_rows * chip.planes_per_tile(rhs_bytes)
    return max(
        -(-contracting * lhs_bytes * rhs_bytes // cells), -(-contracting // min(chip.num_mxm_rows, chip.num_lanes))
    )


def is_dense(content: np.ndarray) -> bool:
    """Whether no row along the last axis but one of known weights is zero or equal to another one."""
    if content.ndim < 2 or not content.size:
        return False
    rows = content.reshape(-1, content.shape[-1])
    return bool((rows != 0).any(1).all()) and len({row.tobytes() for row in rows}) == len(rows)
