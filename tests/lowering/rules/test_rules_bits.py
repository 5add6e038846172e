"""Bits of floats: every code of the 16-bit formats, neighbours, rounding to fewer bits."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax import lax
from on_lpu import assert_machine_agrees

CODES = np.arange(65536, dtype=np.uint16)
SPECIAL = np.array(
    [0, -0.0, 1, -1, 1e-40, -1e-45, np.inf, -np.inf, np.nan, 3.4e38, 65504, 65519, 65520, 6e-5, 1e-8], np.float32
)


def same_bits(found, wanted):
    found, wanted = np.asarray(found), np.asarray(wanted)
    both_nan = np.isnan(found.astype(np.float32)) & np.isnan(wanted.astype(np.float32))
    kind = {2: np.uint16, 4: np.uint32}[found.dtype.itemsize]
    assert ((found.view(kind) == wanted.view(kind)) | both_nan).all()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_every_code_of_16_bits(on_lpu, dtype):
    floats = CODES.view(dtype)
    is_kept = ~np.isnan(floats.astype(np.float32))
    if dtype is not np.float16:  # its subnormal numbers are those of float32, which the VXM does not have
        is_kept &= (np.abs(floats.astype(np.float32)) >= 2.0**-126) | (floats.astype(np.float32) == 0)
    same_bits(on_lpu(lambda x: lax.bitcast_convert_type(x, dtype), CODES)[is_kept], floats[is_kept])
    found = on_lpu(lambda x: lax.bitcast_convert_type(x, jnp.uint16), floats[is_kept])
    np.testing.assert_array_equal(found, CODES[is_kept])


def test_bits_of_one_narrow_float_as_another(on_lpu):
    x = np.array([1.5, -3248, 6e-8, 0], np.float16)
    same_bits(on_lpu(lambda x: lax.bitcast_convert_type(x, jnp.bfloat16), x), x.view(ml_dtypes.bfloat16))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_nextafter(on_lpu, dtype):
    with np.errstate(over="ignore"):
        values = SPECIAL.astype(dtype)
    x, y = (np.ascontiguousarray(a) for a in np.broadcast_arrays(values[:, None], values[None, :]))
    reference = np.nextafter if dtype is np.float32 else lax.nextafter  # XLA flushes, NumPy forgets -0
    same_bits(on_lpu(lax.nextafter, x, y), reference(x, y))


@pytest.mark.parametrize("bits", [(8, 7), (5, 2), (8, 0)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_reduce_precision_equals_jax(on_lpu, random, bits, dtype):
    with np.errstate(over="ignore"):
        x = np.concatenate([SPECIAL, random.normal(size=500) * 2.0 ** random.integers(-30, 30, 500)]).astype(dtype)
    x = x[(x == 0) | ~(np.abs(x.astype(np.float64)) < 2.0**-126)]
    same_bits(on_lpu(lambda x: lax.reduce_precision(x, *bits), x), lax.reduce_precision(x, *bits))


def test_bits_on_the_machine():
    x = np.linspace(-3, 3, 12, dtype=np.float32).reshape(3, 4)
    assert_machine_agrees(lambda x: lax.nextafter(x, x[::-1]), x)
    assert_machine_agrees(lambda x: lax.bitcast_convert_type(x, jnp.int16), x.astype(np.float16))
