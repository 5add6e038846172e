"""Sums of magnitudes of which only the exponent is used, as the scales of products are made of them.

Exponent fields up to a floor count as that floor, so a sum that is too small to be sure of is as good as any.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax

from lpu_jax.runtime.numerics import Array
from lpu_jax.runtime.ops import Elementwise, Equation, GraphLike, Immediate, LaneReduce
from lpu_jax.runtime.wide_sums import exact_sum

_MASK, _FLOOR = 0x7F800000, 15 << 23
_MAX_TERMS = 2**13  # as many subnormals are below the floor, 2^-112


def scale_sums(graph: GraphLike) -> frozenset[int]:
    """Sums over lanes of which nothing but max(exponent field, some floor) is used."""
    uses: dict[int, list[Equation]] = {}
    for equation in graph.equations:
        for v in equation.operands:
            if isinstance(v, int):
                uses.setdefault(v, []).append(equation)

    def only(value: int, function: str, smallest: int, largest: int) -> bool:
        """Whether every use is this function with an immediate in a range."""
        found = uses.get(value, [])
        return value not in graph.outputs and all(
            isinstance(e.op, Elementwise)
            and e.op.function == function
            and any(isinstance(v, Immediate) and smallest <= v.bits <= largest for v in e.operands)
            for e in found
        )

    def is_scale(equation: Equation) -> bool:
        op = equation.op
        if not isinstance(op, LaneReduce) or op.function != "sum":
            return False
        operand = equation.operands[0]
        if not isinstance(operand, int):
            return False
        aval, value = graph.avals[operand], equation.results[0]
        if aval.dtype != "float32" or aval.shape[-1] > _MAX_TERMS or not only(value, "and", _MASK, _MASK):
            return False
        return all(only(e.results[0], "imax", _FLOOR, _MASK) for e in uses.get(value, []))

    return frozenset(e.results[0] for e in graph.equations if is_scale(e))


def exponent_sum(x: Array) -> Array:
    """A float32 with the exponent field of the exact sum, where that is above `_FLOOR`; at most the floor elsewhere.

    Args:
      x: magnitudes, float32 [..., K], K <= 2^13.

    Returns:
      [..., 1]. n roundings of float32 lose at most n * 2^-24 of a sum of magnitudes, flushed subnormals n * 2^-126.
    """
    num_terms = x.shape[-1]
    total = jnp.sum(x, axis=-1, keepdims=True)
    slack = total * np.float32(num_terms * 2.0**-23) + np.float32(num_terms * 2.0**-126)
    low, high = (lax.bitcast_convert_type(total + d, np.int32) & _MASK for d in (-slack, slack))
    is_certain = ((low == high) & (total < np.float32(2.0**126))) | (total + slack < np.float32(2.0**-112))
    return lax.cond(jnp.all(is_certain), lambda: total, lambda: exact_sum(jnp, x)[..., None])
