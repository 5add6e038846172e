"""Integers narrower than 32 bits and unsigned ones: a graph holds them as int32, cut to their width after arithmetic.

uint8, uint16 and int16 are held as the same number, uint32 as the same bits; int8 is cut by its storage.
"""

from __future__ import annotations

from lpu_jax.lowering.emit import Emitter, Operand, immediate

WIDTHS = {"int8": 8, "uint8": 8, "int16": 16, "uint16": 16, "int32": 32, "uint32": 32}
INT_MIN = -(2**31)


def integer(value: int) -> Operand:
    """An int32 immediate with the low 32 bits of a number."""
    return immediate(value, "int32")


def cut(ctx: Emitter, x: Operand, dtype: str) -> Operand:
    """The number of a dtype in the low bits of an int32."""
    width = WIDTHS.get(dtype, 32)
    if width == 32 or dtype == "int8":
        return ctx.elementwise("identity", x, dtype="int8") if dtype == "int8" else x
    if dtype.startswith("u"):
        return ctx.elementwise("and", x, integer(2**width - 1))
    return sign_extended(ctx, x, width)


def sign_extended(ctx: Emitter, x: Operand, width: int) -> Operand:
    """The low bits of an int32 as a signed number."""
    shift = integer(32 - width)
    return ctx.elementwise("shift_right_arithmetic", ctx.elementwise("shift_left", x, shift), shift)


def ordered(ctx: Emitter, x: Operand, dtype: str) -> Operand:
    """int32 in the order of the numbers of an integer dtype; its own inverse for uint32."""
    return ctx.elementwise("xor", x, integer(INT_MIN)) if dtype == "uint32" else x


def unsigned_quotient(ctx: Emitter, x: Operand, y: Operand) -> Operand:
    """floor(x / y) of uint32 held as int32: half of x by the signed divider, then one correction; x / 0 = 2^32 - 1."""
    half = ctx.elementwise("idiv", ctx.elementwise("shift_right_logical", x, integer(1)), y)
    quotient = ctx.elementwise("shift_left", half, integer(1))
    rest = ctx.elementwise("isub", x, ctx.elementwise("imul", quotient, y))
    is_short = ctx.elementwise("ige", ordered(ctx, rest, "uint32"), ordered(ctx, y, "uint32"))
    quotient = ctx.elementwise("iadd", quotient, is_short)
    is_larger = ctx.elementwise("ige", ordered(ctx, x, "uint32"), ordered(ctx, y, "uint32"))
    is_huge = ctx.elementwise("ilt", y, integer(0))
    return ctx.select(is_huge, ctx.elementwise("identity", is_larger, dtype="int32"), quotient, "int32")


def unsigned_to_float(ctx: Emitter, x: Operand, dtype: str) -> Operand:
    """uint32 to float: above 2^31 twice the float of the half, whose last bit keeps what was cut off."""
    half = ctx.elementwise("shift_right_logical", x, integer(1))
    half = ctx.elementwise("or", half, ctx.elementwise("and", x, integer(1)), dtype="int32")
    twice = ctx.elementwise("mul", ctx.elementwise("to_float", half), immediate(2.0, "float32"))
    is_large = ctx.elementwise("ilt", x, integer(0))
    number = ctx.select(is_large, twice, ctx.elementwise("to_float", x), "float32")
    return ctx.elementwise("identity", number, dtype=dtype) if dtype != "float32" else number


def float_to_unsigned(ctx: Emitter, x: Operand) -> Operand:
    """Towards zero, saturating at 0 and 2^32 - 1."""
    small = ctx.elementwise("imax", ctx.elementwise("to_int", x), integer(0))
    rest = ctx.elementwise("to_int", ctx.elementwise("sub", x, immediate(2.0**31, "float32")))
    is_large = ctx.elementwise("ge", x, immediate(2.0**31, "float32"))
    return ctx.select(is_large, ctx.elementwise("xor", rest, integer(INT_MIN)), small, "int32")
