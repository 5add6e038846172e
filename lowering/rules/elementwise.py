"""Rules of primitives that act element by element: VXM functions and short chains of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, overload

import numpy as np

from lpu_jax.lowering.emit import FLOATS, NARROW_FLOATS, Emitter, Operand
from lpu_jax.lowering.registry import RuleContext, register_lowering
from lpu_jax.lowering.rules.integers import (
    WIDTHS,
    cut,
    float_to_unsigned,
    ordered,
    sign_extended,
    unsigned_quotient,
    unsigned_to_float,
)

_BINARY = {
    "add": ("add", "iadd"),
    "add_any": ("add", "iadd"),
    "sub": ("sub", "isub"),
    "max": ("max", "imax"),
    "min": ("min", "imin"),
    "pow": ("pow", None),
    "rem": ("rem", "irem"),
}
"""primitive: (float32 function, int32 function)"""
_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
_UNARY = {
    "neg": ("neg", "ineg"),
    "abs": ("abs", "iabs"),
    "sign": ("sign", "isign"),
    "floor": ("floor", None),
    "ceil": ("ceil", None),
}
_UNARY_WITH_ACCURACY = ("exp", "log", "tanh", "rsqrt", "sqrt", "sin", "cos", "log1p", "expm1", "erf")
_LOGIC = ("and", "or", "xor")
_SHIFTS = ("shift_left", "shift_right_arithmetic", "shift_right_logical")


def _function_for(ctx: RuleContext, functions: tuple[str | None, str | None], dtype: str) -> str:
    """The function of a dtype; bool counts as int32."""
    function = functions[0] if dtype in FLOATS else functions[1]
    if function is None:
        raise ctx.unsupported(f"no VXM function for {dtype}; convert to float32 or int32 first")
    return function


def _binary(ctx: RuleContext, x: Operand, y: Operand) -> Sequence[Operand]:
    dtype = ctx.avals_out[0].dtype
    return [_arithmetic(ctx, _function_for(ctx, _BINARY[ctx.primitive], dtype), x, y, dtype)]


def _arithmetic(ctx: RuleContext, function: str, x: Operand, y: Operand, dtype: str) -> Operand:
    """A function of two numbers of one dtype; integers wrap at their width."""
    if dtype in ("bool", *FLOATS) or (WIDTHS[dtype] == 32 and dtype == "int32"):
        return ctx.elementwise(function, x, y, dtype=dtype)
    if dtype == "uint32" and function in ("imax", "imin"):
        return ordered(ctx, ctx.elementwise(function, ordered(ctx, x, dtype), ordered(ctx, y, dtype)), dtype)
    if dtype == "uint32" and function in ("idiv", "irem"):
        quotient = unsigned_quotient(ctx, x, y)
        product = ctx.elementwise("imul", quotient, y)
        return quotient if function == "idiv" else ctx.elementwise("isub", x, product)
    return cut(ctx, ctx.elementwise(function, x, y), dtype)


def _unary(ctx: RuleContext, x: Operand) -> Sequence[Operand]:
    dtype = ctx.avals_out[0].dtype
    function = _function_for(ctx, _UNARY[ctx.primitive], dtype)
    if dtype.startswith("u") and function in ("iabs", "isign"):
        return [x if function == "iabs" else ctx.elementwise("ine", x, _ZERO_INT, dtype=dtype)]
    result = ctx.elementwise(function, x, dtype=dtype if dtype in FLOATS else "int32")
    return [result if dtype in FLOATS else cut(ctx, result, dtype)]


def _unary_with_accuracy(ctx: RuleContext, x: Operand, *, accuracy: Any = None) -> Sequence[Operand]:
    ctx.require(accuracy=(accuracy, [None]))
    return [ctx.elementwise(ctx.primitive, x, dtype=ctx.avals_out[0].dtype)]


def _comparison(ctx: RuleContext, x: Operand, y: Operand) -> Sequence[Operand]:
    dtype = ctx.avals_in[0].dtype
    prefix = "" if dtype in FLOATS else "i"
    if dtype == "uint32" and ctx.primitive not in ("eq", "ne"):
        x, y = ordered(ctx, x, dtype), ordered(ctx, y, dtype)
    return [ctx.elementwise(prefix + ctx.primitive, x, y)]


def _logic(ctx: RuleContext, x: Operand, y: Operand) -> Sequence[Operand]:
    return [ctx.elementwise(ctx.primitive, x, y, dtype=ctx.avals_out[0].dtype)]


def _shift(ctx: RuleContext, x: Operand, amount: Operand) -> Sequence[Operand]:
    """The amount is unsigned; the width and more leave zeros, or copies of the sign for the arithmetic shift."""
    dtype = ctx.avals_in[0].dtype
    width = WIDTHS[dtype]
    if width < 32 and ctx.primitive == "shift_right_arithmetic":
        x = sign_extended(ctx, x, width)
    if width < 32 and ctx.primitive == "shift_right_logical":
        x = ctx.elementwise("and", x, ctx.immediate(2**width - 1, "int32"))
    return [cut(ctx, ctx.elementwise(ctx.primitive, x, amount), dtype)]


for _names, _rule in (
    (_BINARY, _binary),
    (_UNARY, _unary),
    (_UNARY_WITH_ACCURACY, _unary_with_accuracy),
    (_COMPARISONS, _comparison),
    (_LOGIC, _logic),
    (_SHIFTS, _shift),
):
    for _name in _names:
        register_lowering(_name)(_rule)


@register_lowering("mul")
def _mul(ctx: RuleContext, x: Operand, y: Operand, *, out_dtype: Any = None) -> Sequence[Operand]:
    ctx.require(out_dtype=(out_dtype, [None, np.dtype(ctx.avals_in[0].dtype)]))
    dtype = ctx.avals_out[0].dtype
    return [_arithmetic(ctx, _function_for(ctx, ("mul", "imul"), dtype), x, y, dtype)]


@register_lowering("div")
def _div(ctx: RuleContext, x: Operand, y: Operand) -> Sequence[Operand]:
    dtype = ctx.avals_out[0].dtype
    return [_arithmetic(ctx, _function_for(ctx, ("div", "idiv"), dtype), x, y, dtype)]


@register_lowering("not")
def _not(ctx: RuleContext, x: Operand) -> Sequence[Operand]:
    if ctx.avals_in[0].dtype == "bool":
        return [ctx.elementwise("xor", x, ctx.immediate(1, "int32"), dtype="bool")]
    return [cut(ctx, ctx.elementwise("not", x), ctx.avals_out[0].dtype)]


@register_lowering("is_finite")
def _is_finite(ctx: RuleContext, x: Operand) -> Sequence[Operand]:
    return [ctx.elementwise("is_finite", x)]


@register_lowering("square")
def _square(ctx: RuleContext, x: Operand) -> Sequence[Operand]:
    dtype = ctx.avals_out[0].dtype
    return [_arithmetic(ctx, _function_for(ctx, ("mul", "imul"), dtype), x, x, dtype)]


@register_lowering("integer_pow")
def _integer_pow(ctx: RuleContext, x: Operand, *, y: int) -> Sequence[Operand]:
    """x^y by repeated squaring; 1 / x^|y| for y < 0."""
    dtype = ctx.avals_out[0].dtype
    if y < 0 and dtype not in FLOATS:
        raise ctx.unsupported(f"y={y} of an integer")
    multiply = _function_for(ctx, ("mul", "imul"), dtype)
    one = ctx.immediate(1, "float32" if dtype in FLOATS else "int32")
    working = "float32" if dtype in FLOATS else dtype
    result, power, exponent = None, x, abs(y)
    while exponent:
        if exponent & 1:
            result = power if result is None else _arithmetic(ctx, multiply, result, power, working)
        exponent >>= 1
        power = _arithmetic(ctx, multiply, power, power, working) if exponent else power
    if result is None:
        return [one]
    if y < 0:
        return [ctx.elementwise("div", one, result, dtype=dtype)]
    return [ctx.elementwise("identity", result, dtype=dtype) if dtype != working else result]


@register_lowering("logistic")
def _logistic(ctx: RuleContext, x: Operand, *, accuracy: Any = None) -> Sequence[Operand]:
    """1 / (1 + exp(-x))"""
    ctx.require(accuracy=(accuracy, [None]))
    one = ctx.immediate(1.0)
    denominator = ctx.elementwise("add", ctx.elementwise("exp", ctx.elementwise("neg", x)), one)
    return [ctx.elementwise("div", one, denominator, dtype=ctx.avals_out[0].dtype)]


@register_lowering("log2")
def _log2(ctx: RuleContext, x: Operand, *, accuracy: Any = None) -> Sequence[Operand]:
    """log(x) * (1 / ln 2)"""
    ctx.require(accuracy=(accuracy, [None]))
    scale = ctx.immediate(1 / math.log(2))
    return [ctx.elementwise("mul", ctx.elementwise("log", x), scale, dtype=ctx.avals_out[0].dtype)]


@register_lowering("one_minus_square")
def _one_minus_square(ctx: RuleContext, x: Operand) -> Sequence[Operand]:
    """1 - x * x"""
    square = ctx.elementwise("mul", x, x)
    return [ctx.elementwise("sub", ctx.immediate(1.0), square, dtype=ctx.avals_out[0].dtype)]


@register_lowering("polynomial")
def _polynomial(ctx: RuleContext, x: Operand, *coefficients: Operand, unroll: Any = None) -> Sequence[Operand]:
    """Horner's rule; coefficients come lowest power first."""
    del unroll  # a hint
    dtype = ctx.avals_out[0].dtype
    *rest, result = coefficients
    for coefficient in reversed(rest):
        result = ctx.elementwise("add", ctx.elementwise("mul", result, x), coefficient)
    return [ctx.elementwise("identity", ctx.broadcast_to(result, ctx.avals_out[0].shape), dtype=dtype)]


