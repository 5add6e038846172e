"""Block floating point: nearest on its grid, block edges, optimal exponents, exact products."""

from fractions import Fraction

import exact_reference as reference
import jax
import numpy as np
import pytest

from lpu_jax.runtime import certified_dot, formats
from lpu_jax.runtime.block_floating_point import quantize_blocks
from lpu_jax.runtime.exact_dot import exact_dot
from lpu_jax.runtime.isa import DataFormat

BF16 = DataFormat.BF16
FORMATS = [formats.block_format(m, b) for m in range(3, 10) for b in (16, 32)]


def weights(seed, shape=(70, 3)):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * np.exp2(rng.integers(-20, 20, shape))).astype(np.float32)


@pytest.mark.parametrize("number_format", FORMATS, ids=str)
def test_elements_are_nearest_on_the_grid_of_their_block(number_format):
    x, m, size = weights(1), number_format.element_bits, number_format.block_size
    x[16:32, 1] = 0
    blocks = quantize_blocks(x, number_format)
    values, limit = blocks.decode().astype(np.float32), 2 ** (m - 1) - 1
    for k, n in np.ndindex(*x.shape):
        block = x[k // size * size : k // size * size + size, n]
        largest = max(abs(Fraction(float(v))) for v in block)
        if not largest:
            assert values[k, n] == 0
            continue
        exponent = next(e for e in range(200, -200, -1) if Fraction(2) ** e <= largest)
        unit = Fraction(2) ** (exponent - (m - 2))
        q = max(-limit, min(limit, round(Fraction(float(x[k, n])) / unit)))  # round is to even
        assert Fraction(float(values[k, n])) == q * unit
        assert blocks.mantissas[k, n] == q


def test_units_stay_within_the_range_of_a_byte_and_bf16():
    x = np.array([[2.0**-149, 2.0**-126], [0, 2.0**127]], np.float32).repeat(8, axis=0)
    x[0, 1] = np.finfo(np.float32).max
    for number_format in FORMATS:
        blocks = quantize_blocks(x, number_format)
        assert blocks.units.min() >= -126
        assert np.isfinite(blocks.decode().astype(np.float32)).all()


@pytest.mark.parametrize("m", [3, 4, 5])
def test_optimal_exponents_never_lose(m):
    x = np.random.default_rng(2).standard_normal((512, 40)).astype(np.float32)
    errors = []
    for optimal in (False, True):
        values = quantize_blocks(x, formats.block_format(m), optimal).decode().astype(np.float64)
        errors.append(((values - x) ** 2).reshape(32, 16, 40).sum(axis=1))
    assert (errors[1] <= errors[0]).all()
    assert errors[1].sum() < 0.99 * errors[0].sum()


def test_bad_values_are_counted():
    x = np.ones((32, 2), np.float32)
    x[3, 1], x[4, 0] = np.nan, np.inf
    with pytest.raises(ValueError, match="but 2 of 64 values are"):
        quantize_blocks(x, formats.block_format(4))
    with pytest.raises(ValueError, match="int8 is not block floating point"):
        quantize_blocks(x, formats.INT8)


@pytest.mark.parametrize("spread", [0, 12, 40])
def test_products_of_blocks_are_exact(spread):
    rng = np.random.default_rng(3)
    scales = [np.exp2(rng.integers(-spread, spread + 1, shape)) for shape in ((96, 8), (96, 8))]
    activations, weight = ((rng.standard_normal((96, 8)) * s).astype(np.float32) for s in scales)
    left, right = formats.block_format(8), formats.block_format(4)
    lhs = np.ascontiguousarray(quantize_blocks(activations, left).decode().T)
    rhs = quantize_blocks(weight, right).decode()
    expected = reference.dot("bf16", lhs, "bf16", rhs)
    np.testing.assert_array_equal(exact_dot(np, lhs, rhs, left, right).view(np.uint32), expected)
    with jax.enable_x64(True):
        levels = jax.jit(lambda a, b: certified_dot.certified_dot(a, b, BF16, BF16, is_short=True, panel_width=48))
        np.testing.assert_array_equal(np.asarray(levels(lhs, rhs)).view(np.uint32), expected)
