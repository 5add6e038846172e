"""Prepared weights: the bits of exact sums by digits and by certificates, stored wide or as they are."""

import functools

import exact_reference as reference
import jax
import numpy as np
import pytest

from lpu_jax.runtime import formats
from lpu_jax.runtime.block_floating_point import quantize_blocks
from lpu_jax.runtime.exact_dot import exact_dot
from lpu_jax.runtime.isa import DataFormat
from lpu_jax.runtime.prepared import exact_dot_prepared, prepare_weights, values_of

FP16, INT8, BF16 = DataFormat.FP16, DataFormat.INT8, DataFormat.BF16


@functools.cache
def jitted(lhs_format):
    return jax.jit(lambda lhs, prepared: exact_dot_prepared(lhs, prepared, lhs_format))


def bits(lhs, prepared, lhs_format=FP16):
    with jax.enable_x64(True):
        return np.asarray(jitted(lhs_format)(lhs, prepared)).view(np.uint32)


@pytest.mark.parametrize(
    ("lhs_name", "rhs_name", "rows", "is_wide"),
    [("fp16", "int8", 1, False), ("fp16", "bf16", 3, True), ("fp16", "fp16", 2, False), ("e4m3", "e4m3", 1, True),
     ("fp32", "bf16", 1, False), ("fp16", "fp16", 9, True), ("e4m3", "int8", 6, False)],
)  # fmt: skip
def test_hard_operands_against_python_integers(lhs_name, rhs_name, rows, is_wide):
    rng = np.random.default_rng(1)
    lhs_format, rhs_format = DataFormat[lhs_name.upper()], DataFormat[rhs_name.upper()]
    for kind, make in reference.KINDS.items():
        for _ in range(6):
            lhs, rhs = make(rng, lhs_name, rhs_name, (rows, 45, 8))
            if not np.isfinite(rhs.astype(np.float32)).all():
                rhs = np.where(np.isfinite(rhs.astype(np.float32)), rhs, np.zeros_like(rhs))  # weights are finite
            prepared = prepare_weights(rhs, rhs_format, is_wide, rows)
            assert prepared.is_turned == (rows <= 4)
            with jax.enable_x64(True):
                np.testing.assert_array_equal(values_of(prepared), rhs)
            expected = reference.dot(lhs_name, lhs, rhs_name, rhs)
            np.testing.assert_array_equal(bits(lhs, prepared, lhs_format), expected, err_msg=kind)


@pytest.mark.parametrize("name", ["bfp8", "bfp3x32"])
def test_blocks_are_cut_into_digits_and_sum_exactly(name):
    rng, number_format = np.random.default_rng(2), formats.parse_format(name)
    values = quantize_blocks(rng.standard_normal((600, 9)).astype(np.float32), number_format).decode()
    prepared = prepare_weights(values, DataFormat[number_format.name.upper()])
    assert prepared.has_digits
    assert prepared.panels[0].dtype == np.float32
    assert prepared.shape == (600, 9)
    for scale, tiny in ((1.0, 0.0), (2000.0, 2.0**-24), (60000.0, 2.0**-24)):  # 4 digits, 8 digits, certificates
        lhs = np.clip(rng.standard_normal((1, 600)) * scale, -65504, 65504).astype(np.float16)
        lhs[0, 5] = tiny
        np.testing.assert_array_equal(bits(lhs, prepared), exact_dot(np, lhs, values, FP16, BF16).view(np.uint32))
    lhs[0, 7] = np.inf
    np.testing.assert_array_equal(bits(lhs, prepared), exact_dot(np, lhs, values, FP16, BF16).view(np.uint32))


@pytest.mark.parametrize("rows", [513, 2048])
def test_digits_hold_at_their_largest(rows):
    """Columns of equal signs and magnitudes: every partial sum is as large as the digits were made for."""
    weights = np.full((rows, 2), -128, np.int8)
    weights[:, 1] = np.where(np.arange(rows) % 2, 127, -128)
    prepared = prepare_weights(weights, INT8)
    assert prepared.has_digits
    half = float(prepared.digit_power) / 2
    halves = sum(half * float(prepared.digit_power) ** k for k in range(3)) * 2.0**-24
    for value in (65504.0, -65504.0, halves, 2.0**-24, 1.0):
        lhs = np.full((1, rows), value, np.float16)
        lhs[0, 0] = 2.0**-24
        expected = exact_dot(np, lhs, weights, FP16, INT8)
        np.testing.assert_array_equal(bits(lhs, prepared), expected.view(np.uint32))


def test_the_digit_size_follows_from_the_columns():
    """2^(d - 1) * sum |w| <= 2^24 * lowest bit, and no smaller d would do."""
    rng = np.random.default_rng(3)
    weights = rng.integers(-20, 21, (300, 40)).astype(np.int8)
    prepared = prepare_weights(weights, INT8)
    lowest = np.array([min((int(w) & -int(w)) for w in column if w) for column in weights.T])
    room = (2**24 * lowest / np.abs(weights.astype(np.int64)).sum(0)).min()
    power = float(prepared.digit_power)
    assert power / 2 <= room
    assert power == 2**9 or power > room
    spread = weights.astype(np.float32)
    spread[3, 7] = 2.0**-24
    assert not prepare_weights(spread.astype(np.float16), FP16).has_digits
    tiny = quantize_blocks(weights * np.float32(2.0**-118), formats.block_format(8)).decode()
    assert not prepare_weights(tiny, DataFormat.BFP8X16).has_digits  # products may be subnormal


def test_stacks_are_prepared_matrix_by_matrix():
    rng = np.random.default_rng(4)
    weights = rng.integers(-128, 128, (3, 40, 6)).astype(np.int8)
    lhs = rng.standard_normal((3, 1, 40)).astype(np.float16)
    prepared = prepare_weights(weights, INT8, is_wide=False)
    assert prepared.panels[0].dtype == np.int8
    assert prepared.shape == (3, 40, 6)
    with jax.enable_x64(True):
        _, result = jax.lax.scan(lambda c, xs: (c, exact_dot_prepared(*xs, FP16)), 0, (lhs, prepared))
    np.testing.assert_array_equal(result, exact_dot(np, lhs, weights, FP16, INT8))


def test_integers_times_integers_are_not_prepared():
    prepared = prepare_weights(np.ones((4, 2), np.int8), INT8)
    with pytest.raises(ValueError, match="takes its weights as they are"):
        exact_dot_prepared(np.ones((1, 4), np.int8), prepared, INT8)
