"""Graph -> Graph: dead equations go away; graphs are taken apart at resident values."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np

from lpu_jax.lowering.ir import Graph, verify_graph
from lpu_jax.runtime.ops import Aval, Broadcast, Equation, HostCall, Scan, While, effects_of


def rebuild(
    graph: Graph,
    inputs: Sequence[int],
    constants: Sequence[tuple[int, np.ndarray]],
    equations: Sequence[Equation],
    outputs: Sequence[int],
) -> Graph:
    """The graph of a part, values renumbered in order of definition."""
    order = [*inputs, *(v for v, _ in constants), *(r for e in equations for r in e.results)]
    number = {value: i for i, value in enumerate(order)}
    renumbered = tuple(
        dataclasses.replace(
            e,
            operands=tuple(number[x] if isinstance(x, int) else x for x in e.operands),
            results=tuple(number[r] for r in e.results),
        )
        for e in equations
    )
    avals: tuple[Aval, ...] = tuple(graph.avals[value] for value in order)
    part = Graph(
        avals=avals,
        inputs=tuple(number[v] for v in inputs),
        constants=tuple((number[v], array) for v, array in constants),
        equations=renumbered,
        outputs=tuple(number[v] for v in outputs),
    )
    verify_graph(part)
    return part


def _needed(equations: Sequence[Equation], outputs: Sequence[int]) -> tuple[list[Equation], set[int]]:
    needed, kept = set(outputs), []
    for equation in reversed(equations):
        if needed.intersection(equation.results) or _has_effects(equation):
            kept.append(equation)
            needed.update(x for x in equation.operands if isinstance(x, int))
    return kept[::-1], needed


def _has_effects(equation: Equation) -> bool:
    op = equation.op
    if isinstance(op, HostCall):
        return bool(op.effects)
    return isinstance(op, While | Scan) and bool(effects_of(op.body))


def remove_dead_equations(graph: Graph) -> Graph:
    """Drops equations and constants that no output needs; inputs stay. O(equations)."""
    equations, needed = _needed(graph.equations, graph.outputs)
    constants = [(v, array) for v, array in graph.constants if v in needed]
    return rebuild(graph, graph.inputs, constants, equations, graph.outputs)


def split_resident(graph: Graph, resident_inputs: Collection[int]) -> tuple[Graph, Graph]:
    """Takes apart what can be computed once, when resident arguments are loaded.

    prologue: resident inputs (all, in order) -> the values that main needs of them
    main:     the other inputs (in order), then the prologue's outputs -> the outputs of the graph

    What depends on resident inputs and constants only is computed in the prologue, except broadcasts at its end.
    Constants are in whichever part needs them.
    """
    given = set(resident_inputs)
    if unknown := given.difference(graph.inputs):
        raise ValueError(f"{sorted(unknown)} are not inputs of the graph; inputs are {list(graph.inputs)}")
    is_early = _early_equations(graph, given)
    late = _needed([e for e, early in zip(graph.equations, is_early, strict=True) if not early], graph.outputs)[0]
    late = _with_splats(graph, late)
    _, late_needs = _needed(late, graph.outputs)
    late_defines = {r for e in late for r in e.results}
    constant = {v for v, _ in graph.constants}
    crossing = sorted((late_needs & _resident_values(graph, given, is_early)) - late_defines - constant)
    early, early_needs = _needed([e for e, early in zip(graph.equations, is_early, strict=True) if early], crossing)
    prologue_inputs = [v for v in graph.inputs if v in given]
    main_inputs = [*(v for v in graph.inputs if v not in given), *crossing]
    prologue_constants = [(v, array) for v, array in graph.constants if v in early_needs]
    main_constants = [(v, array) for v, array in graph.constants if v in late_needs]
    prologue = rebuild(graph, prologue_inputs, prologue_constants, early, crossing)
    return prologue, rebuild(graph, main_inputs, main_constants, late, graph.outputs)


def _early_equations(graph: Graph, given: set[int]) -> list[bool]:
    """For every equation, whether all its operands are known when resident arguments are loaded."""
    known = given | {v for v, _ in graph.constants}
    flags = []
    for equation in graph.equations:
        is_known = all(x in known for x in equation.operands if isinstance(x, int))
        flags.append(is_known and not _has_effects(equation))
        if flags[-1]:
            known.update(equation.results)
    return flags


def _resident_values(graph: Graph, given: set[int], is_early: Sequence[bool]) -> set[int]:
    early = zip(graph.equations, is_early, strict=True)
    return given | {r for equation, flag in early if flag for r in equation.results}


def _with_splats(graph: Graph, late: list[Equation]) -> list[Equation]:
    """Adds the broadcasts whose results main needs: they are cheap to repeat and dear to keep in SRAM."""
    definitions = {r: e for e in graph.equations for r in e.results}
    kept = {id(e) for e in late}
    pending = [x for e in late for x in e.operands] + list(graph.outputs)
    while pending:
        definition = definitions.get(pending.pop())  # type: ignore[arg-type]
        if definition is not None and id(definition) not in kept and isinstance(definition.op, Broadcast):
            kept.add(id(definition))
            pending.extend(definition.operands)
    return [e for e in graph.equations if id(e) in kept]
