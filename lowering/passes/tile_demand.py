"""How every value of a graph will be used: traced back from products and row look-ups through moves that keep rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from lpu_jax.lowering.passes.tile_moves import keeps_vectors
from lpu_jax.lowering.passes.tile_storage import Demand
from lpu_jax.lowering.tile_ir import num_rows
from lpu_jax.runtime.isa import DataFormat
from lpu_jax.runtime.ops import (
    Broadcast,
    Concatenate,
    Elementwise,
    Equation,
    GatherRows,
    GraphLike,
    HostCall,
    LaneReduce,
    MatMul,
    Pad,
    Reshape,
    Scan,
    ScatterRows,
    Slice,
    While,
)

Ask = Callable[[object, Demand | None], None]
"""Merges a demand into what is known of a value."""

_FEW_ROWS = 16
"""Rows of so few can be multiplied segment by segment (`tile_windows`), however short segments are."""
MIN_SEGMENT = 16
"""Segments of fewer lanes are brought together: the transposers take so many vectors at once."""

_DIRECT = (MatMul, LaneReduce, GatherRows, ScatterRows, Scan, While, HostCall, Elementwise)


def demands(graph: GraphLike) -> dict[int, Demand]:
    """Demand of every value that has one. Equations are walked backwards, so uses come before definitions."""
    found: dict[int, Demand] = {}
    spread = {e.results[0] for e in graph.equations if isinstance(e.op, Broadcast)}

    def ask(value: object, demand: Demand | None) -> None:
        if isinstance(value, int) and demand is not None:
            found[value] = found.get(value, Demand()).merge(demand)

    for equation in reversed(graph.equations):
        op = equation.op
        if isinstance(op, MatMul):
            ask(equation.operands[0], Demand(mirrored=True))
            rows = graph.avals[equation.operands[0]].shape[1]  # type: ignore[index]
            batches = graph.avals[equation.operands[1]].shape[0]  # type: ignore[index]
            exact = op.lhs_format is op.rhs_format is DataFormat.INT8
            ask(equation.operands[1], Demand(num_batches=batches, num_rows=rows, rounds=not exact))
        elif isinstance(op, LaneReduce) and op.function == "sum":
            ask(equation.operands[0], Demand(mirrored=True))
        elif isinstance(op, GatherRows):
            ask(equation.operands[0], Demand(table=True, gathered=True))
        elif isinstance(op, ScatterRows):
            ask(equation.results[0], Demand(table=True, scattered=True))
            ask(equation.operands[0], found[equation.results[0]])
        elif isinstance(op, Scan | While):
            _ask_scan(equation, op, found, ask)
        elif isinstance(op, Elementwise):
            _ask_through_update(graph, equation, found, spread, ask)
        elif not isinstance(op, _DIRECT):
            _ask_through_move(graph, equation, found, ask)
    return found


def _ask_through_update(
    graph: GraphLike, equation: Equation, found: dict[int, Demand], spread: set[int], ask: Ask
) -> None:
    """An updated value that is installed as weights had better be laid out as weights before the update, too.

    What is only broadcast into it (`spread`) is not.
    """
    result = equation.results[0]
    demand = found.get(result)
    if demand is not None and demand.num_batches:
        for operand in equation.operands:
            if isinstance(operand, int) and graph.avals[operand] == graph.avals[result] and operand not in spread:
                ask(operand, dataclasses.replace(demand, mirrored=False, table=False, scattered=False, gathered=False))


def _ask_scan(equation: Equation, op: Scan | While, found: dict[int, Demand], ask: Ask) -> None:
    body = demands(op.body)
    for operand, value in zip(equation.operands, op.body.inputs, strict=True):
        ask(operand, body.get(value))


def _ask_through_move(graph: GraphLike, equation: Equation, found: dict[int, Demand], ask: Ask) -> None:
    """A move that keeps vectors passes the demand on; of several matrices only if their rows stay in order."""
    demand, result = found.get(equation.results[0]), graph.avals[equation.results[0]].shape
    operands = [v for v in equation.operands if isinstance(v, int)]
    shapes = [graph.avals[v].shape for v in operands]
    if demand is None:
        return
    if demand.mirrored and _is_of_segments(equation, shapes, result):
        for operand in operands:
            ask(operand, Demand(mirrored=True))
        return
    if not keeps_vectors(equation.op, shapes, result):  # type: ignore[arg-type]
        return
    if demand.num_batches > 1 and not isinstance(equation.op, Reshape):
        demand = Demand(mirrored=demand.mirrored)
    if demand.table and any(len(shape) < 2 or shape[0] != result[0] for shape in shapes):
        demand = dataclasses.replace(demand, table=False, scattered=False, gathered=False)
    for operand in operands:
        ask(operand, demand if demand != Demand() else None)


def _is_of_segments(equation: Equation, shapes: list[tuple[int, ...]], shape: tuple[int, ...]) -> bool:
    """Whether the rows of a result are cut from, or made of, rows of its operands that stay where they are."""
    if not shape or any(not s or s[-1] == shape[-1] for s in shapes):
        return False
    if num_rows(shape) > _FEW_ROWS and any(s[-1] < MIN_SEGMENT for s in shapes):
        return False
    op = equation.op
    if isinstance(op, Concatenate):
        return op.axis == len(shape) - 1
    if isinstance(op, Slice):
        return op.stride[-1] == 1 and shape[-1] > 1
    if isinstance(op, Pad):
        return op.low[-1] == 0 and op.value == 0 and shapes[0][-1] > 1
    return isinstance(equation.op, Reshape) and shape[-1] % shapes[0][-1] == 0 and shapes[0][-1] > 1