@register_lowering("exp2")
def _exp2(ctx: RuleContext, x: Operand, *, accuracy: Any = None) -> Sequence[Operand]:
    ctx.require(accuracy=(accuracy, [None]))
    return [ctx.elementwise("pow", ctx.immediate(2.0), x, dtype=ctx.avals_out[0].dtype)]


@register_lowering("round")
def _round(ctx: RuleContext, x: Operand, *, rounding_method: Any) -> Sequence[Operand]:
    """To nearest even in one function; away from zero as sign(x) * (floor|x| + (|x| - floor|x| >= 1/2))."""
    dtype = ctx.avals_out[0].dtype
    if int(rounding_method) == 1:
        return [ctx.elementwise("round", x, dtype=dtype)]
    ctx.require(rounding_method=(int(rounding_method), [0, 1]))
    magnitude = ctx.elementwise("abs", x)
    whole = ctx.elementwise("floor", magnitude)
    is_half = ctx.elementwise("ge", ctx.elementwise("sub", magnitude, whole), ctx.immediate(0.5))
    rounded = ctx.elementwise("add", whole, ctx.elementwise("mask", ctx.immediate(1.0), is_half, dtype="float32"))
    return [ctx.elementwise("mul", ctx.elementwise("sign", x), rounded, dtype=dtype)]


