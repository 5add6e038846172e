"""Moves that bring rows to lanes: the transposers turn them into moves of whole superlanes, those into rotations.

A block is 16 lanes of a result vector. If the lanes of a block come from the same lane l of 16 vectors, the transposed
group of those vectors holds the block as superlane l // 16 of its vector l % 16. What remains is to bring superlane u
of a transposed vector s to superlane b of a result t. With rotations r(s), q(t) such that

  u + r(s) = b + q(t)  (mod superlanes)  for every block,

each s is rotated by r(s), a Gather with an address per superlane puts the superlanes of t together, and the result is
rotated back by q(t). For a matrix, block b of the row 16 u + j comes from superlane u of group b: r = b, q = u.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from lpu_jax.lowering.passes.tile_moves import (
    ANY_LANE,
    FILL,
    code_lanes,
    code_refs,
    code_vectors,
    distinct_rows,
    refs_codes,
)
from lpu_jax.lowering.tile_ir import GROUP, IntArray

_MIN_SOURCES = 4
"""Fewer source vectors per result are merged piece by piece."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """Results as blocks of transposed vectors.

    rows [n]: the result vectors concerned; groups [g, 16, 2]: refs to transpose together;
    vector [n, superlanes]: transposed vector 16 g + j of each block, -1 for none; superlane: likewise;
    is_zero [n, superlanes]: blocks of zeros.
    """

    rows: IntArray
    groups: IntArray
    vector: IntArray
    superlane: IntArray
    is_zero: np.ndarray

    @property
    def num_sources(self) -> int:
        """Most transposed vectors that one result takes blocks from."""
        ordered = np.sort(self.vector, axis=1)
        first = ordered[:, :1] >= 0
        return int((first.sum(axis=1) + ((np.diff(ordered, axis=1) != 0) & (ordered[:, 1:] >= 0)).sum(axis=1)).max())


def find_blocks(grid: IntArray, zero: IntArray) -> Blocks | None:
    """The result vectors that are worth transposing; zero: ref of a vector of zeros."""
    codes = grid.reshape(len(grid), -1, GROUP)
    defined = codes >= 0
    real = defined & (code_lanes(codes) != ANY_LANE)
    lanes = code_lanes(codes)
    highest = np.where(real, lanes, -1).max(axis=2)
    lowest = np.where(real, lanes, ANY_LANE).min(axis=2)
    one_lane = (highest == lowest) | ~real.any(axis=2)
    vectors = np.sort(np.where(grid >= 0, code_vectors(grid), -1), axis=1)
    num_vectors = ((np.diff(vectors, axis=1) != 0) & (vectors[:, 1:] >= 0)).sum(axis=1) + (vectors[:, 0] >= 0)
    rows = np.nonzero(one_lane.all(axis=1) & (num_vectors >= _MIN_SOURCES))[0]
    if not len(rows):
        return None
    codes, defined, lane = codes[rows], defined[rows], highest[rows]
    used = defined.any(axis=2)
    own = np.arange(codes.shape[1]) * GROUP
    lane = np.where(lane < 0, own, lane)
    vector = code_vectors(codes)
    some = np.take_along_axis(vector, defined.argmax(axis=2)[:, :, None], axis=2)
    vector = np.where(defined, vector, np.where(codes == FILL, code_vectors(refs_codes(zero[None]))[0], some))[used]
    first, group = distinct_rows(vector)
    groups = code_refs(vector[first].reshape(-1) * (ANY_LANE + 1)).reshape(-1, GROUP, 2)
    transposed = np.full(used.shape, -1, np.int64)
    transposed[used] = group * GROUP + lane[used] % GROUP
    return Blocks(rows, groups, transposed, np.where(used, lane // GROUP, 0), ((codes == FILL).any(axis=2)) & ~used)


def block_grid(blocks: Blocks, codes: IntArray, lanes: int) -> IntArray:
    """The results as codes of the transposed vectors (codes [16 g]), lane by lane."""
    own = blocks.superlane[:, :, None] * GROUP + np.arange(GROUP)
    grid = codes[np.maximum(blocks.vector, 0)][:, :, None] + own
    grid = np.where(blocks.vector[:, :, None] >= 0, grid, np.where(blocks.is_zero, FILL, FILL - 1)[:, :, None])
    return grid.reshape(len(grid), lanes)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Rotations:
    """r(s) of every transposed vector, q(t) of every result; component of either: what has to lie in one table."""

    of_vector: IntArray
    of_result: IntArray
    component_of_vector: IntArray
    component_of_result: IntArray


def find_rotations(blocks: Blocks) -> Rotations | None:
    """Rotations for all blocks, None if there are none. Cost: O(blocks)."""
    superlanes = blocks.vector.shape[1]
    result, place = np.nonzero(blocks.vector >= 0)
    vector = blocks.vector[result, place]
    offset = place - blocks.superlane[result, place]  # r(vector) - q(result)
    num_vectors = len(blocks.groups) * GROUP
    component, potential = _potentials(vector, result + num_vectors, offset, num_vectors + len(blocks.rows))
    if ((potential[vector] - potential[result + num_vectors] - offset) % superlanes).any():
        return None
    potential %= superlanes
    counts = np.zeros((int(component.max()) + 1, superlanes), np.int64)
    np.add.at(counts, (component, potential), 1)
    potential = (potential - counts.argmax(axis=1)[component]) % superlanes  # most of them need no rotation
    return Rotations(potential[:num_vectors], potential[num_vectors:], component[:num_vectors], component[num_vectors:])


def clusters(blocks: Blocks) -> tuple[IntArray, IntArray]:
    """(cluster of every group, cluster of every result): what is transposed together."""
    result, place = np.nonzero(blocks.vector >= 0)
    groups = len(blocks.groups)
    zero = np.zeros_like(result)
    component, _ = _potentials(blocks.vector[result, place] // GROUP, result + groups, zero, groups + len(blocks.rows))
    return component[:groups], component[groups:]


def _potentials(one: IntArray, other: IntArray, offset: IntArray, count: int) -> tuple[IntArray, IntArray]:
    """(component, potential) of every node, with potential[one] - potential[other] = offset along a spanning tree."""
    ends = np.concatenate([one, other])
    order = np.argsort(ends, kind="stable")
    starts = np.searchsorted(ends[order], np.arange(count + 1)).tolist()
    neighbours = np.concatenate([other, one])[order].tolist()
    steps = np.concatenate([-offset, offset])[order].tolist()
    component, potential = [-1] * count, [0] * count
    number = 0
    for root in range(count):
        if component[root] >= 0:
            continue
        component[root], stack = number, [root]
        while stack:
            node = stack.pop()
            for edge in range(starts[node], starts[node + 1]):
                near = neighbours[edge]
                if component[near] < 0:
                    component[near], potential[near] = number, potential[node] + steps[edge]
                    stack.append(near)
        number += 1
    return np.array(component, np.int64), np.array(potential, np.int64)
