"""Exact products with stored blocks, and the quick paths of the fast runtime, against Python integers."""

import exact_reference as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpu_jax.runtime import certified_dot
from lpu_jax.runtime.block_words import decode_words, pack_words
from lpu_jax.runtime.exact_dot import exact_dot
from lpu_jax.runtime.formats import BLOCK_FORMATS
from lpu_jax.runtime.isa import PRODUCT_FORMATS, DataFormat

FP16, FP32, BF16 = DataFormat.FP16, DataFormat.FP32, DataFormat.BF16
ROWS, COLUMNS = 4, 6


def stored_blocks(rng, number_format, num_blocks, low, high):
    """Random mantissas and units low..high; the second half of the blocks cancels the first."""
    m, size = number_format.element_bits, number_format.block_size
    limit = 2 ** (m - 1) - 1
    mantissas = rng.integers(-limit, limit + 1, (num_blocks, size, COLUMNS))
    units = rng.integers(low, high + 1, (num_blocks, COLUMNS))
    mantissas[num_blocks // 2 :], units[num_blocks // 2 :] = -mantissas[: num_blocks // 2], units[: num_blocks // 2]
    return pack_words(np, mantissas, units, number_format)


@pytest.mark.parametrize("number_format", BLOCK_FORMATS.values(), ids=str)
def test_every_format_times_stored_blocks_against_python_integers(number_format):
    """Units over the whole range, some that cancel all but one product, and infinities beside them."""
    rng, m, size = np.random.default_rng(1), number_format.element_bits, number_format.block_size
    data_format = DataFormat[number_format.name.upper()]
    for lhs_format in PRODUCT_FORMATS:
        name = lhs_format.name.lower()
        for low, high in ((-126, 129 - m), (-8, 8), (-126, -110)):
            words = stored_blocks(rng, number_format, 4, low, high)
            half = reference.random_bits(rng, name, (ROWS, 2 * size))
            lhs = np.concatenate([half, half], axis=1)
            lhs[1:, -1] = reference.random_bits(rng, name, (ROWS - 1,))  # row 0 sums to zero
            if name in ("fp16", "fp32"):
                lhs[3, 5] = np.inf
            expected = reference.dot_with_blocks(name, lhs, reference.decode_block_words(words, m, size, 4 * size))
            values = decode_words(np, words, number_format, 4 * size)
            result = exact_dot(np, lhs, values, lhs_format, data_format)
            np.testing.assert_array_equal(result.view(np.uint32), expected)
            assert (expected[0] == 0).all() or name in ("fp16", "fp32")


def test_one_float64_product_against_python_integers():
    """Hard operands leave results uncertain, and what comes back is exact all the same."""
    rng = np.random.default_rng(2)
    jitted = jax.jit(lambda a, b: exact_dot(jnp, a, b, FP16, FP16))
    share = jax.jit(lambda a, b: certified_dot.slow_path_share(a, b, FP16, FP16))
    outcomes = set()
    with jax.enable_x64(True):
        for kind, make in reference.KINDS.items():
            for _ in range(3):
                lhs, rhs = make(rng, "fp16", "fp16", (4, 64, 128))
                expected = reference.dot("fp16", lhs, "fp16", rhs)
                np.testing.assert_array_equal(np.asarray(jitted(lhs, rhs)).view(np.uint32), expected, err_msg=kind)
                outcomes.add(float(share(lhs, rhs)) > 0)
    assert outcomes == {True, False}


@pytest.mark.parametrize(("name", "is_short"), [("fp16", False), ("bf16", True)])
def test_blocks_of_columns_fit_together(name, is_short):
    """Wide products are made in blocks of 512 columns, of which the last two may overlap."""
    rng, form = np.random.default_rng(3), DataFormat[name.upper()]
    lhs, rhs = reference.normal(rng, name, (8, 40)), reference.normal(rng, name, (40, 1100))
    if is_short:
        rhs = np.rint(rhs.astype(np.float32) * 4).astype(rhs.dtype)
    lhs[3, 7] = np.inf
    with jax.enable_x64(True):
        run = jax.jit(lambda a, b: certified_dot.certified_dot(a, b, form, form, is_short=is_short, panel_width=16))
        for columns in (rhs, rhs[::-1].copy()):
            expected = exact_dot(np, lhs, columns, form, form)
            np.testing.assert_array_equal(np.asarray(run(lhs, columns)).view(np.uint32), expected.view(np.uint32))


def test_few_results_take_the_slow_path():
    """Normal data, K = 4096: at most 1 in 10,000 in fp16."""
    rng = np.random.default_rng(4)
    lhs = rng.standard_normal((128, 4096)).astype(np.float16)
    rhs = rng.standard_normal((4096, 512)).astype(np.float16)
    with jax.enable_x64(True):
        share = jax.jit(lambda a, b: certified_dot.slow_path_share(a, b, FP16, FP16))(lhs, rhs)
    assert float(share) <= 1e-4
