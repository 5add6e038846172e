"""Calls of the host: what the LPU cannot compute, and callbacks. The chip stops, the host computes, it goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lpu_jax.lowering import _jax_compat as compat
from lpu_jax.lowering.emit import CARRIED, TRACED_DTYPES, Emitter, held
from lpu_jax.lowering.registry import NeedsHostError, RuleContext, Value
from lpu_jax.runtime.ops import Aval, HostCall

TOKEN = Aval((), "token")


def host_call(ctx: RuleContext, eqn: Any, values: Sequence[Value]) -> list[Value]:
    """The results of an equation that the host computes.

    Raises:
      NeedsHostError: the equation is inside a loop of the program.
      UnsupportedPrimitiveError: its effects must stay in order.
    """
    if ctx.depth > 0:
        raise NeedsHostError
    effects = frozenset(eqn.effects)
    if any(map(compat.is_ordered, effects)):
        raise ctx.unsupported("ordered effects are not implemented; pass ordered=False")
    moving = [i for i, value in enumerate(values) if isinstance(value, int)]
    known = {i: np.asarray(value) for i, value in enumerate(values) if not isinstance(value, int)}
    avals_in, avals_out = [v.aval for v in eqn.invars], [v.aval for v in eqn.outvars]

    def fun(*arrays: Any) -> list[Any]:
        given = {**known, **dict(zip(moving, arrays, strict=True))}
        operands = [_as_jax(given[i], aval) for i, aval in enumerate(avals_in)]
        results = compat.bind(eqn, operands)
        return [_as_held(x) for x in results] if avals_out else [jnp.zeros((), np.bool_)]

    avals = [_held_aval(aval) for aval in ctx.avals_out] or [TOKEN]
    op = HostCall(fun=fun, name=eqn.primitive.name, effects=effects)
    results = ctx.builder.add(op, tuple(values[i] for i in moving), *avals)
    for result, aval in zip(results, avals, strict=True):
        if not aval.is_on_host:
            ctx.ranges.set_by_dtype(result, aval)
    return list(results[: len(avals_out)])


def host_constant(emitter: Emitter, array: np.ndarray) -> int:
    """A constant that only the host can hold."""
    return emitter.builder.constant(array)


def _held_aval(aval: Aval) -> Aval:
    return held(aval) if aval.dtype in TRACED_DTYPES else aval


def _as_jax(array: Any, aval: Any) -> Any:
    """A value as the equation takes it: keys of their words, unsigned numbers of their bits."""
    if compat.is_extended_dtype(aval.dtype):
        words = jnp.asarray(array).astype(np.uint32)
        return jax.random.wrap_key_data(words, impl=compat.key_implementation(aval.dtype))
    return jnp.asarray(array).astype(aval.dtype)


def _as_held(array: Any) -> Any:
    if compat.is_extended_dtype(array.dtype):
        array = jax.random.key_data(array)
    carrier = CARRIED.get(str(array.dtype))
    return array if carrier is None else array.astype(carrier)
