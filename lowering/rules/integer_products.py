"""Products of integers: operands are cut into signed bytes, whose products the MXM sums exactly; bits wrap as in JAX.

x = d0 + 2^8 d1 + 2^16 d2 + 2^24 d3 (mod 2^32), -128 <= d < 128; terms of weight 2^32 and more vanish.
"""

from __future__ import annotations

from collections.abc import Callable

from lpu_jax.lowering.emit import Operand
from lpu_jax.lowering.registry import RuleContext
from lpu_jax.lowering.rules.integers import cut, integer
from lpu_jax.runtime.isa import DataFormat

_NUM_DIGITS = {"bool": 1, "int8": 1, "uint8": 2, "int16": 2, "uint16": 3, "int32": 4, "uint32": 4}
INTEGERS = tuple(_NUM_DIGITS)


def digits(ctx: RuleContext, x: int, dtype: str) -> list[int]:
    """int8 digits of an integer value, the lowest first."""
    count = _NUM_DIGITS[dtype]
    if dtype == "bool":
        return [ctx.elementwise("identity", x, dtype="int8")]
    if count == 1:
        return [x]
    found = []
    rest: Operand = x
    for index in range(count):
        digit = ctx.elementwise("identity", rest, dtype="int8")
        found.append(digit)
        if index < count - 1:
            rest = ctx.elementwise("isub", rest, ctx.elementwise("identity", digit, dtype="int32"))
            rest = ctx.elementwise("shift_right_arithmetic", rest, integer(8))
    return found  # type: ignore[return-value]


def integer_product(
    ctx: RuleContext, lhs: int, rhs: int, normal_lhs: Callable[[int], int], normal_rhs: Callable[[int], int]
) -> Operand:
    """[B, M, N] of integer operands, in the dtype of the result.

    normal_lhs, normal_rhs: bring a digit to [B, M, K] and [B, K, N].
    """
    target = ctx.avals_out[0].dtype
    left = [normal_lhs(x) for x in digits(ctx, lhs, ctx.avals_in[0].dtype)]
    right = [normal_rhs(x) for x in digits(ctx, rhs, ctx.avals_in[1].dtype)]
    total: Operand | None = None
    for i, x in enumerate(left):
        for j, y in enumerate(right):
            if i + j > 3:
                continue
            term: Operand = ctx.matmul(x, y, DataFormat.INT8, DataFormat.INT8)
            term = ctx.elementwise("shift_left", term, integer(8 * (i + j))) if i + j else term
            total = term if total is None else ctx.elementwise("iadd", total, term)
    assert total is not None
    if target == "bool":
        return ctx.elementwise("ine", total, integer(0))
    return cut(ctx, total, target)
