"""profile tells how many bits a lossless sum of every product needs, against widths counted by hand."""

import json

import jax
import jax.numpy as jnp
import numpy as np

import lpu_jax
from lpu_jax.runtime.accumulation import accumulator_bits
from lpu_jax.runtime.isa import DataFormat


def test_widths_of_products_sums_and_loops():
    """Powers of two: the width is 1 + bits of K * largest / lowest product."""
    w = np.zeros((2, 8, 8), np.float32)
    w[:, 0, 0], w[0, 1, 1], w[1, 1, 1] = 1.0, 2.0**-3, 2.0**-5
    blocks = lpu_jax.quantize(w, "bfp9")
    x = np.array([[4.0, 2.0**-6, 0, 0, 0, 0, 0, 0]], np.float16)

    def loop(w, x):
        def step(carry, layer):
            return carry, carry @ layer

        total = jnp.sum(x.astype(jnp.float32), axis=1)
        return jax.lax.scan(step, x, w)[1], total

    _, report = lpu_jax.profile(lpu_jax.lpu(loop, resident_argnums=0))(blocks, x)
    total, product = sorted(report.sum_widths, key=lambda width: width.rhs_format != "int8")
    assert (product.lhs_format, product.rhs_format, product.num_terms) == ("fp16", "bfp9x16", 8)
    assert product.bits == 1 + (8 * 2**8 * 2**5).bit_length()  # the second turn has the wider weights
    assert total.bits == 1 + (8 * 2**8).bit_length()
    assert "test_sum_widths.py" in product.source
    assert not product.is_too_wide
    assert "Widest sums" in str(report)
    assert json.loads(report.to_json())["sum_widths"][0]["is_too_wide"] is False


def test_widths_above_the_published_one_are_flagged():
    x = np.array([[2.0**30, 2.0**-30]], np.float32)
    function = lpu_jax.lpu(lambda x: x @ x.T, precision="highest")
    (width,) = lpu_jax.profile(function)(x)[1].sum_widths
    assert width.bits == accumulator_bits(x, x.T, DataFormat.FP32, DataFormat.FP32) == 1 + 122
    assert width.is_too_wide
    assert "more than the published 100" in str(lpu_jax.profile(function)(x)[1])
    random = np.random.default_rng(0).standard_normal((3, 40)).astype(np.float32)
    (width,) = lpu_jax.profile(function)(random)[1].sum_widths
    assert width.bits == accumulator_bits(random, random.T, DataFormat.FP32, DataFormat.FP32)
    assert function.lower(x).compile().report().sum_widths == ()  # a program has no values


def test_infinities_zeros_and_static_arguments():
    function = lpu_jax.lpu(lambda x, transpose: x @ (x.T if transpose else x), static_argnums=1)
    zeros = np.zeros((2, 2), np.float16)
    assert [width.bits for width in lpu_jax.profile(function)(zeros, True)[1].sum_widths] == [1]
    zeros[0, 0], zeros[1, 1] = np.inf, 2.0**-24
    assert [width.bits for width in lpu_jax.profile(function)(zeros, False)[1].sum_widths] == [1 + (2).bit_length()]
