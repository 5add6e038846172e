"""The share of a program that only moves data.

An op moves data if it computes nothing: ops of the SXM (permuter, distributors, transposers), and chains of the VXM
without a product whose functions only choose bits (`identity`, `mask`, `mask_bar`, `or`): copies, lanes put together,
gathers and scatters of rows. A `where` that stands alone counts too. Moves that are part of an op
that computes (a product reads its operands, a chain reads and writes) are no ops of their own and cost nothing here.

  share = cycles of the program that belong to such ops / all cycles

Every cycle belongs to one op, the one on the binding chain (attribution.py); moves in the shadow of other work are
free. So the share is what the program would save at most if all moves took no time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from lpu_jax.lowering.tile_ir import ChainOp, GatherInput, MatMulInput, PermuteOp, ScatterOutput, TileOp, TransposeOp

_CHOOSING = frozenset(("identity", "mask", "mask_bar", "or"))


@dataclasses.dataclass(frozen=True, slots=True)
class Move:
    """Cycles that one kind of moves owns at one place.

    kind: "permute", "distribute", "transpose", "copy", "gather" or "scatter".
    """

    kind: str
    name: str
    source: str
    num_ops: int
    cycles: int


@dataclasses.dataclass(frozen=True, slots=True)
class DataMovement:
    """cycles = sum of those of `moves`, the largest first; share = cycles / all cycles of the program."""

    cycles: int = 0
    share: float = 0.0
    moves: tuple[Move, ...] = ()


NO_MOVEMENT = DataMovement()


def kind_of(op: TileOp) -> str | None:
    """The kind of a move; None for an op that computes."""
    if isinstance(op, TransposeOp):
        return "transpose"
    if isinstance(op, PermuteOp):
        return op.unit.value
    assert isinstance(op, ChainOp)
    if any(step.function not in _CHOOSING for step in op.steps) or any(isinstance(x, MatMulInput) for x in op.inputs):
        return None
    if any(isinstance(x, ScatterOutput) for x in op.outputs):
        return "scatter"
    return "gather" if any(isinstance(x, GatherInput) for x in op.inputs) else "copy"


def data_movement(ops: Sequence[TileOp], owned: dict[int, int], cycles: int) -> DataMovement:
    """Of the scheduled ops of a program, with the cycles that each owns, by its number."""
    found: dict[tuple[str, str, str], tuple[int, int]] = {}
    for number, op in enumerate(ops):
        kind = kind_of(op)
        if kind is not None:
            key = kind, op.name, op.source
            count, total = found.get(key, (0, 0))
            found[key] = count + 1, total + owned.get(number, 0)
    moves = sorted((Move(*key, *value) for key, value in found.items()), key=lambda m: (-m.cycles, m.kind, m.name))
    total = sum(move.cycles for move in moves)
    return DataMovement(total, total / cycles, tuple(moves))
