"""jaxpr -> Graph: reads the trace equation by equation and applies the rule of each primitive.

In: a ClosedJaxpr. Out: a verified `Graph` without calls, whose constant expressions are constants and in which every
equation is needed. `split_resident` then takes apart what depends on resident arguments only.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lpu_jax.lowering import _jax_compat as compat
from lpu_jax.lowering.analysis.magnitude import MagnitudeAnalysis
from lpu_jax.lowering.analysis.range import ANYTHING, Range, RangeAnalysis
from lpu_jax.lowering.emit import MAX_FOLDED_ELEMENTS, TRACED_DTYPES, Emitter, Operand, as_operand, held
from lpu_jax.lowering.host import host_call, host_constant
from lpu_jax.lowering.ir import Graph, GraphBuilder
from lpu_jax.lowering.missing import HOST_PRIMITIVES, is_foldable_size, live_equations, raise_if_missing
from lpu_jax.lowering.precision import UNSPECIFIED, Argument, Precision, weight_path
from lpu_jax.lowering.prune import remove_dead_equations
from lpu_jax.lowering.registry import RuleContext, Value, find_rule
from lpu_jax.lowering.rules.random_bits import KEY_MOVES, moved_keys
from lpu_jax.runtime.errors import UnsupportedInputError, UnsupportedPrimitiveError
from lpu_jax.runtime.ops import Aval, Immediate
from lpu_jax.runtime.progress import progress

_FAMILIES = (
    "bit_generators",
    "bits",
    "blocks",
    "control",
    "convolution",
    "cumulative",
    "decomposed",
    "elementwise",
    "functions",
    "indexing",
    "linear_algebra",
    "loops",
    "matmul",
    "moves",
    "random_bits",
    "reductions",
    "scattering",
    "sorting",
    "special",
    "windows",
)
for _family in _FAMILIES:
    importlib.import_module(f"lpu_jax.lowering.rules.{_family}")

FALLBACKS = (None, "host")
MAX_TRIP_COUNT = 1_000_000
"""Default limit of turns of a loop whose trip count is known only at run time."""
_WAY_OUT = {
    "float64": "Pass float32, or leave jax_enable_x64 off.",
    "int64": "Pass int32, or leave jax_enable_x64 off.",
    "uint64": "Pass int32.",
    "complex64": "Pass real and imaginary parts as two float32 arrays.",
    "complex128": "Pass real and imaginary parts as two float32 arrays.",
}


def lower_jaxpr(
    closed_jaxpr: Any,
    *,
    precision: Precision = UNSPECIFIED,
    resident: Collection[int] = (),
    names: Mapping[int, str] | None = None,
    fallback: str | None = None,
    max_trip_count: int = MAX_TRIP_COUNT,
) -> Graph:
    """Lowers a traced function.

    Args:
      closed_jaxpr: result of jax.make_jaxpr; its constants must be concrete.
      precision: decides the formats of products and tables. Unspecified, float32 operands of products go through
        float16 with exact power-of-two scales. A product's own precision HIGHEST means float32 operands in any case.
      resident: positions of arguments that are loaded once; what depends on them only may be computed at that time.
      names: paths of those arguments, by which `precision` knows them; by default what the jaxpr calls them.
      fallback: "host" has the host compute what the LPU has no lowering for; None refuses it.
      max_trip_count: turns after which a loop with an unknown trip count is given up.

    Returns:
      The graph; its inputs are those of the jaxpr in order.

    Raises:
      UnsupportedInputError: an argument has a dtype that the LPU does not have.
      UnsupportedPrimitiveError: lists all primitives without a rule.
      NumberFormatError: `precision` wants a format that a product or table cannot have.
      ValueError: unknown fallback.
    """
    if fallback not in FALLBACKS:
        raise ValueError(f"fallback={fallback!r} is unknown; use one of {FALLBACKS}")
    jaxpr, consts = compat.open_jaxpr(closed_jaxpr)
    avals = [_input_aval(jaxpr, i, fallback) for i in range(len(jaxpr.invars))]
    if fallback is None:
        raise_if_missing(closed_jaxpr)
    emitter = _new_emitter()
    arguments = [_input(emitter, aval, position in resident) for position, aval in enumerate(avals)]
    weights = {arguments[i]: Argument(_weight_name(jaxpr, i, names)) for i in resident}
    interpreter = _Interpreter(precision, weights, fallback=fallback, max_trip_count=max_trip_count)
    with progress("Lowering"):
        results = interpreter.run(emitter, 0, jaxpr, consts, arguments)
    outputs = [_output(emitter, r, v.aval, fallback) for r, v in zip(results, jaxpr.outvars, strict=True)]
    return remove_dead_equations(emitter.builder.build(tuple(outputs)))


def _weight_name(jaxpr: Any, index: int, names: Mapping[int, str] | None) -> str:
    return (names or {}).get(index) or weight_path(compat.argument_name(jaxpr, index))


def _new_emitter() -> Emitter:
    ranges = RangeAnalysis()
    return Emitter(GraphBuilder(), ranges, MagnitudeAnalysis(ranges), {})


def _input(emitter: Emitter, aval: Aval, is_resident: bool) -> int:
    value = emitter.builder.input(aval)
    if aval.is_on_host:
        return value
    emitter.ranges.set_by_dtype(value, aval)
    emitter.magnitudes.set_input(value, aval, is_resident)
    return value


def _output(emitter: Emitter, value: Value, aval: Any, fallback: str | None) -> int:
    if fallback == "host" and not isinstance(value, int) and str(value.dtype) not in TRACED_DTYPES:
        return host_constant(emitter, value)
    return emitter.value(to_operand(emitter, value), _aval_of(aval))


def _input_aval(jaxpr: Any, index: int, fallback: str | None) -> Aval:
    aval = jaxpr.invars[index].aval
    if compat.is_extended_dtype(aval.dtype):
        return held(_aval_of(aval))
    dtype, name = str(aval.dtype), compat.argument_name(jaxpr, index)
    if dtype not in TRACED_DTYPES and fallback is None:
        way_out = _WAY_OUT.get(dtype, f"Convert it to one of {', '.join(TRACED_DTYPES)}.")
        raise UnsupportedInputError(
            f"{name} has dtype {dtype}{list(aval.shape)}, which the LPU does not have. {way_out}"
        )
    if not all(isinstance(n, int) for n in aval.shape):
        raise UnsupportedInputError(
            f"{name} has the dynamic shape {aval.shape}; the LPU needs sizes known at compile time."
        )
    return held(Aval(tuple(aval.shape), dtype))


def to_operand(emitter: Emitter, value: Value) -> int | Immediate:
    """The operand of a value of the interpreter."""
    if isinstance(value, int):
        return value
    if not isinstance(value, np.ndarray) or str(value.dtype) not in TRACED_DTYPES:
        raise UnsupportedInputError(
            f"a constant has dtype {value.dtype}{list(value.shape)}, which the LPU does not have. "
            f"Convert it to one of {', '.join(TRACED_DTYPES)}."
        )
    return as_operand(emitter, value)


@dataclasses.dataclass(frozen=True, slots=True)
class _Interpreter:
    """The read/write/env loop."""

    precision: Precision
    weights: Mapping[int, Argument]
    scope: str = ""
    fallback: str | None = None
    max_trip_count: int = MAX_TRIP_COUNT
    source: str = ""
    name: str = ""

    def run(
        self, emitter: Emitter, depth: int, jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Value]
    ) -> list[Value]:
        """Values of the results of a jaxpr."""
        env: dict[Any, Value] = {}

        def read(atom: Any) -> Value:
            return _known(atom.val, atom.aval) if compat.is_literal(atom) else env[atom]

        for variable, const in zip(jaxpr.constvars, consts, strict=True):
            env[variable] = _known(const, variable.aval)
        env.update(zip(jaxpr.invars, arguments, strict=True))
        for eqn in live_equations(jaxpr):
            results = self._equation(emitter, depth, eqn, [read(atom) for atom in eqn.invars])
            env.update(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, emitter: Emitter, depth: int, eqn: Any, values: list[Value]) -> list[Value]:
        values = [_empty(v, atom.aval) for v, atom in zip(values, eqn.invars, strict=True)]
        if not eqn.effects and eqn.outvars and all(_is_empty(v.aval) for v in eqn.outvars):
            return [_empty(None, v.aval) for v in eqn.outvars]
        registration = find_rule(eqn.primitive.name)
        if (
            not (registration is not None and registration.is_higher_order)
            and (folded := _fold(eqn, values)) is not None
        ):
            return folded
        ctx = self._context(emitter, depth, eqn)
        ctx.builder.source, ctx.builder.name = ctx.source, ctx.name
        if eqn.primitive.name in HOST_PRIMITIVES:
            return host_call(ctx, eqn, values)
        try:
            return self._on_lpu(ctx, eqn, values)
        except (UnsupportedPrimitiveError, UnsupportedInputError):
            if self.fallback is None:
                raise
            return host_call(ctx, eqn, values)

    def _on_lpu(self, ctx: RuleContext, eqn: Any, values: list[Value]) -> list[Value]:
        registration = find_rule(eqn.primitive.name)
        emitter: Emitter = ctx
        if registration is None:
            raise ctx.unsupported("it has no rule")
        if eqn.primitive.name in KEY_MOVES and any(map(compat.is_key, (*eqn.invars, *eqn.outvars))):
            operands = [to_operand(emitter, value) for value in values]
            moved = moved_keys(ctx, eqn, operands)
            return [_to_value(r, aval) for r, aval in zip(moved, ctx.avals_out, strict=True)]
        if unknown := registration.unknown_parameters(eqn.params):
            raise ctx.unsupported(f"its rule does not know the parameters {unknown} of this JAX version")
        if registration.is_higher_order:
            return list(registration.rule(ctx, *values, **eqn.params))
        _check_operands(ctx)
        _check_results(ctx)
        operands = [to_operand(emitter, value) for value in values]
        results = registration.rule(ctx, *operands, **eqn.params)
        return [_to_value(r, aval) for r, aval in zip(results, ctx.avals_out, strict=True)]

    def _context(self, emitter: Emitter, depth: int, eqn: Any) -> RuleContext:
        return RuleContext(
            builder=emitter.builder,
            ranges=emitter.ranges,
            magnitudes=emitter.magnitudes,
            memo=emitter.memo,
            primitive=eqn.primitive.name,
            avals_in=tuple(_aval(v) for v in eqn.invars),
            avals_out=tuple(_aval(v) for v in eqn.outvars),
            precision=self.precision,
            source=self.source or compat.source_line(eqn),
            name=self.name or compat.name_stack(eqn),
            scope=self.scope,
            weights=self.weights,
            depth=depth,
            interpreter=self,
        )

    def inline(self, ctx: RuleContext, jaxpr: Any, values: Sequence[Value]) -> list[Value]:
        """Appends the equations of a jaxpr to the graph of the rule."""
        inner, consts = compat.open_jaxpr(jaxpr)
        return self._inside(ctx, self.weights).run(ctx, ctx.depth, inner, consts, values)

    def _inside(self, ctx: RuleContext, weights: Mapping[int, Argument]) -> _Interpreter:
        """JAX records scopes anew inside a call: those around it come in front."""
        scope = self.scope if self.name else "/".join(part for part in (self.scope, ctx.name) if part)
        return dataclasses.replace(self, scope=scope, weights=weights)

    def body(
        self,
        ctx: RuleContext,
        jaxpr: Any,
        known: Sequence[Value | None],
        weights: Sequence[Argument | None],
        ranges: Sequence[Range],
        *,
        is_hosted: bool = False,
    ) -> Graph:
        """A loop body as a graph of its own; operands whose content is known are not arguments of it."""
        inner, consts = compat.open_jaxpr(jaxpr)
        emitter = _new_emitter()
        arguments: list[Value] = []
        names: dict[int, Argument] = {}
        for v, value, weight, bounds in zip(inner.invars, known, weights, ranges, strict=True):
            arguments.append(_input(emitter, _graph_aval(v), weight is not None) if value is None else value)
            if value is None and weight is not None:
                names[arguments[-1]] = weight
            if value is None and bounds != ANYTHING:
                emitter.ranges.set(arguments[-1], bounds)
        depth = ctx.depth if is_hosted else ctx.depth + 1
        results = self._inside(ctx, names).run(emitter, depth, inner, consts, arguments)
        outputs = [_output(emitter, r, v.aval, self.fallback) for r, v in zip(results, inner.outvars, strict=True)]
        return remove_dead_equations(emitter.builder.build(tuple(outputs)))

    def rewrite(
        self, ctx: RuleContext, fun: Callable[..., Any], operands: Sequence[Operand], avals: Sequence[Aval]
    ) -> list[Operand]:
        """Traces a function of simpler primitives and appends its equations, which keep the user's line and scope."""
        shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals]
        values = [_to_value(x, aval) for x, aval in zip(operands, avals, strict=True)]
        inner, consts = compat.open_jaxpr(jax.make_jaxpr(fun)(*shapes))
        interpreter = dataclasses.replace(self, source=ctx.source, name=ctx.name)
        results = interpreter.run(ctx, ctx.depth, inner, consts, values)
        return [to_operand(ctx, value) for value in results]


