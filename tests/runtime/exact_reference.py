"""Exact dot products in Python integers, and operands made to be hard. Shares no code with what it checks."""

from __future__ import annotations

from fractions import Fraction

import ml_dtypes
import numpy as np

SCALE = 149  # every operand is an integer times 2^-149

DTYPES = {
    "fp32": np.dtype(np.float32),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "fp16": np.dtype(np.float16),
    "e4m3": np.dtype(ml_dtypes.float8_e4m3fn),
    "e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "int8": np.dtype(np.int8),
}
FIELDS = {"fp32": (8, 23), "bf16": (8, 7), "fp16": (5, 10), "e4m3": (4, 3), "e5m2": (5, 2)}
EXPONENTS = {"fp32": (-149, 127), "bf16": (-133, 127), "fp16": (-24, 15), "e4m3": (-9, 8), "e5m2": (-16, 15)}
EXPONENTS["int8"] = (0, 6)
"""Powers of two that a format holds, subnormals included."""


def decode(name: str, code: int) -> int | str:
    """An element as an integer times 2^-149, or "nan", "+inf", "-inf"."""
    if name == "int8":
        return (code - 256 if code > 127 else code) << SCALE
    exponent_bits, fraction_bits = FIELDS[name]
    sign = -1 if code >> (exponent_bits + fraction_bits) else 1
    exponent = (code >> fraction_bits) & ((1 << exponent_bits) - 1)
    fraction = code & ((1 << fraction_bits) - 1)
    bias = (1 << (exponent_bits - 1)) - 1
    if exponent == (1 << exponent_bits) - 1:
        if name == "e4m3" and fraction == 7:
            return "nan"
        if name != "e4m3":
            return "nan" if fraction else ("+inf" if sign > 0 else "-inf")
    significand = fraction if exponent == 0 else fraction | (1 << fraction_bits)
    weight = max(exponent, 1) - bias - fraction_bits + SCALE
    return sign * (significand << weight)


def round_to_fp32(numerator: int, scale: int) -> int:
    """Bits of numerator * 2^-scale, rounded to nearest even."""
    sign, magnitude = (1 << 31 if numerator < 0 else 0), abs(numerator)
    if not magnitude:
        return 0
    exponent = max(magnitude.bit_length() - 1 - scale, -126)
    drop = exponent - 23 + scale  # the weight of the last bit kept is 2^(exponent - 23)
    if drop <= 0:
        kept = magnitude << -drop
    else:
        kept, rest, half = magnitude >> drop, magnitude & ((1 << drop) - 1), 1 << (drop - 1)
        kept += rest > half or (rest == half and kept & 1)
    bits = kept if exponent == -126 else kept + ((exponent + 126) << 23)
    return sign | min(bits, 0x7F800000)


def _special(pairs: list[tuple[int | str, int | str]]) -> int | None:
    infinities = set()
    for a, b in pairs:
        if "nan" in (a, b):
            return 0x7FC00000
        if isinstance(a, str) or isinstance(b, str):
            if a == 0 or b == 0:
                return 0x7FC00000
            negative = [x == "-inf" if isinstance(x, str) else x < 0 for x in (a, b)]
            infinities.add(negative[0] != negative[1])
    if not infinities:
        return None
    return 0x7FC00000 if len(infinities) == 2 else (0xFF800000 if infinities.pop() else 0x7F800000)


def decode_all(name: str, x: np.ndarray) -> list[list[int | str]]:
    """Rows of a matrix, decoded."""
    codes = x.view(f"u{x.dtype.itemsize}").tolist()
    return [[decode(name, code) for code in row] for row in codes]


def dot(lhs_name: str, lhs: np.ndarray, rhs_name: str, rhs: np.ndarray) -> np.ndarray:
    """uint32 bits of the exact products, rounded once."""
    rows, columns = decode_all(lhs_name, lhs), decode_all(rhs_name, np.ascontiguousarray(rhs.T))
    out = np.empty((len(rows), len(columns)), np.uint32)
    for m, row in enumerate(rows):
        has_special = any(isinstance(a, str) for a in row)
        for n, column in enumerate(columns):
            special = None
            if has_special or any(isinstance(b, str) for b in column):
                special = _special(list(zip(row, column, strict=True)))
            if special is None:
                special = round_to_fp32(sum(a * b for a, b in zip(row, column, strict=True)), 2 * SCALE)
            out[m, n] = special
    return out


