"""Sums of which only the exponent is used: the exponent of the exact sum, and where they may take its place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lpu_jax
from lpu_jax.runtime.exponents import exponent_sum, scale_sums
from lpu_jax.runtime.ops import LaneReduce
from lpu_jax.runtime.wide_sums import exact_sum

FLOOR = 15


def field(x):
    return np.maximum((np.asarray(x, np.float32).view(np.int32) >> 23) & 0xFF, FLOOR)


def hard_rows(rng, num_terms):
    """Rows of magnitudes: random, at and beside powers of two, all sizes, subnormals, zeros, infinities and NaN."""
    rows = np.abs(rng.standard_normal((60, num_terms))).astype(np.float32)
    total = rows[:20].astype(np.float64).sum(1, keepdims=True)
    rows[:20] = (rows[:20] * (2.0 ** np.round(np.log2(total)) / total)).astype(np.float32)
    rows[20:24] = 1 / num_terms
    rows[24:27] = np.nextafter(np.float32(1 / num_terms), np.float32(0))
    rows[27:40] = np.ldexp(rows[27:40], rng.integers(-148, 120, (13, num_terms)))
    rows[40:44] = np.float32(2.0**-127)
    rows[44:48] = 0
    rows[48:52] = np.ldexp(rows[48:52], -126)
    rows[52], rows[53, 0], rows[54, 1] = np.float32(3e38), np.inf, np.nan
    rows[55:58] = np.ldexp(np.float32(1), np.array([[-113], [-112], [-111]], np.int32)) / num_terms
    return rows


@pytest.mark.parametrize("num_terms", [2, 64, 257, 2048])
def test_the_exponent_is_that_of_the_exact_sum(num_terms):
    rng = np.random.default_rng(num_terms)
    with jax.enable_x64(True):
        one_by_one, together = jax.jit(jax.vmap(exponent_sum)), jax.jit(exponent_sum)
        for _ in range(3):
            rows = hard_rows(rng, num_terms)
            expected = field(exact_sum(np, rows))
            np.testing.assert_array_equal(field(one_by_one(rows[:, None]))[:, 0, 0], expected)
            np.testing.assert_array_equal(field(together(rows))[:, 0], expected)
            np.testing.assert_array_equal(field(together(rows[27:44]))[:, 0], expected[27:44])


def scales_of(function, *arguments):
    graph = lpu_jax.lpu(function).lower(*arguments).graph
    sums = {e.results[0] for e in graph.equations if isinstance(e.op, LaneReduce) and e.op.function == "sum"}
    return scale_sums(graph), sums


def test_only_sums_that_become_scales_are_found():
    x = jnp.ones((8, 64))
    scales, sums = scales_of(lambda x: x @ x.T, x)
    assert scales == sums != set()
    scales, sums = scales_of(lambda x: jnp.abs(x).sum(-1), x)
    assert not scales
    assert sums
    scales, sums = scales_of(lambda x: (jnp.abs(x).sum(-1), x @ x.T), x)  # one and the same sum, perhaps
    assert len(scales) < len(scales | sums)
