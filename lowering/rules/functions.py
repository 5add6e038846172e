"""Rules of functions without a VXM instruction: formulas and polynomials in float32, rounded to the dtype once.

The polynomials of erf_inv (Giles) are those that XLA uses for float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from lpu_jax.lowering.emit import Operand
from lpu_jax.lowering.registry import RuleContext, register_lowering
from lpu_jax.lowering.rules.integers import WIDTHS

# exp(x^2) erfc(x) = t P(t), t = 1 / (x + 2.5), x >= 1: least largest relative error (3.2e-8), from float64
_ERFC = (-71.24911912, 59.78693081, 0.66989989, 8.35329054, 3.1021536, 1.4170715, 0.56406133)
# x * P(w - 2.5) for w = -log(1 - x^2) < 5, x * Q(sqrt(w) - 3) beyond
_ERF_INV_CENTRAL = (
    2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503, -0.00417768164,
    0.246640727, 1.50140941,
)  # fmt: skip
_ERF_INV_TAIL = (
    -0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613, 0.00943887047,
    1.00167406, 2.83297682,
)  # fmt: skip
# atan(x) = x + x z P(z), z = x^2, |x| <= tan(pi/8)
_ATAN = (8.05374449538e-2, -1.38776856032e-1, 1.99777106478e-1, -3.33329491539e-1)
# asin(x) = x + x z P(z), |x| <= 1/2
_ASIN = (4.2163199048e-2, 2.4181311049e-2, 4.5470025998e-2, 7.4953002686e-2, 1.6666752422e-1)


def polynomial(x: Any, coefficients: Sequence[float]) -> Any:
    """Horner's rule, highest power first."""
    result = jnp.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        result = result * x + coefficient
    return result


def _erfc(x: Any) -> Any:
    """1 - erf(x) up to 1, exp(-x^2) t P(t) beyond: XLA's two polynomials would fill the ALUs thrice."""
    inverse = 1.0 / (x + 2.5)
    tail = lax.exp(-x * x) * (inverse * polynomial(inverse, _ERFC))
    return jnp.where(x > 1.0, tail, 1.0 - lax.erf(x))


def _erf_inv(x: Any) -> Any:
    w = -lax.log1p(-x * x)
    central = polynomial(w - 2.5, _ERF_INV_CENTRAL)
    tail = polynomial(lax.sqrt(w) - 3.0, _ERF_INV_TAIL)
    result = jnp.where(w < 5.0, central, tail) * x
    return jnp.where(lax.abs(x) == 1.0, x * jnp.inf, result)


def _atan(x: Any) -> Any:
    """pi/2 - atan(1/x) above tan(3 pi/8), pi/4 + atan((x - 1) / (x + 1)) above tan(pi/8)."""
    magnitude = lax.abs(x)
    is_large, is_middle = magnitude > math.tan(3 * math.pi / 8), magnitude > math.tan(math.pi / 8)
    reduced = jnp.where(is_middle, (magnitude - 1.0) / (magnitude + 1.0), magnitude)
    reduced = jnp.where(is_large, -1.0 / magnitude, reduced)
    offset = jnp.where(is_large, math.pi / 2, jnp.where(is_middle, math.pi / 4, 0.0))
    z = reduced * reduced
    result = offset + (reduced * z * polynomial(z, _ATAN) + reduced)
    return _with_sign_of(result, x)


def _with_sign_of(magnitude: Any, x: Any) -> Any:
    bits = lax.bitcast_convert_type(x, jnp.int32) & -(2**31)
    return lax.bitcast_convert_type(lax.bitcast_convert_type(lax.abs(magnitude), jnp.int32) | bits, jnp.float32)


def _is_negative(x: Any) -> Any:
    return lax.bitcast_convert_type(x, jnp.int32) < 0


def _atan2(y: Any, x: Any) -> Any:
    """atan(y / x), turned by pi in the left half plane; axes and infinities as in C99."""
    both_infinite = ~lax.is_finite(x) & ~lax.is_finite(y)
    ratio = jnp.where(both_infinite, 1.0, lax.abs(y) / lax.abs(x))
    angle = jnp.where((y == 0.0) & (x == 0.0), 0.0, _atan(ratio))
    angle = jnp.where(_is_negative(x), math.pi - angle, angle)
    return jnp.where((x != x) | (y != y), jnp.nan, _with_sign_of(angle, y))


def _asin(x: Any) -> Any:
    """Within 1/2 a polynomial, beyond pi/2 - 2 asin(sqrt((1 - |x|) / 2))."""
    magnitude = lax.abs(x)
    is_large = magnitude > 0.5
    z = jnp.where(is_large, 0.5 * (1.0 - magnitude), magnitude * magnitude)
    root = jnp.where(is_large, lax.sqrt(z), magnitude)
    series = root * z * polynomial(z, _ASIN) + root
    result = jnp.where(is_large, math.pi / 2 - 2.0 * series, series)
    return jnp.where(magnitude <= 1.0, _with_sign_of(result, x), jnp.nan)


