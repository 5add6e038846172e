"""Cuts: where to divide the storages of a value, so that parts that meet in one operation lie in different slices.

  max(x[0:98], x[98:196])      x is cut at vector 98, and both operands are read side by side

A slice of MEM reads one vector per cycle; operands of one chain that shared a storage would have to be copied first.
"""

from __future__ import annotations

import numpy as np

from lpu_jax.lowering.tile_ir import num_rows
from lpu_jax.runtime.ops import Elementwise, GraphLike, Slice

_MAX_CUTS = 64
"""A value is cut in a few large parts, not in shreds."""


def find_cuts(graph: GraphLike) -> dict[int, tuple[int, ...]]:
    """Rows at which values begin anew that are read in parts without overlap; rows are all leading axes, in order."""
    read = {v for e in graph.equations if isinstance(e.op, Elementwise) for v in e.operands}
    parts: dict[int, list[Slice]] = {}
    for equation in graph.equations:
        (source, *_), op = equation.operands or (None,), equation.op
        if isinstance(op, Slice) and isinstance(source, int) and equation.results[0] in read and _keeps_rows(op):
            parts.setdefault(source, []).append(op)
    found = {value: _edges(graph.avals[value].shape, slices) for value, slices in parts.items() if len(slices) > 1}
    return {value: edges for value, edges in found.items() if 0 < len(edges) <= _MAX_CUTS}


def _keeps_rows(op: Slice) -> bool:
    return set(op.stride) == {1} and len(op.start) > 1 and op.start[-1] == 0


def _edges(shape: tuple[int, ...], slices: list[Slice]) -> tuple[int, ...]:
    """Rows of [..., rows, last] at which another slice or none begins; none if slices overlap."""
    part = np.zeros(shape[:-1], np.int64)
    for number, op in enumerate(slices, 1):
        inside = part[tuple(slice(a, b) for a, b in zip(op.start[:-1], op.limit[:-1], strict=True))]
        if inside.any():
            return ()
        inside[...] = number
    return tuple((np.nonzero(np.diff(part.reshape(num_rows(shape))))[0] + 1).tolist())
