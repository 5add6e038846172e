"""Lowering rules, keyed by the name of the primitive.

    @register_lowering("my_primitive")
    def _my_primitive(ctx: RuleContext, x: Operand, *, factor: float) -> Sequence[Operand]:
        return [ctx.elementwise("mul", x, ctx.immediate(factor))]

Operands come by position, parameters by keyword and all named: a parameter that JAX adds later is an error, never
ignored.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from lpu_jax.lowering.analysis.range import Range
from lpu_jax.lowering.emit import Emitter, Operand, immediate
from lpu_jax.lowering.ir import Graph
from lpu_jax.lowering.precision import Argument, Formats, Ordering, Precision, Site
from lpu_jax.runtime.errors import UnsupportedPrimitiveError
from lpu_jax.runtime.ops import Aval, Elementwise, Immediate

Rule = Callable[..., Sequence[Any]]
Value = Any
"""What the interpreter holds for a variable: a value id, or a NumPy array if the content is known."""


class NeedsHostError(Exception):
    """Something inside a loop of the program needs the host between turns: the loop has to be started by it."""


class Interpreter(Protocol):
    """How a rule of a higher-order primitive lowers the jaxprs in its parameters."""

    @property
    def max_trip_count(self) -> int:
        """Turns that a loop may make whose trip count is known only at run time."""

    def inline(self, ctx: RuleContext, jaxpr: Any, values: Sequence[Value]) -> list[Value]:
        """Appends the equations of a jaxpr to the graph of the rule."""

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
        """A graph of its own; operands whose content is known are not arguments of it.

        weights: of every operand the resident argument that it is made of, or None; ranges: of every operand;
        is_hosted: the host starts every turn, so the body may hold loops and calls of the host.
        """

    def rewrite(
        self, ctx: RuleContext, fun: Callable[..., Any], operands: Sequence[Operand], avals: Sequence[Aval]
    ) -> list[Operand]:
        """Traces a function of simpler primitives on operands of these avals and appends its equations."""


@dataclasses.dataclass(frozen=True, eq=False)
class RuleContext(Emitter):
    """What a rule knows of its equation, and the means to build its lowering.

    avals_in, avals_out: shapes and dtypes; precision: who decides number formats; source: the user's line; name: the
    user's scopes within the innermost call or loop, scope: those around it; depth: number of enclosing loops; weights:
    names of resident inputs.
    """

    primitive: str
    avals_in: tuple[Aval, ...]
    avals_out: tuple[Aval, ...]
    precision: Precision
    source: str
    name: str
    scope: str
    weights: Mapping[int, Argument]
    depth: int
    interpreter: Interpreter

    @staticmethod
    def immediate(value: float | int, dtype: str = "float32") -> Immediate:
        """A constant of one value."""
        return immediate(value, dtype)

    @property
    def path(self) -> str:
        """All scopes of the equation and its primitive, `layer/mlp/gate/dot_general`."""
        return "/".join(part for part in (self.scope, self.name, self.primitive) if part)

    def argument(self, value: int) -> Argument | None:
        """The resident argument that a value is made of: the first of several; None if it depends on others."""
        if not self.magnitudes.is_resident(value):
            return None
        if value in self.weights:
            return self.weights[value]
        pending: list[Operand] = [value]
        seen: set[Operand] = set()
        while pending:
            operand = pending.pop()
            if operand in seen:
                continue
            seen.add(operand)
            if isinstance(operand, int) and operand in self.weights:
                return Argument(self.weights[operand].name, is_whole=False)
            definition = self.ranges.definition(operand)
            pending += reversed(definition.operands if definition is not None else ())
        return Argument("constant", is_whole=False)

    def _moves(self, value: int) -> tuple[tuple[int, ...], tuple[tuple[Ordering, tuple[int, ...]], ...] | None]:
        """(shape of the argument behind a value, moves from there to the value; None if it is computed)."""
        moves: list[tuple[Ordering, tuple[int, ...]]] = []
        while value not in self.weights:
            definition = self.ranges.definition(value)
            if definition is None or not isinstance(definition.operands[0], int):
                return (), None
            if isinstance(definition.op, Ordering):
                moves.append((definition.op, self.aval(value).shape))
            elif definition.op != Elementwise("identity"):
                return (), None
            value = definition.operands[0]
        is_whole = self.weights[value].is_whole
        return self.aval(value).shape, tuple(reversed(moves)) if is_whole else None

    def formats(self, lhs: int | None, rhs: int) -> Formats:
        """Formats of a product [B, M, K] x [B, K, N], or without a lhs of a lookup in a table."""
        argument = self.argument(rhs)
        weight_shape, moves = self._moves(rhs)
        site = Site(
            path=self.path,
            weight="" if argument is None else argument.name,
            lhs_shape=() if lhs is None else self.aval(lhs).shape,
            rhs_shape=self.aval(rhs).shape,
            weight_shape=weight_shape,
            moves=moves,
            source=self.source,
        )
        return self.precision.formats(site)

    def values(self, operands: Sequence[Operand]) -> list[int]:
        """Ids of all operands of the equation, constants included."""
        return [self.value(x, aval) for x, aval in zip(operands, self.avals_in, strict=True)]

    def rewrite(self, fun: Callable[..., Any], *operands: Operand, avals: Sequence[Aval] = ()) -> list[Operand]:
        """The equation as a JAX function of primitives that have rules; `avals` default to those of the equation."""
        return self.interpreter.rewrite(self, fun, operands, avals or self.avals_in)

    def unsupported(self, reason: str) -> UnsupportedPrimitiveError:
        """The error for an equation that has a rule but not for these parameters or shapes."""
        operands = ", ".join(str(aval) for aval in self.avals_in)
        where = f" at {self.source}" if self.source else ""
        return UnsupportedPrimitiveError(
            f"no LPU lowering for '{self.primitive}' ({operands}){where}: {reason}. "
            f"Rewrite that line, register a rule with lpu_jax.register_lowering({self.primitive!r}, override=True), "
            'or pass fallback="host" to lpu() to have the host compute it.'
        )

    def require(self, **parameters: tuple[Any, Sequence[Any]]) -> None:
        """Refuses parameter values without an implementation; name=(value, allowed values)."""
        for parameter, (given, allowed) in parameters.items():
            if not any(given is x or given == x for x in allowed):
                raise self.unsupported(f"{parameter}={given!r} is not implemented, only {list(allowed)}")


@dataclasses.dataclass(frozen=True, slots=True)
class Registration:
    """A rule; a higher-order rule gets the interpreter's values instead of operands."""

    rule: Rule
    is_higher_order: bool = False

    def unknown_parameters(self, params: Mapping[str, Any]) -> list[str]:
        """Parameters of an equation that the rule does not name."""
        known = inspect.signature(self.rule).parameters
        takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
        return [] if takes_all else sorted(set(params) - set(known))


