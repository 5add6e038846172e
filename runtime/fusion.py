"""Where results are kept apart from their uses, so that XLA does not compute them again in each.

XLA on CPU copies what it takes for cheap into every loop that needs it. An exact function is a chain of such cheap
operations, and chains of chains grow without bound. XLA keeps a division of its own where several loops need it, so a
result that is needed more than once is divided by one that XLA cannot see through; it changes no bits.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

from lpu_jax.runtime.numerics import Array
from lpu_jax.runtime.ops import Aval, Elementwise, Equation, GraphLike, LaneReduce, MatMul, Move
from lpu_jax.runtime.vxm import FLUSHING

_LOOPS = {MatMul: 3, LaneReduce: 3}
"""Loops over an operand in which an exact sum is computed and certified."""


def kept_values(graph: GraphLike) -> frozenset[int]:
    """Values whose elements would be computed more than once otherwise; float32 results of functions alone."""
    demand: dict[int, float] = dict.fromkeys(graph.outputs, 1.0)
    kept = set()
    for equation in reversed(graph.equations):
        times = sum(demand.get(v, 0.0) for v in equation.results)
        if times > 1 and _may_be_kept(graph, equation):
            kept.add(equation.results[0])
            times = 1.0
        for v in equation.operands:
            if isinstance(v, int):
                result = graph.avals[equation.results[0]] if equation.results else graph.avals[v]
                demand[v] = demand.get(v, 0.0) + _demand(equation, times, result, graph.avals[v])
    return frozenset(kept)


def _demand(equation: Equation, times: float, result: Aval, operand: Aval) -> float:
    """How often each element of an operand is computed, on average, if those of the result are `times`."""
    if isinstance(equation.op, Move):
        return times * min(1.0, math.prod(result.shape) / max(1, math.prod(operand.shape))) * _repeats(result, operand)
    if isinstance(equation.op, Elementwise):
        return times
    return float(_LOOPS.get(type(equation.op), 1))


def _repeats(result: Aval, operand: Aval) -> int:
    return 2 if math.prod(result.shape) > 2 * math.prod(operand.shape) else 1


def _may_be_kept(graph: GraphLike, equation: Equation) -> bool:
    is_function = isinstance(equation.op, Elementwise) and equation.op.function in FLUSHING
    return is_function and graph.avals[equation.results[0]].dtype == "float32"


def keep(x: Array) -> Array:
    """The same float32 bits, computed once; no subnormals, NaN canonical."""
    return x / jnp.where(x != x, x, np.float32(1))
