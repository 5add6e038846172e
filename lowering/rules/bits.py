"""Rules that look at the bits of floats: bitcasts of every width, nextafter, reduce_precision.

A narrow float is computed with as the float32 of the same number, so its bits are put together from that one's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from lpu_jax.lowering.emit import Operand
from lpu_jax.lowering.registry import RuleContext, register_lowering
from lpu_jax.lowering.rules.integers import WIDTHS, cut

_FLOAT_WIDTHS = {"float32": 32, "float16": 16, "bfloat16": 16}
_INF = 0x7F800000


def _int32(x: Any) -> Any:
    return lax.bitcast_convert_type(x, jnp.int32)


def _float32(bits: Any) -> Any:
    return lax.bitcast_convert_type(bits, jnp.float32)


def float16_of_bits(bits: Any) -> Any:
    """The float16 of 16 bits in an int32; every number, infinities and NaN."""
    magnitude, sign = bits & 0x7FFF, (bits & 0x8000) << 16
    small = _int32(magnitude.astype(jnp.float32) * np.float32(2.0**-24))
    wide = (magnitude << 13) + (112 << 23)
    wide = jnp.where(magnitude < 0x400, small, jnp.where(magnitude >= 0x7C00, (magnitude << 13) | _INF, wide))
    return _float32(wide | sign).astype(jnp.float16)


def bits_of_float16(x: Any) -> Any:
    """16 bits in an int32."""
    wide = x.astype(jnp.float32)
    bits = _int32(wide)
    magnitude, sign = bits & 0x7FFFFFFF, lax.shift_right_logical(bits, jnp.int32(16)) & 0x8000
    small = (jnp.abs(wide) * np.float32(2.0**24)).astype(jnp.int32)
    narrow = (magnitude >> 13) - (112 << 10)
    narrow = jnp.where(
        magnitude < (113 << 23), small, jnp.where(magnitude >= _INF, 0x7C00 | (magnitude >> 13) & 0x3FF, narrow)
    )
    return narrow | sign


@register_lowering("bitcast_convert_type")
def _bitcast_convert_type(ctx: RuleContext, x: Operand, *, new_dtype: Any) -> Sequence[Operand]:
    """Between integers and floats of one width, but for fp8. Subnormal bfloat16 become zero, as in the VXM."""
    source, target = ctx.avals_in[0].dtype, str(np.dtype(new_dtype))
    widths = {**WIDTHS, **_FLOAT_WIDTHS}
    if source == target or {source, target} <= {"int32", "uint32"}:
        return [x]
    if source not in widths or target not in widths or widths[source] != widths[target]:
        raise ctx.unsupported(f"bits of {source} as {target}")
    if {source, target} <= set(WIDTHS):
        return [cut(ctx, ctx.elementwise("identity", x, dtype="int32"), target)]
    if widths[source] == 32:
        return [ctx.elementwise("or", x, ctx.immediate(0, "int32"), dtype=target)]
    if {source, target} == {"float16", "bfloat16"}:
        return ctx.rewrite(lambda f: lax.bitcast_convert_type(lax.bitcast_convert_type(f, jnp.uint16), target), x)
    if "bfloat16" in (source, target):
        sixteen = ctx.immediate(16, "int32")
        if target == "bfloat16":
            return [ctx.elementwise("shift_left", x, sixteen, dtype=target)]
        return [cut(ctx, ctx.elementwise("shift_right_logical", x, sixteen), target)]
    if target == "float16":
        return ctx.rewrite(lambda n: float16_of_bits(n.astype(jnp.int32)), x)
    if source == "float16":
        return ctx.rewrite(lambda f: bits_of_float16(f).astype(target), x)
    raise ctx.unsupported(f"bits of {source} as {target}")


@register_lowering("nextafter")
def _nextafter(ctx: RuleContext, x: Operand, y: Operand) -> Sequence[Operand]:
    """float32 and float16: one step of the bits in their order."""
    dtype = ctx.avals_in[0].dtype
    if dtype not in ("float32", "float16"):
        raise ctx.unsupported(f"neighbours of {dtype}")
    sign = np.int32(-(2**31) if dtype == "float32" else 0x8000)
    inf = np.int32(_INF if dtype == "float32" else 0x7C00)

    def step(a: Any, b: Any) -> Any:
        first, second = (_int32(v) if dtype == "float32" else bits_of_float16(v) for v in (a, b))
        from_size, to_size = first & ~sign, second & ~sign
        negative, other_negative = (first & sign) != 0, (second & sign) != 0
        grows = (negative == other_negative) & (to_size > from_size)
        moved = jnp.where(grows, first + 1, first - 1)
        moved = jnp.where(from_size == 0, (second & sign) | 1, moved)
        moved = jnp.where((from_size == 0) & (to_size == 0) | (first == second), second, moved)
        nan = inf + (inf & -inf) // 2
        moved = jnp.where((from_size > inf) | (to_size > inf), nan, moved)
        return _float32(moved) if dtype == "float32" else float16_of_bits(moved)

    return ctx.rewrite(step, x, y)


@register_lowering("reduce_precision")
def _reduce_precision(ctx: RuleContext, x: Operand, *, exponent_bits: int, mantissa_bits: int) -> Sequence[Operand]:
    """To nearest even; what is too large becomes infinite, what is below the smallest normal number zero."""
    dtype = ctx.avals_in[0].dtype
    has = {"float32": (8, 23), "float16": (5, 10), "bfloat16": (8, 7)}.get(dtype)
    if has is None:
        raise ctx.unsupported(f"fewer bits of {dtype}")
    if exponent_bits >= has[0] and mantissa_bits >= has[1]:
        return [x]

    is_half = dtype == "float16"
    width, mantissa, bias = (16, 10, 15) if is_half else (32, 23, 127)
    inf, sign_bit = (2 ** (width - 1 - mantissa) - 1) << mantissa, np.int32(0x8000 if is_half else -(2**31))

    def fun(value: Any) -> Any:
        bits = bits_of_float16(value) if is_half else _int32(value.astype(jnp.float32))
        magnitude, sign = bits & ~sign_bit, bits & sign_bit
        rounded = magnitude
        if mantissa_bits < mantissa:
            last = mantissa - mantissa_bits
            odd = (magnitude >> last) & 1
            rounded = (magnitude + ((1 << (last - 1)) - 1) + odd) & ~((1 << last) - 1)
        if exponent_bits < width - 1 - mantissa:
            own = 2 ** (exponent_bits - 1) - 1
            rounded = jnp.where(rounded >= (bias + own + 1) << mantissa, inf, rounded)
            rounded = jnp.where(rounded < (bias - own + 1) << mantissa, 0, rounded)
        kept = jnp.where(magnitude > inf, magnitude, rounded) | sign
        return float16_of_bits(kept) if is_half else _float32(kept).astype(dtype)

    return ctx.rewrite(fun, x)
