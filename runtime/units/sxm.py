"""SXM: Permute, Transpose and Distribute as functions of bytes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Uint8Array = npt.NDArray[np.uint8]


def permute(data: Uint8Array, index_map: Uint8Array) -> Uint8Array:
    """out[lane] = data[map[lane]], 0 where map[lane] >= num_lanes.

    Args:
      data: uint8 [lanes].
      index_map: uint8 [2, lanes], low and high byte of a 16-bit lane number.
    """
    index = index_map[0].astype(np.int64) + 256 * index_map[1].astype(np.int64)
    inside = index < len(data)
    return np.where(inside, data[np.where(inside, index, 0)], 0).astype(np.uint8)


def transpose(vectors: Uint8Array) -> Uint8Array:
    """out[j][superlane u, lane i] = in[i][u, j]; uint8 [n, lanes] with n lanes per superlane."""
    square = len(vectors)
    return vectors.reshape(square, -1, square).transpose(2, 1, 0).reshape(vectors.shape)


def distribute(data: Uint8Array, lane_map: Uint8Array, lanes_per_superlane: int) -> Uint8Array:
    """out[u, lane] = data[u, map[u, lane]], 0 where the map holds lanes_per_superlane or more; all uint8 [lanes]."""
    index = lane_map.reshape(-1, lanes_per_superlane).astype(np.int64)
    inside = index < lanes_per_superlane
    moved = np.take_along_axis(data.reshape(index.shape), np.where(inside, index, 0), axis=1)
    return np.where(inside, moved, 0).astype(np.uint8).reshape(-1)