def _is_empty(aval: Any) -> bool:
    return 0 in getattr(aval, "shape", ())


def _empty(value: Value, aval: Any) -> Value:
    """An array without elements is known, whatever it was made of."""
    if not _is_empty(aval):
        return value
    traced = _aval_of(aval)
    return np.zeros(traced.shape, traced.dtype)


def _aval(atom: Any) -> Aval:
    return _aval_of(atom.aval)


def _aval_of(aval: Any) -> Aval:
    """A random key is its words."""
    if compat.is_extended_dtype(getattr(aval, "dtype", np.float32)):
        return Aval((*aval.shape, *compat.key_shape(aval.dtype)), "uint32")
    return Aval(tuple(getattr(aval, "shape", ())), str(getattr(aval, "dtype", "token")))


def _graph_aval(atom: Any) -> Aval:
    return held(_aval(atom))


def _known(content: Any, aval: Any) -> Value:
    if compat.is_extended_dtype(aval.dtype):
        with jax.ensure_compile_time_eval():
            return np.asarray(compat.key_words(content))
    return np.asarray(content, dtype=aval.dtype)


def _to_value(result: Any, aval: Aval) -> Value:
    if not isinstance(result, Immediate):
        return int(result)
    return np.broadcast_to(np.array(result.value).astype(aval.dtype), aval.shape)


