"""Many elements of few vectors, each spread over all lanes of a vector of its own.

The permuter spreads each superlane of a source over all superlanes, the distributors then each lane over its
superlane: 4 bytes per cycle and hemisphere in place of 1. Both hemispheres take part.
"""

from __future__ import annotations

import numpy as np

from lpu_jax.lowering.passes.tile_close import Label
from lpu_jax.lowering.passes.tile_moves import ANY_LANE, code_lanes, code_refs, code_vectors
from lpu_jax.lowering.passes.tile_permute import copies, nearest, sxm_passes
from lpu_jax.lowering.passes.tile_storage import StorageBuilder
from lpu_jax.lowering.tile_ir import IntArray, TileOp
from lpu_jax.runtime.chip import Hemisphere
from lpu_jax.runtime.isa import DataFormat

_MIN_ROWS = 32
_MIN_ROWS_PER_SUPERLANE = 4


def is_spread(grid: IntArray, lanes_per_superlane: int) -> bool:
    """Whether every vector is one element of a lane, and the elements share superlanes."""
    first = grid[:, :1]
    if len(grid) < _MIN_ROWS or not ((first >= 0) & (code_lanes(first) != ANY_LANE) & (grid == first)).all():
        return False
    superlanes = np.unique(first[:, 0] // lanes_per_superlane)
    return len(grid) >= _MIN_ROWS_PER_SUPERLANE * len(superlanes)


def spread(
    builder: StorageBuilder, codes: IntArray, data_format: DataFormat, label: Label, is_twice: bool
) -> tuple[list[TileOp], list[IntArray]]:
    """Spreads elements (codes [n]) in both hemispheres, half of them in either or, if is_twice, all in both.

    Returns the ops and refs [n, 2] of every copy.
    """
    chip, ops = builder.chip, list[TileOp]()
    width, lanes = chip.num_lanes_per_superlane, np.arange(chip.num_lanes)
    refs = [np.zeros((len(codes), 2), np.int64) for _ in range(1 + is_twice)]
    for side in Hemisphere:
        half = (len(codes) + 1) // 2
        rows = np.arange(len(codes)) if is_twice else np.arange(len(codes))[side * half : (side + 1) * half]
        vectors, vector_of = np.unique(code_vectors(codes[rows]), return_inverse=True)
        sources = nearest(builder, code_refs(vectors * (ANY_LANE + 1)), side)
        far = builder.sides(sources) != side
        if far.any():
            near = builder.pieces(int(far.sum()), data_format, side, "moved")
            ops += copies(builder, sources[far], [near], data_format, label)
            sources[far] = near
        lane = code_lanes(codes[rows])
        pairs, pair_of = np.unique(vector_of.reshape(-1) * chip.num_superlanes + lane // width, return_inverse=True)
        if chip.num_superlanes > 1:
            maps = pairs[:, None] % chip.num_superlanes * width + lanes % width
            wide = builder.pieces(len(pairs), data_format, side, "moved")
            ops += sxm_passes(builder, sources[pairs // chip.num_superlanes], maps, wide, data_format, label)
        else:
            wide = sources[pairs]
        maps = lanes // width * width + (lane % width)[:, None]
        out = builder.pieces(len(rows), data_format, side, "moved")
        ops += sxm_passes(builder, wide[pair_of.reshape(-1)], maps, out, data_format, label)
        refs[side if is_twice else 0][rows] = out
    return ops, refs
