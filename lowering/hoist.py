"""Graph -> Graph: what a loop computes of resident xs alone is computed for all turns at once, in front of the loop.

So is, once, what a loop of unknown length computes of resident consts.

Before  Scan x30 xs [%w]: { %m = LaneReduce(max) %w; ... }      After  %ms = LaneReduce(max) %w; Scan x30 xs [%w, %ms]

In front of the loop it depends on resident arguments only, so `split_resident` has it computed when they are loaded.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection

import numpy as np

from lpu_jax.lowering.ir import Graph, GraphBuilder
from lpu_jax.lowering.prune import rebuild, remove_dead_equations
from lpu_jax.runtime.ops import (
    Aval,
    Broadcast,
    Concatenate,
    DecodeBlocks,
    Elementwise,
    EncodeBlocks,
    Equation,
    GraphLike,
    Immediate,
    LaneReduce,
    Move,
    Op,
    Pad,
    Reshape,
    Reverse,
    Scan,
    Slice,
    Transpose,
    While,
)

_MOVES = Reshape | Transpose | Slice | Broadcast | Concatenate | Pad | Reverse
_BATCHED = Elementwise | LaneReduce | EncodeBlocks | DecodeBlocks | _MOVES


def hoist_resident(graph: Graph, resident_inputs: Collection[int]) -> Graph:
    """Moves work on resident xs out of the loops of a graph; inputs and outputs keep their order."""
    builder = GraphBuilder()
    number = {v: builder.input(graph.avals[v]) for v in graph.inputs}
    number |= {v: builder.constant(array) for v, array in graph.constants}
    known = set(resident_inputs) | {v for v, _ in graph.constants}
    for equation in graph.equations:
        if all(v in known for v in equation.operands if isinstance(v, int)):
            known.update(equation.results)
        builder.source, builder.name = equation.source, equation.name
        operands = [number[v] if isinstance(v, int) else v for v in equation.operands]
        op: Op = equation.op
        if isinstance(op, Scan):
            first = op.num_consts + op.num_carry
            is_resident = [v in known for v in equation.operands[first:]]
            op, more = _without(builder, op, operands[first:], is_resident)  # type: ignore[arg-type]
            op, operands = _without_dead_xs(op, [*operands, *more])
        elif isinstance(op, While):
            is_resident = [v in known for v in equation.operands[: op.num_consts]]
            op, more = _without_consts(builder, op, operands[: op.num_consts], is_resident)  # type: ignore[arg-type]
            operands[len(is_resident) : len(is_resident)] = more
        avals = [graph.avals[v] for v in equation.results]
        number.update(zip(equation.results, builder.add(op, tuple(operands), *avals), strict=True))
    return remove_dead_equations(builder.build(tuple(number[v] for v in graph.outputs)))


def _without(builder: GraphBuilder, scan: Scan, xs: list[int], is_resident: list[bool]) -> tuple[Scan, list[int]]:
    """The loop without its hoisted equations, and the additional xs that take their place."""
    body = scan.body
    inputs = body.inputs[scan.num_consts + scan.num_carry :]
    leaves = {v: x for v, x, stays in zip(inputs, xs, is_resident, strict=True) if stays}
    early = _early(body, leaves)
    wanted = _crossing(body, early, leaves)
    if not wanted:
        return scan, []
    outside = dict(leaves)
    constants = dict(body.constants)
    moved = _ancestors(body, wanted)
    for equation in body.equations:
        if equation.results[0] in moved:
            outside[equation.results[0]] = _batched(builder, body, equation, outside, constants, scan.num_iterations)
    kept = [e for e in body.equations if e.results[0] not in wanted]
    inner = dataclasses.replace(body, inputs=(*body.inputs, *wanted), equations=tuple(kept))  # type: ignore[type-var]
    inner = remove_dead_equations(inner)  # type: ignore[arg-type]
    return dataclasses.replace(scan, body=inner), [outside[v] for v in wanted]


def _without_consts(
    builder: GraphBuilder, loop: While, consts: list[int], is_resident: list[bool]
) -> tuple[While, list[int]]:
    """A loop of unknown length without what it computes of resident consts in every turn, and the consts that take its
    place."""
    body = loop.body
    leaves = {v: x for v, x, stays in zip(body.inputs, consts, is_resident, strict=False) if stays}
    wanted = _crossing(body, _early(body, leaves), leaves)
    if not wanted:
        return loop, []
    outside: dict[int, int] = {**leaves, **{v: builder.constant(array) for v, array in body.constants}}
    moved = _ancestors(body, wanted)
    for equation in body.equations:
        if equation.results[0] in moved:
            operands = tuple(outside[v] if isinstance(v, int) else v for v in equation.operands)
            avals = [body.avals[v] for v in equation.results]
            outside.update(zip(equation.results, builder.add(equation.op, operands, *avals), strict=True))
    kept = tuple(e for e in body.equations if e.results[0] not in wanted)
    inputs = (*body.inputs[: loop.num_consts], *wanted, *body.inputs[loop.num_consts :])
    inner = remove_dead_equations(dataclasses.replace(body, inputs=inputs, equations=kept))  # type: ignore[type-var, arg-type]
    op = dataclasses.replace(loop, body=inner, num_consts=loop.num_consts + len(wanted))
    return op, [outside[v] for v in wanted]


def _without_dead_xs(scan: Scan, operands: list[int | Immediate]) -> tuple[Scan, list[int | Immediate]]:
    """The loop without xs that nothing in its body uses any more: they would lie in SRAM all the same."""
    body, first = scan.body, scan.num_consts + scan.num_carry
    used = {v for e in body.equations for v in e.operands} | set(body.outputs)
    kept = [i for i, v in enumerate(body.inputs) if i < first or v in used]
    if len(kept) == len(body.inputs):
        return scan, operands
    inputs = [body.inputs[i] for i in kept]
    inner = rebuild(body, inputs, body.constants, body.equations, body.outputs)  # type: ignore[arg-type]
    return dataclasses.replace(scan, body=inner), [operands[i] for i in kept]


def _early(body: GraphLike, leaves: Collection[int]) -> dict[int, Equation]:
    """Equations of xs in `leaves` and constants alone that can be done for all turns at once, by their result."""
    constants = {v for v, _ in body.constants}
    found: dict[int, Equation] = {}
    for equation in body.equations:
        operands = [v for v in equation.operands if isinstance(v, int)]
        is_known = all(v in found or v in leaves or v in constants for v in operands)
        if is_known and any(v not in constants for v in operands) and isinstance(equation.op, _BATCHED):
            found[equation.results[0]] = equation
    return found


def _crossing(body: GraphLike, early: dict[int, Equation], leaves: Collection[int]) -> list[int]:
    """Early values to take from outside: computed, needed by the loop, and no larger than what they are made of."""
    needed = set(body.outputs) | {v for e in body.equations if e.results[0] not in early for v in e.operands}
    wanted: list[int] = []
    for value, equation in reversed(early.items()):
        if value not in needed:
            continue
        ancestors = _ancestors(body, [value])
        sources = {v for a in ancestors for v in early[a].operands if isinstance(v, int) and v in leaves}
        is_computed = any(not isinstance(early[a].op, Move) for a in ancestors)
        is_small = _num_bytes(body.avals[value]) <= sum(_num_bytes(body.avals[v]) for v in sources)
        if is_computed and is_small and not isinstance(equation.op, Broadcast):
            wanted.append(value)
        else:
            needed.update(equation.operands)
    return sorted(wanted)


def _ancestors(body: GraphLike, values: Collection[int]) -> set[int]:
    """Results of the equations that `values` are made by."""
    found: set[int] = set()
    needed: set[object] = set(values)
    for equation in reversed(body.equations):
        if needed.intersection(equation.results):
            found.add(equation.results[0])
            needed.update(equation.operands)
    return found


def _num_bytes(aval: Aval) -> int:
    return math.prod(aval.shape) * np.dtype(aval.dtype).itemsize


def _batched(
    builder: GraphBuilder,
    body: GraphLike,
    equation: Equation,
    outside: dict[int, int],
    constants: dict[int, np.ndarray],
    count: int,
) -> int:
    """Appends an equation for all turns: a leading axis of size `count` on every operand and result."""

    def operand(v: int | Immediate) -> int | Immediate:
        if isinstance(v, Immediate):
            return v
        if v not in outside:
            array = constants[v]
            outside[v] = builder.constant(np.ascontiguousarray(np.broadcast_to(array, (count, *array.shape))))
        return outside[v]

    (result,) = equation.results
    aval = body.avals[result]
    operands = tuple(operand(v) for v in equation.operands)
    return builder.add(_with_leading_axis(equation.op, count), operands, Aval((count, *aval.shape), aval.dtype))[0]


def _with_leading_axis(op: Op, count: int) -> Op:
    if isinstance(op, Transpose):
        return Transpose((0, *(axis + 1 for axis in op.permutation)))
    if isinstance(op, Slice):
        return Slice((0, *op.start), (count, *op.limit), (1, *op.stride))
    if isinstance(op, Broadcast):
        return Broadcast((0, *(axis + 1 for axis in op.dimensions)))
    if isinstance(op, Concatenate):
        return Concatenate(op.axis + 1)
    if isinstance(op, Pad):
        return Pad((0, *op.low), (0, *op.high), op.value)
    if isinstance(op, Reverse):
        return Reverse(tuple(axis + 1 for axis in op.axes))
    return op
