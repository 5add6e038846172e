"""Graph -> Graph: moves between an argument and its first use, or a last use and a result, become the host's layout.

Before  %2:f32[64,128] = Transpose %0; %3 = MatMul %1 %2; %4 = Transpose %3; return %4
After   inputs %0 (transposed by the host), %1; return %3 (transposed by the host)

The host lays every argument out in SRAM and reads every result, whatever the order of its elements; a move that
only orders elements anew therefore costs the chip nothing there. Donated arguments and the results that take their
place stay as they are.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np

from lpu_jax.lowering.ir import Graph
from lpu_jax.lowering.passes.tile_moves import move_indices
from lpu_jax.lowering.prune import rebuild
from lpu_jax.runtime.ops import Equation, Move, Reshape, Reverse, Transpose

HostMove = tuple[Move, tuple[int, ...]]
"""A move and the shape of its result."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Edges:
    """A graph without its moves at the edges, and what the host does in their place.

    entering[i]: moves of argument i, first to last; leaving[o]: moves of result o.
    """

    graph: Graph
    entering: tuple[tuple[HostMove, ...], ...]
    leaving: tuple[tuple[HostMove, ...], ...]

    def enter(self, arguments: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Arguments as the inner graph takes them."""
        return [_moved(x, moves) for x, moves in zip(arguments, self.entering, strict=True)]

    def leave(self, results: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Results as the user wants them."""
        return [_moved(x, moves) for x, moves in zip(results, self.leaving, strict=True)]


def split_edges(graph: Graph, kept_inputs: Collection[int] = (), kept_outputs: Collection[int] = ()) -> Edges:
    """Takes the moves at the edges off a graph; positions in kept_inputs and kept_outputs are left alone. O(equations).

    Only moves that neither drop nor repeat elements go, and only where nobody else uses what they move.
    """
    uses = Counter(v for e in graph.equations for v in e.operands if isinstance(v, int))
    uses.update(graph.outputs)
    first = {v: e for e in graph.equations if _is_ordering(e) for v in e.operands if isinstance(v, int)}
    last = {e.results[0]: e for e in graph.equations if _is_ordering(e)}
    removed: set[int] = set()
    inputs, entering = [], []
    for position, value in enumerate(graph.inputs):
        moves: list[HostMove] = []
        while position not in kept_inputs and uses[value] == 1 and value in first:
            equation = first[value]
            value = equation.results[0]
            removed.add(value)
            moves.append((equation.op, graph.avals[value].shape))  # type: ignore[arg-type]
        inputs.append(value)
        entering.append(tuple(moves))
    outputs, leaving = [], []
    for position, value in enumerate(graph.outputs):
        moves = []
        while position not in kept_outputs and uses[value] == 1 and value in last and value not in removed:
            equation = last[value]
            removed.add(value)
            moves.append((equation.op, graph.avals[value].shape))  # type: ignore[arg-type]
            (value,) = (v for v in equation.operands if isinstance(v, int))
        outputs.append(value)
        leaving.append(tuple(reversed(moves)))
    equations = [e for e in graph.equations if e.results[0] not in removed]
    inner = rebuild(graph, inputs, graph.constants, equations, outputs)
    return Edges(graph=inner, entering=tuple(entering), leaving=tuple(leaving))


def _is_ordering(equation: Equation) -> bool:
    return isinstance(equation.op, Reshape | Transpose | Reverse)


def _moved(array: np.ndarray, moves: Sequence[HostMove]) -> np.ndarray:
    for op, shape in moves:
        array = move_indices(op, [array], shape)
    return array
