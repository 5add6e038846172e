"""execute_stepwise: the bits of `execute`, equation by equation, one compiled kernel per kind of equation.

XLA takes minutes for the exact products of a long graph together, and seconds for the few kinds of them. What is no
longer needed is dropped, so large graphs fit too. It is not a JAX function: arguments are arrays, not tracers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lpu_jax.runtime.execute import EXACT, Mode, as_held, evaluate
from lpu_jax.runtime.ops import Aval, Equation, GraphLike, Immediate, Op

Array = Any


def execute_stepwise(graph: GraphLike, arguments: Sequence[Array], mode: Mode = EXACT) -> list[Array]:
    """Evaluates a graph; arguments, mode and results as for `execute`."""
    last_use = {v: i for i, e in enumerate(graph.equations) for v in e.operands if isinstance(v, int)}
    last_use |= dict.fromkeys(graph.outputs, len(graph.equations))
    with jax.enable_x64(True):
        env: dict[int, Array] = {
            v: as_held(jnp.asarray(x)) for v, x in zip(graph.inputs, arguments, strict=True) if v in last_use
        }
        env.update((value, jnp.asarray(content)) for value, content in graph.constants)
        for i, equation in enumerate(graph.equations):
            operands = equation.operands
            numbers = tuple(v if isinstance(v, Immediate) else None for v in operands)
            kernel = _kernel(equation.op, numbers, tuple(graph.avals[r] for r in equation.results), mode)
            results = kernel(*(env[v] for v in operands if isinstance(v, int)))
            env.update(zip(equation.results, results, strict=True))
            for v in {v for v in operands if isinstance(v, int) and last_use[v] == i}:
                del env[v]
        return [env[value] for value in graph.outputs]


@functools.lru_cache(maxsize=4096)
def _kernel(
    op: Op, numbers: tuple[Immediate | None, ...], avals: tuple[Aval, ...], mode: Mode
) -> Callable[..., list[Array]]:
    places = tuple(number if number is not None else i for i, number in enumerate(numbers))
    equation = Equation(op, places, tuple(range(len(avals))))

    def run(*arrays: Array) -> list[Array]:
        remaining = iter(arrays)
        operands = [
            next(remaining) if number is None else jnp.asarray(number.value, dtype=number.dtype) for number in numbers
        ]
        return evaluate(equation, operands, list(avals), mode)

    return jax.jit(run)
