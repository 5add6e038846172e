"""Homes of the arguments of a graph, which the host fills; loop inputs are stacked by iteration."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lpu_jax.lowering.passes.tile_lazy import default_splat
from lpu_jax.lowering.passes.tile_storage import Demand
from lpu_jax.lowering.tile_ir import Binding, View
from lpu_jax.runtime.ops import Aval, Concatenate, GraphLike, Reshape, Scan, While

if TYPE_CHECKING:
    from lpu_jax.lowering.passes.tile import Tiler


def bind_inputs(tiler: Tiler, donated: dict[int, int]) -> None:
    """Gives every graph input a home in SRAM that the host fills; loop inputs are stacked by iteration.

    Loop inputs and large ones choose their plane first: their storages are the hardest to fit.
    """
    looped = looped_values(tiler.graph)
    groups = _stacked_inputs(tiler, looped)
    grouped = {v for values in groups.values() for v in values}
    for value in tiler.graph.inputs:
        if tiler.graph.avals[value].is_on_host:
            tiler.new_slot(value)
    homes = [v for v in tiler.graph.inputs if v not in grouped and v not in tiler.slots] + list(groups)
    for value in sorted(homes, key=lambda v: (-_size(tiler, v), v)):
        aval = tiler.graph.avals[value]
        demand = tiler.demand.get(value, Demand())
        iterations = aval.shape[0] if value in looped else 1
        part = Aval(aval.shape[1:], aval.dtype) if value in looped else aval
        views = tiler.builder.allocate(
            part,
            default_splat(part.shape),
            demand,
            num_iterations=iterations,
            resident=True,
            cuts=() if value in looped else tiler.cuts.get(value, ()),
            name=f"%{groups.get(value, (value,))[0]}",
        )
        for view in views:
            stacked = tiler.builder.stacked(view, iterations)
            if value in groups:
                parts = stacked.refs.reshape(iterations, -1, 2)
                for turn, argument in enumerate(groups[value]):
                    turn_view = View(part.shape, view.splat, parts[turn])
                    tiler.bindings.append(Binding(argument, turn_view, 1, aval.dtype))
            else:
                tiler.bindings.append(Binding(value, view, iterations, aval.dtype))
        if value in looped:
            tiler.views[value] = tuple(tiler.builder.stacked(view, iterations) for view in views)
        else:
            tiler.views[value] = views
    for output, argument in donated.items():  # which loop results may overwrite the loop input donated for them
        tiler.donated_xs[tiler.graph.outputs[output]] = tiler.graph.inputs[argument]


def _stacked_inputs(tiler: Tiler, looped: set[int]) -> dict[int, tuple[int, ...]]:
    """Loop inputs that are nothing but arguments joined, one per iteration: the host lays those out stacked."""
    maker = {result: e for e in tiler.graph.equations for result in e.results}
    found: dict[int, tuple[int, ...]] = {}
    for value in sorted(looped):
        join = maker.get(value)
        if join is None or join.op != Concatenate(0) or tiler.uses[value] != 1:
            continue
        rows = [maker.get(v) for v in join.operands if isinstance(v, int)]
        arguments = [row.operands[0] for row in rows if row is not None and isinstance(row.op, Reshape)]
        shape = tiler.graph.avals[value].shape[1:]
        if len(arguments) == tiler.graph.avals[value].shape[0] and all(
            isinstance(v, int)
            and v in tiler.graph.inputs
            and tiler.uses[v] == 1
            and tiler.graph.avals[v].shape == shape
            for v in arguments
        ):
            found[value] = tuple(v for v in arguments if isinstance(v, int))
            tiler.ready.update(v for e in (join, *rows) if e is not None for v in e.results)
    return found


def _size(tiler: Tiler, value: int) -> int:
    """Elements of one storage of an input: all iterations of a loop input, one column tile of others."""
    shape = tiler.graph.avals[value].shape
    return int(np.prod(shape[:-1], dtype=np.int64))


def looped_values(graph: GraphLike) -> set[int]:
    """Values that move through a loop slice by slice, also where that loop is in the body of another one."""
    found: set[int] = set()
    for equation in graph.equations:
        op = equation.op
        operands = [v for v in equation.operands if isinstance(v, int)]
        if isinstance(op, Scan):
            found.update(operands[op.num_consts + op.num_carry :])
        elif isinstance(op, While):
            inside = looped_values(op.body)
            consts = zip(op.body.inputs[: op.num_consts], operands, strict=False)
            found.update(outer for value, outer in consts if value in inside)
    return found
