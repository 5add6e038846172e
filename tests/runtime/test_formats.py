"""Formats and casts: every code point against gfloat, roundings against gfloat and ml_dtypes, NumPy against XLA."""

from fractions import Fraction

import gfloat
import gfloat.formats
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpu_jax.runtime import casts, formats, vxm
from lpu_jax.runtime.chip import GROQCHIP1
from lpu_jax.runtime.isa import DataFormat

ORACLES = {
    formats.FP32: gfloat.formats.format_info_binary32,
    formats.BF16: gfloat.formats.format_info_bfloat16,
    formats.FP16: gfloat.formats.format_info_binary16,
    formats.E4M3: gfloat.formats.format_info_ocp_e4m3,
    formats.E5M2: gfloat.formats.format_info_ocp_e5m2,
}
NARROW = [f for f in ORACLES if f != formats.FP32]


def by_name(number_format):
    return str(number_format)


def all_codes(number_format):
    unsigned = np.dtype(f"u{number_format.num_bytes}")
    return np.arange(2**number_format.element_bits).astype(unsigned).view(formats.element_dtype(number_format))


def on_xla(function, *arrays):
    with jax.enable_x64(True):
        return np.asarray(jax.jit(function)(*arrays))


def bits(x):
    return np.asarray(x).view(f"u{x.dtype.itemsize}")


def same_bits(result, expected):
    np.testing.assert_array_equal(bits(result), bits(expected))


def interesting():
    """fp32 values at, beside and half way between neighbours of every format, and random bit patterns."""
    grids = [casts.decode(np, all_codes(f), f) for f in NARROW]
    values = np.unique(np.concatenate([g[np.isfinite(g)] for g in grids]).astype(np.float64))
    halves = np.concatenate([(np.unique(g[np.isfinite(g)])[1:] + np.unique(g[np.isfinite(g)])[:-1]) / 2 for g in
                             (g.astype(np.float64) for g in grids)])  # fmt: skip
    with np.errstate(over="ignore"):
        middle = np.concatenate([values, halves]).astype(np.float32)
    around = np.concatenate([middle, np.nextafter(middle, np.float32(np.inf)), np.nextafter(middle, np.float32(0))])
    random = np.random.default_rng(0).integers(0, 2**32, 200_000, np.uint32).view(np.float32)
    special = np.array(
        [0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan, 1e-45, -1e-45, 3.4e38, 464, 480, 61440], np.float32
    )
    return np.concatenate([around, random, special])


@pytest.mark.parametrize("number_format", NARROW, ids=by_name)
def test_every_code_decodes_as_in_gfloat(number_format):
    codes, info = all_codes(number_format), ORACLES[number_format]
    decoded = casts.decode(np, codes, number_format)
    with np.errstate(invalid="ignore"):
        expected = gfloat.decode_ndarray(info, bits(codes).astype(np.int64)).astype(np.float32)
    expected[np.isnan(expected)] = np.nan
    same_bits(decoded, expected)
    same_bits(on_xla(lambda x: casts.decode(jnp, x, number_format), codes), decoded)
    finite = expected[np.isfinite(expected)]
    assert number_format.largest == finite.max()
    same_bits(casts.encode(np, finite, number_format), codes[np.isfinite(expected)])


@pytest.mark.parametrize("saturate", [False, True])
@pytest.mark.parametrize("number_format", NARROW, ids=by_name)
def test_rounding_agrees_with_gfloat(number_format, saturate):
    x, info = interesting()[::7], ORACLES[number_format]
    encoded = casts.encode(np, x, number_format, saturate)
    with np.errstate(invalid="ignore"):  # signalling NaN
        expected = gfloat.round_ndarray(info, x.astype(np.float64), sat=saturate)
    if saturate:
        expected = np.where(np.isinf(x), np.copysign(number_format.largest, x), expected)
    decoded = casts.decode(np, encoded, number_format).astype(np.float64)
    np.testing.assert_array_equal(decoded, expected)
    np.testing.assert_array_equal(np.signbit(decoded)[decoded == 0], np.signbit(x)[decoded == 0])


@pytest.mark.parametrize("saturate", [False, True])
@pytest.mark.parametrize("number_format", list(ORACLES), ids=by_name)
def test_rounding_agrees_with_ml_dtypes_and_xla(number_format, saturate):
    x = interesting()
    encoded = casts.encode(np, x, number_format, saturate)
    same_bits(on_xla(lambda x: casts.encode(jnp, x, number_format, saturate), x), encoded)
    clipped = np.clip(x, -number_format.largest, number_format.largest) if saturate else x
    with np.errstate(all="ignore"):
        expected = clipped.astype(formats.element_dtype(number_format))
    is_nan = np.isnan(x) | np.isnan(expected.astype(np.float32))
    same_bits(encoded[~is_nan], expected[~is_nan])
    # only e4m3 makes a NaN of what is too large; canonical, and with the sign of the operand
    canonical = {"fp32": 0x7FC00000, "bf16": 0x7FC0, "fp16": 0x7E00, "e4m3": 0x7F, "e5m2": 0x7E}[number_format.name]
    assert (bits(encoded[np.isnan(x)]) == canonical).all()
    assert (bits(encoded[is_nan]) & (2 ** (number_format.element_bits - 1) - 1) == canonical).all()


@pytest.mark.parametrize("name", ["bf16", "e4m3", "e5m2"])
def test_the_vector_unit_rounds_like_a_trip_through_memory(name):
    x, data_format = interesting(), DataFormat[name.upper()]
    stored = vxm.to_format(np, x, data_format)
    assert stored.dtype == vxm.storage_dtype(data_format)
    same_bits(vxm.apply(np, f"to_{name}", x), vxm.from_format(np, stored, data_format))


def test_sizes_and_costs_follow_from_the_format():
    wanted = {"fp32": (4, 3), "bf16": (2, 1), "fp16": (2, 2), "e4m3": (1, 1), "e5m2": (1, 1), "int8": (1, 1)}
    for name, (num_bytes, significand_bytes) in wanted.items():
        data_format = DataFormat[name.upper()]
        assert (data_format.num_bytes, data_format.significand_bytes) == (num_bytes, significand_bytes)
        assert data_format.number_format is formats.parse_format(name)
        assert np.dtype(formats.element_dtype(data_format.number_format)).itemsize == num_bytes
    assert GROQCHIP1.cycles_per_vector(320, 2, formats.E4M3.significand_bytes) == 2
    for m in range(3, 10):
        for block in (16, 32):
            block_format = formats.block_format(m, block)
            assert formats.parse_format(str(block_format)) == block_format
            assert block_format.bits == m + Fraction(8, block)
            assert block_format.significand_bytes == 1
            assert block_format.num_sram_bytes(64, 10) == 64 * 10 * block_format.bits / 8
    assert formats.parse_format("bfp4") == formats.block_format(4, 16)
    assert formats.block_format(4).num_sram_bytes(17, 3) == 3 * 2 * (4 * 16 + 8) // 8


def test_bad_formats_are_refused():
    with pytest.raises(ValueError, match="3 to 9 mantissa bits, not 2"):
        formats.block_format(2)
    with pytest.raises(ValueError, match="16 or 32 elements, not 64"):
        formats.block_format(4, 64)
    with pytest.raises(ValueError, match="unknown number format 'fp4'"):
        formats.parse_format("fp4")
