"""Block floating point: B neighbours along the contracting axis share one exponent byte.

With e = floor(log2(max |x|)) over a block, its elements are integers q in units of 2^(E - (m - 2)), E = e:

  q = clip(RNE(x * 2^(m - 2 - E)), -(2^(m-1) - 1), 2^(m-1) - 1),   units limited to 2^-126 .. 2^127

or, with `optimal`, E is the one of e - 1, e, e + 1 with the least squared error (the smaller where two are equal).
Every value is a bf16 exactly. Quantisation is done once, at load, in NumPy.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from lpu_jax.runtime.formats import BF16, NumberFormat, element_dtype

_MIN_UNIT, _MAX_UNIT = -126, 127


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
        values = np.ldexp(self.mantissas.astype(np.float64), units.astype(np.int32))
        decoded: npt.NDArray[np.generic] = values.astype(np.float32).astype(element_dtype(BF16))
        return decoded


def quantize_blocks(x: npt.NDArray[np.float32], number_format: NumberFormat, optimal: bool = False) -> Blocks:
    """Quantises fp32 [..., K, N] along K.

    Raises:
      ValueError: x holds NaN or infinities, or the format is not a block format.
    """
    size, m = number_format.block_size, number_format.element_bits
    if not size:
        raise ValueError(f"{number_format} is not block floating point")
    num_bad = int(np.count_nonzero(~np.isfinite(x)))
    if num_bad:
        raise ValueError(f"block floating point has no infinity and no NaN, but {num_bad} of {x.size} values are")
    rows = x.shape[-2]
    padding = [(0, 0)] * (x.ndim - 2) + [(0, -rows % size), (0, 0)]
    blocks = np.pad(x.astype(np.float64), padding).reshape(*x.shape[:-2], -1, size, x.shape[-1])
    largest = np.abs(blocks).max(axis=-2, keepdims=True)
    base = np.frexp(largest)[1] - 1 - (m - 2)
    limit = 2 ** (m - 1) - 1
    best: tuple[npt.NDArray[np.float64], npt.NDArray[np.int32]] | None = None
    least = np.zeros(())
    for offset in (-1, 0, 1) if optimal else (0,):
        units = np.clip(np.where(largest > 0, base + offset, _MIN_UNIT), _MIN_UNIT, _MAX_UNIT)
        mantissas = np.clip(np.rint(np.ldexp(blocks, -units)), -limit, limit)
        error = np.sum((np.ldexp(mantissas, units) - blocks) ** 2, axis=-2, keepdims=True)
        if best is None:
            best, least = (mantissas, units), error
        else:
            is_better = error < least
            best = (np.where(is_better, mantissas, best[0]), np.where(is_better, units, best[1]))
            least = np.minimum(error, least)
    assert best is not None
    flat = best[0].reshape(*x.shape[:-2], -1, x.shape[-1])[..., :rows, :]
    return Blocks(number_format, flat.astype(np.int16), best[1][..., 0, :].astype(np.int8))
