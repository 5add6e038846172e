"""float32 forms of VXM functions: the bits of `vxm.apply` everywhere, and what is kept for them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpu_jax.lowering.lower import lower_jaxpr
from lpu_jax.runtime import fusion, vxm, vxm_float32
from lpu_jax.runtime.ops import Elementwise, Equation
from lpu_jax.runtime.vxm_float32 import Known

FUNCTIONS = ("add", "sub", "mul", "div", "sqrt", "eq", "ne", "lt", "le", "gt", "ge")
FLUSHED = Known(is_flushed=True)


def operands(rng, size=4096):
    """Random bits, and pairs whose products, sums and quotients are near 2^-126."""
    bits = rng.integers(0, 2**32, (2, size), np.uint32).view(np.float32)
    near = 2 - rng.integers(0, 8, (2, size)) * 2.0**-23
    x = near[0] * 2.0 ** rng.integers(-70, -60, size)
    y = near[1] * 2.0 ** -(rng.integers(-2, 2, size) + 126.0 + np.frexp(x)[1])
    special = np.array(
        [0, -0.0, np.inf, -np.inf, np.nan, 2**-126, -(2**-126), 1e-40, -1e-44, 1, -1, 3.4e38], np.float32
    )
    grid = np.array(np.meshgrid(special, special)).reshape(2, -1)
    return np.concatenate([bits, np.stack([x, y]).astype(np.float32), grid.astype(np.float32)], axis=1)


def same_bits(found, wanted):
    found, wanted = np.asarray(found), np.asarray(wanted)
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found.view(np.int32), wanted.view(np.int32))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions_have_the_bits_of_float64(function):
    x, y = operands(np.random.default_rng(0))
    given = (x,) if function == "sqrt" else (x, y)
    with jax.enable_x64(True):
        for known in (Known(), Known(is_constant=True)):
            facts = [known] * len(given)
            found = jax.jit(lambda *a, facts=facts: vxm_float32.apply(function, a, facts))(*given)
            same_bits(found, vxm.apply(np, function, *given))
        flushed = [np.where(np.abs(v) < 2.0**-126, np.copysign(np.float32(0), v), v) for v in given]
        found = jax.jit(lambda *a: vxm_float32.apply(function, a, [FLUSHED] * len(a)))(*flushed)
        same_bits(found, vxm.apply(np, function, *given))


def test_a_product_that_rounds_up_to_the_smallest_normal_number_is_flushed():
    x, y = np.float32(10610063 * 2.0**-86), np.float32(13264529 * 2.0**-87)
    assert int(x * 2.0**86) * int(y * 2.0**87) == 2**47 - 1
    assert np.float32(np.float64(x) * np.float64(y)) == 2.0**-126
    with jax.enable_x64(True):
        given = np.full(8, x, np.float32), np.full(8, y, np.float32)
        found = jax.jit(lambda *v: vxm_float32.apply("mul", v, [FLUSHED] * 2))(*given)
    same_bits(found, vxm.apply(np, "mul", *given))
    assert not np.asarray(found).any()


@pytest.mark.parametrize("function", ["max", "min", "and", "or"])
def test_reductions_of_lanes_are_those_of_a_tree(function):
    x = operands(np.random.default_rng(1), 64)[:, :, None].reshape(-1, 4)
    x = x if function in ("max", "min") else x.view(np.int32)
    tree = vxm.apply(np, function, *(vxm.apply(np, function, x[:, i], x[:, i + 2]) for i in (0, 1)))
    with jax.enable_x64(True):
        same_bits(jax.jit(lambda v: vxm_float32.lane_reduce(function, v))(x)[:, 0], tree)


def test_products_in_front_of_sums_are_not_fused_with_them_and_zeros_count():
    rng = np.random.default_rng(2)
    x, y, z = rng.standard_normal((3, 4096)).astype(np.float32)

    def chain(x, y, z):
        product = vxm_float32.apply("mul", (x, y), [FLUSHED] * 2)
        added = vxm_float32.apply("add", (product, z), [FLUSHED] * 2)
        return vxm_float32.apply("add", (fusion.keep(added), jnp.float32(0)), [FLUSHED, Known(True, True)])

    with jax.enable_x64(True):
        extended = [np.append(v, np.float32(last)).astype(np.float32) for v, last in ((x, -0.0), (y, 1), (z, -0.0))]
        found = jax.jit(chain)(*extended)
    same_bits(found[:-1], x * y + z)
    assert not np.signbit(np.asarray(found)[-1])  # -0 + 0


def test_what_is_known_of_values():
    equation = Equation(Elementwise("mul"), (0, 1), (2,))
    assert vxm_float32.known_result(equation, [Known(), Known()], "float32").is_flushed
    assert not vxm_float32.known_result(Equation(Elementwise("to_bf16"), (0,), (2,)), [FLUSHED], "float32").is_flushed
    assert not vxm_float32.known_result(Equation(Elementwise("lt"), (0, 1), (2,)), [FLUSHED] * 2, "float32").is_flushed
    assert not vxm_float32.known_result(Equation(Elementwise("or"), (0, 1), (2,)), [FLUSHED] * 2, "float32").is_flushed
    assert vxm_float32.known_constant(np.float32(2.0**-126)) == Known(True, True)
    assert vxm_float32.known_constant(np.float32(1e-40)) == Known(False, True)


def test_results_that_are_needed_twice_are_kept():
    def shared(x):
        y = jnp.exp(x)
        return y + 1, y * 2

    def chained(x):
        return jnp.exp(x) * 2 + 1

    x = np.ones((4, 8), np.float32)
    graph = lower_jaxpr(jax.make_jaxpr(shared)(x))
    kept = {e.op.function for e in graph.equations if e.results[0] in fusion.kept_values(graph)}
    assert kept == {"exp"}
    assert not fusion.kept_values(lower_jaxpr(jax.make_jaxpr(chained)(x)))