def _acos(x: Any) -> Any:
    magnitude = lax.abs(x)
    half = 2.0 * _asin(lax.sqrt(0.5 * (1.0 - magnitude)))
    outside = jnp.where(x > 0, half, math.pi - half)
    return jnp.where(magnitude > 0.5, outside, math.pi / 2 - _asin(x))


def _sinh(x: Any) -> Any:
    """(e + e / (e + 1)) / 2 with e = expm1(|x|); near overflow by exp(|x| / 2)^2."""
    magnitude = lax.abs(x)
    e = lax.expm1(magnitude)
    root = lax.exp(magnitude * 0.5)
    small = jnp.where(magnitude < 1.0, 0.5 * (e + e / (e + 1.0)), 0.5 * (e + 1.0 - 1.0 / (e + 1.0)))
    return _with_sign_of(jnp.where(magnitude > 80.0, (0.5 * root) * root, small), x)


def _cosh(x: Any) -> Any:
    magnitude = lax.abs(x)
    root, e = lax.exp(magnitude * 0.5), lax.exp(magnitude)
    return jnp.where(magnitude > 80.0, (0.5 * root) * root, 0.5 * (e + 1.0 / e))


def _asinh(x: Any) -> Any:
    magnitude = lax.abs(x)
    square = magnitude * magnitude
    near = lax.log1p(magnitude + square / (1.0 + lax.sqrt(square + 1.0)))
    return _with_sign_of(jnp.where(magnitude > 1e9, lax.log(magnitude) + math.log(2), near), x)


def _acosh(x: Any) -> Any:
    less = x - 1.0
    near = lax.log1p(less + lax.sqrt(less * (x + 1.0)))
    return jnp.where(x > 1e9, lax.log(x) + math.log(2), near)


def _atanh(x: Any) -> Any:
    magnitude = lax.abs(x)
    return _with_sign_of(0.5 * lax.log1p(2.0 * magnitude / (1.0 - magnitude)), x) + 0.0 * jnp.where(
        magnitude > 1.0, jnp.nan, 0.0
    )


def _cbrt(x: Any) -> Any:
    """|x|^(1/3) and one Newton step."""
    magnitude = lax.abs(x)
    is_special = (magnitude == 0.0) | ~lax.is_finite(x)
    root = lax.pow(magnitude, jnp.full_like(x, 1 / 3))
    refined = root - (root - magnitude / (root * root)) * (1 / 3)
    return _with_sign_of(jnp.where(is_special, magnitude, refined), x)


FLOAT_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "erfc": _erfc,
    "erf_inv": _erf_inv,
    "tan": lambda x: lax.sin(x) / lax.cos(x),
    "atan": _atan,
    "atan2": _atan2,
    "asin": _asin,
    "acos": _acos,
    "sinh": _sinh,
    "cosh": _cosh,
    "asinh": _asinh,
    "acosh": _acosh,
    "atanh": _atanh,
    "cbrt": _cbrt,
}


def _float_function(ctx: RuleContext, *operands: Operand, accuracy: Any = None) -> Sequence[Operand]:
    """A formula in float32."""
    ctx.require(accuracy=(accuracy, [None]))
    dtype, function = ctx.avals_out[0].dtype, FLOAT_FUNCTIONS[ctx.primitive]

    def fun(*values: Any) -> Any:
        wide = [lax.convert_element_type(v, jnp.float32) for v in values]
        return lax.convert_element_type(function(*wide), dtype)

    return ctx.rewrite(fun, *operands)


for _name in FLOAT_FUNCTIONS:
    register_lowering(_name)(_float_function)


@register_lowering("population_count")
def _population_count(ctx: RuleContext, x: Operand) -> Sequence[Operand]:
    """Sums of bits in fields of 2, 4, 8, then all fields by one product."""
    dtype = ctx.avals_in[0].dtype
    ctx.require(dtype=(dtype, list(WIDTHS)))

    def fun(value: Any) -> Any:
        bits = lax.convert_element_type(value, jnp.int32) & (-1 if WIDTHS[dtype] == 32 else 2 ** WIDTHS[dtype] - 1)

        def shifted(v: Any, n: int) -> Any:
            return lax.shift_right_logical(v, jnp.full_like(v, n))

        bits = bits - (shifted(bits, 1) & 0x55555555)
        bits = (bits & 0x33333333) + (shifted(bits, 2) & 0x33333333)
        bits = (bits + shifted(bits, 4)) & 0x0F0F0F0F
        return lax.convert_element_type(shifted(bits * 0x01010101, 24), dtype)

    return ctx.rewrite(fun, x)


@register_lowering("clz")
def _clz(ctx: RuleContext, x: Operand) -> Sequence[Operand]:
    """width - number of ones after every bit below the highest one is set."""
    dtype = ctx.avals_in[0].dtype
    ctx.require(dtype=(dtype, list(WIDTHS)))
    width = WIDTHS[dtype]

    def fun(value: Any) -> Any:
        bits = lax.convert_element_type(value, jnp.int32) & (-1 if width == 32 else 2**width - 1)
        for distance in (1, 2, 4, 8, 16):
            bits = bits | lax.shift_right_logical(bits, jnp.full_like(bits, distance))
        return lax.convert_element_type(width - lax.population_count(bits), dtype)

    return ctx.rewrite(fun, x)
