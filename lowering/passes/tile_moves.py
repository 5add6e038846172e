"""Data movement as index arithmetic: which vector and lane every element of a result comes from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from lpu_jax.lowering.tile_ir import IntArray, View, num_rows, num_tiles
from lpu_jax.runtime.ops import Broadcast, Concatenate, Move, Pad, Reshape, Reverse, Slice, Transpose

FILL = -1
"""Code of an element that is zero and comes from nowhere (padding)."""
UNUSED = -2
"""Code of a lane whose content does not matter: those behind the last axis."""
_LANE_BITS, _VECTOR_BITS = 10, 24
ANY_LANE = (1 << _LANE_BITS) - 1
"""An element is named by its code: (storage << 24 | vector) << 10 | lane, lane ANY_LANE if all lanes hold it."""


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


def refs_codes(refs: IntArray) -> IntArray:
    """Code of lane 0 of every vector."""
    return (refs[:, 0] << _VECTOR_BITS) + refs[:, 1] << _LANE_BITS


def code_vectors(codes: IntArray) -> IntArray:
    """Number of the vector that a code names, negative for none."""
    return codes >> _LANE_BITS


def view_codes(view: View, lanes: int) -> IntArray:
    """Where every element of a view is: [shape] of `code`."""
    vectors = refs_codes(view.refs)
    if view.splat:
        return (vectors + ANY_LANE).reshape(view.shape)
    last, tiles = (view.shape[-1] if view.shape else 1), num_tiles(view.shape, lanes)
    padded = (vectors[:, None] + np.arange(lanes)).reshape(-1, tiles * lanes)
    return np.ascontiguousarray(padded[:, :last]).reshape(view.shape)


def move_codes(op: Move, operands: Sequence[IntArray], shape: tuple[int, ...], padding: int) -> IntArray:
    """Codes of a move's result from those of its operands; new elements have the code `padding`."""
    moved = move_indices(op, operands, shape)
    if isinstance(op, Pad) and padding != FILL:
        inside = move_indices(op, [np.zeros(operands[0].shape, np.int64)], shape) != FILL
        moved = np.where(inside, moved, padding)
    return moved


def code_refs(codes: IntArray) -> IntArray:
    """Storage and vector of codes [n] as refs [n, 2]."""
    vectors = codes >> _LANE_BITS
    return np.stack([vectors >> _VECTOR_BITS, vectors & ((1 << _VECTOR_BITS) - 1)], axis=-1)


def code_lanes(codes: IntArray) -> IntArray:
    """Lane of codes, ANY_LANE where all lanes hold the element."""
    return codes & ((1 << _LANE_BITS) - 1)


def vector_grid(codes: IntArray, splat: bool, lanes: int) -> IntArray:
    """The code that each lane of every result vector takes: [vectors, lanes], UNUSED behind the last axis."""
    if splat:
        return np.broadcast_to(codes.reshape(-1, 1), (codes.size, lanes))
    last, tiles = (codes.shape[-1] if codes.ndim else 1), num_tiles(codes.shape, lanes)
    grid = np.full((num_rows(codes.shape), tiles * lanes), UNUSED, np.int64)
    grid[:, :last] = codes.reshape(-1, last)
    return grid.reshape(-1, lanes)


_ROWS = 256
"""Vectors that are compared at once, so that they stay in the cache."""


def whole_vectors(grid: IntArray) -> tuple[np.ndarray, IntArray]:
    """(which result vectors are one source vector with no lane moved, refs [n, 2] of those)."""
    first = grid.max(axis=1, initial=UNUSED)
    vector = (first - code_lanes(first))[:, None]
    lanes, whole = np.arange(grid.shape[1]), first >= 0
    for start in range(0, len(grid), _ROWS):
        rows = slice(start, start + _ROWS)
        codes = grid[rows]
        stays = (codes - vector[rows] == lanes) | (codes == vector[rows] + ANY_LANE) | (codes == UNUSED)
        whole[rows] &= stays.all(axis=1)
    return whole, code_refs(np.where(whole, first, 0))


def distinct_rows(grid: IntArray) -> tuple[np.ndarray, np.ndarray]:
    """(first row of every kind, kind of every row); rows are compared by a hash, then in full."""
    weights = np.random.default_rng(0).integers(1, 2**62, grid.shape[1], dtype=np.int64) | 1
    hashes = (grid * weights).sum(axis=1)
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    if not (grid[first[inverse]] == grid).all():
        _, first, inverse = np.unique(grid, axis=0, return_index=True, return_inverse=True)
    return first, inverse.reshape(-1)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Pieces:
    """Result vectors as merged pieces of source vectors.

    targets [n]: result vector of piece k; sources [n, 2]: refs of its source vector;
    maps [n, lanes]: source lane of every result lane, FILL where the piece has none.
    """

    targets: IntArray
    sources: IntArray
    maps: IntArray

    def select(self, chosen: np.ndarray) -> Pieces:
        """Some of the pieces."""
        return Pieces(self.targets[chosen], self.sources[chosen], self.maps[chosen])

    def in_place(self) -> np.ndarray:
        """Pieces whose lanes stay where they are."""
        stays: np.ndarray = ((self.maps == np.arange(self.maps.shape[1])) | (self.maps == FILL)).all(axis=1)
        return stays


def split_into_pieces(grid: IntArray) -> Pieces:
    """Finds, for every result vector, the source vectors that its lanes come from. Cost: O(E log E)."""
    lanes = grid.shape[1]
    target, lane = np.nonzero(grid >= 0)
    codes = grid[target, lane]
    vectors, source = np.unique(codes >> _LANE_BITS, return_inverse=True)
    source_lane = np.where(code_lanes(codes) == ANY_LANE, lane, code_lanes(codes))
    keys, inverse = np.unique(target * np.int64(len(vectors)) + source.reshape(-1), return_inverse=True)
    maps = np.full((len(keys), lanes), FILL, np.int64)
    maps[inverse.reshape(-1), lane] = source_lane
    sources = code_refs(vectors[keys % max(1, len(vectors))] << _LANE_BITS)
    return Pieces(keys // max(1, len(vectors)), sources, maps)
