"""Magnitudes: no value exceeds its bound, scales without a lane sum keep the accuracy, resident factors are hoisted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpu_jax import lpu
from lpu_jax.chips import tiny
from lpu_jax.lowering.lower import _input, _new_emitter
from lpu_jax.runtime.isa import DataFormat
from lpu_jax.runtime.ops import Aval, Immediate, LaneReduce, Scan

FP16, INT8 = DataFormat.FP16, DataFormat.INT8

N = 24


def rms_norm(x, w):
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) * (1 / x.shape[-1]) + 1e-5) * w


def layer_norm(x, w):
    x = x - jnp.sum(x, axis=-1, keepdims=True) / x.shape[-1]
    scale = jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) / x.shape[-1] + 1e-5) * w
    return x * scale


def attend(x, w):
    """Weights times values over their sum, divided afterwards, with one more weight of its own."""
    values = w.astype(jnp.float16)
    scores = jax.lax.dot(x, jnp.ones((N, N), jnp.int8), preferred_element_type=jnp.float32)
    own = jnp.sum(x, axis=-1, keepdims=True)
    largest = jnp.maximum(jnp.max(scores, axis=-1, keepdims=True), own)
    weights, own_weight = jnp.exp(scores - largest), jnp.exp(own - largest)
    mixed = jax.lax.dot(weights, values, preferred_element_type=jnp.float32)
    mixed = mixed + own_weight * values[:1].astype(jnp.float32)
    return mixed / (jnp.sum(weights, axis=-1, keepdims=True) + own_weight)


def through_a_product(make):
    """make(x, w) as the lhs of a product with resident weights."""
    return lambda w, v, x: jax.lax.dot(make(x, w), v, preferred_element_type=jnp.float32)


def lane_sums(graph):
    count = 0
    for equation in graph.equations:
        count += equation.op == LaneReduce("sum")
        count += lane_sums(equation.op.body) if isinstance(equation.op, Scan) else 0
    return count


def weights(seed):
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((N, N)).astype(np.float32) * np.float32(2.0 ** rng.integers(-20, 20))
    return w, rng.integers(-127, 128, (N, 16)).astype(np.int8)


CASES = {"rms_norm": (rms_norm, 1), "layer_norm": (layer_norm, 2), "attend": (attend, 3)}
"""Function and its lane sums: its own, and that of the scale of the scores; a scale of the result would add one."""


@pytest.mark.parametrize("name", CASES)
def test_known_magnitudes_need_no_lane_sum_of_their_own(name):
    make, own = CASES[name]
    w, v = weights(0)
    x = np.ones((4, N), np.float32)
    lowered = lpu(through_a_product(make), resident_argnums=(0, 1)).lower(w[:1] if name != "attend" else w, v, x)
    assert lane_sums(lowered.parts[1]) == own
    unknown = lpu(lambda w, v, x: jax.lax.dot(x, v, preferred_element_type=jnp.float32), resident_argnums=(0, 1))
    assert lane_sums(unknown.lower(w, v, x).parts[1]) == 1


PRODUCTS = {name: lpu(through_a_product(make), resident_argnums=(0, 1)) for name, (make, _) in CASES.items()}
OPERANDS = {name: lpu(make) for name, (make, _) in CASES.items()}


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**31), exponent=st.integers(-60, 60), name=st.sampled_from(sorted(CASES)))
def test_products_under_a_static_scale_are_as_accurate_as_fp16_allows(seed, exponent, name):
    """|error| <= sum_k (2^-10 |a_k| + 2^-39 bound) |v_k|: a rounding to float16, subnormal where a is far below its
    bound, and nothing lost to overflow."""
    w, v = weights(seed)
    w = w[:1] if name != "attend" else np.clip(w, -60000, 60000)
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((4, N)).astype(np.float32) * np.float32(2.0**exponent)
    x[rng.integers(0, 4)] *= np.float32(2.0 ** rng.integers(-20, 20))
    ours = np.asarray(PRODUCTS[name](w, v, x), np.float64)
    lhs = np.asarray(OPERANDS[name](x, w), np.float64)
    expected = lhs @ v.astype(np.float64)
    bound = np.sqrt(N) * np.abs(w).max()
    allowed = (2.0**-10 * np.abs(lhs) + 2.0**-39 * bound) @ np.abs(v.astype(np.float64))
    assert np.isfinite(ours).all()
    assert (np.abs(ours - expected) <= allowed).all()


def magnitude_of(build):
    """The magnitude of build(emitter, x) for a fp16 input x."""
    emitter = _new_emitter()
    x = _input(emitter, Aval((2, 16), "float16"), False)
    return emitter.magnitudes.of(build(emitter, x))


def test_rounding_to_integers_may_add_one():
    assert magnitude_of(lambda e, x: e.elementwise("floor", x)).number == 65504 + 1
    assert magnitude_of(lambda e, x: e.elementwise("neg", x)).number == 65504


def test_only_a_choice_bounds_an_or():
    def choose(emitter, x):
        is_positive = emitter.elementwise("gt", x, Immediate(0.0, "float32"))
        return emitter.select(is_positive, x, emitter.elementwise("neg", x), "float32")

    assert magnitude_of(choose).number == 2 * 65504
    assert magnitude_of(lambda e, x: e.elementwise("or", x, e.elementwise("neg", x), dtype="float32")) is None


def test_a_bound_through_three_products_counts_as_unknown():
    def after(count):
        def build(emitter, x):
            weights = emitter.constant(np.full((1, 16, 16), 2, np.int8))
            value = emitter.reshape(x, (1, 2, 16))
            for _ in range(count):
                value = emitter.matmul(emitter.elementwise("to_fp16", value, dtype="float16"), weights, FP16, INT8)
                value = emitter.elementwise("mul", value, Immediate(2.0**-16, "float32"))
            return value

        return magnitude_of(build)

    assert after(2) is not None
    assert after(3) is None


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_stays_visible(value):
    w, v = weights(1)
    x = np.ones((2, N), np.float32)
    x[1, 3] = value
    y = np.asarray(lpu(through_a_product(rms_norm), resident_argnums=(0, 1))(w[:1], v, x))
    assert np.isfinite(y[0]).all()
    assert np.isnan(y[1]).all()


def stacked(w, v, x):
    def body(x, layer):
        w, v = layer
        return x + jax.lax.dot(rms_norm(x, w[None]), v, preferred_element_type=jnp.float32), jnp.sum(x)

    return jax.lax.scan(body, x, (w, v))


def test_factors_of_resident_layers_are_computed_before_the_loop():
    rng = np.random.default_rng(0)
    w, v = rng.standard_normal((3, 16)).astype(np.float32), rng.integers(-127, 128, (3, 16, 16)).astype(np.int8)
    x = rng.standard_normal((2, 16)).astype(np.float32)
    lowered = lpu(stacked, chip=tiny, resident_argnums=(0, 1)).lower(w, v, x)
    prologue, main = lowered.parts
    assert any(e.op == LaneReduce("max") for e in prologue.equations)
    (scan,) = [e.op for e in main.equations if isinstance(e.op, Scan)]
    assert not any(e.op == LaneReduce("max") for e in scan.body.equations)
    assert sum(e.op == LaneReduce("sum") for e in scan.body.equations) == 2  # of the norm, and the function's own
    compiled = lowered.compile()
    (carry, sums), cycles = compiled.simulate(w, v, x)
    expected = compiled(w, v, x)
    np.testing.assert_array_equal(carry, expected[0])
    np.testing.assert_array_equal(sums, expected[1])
    loaded = lowered.load(w, v)
    np.testing.assert_array_equal(loaded(x)[0], carry)
    assert cycles == compiled.cycles
    moving = lpu(stacked, chip=tiny).lower(w, v, x)
    assert any(e.op == LaneReduce("sum") for e in moving.parts[1].equations) or lane_sums(moving.parts[1]) == 3