def power(name: str, exponent: int) -> np.ndarray:
    """2^exponent in a format."""
    return np.array(float(Fraction(2) ** exponent)).astype(DTYPES[name])


def split(exponent: int, lhs_name: str, rhs_name: str) -> tuple[int, int]:
    """Exponents of the operands of a product 2^exponent."""
    (low, high), (other_low, other_high) = EXPONENTS[lhs_name], EXPONENTS[rhs_name]
    left = min(max(exponent // 2, low, exponent - other_high), high, exponent - other_low)
    return left, exponent - left


def random_bits(rng: np.random.Generator, name: str, shape: tuple[int, ...], small: bool = False) -> np.ndarray:
    """Any finite value; `small` takes subnormals and the smallest normals only."""
    dtype = DTYPES[name]
    unsigned = np.dtype(f"u{dtype.itemsize}")
    codes = rng.integers(0, 256**dtype.itemsize, shape, np.uint64)
    if small and name != "int8":
        fraction_bits, sign = FIELDS[name][1], 1 << (8 * dtype.itemsize - 1)
        codes = (codes & np.uint64(sign)) | (codes & np.uint64((2 << fraction_bits) - 1))
    values = codes.astype(unsigned).view(dtype)
    if name == "int8":
        return values
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(values.astype(np.float32))
    return np.where(finite, values, np.zeros((), dtype))


def normal(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """N(0, 1), or N(0, 50) for int8."""
    scale = 50 if name == "int8" else 1
    return np.clip(rng.standard_normal(shape) * scale, -127, 127).astype(np.float32).astype(DTYPES[name])


def _negative(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, np.int8(-127)) * np.int8(-1) if x.dtype == np.int8 else -x


def cancelling(rng, lhs_name, rhs_name, shape, residue=True):
    """Pairs that cancel, and one product that is left."""
    m, k, n = shape
    half = (k - 1) // 2
    left, right = random_bits(rng, lhs_name, (m, half)), random_bits(rng, rhs_name, (half, n))
    if lhs_name == "int8":
        left = np.maximum(left, np.int8(-127))
    rest_left, rest_right = random_bits(rng, lhs_name, (m, k - 2 * half)), random_bits(rng, rhs_name, (k - 2 * half, n))
    if not residue:
        rest_left = np.zeros_like(rest_left)
    order = rng.permutation(k)
    lhs = np.concatenate([left, rest_left, _negative(left)], axis=1)[:, order]
    return lhs, np.concatenate([right, rest_right, right], axis=0)[order]


def ties(rng, lhs_name, rhs_name, shape, hidden, subnormal=False):
    """1 (or 1 + ulp) plus half an ulp plus or minus the smallest product; `hidden` adds huge pairs that cancel."""
    m, k, n = shape
    least = EXPONENTS[lhs_name][0] + EXPONENTS[rhs_name][0]
    most = EXPONENTS[lhs_name][1] + EXPONENTS[rhs_name][1]
    base = -127 if subnormal else min(most, max(least + 25, 0))
    last = -149 if subnormal else base - 23
    lhs, rhs = np.zeros((m, k), DTYPES[lhs_name]), np.zeros((k, n), DTYPES[rhs_name])
    slots = rng.permutation(k)[:6]
    for i, exponent in enumerate((base, last, last - 1, least, most, most)):
        left, right = split(max(exponent, least), lhs_name, rhs_name)
        for row in range(m):
            sign = rng.choice([-1, 1]) if i == 3 else (-1 if i == 5 else 1)
            is_there = rng.random() < 0.7 if i in (1, 3) else (hidden or i < 4)
            lhs[row, slots[i]] = np.array(sign * is_there * float(power(lhs_name, left))).astype(DTYPES[lhs_name])
        rhs[slots[i]] = power(rhs_name, right)
    return lhs, rhs


def with_special(rng, lhs_name, rhs_name, shape):
    """Infinities, NaN, zeros and subnormals among normal values."""
    m, k, n = shape
    operands = []
    for name, size in ((lhs_name, (m, k)), (rhs_name, (k, n))):
        x = np.where(rng.random(size) < 0.1, random_bits(rng, name, size, small=True), normal(rng, name, size))
        x[rng.random(size) < 0.05] = 0
        if name != "int8":
            values = [np.nan] if name == "e4m3" else [np.inf, -np.inf, np.nan]
            for value in values:
                x[rng.random(size) < 0.5 / k] = value
        operands.append(x)
    return tuple(operands)


KINDS = {
    "normal": lambda rng, a, b, s: (normal(rng, a, s[:2]), normal(rng, b, s[1:])),
    "random bits": lambda rng, a, b, s: (random_bits(rng, a, s[:2]), random_bits(rng, b, s[1:])),
    "cancelling": cancelling,
    "zero": lambda rng, a, b, s: cancelling(rng, a, b, s, residue=False),
    "ties": lambda rng, a, b, s: ties(rng, a, b, s, hidden=False),
    "hidden ties": lambda rng, a, b, s: ties(rng, a, b, s, hidden=True),
    "subnormals": lambda rng, a, b, s: (random_bits(rng, a, s[:2], True), random_bits(rng, b, s[1:])),
    "both subnormal": lambda rng, a, b, s: (random_bits(rng, a, s[:2], True), random_bits(rng, b, s[1:], True)),
    "special": with_special,
}
"""Makers of operands: (rng, lhs name, rhs name, (M, K, N)) -> lhs, rhs."""


def subnormal_results(rng, lhs_name, rhs_name, shape):
    """Sums between 2^-149 and 2^-126, with ties; for pairs that reach so far down."""
    if EXPONENTS[lhs_name][0] + EXPONENTS[rhs_name][0] > -150:
        return KINDS["subnormals"](rng, lhs_name, rhs_name, shape)
    return ties(rng, lhs_name, rhs_name, shape, hidden=bool(rng.integers(2)), subnormal=True)


KINDS["subnormal results"] = subnormal_results


def decode_block_words(words: np.ndarray, mantissa_bits: int, block_size: int, num_rows: int) -> list[list[int]]:
    """Columns of block floating point, elements as integers times 2^-149, from the bytes [words, N] at rest.

    A block is the exponent byte of the column and then its mantissas, one string of bits from the lowest on.
    """
    data_words = block_size * mantissa_bits // 8
    columns = []
    for column in words.view(np.uint8).T.tolist():
        values = []
        for begin in range(0, len(column), 1 + data_words):
            unit = column[begin] - 256 if column[begin] > 127 else column[begin]
            string = int.from_bytes(bytes(column[begin + 1 : begin + 1 + data_words]), "little")
            for row in range(block_size):
                code = (string >> (row * mantissa_bits)) & ((1 << mantissa_bits) - 1)
                mantissa = code - (1 << mantissa_bits) if code >> (mantissa_bits - 1) else code
                values.append(mantissa * 2 ** (unit + SCALE))
        columns.append(values[:num_rows])
    return columns


def dot_with_blocks(lhs_name: str, lhs: np.ndarray, columns: list[list[int]]) -> np.ndarray:
    """uint32 bits of the exact products with decoded columns, rounded once."""
    rows = decode_all(lhs_name, lhs)
    out = np.empty((len(rows), len(columns)), np.uint32)
    for m, row in enumerate(rows):
        for n, column in enumerate(columns):
            special = _special(list(zip(row, column, strict=True))) if any(isinstance(a, str) for a in row) else None
            if special is None:
                special = round_to_fp32(sum(a * b for a, b in zip(row, column, strict=True)), 2 * SCALE)
            out[m, n] = special
    return out
