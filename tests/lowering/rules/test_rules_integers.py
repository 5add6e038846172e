"""Narrow and unsigned integers equal JAX: they wrap, compare, divide, shift and convert at their own width."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from on_lpu import assert_machine_agrees

DTYPES = [np.int8, np.uint8, np.int16, np.uint16, np.uint32]
EDGES = [0, 1, 2, 3, 7, 100, 127, 128, 129, 255, 256, 32767, 32768, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**32 - 5]


def _pairs(dtype):
    values = np.unique(np.array(EDGES, np.int64).astype(dtype))
    return [a.reshape(-1) for a in np.meshgrid(values, values)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_function_of_two_numbers(on_lpu, dtype):
    x, y = _pairs(dtype)
    names = (
        "add",
        "sub",
        "mul",
        "max",
        "min",
        "bitwise_and",
        "bitwise_or",
        "bitwise_xor",
        "lt",
        "ge",
        "eq",
        "div",
        "rem",
    )

    def fun(x, y):
        nonzero = jnp.where(y == 0, jnp.ones_like(y), y)
        return [getattr(lax, n)(x, nonzero if n in ("div", "rem") else y) for n in names]

    for name, actual, wanted in zip(names, on_lpu(fun, x, y), fun(x, y), strict=True):
        np.testing.assert_array_equal(actual, wanted, err_msg=name)


@pytest.mark.parametrize("dtype", DTYPES)
def test_shifts_and_functions_of_one_number(on_lpu, dtype):
    x, y = _pairs(dtype)
    amount = (y % np.dtype(dtype).type(40)).astype(dtype)
    shifts = ("shift_left", "shift_right_logical", "shift_right_arithmetic")

    def fun(x, n):
        return [getattr(lax, s)(x, n) for s in shifts] + [
            -x, ~x, jnp.abs(x), lax.sign(x), x * x, lax.population_count(x), lax.clz(x), lax.integer_pow(x, 3),
        ]  # fmt: skip

    for actual, wanted in zip(on_lpu(fun, x, np.abs(amount)), fun(x, np.abs(amount)), strict=True):
        np.testing.assert_array_equal(actual, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_conversions(on_lpu, dtype):
    x = _pairs(dtype)[0]
    targets = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "float32", "bool")
    floats = np.array([-1e10, -3.7, -0.5, 0, 0.5, 99.9, 3e4, 2.5e9, 1e11], np.float32)

    def fun(x, f):
        return [lax.convert_element_type(x, t) for t in targets] + [lax.convert_element_type(f, dtype)]

    for actual, wanted in zip(on_lpu(fun, x, floats), fun(x, floats), strict=True):
        np.testing.assert_array_equal(actual, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_reductions(on_lpu, random, dtype):
    info = np.iinfo(dtype)
    x = random.integers(info.min, info.max, size=(4, 6), endpoint=True).astype(dtype)

    def fun(x):
        return [jnp.max(x, 1), jnp.min(x, 0), jnp.argmax(x, 1), jnp.sum(x, 0, dtype=dtype)]

    for actual, wanted in zip(on_lpu(fun, x), fun(x), strict=True):
        np.testing.assert_array_equal(actual, wanted)


def test_machine_equals_runtime(random):
    x, y = random.integers(0, 2**32, size=(2, 9)).astype(np.uint32)
    assert_machine_agrees(lambda x, y: (x // (y | 1), x > y, x.astype(jnp.float32), (x * y) >> 3), x, y)
