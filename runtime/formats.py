"""Number formats: what an element is, how many bits and bytes it takes, and how many byte products it costs.

Floating formats hold (-1)^s * 1.f * 2^(e - bias), subnormals included. Block floating point BFP(m, B) holds B
neighbours along the contracting axis with one exponent byte E: value = q * 2^(E - (m - 2)), q an integer of m bits
(the sign among them) with |q| <= 2^(m - 1) - 1.
"""

from __future__ import annotations

import dataclasses
import math
import re
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np

BLOCK_SIZES = (16, 32)
_SHARED_EXPONENT_BITS = 8


@dataclasses.dataclass(frozen=True, slots=True)
class NumberFormat:
    """A number format.

    name: fp32, bf16, fp16, e4m3, e5m2, int8 or bfp<m>x<B>.
    element_bits: bits of one element without what it shares with its block.
    significand_bits: bits of the magnitude that is multiplied, the leading one included and the sign not.
    exponent_bits: 0 for integers and block floating point.
    block_size: elements with one exponent; 0 outside block floating point.
    has_infinity: whether the largest exponent field is kept for infinity and NaN.
    """

    name: str
    element_bits: int
    significand_bits: int
    exponent_bits: int = 0
    block_size: int = 0
    has_infinity: bool = False

    @property
    def bits(self) -> Fraction:
        """Bits per element, shared exponent included: m + 8 / B for block floating point."""
        shared = Fraction(_SHARED_EXPONENT_BITS, self.block_size) if self.block_size else Fraction(0)
        return self.element_bits + shared

    @property
    def num_bytes(self) -> int:
        """Whole bytes of one element: streams of a vector on the move."""
        return -(-self.element_bits // 8)

    @property
    def significand_bytes(self) -> int:
        """Bytes of the significand, which set the MXM cost: fp32 3, fp16 2, all others 1."""
        return -(-self.significand_bits // 8)

    @property
    def fraction_bits(self) -> int:
        """Bits of f in 1.f."""
        return self.significand_bits - 1

    @property
    def bias(self) -> int:
        """Exponent bias of a floating format."""
        return (1 << (self.exponent_bits - 1)) - 1

    @property
    def largest(self) -> float:
        """The largest finite value of a floating format; the largest mantissa of the others."""
        if not self.exponent_bits:
            return float((1 << (self.element_bits - 1)) - 1)
        top = (1 << self.exponent_bits) - 1 - self.has_infinity - self.bias
        ulps = (2 << self.fraction_bits) - (1 if self.has_infinity else 2)
        return math.ldexp(ulps, top - self.fraction_bits)

    def num_words(self, num_rows: int) -> int:
        """Bytes that `num_rows` elements of a column take where the rows are contracted over.

        ceil(rows / B) * (1 + B * m / 8) for block floating point (runtime/block_words.py), else rows * bytes.
        """
        if not self.block_size:
            return num_rows * self.num_bytes
        return -(-num_rows // self.block_size) * (1 + self.block_size * self.element_bits // 8)

    def num_sram_bytes(self, num_rows: int, num_columns: int) -> int:
        """Bytes of a matrix [num_rows, num_columns] whose rows are contracted over: words * columns."""
        return self.num_words(num_rows) * num_columns

    def __str__(self) -> str:
        return self.name


FP32 = NumberFormat("fp32", 32, 24, 8, has_infinity=True)
BF16 = NumberFormat("bf16", 16, 8, 8, has_infinity=True)
FP16 = NumberFormat("fp16", 16, 11, 5, has_infinity=True)
E4M3 = NumberFormat("e4m3", 8, 4, 4)
E5M2 = NumberFormat("e5m2", 8, 3, 5, has_infinity=True)
INT8 = NumberFormat("int8", 8, 8)

SCALAR_FORMATS = {f.name: f for f in (FP32, BF16, FP16, E4M3, E5M2, INT8)}
"""Formats of single elements by name; e4m3 is OCP's E4M3 (no infinity, NaN 0x7f), e5m2 its E5M2."""

_DTYPES: dict[str, Any] = {
    "fp32": np.float32,
    "bf16": ml_dtypes.bfloat16,
    "fp16": np.float16,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "int8": np.int8,
}


def block_format(mantissa_bits: int, block_size: int = 16) -> NumberFormat:
    """BFP(m, B), 3 <= m <= 9 with the sign among the m bits, B = 16 or 32."""
    if not 3 <= mantissa_bits <= 9:
        raise ValueError(f"block floating point has 3 to 9 mantissa bits, not {mantissa_bits}")
    if block_size not in BLOCK_SIZES:
        raise ValueError(f"blocks have 16 or 32 elements, not {block_size}")
    return NumberFormat(f"bfp{mantissa_bits}x{block_size}", mantissa_bits, mantissa_bits - 1, block_size=block_size)


BLOCK_FORMATS = {f.name: f for m in range(3, 10) for f in (block_format(m, 16), block_format(m, 32))}
"""All block formats by name."""


def parse_format(name: str) -> NumberFormat:
    """The format of a name: fp32, bf16, fp16, e4m3, e5m2, int8, or bfp<m>[x<B>] such as bfp4 or bfp8x32."""
    if name in SCALAR_FORMATS:
        return SCALAR_FORMATS[name]
    match = re.fullmatch(r"bfp(\d)(?:x(\d+))?", name)
    if match is None:
        raise ValueError(f"unknown number format {name!r}; known are {', '.join(SCALAR_FORMATS)} and bfp3 to bfp9")
    return block_format(int(match[1]), int(match[2] or 16))


def element_dtype(number_format: NumberFormat) -> np.dtype[Any]:
    """Dtype of stored elements; of BFP that of decoded ones, bf16, which holds every BFP value exactly."""
    dtype: np.dtype[Any] = np.dtype(_DTYPES["bf16" if number_format.block_size else number_format.name])
    return dtype