@register_lowering("select_n")
def _select_n(ctx: RuleContext, which: Operand, *cases: Operand) -> Sequence[Operand]:
    """Two cases by mask and mask_bar; an int32 selector takes one comparison per further case."""
    dtype, shape = ctx.avals_out[0].dtype, ctx.avals_out[0].shape
    which = ctx.broadcast_to(which, shape)
    if ctx.avals_in[0].dtype == "bool":
        result = ctx.select(which, cases[-1], cases[0], dtype)
        return [result]
    result = cases[0]
    for index, case in enumerate(cases[1:], start=1):
        reached = ctx.elementwise("ige", which, ctx.immediate(index, "int32"))
        result = ctx.select(reached, case, result, dtype)
    return [result]


@register_lowering("clamp")
def _clamp(ctx: RuleContext, low: Operand, x: Operand, high: Operand) -> Sequence[Operand]:
    dtype = ctx.avals_out[0].dtype
    raised = _arithmetic(ctx, _function_for(ctx, ("max", "imax"), dtype), x, low, dtype)
    return [_arithmetic(ctx, _function_for(ctx, ("min", "imin"), dtype), raised, high, dtype)]


CONVERTIBLE = ("bool", *FLOATS, *WIDTHS)
"""Dtypes that the LPU converts between."""


@overload
def convert(ctx: Emitter, x: int, source: str, target: str) -> int: ...


@overload
def convert(ctx: Emitter, x: Operand, source: str, target: str) -> Operand: ...


def convert(ctx: Emitter, x: Operand, source: str, target: str) -> Operand:
    """x of dtype `source` as dtype `target`, both in CONVERTIBLE."""
    if source == target:
        return x
    if target == "bool":
        zero = ctx.elementwise("ne", x, _ZERO_FLOAT) if source in FLOATS else ctx.elementwise("ine", x, _ZERO_INT)
        return zero
    if target in FLOATS and source == "uint32":
        return unsigned_to_float(ctx, x, target)
    if target in FLOATS:
        function = "identity" if source in FLOATS else "to_float"
        function = NARROW_FLOATS[target] if target in NARROW_FLOATS and source in FLOATS else function
        return ctx.elementwise(function, x, dtype=target)
    if source not in FLOATS:
        return cut(ctx, ctx.elementwise("identity", x, dtype="int32"), target)
    if target == "uint32":
        return float_to_unsigned(ctx, x)
    return _saturated(ctx, ctx.elementwise("to_int", x), target)


def _saturated(ctx: Emitter, x: Operand, dtype: str) -> Operand:
    """An int32 clamped to the numbers of a narrow dtype."""
    if dtype == "int32":
        return x
    info = np.iinfo(dtype)
    raised = ctx.elementwise("imax", x, RuleContext.immediate(info.min, "int32"))
    return ctx.elementwise("imin", raised, RuleContext.immediate(info.max, "int32"), dtype=dtype)


_ZERO_FLOAT = RuleContext.immediate(0.0)
_ZERO_INT = RuleContext.immediate(0, "int32")


@register_lowering("convert_element_type")
def _convert_element_type(
    ctx: RuleContext, x: Operand, *, new_dtype: Any, weak_type: bool = False, sharding: Any = None
) -> Sequence[Operand]:
    """weak_type concerns later type promotion only, which JAX has done already."""
    del weak_type
    ctx.require(sharding=(sharding, [None]))
    source, target = ctx.avals_in[0].dtype, str(np.dtype(new_dtype))
    if target not in (source, *CONVERTIBLE):
        raise ctx.unsupported(f"conversion to {target}")
    return [convert(ctx, x, source, target)]
