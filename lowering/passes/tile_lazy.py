"""Moves that wait: a move of lanes is index arithmetic until somebody needs its result in memory.

A value that is no view is pending: `codes` say where each of its elements lies. Moves of pending values compose, and
a composite whose vectors are whole again is a view after all. Only what is left when a consumer comes goes through
the SXM, every distinct result vector once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lpu_jax.lowering.passes.tile_build import build_vectors
from lpu_jax.lowering.passes.tile_close import copy_ops
from lpu_jax.lowering.passes.tile_moves import (
    ANY_LANE,
    FILL,
    UNUSED,
    code_refs,
    distinct_rows,
    keeps_vectors,
    move_codes,
    refs_codes,
    vector_grid,
    vector_indices,
    view_codes,
    whole_vectors,
)
from lpu_jax.lowering.passes.tile_spread import is_spread, spread
from lpu_jax.lowering.passes.tile_storage import FORMATS, Demand
from lpu_jax.lowering.tile_ir import IntArray, View, num_tiles
from lpu_jax.runtime.isa import DataFormat
from lpu_jax.runtime.ops import Aval, Equation, Move, Pad, Reshape

if TYPE_CHECKING:
    from lpu_jax.lowering.passes.tile import Tiler


def default_splat(shape: tuple[int, ...]) -> bool:
    """Scalars and values with a last axis of size 1 hold one element per vector, in all lanes."""
    return not shape or shape[-1] == 1


def tile_move(tiler: Tiler, equation: Equation, op: Move) -> None:
    """Makes the result of a move a view, or leaves it pending."""
    result = equation.results[0]
    aval = tiler.graph.avals[result]
    operands = [v for v in equation.operands if isinstance(v, int)]
    if isinstance(op, Reshape) and tiler.rename_in_chain(operands[0], result):
        tiler.used(equation)
        return
    for value in operands:
        tiler.close_windows(value)
    no_fill = not (isinstance(op, Pad) and any(op.low + op.high))
    if no_fill and not any(v in tiler.pending for v in operands):
        views = _as_views(tiler, op, operands, aval)
        if views is not None:
            tiler.used(equation)
            if not views[0].splat and all(v in tiler.uniform or tiler.view(v).splat for v in operands):
                tiler.uniform.add(result)
            tiler.views[result] = _wanted(tiler, result, views)
            return
    codes = move_codes(op, [_codes(tiler, v) for v in operands], aval.shape, _padding(tiler, op, aval))
    tiler.used(equation)
    splat = default_splat(aval.shape)
    whole, refs = whole_vectors(_grid(tiler, codes, aval, splat))
    if whole.all():
        tiler.views[result] = _wanted(tiler, result, (View(aval.shape, splat, refs),))
    else:
        tiler.pending[result] = codes


def _codes(tiler: Tiler, value: int) -> IntArray:
    """Where the elements of a value are; zeros of constants come from nowhere."""
    if value in tiler.pending:
        return tiler.pending[value]
    view = tiler.all_views(value)[0]
    codes = view_codes(view, tiler.chip.num_lanes)
    zero = np.array(sorted(tiler.builder.zero_storages), np.int64)
    if not np.isin(view.refs[:, 0], zero).any():
        return codes
    return np.where(np.isin(code_refs(codes)[..., 0], zero), FILL, codes)


def _padding(tiler: Tiler, op: Move, aval: Aval) -> int:
    """Code of the elements that a move adds: FILL for zeros, else that of a constant."""
    if not isinstance(op, Pad):
        return FILL
    value = np.array([op.value], aval.dtype)
    if not value.tobytes().strip(b"\0") and not default_splat(aval.shape):
        return FILL
    return int(view_codes(tiler.builder.constant(value, True)[0], tiler.chip.num_lanes)[0])


def _wanted(tiler: Tiler, value: int, views: tuple[View, ...]) -> tuple[View, ...]:
    """The views themselves, with their mirror image where there is one; or a copy where a loop wants the value."""
    if value in tiler.targets:
        targets = tiler.place(value, views[0].splat)
        if targets[0].splat == views[0].splat:
            form = FORMATS[tiler.graph.avals[value].dtype]
            tiler.ops += copy_ops(tiler.builder, views[0], targets, form, tiler.label)
            return targets
    if len(views) == 1 and tiler.demand.get(value, Demand()).mirrored:
        other = tiler.builder.mirrored(views[0].refs)
        if other is not None:
            return (views[0], View(views[0].shape, views[0].splat, other))
    return views


def _as_views(tiler: Tiler, op: Move, operands: list[int], aval: Aval) -> tuple[View, ...] | None:
    """The move as views of its operands, at every place if they have equally many; None if lanes have to move."""
    groups = [tiler.all_views(v) for v in operands]
    shapes = [tiler.graph.avals[v].shape for v in operands]
    lanes = tiler.chip.num_lanes
    if groups and all(len(group) == len(groups[0]) > 1 for group in groups):
        places = [_as_view(op, list(place), shapes, aval, lanes) for place in zip(*groups, strict=True)]
        if all(place is not None for place in places):
            return tuple(place for place in places if place is not None)
    one = _as_view(op, [group[0] for group in groups], shapes, aval, lanes)
    return None if one is None else (one,)


def _as_view(op: Move, sources: list[View], shapes: list[tuple[int, ...]], aval: Aval, lanes: int) -> View | None:
    if all(view.splat for view in sources):
        codes = move_codes(op, [view_codes(view, lanes) for view in sources], aval.shape, FILL)
        _, refs = whole_vectors(codes.reshape(-1, 1))
        last = aval.shape[-1] if aval.shape else 1
        rows = codes.reshape(-1, last)
        if last > 1 and (rows == rows[:, :1]).all():
            first = refs.reshape(-1, last, 2)[:, 0]
            return View(aval.shape, False, np.repeat(first, num_tiles(aval.shape, lanes), axis=0))
        return View(aval.shape, True, refs)
    if any(view.splat and not default_splat(view.shape) for view in sources):
        return None
    if keeps_vectors(op, shapes, aval.shape):
        refs = np.concatenate([view.refs for view in sources])
        return View(aval.shape, False, refs[vector_indices(op, shapes, aval.shape, lanes)])
    return None


def _grid(tiler: Tiler, codes: IntArray, aval: Aval, splat: bool) -> IntArray:
    """The code of every lane of every result vector; vectors of nothing but zeros are a constant.

    Vectors that spread one element hold it behind the last axis, too, so that they are equal in every tile.
    """
    grid = vector_grid(codes, splat, tiler.chip.num_lanes)
    first, middle = grid[:, 0], grid[:, grid.shape[1] // 2]
    spread = np.flatnonzero((first >= 0) & ((middle == first) | (middle == UNUSED)))
    codes = grid[spread]
    spread = spread[((codes == codes[:, :1]) | (codes == UNUSED)).all(axis=1)]
    spread = spread[~whole_vectors(grid[spread])[0]]
    empty = np.flatnonzero((first < 0) & (middle < 0))
    empty = empty[(grid[empty] < 0).all(axis=1)]
    if len(spread) or len(empty):
        grid = grid.copy()
        grid[spread] = first[spread, None]
    if len(empty):
        grid[empty] = refs_codes(tiler.builder.zero(aval.dtype)[None]) + ANY_LANE
    return grid


def materialise(tiler: Tiler, value: int, codes: IntArray, splat: bool) -> tuple[View, ...]:
    """Emits what brings the elements of a value to one place; vectors that are whole stay where they are."""
    aval, builder = tiler.graph.avals[value], tiler.builder
    form, label = FORMATS[aval.dtype], tiler.label
    grid = _grid(tiler, codes, aval, splat)
    first, inverse = distinct_rows(grid)
    is_asked = value in tiler.targets or tiler.demand.get(value, Demand()) != Demand()
    if is_asked and len(first) == len(grid):
        targets = tiler.place(value, splat)
        tiler.ops += build_vectors(builder, grid, form, label, tuple(view.refs for view in targets))[0]
        return targets
    view = View(aval.shape, splat, _build(tiler, grid, first, inverse, form))
    if is_asked:
        targets = tiler.place(value, splat)
        tiler.ops += copy_ops(builder, view, targets, form, label)
        return targets
    return (view,)


def _build(tiler: Tiler, grid: IntArray, first: np.ndarray, inverse: np.ndarray, form: DataFormat) -> IntArray:
    """Builds every kind of vector once, or twice if that is as quick and the vectors are read more than once."""
    builder, kinds = tiler.builder, grid[first]
    if not is_spread(kinds, tiler.chip.num_lanes_per_superlane):
        ops, refs = build_vectors(builder, kinds, form, tiler.label)
        tiler.ops += ops
        found: IntArray = refs[inverse]
        return found
    ops, places = spread(builder, kinds[:, 0], form, tiler.label, len(first) < len(inverse))
    tiler.ops += ops
    order = np.argsort(inverse, kind="stable")
    turn = np.zeros(len(inverse), np.int64)
    turn[order] = np.arange(len(inverse)) - np.searchsorted(inverse[order], inverse[order])
    alternating: IntArray = np.stack(places)[turn % len(places), inverse]
    return alternating
