"""Range analysis: what is known of a value before it is computed.

In: equations in the order in which they are appended. Out: for every value an interval that holds each element that is
not NaN, and whether every element is exactly representable in float16.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

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


@dataclasses.dataclass(frozen=True, slots=True)
class Range:
    """low <= x <= high for every x that is not NaN; is_fp16: x survives a round trip through float16."""

    low: float = -math.inf
    high: float = math.inf
    is_fp16: bool = False

    @property
    def magnitude(self) -> float:
        """Upper bound of |x|."""
        return max(abs(self.low), abs(self.high))


ANYTHING = Range()
_BY_DTYPE = {
    "bool": Range(0, 1, True),
    "int8": Range(-128, 127, True),
    "int32": Range(-(2**31), 2**31 - 1),
    "float16": Range(is_fp16=True),
    "float8_e4m3fn": Range(-448, 448, True),
    "float8_e5m2": Range(is_fp16=True),
}
_UNIT_FUNCTIONS = {"tanh", "erf", "sin", "cos", "sign"}
_FLAG_FUNCTIONS = {"eq", "ne", "lt", "le", "gt", "ge", "ieq", "ine", "ilt", "ile", "igt", "ige", "is_finite"}
_MOVES = Reshape | Transpose | Slice | Broadcast | Reverse | GatherRows


def union(ranges: Sequence[Range]) -> Range:
    """The smallest range that holds all of them."""
    return Range(min(r.low for r in ranges), max(r.high for r in ranges), all(r.is_fp16 for r in ranges))


def range_of_array(array: np.ndarray) -> Range:
    """Range of known contents."""
    if array.size == 0 or array.dtype.kind not in "fib":
        return ANYTHING
    with np.errstate(all="ignore"):
        finite = array[~np.isnan(array)] if array.dtype.kind == "f" else array
        if finite.size == 0:
            return ANYTHING
        half = array.astype(np.float16)
        return Range(float(finite.min()), float(finite.max()), bool((half == array).all()))


def _product(a: float, b: float) -> float:
    return 0.0 if a == 0 or b == 0 else a * b


def _multiply(x: Range, y: Range) -> Range:
    corners = [_product(a, b) for a in (x.low, x.high) for b in (y.low, y.high)]
    return Range(min(corners), max(corners))


def _divide(x: Range, y: Range) -> Range:
    if y.low <= 0:
        return ANYTHING
    return _multiply(x, Range(1 / y.high if y.high < math.inf else 0.0, 1 / y.low))


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def _absolute(x: Range) -> Range:
    low = 0.0 if x.low <= 0 <= x.high else min(abs(x.low), abs(x.high))
    return Range(low, x.magnitude, x.is_fp16)


def _difference(x: float, y: float) -> float:
    return -math.inf if math.isnan(x - y) else x - y


_UNARY: dict[str, Callable[[Range], Range]] = {
    "identity": lambda x: x,
    "to_float": lambda x: x,
    "to_int": lambda x: Range(math.floor(x.low) if x.low > -math.inf else x.low, x.high),
    "neg": lambda x: Range(-x.high, -x.low, x.is_fp16),
    "ineg": lambda x: Range(-x.high, -x.low, x.is_fp16),
    "abs": _absolute,
    "iabs": _absolute,
    "exp": lambda x: Range(_exp(x.low) if x.low > -math.inf else 0.0, _exp(x.high)),
    "sqrt": lambda x: Range(0.0, math.sqrt(x.high) if x.high > 0 else 0.0),
    "rsqrt": lambda x: Range(0.0, 1 / math.sqrt(x.low) if x.low > 0 else math.inf),
}
_BINARY: dict[str, Callable[[Range, Range], Range]] = {
    "add": lambda x, y: Range(_difference(x.low, -y.low), -_difference(-x.high, y.high)),
    "sub": lambda x, y: Range(_difference(x.low, y.high), -_difference(y.low, x.high)),
    "mul": _multiply,
    "imul": _multiply,
    "div": _divide,
    "max": lambda x, y: Range(max(x.low, y.low), max(x.high, y.high), x.is_fp16 and y.is_fp16),
    "min": lambda x, y: Range(min(x.low, y.low), min(x.high, y.high), x.is_fp16 and y.is_fp16),
    "mask": lambda x, _: union([x, Range(0, 0, True)]),
    "mask_bar": lambda x, _: union([x, Range(0, 0, True)]),
}
_SAME_AS_FLOAT = {"iadd": "add", "isub": "sub", "imax": "max", "imin": "min"}
_INTEGER_ARITHMETIC = tuple(Elementwise(name) for name in ("iadd", "isub", "imul", "imax", "imin", "ineg", "iabs"))


class RangeAnalysis:
    """Ranges of the values of one growing graph."""

    def __init__(self) -> None:
        self._ranges: dict[int, Range] = {}
        self._definitions: dict[int, Equation] = {}

    def of(self, operand: int | Immediate) -> Range:
        """Range of an operand."""
        if isinstance(operand, Immediate):
            return range_of_array(np.array(operand.value, operand.dtype))
        return self._ranges.get(operand, ANYTHING)

    def set(self, value: int, known: Range) -> None:
        """States the range of an input or constant."""
        self._ranges[value] = known

    def set_by_dtype(self, value: int, aval: Aval) -> None:
        """States what the dtype alone says of a value."""
        self._ranges[value] = _BY_DTYPE.get(aval.dtype, ANYTHING)

    def record(self, equation: Equation, avals: Sequence[Aval]) -> None:
        """Derives the ranges of an equation's results."""
        for result, aval in zip(equation.results, avals, strict=True):
            self._definitions[result] = equation
            by_dtype = _BY_DTYPE.get(aval.dtype, ANYTHING)
            derived = self._derive(equation)
            if aval.dtype in ("float32", "float16") and equation.op in _INTEGER_ARITHMETIC:
                derived = ANYTHING  # the bits of an integer, read as a float
            low, high = max(derived.low, by_dtype.low), min(derived.high, by_dtype.high)
            if aval.dtype == "int32" and (derived.low < by_dtype.low or derived.high > by_dtype.high):
                low, high = by_dtype.low, by_dtype.high  # wraps around
            self._ranges[result] = Range(low, high, derived.is_fp16 or by_dtype.is_fp16)

    def _derive(self, equation: Equation) -> Range:
        op, operands = equation.op, equation.operands
        if isinstance(op, _MOVES):
            return self.of(operands[0])
        if isinstance(op, Pad):
            return union([self.of(operands[0]), range_of_array(np.array(op.value))])
        if isinstance(op, Concatenate):
            return union([self.of(x) for x in operands])
        if isinstance(op, ScatterRows):
            return union([self.of(x) for x in operands[:2]])
        if isinstance(op, LaneReduce):
            return self.of(operands[0]) if op.function in ("max", "min", "imax", "imin") else self._sum(equation)
        return self._elementwise(op.function, operands) if isinstance(op, Elementwise) else ANYTHING

    def _sum(self, equation: Equation) -> Range:
        """Sums of terms >= 0 stay >= 0; the number of lanes is not known here."""
        op, terms = equation.op, self.of(equation.operands[0])
        is_sum = isinstance(op, LaneReduce) and op.function == "sum"
        return Range(0.0 if terms.low >= 0 else -math.inf, 0.0 if terms.high <= 0 else math.inf) if is_sum else ANYTHING

    def _elementwise(self, function: str, operands: tuple[int | Immediate, ...]) -> Range:
        ranges = [self.of(x) for x in operands]
        if function in _UNIT_FUNCTIONS:
            return Range(-1, 1)
        if function in _FLAG_FUNCTIONS:
            return Range(0, 1, True)
        if function == "to_fp16":
            return dataclasses.replace(ranges[0], is_fp16=True)
        if function in _UNARY:
            return _UNARY[function](ranges[0])
        if function == "or":
            return self._selected(operands)
        function = _SAME_AS_FLOAT.get(function, function)
        if function not in _BINARY:
            return ANYTHING
        derived = _BINARY[function](ranges[0], ranges[1])
        if function == "sub" and self._is_maximum_of(operands[1], operands[0]):
            return dataclasses.replace(derived, high=min(derived.high, 0.0))
        if function == "div" and self._is_sum_of(operands[1], operands[0]) and ranges[0].low >= 0:
            return Range(0, 1)
        if function == "mul" and operands[0] == operands[1]:
            return dataclasses.replace(derived, low=max(derived.low, 0.0))
        return derived

    def _selected(self, operands: tuple[int | Immediate, ...]) -> Range:
        """or(mask(x, p), mask_bar(y, p)) is a choice of x or y."""
        definitions = [self.definition(x) for x in operands]
        chosen = []
        for definition in definitions:
            if definition is None or not isinstance(definition.op, Elementwise):
                return ANYTHING
            chosen.append((definition.op.function, definition.operands))
        (first, lhs), (second, rhs) = chosen
        if {first, second} != {"mask", "mask_bar"} or lhs[1] != rhs[1]:
            return ANYTHING
        return union([self.of(lhs[0]), self.of(rhs[0])])

    def definition(self, operand: int | Immediate) -> Equation | None:
        """The equation that makes a value; None for inputs, constants and immediates."""
        return self._definitions.get(operand) if isinstance(operand, int) else None

    def _reduction_behind(self, operand: int | Immediate) -> Equation | None:
        """The lane reduction that a splat was made from, seen through moves and max(-inf, x)."""
        definition = self.definition(operand)
        while definition is not None and not isinstance(definition.op, LaneReduce):
            rest = [x for x in definition.operands if not isinstance(x, Immediate)]
            is_passing = isinstance(definition.op, Reshape | Broadcast) or definition.op == Elementwise("identity")
            is_passing |= definition.op == Elementwise("max") and len(rest) == 1
            definition = self.definition(rest[0]) if is_passing else None
        return definition

    def _is_maximum_of(self, splat: int | Immediate, x: int | Immediate) -> bool:
        """Whether every element of x has a partner in `splat` that is not smaller."""
        if splat == x:
            return True
        definition = self.definition(splat)
        if definition is None:
            return False
        op, operands = definition.op, definition.operands
        if op == LaneReduce("max"):
            return operands[0] == x
        is_passing = isinstance(op, Reshape | Broadcast) or op in (Elementwise("max"), Elementwise("identity"))
        return is_passing and any(self._is_maximum_of(operand, x) for operand in operands)

    def _is_sum_of(self, splat: int | Immediate, x: int | Immediate) -> bool:
        reduction = self._reduction_behind(splat)
        return reduction is not None and reduction.op == LaneReduce("sum") and reduction.operands[0] == x
