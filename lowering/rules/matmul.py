"""Rule of dot_general: any dimension numbers become [B, M, K] x [B, K, N]; float32 operands enter the MXM as float16.

An exact power of two brings a float32 operand into the range of float16: per row of the lhs, 2^-e puts the sum of
magnitudes into [2^14, 2^15); per matrix of the rhs it puts the sum of the largest magnitudes along its last axis (as
the user wrote it) there. The input of a convolution has a power per image. The product is multiplied by the inverse
powers, so it is the exactly summed, once rounded product of the operands rounded to float16.

Weights in block floating point enter as they are stored, blocks along K; no power is needed beside their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lpu_jax.lowering.analysis.magnitude import Factor, Magnitude
from lpu_jax.lowering.emit import FLOATS, NARROW_FLOATS, Operand
from lpu_jax.lowering.passes.tile_storage import FORMATS
from lpu_jax.lowering.precision import Formats
from lpu_jax.lowering.registry import RuleContext, register_lowering
from lpu_jax.lowering.rules.elementwise import convert
from lpu_jax.lowering.rules.integer_products import INTEGERS, integer_product
from lpu_jax.lowering.rules.operand_formats import (
    TARGET_EXPONENTS,
    Scaled,
    enter_as,
    inverse_scale,
    leave_as,
    magnitudes,
    reciprocal_power,
)
from lpu_jax.lowering.rules.reductions import fold_axis
from lpu_jax.lowering.rules.views import behind_moves, work_behind_moves
from lpu_jax.runtime.formats import FP16, FP32, NumberFormat
from lpu_jax.runtime.isa import DataFormat
from lpu_jax.runtime.ops import DecodeBlocks

_TARGET_EXPONENT = TARGET_EXPONENTS[FP16]
_SAFE_LOW, _SAFE_HIGH = 2.0**-6, 2.0**15
"""A value known to be bounded within these keeps its float16 accuracy without a scale (probabilities, gates)."""

_FEW_ROWS = 16
"""Rows of a lhs that meets many matrices one by one."""

_LOOSEST = 2.0**24
"""A number above this is no bound that a scale should follow: values near 1 would lose bits in float16."""


def _narrow(ctx: RuleContext, x: int) -> int:
    def work(base: int) -> int:
        return convert(ctx, base, "float32", "float16")

    return work_behind_moves(ctx, x, work, slices=True)


def _is_safe(ctx: RuleContext, x: int) -> bool:
    known = ctx.ranges.of(x)
    return known.is_fp16 or _SAFE_LOW <= known.magnitude <= _SAFE_HIGH


def _scale(ctx: RuleContext, x: int, size: int) -> Scaled:
    inverse = inverse_scale(ctx, size, _TARGET_EXPONENT)
    power = reciprocal_power(ctx, inverse)
    shape = ctx.aval(power).shape
    if shape[-2] > 1:  # one power per row
        return _narrow(ctx, ctx.elementwise("mul", x, power)), DataFormat.FP16, inverse
    if shape[0] == 1:

        def work(base: int) -> int:
            powers = ctx.broadcast_to(ctx.reshape(power, ()), ctx.aval(base).shape)
            return ctx.elementwise("mul", base, powers)

        return _narrow(ctx, work_behind_moves(ctx, x, work, slices=True)), DataFormat.FP16, inverse
    moved = behind_moves(ctx, x)
    powers = moved.inward(ctx, ctx.broadcast_to(power, ctx.aval(x).shape))
    scaled = moved.outward(ctx, ctx.elementwise("mul", moved.base, powers))
    return _narrow(ctx, scaled), DataFormat.FP16, inverse  # type: ignore[arg-type]


def _scaled_lhs(ctx: RuleContext, x: int) -> Scaled:
    """Per-row scale of [B, M, K]."""
    return _scale(ctx, x, ctx.lane_reduce("sum", ctx.elementwise("abs", x)))


def _scaled_rhs(ctx: RuleContext, x: int, is_image: bool = False) -> Scaled:
    """Per-matrix scale of [B, K, N] or its transpose (images: of what is finite); known contents are scaled at once."""
    content = ctx.builder.constant_of(x)
    if content is not None:
        return _scaled_constant(ctx, content)

    def larger(a: int, b: int) -> int:
        return ctx.elementwise("max", a, b)

    moved = behind_moves(ctx, x)
    sizes = magnitudes(ctx, moved.base, only_finite=is_image)
    axis, shape = moved.axis_of_rows(), ctx.aval(x).shape
    if axis is None:
        largest = fold_axis(ctx, moved.outward(ctx, sizes), 1, larger)  # type: ignore[arg-type]
    else:
        largest = ctx.reshape(fold_axis(ctx, sizes, axis, larger), (shape[0], 1, shape[2]))
    return _scale(ctx, x, ctx.lane_reduce("sum", largest))


def _scaled_constant(ctx: RuleContext, content: np.ndarray) -> Scaled:
    largest = float(np.max(np.abs(content), initial=0.0, where=np.isfinite(content)))
    exponent = math.frexp(largest)[1] - 1 - _TARGET_EXPONENT if largest else 0
    exponent = max(-126, min(126, exponent))
    with np.errstate(all="ignore"):
        narrow = np.ldexp(content, -exponent).astype(np.float16)
    return ctx.constant(narrow), DataFormat.FP16, ctx.immediate(2.0**exponent)


def _scaled_by_magnitude(ctx: RuleContext, x: int, magnitude: Magnitude) -> Scaled:
    """A scale that is known when resident arguments are; it brings the magnitude, rounded up, below 2^15."""
    if magnitude.number is not None:
        exponent = max(-126, min(126, math.frexp(magnitude.number)[1] - 1 - _TARGET_EXPONENT))

        def work(base: int) -> int:
            return ctx.elementwise("mul", base, ctx.immediate(2.0**-exponent))

        scaled = work_behind_moves(ctx, x, work, slices=True) if exponent else x
        return _narrow(ctx, scaled), DataFormat.FP16, ctx.immediate(2.0**exponent)
    total: Operand = ctx.immediate(0.0)
    for number, factors in magnitude.terms:
        term: Operand = ctx.immediate(number)
        for factor in factors:
            term = ctx.elementwise("mul", term, _largest(ctx, factor))
        total = ctx.elementwise("add", total, term)
    return _scale(ctx, x, total)  # type: ignore[arg-type]


def _largest(ctx: RuleContext, factor: Factor) -> Operand:
    """max |value|, or the largest norm of its columns; [1, 1, 1], computed when resident arguments are loaded."""
    aval = ctx.aval(factor.value)
    wide: int = convert(ctx, factor.value, aval.dtype, "float32")
    if factor.is_norm:

        def add(a: int, b: int) -> int:
            return ctx.elementwise("add", a, b)

        squares: int = ctx.elementwise("mul", wide, wide)
        total = fold_axis(ctx, squares, len(aval.shape) - 2, add)
        wide = ctx.elementwise("sqrt", total)
    size = math.prod(ctx.aval(wide).shape)
    flat = ctx.reshape(ctx.elementwise("abs", wide), (1, 1, size))
    return ctx.lane_reduce("max", flat) if size > 1 else flat


def _enter(
    ctx: RuleContext, x: int, is_lhs: bool, number_format: NumberFormat | None, is_image: bool = False
) -> Scaled:
    """An operand in the format in which it enters the MXM; images have one scale each, as the rhs has, though they are
    the lhs of products."""
    dtype = ctx.aval(x).dtype
    if number_format not in (None, FP16, FP32) and dtype in (*FLOATS, "int8"):
        return enter_as(ctx, x, is_lhs, number_format, is_image)
    is_wide = number_format == FP32
    if dtype == "int8":
        return x, DataFormat.INT8, None
    if dtype in NARROW_FLOATS:
        return x, FORMATS[dtype], None
    if dtype != "float32":
        raise ctx.unsupported(f"products of {dtype}; convert to a float type or int8")
    if _is_safe(ctx, x) and (ctx.ranges.of(x).is_fp16 or not is_wide):
        return _narrow(ctx, x), DataFormat.FP16, None
    if is_wide:
        return x, DataFormat.FP32, None
    magnitude = ctx.magnitudes.of(x)
    is_loose = magnitude is None or (magnitude.number or 0.0) > _LOOSEST
    if magnitude is not None and not is_loose and ctx.builder.constant_of(x) is None:
        return _scaled_by_magnitude(ctx, x, magnitude)
    return _scaled_lhs(ctx, x) if is_lhs else _scaled_rhs(ctx, x, is_image)


def _is_highest(precision: Any) -> bool:
    """dot_general's own precision: HIGHEST for either operand."""
    given = precision if isinstance(precision, tuple) else (precision,)
    return any(str(p).upper().endswith("HIGHEST") for p in given)


