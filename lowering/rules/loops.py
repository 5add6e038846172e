"""Rules of loops with an unknown trip count: the host starts the program of the body again while a flag holds.

A loop whose trip count follows from constants is a scan. A scan that needs the host between turns, and branches that
may only run if they are chosen, become such loops too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lpu_jax.lowering import _jax_compat as compat
from lpu_jax.lowering.analysis.range import ANYTHING, Range, range_of_array
from lpu_jax.lowering.emit import as_operand, held
from lpu_jax.lowering.host import host_constant
from lpu_jax.lowering.precision import Argument
from lpu_jax.lowering.registry import NeedsHostError, RuleContext, Value, register_lowering
from lpu_jax.runtime.errors import trip_count_error
from lpu_jax.runtime.ops import Aval, While

FLAG = Aval((), "bool")
_MAX_EMBEDDED_ELEMENTS = 65_536
"""Known constants of a loop up to this size go into its body."""


@register_lowering("while", higher_order=True)
def _while(
    ctx: RuleContext, *values: Value, cond_jaxpr: Any, body_jaxpr: Any, cond_nconsts: int, body_nconsts: int
) -> Sequence[Value]:
    """A trip count that follows from constants makes a scan; else the host starts every turn and reads a flag, up to
    `max_trip_count` turns."""
    split = cond_nconsts + body_nconsts
    cond_consts, body_consts, init = values[:cond_nconsts], values[cond_nconsts:split], values[split:]
    turns = _known_turns(ctx, cond_jaxpr, body_jaxpr, cond_consts, body_consts, init)
    if turns is not None:
        from lpu_jax.lowering.rules.control import lower_scan  # which needs this module

        inner = dataclasses.replace(ctx, avals_in=ctx.avals_in[cond_nconsts:])
        return lower_scan(inner, [*body_consts, *init], body_jaxpr, turns, False, body_nconsts, len(init))
    is_vector = bool(_avals(cond_jaxpr, outputs=True)[0].shape)
    goes_on, turn = _function(cond_jaxpr), _function(body_jaxpr)

    def flag(consts: Sequence[Any], carry: Sequence[Any]) -> Any:
        (found,) = goes_on(*consts, *carry)
        return found.any() if is_vector else found

    def fun(*arguments: Any) -> list[Any]:
        first, second = arguments[:cond_nconsts], arguments[cond_nconsts:split]
        carry = arguments[split + 1 :]
        new = turn(*second, *carry)
        if is_vector:  # every element of a batch has a condition of its own
            (chosen,) = goes_on(*first, *carry)
            new = [_where(chosen, x, y) for x, y in zip(new, carry, strict=True)]
        return [flag(first, new), *new]

    inner = compat.open_jaxpr(cond_jaxpr)[0]
    start = ctx.interpreter.inline(
        ctx,
        jax.make_jaxpr(lambda *xs: [flag(xs[:cond_nconsts], xs[cond_nconsts:])])(*_shapes(inner.invars)),
        [*cond_consts, *init],
    )[0]
    consts_shapes = [*_shapes(inner.invars[:cond_nconsts]), *_body_shapes(body_jaxpr)[:body_nconsts]]
    carry_shapes = _body_shapes(body_jaxpr)[body_nconsts:]
    return hosted_loop(ctx, fun, [*cond_consts, *body_consts], consts_shapes, start, init, carry_shapes)


def _where(chosen: Any, new: Any, old: Any) -> Any:
    shape = (*chosen.shape, *(1,) * (new.ndim - chosen.ndim))
    return jnp.where(chosen.reshape(shape), new, old)


def hosted_loop(
    ctx: RuleContext,
    fun: Callable[..., list[Any]],
    consts: Sequence[Value],
    const_shapes: Sequence[Any],
    start: Value,
    init: Sequence[Value],
    carry_shapes: Sequence[Any],
    max_trip_count: int | None = None,
) -> list[Value]:
    """Appends a loop: while the flag holds, (flag, *carry) = fun(*consts, flag, *carry); returns the carry.

    Raises:
      NeedsHostError: it stands in a loop of the program.
    """
    if not isinstance(start, int) and not bool(start):
        return list(init)
    if ctx.depth > 0:
        raise NeedsHostError
    flag_shape = jax.ShapeDtypeStruct((), np.bool_)
    jaxpr = jax.make_jaxpr(fun)(*const_shapes, flag_shape, *carry_shapes)
    known = [v if _is_embedded(v) else None for v in consts]
    carried: list[Value] = [start, *init]
    weights = [weight_of(ctx, v) for v in consts]
    ranges = [_range_of(ctx, v, _graph_aval(s)) for v, s in zip(consts, const_shapes, strict=True)]
    body = ctx.interpreter.body(
        ctx,
        jaxpr,
        [*known, *(None for _ in carried)],
        [*weights, *(None for _ in carried)],
        [*ranges, *(ANYTHING for _ in carried)],
        is_hosted=True,
    )
    kept = [(v, s) for v, k, s in zip(consts, known, const_shapes, strict=True) if k is None]
    avals = [FLAG, *map(_graph_aval, carry_shapes)]
    operands = [_as_id(ctx, v, _graph_aval(s)) for v, s in kept]
    operands += [_as_id(ctx, v, aval) for v, aval in zip(carried, avals, strict=True)]
    limit = ctx.interpreter.max_trip_count if max_trip_count is None else max_trip_count
    op = While(body, len(kept), len(avals), limit, _loop_name(ctx))
    ctx.builder.source, ctx.builder.name = ctx.source, ctx.name
    results = ctx.builder.add(op, tuple(operands), *avals)
    for result, aval in zip(results, avals, strict=True):
        if not aval.is_on_host:
            ctx.ranges.set_by_dtype(result, aval)
    return list(results[1:])


def weight_of(ctx: RuleContext, value: Value) -> Argument | None:
    """The resident argument that a loop's operand is made of; None if it changes between calls."""
    return ctx.argument(value) if isinstance(value, int) else Argument("constant", is_whole=False)


