"""The decoder against an independent einsum reference, its trace, and its quantisation."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpu_jax.models.chat import bucket, generate, jit_decode, jit_prefill, pad_prompt
from lpu_jax.models.layers import quantize
from lpu_jax.models.smollm2 import Smollm2, decode, prefill
from lpu_jax.models.smollm2_config import (
    SMOLLM2_135M_SIZES,
    Smollm2Config,
    parameter_shapes,
    random_parameters,
    rope_tables,
)

TINY = Smollm2Config(num_layers=2, d_model=64, num_heads=4, num_kv_heads=2, d_ff=96, vocab_size=128, context=32)
THREE_GROUPS = Smollm2Config(num_layers=3, d_model=72, num_heads=9, num_kv_heads=3, d_ff=40, vocab_size=50, context=16)
ONE_GROUP = Smollm2Config(num_layers=1, d_model=32, num_heads=2, num_kv_heads=1, d_ff=16, vocab_size=40, context=16)
CONFIGS = {"tiny": TINY, "three_groups": THREE_GROUPS, "one_group": ONE_GROUP}

# fp32 against fp64 is 1e-5 here. A k or v that lies between two fp16 numbers may round the other way, an error of
# 2 ** -10 in one of 1024 cached values of deviation 1; a logit sees a small part of it.
ATOL = 2.0**-11


def reference_logits(config, parameters, tokens):
    """Logits [T, vocab] of the whole sequence in fp64 (k and v rounded to fp16): complex rotation, explicit heads."""
    p = {name: value.astype(np.float64) for name, value in parameters.items()}
    length, width, groups = len(tokens), config.head_dim, config.num_kv_heads
    turn = np.exp(1j * np.arange(length)[:, None] * config.rope_base ** (-np.arange(0, width, 2) / width)[None, :])

    def norm(x, weight):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.rms_eps) * weight

    def as_stored(x):
        return x.astype(np.float16).astype(np.float64)

    def rotate(x):
        z = (x[..., : width // 2] + 1j * x[..., width // 2 :]) * turn.reshape(length, *[1] * (x.ndim - 2), -1)
        return np.concatenate([z.real, z.imag], -1)

    x = p["embedding"][tokens]
    for i in range(config.num_layers):
        n = norm(x, p["attention.norm"][i])
        q = rotate((n @ p["attention.q"][i]).reshape(length, groups, -1, width))
        k = as_stored(rotate((n @ p["attention.k"][i]).reshape(length, groups, width)))
        v = as_stored((n @ p["attention.v"][i]).reshape(length, groups, width))
        scores = np.einsum("tghd,sgd->ghts", q, k) / np.sqrt(width)
        scores = np.where(np.tril(np.ones((length, length), bool)), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        x = x + np.einsum("ghts,sgd->tghd", weights, v).reshape(length, -1) @ p["attention.output"][i]
        n = norm(x, p["mlp.norm"][i])
        gate = n @ p["mlp.gate"][i]
        x = x + (gate / (1 + np.exp(-gate)) * (n @ p["mlp.up"][i])) @ p["mlp.down"][i]
    return norm(x, p["norm"]) @ p["embedding"].T


def run(model, tokens, num_prompt):
    """Logits of positions num_prompt - 1 ... len(tokens) - 1: one prefill, then decode."""
    context = model.config.context
    logits, _, k_cache, v_cache = jit_prefill(model, pad_prompt(tokens[:num_prompt], context), jnp.int32(num_prompt))
    rows = [np.asarray(logits)]
    for position in range(num_prompt, len(tokens)):
        token = jnp.int32(tokens[position])
        logits, next_token, k_cache, v_cache = jit_decode(model, token, jnp.int32(position), k_cache, v_cache)
        assert int(next_token) == int(np.argmax(logits))
        rows.append(np.asarray(logits))
    return np.stack(rows)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("num_prompt", [1, 5, 16])
def test_prefill_then_decode_equals_full_recompute(name, num_prompt):
    config = CONFIGS[name]
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, 16)
    model = Smollm2.random(config, weights="fp32")
    expected = reference_logits(config, random_parameters(config), tokens)[num_prompt - 1 :]
    np.testing.assert_allclose(run(model, tokens, num_prompt), expected, rtol=0, atol=ATOL)


def test_decode_from_empty_caches_equals_full_recompute():
    tokens = np.random.default_rng(2).integers(0, TINY.vocab_size, TINY.context)
    model = Smollm2.random(TINY, seed=3, weights="fp32")
    k_cache, v_cache = model.empty_caches()
    rows = []
    for position, token in enumerate(tokens):
        logits, _, k_cache, v_cache = jit_decode(model, jnp.int32(token), jnp.int32(position), k_cache, v_cache)
        rows.append(np.asarray(logits))
    expected = reference_logits(TINY, random_parameters(TINY, 3), tokens)
    np.testing.assert_allclose(np.stack(rows), expected, rtol=0, atol=ATOL)


def test_padding_does_not_change_the_result():
    model = Smollm2.random(TINY)
    padded = [jnp.asarray([7, 3, 9] + [pad] * 13, jnp.int32) for pad in (0, 100)]
    first, second = (jit_prefill(model, tokens, jnp.int32(3))[0] for tokens in padded)
    np.testing.assert_array_equal(first, second)


def test_int8_error_is_half_a_step_of_its_channel():
    weights = np.random.default_rng(0).standard_normal((3, 40, 24)).astype(np.float32)
    weights[1, :, 5] = 0
    values, scale = quantize(weights)
    assert values.dtype == np.int8
    assert scale.shape == (3, 24)
    assert np.abs(values).max() == 127
    error = np.abs(values * scale[:, None, :] - weights)
    assert (error <= scale[:, None, :] * (0.5 + 1e-4)).all()


def test_quantize_rounds_half_to_even():
    values, scale = quantize(np.array([[127.0], [0.5], [1.5], [2.5], [-0.5]], np.float32))
    assert scale.tolist() == [1.0]
    assert values[:, 0].tolist() == [127, 0, 2, 2, 0]


def test_int8_logits_are_close_to_fp32():
    tokens = np.random.default_rng(1).integers(0, TINY.vocab_size, 12)
    exact, rounded = (run(Smollm2.random(TINY, weights=kind), tokens, 4) for kind in ("fp32", "int8"))
    # A step is max / 127, about 2.7 sigma / 127, so a matmul has the relative error 2.7 / (127 sqrt(12)) = 0.6 percent;
    # 2 layers of 4 matmuls in a row, embedding and head add up as sqrt(10) of it: 2 percent. The bound is twice that.
    assert np.linalg.norm(rounded - exact) <= 0.04 * np.linalg.norm(exact)


def test_rope_tables_are_rotations():
    cos, sin = rope_tables(TINY)
    assert cos.shape == sin.shape == (TINY.context, TINY.head_dim // 2)
    np.testing.assert_allclose(cos**2 + sin**2, 1, rtol=0, atol=2e-7)


ALLOWED = {
    "add",
    "and",
    "argmax",
    "broadcast_in_dim",
    "concatenate",
    "convert_element_type",
    "div",
    "dot_general",
    "dynamic_slice",
    "dynamic_update_slice",
    "eq",
    "exp",
    "gather",
    "ge",
    "iota",
    "jit",
    "le",
    "logistic",
    "lt",
    "max",
    "min",
    "mul",
    "pad",
    "reduce_max",
    "reduce_sum",
    "reshape",
    "rev",
    "rsqrt",
    "scan",
    "select_n",
    "shift_right_arithmetic",
    "slice",
    "squeeze",
    "stack",
    "sub",
    "tile",
    "transpose",
}


def equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def traces(kind):
    model = Smollm2.random(TINY, weights=kind)
    yield jax.make_jaxpr(decode)(model, jnp.int32(1), jnp.int32(2), *model.empty_caches())
    yield jax.make_jaxpr(prefill)(model, jnp.zeros(8, jnp.int32), jnp.int32(3))


@pytest.mark.parametrize("kind", ["int8", "fp32"])
def test_trace_uses_only_the_supported_primitives(kind):
    for trace in traces(kind):
        assert {eqn.primitive.name for eqn in equations(trace.jaxpr)} <= ALLOWED


def test_int8_weights_enter_one_dot_general_unconverted():
    for trace in traces("int8"):
        dots = [eqn for eqn in equations(trace.jaxpr) if eqn.primitive.name == "dot_general"]
        operands = [tuple(str(v.aval.dtype) for v in eqn.invars) for eqn in dots]
        assert operands.count(("float32", "int8")) == 8  # three of q, k and v; output, gate, up, down, head
        assert set(operands) == {("float32", "int8"), ("float32", "float16")}
        assert all(len(v.aval.shape) == 2 for eqn in dots for v in eqn.invars)


def test_trace_does_not_grow_with_layers():
    sizes = []
    for num_layers in (2, 7):
        config = Smollm2Config(num_layers=num_layers, d_model=32, num_heads=2, num_kv_heads=1, d_ff=16, vocab_size=40)
        model = Smollm2.random(config)
        jaxpr = jax.make_jaxpr(decode)(model, jnp.int32(1), jnp.int32(2), *model.empty_caches()).jaxpr
        sizes.append(len(list(equations(jaxpr))))
    assert sizes[0] == sizes[1]


def test_sequences_are_batched_with_vmap():
    model = Smollm2.random(TINY)
    k_cache, v_cache = (jnp.stack([cache, cache]) for cache in model.empty_caches())
    tokens, positions = jnp.array([5, 9], jnp.int32), jnp.array([0, 0], jnp.int32)
    batched = jax.jit(jax.vmap(decode, (None, 0, 0, 0, 0)))(model, tokens, positions, k_cache, v_cache)[0]
    for row, token in zip(batched, tokens, strict=True):
        single = jit_decode(model, token, jnp.int32(0), *model.empty_caches())[0]
        np.testing.assert_allclose(row, single, rtol=0, atol=1e-5)


def test_buckets_are_powers_of_two_up_to_the_context():
    assert [bucket(length, 100) for length in (1, 32, 33, 64, 65, 100)] == [32, 32, 64, 64, 100, 100]
    with pytest.raises(ValueError, match=re.escape("101 tokens does not fit into a context of 1..100")):
        bucket(101, 100)


def test_generate_stops_at_the_stop_token_the_limit_and_the_context():
    model = Smollm2.random(TINY)
    answer = list(generate(model, [1, 2, 3], stop_id=-1))
    assert len(answer) == TINY.context - 3 + 1
    assert list(generate(model, [1, 2, 3], stop_id=-1, max_tokens=4)) == answer[:4]
    assert list(generate(model, [1, 2, 3], stop_id=answer[2])) == answer[: answer.index(answer[2])]
    assert list(generate(model, [1, 2, 3], stop_id=-1, max_tokens=0)) == []


def test_wrong_arguments_are_refused_by_text():
    with pytest.raises(ValueError, match="weights='int4': expected 'int8' or 'fp32'"):
        Smollm2.random(TINY, weights="int4")
    with pytest.raises(ValueError, match="33 prompt tokens do not fit into a context of 32 positions"):
        prefill(Smollm2.random(TINY), jnp.zeros(33, jnp.int32), jnp.int32(3))
    with pytest.raises(ValueError, match="d_model 60, num_heads 8"):
        Smollm2Config(num_layers=1, d_model=60, num_heads=8, num_kv_heads=2, d_ff=8, vocab_size=8)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("kind", ["int8", "fp32"])
def test_shapes_are_those_of_a_decoder_with_weights(name, kind):
    def described(tree):
        return [(jax.tree_util.keystr(path), leaf.shape, leaf.dtype) for path, leaf in jax.tree.leaves_with_path(tree)]

    shapes, real = Smollm2.shapes(CONFIGS[name], kind), Smollm2.random(CONFIGS[name], weights=kind)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(shapes))
    assert shapes.config == real.config
    assert described(shapes) == described(real)
    assert described(shapes.cache_shapes()) == described(real.empty_caches())


def test_the_sizes_of_the_published_model_have_its_number_of_parameters():
    counts = {name: int(np.prod(shape)) for name, shape in parameter_shapes(SMOLLM2_135M_SIZES).items()}
    assert sum(counts.values()) == 134_515_008
