"""Writes small GGUF files for the tests of this folder."""

from pathlib import Path

import gguf
import numpy as np

from lpu_jax.models.smollm2_config import Smollm2Config, tensor_shapes
from lpu_jax.models.tokenizer import byte_characters

TINY = Smollm2Config(num_layers=2, d_model=64, num_heads=4, num_kv_heads=2, d_ff=96, vocab_size=128, context=32)
TEMPLATE = "{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w"]


def write_model(path: Path, config: Smollm2Config = TINY, seed: int = 0, **changes: object) -> dict[str, np.ndarray]:
    """Writes a random model, returns its tensors by name; `changes`: architecture, rope_dim, drop, reshape, extra."""
    writer = gguf.GGUFWriter(path, str(changes.get("architecture", "llama")))
    writer.add_block_count(config.num_layers)
    writer.add_context_length(64)
    writer.add_embedding_length(config.d_model)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_layer_norm_rms_eps(config.rms_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(int(str(changes.get("rope_dim", config.head_dim))))
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in tensor_shapes(config).items():
        if name == changes.get("drop"):
            continue
        shape = (*shape[:-1], shape[-1] + 32) if name == changes.get("reshape") else shape
        tensors[name] = (rng.standard_normal(shape) * shape[-1] ** -0.5).astype(np.float32)
    if "extra" in changes:
        tensors[str(changes["extra"])] = np.zeros(32, np.float32)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    _finish(writer)
    return tensors


def write_tokenizer(path: Path, pre: str = "smollm", merges: list[str] = MERGES, template: str = TEMPLATE) -> None:
    """Writes a file with a byte vocabulary, three special tokens and a few merges, without tensors."""
    tokens = [*SPECIAL, *byte_characters(), *(merge.replace(" ", "") for merge in MERGES)]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_merges(merges)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
    writer.add_eos_token_id(2)
    writer.add_chat_template(template)
    _finish(writer)


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
