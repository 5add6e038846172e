"""Blocks and models of other people, against plain JAX with a bound that follows from float16 operands."""

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from on_lpu import run_on_lpu

FP16 = 2.0**-11
"""Relative rounding error of one float16 operand; a layer of products adds two of them, weighted by cancellation."""


def _close(fun, *args, layers=1):
    """Errors stay below a few float16 roundings of the largest value per layer."""
    wanted = jax.tree.leaves(fun(*jax.tree.map(jnp.asarray, args)))
    for a, b in zip(jax.tree.leaves(run_on_lpu(fun, *args)), wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=layers * 4 * FP16 * max(1.0, float(np.max(np.abs(b)))), rtol=0)


@pytest.fixture
def x():
    return np.random.default_rng(3).normal(size=(2, 6, 16)).astype(np.float32)


@pytest.mark.parametrize(
    "fun",
    [
        jax.nn.softmax,
        jax.nn.log_softmax,
        lambda x: jax.nn.softmax(x, axis=1, where=x > -1),
        lambda x: jax.nn.gelu(x, approximate=False),
        lambda x: jax.nn.gelu(x, approximate=True),
        jax.nn.silu,
        jax.nn.relu,
        jax.nn.softplus,
        jax.nn.elu,
        lambda x: jax.nn.standardize(x, axis=-1),
        lambda x: (x - x.mean(-1, keepdims=True)) * lax.rsqrt(x.var(-1, keepdims=True) + 1e-6),
        lambda x: jax.nn.logsumexp(x, axis=-1),
        lambda x: jnp.clip(x, -1, 1),
        lambda x: jax.nn.one_hot(jnp.argmax(x, axis=-1), 16),
        lambda x: jnp.linalg.norm(x, axis=-1),
    ],
)
def test_activations_and_norms(x, fun):
    wanted = fun(jnp.asarray(x))
    np.testing.assert_allclose(run_on_lpu(fun, x), wanted, atol=2e-6, rtol=1e-5)  # float32 throughout


def _attention(x, wq, wk, wv):
    q, k, v = (jnp.einsum("bsd,dhk->bhsk", x, w) for w in (wq, wk, wv))
    scores = jnp.einsum("bhqk,bhsk->bhqs", q, k) / 2
    scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -jnp.inf)
    return jnp.einsum("bhqs,bhsk->bqhk", jax.nn.softmax(scores, axis=-1), v)


def test_causal_attention(x):
    weights = np.random.default_rng(4).normal(size=(3, 16, 2, 4)).astype(np.float32) / 4
    _close(_attention, x, *weights, layers=4)


def test_attention_of_jax_nn(x):
    q = x.reshape(2, 6, 4, 4)
    _close(lambda q: jax.nn.dot_product_attention(q, q, q, is_causal=True), q, layers=4)


def test_a_decode_step_with_a_cache(x):
    def step(cache, row, position):
        cache = lax.dynamic_update_slice(cache, row[:, None].astype(jnp.float16), (0, position, 0))
        scores = jnp.einsum("bd,bsd->bs", row, cache.astype(jnp.float32))
        scores = jnp.where(jnp.arange(cache.shape[1]) <= position, scores, -1e9)
        return cache, jnp.einsum("bs,bsd->bd", jax.nn.softmax(scores), cache.astype(jnp.float32))

    _close(step, np.zeros((2, 8, 16), np.float16), x[:, 0], np.int32(2), layers=2)


def test_a_decoder_that_scans_over_layers(x):
    weights = np.random.default_rng(5).normal(size=(3, 16, 16)).astype(np.float32) / 4

    def model(w, x):
        def layer(h, wi):
            scale = lax.rsqrt(jnp.mean(jnp.square(h), axis=-1, keepdims=True) + 1e-5)
            return h + jax.nn.silu(h * scale @ wi), jnp.sum(h)

        return lax.scan(layer, x, w)

    fun_result, sums = run_on_lpu(model, weights, x)
    wanted, wanted_sums = model(jnp.asarray(weights), jnp.asarray(x))
    np.testing.assert_allclose(fun_result, wanted, atol=12 * FP16 * 4)
    np.testing.assert_allclose(sums, wanted_sums, atol=0.05)


class _LinenMlp(flax.linen.Module):
    @flax.linen.compact
    def __call__(self, x):
        x = flax.linen.LayerNorm()(x)
        x = flax.linen.gelu(flax.linen.Dense(32)(x))
        return flax.linen.Dense(5)(x)


def test_a_flax_linen_mlp(x):
    model = _LinenMlp()
    variables = model.init(jax.random.key(0), x)
    _close(lambda v, x: model.apply(v, x), variables, x, layers=2)


class _NnxBlock(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.RMSNorm(16, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(4, 16, decode=False, rngs=rngs)
        self.up = nnx.Linear(16, 24, rngs=rngs)
        self.down = nnx.Linear(24, 16, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norm(x))
        return x + self.down(nnx.silu(self.up(x)))


def test_a_flax_nnx_block(x):
    graphdef, state = nnx.split(_NnxBlock(nnx.Rngs(0)))

    def fun(state, x):
        return nnx.merge(graphdef, state)(x)

    _close(fun, jax.tree.map(np.asarray, state), x, layers=6)


def test_an_encoder_with_embeddings_and_a_mask():
    random = np.random.default_rng(6)
    table = random.normal(size=(11, 8)).astype(np.float32)
    tokens = random.integers(0, 11, size=(2, 5), dtype=np.int32)

    def fun(table, tokens, lengths):
        h = jnp.take(table, tokens, axis=0) + jnp.sin(jnp.arange(5.0))[:, None]
        mask = (jnp.arange(5) < lengths[:, None]).astype(jnp.float32)[..., None]
        pooled = (h * mask).sum(axis=1) / mask.sum(axis=1)
        return pooled / jnp.linalg.norm(pooled, axis=-1, keepdims=True)

    args = (table, tokens, np.array([3, 5], np.int32))
    np.testing.assert_allclose(run_on_lpu(fun, *args), fun(*args), atol=1e-6)
