"""Operands of matrix products in a format that a policy names, and tables in one.

  bf16, fp32  as they are, rounded
  e4m3, e5m2  x * 2^-e: per row of the lhs, per matrix of the rhs, with the largest magnitude in [2^7, 2^8) or
              [2^14, 2^15); where |x| <= 2 is known, one power of two for all
  bfp         of a resident rhs, blocks along K, with the shared exponents of least squared error
  int8        rint(x * (127 / s)) with s the largest magnitude, per row of the lhs, per column of the rhs

The product is multiplied by the inverse powers, or by s / 127. An argument that is narrow already keeps its dtype
unless the policy asks for fewer bits.
"""

from __future__ import annotations

from lpu_jax.lowering.emit import FLOATS, NARROW_FLOATS, Emitter, Operand
from lpu_jax.lowering.passes.tile_storage import FORMATS
from lpu_jax.lowering.precision import Formats
from lpu_jax.lowering.registry import RuleContext
from lpu_jax.lowering.rules.elementwise import convert
from lpu_jax.lowering.rules.reductions import fold_axis
from lpu_jax.runtime.errors import NumberFormatError
from lpu_jax.runtime.formats import BF16, E4M3, E5M2, FP16, FP32, INT8, NumberFormat
from lpu_jax.runtime.isa import DataFormat

Scaled = tuple[int, DataFormat, Operand | None]
"""(operand, format, inverse scale or None)"""

_EXPONENT_MASK = 0x7F800000
_FRACTION_BITS = 23
_DTYPES = {FP16: "float16", BF16: "bfloat16", E4M3: "float8_e4m3fn", E5M2: "float8_e5m2"}
TARGET_EXPONENTS = {FP16: 14, E4M3: 7, E5M2: 14}
"""A scale puts the largest magnitude into [2^t, 2^(t + 1))."""
_LARGEST_UNSCALED = 2.0
_INT8_MAX = 127.0
_ONLY_WEIGHTS = "blocks are quantised at load, so only a rhs that is named in resident_argnums can have them"


def inverse_scale(ctx: Emitter, size: int, target: int) -> int:
    """2^e as float32 with e = exponent(size) - target, from the exponent field of `size`.

    Smaller exponent fields would make the inverse power subnormal; such operands end below 2^target, still exact.
    """
    field = ctx.elementwise("and", size, RuleContext.immediate(_EXPONENT_MASK, "int32"))
    field = ctx.elementwise("imax", field, RuleContext.immediate((target + 1) << _FRACTION_BITS, "int32"))
    offset = RuleContext.immediate(target << _FRACTION_BITS, "int32")
    return ctx.elementwise("isub", field, offset, dtype="float32")


def reciprocal_power(ctx: Emitter, power: int) -> Operand:
    """1 / 2^e: the exponent field mirrored at 127."""
    return ctx.elementwise("isub", RuleContext.immediate(254 << _FRACTION_BITS, "int32"), power, dtype="float32")


def format_error(ctx: RuleContext, number_format: NumberFormat, what: str, reason: str) -> NumberFormatError:
    """The error of a format that an op cannot take."""
    where = f" at {ctx.source}" if ctx.source else ""
    return NumberFormatError(f"{number_format} cannot be the {what} of {ctx.path}{where}: {reason}.")


def enter_as(ctx: RuleContext, x: int, is_lhs: bool, number_format: NumberFormat, is_image: bool = False) -> Scaled:
    """An operand [B, M, K] or [B, K, N], or images [B, R, C] with a scale each, in a format other than fp16.

    Raises:
      NumberFormatError: block floating point for an operand that is not a resident rhs.
    """
    dtype = ctx.aval(x).dtype
    if dtype == "int8" or (dtype in NARROW_FLOATS and FORMATS[dtype].number_format.bits <= number_format.bits):
        return x, FORMATS[dtype], None
    x = convert(ctx, x, dtype, "float32")
    if number_format.block_size:
        if is_lhs or is_image or not ctx.magnitudes.is_resident(x):
            raise format_error(ctx, number_format, "lhs" if is_lhs or is_image else "rhs", _ONLY_WEIGHTS)
        data_format = DataFormat[number_format.name.upper()]
        return ctx.encode_blocks(x, data_format, optimal=True), data_format, None
    if number_format == FP32:
        return x, DataFormat.FP32, None
    if number_format == BF16:
        return _rounded(ctx, x, number_format), DataFormat.BF16, None
    if number_format == INT8:
        return _as_int8(ctx, x, is_lhs, is_image)
    return _scaled(ctx, x, is_lhs, number_format, is_image)


def _rounded(ctx: Emitter, x: int, number_format: NumberFormat) -> int:
    return convert(ctx, x, "float32", _DTYPES[number_format])


def _larger(ctx: Emitter, x: int, axis: int) -> int:
    return fold_axis(ctx, x, axis, lambda a, b: ctx.elementwise("max", a, b))


