"""roll: Graph -> Graph. Layers of one shape that were written out one by one become one loop, to be scheduled once.

Before  %9 = f(%0, %1); %17 = f(%9, %2); %25 = f(%17, %3)      After  %9 = Scan x3 (carry %0, xs [%1, %2, %3])

Finds the longest run of equations that repeats with a fixed period (tandem repeat on equation signatures, O(n^2) on
integer ids) and checks operand by operand that the copies differ only in what a loop can express: values of the turn
before (carry), one value per turn (xs), or the same value (const). Bits do not change: the equations stay the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from lpu_jax.lowering.ir import Graph, GraphBuilder
from lpu_jax.runtime.ops import (
    Aval,
    Concatenate,
    Equation,
    GraphLike,
    HostCall,
    Immediate,
    Move,
    Reshape,
    Scan,
    Slice,
    While,
)

MIN_PERIOD = 8
"""Equations that compute, of the shortest body worth a loop: moves alone are index arithmetic as they stand."""
MIN_TURNS = 3
"""Copies that make a loop."""

Place = tuple[int, int]
"""(equation within the body, result number)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Loop:
    """A repeat: equations start .. start + period * turns - 1, and the role of what its body reads from outside.

    consts: value; carry: (first value, place of the next one); xs: one value per turn; ys: places read afterwards.
    """

    start: int
    period: int
    turns: int
    consts: tuple[int, ...]
    carry: tuple[tuple[int, Place], ...]
    xs: tuple[tuple[int, ...], ...]
    ys: tuple[Place, ...]


def roll(graph: GraphLike) -> GraphLike:
    """Rolls the longest repeat of a graph; returns the graph itself if there is none."""
    for start, period, turns in _repeats(graph):
        loop = _classify(graph, start, period, turns)
        if loop is not None:
            return _rebuild(graph, loop)
    return graph