_RULES: dict[str, Registration] = {}


def primitive_name(primitive: Any) -> str:
    """Name of a primitive object or the name itself."""
    return primitive if isinstance(primitive, str) else str(primitive.name)


def register_lowering(primitive: Any, *, override: bool = False, higher_order: bool = False) -> Callable[[Rule], Rule]:
    """Decorator that registers a lowering rule.

    Args:
      primitive: a JAX primitive or its name.
      override: replace the rule that is there.
      higher_order: the rule takes the interpreter's values and lowers jaxprs in its parameters.

    Raises:
      ValueError: the primitive has a rule and `override` is False.
    """
    name = primitive_name(primitive)

    def register(rule: Rule) -> Rule:
        if name in _RULES and not override:
            raise ValueError(f"primitive {name!r} has a lowering rule already; pass override=True to replace it")
        _RULES[name] = Registration(rule, higher_order)
        return rule

    return register


def find_rule(name: str) -> Registration | None:
    """The rule of a primitive, None if there is none."""
    return _RULES.get(name)


def unregister_lowering(primitive: Any) -> None:
    """Removes a rule; for tests of user rules."""
    _RULES.pop(primitive_name(primitive), None)


def supported_primitives() -> tuple[str, ...]:
    """Names of all primitives with a rule, sorted."""
    return tuple(sorted(_RULES))