def hosted_scan(
    ctx: RuleContext, values: Sequence[Value], jaxpr: Any, length: int, reverse: bool, num_consts: int, num_carry: int
) -> list[Value]:
    """A scan whose turns the host starts, because something in its body needs the host too."""
    step = _function(jaxpr)
    given, made = _body_shapes(jaxpr), _shapes(compat.open_jaxpr(jaxpr)[0].outvars)
    num_xs = len(values) - num_consts - num_carry
    xs_shapes = [jax.ShapeDtypeStruct((length, *s.shape), s.dtype) for s in given[num_consts + num_carry :]]
    ys_shapes = [jax.ShapeDtypeStruct((length, *s.shape), s.dtype) for s in made[num_carry:]]

    def fun(*arguments: Any) -> list[Any]:
        consts, xs = arguments[:num_consts], arguments[num_consts : num_consts + num_xs]
        turn, *state = arguments[num_consts + num_xs + 1 :]
        carry, ys = state[:num_carry], state[num_carry:]
        place = length - 1 - turn if reverse else turn
        rows = [lax.dynamic_index_in_dim(x, place, 0, keepdims=False) for x in xs]
        results = step(*consts, *carry, *rows)
        ys = [lax.dynamic_update_index_in_dim(y, row, place, 0) for y, row in zip(ys, results[num_carry:], strict=True)]
        return [turn + 1 < length, turn + 1, *results[:num_carry], *ys]

    carry_shapes = [jax.ShapeDtypeStruct((), np.int32), *given[num_consts : num_consts + num_carry], *ys_shapes]
    init = [np.zeros((), np.int32), *values[num_consts : num_consts + num_carry], *map(_zeros, ys_shapes)]
    consts = [*values[:num_consts], *values[num_consts + num_carry :]]
    start = np.array(length > 0)
    results = hosted_loop(ctx, fun, consts, [*given[:num_consts], *xs_shapes], start, init, carry_shapes, length)
    return results[1:]


def hosted_branches(ctx: RuleContext, index: int, operands: Sequence[Value], branches: Sequence[Any]) -> list[Value]:
    """Every branch is a loop of one turn if it is chosen, else of none."""
    last = len(branches) - 1
    index = ctx.elementwise("imin", index, ctx.immediate(last, "int32"))
    index = ctx.elementwise("imax", index, ctx.immediate(0, "int32"))
    made = _shapes(compat.open_jaxpr(branches[0])[0].outvars)
    shapes = _body_shapes(branches[0])
    results: list[Value] = [_zeros(s) for s in made]
    for number, branch in enumerate(branches):
        call = _function(branch)

        def fun(*arguments: Any, call: Callable[..., list[Any]] = call) -> list[Any]:
            return [jnp.zeros((), np.bool_), *call(*arguments[: len(shapes)])]

        start = ctx.elementwise("ieq", index, ctx.immediate(number, "int32"))
        results = hosted_loop(ctx, fun, operands, shapes, start, results, made, 1)
    return results


def must_be_chosen(jaxpr: Any) -> bool:
    """Whether a branch may only run if it is chosen: it has effects, or a loop that may not end otherwise."""
    inner, _ = compat.open_jaxpr(jaxpr)
    if inner.effects:
        return True
    return any(
        eqn.primitive.name == "while" or any(must_be_chosen(j) for j in compat.jaxprs_of(eqn)) for eqn in inner.eqns
    )


def _known_turns(
    ctx: RuleContext,
    cond_jaxpr: Any,
    body_jaxpr: Any,
    cond_consts: Sequence[Value],
    body_consts: Sequence[Value],
    init: Sequence[Value],
) -> int | None:
    """The trip count if what the condition depends on is known, None otherwise."""
    cond, body = compat.open_jaxpr(cond_jaxpr)[0], compat.open_jaxpr(body_jaxpr)[0]
    needed = _depends(cond, [0])
    positions = {i - len(cond_consts) for i in needed if i >= len(cond_consts)}
    constants = {("cond", i) for i in needed if i < len(cond_consts)}
    while True:
        found = _depends(body, sorted(positions))
        constants |= {("body", i) for i in found if i < len(body_consts)}
        more = positions | {i - len(body_consts) for i in found if i >= len(body_consts)}
        if more == positions:
            break
        positions = more
    given = [init[i] for i in positions]
    given += [(cond_consts if kind == "cond" else body_consts)[i] for kind, i in sorted(constants)]
    if any(isinstance(v, int) for v in given) or cond.outvars[0].aval.shape or cond.effects or body.effects:
        return None
    return _counted(ctx, cond_jaxpr, body_jaxpr, cond_consts, body_consts, init, sorted(positions))


