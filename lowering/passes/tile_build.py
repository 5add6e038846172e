"""Builds result vectors from the codes of their lanes, each in the cheapest way that the SXM and the VXM have.

whole                      stays where it is, or is copied
rows of many vectors       transposed in blocks (tile_transpose.py)
lanes of one vector        written by the permuter or a distributor
lanes of several vectors   merged on the VXM
"""

from __future__ import annotations

import numpy as np

from lpu_jax.lowering.passes.tile_close import Label
from lpu_jax.lowering.passes.tile_moves import Pieces, refs_codes, split_into_pieces, whole_vectors
from lpu_jax.lowering.passes.tile_permute import copies, direct, merged, zeros
from lpu_jax.lowering.passes.tile_storage import StorageBuilder
from lpu_jax.lowering.passes.tile_superlanes import rotate_together, transpose_groups
from lpu_jax.lowering.passes.tile_transpose import block_grid, find_blocks, find_rotations
from lpu_jax.lowering.tile_ir import IntArray, TileOp
from lpu_jax.runtime.isa import DataFormat

_MERGED = 2
"""Up to so many transposed vectors per result are merged piece by piece."""


def build_vectors(
    builder: StorageBuilder,
    grid: IntArray,
    data_format: DataFormat,
    label: Label,
    targets: tuple[IntArray, ...] = (),
) -> tuple[list[TileOp], IntArray]:
    """Tile ops that build result vectors from the codes of their lanes, and where the results are.

    grid: codes [n, lanes]; targets: refs [n, 2] of every place that wants the result; if none, vectors that are whole
    stay where they are and the others get new storages.
    """
    whole, refs = whole_vectors(grid)
    ops: list[TileOp] = []
    if targets and whole.any():
        ops += copies(builder, refs[whole], [t[whole] for t in targets], data_format, label)
    rest = np.nonzero(~whole)[0]
    if len(rest):
        wanted = [target[rest] for target in targets]
        more, refs[rest] = _build_moved(builder, grid[rest], data_format, label, wanted)
        ops += more
    return ops, targets[0] if targets else refs


def _build_moved(
    builder: StorageBuilder, grid: IntArray, data_format: DataFormat, label: Label, targets: list[IntArray]
) -> tuple[list[TileOp], IntArray]:
    """As build_vectors, for vectors that are not whole."""
    refs = np.zeros((len(grid), 2), np.int64)
    blocks = find_blocks(grid, zeros(builder, 1, data_format)[0])
    if blocks is None:
        return _build_pieces(builder, grid, data_format, label, targets)
    rotations = find_rotations(blocks) if blocks.num_sources > _MERGED else None
    ops, turned = transpose_groups(builder, blocks, data_format, label)
    rest = np.ones(len(grid), bool)
    if rotations is None:
        grid = grid.copy()
        grid[blocks.rows] = block_grid(blocks, refs_codes(turned), grid.shape[1])
    else:
        rest[blocks.rows] = False
        wanted = [target[blocks.rows] for target in targets]
        more, refs[blocks.rows] = rotate_together(builder, blocks, rotations, turned, wanted, data_format, label)
        ops += more
    if rest.any():
        wanted = [target[rest] for target in targets]
        more, refs[rest] = _build_pieces(builder, grid[rest], data_format, label, wanted)
        ops += more
    return ops, refs


def _build_pieces(
    builder: StorageBuilder, grid: IntArray, data_format: DataFormat, label: Label, targets: list[IntArray]
) -> tuple[list[TileOp], IntArray]:
    """Vectors of one piece by an SXM, the others merged."""
    refs = np.zeros((len(grid), 2), np.int64)
    ops: list[TileOp] = []
    pieces = split_into_pieces(grid)
    only = np.bincount(pieces.targets, minlength=len(grid))[pieces.targets] == 1
    alone = only & ~pieces.in_place()
    if alone.any():
        chosen = pieces.select(alone)
        wanted = [target[chosen.targets] for target in targets]
        more, refs[chosen.targets] = direct(builder, chosen, wanted, data_format, label)
        ops += more
    if not alone.all():
        order, number = np.unique(pieces.targets[~alone], return_inverse=True)
        left = Pieces(number.reshape(-1), pieces.sources[~alone], pieces.maps[~alone])
        wanted = [target[order] for target in targets]
        if not targets:
            wanted = [builder.pieces(len(order), data_format, builder.next_hemisphere(), "merged")]
        ops += merged(builder, left, len(order), wanted, data_format, label)
        refs[order] = wanted[0]
    return ops, refs
