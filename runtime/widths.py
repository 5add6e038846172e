"""How many bits a lossless accumulator needs for the values of one run, product by product."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lpu_jax.runtime.accumulation import MAX_ACCUMULATOR_BITS, bits_of_extents, extent
from lpu_jax.runtime.block_words import decode_words
from lpu_jax.runtime.execute import EXACT, Mode, execute, storage_format
from lpu_jax.runtime.isa import DataFormat
from lpu_jax.runtime.ops import Equation, GraphLike, LaneReduce, MatMul


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SumWidth:
    """The widest sum of one product (or lane sum) of a graph.

    num_terms: terms of a sum; bits: what `accumulator_bits` says of the operands, the most of all turns of a loop.
    """

    source: str
    name: str
    lhs_format: str
    rhs_format: str
    num_terms: int
    bits: int

    @property
    def is_too_wide(self) -> bool:
        """Whether the published accumulator of 100 bits would lose some."""
        return self.bits > MAX_ACCUMULATOR_BITS


class _Observer:
    """Collects the extents of both operands of every sum while a graph runs."""

    def __init__(self) -> None:
        self.equations: dict[int, tuple[Equation, DataFormat, DataFormat, int]] = {}
        self.seen: list[tuple[int, tuple[Any, ...]]] = []

    def __call__(self, equation: Equation, operands: list[Any]) -> None:
        """Looks at a traced equation; the values arrive when it runs."""
        op, x = equation.op, operands[0]
        if isinstance(op, MatMul):
            lhs_format, rhs_format, rhs = op.lhs_format, op.rhs_format, operands[1]
            if rhs_format.is_block:
                rhs = decode_words(jnp, rhs, rhs_format.number_format, x.shape[-1])
        elif isinstance(op, LaneReduce) and op.function == "sum":
            lhs_format, rhs_format, rhs = storage_format(x.dtype), DataFormat.INT8, jnp.ones((1, 1), np.int8)
        else:
            return
        self.equations.setdefault(id(equation), (equation, lhs_format, rhs_format, x.shape[-1]))
        extents = (*extent(jnp, x, lhs_format), *extent(jnp, rhs, rhs_format))
        jax.debug.callback(functools.partial(self._note, id(equation)), *extents)

    def _note(self, key: int, *extents: Any) -> None:
        self.seen.append((key, tuple(int(value) for value in extents)))

    def widths(self) -> tuple[SumWidth, ...]:
        """One entry per equation, in the order of the graph."""
        bits = dict.fromkeys(self.equations, 1)
        for key, (left_top, left_low, right_top, right_low) in self.seen:
            needed = bits_of_extents((left_top, left_low), (right_top, right_low), self.equations[key][3])
            bits[key] = max(bits[key], needed)
        return tuple(
            SumWidth(
                source=equation.source,
                name=equation.name,
                lhs_format=lhs_format.name.lower(),
                rhs_format=rhs_format.name.lower(),
                num_terms=num_terms,
                bits=bits[key],
            )
            for key, (equation, lhs_format, rhs_format, num_terms) in self.equations.items()
        )


def sum_widths(graph: GraphLike, arguments: Sequence[Any], mode: Mode = EXACT) -> tuple[SumWidth, ...]:
    """Runs a graph in the fast executor and tells the width of every sum over K.

    Args:
      graph: a verified Graph.
      arguments: concrete arrays as `execute` takes them, none prepared.
      mode: how dot products are accumulated.
    """
    observer = _Observer()
    watched = dataclasses.replace(mode, observe=observer)
    jax.block_until_ready(jax.jit(lambda values: execute(graph, values, watched))(list(arguments)))
    jax.effects_barrier()
    return observer.widths()