def _counted(
    ctx: RuleContext,
    cond_jaxpr: Any,
    body_jaxpr: Any,
    cond_consts: Sequence[Value],
    body_consts: Sequence[Value],
    init: Sequence[Value],
    positions: Sequence[int],
) -> int:
    """Runs the known part of a loop, on the host, while lowering."""
    goes_on, turn, limit = _function(cond_jaxpr), _function(body_jaxpr), ctx.interpreter.max_trip_count
    consts_of = [
        [_or_zeros(v, s) for v, s in zip(values, shapes, strict=False)]
        for values, shapes in (
            (cond_consts, _shapes(compat.open_jaxpr(cond_jaxpr)[0].invars)),
            (body_consts, _body_shapes(body_jaxpr)),
        )
    ]
    full = [_or_zeros(v, s) for v, s in zip(init, _body_shapes(body_jaxpr)[len(body_consts) :], strict=True)]

    def whole(state: Sequence[Any]) -> list[Any]:
        merged = [x() for x in full]
        for position, value in zip(positions, state, strict=True):
            merged[position] = value
        return merged

    def condition(state: Any) -> Any:
        return goes_on(*(x() for x in consts_of[0]), *whole(state[1]))[0] & (state[0] <= limit)

    def step(state: Any) -> Any:
        new = turn(*(x() for x in consts_of[1]), *whole(state[1]))
        return state[0] + 1, [new[i] for i in positions]

    with jax.ensure_compile_time_eval():
        start = (jnp.zeros((), np.int32), [full[i]() for i in positions])
        turns = int(jax.jit(lambda s: lax.while_loop(condition, step, s))(start)[0])
    if turns > limit:
        raise trip_count_error(_loop_name(ctx), limit)
    return turns


def _or_zeros(value: Value, shape: Any) -> Callable[[], Any]:
    """What is known, or zeros where it does not matter."""
    if isinstance(value, int):
        return lambda: jnp.zeros(shape.shape, shape.dtype)
    return lambda: jnp.asarray(value, shape.dtype)


def _depends(jaxpr: Any, outputs: Sequence[int]) -> set[int]:
    """Positions of the inputs that some outputs depend on."""
    needed = {jaxpr.outvars[i] for i in outputs if not compat.is_literal(jaxpr.outvars[i])}
    for eqn in reversed(jaxpr.eqns):
        if any(v in needed for v in eqn.outvars):
            needed.update(v for v in eqn.invars if not compat.is_literal(v))
    return {i for i, v in enumerate(jaxpr.invars) if v in needed}


def _loop_name(ctx: RuleContext) -> str:
    where = f" at {ctx.source}" if ctx.source else ""
    return f"{ctx.name or ctx.primitive}{where}"


def _function(jaxpr: Any) -> Callable[..., list[Any]]:
    return compat.function_of(*compat.open_jaxpr(jaxpr))  # type: ignore[no-any-return]


def _avals(jaxpr: Any, *, outputs: bool) -> list[Any]:
    inner = compat.open_jaxpr(jaxpr)[0]
    return [v.aval for v in (inner.outvars if outputs else inner.invars)]


def _shapes(variables: Sequence[Any]) -> list[Any]:
    return [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in variables]


def _body_shapes(jaxpr: Any) -> list[Any]:
    return _shapes(compat.open_jaxpr(jaxpr)[0].invars)


def _graph_aval(shape: Any) -> Aval:
    if compat.is_extended_dtype(shape.dtype):
        return Aval((*shape.shape, *compat.key_shape(shape.dtype)), "int32")
    return held(Aval(tuple(shape.shape), str(shape.dtype)))


def _range_of(ctx: RuleContext, value: Value, aval: Aval) -> Range:
    if aval.is_on_host:
        return ANYTHING
    return ctx.ranges.of(value) if isinstance(value, int) else range_of_array(value)


def _zeros(shape: Any) -> Value:
    if compat.is_extended_dtype(shape.dtype):
        return np.zeros((*shape.shape, *compat.key_shape(shape.dtype)), np.uint32)
    return np.broadcast_to(np.zeros((), shape.dtype), shape.shape)


def _as_id(ctx: RuleContext, value: Value, aval: Aval) -> int:
    if aval.is_on_host and not isinstance(value, int):
        return host_constant(ctx, np.asarray(value))
    return value if isinstance(value, int) else ctx.value(as_operand(ctx, value), aval)


def _is_embedded(value: Value) -> bool:
    return not isinstance(value, int) and (value.size <= _MAX_EMBEDDED_ELEMENTS or not any(value.strides))
