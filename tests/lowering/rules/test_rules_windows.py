"""Windowed reductions and folds against JAX."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from on_lpu import assert_machine_agrees

from lpu_jax.runtime.errors import UnsupportedPrimitiveError

CASES = {
    "pool": ((1, 2, 2, 1), (1, 2, 2, 1), "VALID", {}),
    "overlap": ((1, 3, 3, 1), (1, 2, 1, 1), "SAME", {}),
    "dilated": ((1, 2, 3, 1), (1, 1, 1, 1), "VALID", {"window_dilation": (1, 2, 2, 1)}),
    "spread": ((1, 3, 2, 1), (1, 1, 1, 1), [(0, 0), (1, 2), (0, 1), (0, 0)], {"base_dilation": (1, 2, 3, 1)}),
    "channels": ((1, 1, 1, 3), (1, 1, 1, 1), "SAME", {}),
}
FUNCTIONS = {"max": (lax.max, -np.inf), "min": (lax.min, np.inf), "sum": (lax.add, 0), "mul": (lax.mul, 1)}


def _window(name, function, dtype):
    combine, start = FUNCTIONS[function]
    if dtype != np.float32 and function in ("max", "min"):
        start = np.iinfo(dtype).min if function == "max" else np.iinfo(dtype).max
    sizes, strides, padding, options = CASES[name]
    return lambda x: lax.reduce_window(x, np.array(start, dtype), combine, sizes, strides, padding, **options)


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint8])
@pytest.mark.parametrize("function", list(FUNCTIONS))
@pytest.mark.parametrize("name", list(CASES))
def test_a_window_equals_jax(on_lpu, random, name, function, dtype):
    x = random.integers(0, 5, size=(2, 6, 5, 4)).astype(dtype)
    fun = _window(name, function, dtype)
    np.testing.assert_array_equal(on_lpu(fun, x), fun(x))


@pytest.mark.parametrize("axes", [(0,), (2,), (0, 2), (0, 1, 2)])
@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_products_equal_jax_on_small_integers(on_lpu, random, axes, dtype):
    x = random.integers(-2, 3, size=(3, 2, 5)).astype(dtype)
    np.testing.assert_array_equal(on_lpu(lambda x: jnp.prod(x, axis=axes), x), np.prod(x, axis=axes))


def test_a_generic_reduction_uses_its_own_function(on_lpu, random):
    x = random.integers(0, 9, size=(4, 5)).astype(np.int32)

    def fun(x):
        return lax.reduce(x, np.int32(3), lambda a, b: jnp.maximum(a, b) ^ 0, (1,))

    np.testing.assert_array_equal(on_lpu(fun, x), fun(x))


def test_windows_of_several_operands_are_refused(lowered):
    def fun(x):
        return lax.reduce_window((x, x), (0.0, 0.0), lambda a, b: (a[0] + b[0], a[1] + b[1]), (2,), (1,), "VALID")

    with pytest.raises(UnsupportedPrimitiveError, match="several operands"):
        lowered(fun, np.ones(4, np.float32))


@pytest.mark.parametrize("function", ["max", "sum"])
def test_machine_equals_runtime(random, function):
    assert_machine_agrees(_window("pool", function, np.float32), random.normal(size=(1, 4, 4, 3)).astype(np.float32))