def _repeats(graph: GraphLike) -> Iterator[tuple[int, int, int]]:
    """Candidates (start, period, turns), the most equations first; every rotation of a repeat is one."""
    names: dict[object, int] = {}
    signatures = []
    for index, equation in enumerate(graph.equations):
        shapes = tuple(graph.avals[v] if isinstance(v, int) else v for v in equation.operands)
        results = tuple(graph.avals[v] for v in equation.results)
        key = index if isinstance(equation.op, Scan | While | HostCall) else (equation.op, shapes, results)
        signatures.append(names.setdefault(key, len(names)))
    ids, computes = np.array(signatures), np.array([not isinstance(e.op, Move) for e in graph.equations])
    found = []
    for period in range(MIN_PERIOD, len(ids) // MIN_TURNS + 1):
        same = np.concatenate([[False], ids[:-period] == ids[period:], [False]]).astype(np.int8)
        edges = np.diff(same)
        for begin, end in zip(np.nonzero(edges == 1)[0].tolist(), np.nonzero(edges == -1)[0].tolist(), strict=True):
            turns = (end - begin) // period + 1
            if turns >= MIN_TURNS and computes[begin : begin + period].sum() >= MIN_PERIOD:
                found.append((-turns * period, period, begin, end))
    for _, period, begin, end in sorted(found)[:4]:
        for start in range(begin, begin + period):
            turns = (end - start) // period + 1
            if turns >= MIN_TURNS:
                yield start, period, turns


def _classify(graph: GraphLike, start: int, period: int, turns: int) -> Loop | None:
    """The roles of all operands, None if the copies differ in a way that no loop expresses."""
    home = _homes(graph, start, period, turns)
    roles: dict[str, dict[Any, None]] = {"const": {}, "carry": {}, "xs": {}, "inside": {}}
    for offset in range(period):
        copies = [graph.equations[start + turn * period + offset].operands for turn in range(turns)]
        for values in zip(*copies, strict=True):
            role = _role(values, home)
            if role is None:
                return None
            roles[role[0]][role[1]] = None
    carry: tuple[tuple[int, Place], ...] = tuple(roles["carry"])
    nexts = {place for _, place in carry}
    stop = start + period * turns
    outside = [v for e in graph.equations[stop:] for v in e.operands] + list(graph.outputs)
    used = dict.fromkeys(home[v] for v in outside if isinstance(v, int) and v in home)
    ys = dict.fromkeys(place for turn, place in used if turn != turns - 1 or place not in nexts)
    return Loop(start, period, turns, tuple(roles["const"]), carry, tuple(roles["xs"]), tuple(ys))


def _homes(graph: GraphLike, start: int, period: int, turns: int) -> dict[int, tuple[int, Place]]:
    """(turn, place) of every value that the repeat makes."""
    return {
        result: (index // period, (index % period, number))
        for index, equation in enumerate(graph.equations[start : start + period * turns])
        for number, result in enumerate(equation.results)
    }


def _role(values: tuple[int | Immediate, ...], home: dict[int, tuple[int, Place]]) -> tuple[str, Any] | None:
    """What an operand is, given its value in every turn: (role, key), None if nothing fits."""
    first = values[0]
    if isinstance(first, Immediate):
        return "inside", first  # equal in all turns: it is part of the signature
    made = [home.get(v, (-1, None)) for v in values if isinstance(v, int)]
    if all(turn == -1 for turn, _ in made):
        return ("const", first) if len(set(values)) == 1 else ("xs", values)
    if all(turn == t for t, (turn, _) in enumerate(made)):
        return ("inside", made[0][1]) if len({place for _, place in made}) == 1 else None
    later = made[1:]
    if made[0][0] == -1 and all(turn == t for t, (turn, _) in enumerate(later)):
        return ("carry", (first, later[0][1])) if len({place for _, place in later}) == 1 else None
    return None


def _body(graph: GraphLike, loop: Loop) -> Graph:
    """The equations of the first turn as a graph of their own."""
    builder = GraphBuilder()
    env: dict[int, int] = {}
    for value in (*loop.consts, *(first for first, _ in loop.carry), *(values[0] for values in loop.xs)):
        env[value] = builder.input(graph.avals[value])
    equations = graph.equations[loop.start : loop.start + loop.period]
    for equation in equations:
        _copy(graph, builder, equation, env)
    nexts = [place for _, place in loop.carry]
    return builder.build(tuple(env[equations[o].results[n]] for o, n in (*nexts, *loop.ys)))


def _copy(graph: GraphLike, builder: GraphBuilder, equation: Equation, env: dict[int, int]) -> None:
    """Appends an equation with its operands renamed."""
    builder.source, builder.name = equation.source, equation.name
    operands = tuple(env[v] if isinstance(v, int) else v for v in equation.operands)
    results = builder.add(equation.op, operands, *(graph.avals[v] for v in equation.results))
    env.update(zip(equation.results, results, strict=True))


def _rebuild(graph: GraphLike, loop: Loop) -> Graph:
    """The graph with the repeat replaced by a loop."""
    builder = GraphBuilder()
    env = {value: builder.input(graph.avals[value]) for value in graph.inputs}
    env.update((value, builder.constant(array)) for value, array in graph.constants)
    for equation in graph.equations[: loop.start]:
        _copy(graph, builder, equation, env)
    body = _body(graph, loop)
    stacks = [_stack(builder, [env[v] for v in values]) for values in loop.xs]
    operands = [*(env[v] for v in loop.consts), *(env[first] for first, _ in loop.carry), *stacks]
    scan = Scan(body, loop.turns, len(loop.consts), len(loop.carry))
    avals = [body.avals[v] for v in body.outputs]
    for index in range(len(loop.carry), len(avals)):
        avals[index] = Aval((loop.turns, *avals[index].shape), avals[index].dtype)
    results = builder.add(scan, tuple(operands), *avals)
    last = graph.equations[loop.start + loop.period * (loop.turns - 1) :]
    for (_, (offset, number)), result in zip(loop.carry, results, strict=False):
        env[last[offset].results[number]] = result
    for place, stacked in zip(loop.ys, results[len(loop.carry) :], strict=True):
        for turn in range(loop.turns):
            offset, number = place
            value = graph.equations[loop.start + turn * loop.period + offset].results[number]
            if value not in env:
                env[value] = _row(builder, stacked, turn)
    for equation in graph.equations[loop.start + loop.period * loop.turns :]:
        _copy(graph, builder, equation, env)
    return builder.build(tuple(env[v] for v in graph.outputs))


def _stack(builder: GraphBuilder, values: list[int]) -> int:
    """[turns, *shape] of one value per turn."""
    aval = builder.avals[values[0]]
    rows = [builder.add(Reshape(), (v,), Aval((1, *aval.shape), aval.dtype))[0] for v in values]
    return builder.add(Concatenate(0), tuple(rows), Aval((len(values), *aval.shape), aval.dtype))[0]


def _row(builder: GraphBuilder, stacked: int, turn: int) -> int:
    """Element `turn` of a stacked result."""
    aval = builder.avals[stacked]
    rest = len(aval.shape) - 1
    limit = (turn + 1, *aval.shape[1:])
    op = Slice((turn, *(0,) * rest), limit, (1,) * (rest + 1))
    (row,) = builder.add(op, (stacked,), Aval((1, *aval.shape[1:]), aval.dtype))
    return builder.add(Reshape(), (row,), Aval(aval.shape[1:], aval.dtype))[0]