def _check_operands(ctx: RuleContext) -> None:
    for aval in ctx.avals_in:
        if aval.dtype not in TRACED_DTYPES:
            raise ctx.unsupported(f"only the host holds {aval.dtype}")


def _check_results(ctx: RuleContext) -> None:
    for aval in ctx.avals_out:
        if aval.dtype not in TRACED_DTYPES:
            raise UnsupportedInputError(
                f"{ctx.primitive} at {ctx.source or 'an unknown line'} makes {aval.dtype}{list(aval.shape)}, which the "
                f"LPU does not have. {_WAY_OUT.get(aval.dtype, '')} Graph dtypes are {', '.join(TRACED_DTYPES)}."
            )


def _fold(eqn: Any, values: list[Value]) -> list[Value] | None:
    """Results of an equation whose operands are known and small, None if it must run on the LPU."""
    if any(isinstance(value, int) for value in values) or eqn.effects:
        return None
    if any(map(compat.is_key, (*eqn.invars, *eqn.outvars))):
        return None
    if eqn.primitive.name == "broadcast_in_dim" and len(values) == 1 and values[0].size == 1:
        return [np.broadcast_to(values[0].reshape(()), eqn.params["shape"])]
    sizes = [math.prod(value.shape) for value in values]
    if not is_foldable_size(eqn) or max(sizes, default=0) > MAX_FOLDED_ELEMENTS:
        return None
    try:
        results = compat.evaluate(eqn, values)
    except (NotImplementedError, UnsupportedPrimitiveError):
        return None
    return [_known(r, v.aval) for r, v in zip(results, eqn.outvars, strict=True)]
