"""Elementwise work in front of moves: f(move(x), s) as move(f(x, inverse move(s))).

Heads that were split off or transposed are then scaled and narrowed where they still lie densely in their vectors, and
what has to be moved afterwards is narrow. Slices of one value share the work on all of it; what was joined is worked on
part by part.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from lpu_jax.lowering.emit import Emitter, Operand
from lpu_jax.runtime.ops import Concatenate, Reshape, Slice, Transpose

_SEEN_THROUGH = 4
"""A slice of fewer than one in so many elements is worked on by itself."""


@dataclasses.dataclass(frozen=True, slots=True)
class Moved:
    """A value as moves of `base`; moves: each with the shapes before and after it, first one first."""

    base: int
    moves: tuple[tuple[Reshape | Transpose | Slice, tuple[int, ...], tuple[int, ...]], ...]

    def outward(self, ctx: Emitter, y: Operand) -> Operand:
        """The same moves of another value of the base's shape."""
        for op, _, after in self.moves:
            if isinstance(op, Transpose):
                y = ctx.transpose(y, op.permutation)
            elif isinstance(op, Slice):
                y = ctx.slice(y, op.start, op.limit, op.stride)
            else:
                y = ctx.reshape(y, after)
        return y

    def inward(self, ctx: Emitter, y: Operand) -> Operand:
        """The value of the base's shape that the moves turn into y; there must be no slices among them."""
        for op, before, _ in reversed(self.moves):
            assert not isinstance(op, Slice)
            inverse = np.argsort(op.permutation).tolist() if isinstance(op, Transpose) else []
            y = ctx.transpose(y, inverse) if isinstance(op, Transpose) else ctx.reshape(y, before)
        return y

    def axis_of_rows(self) -> int | None:
        """The axis of the base that is axis 1 of the value [B, R, C], if the base is [..., R, ...] of B and C in order.

        Work along R can then be done in the base, where rows may lie more densely.
        """
        if not self.moves:
            return 1
        shape = self.moves[0][1]
        moved = np.arange(math.prod(shape)).reshape(shape)
        for op, _, after in self.moves:
            if isinstance(op, Slice):
                return None
            moved = moved.transpose(op.permutation) if isinstance(op, Transpose) else moved.reshape(after)
        for axis, size in enumerate(shape):
            first = np.take(np.arange(math.prod(shape)).reshape(shape), [0], axis)
            if size == moved.shape[1] and np.array_equal(moved[:, 0].reshape(-1), first.reshape(-1)):
                return axis if self._is_along(axis, moved) else None
        return None

    def _is_along(self, axis: int, moved: np.ndarray) -> bool:
        """Whether every step along axis 1 of the value is a step along that axis of the base."""
        step = math.prod(self.moves[0][1][axis + 1 :])
        return bool((np.diff(moved, axis=1) == step).all())


def behind_moves(ctx: Emitter, x: int, *, slices: bool = False) -> Moved:
    """What a value is moved from, with `slices` also what it is a large part of."""
    moves: list[tuple[Reshape | Transpose | Slice, tuple[int, ...], tuple[int, ...]]] = []
    largest = _SEEN_THROUGH * math.prod(ctx.aval(x).shape)
    while (definition := ctx.ranges.definition(x)) is not None:
        op, (source, *_) = definition.op, definition.operands
        if not isinstance(op, Reshape | Transpose) and not (isinstance(op, Slice) and slices):
            break
        if not isinstance(source, int) or math.prod(ctx.aval(source).shape) > largest:
            break
        moves.append((op, ctx.aval(source).shape, ctx.aval(x).shape))
        x = source
    return Moved(x, tuple(reversed(moves)))


def work_behind_moves(ctx: Emitter, x: int, work: Callable[[int], int], *, slices: bool = False) -> int:
    """work(x), elementwise and the same for all elements, done on what x is moved and joined from."""
    moved = behind_moves(ctx, x, slices=slices)
    definition = ctx.ranges.definition(moved.base)
    if definition is None or not isinstance(definition.op, Concatenate):
        return moved.outward(ctx, work(moved.base))  # type: ignore[return-value]
    parts = [work_behind_moves(ctx, part, work, slices=slices) for part in definition.operands]  # type: ignore[arg-type]
    return moved.outward(ctx, ctx.concatenate(parts, definition.op.axis))  # type: ignore[return-value]
