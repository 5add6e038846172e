"""Loops with a fixed trip count: the body is tiled once; its xs and ys move by one slice of their storage a turn."""

from __future__ import annotations

import numpy as np

from lpu_jax.lowering.passes.tile import Tiler
from lpu_jax.lowering.passes.tile_close import copy_ops
from lpu_jax.lowering.passes.tile_lazy import default_splat
from lpu_jax.lowering.passes.tile_storage import FORMATS, Demand
from lpu_jax.lowering.tile_ir import TileBlock, View
from lpu_jax.runtime.isa import DataFormat
from lpu_jax.runtime.ops import Elementwise, Equation, Move, Scan, ScatterRows


def tile_scan(tiler: Tiler, equation: Equation, scan: Scan) -> None:
    """Tiles the body into a block of its own and gives the loop's results their views."""
    builder, body_graph = tiler.builder, scan.body
    body = Tiler(builder, body_graph)
    operands = [v for v in equation.operands if isinstance(v, int)]
    consts, carry = operands[: scan.num_consts], operands[scan.num_consts :][: scan.num_carry]
    xs = operands[scan.num_consts + scan.num_carry :]
    inputs = list(body_graph.inputs)
    for value, outer in zip(inputs, consts, strict=False):
        body.views[value] = tiler.all_views(outer)
    carry_inputs = inputs[scan.num_consts :][: scan.num_carry]
    for value, outer in zip(carry_inputs, carry, strict=True):
        body.views[value] = enter_carry(tiler, body, value, outer)
    looped: set[int] = set()
    for value, outer in zip(inputs[scan.num_consts + scan.num_carry :], xs, strict=True):
        body.views[value] = _slice_views(tiler, body, value, outer, scan.num_iterations, looped)
    tiler.end_block()
    stacked = _bind_results(tiler, body, equation, scan, looped)
    body.run()
    close_body(body, body_graph.outputs, carry_inputs, scan.num_carry)
    tiler.blocks.append(TileBlock(tuple(body.ops), scan.num_iterations, frozenset(looped), scan.reverse))
    for value, inner in zip(equation.results, carry_inputs, strict=False):
        tiler.views[value] = body.views[inner]
    for value, views in stacked.items():
        tiler.views[value] = views


def enter_carry(tiler: Tiler, body: Tiler, value: int, outer: int) -> tuple[View, ...]:
    """Storages that hold a carry between iterations, filled before the loop."""
    aval = body.graph.avals[value]
    splat = default_splat(aval.shape)
    demand = body.demand.get(value, Demand())
    targets = tiler.builder.allocate(aval, splat, demand, name=f"carry %{value}")
    source = tiler.all_views(outer)[0] if splat else tiler.lanes_views(outer)[0]
    tiler.ops += copy_ops(tiler.builder, source, targets, FORMATS[aval.dtype], tiler.label)
    return targets


def _slice_views(
    tiler: Tiler, body: Tiler, value: int, outer: int, iterations: int, looped: set[int]
) -> tuple[View, ...]:
    """Views of iteration 0 of a stacked value; copied into stacked storages if it is not laid out that way."""
    aval = body.graph.avals[value]
    found = []
    for view in tiler.all_views(outer):
        if len(view.refs) % iterations:  # several turns share a vector
            continue
        parts = view.refs.reshape(iterations, -1, 2)
        sizes = np.array([tiler.builder.storages[s].num_vectors for s in parts[0, :, 0]])
        counts = {tiler.builder.storages[s].num_iterations for s in parts[0, :, 0]}
        even = (parts[:, :, 0] == parts[:1, :, 0]).all() and (np.diff(parts[:, :, 1], axis=0) == sizes).all()
        if counts == {iterations} and even:
            found.append(View(aval.shape, view.splat, parts[0]))
    if not found:
        splat = default_splat(aval.shape)
        source = tiler.lanes_views(outer)[0]
        if splat:
            source = View((iterations, *aval.shape), True, tiler.splat_refs(outer))
        demand = body.demand.get(value, Demand())
        places = tiler.builder.allocate(aval, splat, demand, num_iterations=iterations, name=f"xs %{value}")
        targets = tuple(tiler.builder.stacked(place, iterations) for place in places)
        tiler.ops += copy_ops(tiler.builder, source, targets, FORMATS[aval.dtype], tiler.label)
        found = list(places)
    looped.update(int(s) for view in found for s in view.refs[:, 0])
    return tuple(found)