def magnitudes(ctx: Emitter, x: int, only_finite: bool) -> int:
    """|x|; 0 where it is not finite, if that is asked for, so that a scale of others does not follow it."""
    sizes = ctx.elementwise("abs", x)
    return ctx.elementwise("mask", sizes, ctx.elementwise("is_finite", x)) if only_finite else sizes


def _scaled(ctx: RuleContext, x: int, is_lhs: bool, number_format: NumberFormat, is_image: bool = False) -> Scaled:
    data_format, target = DataFormat[number_format.name.upper()], TARGET_EXPONENTS[number_format]
    if ctx.ranges.of(x).magnitude <= _LARGEST_UNSCALED:
        moved: int = ctx.elementwise("mul", x, ctx.immediate(2.0 ** (target - 1)))
        return _rounded(ctx, moved, number_format), data_format, ctx.immediate(2.0 ** (1 - target))
    size = ctx.lane_reduce("max", magnitudes(ctx, x, only_finite=is_image))
    inverse = inverse_scale(ctx, size if is_lhs else _larger(ctx, size, 1), target)
    moved = ctx.elementwise("mul", x, reciprocal_power(ctx, inverse))
    return _rounded(ctx, moved, number_format), data_format, inverse


def _as_int8(ctx: RuleContext, x: int, is_lhs: bool, is_image: bool = False) -> Scaled:
    sizes = magnitudes(ctx, x, only_finite=is_image)
    if not is_lhs:
        sizes = _larger(ctx, sizes, 1)
    if is_lhs or is_image:
        sizes = ctx.lane_reduce("max", sizes)
    values, scale = _int8_steps(ctx, x, sizes)
    return values, DataFormat.INT8, scale


def _int8_steps(ctx: Emitter, x: int, size: Operand) -> tuple[int, Operand]:
    """(rint(x * (127 / size)), size / 127); size 0 counts as 2^-100."""
    size = ctx.elementwise("max", size, RuleContext.immediate(2.0**-100))
    factor = ctx.elementwise("div", RuleContext.immediate(_INT8_MAX), size)
    steps = ctx.elementwise("round", ctx.elementwise("mul", x, factor))
    values: int = ctx.elementwise("to_int", steps, dtype="int8")
    return values, ctx.elementwise("mul", size, RuleContext.immediate(1 / _INT8_MAX))


def leave_as(ctx: RuleContext, x: Operand, target: str, formats: Formats) -> Operand:
    """A result of dtype `target` rounded to a format; fp8 saturates.

    Raises:
      NumberFormatError: an integer or block format.
    """
    form = formats.result
    if form is None or form == FP32 or target not in FLOATS:
        return x
    if form not in _DTYPES:
        raise format_error(ctx, form, "result", "results are fp32, bf16, fp16, e4m3 or e5m2")
    if target != "float32" and FORMATS[target].number_format.bits <= form.bits:
        return x
    wide = convert(ctx, x, target, "float32")
    if form in (E4M3, E5M2):
        wide = ctx.elementwise("min", wide, ctx.immediate(form.largest))
        wide = ctx.elementwise("max", wide, ctx.immediate(-form.largest))
    narrow = convert(ctx, wide, "float32", _DTYPES[form])
    return convert(ctx, narrow, _DTYPES[form], target)


def lookup_rows(ctx: RuleContext, table: int, index: int) -> int:
    """Rows of a table that is held in the format of the policy: int8 with a scale per column, fp8 with one in all."""
    shape, dtype = ctx.aval(table).shape, ctx.aval(table).dtype
    if len(shape) != 2:
        return ctx.gather_rows(table, index)
    form = ctx.formats(None, table).rhs
    if (
        dtype not in FLOATS
        or form is None
        or form == FP32
        or (dtype != "float32" and FORMATS[dtype].number_format.bits <= form.bits)
    ):
        return ctx.gather_rows(table, index)
    if form.block_size:
        raise format_error(ctx, form, "table", "rows of a table are fp32, bf16, fp16, e4m3, e5m2 or int8")
    if not ctx.magnitudes.is_resident(table):
        raise format_error(ctx, form, "table", "it changes from call to call; name it in resident_argnums")
    x: int = ctx.reshape(convert(ctx, table, dtype, "float32"), (1, *shape))
    scale: Operand | None
    if form == INT8:
        held, _, scale = _as_int8(ctx, x, False)
    elif form == BF16:
        held, scale = _rounded(ctx, x, form), None
    else:
        held, _, scale = _scaled(ctx, x, False, form)
    narrow = ctx.gather_rows(ctx.reshape(held, shape), index)
    rows = convert(ctx, narrow, ctx.aval(narrow).dtype, "float32")
    if scale is not None:
        if isinstance(scale, int):
            scale = ctx.reshape(scale, (1, ctx.aval(scale).shape[2]))
        rows = ctx.elementwise("mul", rows, scale)
    return convert(ctx, rows, "float32", dtype)
