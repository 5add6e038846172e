"""Models from their trace to the machine on groqchip1: the executor's bits, the predicted cycles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import assert_agrees, jitted

from lpu_jax.chips import groqchip1
from lpu_jax.lowering.lower import lower_jaxpr
from lpu_jax.models.bert import BertConfig, BertLayer, Mlp
from lpu_jax.models.smollm2 import Smollm2, decode, prefill
from lpu_jax.models.smollm2_config import Smollm2Config

CONFIG = Smollm2Config(
    num_layers=2,
    d_model=64,
    num_heads=4,
    num_kv_heads=2,
    d_ff=96,
    vocab_size=128,
    context=32,
    rope_base=10000.0,
    rms_eps=1e-5,
)


def lowered(fun, *args):
    """(graph, arguments) of a call."""
    return lower_jaxpr(jax.make_jaxpr(fun)(*args)), [np.asarray(leaf) for leaf in jax.tree.leaves(args)]


def close_to_xla(compiled, fun, *args):
    """The machine's outputs are those of XLA but for operands of products, which it rounds to fp16.

    That is 2^-11 of an operand; some ten products in a row add up to less than 2^-6 of the largest result.
    """
    outputs, _ = compiled.simulate([np.asarray(leaf) for leaf in jax.tree.leaves(args)])
    expected = jax.tree.leaves(jax.jit(fun)(*args))
    for actual, wanted in zip(outputs, expected, strict=True):
        wanted = np.asarray(wanted, np.float64)
        np.testing.assert_allclose(actual.astype(np.float64), wanted, rtol=0, atol=2.0**-6 * np.abs(wanted).max())


def test_mlp():
    mlp = Mlp([24, 33, 5], rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((3, 24)).astype(np.float32)
    graph, arguments = lowered(lambda mlp, x: mlp(x), mlp, x)
    compiled = assert_agrees(graph, groqchip1, arguments, model=jitted)
    close_to_xla(compiled, lambda mlp, x: mlp(x), mlp, x)


@pytest.mark.parametrize("approximate", [False, True], ids=["erf", "tanh"])
def test_encoder_layer(approximate):
    config = BertConfig(d_model=32, num_heads=2, d_ff=48, approximate_gelu=approximate)
    layer = BertLayer(config, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((2, 6, 32)).astype(np.float32)
    mask = np.array([[True] * 6, [True] * 4 + [False] * 2])
    graph, arguments = lowered(lambda layer, x, mask: layer(x, mask), layer, x, mask)
    compiled = assert_agrees(graph, groqchip1, arguments)
    close_to_xla(compiled, lambda layer, x, mask: layer(x, mask), layer, x, mask)


def decode_call():
    model = Smollm2.random(CONFIG)
    rng = np.random.default_rng(0)
    caches = [rng.standard_normal(cache.shape).astype(np.float16) for cache in model.empty_caches()]
    return model, jnp.int32(17), jnp.int32(9), *caches


def test_decode_with_donated_caches():
    call = decode_call()
    graph, arguments = lowered(decode, *call)
    last = len(arguments)
    compiled = assert_agrees(graph, groqchip1, arguments, donated={2: last - 2, 3: last - 1}, model=jitted)
    for output, value in ((2, graph.inputs[-2]), (3, graph.inputs[-1])):
        given = next(b for b in compiled.tile_graph.inputs if b.value == value)
        kept = compiled.tile_graph.outputs[output]
        assert set(given.view.refs[:, 0]) == set(kept.view.refs[:, 0])


def test_donation_changes_no_bit():
    graph, arguments = lowered(decode, *decode_call())
    assert_agrees(graph, groqchip1, arguments)


def test_decode_writes_only_its_position():
    model, token, position, *caches = decode_call()
    graph, arguments = lowered(decode, model, token, position, *caches)
    _, _, k, v = assert_agrees(graph, groqchip1, arguments).simulate(arguments)[0]
    others = np.arange(CONFIG.context) != int(position)
    np.testing.assert_array_equal(k[:, :, others], caches[0][:, :, others])
    np.testing.assert_array_equal(v[:, others], caches[1][:, others])


def test_prefill():
    model = Smollm2.random(CONFIG)
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, CONFIG.vocab_size, 8), jnp.int32)
    graph, arguments = lowered(prefill, model, tokens, jnp.int32(5))
    compiled = assert_agrees(graph, groqchip1, arguments)
    (_, token, _, _), _ = compiled.simulate(arguments)
    assert int(token) == int(jax.jit(prefill)(model, tokens, jnp.int32(5))[1])
