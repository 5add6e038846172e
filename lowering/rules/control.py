"""Rules of primitives that hold jaxprs: calls are inlined, a scan is a loop, a short scan in a scan is unrolled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lpu_jax.lowering import _jax_compat as compat
from lpu_jax.lowering.analysis.range import ANYTHING, Range, range_of_array
from lpu_jax.lowering.emit import Operand, as_operand, held
from lpu_jax.lowering.registry import NeedsHostError, RuleContext, Value, register_lowering
from lpu_jax.lowering.rules.loops import hosted_branches, hosted_scan, must_be_chosen, weight_of
from lpu_jax.runtime.ops import Aval, Immediate, Scan

MAX_UNROLLED_ITERATIONS = 64
_MAX_EMBEDDED_ELEMENTS = 65_536
"""Known constants of a loop up to this size go into its body."""

_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}
"""primitive: parameter that holds the jaxpr"""


def _call(ctx: RuleContext, *values: Value, **params: Any) -> Sequence[Value]:
    """The other parameters say how to differentiate, partition or compile the call, not what it computes."""
    return ctx.interpreter.inline(ctx, params[_CALLS[ctx.primitive]], values)


for _name in _CALLS:
    register_lowering(_name, higher_order=True)(_call)


def _as_id(ctx: RuleContext, value: Value, aval: Aval) -> int:
    return value if isinstance(value, int) else ctx.value(as_operand(ctx, value), aval)


@register_lowering("scan", higher_order=True)
def _scan(ctx: RuleContext, *values: Value, **params: Any) -> Sequence[Value]:
    """`unroll`, `_split_transpose` and the like are hints."""
    length, reverse = int(params["length"]), bool(params["reverse"])
    num_consts, num_carry = compat.scan_counts(params, len(values))
    return lower_scan(ctx, values, params["jaxpr"], length, reverse, num_consts, num_carry)


def lower_scan(
    ctx: RuleContext, values: Sequence[Value], jaxpr: Any, length: int, reverse: bool, num_consts: int, num_carry: int
) -> Sequence[Value]:
    """A scan as a loop of the program; unrolled inside another one; started by the host turn by turn if its body needs
    the host.

    Raises:
      NeedsHostError: too long to be unrolled.
    """
    if ctx.depth > 0 or length <= 1:
        if length > MAX_UNROLLED_ITERATIONS:
            raise NeedsHostError
        return _unrolled(ctx, values, jaxpr, length, reverse, num_consts, num_carry)
    try:
        if any(held(aval).is_on_host for aval in (*ctx.avals_in, *ctx.avals_out)):
            raise NeedsHostError
        return _loop(ctx, values, jaxpr, length, reverse, num_consts, num_carry)
    except NeedsHostError:
        return hosted_scan(ctx, values, jaxpr, length, reverse, num_consts, num_carry)


def _loop(
    ctx: RuleContext, values: Sequence[Value], jaxpr: Any, length: int, reverse: bool, num_consts: int, num_carry: int
) -> Sequence[Value]:
    known = [v if i < num_consts and _is_embedded(v) else None for i, v in enumerate(values)]
    is_carry = [num_consts <= i < num_consts + num_carry for i in range(len(values))]
    weights = [None if carried else weight_of(ctx, v) for v, carried in zip(values, is_carry, strict=True)]
    ranges = [ANYTHING if carried else _range_of(ctx, v) for v, carried in zip(values, is_carry, strict=True)]
    body = ctx.interpreter.body(ctx, jaxpr, known, weights, ranges)
    kept = [i for i, v in enumerate(known) if v is None]
    operands = [_as_id(ctx, values[i], ctx.avals_in[i]) for i in kept]
    op = Scan(
        body=body,
        num_iterations=length,
        num_consts=sum(i < num_consts for i in kept),
        num_carry=num_carry,
        reverse=reverse,
    )
    ctx.builder.source, ctx.builder.name = ctx.source, ctx.name
    results = ctx.builder.add(op, tuple(operands), *map(held, ctx.avals_out))
    for result, aval in zip(results, ctx.avals_out, strict=True):
        ctx.ranges.set_by_dtype(result, aval)
    return results


def _range_of(ctx: RuleContext, value: Value) -> Range:
    return ctx.ranges.of(value) if isinstance(value, int) else range_of_array(value)


@register_lowering("cond", higher_order=True)
def _cond(ctx: RuleContext, index: Value, *operands: Value, branches: Any, **params: Any) -> Sequence[Value]:
    """All branches run and a select keeps one, so the cycles are those of all of them; a known index runs one. Branches
    with effects or with loops of unknown length are started by the host, the chosen one alone."""
    del params  # hints to XLA
    last = len(branches) - 1
    if not isinstance(index, int):
        return ctx.interpreter.inline(ctx, branches[int(np.clip(int(index), 0, last))], operands)
    if any(map(must_be_chosen, branches)) or any(held(aval).is_on_host for aval in ctx.avals_out):
        return hosted_branches(ctx, index, operands, branches)
    results = [ctx.interpreter.inline(ctx, branch, operands) for branch in branches]
    return [
        _chosen(ctx, index, column, aval)
        for column, aval in zip(zip(*results, strict=True), ctx.avals_out, strict=True)
    ]


def _chosen(ctx: RuleContext, index: int, cases: Sequence[Value], aval: Aval) -> int:
    """The result of branch `index`, beyond the last one that of the last, below 0 that of the first."""
    result = as_operand_of(ctx, cases[0])
    for number, case in enumerate(cases[1:], start=1):
        is_reached = ctx.elementwise("ige", index, ctx.immediate(number, "int32"))
        result = ctx.select(ctx.broadcast_to(is_reached, aval.shape), as_operand_of(ctx, case), result, aval.dtype)
    return ctx.value(result, aval)


def as_operand_of(ctx: RuleContext, value: Value) -> Operand:
    """The operand of a value of the interpreter."""
    return value if isinstance(value, int) else as_operand(ctx, value)


def _is_embedded(value: Value) -> bool:
    return not isinstance(value, int) and (value.size <= _MAX_EMBEDDED_ELEMENTS or not any(value.strides))


def _unrolled(
    ctx: RuleContext,
    values: Sequence[Value],
    jaxpr: Any,
    length: int,
    reverse: bool,
    num_consts: int,
    num_carry: int,
) -> list[Value]:
    """The iterations one after the other."""
    consts, carry = list(values[:num_consts]), list(values[num_consts : num_consts + num_carry])
    xs, xs_avals = values[num_consts + num_carry :], ctx.avals_in[num_consts + num_carry :]
    rows: list[list[Value]] = [[] for _ in range(length)]
    for i in range(length)[::-1] if reverse else range(length):
        slices = [_row(ctx, x, aval, i) for x, aval in zip(xs, xs_avals, strict=True)]
        results = ctx.interpreter.inline(ctx, jaxpr, [*consts, *carry, *slices])
        carry, rows[i] = results[:num_carry], results[num_carry:]
    stacked: list[Any] = []
    for k, aval in enumerate(ctx.avals_out[num_carry:]):
        row_shape = (1, *aval.shape[1:])
        ids = [_as_id(ctx, row[k], Aval(aval.shape[1:], aval.dtype)) for row in rows]
        if not ids:
            stacked.append(np.zeros(aval.shape, aval.dtype))
            continue
        stacked.append(ctx.concatenate([ctx.reshape(x, row_shape) for x in ids], 0))
    return [*carry, *stacked]


def _row(ctx: RuleContext, x: Value, aval: Aval, index: int) -> Value:
    if not isinstance(x, int):
        return x[index]
    row = ctx.reshape(ctx.slice_axis(x, 0, index, index + 1), aval.shape[1:])
    assert not isinstance(row, Immediate)
    return row
