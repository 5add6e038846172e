"""Data movement as views where vectors stay whole, and as permuter passes where lanes move."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lpu_jax.lowering.tile_ir import IntArray, View, num_rows, num_tiles
from lpu_jax.runtime.ops import Broadcast, Concatenate, Move, Pad, Reshape, Reverse, Slice, Transpose

FILL = -1
"""Index of an element that comes from no operand (padding)."""


def move_indices(op: Move, indices: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Applies a move to arrays of element indices: result[i] is the index of the element that lands at i."""
    first = indices[0]
    if isinstance(op, Reshape):
        return first.reshape(shape)
    if isinstance(op, Transpose):
        return first.transpose(op.permutation)
    if isinstance(op, Slice):
        return first[tuple(slice(*bounds) for bounds in zip(op.start, op.limit, op.stride, strict=True))]
    if isinstance(op, Broadcast):
        sizes = [1] * len(shape)
        for axis, dimension in enumerate(op.dimensions):
            sizes[dimension] = first.shape[axis]
        return np.broadcast_to(first.reshape(sizes), shape)
    if isinstance(op, Concatenate):
        return np.concatenate(indices, axis=op.axis)
    if isinstance(op, Pad):
        return np.pad(first, list(zip(op.low, op.high, strict=True)), constant_values=FILL)
    assert isinstance(op, Reverse)
    return np.flip(first, op.axes)


def keeps_vectors(op: Move, shapes: Sequence[tuple[int, ...]], shape: tuple[int, ...]) -> bool:
    """Whether a move on lanes views leaves the last axis as it is, so that vectors stay whole."""
    if not shape or any(len(s) == 0 or s[-1] != shape[-1] for s in shapes):
        return False
    rank = len(shapes[0])
    if isinstance(op, Reshape):
        return True
    if isinstance(op, Transpose):
        return op.permutation[-1] == rank - 1
    if isinstance(op, Slice):
        return op.start[-1] == 0 and op.stride[-1] == 1
    if isinstance(op, Broadcast):
        return op.dimensions[-1] == len(shape) - 1
    if isinstance(op, Concatenate):
        return op.axis != rank - 1
    if isinstance(op, Pad):
        return op.low[-1] == 0 and op.high[-1] == 0
    return rank - 1 not in op.axes


def vector_indices(op: Move, shapes: Sequence[tuple[int, ...]], shape: tuple[int, ...], lanes: int) -> np.ndarray:
    """For a move that keeps vectors: index of the operand vector of every result vector (operands concatenated)."""
    tiles = num_tiles(shape, lanes)
    indices, offset = [], 0
    for operand in shapes:
        count = num_rows(operand) * tiles
        indices.append(np.arange(offset, offset + count).reshape(*operand[:-1], tiles))
        offset += count
    if isinstance(op, Slice):
        op = Slice(op.start, (*op.limit[:-1], tiles), op.stride)
    return move_indices(op, indices, (*shape[:-1], tiles)).reshape(-1)


def element_indices(op: Move, shapes: Sequence[tuple[int, ...]], shape: tuple[int, ...]) -> np.ndarray:
    """Flat operand element (operands concatenated) of every result element."""
    indices, offset = [], 0
    for operand in shapes:
        count = int(np.prod(operand, dtype=np.int64))
        indices.append(np.arange(offset, offset + count).reshape(operand))
        offset += count
    return move_indices(op, indices, shape)


class Pieces:
    """Result vectors as merged pieces of operand vectors.

    targets [n]: result vector of piece k; sources [n]: index into `refs` of its operand vector;
    maps [n, lanes]: operand lane of every result lane, FILL where the piece has none; refs: all operand refs.
    """

    def __init__(self, targets: np.ndarray, sources: np.ndarray, maps: np.ndarray, refs: IntArray) -> None:
        self.targets, self.sources, self.maps, self.refs = targets, sources, maps, refs


def split_into_pieces(elements: np.ndarray, splat: bool, operands: Sequence[View], lanes: int) -> Pieces:
    """Finds, for every result vector, the operand vectors that its lanes come from.

    elements: flat operand element per result element; a splat result fills all lanes from its element.
    Cost: O(E log E) for E result elements.
    """
    vectors, columns, offset = [], [], 0
    for view in operands:
        count = int(np.prod(view.shape, dtype=np.int64))
        flat = np.arange(count)
        if view.splat:
            vectors.append(flat + offset)
            columns.append(np.full(count, FILL))  # any lane will do
            offset += count
        else:
            last, tiles = view.shape[-1], num_tiles(view.shape, lanes)
            vectors.append(flat // last * tiles + flat % last // lanes + offset)
            columns.append(flat % last % lanes)
            offset += num_rows(view.shape) * tiles
    vector_of, lane_of = np.concatenate(vectors), np.concatenate(columns)
    if splat:
        grid = np.broadcast_to(elements.reshape(-1, 1), (elements.size, lanes))
    else:
        last, tiles = elements.shape[-1], num_tiles(elements.shape, lanes)
        grid = np.full((num_rows(elements.shape), tiles * lanes), FILL, np.int64)
        grid[:, :last] = elements.reshape(-1, last)
        grid = grid.reshape(-1, lanes)
    used = grid != FILL
    target, lane = np.nonzero(used)
    source = vector_of[grid[used]]
    source_lane = np.where(lane_of[grid[used]] == FILL, lane, lane_of[grid[used]])
    keys, inverse = np.unique(target * np.int64(offset) + source, return_inverse=True)
    maps = np.full((len(keys), lanes), FILL, np.int64)
    maps[inverse, lane] = source_lane
    refs = np.concatenate([view.refs for view in operands])
    return Pieces(keys // offset, keys % offset, maps, refs)


def is_plain(pieces: Pieces, num_targets: int) -> bool:
    """Whether every result vector is one operand vector with no lane moved: then the move is a view."""
    lanes = np.arange(pieces.maps.shape[1])
    in_place = ((pieces.maps == lanes) | (pieces.maps == FILL)).all()
    return bool(in_place) and len(pieces.targets) == num_targets == len(np.unique(pieces.targets))
