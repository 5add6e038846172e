"""Exact products against Python integers: every pair of formats by digits, and the certified levels under XLA."""

import functools

import exact_reference as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpu_jax.runtime import certified_dot
from lpu_jax.runtime.exact_dot import exact_dot
from lpu_jax.runtime.isa import PRODUCT_FORMATS, DataFormat

NAMES = [f.name.lower() for f in PRODUCT_FORMATS]
PAIRS = [(a, b) for a in NAMES for b in NAMES if (a, b) != ("int8", "int8")]
CERTIFIED = [("fp16", "fp16"), ("fp32", "fp32"), ("bf16", "e5m2"), ("fp16", "int8"), ("e4m3", "e4m3"), ("e4m3", "fp16")]
SHAPE = (8, 45, 8)
NUM_PANEL_ROWS = 16


def form(name):
    return DataFormat[name.upper()]


def same(result, expected, message=""):
    np.testing.assert_array_equal(np.asarray(result).view(np.uint32), expected, err_msg=message)


@functools.cache
def certified(lhs_name, rhs_name):
    def run(a, b):
        return certified_dot.certified_dot(a, b, form(lhs_name), form(rhs_name), panel_width=NUM_PANEL_ROWS)

    def call(a, b):
        with jax.enable_x64(True):
            return np.asarray(jitted(a, b))

    jitted = jax.jit(run)
    return call


@pytest.mark.parametrize(("lhs_name", "rhs_name"), PAIRS)
def test_digits_against_python_integers(lhs_name, rhs_name):
    rng = np.random.default_rng(1)
    for kind, make in reference.KINDS.items():
        lhs, rhs = make(rng, lhs_name, rhs_name, SHAPE)
        expected = reference.dot(lhs_name, lhs, rhs_name, rhs)
        same(exact_dot(np, lhs, rhs, form(lhs_name), form(rhs_name)), expected, kind)


@pytest.mark.parametrize(("lhs_name", "rhs_name"), CERTIFIED)
def test_certified_levels_against_python_integers(lhs_name, rhs_name):
    rng = np.random.default_rng(2)
    run = certified(lhs_name, rhs_name)
    for kind, make in reference.KINDS.items():
        for _ in range(4):
            lhs, rhs = make(rng, lhs_name, rhs_name, SHAPE)
            same(run(lhs, rhs), reference.dot(lhs_name, lhs, rhs_name, rhs), kind)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(sorted(reference.KINDS)), st.sampled_from(CERTIFIED[:4]))
def test_certified_levels_on_drawn_operands(seed, kind, pair):
    lhs, rhs = reference.KINDS[kind](np.random.default_rng(seed), *pair, SHAPE)
    same(certified(*pair)(lhs, rhs), reference.dot(pair[0], lhs, pair[1], rhs))


@pytest.mark.parametrize(("lhs_name", "rhs_name"), [("fp16", "fp16"), ("fp32", "fp16"), ("e4m3", "int8")])
def test_results_depend_on_no_order_batch_slice_or_path(lhs_name, rhs_name):
    rng = np.random.default_rng(5)
    lhs, rhs = reference.normal(rng, lhs_name, (64, 700)), reference.normal(rng, rhs_name, (700, 400))
    order = rng.permutation(700)

    def run(a, b):
        with jax.enable_x64(True):
            return np.asarray(jax.jit(lambda a, b: exact_dot(jnp, a, b, form(lhs_name), form(rhs_name)))(a, b))

    whole = run(lhs, rhs).view(np.uint32)  # by the certified levels; the others below by digits or in other panels
    same(run(lhs[:, order], rhs[order]), whole)
    same(run(lhs[3:4], rhs), whole[3:4])
    same(run(lhs, rhs[:, 7:19]), whole[:, 7:19])
    same(exact_dot(np, lhs[:5], rhs[:, :6], form(lhs_name), form(rhs_name)), whole[:5, :6])
    same(run(np.stack([lhs, lhs[::-1]]), np.stack([rhs, rhs]))[1], whole[::-1])


@pytest.mark.parametrize("axis", [0, 1])
def test_the_quick_lowest_bit_is_no_higher_than_the_last_place_in_use(axis):
    """float16 of all sizes, subnormals and zeros; and seldom much lower, or few sums would be known to be exact."""
    rng = np.random.default_rng(6)
    x = rng.integers(0, 0x7C00, (64, 700)).astype(np.uint16).view(np.float16)
    x[:20] = rng.standard_normal((20, 700))
    x[20], x[21], x[22, 1:], x[23] = 0, 2.0**-24, 0, 65504
    smallest = np.where(x == 0, np.inf, np.abs(x.astype(np.float64))).min(1)
    last_place = np.maximum(2.0 ** (np.floor(np.log2(smallest)) - 10), 2.0**-24)
    with jax.enable_x64(True):
        given = x if axis else x.T.copy()
        side = jax.jit(lambda x: certified_dot.statistics(x, DataFormat.FP16, axis, [slice(0, 700)]))(given)
    lowest = np.asarray(side.lowest[0])
    assert (lowest <= last_place).all()
    assert np.median(last_place[:20] / lowest[:20]) <= 2
    assert np.asarray(side.units)[0, 20] == 0
