"""Loading GGUF files: values, the row order of rotated heads, and the errors by text."""

import dataclasses
import re

import numpy as np
import pytest
from gguf_writing import TINY, write_model

from lpu_jax.models.gguf_file import read_gguf
from lpu_jax.models.smollm2 import Smollm2
from lpu_jax.models.smollm2_config import open_parameters, parameter_shapes, rope_tables
from lpu_jax.runtime.errors import ModelFileError


def test_parameters_are_the_transposed_tensors_of_the_file(tmp_path):
    tensors = write_model(tmp_path / "model.gguf")
    config, load = open_parameters(tmp_path / "model.gguf", context=32)
    assert config == dataclasses.replace(TINY, rms_eps=float(np.float32(TINY.rms_eps)))
    assert {name: load(name).shape for name in parameter_shapes(config)} == parameter_shapes(config)
    for layer in range(config.num_layers):
        np.testing.assert_array_equal(load("mlp.down")[layer], tensors[f"blk.{layer}.ffn_down.weight"].T)
        np.testing.assert_array_equal(load("attention.v")[layer], tensors[f"blk.{layer}.attn_v.weight"].T)
    np.testing.assert_array_equal(load("embedding"), tensors["token_embd.weight"])


def test_rotated_scores_equal_the_interleaved_definition(tmp_path):
    tensors = write_model(tmp_path / "model.gguf")
    config, load = open_parameters(tmp_path / "model.gguf", context=32)
    cos, sin = (table.astype(np.float64) for table in rope_tables(config))
    x = np.random.default_rng(0).standard_normal((2, config.d_model))  # one row each at positions 11 and 4
    positions, width = np.array([11, 4]), config.head_dim

    def interleaved(weight, num_heads):
        heads = (x @ weight.T.astype(np.float64)).reshape(2, num_heads, width // 2, 2)
        angle = positions[:, None] * config.rope_base ** (-np.arange(0, width, 2) / width)
        turned = (heads[..., 0] + 1j * heads[..., 1]) * np.exp(1j * angle)[:, None, :]
        return np.stack([turned.real, turned.imag], -1).reshape(2, num_heads, width)

    def halves(weight, num_heads):
        heads = (x @ weight.astype(np.float64)).reshape(2, num_heads, 2, width // 2)
        first, second = heads[:, :, 0], heads[:, :, 1]
        c, s = cos[positions][:, None, :], sin[positions][:, None, :]
        return np.concatenate([first * c - second * s, second * c + first * s], axis=-1)

    for layer in range(config.num_layers):
        q_file = interleaved(tensors[f"blk.{layer}.attn_q.weight"], config.num_heads)[0]
        k_file = interleaved(tensors[f"blk.{layer}.attn_k.weight"], config.num_kv_heads)[1]
        q_ours = halves(load("attention.q")[layer], config.num_heads)[0]
        k_ours = halves(load("attention.k")[layer], config.num_kv_heads)[1]
        np.testing.assert_allclose(q_ours @ k_ours.T, q_file @ k_file.T, rtol=0, atol=1e-5)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(
        ModelFileError, match=re.escape("absent.gguf': cannot be opened (No such file or directory). Pass")
    ):
        Smollm2.from_gguf(tmp_path / "absent.gguf")


def test_a_directory_is_refused(tmp_path):
    with pytest.raises(ModelFileError, match=re.escape("cannot be opened (Is a directory)")):
        Smollm2.from_gguf(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and so on"])
def test_another_format_is_refused(tmp_path, content):
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(
        ModelFileError, match=re.escape(f"not a GGUF file (starts with {content[:4]!r}, expected b'GGUF')")
    ):
        read_gguf(tmp_path / "model.gguf")


@pytest.mark.parametrize("fraction", [0.001, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, fraction):
    write_model(tmp_path / "whole.gguf")
    whole = (tmp_path / "whole.gguf").read_bytes()
    size = int(len(whole) * fraction)
    (tmp_path / "part.gguf").write_bytes(whole[:size])
    with pytest.raises(
        ModelFileError, match=rf"part.gguf': truncated or damaged \({size:_} bytes; reading stopped with"
    ):
        Smollm2.from_gguf(tmp_path / "part.gguf", context=32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "gpt2"}, "foreign: architecture 'gpt2', expected 'llama'"),
        ({"drop": "blk.1.ffn_up.weight"}, "foreign: tensor 'blk.1.ffn_up.weight' is missing"),
        ({"reshape": "blk.0.attn_q.weight"}, "foreign: tensor 'blk.0.attn_q.weight' is (64, 96), expected (64, 64)"),
        ({"extra": "output.weight"}, "foreign: unknown tensor 'output.weight' (1 unknown in all)"),
        ({"rope_dim": 8}, "foreign: rotary embedding over 8 of 16 features of a head"),
    ],
)
def test_a_foreign_file_is_refused_by_text(tmp_path, changes, message):
    write_model(tmp_path / "model.gguf", **changes)
    with pytest.raises(ModelFileError, match=re.escape(f"model.gguf': {message}. Pass the path")) as caught:
        Smollm2.from_gguf(tmp_path / "model.gguf", context=32)
    assert "\n" not in str(caught.value)


def test_a_context_beyond_the_trained_one_is_refused(tmp_path):
    write_model(tmp_path / "model.gguf")
    with pytest.raises(ValueError, match=re.escape("context 65 is outside 1..64")):
        Smollm2.from_gguf(tmp_path / "model.gguf", context=65)
