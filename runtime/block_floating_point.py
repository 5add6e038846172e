"""Block floating point: B neighbours along the contracting axis share one exponent byte.

With e = floor(log2(max |x|)) over a block, its elements are integers q in units of 2^u, u = e - (m - 2):

  q = clip(RNE(x * 2^-u), -(2^(m-1) - 1), 2^(m-1) - 1),   -126 <= u <= 129 - m

or, with `optimal`, e is the one of e - 1, e, e + 1 with the least squared error (the smaller where two are equal).
Every value is a bf16 exactly, and none is subnormal. Equal bits in NumPy and under XLA.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from lpu_jax.runtime.casts import bits_of
from lpu_jax.runtime.formats import BF16, NumberFormat, element_dtype
from lpu_jax.runtime.numerics import Array, bitcast, product

_MIN_UNIT = -126
_FRACTION = 0x7FFFFF


@dataclasses.dataclass(frozen=True, eq=False)
class Blocks:
    """A quantised matrix of K rows and N columns.

    mantissas: int16 [..., K, N], |q| <= 2^(m-1) - 1.
    units: int8 [..., ceil(K / B), N]; value = mantissa * 2^unit.
    """

    number_format: NumberFormat
    mantissas: npt.NDArray[np.int16]
    units: npt.NDArray[np.int8]

    @property
    def num_sram_bytes(self) -> int:
        """Bytes at rest: m bits per element and a byte per block."""
        rows, columns = self.mantissas.shape[-2:]
        return self.number_format.num_sram_bytes(rows, columns) * int(np.prod(self.mantissas.shape[:-2]))

    def decode(self) -> npt.NDArray[np.generic]:
        """The values as bf16 [..., K, N]; exact."""
        rows = self.mantissas.shape[-2]
        units = np.repeat(self.units, self.number_format.block_size, axis=-2)[..., :rows, :]
        decoded: npt.NDArray[np.generic] = scaled(np, self.mantissas, units).astype(element_dtype(BF16))
        return decoded


def scaled(xp: Any, mantissas: Array, units: Array) -> Array:
    """mantissa * 2^unit as float32, for units of at least -126; exact."""
    power = bitcast(xp, (units.astype(np.int32) + 127) << 23, np.float32)
    return mantissas.astype(np.float32) * power


def quantize_blocks(x: npt.NDArray[np.float32], number_format: NumberFormat, optimal: bool = False) -> Blocks:
    """Quantises fp32 [..., K, N] along K, in NumPy.

    Raises:
      ValueError: x holds NaN or infinities, or the format is not a block format.
    """
    _check(number_format)
    num_bad = int(np.count_nonzero(~np.isfinite(x)))
    if num_bad:
        raise ValueError(f"block floating point has no infinity and no NaN, but {num_bad} of {x.size} values are")
    mantissas, units = to_blocks(np, x, number_format, optimal)
    flat = mantissas.reshape(*x.shape[:-2], -1, x.shape[-1])[..., : x.shape[-2], :]
    return Blocks(number_format, flat.astype(np.int16), units.astype(np.int8))


def _check(number_format: NumberFormat) -> None:
    if not number_format.block_size:
        raise ValueError(f"{number_format} is not block floating point")


def to_blocks(xp: Any, x: Array, number_format: NumberFormat, optimal: bool = False) -> tuple[Array, Array]:
    """Mantissas int32 [..., blocks, B, N] and units int32 [..., blocks, N] of finite fp32 [..., K, N].

    Rows beyond K are zero; NaN counts as zero, infinity as the largest float32.

    Raises:
      ValueError: the format is not a block format.
    """
    size, m = number_format.block_size, number_format.element_bits
    _check(number_format)
    padding = [(0, 0)] * (x.ndim - 2) + [(0, -x.shape[-2] % size), (0, 0)]
    blocks = xp.pad(x.astype(np.float32), padding).reshape(*x.shape[:-2], -1, size, x.shape[-1])
    bits = bits_of(xp, blocks)
    magnitude = bits & 0x7FFFFFFF
    magnitude = xp.where(magnitude > 0x7F800000, 0, xp.minimum(magnitude, 0x7F7FFFFF))
    exponent = xp.maximum(xp.max(magnitude, axis=-2, keepdims=True) >> 23, 1) - 127
    values = _as_float64(xp, magnitude)
    values = xp.where(bits < 0, -values, values)
    best: Array = None
    least: Array = None
    for offset in (-1, 0, 1) if optimal else (0,):
        units = xp.clip(exponent - (m - 2) + offset, _MIN_UNIT, 129 - m)
        mantissas, error = _rounded(xp, values, units, 2 ** (m - 1) - 1, optimal)
        if best is None:
            best, least = (mantissas, units), error
        else:
            is_better = error < least
            best = xp.where(is_better, mantissas, best[0]), xp.where(is_better, units, best[1])
            least = xp.minimum(error, least)
    return best[0].astype(np.int32), best[1][..., 0, :].astype(np.int32)


def _as_float64(xp: Any, magnitude: Array) -> Array:
    """float64 of the bits of a float32 >= 0; subnormals survive where the host flushes them."""
    subnormal = magnitude.astype(np.float64) * 2.0**-149
    return xp.where(magnitude <= _FRACTION, subnormal, bitcast(xp, magnitude, np.float32).astype(np.float64))


def _power(xp: Any, exponent: Array) -> Array:
    """2^exponent as float64."""
    return bitcast(xp, (exponent.astype(np.int64) + 1023) << 52, np.float64)


def _rounded(xp: Any, values: Array, units: Array, limit: int, wants_error: bool) -> tuple[Array, Array]:
    """(mantissas as float64, squared error of each block); errors are added row by row, in the same order anywhere."""
    mantissas = xp.clip(xp.rint(values * _power(xp, -units)), -limit, limit)
    if not wants_error:
        return mantissas, None
    difference = mantissas * _power(xp, units) - values
    squares = product(xp, difference, difference)
    error = squares[..., :1, :]
    for row in range(1, squares.shape[-2]):
        error = error + squares[..., row : row + 1, :]
    return mantissas, error