def _check(ctx: RuleContext, precision: Any, preferred: Any, out_sharding: Any) -> None:
    ctx.require(out_sharding=(out_sharding, [None]))
    given = precision if isinstance(precision, tuple) else (precision,)
    for p in given:
        if p is not None and str(p).rpartition(".")[2].upper() not in ("DEFAULT", "HIGH", "HIGHEST"):
            raise ctx.unsupported(f"precision={precision!r}; use DEFAULT, HIGH or HIGHEST")
    dtypes = {aval.dtype for aval in ctx.avals_in}
    target = ctx.avals_out[0].dtype
    if target not in FLOATS and not dtypes <= set(INTEGERS):
        raise ctx.unsupported(f"products of {sorted(dtypes)} to {target} (preferred_element_type={preferred})")


def _normal_form(ctx: RuleContext, x: int, batch: Sequence[int], contract: Sequence[int], is_lhs: bool) -> int:
    """Transposes and reshapes to [B, M, K] or [B, K, N]."""
    shape = ctx.aval(x).shape
    free = [i for i in range(len(shape)) if i not in batch and i not in contract]
    order = [*batch, *free, *contract] if is_lhs else [*batch, *contract, *free]
    sizes = [math.prod(shape[i] for i in group) for group in (batch, free, contract)]
    if not is_lhs:
        sizes[1], sizes[2] = sizes[2], sizes[1]
    return ctx.reshape(ctx.transpose(x, order), sizes)


