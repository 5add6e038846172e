"""Magnitudes: upper bounds of |x| that are known before a program runs.

  magnitude ::= sum of terms;  term ::= number * product of factors
  factor    ::= max |v|  |  max_n norm(v[..., n])     of a resident value v

A resident value depends on resident arguments only, so a factor is computed when those are loaded. A bound holds
wherever x is finite; what is infinite or NaN stays so under a scale by a power of two. In: the equations in the order
in which they are appended. Out: a magnitude for every value for which one is known.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from lpu_jax.lowering.analysis.range import RangeAnalysis
from lpu_jax.runtime.ops import (
    Aval,
    Broadcast,
    Concatenate,
    Elementwise,
    Equation,
    GatherRows,
    Immediate,
    LaneReduce,
    Pad,
    Reshape,
    Reverse,
    ScatterRows,
    Slice,
    Transpose,
)

_LARGEST = 2.0**100
"""Larger numbers count as unknown, so that products of factors stay within float32."""
_MAX_TERMS = 8
"""Beyond so many terms a magnitude counts as unknown."""
_MAX_FP16 = 65504.0
_ROUNDING = 1 + 2.0**-10
"""More than a rounding to float16, and than a few thousand roundings to float32."""
_MIN_EPSILON = 2.0**-60
_MOVES = Reshape | Transpose | Slice | Broadcast | Reverse
_SAME_MAGNITUDE = frozenset(("identity", "neg", "abs", "to_float", "mask", "mask_bar"))
_AT_MOST_ONE_MORE = frozenset(("floor", "ceil", "round"))
_AT_MOST_THE_SUM = frozenset(("add", "sub", "max", "min"))
_MASKS = {Elementwise("mask"), Elementwise("mask_bar")}
_MAX_PRODUCTS = 2
"""A bound through more matrix products is too loose to scale by: each may lose ten bits against typical values."""


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Factor:
    """max |v| of a resident value, or with `is_norm` the largest Euclidean norm of its columns (over axis -2)."""

    value: int
    is_norm: bool = False


Term = tuple[float, tuple[Factor, ...]]


@dataclasses.dataclass(frozen=True, slots=True)
class Magnitude:
    """sum over terms of number * product of factors; num_products: matrix products behind it, factors of one added."""

    terms: tuple[Term, ...]
    num_products: int = 0

    @property
    def number(self) -> float | None:
        """The bound, if it needs no resident value."""
        if len(self.terms) != 1 or self.terms[0][1]:
            return None
        return self.terms[0][0]


def constant(number: float) -> Magnitude:
    """A bound that is a number."""
    return Magnitude(((number, ()),))


def times(*magnitudes: Magnitude | None) -> Magnitude | None:
    """Bound of a product."""
    terms: list[Term] = [(1.0, ())]
    num_products = 0
    for magnitude in magnitudes:
        if magnitude is None:
            return None
        terms = [(a * b, tuple(sorted(v + w))) for a, v in terms for b, w in magnitude.terms]
        num_products += magnitude.num_products
    return _collected(terms, num_products)


def plus(*magnitudes: Magnitude | None) -> Magnitude | None:
    """Bound of a sum, or of a choice."""
    known = [magnitude for magnitude in magnitudes if magnitude is not None]
    if len(known) < len(magnitudes):
        return None
    return _collected([term for m in known for term in m.terms], max(m.num_products for m in known))


def _collected(terms: Sequence[Term], num_products: int) -> Magnitude | None:
    numbers: dict[tuple[Factor, ...], float] = {}
    for number, values in terms:
        numbers[values] = numbers.get(values, 0.0) + number
    too_large = len(numbers) > _MAX_TERMS or not all(number < _LARGEST for number in numbers.values())
    if too_large or num_products > _MAX_PRODUCTS:
        return None
    return Magnitude(tuple((number, values) for values, number in sorted(numbers.items())), num_products)


class MagnitudeAnalysis:
    """Magnitudes of the values of one growing graph."""

    def __init__(self, ranges: RangeAnalysis) -> None:
        """Builds on the ranges and definitions of the same graph."""
        self._ranges = ranges
        self._known: dict[int, Magnitude] = {}
        self._norms: dict[int, Magnitude] = {}  # Euclidean norms over the last axis
        self._last_axis: dict[int, int] = {}
        self._resident: set[int] = set()
        self._means: dict[int, tuple[Magnitude, frozenset[int]]] = {}

    def is_resident(self, value: int) -> bool:
        """Whether a value depends on resident arguments and constants only."""
        return value in self._resident

    def set_resident(self, value: int) -> None:
        """States that a value is a constant."""
        self._resident.add(value)

    def set_input(self, value: int, aval: Aval, is_resident: bool) -> None:
        """States whether an input is resident; of others the dtype may say something."""
        self._last_axis[value] = aval.shape[-1] if aval.shape else 1
        if is_resident:
            self._resident.add(value)
        elif aval.dtype == "float16":
            self._known[value] = constant(_MAX_FP16)

    def of(self, operand: int | Immediate) -> Magnitude | None:
        """Magnitude of an operand; None if nothing is known."""
        static = self._ranges.of(operand).magnitude
        if static < math.inf:
            return constant(static)
        if isinstance(operand, Immediate):
            return None
        found = self._known.get(operand)
        return Magnitude(((1.0, (Factor(operand),)),)) if found is None and operand in self._resident else found

    def record(self, equation: Equation, avals: Sequence[Aval]) -> None:
        """Derives the magnitudes of an equation's results."""
        values = [v for v in equation.operands if isinstance(v, int)]
        if all(v in self._resident for v in values):
            self._resident.update(equation.results)
        (result, *_), (aval, *_) = equation.results, avals
        self._last_axis[result] = aval.shape[-1] if aval.shape else 1
        norm = self._norm(equation)
        if norm is not None:
            self._norms[result] = norm
        found = self._derive(equation)
        if found is None and aval.dtype == "float16" and result not in self._resident:
            found = constant(_MAX_FP16)
        if found is not None:
            self._known[result] = found
        mean = self._mean(equation)
        if mean is not None:
            self._means[result] = mean

    def _derive(self, equation: Equation) -> Magnitude | None:
        op, operands = equation.op, equation.operands
        if isinstance(op, _MOVES | GatherRows) or (isinstance(op, LaneReduce) and op.function != "sum"):
            return self.of(operands[0])
        if isinstance(op, Pad):
            return plus(self.of(operands[0]), constant(abs(op.value)))
        if isinstance(op, Concatenate):
            return plus(*(self.of(x) for x in operands))
        if isinstance(op, ScatterRows):
            return plus(*(self.of(x) for x in operands[:2]))
        if isinstance(op, Elementwise):
            return self._elementwise(op.function, operands)
        return None

    def record_product(self, result: int, size: int, lhs: int, rhs: int) -> None:
        """States what is known of a product of `size` terms."""
        product = Magnitude(((size * _ROUNDING, ()),), num_products=1)
        found = times(product, self.of(lhs), self.of(rhs))
        if rhs in self._resident and lhs in self._norms:
            norms = Magnitude(((_ROUNDING, (Factor(rhs, is_norm=True),)),), num_products=1)
            found = times(self._norms[lhs], norms)
        if found is not None:
            self._known[result] = found
        value, weight = self.of(rhs), self._base(lhs)
        if value is not None and self._ranges.of(lhs).low >= 0:
            bound = times(value, constant(_ROUNDING))
            assert bound is not None
            self._means[result] = (bound, frozenset((weight,)))

    def _elementwise(self, function: str, operands: tuple[int | Immediate, ...]) -> Magnitude | None:
        if function in _SAME_MAGNITUDE:
            return self.of(operands[0])
        if function in _AT_MOST_ONE_MORE:
            return plus(self.of(operands[0]), constant(1.0))
        if function == "or" and self._is_choice(operands):
            return plus(*(self.of(x) for x in operands))
        if function == "to_fp16":
            return times(self.of(operands[0]), constant(_ROUNDING))
        if function in _AT_MOST_THE_SUM:
            return plus(*(self.of(x) for x in operands))
        if function == "mul":
            return self._normalised(operands) or times(*(self.of(x) for x in operands))
        if function == "div":
            return self._weighted_mean(operands)
        return None

    def _is_choice(self, operands: tuple[int | Immediate, ...]) -> bool:
        """or(mask(x, p), mask_bar(y, p)) is x or y; any other `or` makes new bits."""
        first, second = (self._ranges.definition(x) for x in operands)
        if first is None or second is None or {first.op, second.op} != _MASKS:
            return False
        return first.operands[1] == second.operands[1]

    def _norm(self, equation: Equation) -> Magnitude | None:
        """Bound of the norm over the last axis: that of a normalised value, scaled and rounded."""
        op, operands = equation.op, equation.operands
        first = operands[0] if isinstance(operands[0], int) else -1
        if isinstance(op, Reshape) and self._last_axis.get(first) == self._last_axis[equation.results[0]]:
            return self._norms.get(first)
        if op in (Elementwise("to_fp16"), Elementwise("identity")):
            return times(self._norms.get(first), constant(_ROUNDING))
        if op == Elementwise("mul"):
            for x, y in (operands, operands[::-1]):
                if isinstance(x, int) and x in self._norms:
                    return times(self._norms[x], self.of(y))
            return self._normalised(operands)
        return None

    # x * rsqrt(mean(x * x) + epsilon) -------------------------------------------------------------------------------

    def _normalised(self, operands: tuple[int | Immediate, ...]) -> Magnitude | None:
        """|x * rsqrt(c * sum(x * x) + epsilon) * ...| <= c ** -0.5 * ..."""
        factors = self._factors(operands, 3)
        for i, factor in enumerate(factors):
            normed, bound = self._inverse_norm(factor)
            if normed is not None and normed in factors:
                rest = [x for k, x in enumerate(factors) if k not in (i, factors.index(normed))]
                return times(constant(bound * _ROUNDING), *(self.of(x) for x in rest))
        return None

    def _factors(self, operands: tuple[int | Immediate, ...], depth: int) -> list[int | Immediate]:
        found: list[int | Immediate] = []
        for operand in operands:
            definition = self._ranges.definition(operand)
            if depth and definition is not None and definition.op == Elementwise("mul"):
                found += self._factors(definition.operands, depth - 1)
            else:
                found.append(operand)
        return found

    def _inverse_norm(self, factor: int | Immediate) -> tuple[int | None, float]:
        """(x, c ** -0.5) if the factor is rsqrt(c * sum(x * x) + epsilon)."""
        nothing = (None, math.inf)
        root = self._definition(factor)
        shifted = self._definition(root.operands[0]) if root and root.op == Elementwise("rsqrt") else None
        if shifted is None or shifted.op != Elementwise("add"):
            return nothing
        epsilon, mean = _split_immediate(shifted.operands)
        scaled = self._definition(mean) if mean is not None else None
        if epsilon is None or epsilon < _MIN_EPSILON or scaled is None or not isinstance(scaled.op, Elementwise):
            return nothing
        number, total = _split_immediate(scaled.operands)
        if number is None or number <= 0 or scaled.op.function not in ("mul", "div") or total != scaled.operands[0]:
            return nothing
        share = number if scaled.op.function == "mul" else 1 / number
        reduction = self._definition(total)
        square = self._definition(reduction.operands[0]) if reduction and reduction.op == LaneReduce("sum") else None
        if square is None or square.op != Elementwise("mul") or square.operands[0] != square.operands[1]:
            return nothing
        x = square.operands[0]
        return (x, share**-0.5) if isinstance(x, int) else nothing

    def _definition(self, operand: int | Immediate) -> Equation | None:
        """The equation behind a value, seen through moves that keep or repeat every element."""
        definition = self._ranges.definition(operand)
        while definition is not None and isinstance(definition.op, Reshape | Broadcast):
            definition = self._ranges.definition(definition.operands[0])
        return definition

    # (sum_k w_k v_k) / (sum_k w_k) ----------------------------------------------------------------------------------

    def _base(self, value: int) -> int:
        """The value behind moves that keep or repeat elements, and behind a rounding to float16."""
        definition = self._ranges.definition(value)
        seen = isinstance(definition.op, Reshape | Broadcast) if definition else False
        if definition is not None and (seen or definition.op in (Elementwise("to_fp16"), Elementwise("identity"))):
            (operand,) = definition.operands
            return self._base(operand) if isinstance(operand, int) else value
        return value

    def _mean(self, equation: Equation) -> tuple[Magnitude, frozenset[int]] | None:
        """(bound, weights) if |result| <= bound * sum of the weights, every one of them >= 0."""
        op, operands = equation.op, equation.operands
        if isinstance(op, Reshape | Broadcast) and isinstance(operands[0], int):
            return self._means.get(operands[0])
        if op == Elementwise("mul"):
            for weight, value in (operands, operands[::-1]):
                bound = self.of(value)
                if isinstance(weight, int) and bound is not None and self._ranges.of(weight).low >= 0:
                    return bound, frozenset((self._base(weight),))
        if op == Elementwise("add"):
            parts = [self._means.get(x) if isinstance(x, int) else None for x in operands]
            if parts[0] is not None and parts[1] is not None and not parts[0][1] & parts[1][1]:
                bound = plus(parts[0][0], parts[1][0])
                return None if bound is None else (bound, parts[0][1] | parts[1][1])
        return None

    def _weights(self, operand: int | Immediate) -> frozenset[int] | None:
        """The values, each >= 0, of which an operand is the sum."""
        if not isinstance(operand, int):
            return None
        value = self._base(operand)
        definition = self._ranges.definition(value)
        if definition is not None and definition.op == LaneReduce("sum"):
            (terms,) = definition.operands
            return frozenset((self._base(terms),)) if isinstance(terms, int) else None
        if definition is not None and definition.op == Elementwise("add"):
            parts = [self._weights(x) for x in definition.operands]
            return parts[0] | parts[1] if parts[0] is not None and parts[1] is not None else None
        return frozenset((value,))

    def _weighted_mean(self, operands: tuple[int | Immediate, ...]) -> Magnitude | None:
        mean = self._means.get(operands[0]) if isinstance(operands[0], int) else None
        if mean is None or mean[1] != self._weights(operands[1]):
            return None
        return times(mean[0], constant(_ROUNDING))


def _split_immediate(operands: tuple[int | Immediate, ...]) -> tuple[float | None, int | None]:
    """(number, value) of two operands of which one is an immediate."""
    numbers = [x.value for x in operands if isinstance(x, Immediate)]
    values = [x for x in operands if isinstance(x, int)]
    return (float(numbers[0]), values[0]) if len(numbers) == len(values) == 1 else (None, None)
