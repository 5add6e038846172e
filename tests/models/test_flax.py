"""Flax's own layers, linen and nnx, and small models of them, with random weights, against plain JAX.

Everything multiplies in float32 (precision="highest"), so that results differ by roundings in another order only. A
sample of the layers is tested by default, every one with LPU_JAX_ALL=1 in the environment.
"""

import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax_models import EncoderDecoder, Mixture, ResNetBlock, StateSpace, VisionTransformer, beam_search

from lpu_jax import lpu, profile

ALL = bool(os.environ.get("LPU_JAX_ALL"))
SEQUENCE = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)
IMAGE = np.random.default_rng(1).normal(size=(2, 6, 6, 4)).astype(np.float32)


def close(fun, *args, tolerance=2e-5):
    """The LPU's results of fun are those of plain JAX up to a few roundings."""
    wanted = jax.jit(fun)(*args)
    found = lpu(fun, precision="highest")(*args)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_allclose(x, y, atol=tolerance * max(1.0, float(jnp.abs(y).max(initial=0))), rtol=0)


LINEN = {
    "Dense": (nn.Dense(6), SEQUENCE, {}),
    "DenseGeneral": (nn.DenseGeneral((2, 3), axis=(-2, -1)), SEQUENCE, {}),
    "Einsum": (nn.Einsum((8, 3), "bsd,dk->bsk"), SEQUENCE, {}),
    "Conv": (nn.Conv(6, (3, 3), strides=2), IMAGE, {}),
    "Conv in groups": (nn.Conv(8, (3, 3), feature_group_count=4, padding="VALID"), IMAGE, {}),
    "Conv 1-D, causal, dilated": (nn.Conv(3, (3,), padding="CAUSAL", kernel_dilation=2), SEQUENCE, {}),
    "ConvTranspose": (nn.ConvTranspose(3, (3, 3), strides=(2, 2)), IMAGE, {}),
    "BatchNorm": (nn.BatchNorm(use_running_average=True), IMAGE, {}),
    "LayerNorm": (nn.LayerNorm(), SEQUENCE, {}),
    "GroupNorm": (nn.GroupNorm(2), IMAGE, {}),
    "InstanceNorm": (nn.InstanceNorm(), IMAGE, {}),
    "RMSNorm": (nn.RMSNorm(), SEQUENCE, {}),
    "Embed": (nn.Embed(7, 8), np.array([[1, 6, 0], [2, 2, 5]], np.int32), {}),
    "Dropout": (nn.Dropout(0.5, deterministic=True), SEQUENCE, {}),
    "LSTM": (nn.RNN(nn.OptimizedLSTMCell(6)), SEQUENCE, {}),
    "GRU, reversed": (nn.RNN(nn.GRUCell(6), reverse=True, keep_order=True), SEQUENCE, {}),
    "simple RNN with lengths": (nn.RNN(nn.SimpleCell(6)), SEQUENCE, {"seq_lengths": np.array([3, 5], np.int32)}),
    "bidirectional": (nn.Bidirectional(nn.RNN(nn.LSTMCell(4)), nn.RNN(nn.GRUCell(4))), SEQUENCE, {}),
    "MultiHeadDotProductAttention": (nn.MultiHeadDotProductAttention(2), SEQUENCE, {}),
    "WeightNorm": (nn.WeightNorm(nn.Dense(6)), SEQUENCE, {}),
    "SpectralNorm": (nn.SpectralNorm(nn.Dense(6)), SEQUENCE, {"update_stats": False}),
}


SAMPLE = ("Conv 1-D, causal, dilated", "ConvTranspose", "GroupNorm", "Embed", "GRU, reversed", "SpectralNorm")


@pytest.mark.parametrize("name", LINEN if ALL else SAMPLE)
def test_layers_of_linen(name):
    layer, x, options = LINEN[name]
    variables = layer.init(jax.random.key(0), x, **options)
    close(lambda v, x: layer.apply(v, x, **options), variables, x)


def test_pooling():
    close(lambda x: (nn.max_pool(x, (2, 2), (2, 2)), nn.avg_pool(x, (3, 3), (1, 1), "SAME")), IMAGE)


NNX = {
    "Linear": (lambda r: nnx.Linear(8, 6, rngs=r), SEQUENCE),
    "Conv": (lambda r: nnx.Conv(4, 6, (3, 3), rngs=r), IMAGE),
    "ConvTranspose": (lambda r: nnx.ConvTranspose(4, 3, (2, 2), strides=(2, 2), rngs=r), IMAGE),
    "BatchNorm": (lambda r: nnx.BatchNorm(4, use_running_average=True, rngs=r), IMAGE),
    "LayerNorm": (lambda r: nnx.LayerNorm(8, rngs=r), SEQUENCE),
    "GroupNorm": (lambda r: nnx.GroupNorm(4, 2, rngs=r), IMAGE),
    "RMSNorm": (lambda r: nnx.RMSNorm(8, rngs=r), SEQUENCE),
    "LSTM": (lambda r: nnx.RNN(nnx.LSTMCell(8, 6, rngs=r)), SEQUENCE),
    "GRU": (lambda r: nnx.RNN(nnx.GRUCell(8, 6, rngs=r)), SEQUENCE),
    "MultiHeadAttention": (lambda r: nnx.MultiHeadAttention(2, 8, decode=False, rngs=r), SEQUENCE),
}


@pytest.mark.parametrize("name", NNX if ALL else ("BatchNorm", "MultiHeadAttention"))
def test_layers_of_nnx(name):
    make, x = NNX[name]
    graphdef, state = nnx.split(make(nnx.Rngs(0)))
    close(lambda state, x: nnx.merge(graphdef, state)(x), state, x)


def test_attention_with_a_cache_token_by_token():
    layer = nn.MultiHeadDotProductAttention(2, decode=True)
    variables = layer.init(jax.random.key(0), SEQUENCE)

    def step(params, cache, x):
        y, state = layer.apply({"params": params, "cache": cache}, x, mutable=["cache"])
        return y, state["cache"]

    ours = lpu(step, precision="highest")
    cache = expected = jax.tree.map(jnp.zeros_like, variables["cache"])
    for i in range(2):
        token = SEQUENCE[:, i : i + 1]
        y, cache = ours(variables["params"], cache, token)
        wanted, expected = step(variables["params"], expected, token)
        np.testing.assert_allclose(y, wanted, atol=2e-5)
    np.testing.assert_array_equal(cache["cache_index"], 2)


@pytest.mark.parametrize("model", [ResNetBlock(), VisionTransformer(), EncoderDecoder(), Mixture(), StateSpace()])
def test_models(model):
    x = IMAGE if isinstance(model, ResNetBlock | VisionTransformer) else SEQUENCE
    variables = model.init(jax.random.key(0), x)
    close(model.apply, variables, x)


def test_beam_search_with_a_loop_of_unknown_length():
    table = np.random.default_rng(2).normal(size=(5, 5)).astype(np.float32)
    table[:, 0] += 2
    close(beam_search, table, np.int32(3))
    (steps, tokens, _), report = profile(lpu(beam_search, precision="highest", chip="tiny"))(table, np.int32(3))
    (loop,) = report.host.loops
    assert loop.trip_count == int(steps) - 1
    assert tokens[0, 0] == 3