def _bind_results(
    tiler: Tiler, body: Tiler, equation: Equation, scan: Scan, looped: set[int]
) -> dict[int, tuple[View, ...]]:
    """Gives every ys its stacked storages: those of a donated xs, or new ones; the body writes into them."""
    outputs = body.graph.outputs[scan.num_carry :]
    stacked: dict[int, tuple[View, ...]] = {}
    operands = equation.operands
    for result, inner in zip(equation.results[scan.num_carry :], outputs, strict=True):
        aval = body.graph.avals[inner]
        if inner in body.targets:  # one value, two results
            stacked[result] = tuple(tiler.builder.stacked(v, scan.num_iterations) for v in body.targets[inner])
            continue
        donor = tiler.donated_xs.get(result)
        slot = operands.index(donor) if donor in operands else -1
        if slot >= 0 and _may_reuse(body, body.graph.inputs[slot], inner):
            views = body.views[body.graph.inputs[slot]]
        else:
            demand = body.demand.get(inner, Demand())
            splat = default_splat(aval.shape)
            views = tiler.builder.allocate(
                aval, splat, demand, num_iterations=scan.num_iterations, name=f"ys %{result}"
            )
            looped.update(int(s) for view in views for s in view.refs[:, 0])
        body.targets[inner] = views
        stacked[result] = tuple(tiler.builder.stacked(view, scan.num_iterations) for view in views)
    return stacked


def _may_reuse(body: Tiler, value: int, result: int) -> bool:
    """Whether ys may be written over this xs: it is in one place, laid out so that a vector can be read and another
    one written in the same cycle (rows spread over slices), every vector is read only for its own new content, and
    whoever else reads the old content comes before."""
    views = body.views[value]
    spread = all(body.builder.storages[int(s)].interleave > 1 for s in views[0].refs[:, 0])
    if len(views) > 1 or not (spread or len(views[0].refs) <= 8):
        return False
    if value == result:
        return True
    paths = [_update_path(body, value, index, result) for index in _users(body, value)]
    path = next((path for path in paths if path), None)
    if path is None or not _others_come_before(body, value, path[0]):
        return False
    if body.uses[value] > 1:
        body.overwriting[path[0]] = value
    for index in path[:-1]:  # rows replaced one after the other, all of them in place
        equation = body.graph.equations[index]
        if isinstance(equation.op, ScatterRows):
            body.targets[equation.results[0]] = views
    return True


def _users(body: Tiler, value: int) -> list[int]:
    return [i for i, e in enumerate(body.graph.equations) if value in e.operands]


def _update_path(body: Tiler, value: int, index: int, result: int) -> list[int]:
    """Equations from `index` on that make `result` of `value` by replacing rows, or element by element; else none."""
    path: list[int] = []
    while True:
        equation = body.graph.equations[index]
        is_scatter = isinstance(equation.op, ScatterRows) and equation.operands[0] == value
        if (not is_scatter and not isinstance(equation.op, Elementwise)) or equation.operands.count(value) != 1:
            return []
        path.append(index)
        value = equation.results[0]
        if value == result:
            return path
        if body.uses[value] != 1:
            return []
        (index,) = _users(body, value)


def _others_come_before(body: Tiler, value: int, update: int) -> bool:
    """Whether all that reads `value`, or a move of it, but equation `update` itself, stands before that one."""
    for index in _users(body, value):
        equation = body.graph.equations[index]
        if index > update:
            return False
        if isinstance(equation.op, Move):
            (moved,) = equation.results
            if update in _users(body, moved) or not _others_come_before(body, moved, update):
                return False
    return value not in body.graph.outputs


def close_body(body: Tiler, outputs: tuple[int, ...], carry_inputs: list[int], num_carry: int) -> None:
    """Writes what the body leaves behind: ys that came out as views, then the carry (all reads come before)."""
    body.close_all()
    for value in outputs[num_carry:]:
        if not _same_place(body.all_views(value), body.targets[value]):
            form = FORMATS[body.graph.avals[value].dtype]
            source = body.all_views(value)[0]
            if source.splat != body.targets[value][0].splat:
                source = body.lanes_views(value)[0]
            body.ops += copy_ops(body.builder, source, body.targets[value], form, body.label)
    moved = []
    for value, home in zip(outputs, carry_inputs, strict=False):
        if value == home:
            continue
        source = body.all_views(value)[0]
        if source.splat != body.views[home][0].splat:
            source = body.lanes_views(value)[0]
        moved.append((source, body.views[home], FORMATS[body.graph.avals[value].dtype]))
    for source, targets, form in _without_swaps(body, moved):
        body.ops += copy_ops(body.builder, source, targets, form, body.label)


CarryCopy = tuple[View, tuple[View, ...], DataFormat]


def _without_swaps(body: Tiler, moved: list[CarryCopy]) -> list[CarryCopy]:
    """A carry that is read for another carry after it was overwritten is saved first."""
    homes = {int(s) for _, targets, _ in moved for view in targets for s in view.refs[:, 0]}
    safe = []
    for source, targets, form in moved:
        if homes & {int(s) for s in source.refs[:, 0]}:
            storage = body.builder.new_storage(len(source.refs), form, body.builder.next_hemisphere(), name="swap")
            saved = View(source.shape, source.splat, body.builder.whole(storage, len(source.refs)))
            body.ops += copy_ops(body.builder, source, [saved], form, body.label)
            source = saved
        safe.append((source, targets, form))
    return safe


def _same_place(views: tuple[View, ...], targets: tuple[View, ...]) -> bool:
    return len(views) == len(targets) and all(
        np.array_equal(a.refs, b.refs) for a, b in zip(views, targets, strict=True)
    )
