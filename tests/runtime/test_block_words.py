"""Words of block floating point: sizes, bits by hand, round trips, equal bits in NumPy and under XLA."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpu_jax.runtime import formats
from lpu_jax.runtime.block_floating_point import quantize_blocks
from lpu_jax.runtime.block_words import decode_words, encode_words, pack_words, unpack_words
from lpu_jax.runtime.isa import DataFormat

FORMATS = tuple(formats.BLOCK_FORMATS.values())


def weights(shape):
    rng = np.random.default_rng(1)
    x = (rng.standard_normal(shape) * np.exp2(rng.integers(-20, 20, shape))).astype(np.float32)
    x[..., :20, :] *= np.float32(2.0**-126)  # subnormals
    x[..., 40, :] = 0
    x[..., 50, 0] = np.finfo(np.float32).max
    return x


@pytest.mark.parametrize("number_format", FORMATS, ids=str)
def test_words_hold_what_the_quantiser_made(number_format):
    x = weights((2, 70, 3))
    for optimal in (False, True):
        blocks = quantize_blocks(x, number_format, optimal)
        words = encode_words(np, x, number_format, optimal)
        rows = number_format.num_words(70)
        assert words.shape == (2, rows, 3)
        assert words.nbytes == blocks.num_sram_bytes
        assert rows == -(-70 // number_format.block_size) * number_format.block_size * number_format.bits / 8
        decoded = decode_words(np, words, number_format, 70)
        assert decoded.tobytes() == blocks.decode().tobytes()
        mantissas, units = unpack_words(np, words, number_format)
        np.testing.assert_array_equal(mantissas.reshape(2, -1, 3)[:, :70], blocks.mantissas)
        np.testing.assert_array_equal(units, blocks.units)
        assert pack_words(np, mantissas, units, number_format).tobytes() == words.tobytes()


@pytest.mark.parametrize("name", ["bfp3x32", "bfp4", "bfp5", "bfp8", "bfp9x32"])
def test_words_have_the_same_bits_under_xla(name):
    number_format, x = formats.parse_format(name), weights((70, 3))
    for optimal in (False, True):
        words = encode_words(np, x, number_format, optimal)
        with jax.enable_x64(True):
            traced = jax.jit(lambda v, optimal=optimal: encode_words(jnp, v, number_format, optimal))(x)
            values = jax.jit(lambda v: decode_words(jnp, v, number_format, 70))(words)
        assert np.asarray(traced).tobytes() == words.tobytes()
        assert np.asarray(values).tobytes() == decode_words(np, words, number_format, 70).tobytes()


def test_mantissas_are_one_string_of_bits_from_the_lowest_on():
    """BFP(4, 16) of 7, -7, 1, 0, ...: unit 2^0, nibbles 7 and 9 in the first byte, 1 and 0 in the second."""
    x = np.zeros((16, 1), np.float32)
    x[:3, 0] = 7, -7, 1
    assert encode_words(np, x, formats.block_format(4))[:3, 0].view(np.uint8).tolist() == [0, 0x97, 0x01]
    x[:3, 0] = 3 / 8, -3 / 8, 1 / 8  # BFP(3, 16): unit 2^-3, 011 and 101 and 001 and half of 000
    words = encode_words(np, x, formats.block_format(3))[:, 0].view(np.uint8).tolist()
    assert words == [256 - 3, 0b01101011, 0, 0, 0, 0, 0]


def test_words_of_zeros_are_zeros():
    for number_format in FORMATS:
        words = np.zeros((number_format.num_words(32), 2), np.int8)
        assert not decode_words(np, words, number_format, 32).astype(np.float32).any()


def test_every_block_format_is_a_format_of_the_machine():
    for number_format in FORMATS:
        data_format = DataFormat[number_format.name.upper()]
        assert data_format.number_format == number_format
        assert data_format.is_block
        assert data_format.significand_bytes == 1
        assert data_format.num_words(160) == number_format.num_words(160)
    assert [f for f in DataFormat if f.is_block] == [DataFormat[f.name.upper()] for f in FORMATS]
