"""`Graph`: whole-tensor operations of the LPU in topological order, made from a jaxpr.

Grammar (as printed):
  graph    ::= "graph" "(" value* ")" "{" constant* equation* "return" id* "}"
  value    ::= id ":" aval                      e.g. %3:f32[1,576]
  equation ::= value* "=" op operand*  "#" source
  operand  ::= id | immediate

A value is an int id; `avals[id]` is its shape and dtype. Every id is defined once, before its first use.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from lpu_jax.runtime.errors import ScheduleError
from lpu_jax.runtime.ops import Aval, Equation, Immediate, Op, Scan, While


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Graph:
    """An immutable dataflow graph.

    Invariants:
      ids in inputs, constants and equation results are distinct and cover range(len(avals))
      every operand id is defined earlier; outputs are defined
    """

    avals: tuple[Aval, ...]
    inputs: tuple[int, ...]
    constants: tuple[tuple[int, np.ndarray], ...]
    equations: tuple[Equation, ...]
    outputs: tuple[int, ...]

    def __str__(self) -> str:
        return as_text(self)


class GraphBuilder:
    """Appends equations to a growing graph; `build` freezes it."""

    def __init__(self) -> None:
        self.avals: list[Aval] = []
        self._inputs: list[int] = []
        self._constants: list[tuple[int, np.ndarray]] = []
        self._equations: list[Equation] = []
        self.source = ""
        self.name = ""

    def _new(self, aval: Aval) -> int:
        self.avals.append(aval)
        return len(self.avals) - 1

    def input(self, aval: Aval) -> int:
        """Adds an argument."""
        value = self._new(aval)
        self._inputs.append(value)
        return value

    def constant(self, array: np.ndarray) -> int:
        """Adds a constant; equal arrays share one id."""
        array = np.asarray(array, order="C")
        for value, other in self._constants:
            if other is array or (
                other.shape == array.shape and other.dtype == array.dtype and other.tobytes() == array.tobytes()
            ):
                return value
        value = self._new(Aval(array.shape, str(array.dtype)))
        self._constants.append((value, array))
        return value

    def constant_of(self, value: int) -> np.ndarray | None:
        """Content of a constant, None for other values."""
        return next((array for other, array in self._constants if other == value), None)

    def add(self, op: Op, operands: tuple[int | Immediate, ...], *avals: Aval) -> tuple[int, ...]:
        """Appends results = op(operands) with the present source and name."""
        results = tuple(self._new(aval) for aval in avals)
        self._equations.append(Equation(op, operands, results, self.source, self.name))
        return results

    def build(self, outputs: tuple[int, ...]) -> Graph:
        """The finished graph, verified."""
        graph = Graph(
            avals=tuple(self.avals),
            inputs=tuple(self._inputs),
            constants=tuple(self._constants),
            equations=tuple(self._equations),
            outputs=outputs,
        )
        verify_graph(graph)
        return graph


def verify_graph(graph: Graph) -> None:
    """Checks the invariants of `Graph`; raises ScheduleError with the first broken one."""
    defined = set(graph.inputs) | {value for value, _ in graph.constants}
    if len(defined) != len(graph.inputs) + len(graph.constants):
        raise ScheduleError("graph: an id is both input and constant, or given twice")
    for equation in graph.equations:
        for operand in equation.operands:
            if isinstance(operand, int) and operand not in defined:
                raise ScheduleError(f"graph: %{operand} used before its definition in {equation.op} {equation.source}")
        for result in equation.results:
            if result in defined:
                raise ScheduleError(f"graph: %{result} defined twice")
            defined.add(result)
        if isinstance(equation.op, Scan | While):
            verify_graph(equation.op.body)  # type: ignore[arg-type]
    for output in graph.outputs:
        if output not in defined:
            raise ScheduleError(f"graph: output %{output} is not defined")


def _operand_text(operand: int | Immediate) -> str:
    return f"%{operand}" if isinstance(operand, int) else repr(operand.value)


def _op_text(op: Op) -> str:
    """The op with its fields, without those that have their default."""
    values = [(field, getattr(op, field.name)) for field in dataclasses.fields(op)]
    shown = ", ".join(f"{field.name}={value!r}" for field, value in values if value is not field.default)
    return f"{type(op).__name__}({shown})"


def as_text(graph: Graph, indent: str = "") -> str:
    """Stable text of a graph."""

    def value(index: int) -> str:
        return f"%{index}:{graph.avals[index]}"

    lines = [f"{indent}graph({', '.join(value(i) for i in graph.inputs)}) {{"]
    lines += [f"{indent}  {value(i)} = constant" for i, _ in graph.constants]
    for equation in graph.equations:
        results = ", ".join(value(i) for i in equation.results)
        operands = " ".join(_operand_text(operand) for operand in equation.operands)
        comment = f"  # {equation.source}" if equation.source else ""
        if isinstance(equation.op, Scan):
            scan = equation.op
            lines.append(f"{indent}  {results} = Scan x{scan.num_iterations} {operands}{comment}")
            lines.append(as_text(scan.body, indent + "    "))  # type: ignore[arg-type]
        elif isinstance(equation.op, While):
            lines.append(f"{indent}  {results} = While {equation.op.name!r} {operands}{comment}")
            lines.append(as_text(equation.op.body, indent + "    "))  # type: ignore[arg-type]
        else:
            lines.append(f"{indent}  {results} = {_op_text(equation.op)} {operands}{comment}")
    lines.append(f"{indent}  return {' '.join(f'%{i}' for i in graph.outputs)}")
    lines.append(f"{indent}}}")
    return "\n".join(lines)
