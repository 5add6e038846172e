"""Rule of decode_blocks: weights in block floating point stay as they are until a product or the host unpacks them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lpu_jax.lowering.emit import Operand
from lpu_jax.lowering.registry import RuleContext, register_lowering
from lpu_jax.runtime.isa import DataFormat


@register_lowering("decode_blocks")
def _decode_blocks(ctx: RuleContext, words: Operand, *, format: str, num_rows: int, dtype: Any) -> Sequence[Operand]:
    """Free where a product takes the result as its rhs along the blocks; otherwise done on the host, for resident
    arguments only."""
    (value,) = ctx.values([words])
    return [ctx.decode_blocks(value, DataFormat[format.upper()], num_rows, str(ctx.avals_out[0].dtype))]
