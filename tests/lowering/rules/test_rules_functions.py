"""Functions made of formulas: no further from float64 than twice XLA's worst error plus one unit in the last place."""

import jax
import numpy as np
import pytest
from jax import lax
from on_lpu import assert_machine_agrees

LINE = np.concatenate([np.linspace(-9, 9, 241), [-20, -5e-3, 1e-6, 30]]).astype(np.float32)
UNIT = np.concatenate([np.linspace(-1, 1, 241), [1e-4, -1e-6]]).astype(np.float32)
CASES = {
    "erfc": LINE, "tan": LINE, "atan": LINE, "sinh": LINE, "cosh": LINE, "asinh": LINE, "cbrt": LINE,
    "acosh": np.abs(LINE) + 1, "erf_inv": UNIT, "asin": UNIT, "acos": UNIT, "atanh": UNIT * 0.99,
}  # fmt: skip


@pytest.mark.parametrize("name", list(CASES))
def test_a_function_is_as_exact_as_xla(on_lpu, name):
    fun, x = getattr(lax, name), CASES[name].astype(np.float32)
    with jax.enable_x64(True):
        real = np.asarray(fun(x.astype(np.float64)))
    finite = np.isfinite(real)
    scale = np.maximum(np.abs(real), 2.0**-100)[finite]
    own = (np.abs(np.asarray(fun(x))[finite] - real[finite]) / scale).max()
    result = on_lpu(fun, x)
    np.testing.assert_array_equal(result[~finite], real[~finite])
    assert (np.abs(result[finite] - real[finite]) / scale).max() <= 2 * own + 2.0**-23


def test_atan2_in_all_quadrants_and_on_the_axes(on_lpu):
    values = np.array([-np.inf, -2, -0.0, 0.0, 0.5, np.inf], np.float32)
    y, x = (a.reshape(-1) for a in np.meshgrid(values, values))
    result, wanted = on_lpu(lax.atan2, y, x), np.arctan2(y, x)
    np.testing.assert_allclose(result, wanted, rtol=2.0**-22)
    np.testing.assert_array_equal(np.signbit(result), np.signbit(wanted))


@pytest.mark.parametrize("name", ["erfc", "erf_inv"])
def test_machine_equals_runtime(name):
    assert_machine_agrees(getattr(lax, name), UNIT[:5])
