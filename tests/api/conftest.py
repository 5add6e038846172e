"""Fixtures of the tests of the JAX door: a small MLP, a compiled loop with names, and a whole small model file."""

import sys
from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lpu_jax

sys.path.insert(0, str(Path(__file__).parent.parent / "models"))

TRIPS = 3


@pytest.fixture
def mlp():
    """(function, parameters, input [3, 8])."""
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "w": jax.random.normal(keys[0], (8, 4)),
        "b": jax.random.normal(keys[1], (4,)),
        "unused": None,
    }

    def predict(params, x):
        return jnp.tanh(x @ params["w"] + params["b"])

    return predict, params, jax.random.normal(keys[2], (3, 8))


def layers_and_tail(w, x):
    """A loop with a module in it, then another module."""

    def layer(h, weights):
        with jax.named_scope("layer/up"):
            return jnp.tanh(h @ weights), None

    x, _ = jax.lax.scan(layer, x, w)
    with jax.named_scope("tail"):
        return jnp.max(x, axis=-1)


@pytest.fixture(scope="session")
def compiled():
    """`layers_and_tail` on a chip: a barrier, a loop of TRIPS trips, and the rest."""
    function = lpu_jax.lpu(layers_and_tail, chip=lpu_jax.chips.groqchip1, resident_argnums=0)
    return function.lower(np.ones((TRIPS, 24, 24), np.float32), np.ones((5, 24), np.float32)).compile()


@pytest.fixture(scope="session")
def small_model_path(tmp_path_factory):
    """A GGUF file with two random layers and a byte-level tokenizer."""
    from gguf_writing import MERGES, SPECIAL, TEMPLATE

    from lpu_jax.models.smollm2_config import Smollm2Config, tensor_shapes
    from lpu_jax.models.tokenizer import byte_characters

    tokens = [*SPECIAL, *byte_characters(), *(merge.replace(" ", "") for merge in MERGES)]
    config = Smollm2Config(
        num_layers=2, d_model=64, num_heads=4, num_kv_heads=2, d_ff=96, vocab_size=len(tokens), context=64
    )
    path = tmp_path_factory.mktemp("model") / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_layers)
    writer.add_context_length(128)
    writer.add_embedding_length(config.d_model)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_layer_norm_rms_eps(config.rms_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_merges(MERGES)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    rng = np.random.default_rng(0)
    for name, shape in tensor_shapes(config).items():
        writer.add_tensor(name, (rng.standard_normal(shape) * shape[-1] ** -0.5).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
