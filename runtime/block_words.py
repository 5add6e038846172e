"""Block floating point in SRAM and on streams: a matrix [K, N] as byte vectors of N lanes, its words.

Each block of B rows is 1 + B * m / 8 words: the exponent byte of every column (the unit of runtime/
block_floating_point.py, two's complement), then the B mantissas of a column as one string of bits, element r at bits
r * m .. r * m + m - 1 (two's complement), cut into bytes from the lowest bit on.

  bfp8x16   17 words for 16 rows: exponent, 16 mantissas            bfp4x16   9 words: exponent, 8 pairs of mantissas

Words are int8; all-zero words are zeros. Functions have equal bits in NumPy and under XLA (inside enable_x64).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lpu_jax.runtime.block_floating_point import scaled, to_blocks
from lpu_jax.runtime.formats import BF16, NumberFormat, element_dtype
from lpu_jax.runtime.numerics import Array


def encode_words(xp: Any, x: Array, number_format: NumberFormat, optimal: bool = False) -> Array:
    """Quantises fp32 [..., K, N] along K to words int8 [..., num_words(K), N]; see `to_blocks`."""
    mantissas, units = to_blocks(xp, x, number_format, optimal)
    return pack_words(xp, mantissas, units, number_format)


def pack_words(xp: Any, mantissas: Array, units: Array, number_format: NumberFormat) -> Array:
    """Words int8 [..., words, N] of mantissas [..., blocks, B, N] and units [..., blocks, N]."""
    m, size = number_format.element_bits, number_format.block_size
    codes = mantissas.astype(np.int32) & ((1 << m) - 1)
    words = [units.astype(np.int32) & 0xFF]
    for byte in range(size * m // 8):
        word = 0 * words[0]
        for row in range(8 * byte // m, (8 * byte + 7) // m + 1):
            shift = row * m - 8 * byte
            code = codes[..., row, :]
            word = word | (code << shift if shift >= 0 else code >> -shift)
        words.append(word & 0xFF)
    packed = xp.stack(words, axis=-2)
    return _signed(xp, packed, 8).astype(np.int8).reshape(*units.shape[:-2], -1, units.shape[-1])


def unpack_words(xp: Any, words: Array, number_format: NumberFormat) -> tuple[Array, Array]:
    """Mantissas int32 [..., blocks, B, N] and units int32 [..., blocks, N] of words [..., words, N]."""
    m, size = number_format.element_bits, number_format.block_size
    blocks = words.reshape(*words.shape[:-2], -1, 1 + size * m // 8, words.shape[-1]).astype(np.int32)
    data = blocks[..., 1:, :] & 0xFF
    first = np.arange(size) * m // 8
    last = np.minimum(first + 1, size * m // 8 - 1)
    shift = (np.arange(size) * m % 8).astype(np.int32)[:, None]
    pairs = data[..., first, :] | (data[..., last, :] << 8)
    return _signed(xp, (pairs >> shift) & ((1 << m) - 1), m), blocks[..., 0, :]


def decode_words(xp: Any, words: Array, number_format: NumberFormat, num_rows: int, dtype: Any = None) -> Array:
    """The values of words [..., words, N] as bf16 (or another float) [..., num_rows, N]; exact in bf16 and float32."""
    mantissas, units = unpack_words(xp, words, number_format)
    values = scaled(xp, mantissas, units[..., None, :])
    flat = values.reshape(*words.shape[:-2], -1, words.shape[-1])[..., :num_rows, :]
    return flat.astype(element_dtype(BF16) if dtype is None else dtype)


def _signed(xp: Any, code: Array, bits: int) -> Array:
    """Two's complement of `bits` bits as an integer."""
    sign = 1 << (bits - 1)
    return (code ^ sign) - sign
