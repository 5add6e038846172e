"""The encoder layer and the MLP against NumPy."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lpu_jax.models.bert import BertConfig, BertLayer, Mlp


def affine(linear, x):
    return x @ np.asarray(linear.kernel[...], np.float64) + np.asarray(linear.bias[...], np.float64)


def layer_norm(x, eps):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)


def gelu(x, approximate):
    if approximate:
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


@pytest.mark.parametrize("approximate", [False, True])
def test_encoder_layer_equals_numpy(approximate):
    config = BertConfig(d_model=32, num_heads=4, d_ff=48, approximate_gelu=approximate)
    layer = BertLayer(config, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((2, 6, 32)).astype(np.float32)
    mask = np.array([[True] * 6, [True] * 4 + [False] * 2])
    q, k, v = (affine(p, x).reshape(2, 6, 4, 8) for p in (layer.query, layer.key, layer.value))
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(8)
    weights = np.exp(np.where(mask[:, None, None, :], scores, -np.inf))
    weights /= weights.sum(-1, keepdims=True)
    mixed = np.einsum("bhqk,bkhd->bqhd", weights, v).reshape(2, 6, 32)
    hidden = layer_norm(x + affine(layer.output, mixed), config.layer_norm_eps)
    mlp = affine(layer.down, gelu(affine(layer.up, hidden), approximate))
    expected = layer_norm(hidden + mlp, config.layer_norm_eps)
    y = jax.jit(lambda layer, x, mask: layer(x, mask))(layer, jnp.asarray(x), jnp.asarray(mask))
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)


def test_mlp_equals_numpy():
    mlp = Mlp([5, 7, 6, 3], rngs=nnx.Rngs(1))
    x = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)
    first, second, last = mlp.layers
    expected = affine(last, np.maximum(affine(second, np.maximum(affine(first, x), 0)), 0))
    np.testing.assert_allclose(jax.jit(lambda mlp, x: mlp(x))(mlp, jnp.asarray(x)), expected, rtol=0, atol=1e-5)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match=re.escape("d_model 30 is not a multiple of num_heads 4")):
        BertConfig(d_model=30)