@register_lowering("dot_general")
def _dot_general(
    ctx: RuleContext,
    lhs: Operand,
    rhs: Operand,
    *,
    dimension_numbers: Any,
    precision: Any,
    preferred_element_type: Any,
    out_sharding: Any = None,
) -> Sequence[Operand]:
    _check(ctx, precision, preferred_element_type, out_sharding)
    (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = dimension_numbers
    lhs_id, rhs_id = ctx.values([lhs, rhs])
    if 0 in (*ctx.avals_in[0].shape, *ctx.avals_in[1].shape):
        raise ctx.unsupported("a product of an empty array")
    dtypes, target = [aval.dtype for aval in ctx.avals_in], ctx.avals_out[0].dtype
    if target not in FLOATS and (dtypes != ["int8", "int8"] or target != "int32"):
        return [_of_integers(ctx, lhs_id, rhs_id, dimension_numbers)]
    lhs_id, rhs_id = (_as_factor(ctx, x) for x in (lhs_id, rhs_id))
    swapped = _is_better_swapped(ctx, (lhs_id, rhs_id), (lhs_contract, rhs_contract))
    if swapped:
        lhs_id, lhs_batch, lhs_contract, rhs_id, rhs_batch, rhs_contract = (
            *(rhs_id, rhs_batch, rhs_contract),
            *(lhs_id, lhs_batch, lhs_contract),
        )
    rhs_dimensions = tuple(rhs_batch), tuple(rhs_contract)
    if stacked := not swapped and _is_stacked(ctx, lhs_id, rhs_id, *rhs_dimensions):
        rhs_batch = (0,)
    lhs_id = _normal_form(ctx, lhs_id, lhs_batch, lhs_contract, True)
    blocks = _blocks(ctx, rhs_id, rhs_batch, rhs_contract)
    is_transposed = len(ctx.aval(rhs_id).shape) - 1 in rhs_contract
    rhs_id = _rhs_normal_form(ctx, rhs_id, rhs_batch, rhs_contract)

    def enter_lhs(form: NumberFormat | None) -> Scaled:
        left, data_format, scale = _enter(ctx, lhs_id, True, form)
        if stacked:
            shape = ctx.aval(rhs_id).shape[0], *ctx.aval(left).shape[1:]
            left = ctx.broadcast_to(left, shape)
        return left, data_format, scale

    def enter_rhs(form: NumberFormat | None) -> Scaled:
        return blocks or _enter_rhs(ctx, rhs_id, is_transposed, form)

    result = _multiply(ctx, (lhs_id, rhs_id), precision, target, enter_lhs, enter_rhs)
    if swapped:
        result = ctx.transpose(result, (0, 2, 1))
    if stacked:
        result = ctx.transpose(result, (1, 0, 2))
    return [ctx.reshape(result, ctx.avals_out[0].shape)]


def product_of_patches(
    ctx: RuleContext, x: int, patches: Callable[[int], int], per_image: int, kernel: int, precision: Any, target: str
) -> Operand:
    """patches(x) [G, M, K] x kernel [G, K, F] in `target`; patches repeat elements of the images x [N, R, C].

    `per_image` of them, in the order of the images, are made of each one. An element enters the MXM in one form,
    wherever it is repeated: scales are of images and not of rows, and patches are views of what was narrowed before.
    Rows of the kernel that meet padding of all patches are zeros.
    """

    def enter(form: NumberFormat | None) -> Scaled:
        narrow, data_format, scale = _enter(ctx, x, False, form, is_image=True)
        joined = patches(narrow)
        images = ctx.aval(x).shape[0]
        if isinstance(scale, int) and images > 1:
            rows = ctx.aval(joined).shape[1]
            spread = ctx.broadcast_to(scale, (images, per_image, 1))
            scale = ctx.reshape(spread, (images * per_image // rows, rows, 1))
        return joined, data_format, scale

    def enter_kernel(form: NumberFormat | None) -> Scaled:
        return _enter_rhs(ctx, kernel, False, form)

    operands = patches(x), kernel  # the first one only says what shape the product has
    return _multiply(ctx, operands, precision, target, enter, enter_kernel, skips_padding=True)


def _multiply(
    ctx: RuleContext,
    operands: tuple[int, int],
    precision: Any,
    target: str,
    enter_lhs: Callable[[NumberFormat | None], Scaled],
    enter_rhs: Callable[[NumberFormat | None], Scaled],
    skips_padding: bool = False,
) -> Operand:
    """[B, M, K] x [B, K, N] in the formats of the policy, scaled back and rounded to `target`."""
    formats = ctx.formats(*operands)
    if _is_highest(precision):
        formats = Formats(lhs=FP32, rhs=FP32, result=formats.result)
    left, left_format, left_scale = enter_lhs(formats.lhs)
    right, right_format, right_scale = enter_rhs(formats.rhs)
    num_rows = ctx.aval(operands[1]).shape[1]
    values = ctx.decode_blocks(right, right_format, num_rows) if right_format.is_block else None
    result: Operand = ctx.matmul(left, right, left_format, right_format, values, skips_padding)
    scales = [s for s in (left_scale, right_scale) if s is not None]
    if scales:
        result = convert(ctx, result, ctx.aval(result).dtype, "float32")
    for i, scale in enumerate(scales):
        result = ctx.elementwise("mul", result, scale, dtype=target if i == len(scales) - 1 else "float32")
    if not scales:
        result = convert(ctx, result, ctx.aval(result).dtype, target)
    return leave_as(ctx, result, target, formats)


def _is_stacked(ctx: RuleContext, lhs: int, rhs: int, batch: tuple[int, ...], contract: tuple[int, ...]) -> bool:
    """Whether the rhs [T, K, N] is resident matrices, to be multiplied as they are with one lhs of few rows."""
    shape, rows = ctx.aval(rhs).shape, math.prod(ctx.aval(lhs).shape[:-1])
    is_plain = len(shape) == 3 and shape[0] > 1 and not batch and contract == (1,)
    return is_plain and ctx.magnitudes.is_resident(rhs) and rows <= _FEW_ROWS


def enter_weights(ctx: RuleContext, x: int, number_format: NumberFormat | None) -> Scaled:
    """Resident weights [B, K, N] in the format in which they enter the MXM, as every product of them has them."""
    return _enter_rhs(ctx, x, False, number_format)


def _as_factor(ctx: RuleContext, x: int) -> int:
    """An operand of a product of floats: floats and int8 enter the MXM, other integers as float32."""
    dtype = ctx.aval(x).dtype
    return x if dtype in (*FLOATS, "int8") else convert(ctx, x, dtype, "float32")


def _of_integers(ctx: RuleContext, lhs: int, rhs: int, dimension_numbers: Any) -> Operand:
    (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = dimension_numbers
    product = integer_product(
        ctx,
        lhs,
        rhs,
        lambda x: _normal_form(ctx, x, lhs_batch, lhs_contract, True),
        lambda x: _normal_form(ctx, x, rhs_batch, rhs_contract, False),
    )
    return ctx.reshape(product, ctx.avals_out[0].shape)


def _is_better_swapped(ctx: RuleContext, operands: Sequence[int], contract: Sequence[Sequence[int]]) -> bool:
    """Whether the transposed product needs fewer transpositions: (a b)^T = b^T a^T, and the sums are the same.

    The contracting axis should be the last one of the lhs, and not of the rhs. If neither is so, as in
    einsum("bhqk,bkhd->bqhd"), which JAX writes as v . p, both operands would be transposed; swapped it is only the
    result, which the caller transposes back as a rule.
    """
    last = [len(ctx.aval(x).shape) - 1 in axes for x, axes in zip(operands, contract, strict=True)]
    same = ctx.aval(operands[0]).dtype == ctx.aval(operands[1]).dtype
    has_rows = all(len(ctx.aval(x).shape) > len(axes) for x, axes in zip(operands, contract, strict=True))
    constant = any(ctx.builder.constant_of(x) is not None for x in operands)
    return same and has_rows and not constant and not last[0] and last[1]


def _blocks(ctx: RuleContext, x: int, batch: Sequence[int], contract: Sequence[int]) -> Scaled | None:
    """The words [B, words of K rows, N] of an rhs in block floating point whose blocks lie along K."""
    definition = ctx.ranges.definition(x)
    if definition is None or not isinstance(definition.op, DecodeBlocks):
        return None
    (words,) = definition.operands
    *sizes, rows, columns = ctx.aval(words).shape
    if tuple(batch) != tuple(range(len(sizes))) or tuple(contract) != (len(sizes),):
        return None
    return ctx.reshape(words, (math.prod(sizes), rows, columns)), definition.op.format, None  # type: ignore[return-value]


def _enter_rhs(ctx: RuleContext, x: int, is_transposed: bool, number_format: NumberFormat | None) -> Scaled:
    """The rhs [B, K, N] in the format in which it enters the MXM; one that was transposed is narrowed before that."""
    if not is_transposed or number_format not in (None, FP16) or ctx.builder.constant_of(x) is not None:
        return _enter(ctx, x, False, number_format)
    rows: int = ctx.transpose(x, (0, 2, 1))
    entered, data_format, scale = _enter(ctx, rows, False, number_format)
    return ctx.transpose(entered, (0, 2, 1)), data_format, scale


def _rhs_normal_form(ctx: RuleContext, x: int, batch: Sequence[int], contract: Sequence[int]) -> int:
    """The rhs in normal form; known contents are moved at once."""
    content = ctx.builder.constant_of(x)
    if content is None:
        return _normal_form(ctx, x, batch, contract, False)
    free = [i for i in range(content.ndim) if i not in batch and i not in contract]
    sizes = [math.prod(content.shape[i] for i in group) for group in (batch, contract, free)]
    return ctx.constant(content.transpose(*batch, *contract, *free).reshape(sizes))
