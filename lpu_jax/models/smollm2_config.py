"""Sizes and parameters of SmolLM2: what the decoder needs, and how a GGUF file holds it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np

from lpu_jax.models.gguf_file import GgufFile, model_file_error, read_gguf

Loader: TypeAlias = Callable[[str], np.ndarray]

DEFAULT_CONTEXT = 512

# config field -> (metadata key after "llama.", type)
_METADATA: dict[str, tuple[str, type]] = {
    "num_layers": ("block_count", int),
    "d_model": ("embedding_length", int),
    "num_heads": ("attention.head_count", int),
    "num_kv_heads": ("attention.head_count_kv", int),
    "d_ff": ("feed_forward_length", int),
    "vocab_size": ("vocab_size", int),
    "rope_base": ("rope.freq_base", float),
    "rms_eps": ("attention.layer_norm_rms_epsilon", float),
}

_LAYER_TENSORS = {
    "attention.norm": "attn_norm",
    "attention.q": "attn_q",
    "attention.k": "attn_k",
    "attention.v": "attn_v",
    "attention.output": "attn_output",
    "mlp.norm": "ffn_norm",
    "mlp.gate": "ffn_gate",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
}
_SINGLE_TENSORS = {"embedding": "token_embd.weight", "norm": "output_norm.weight"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Smollm2Config:
    """Sizes of a decoder.

    Invariants: num_heads % num_kv_heads == 0; num_heads * head_dim == d_model; head_dim is even.

    Attributes:
      num_layers: number of decoder layers.
      d_model: width of the residual.
      num_heads: query heads.
      num_kv_heads: key and value heads; each serves num_heads / num_kv_heads query heads.
      d_ff: width of the SwiGLU layer.
      vocab_size: number of tokens.
      context: number of positions in the caches.
      rope_base: base of the rotary frequencies.
      rms_eps: epsilon of RMSNorm.
      is_compact: whether embedding and head share one table, and values and rotary tables fill all lanes (see
        models/packed.py): SmolLM2-135M with 2048 positions fits one chip then, and a token takes more cycles. None
        decides by the context: compact beyond DEFAULT_CONTEXT.
    """

    num_layers: int
    d_model: int
    num_heads: int
    num_kv_heads: int
    d_ff: int
    vocab_size: int
    context: int = DEFAULT_CONTEXT
    rope_base: float = 100_000.0
    rms_eps: float = 1e-5
    is_compact: bool | None = None

    def __post_init__(self) -> None:
        """Checks the invariants."""
        if self.d_model % self.num_heads or self.num_heads % self.num_kv_heads or self.head_dim % 2:
            raise ValueError(
                f"d_model {self.d_model}, num_heads {self.num_heads}, num_kv_heads {self.num_kv_heads}: heads must "
                "divide d_model into even parts, and kv heads must divide heads"
            )
        if self.is_compact is None:
            object.__setattr__(self, "is_compact", self.context > DEFAULT_CONTEXT)

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.d_model // self.num_heads

    @property
    def heads_per_group(self) -> int:
        """Query heads that share one key and value head."""
        return self.num_heads // self.num_kv_heads

    @property
    def kv_dim(self) -> int:
        """num_kv_heads * head_dim."""
        return self.num_kv_heads * self.head_dim

    @property
    def scale(self) -> float:
        """head_dim ** -0.5, the factor on q."""
        return float(self.head_dim**-0.5)

    @classmethod
    def from_gguf(cls, file: GgufFile, context: int = DEFAULT_CONTEXT, is_compact: bool | None = None) -> Smollm2Config:
        """Reads the sizes from the metadata; `context` is how many positions the caches hold."""
        architecture = file.value("general.architecture", str)
        if architecture != "llama":
            raise model_file_error(file.path, f"foreign: architecture '{architecture}', expected 'llama'")
        sizes = {field: file.value(f"llama.{key}", kind) for field, (key, kind) in _METADATA.items()}
        try:
            config = cls(context=context, is_compact=is_compact, **sizes)
        except (ValueError, ZeroDivisionError) as error:
            raise model_file_error(file.path, f"foreign: {error}") from error
        rope_dim = file.value("llama.rope.dimension_count", int)
        if rope_dim != config.head_dim:
            raise model_file_error(
                file.path, f"foreign: rotary embedding over {rope_dim} of {config.head_dim} features of a head"
            )
        trained = file.value("llama.context_length", int)
        if not 0 < context <= trained:
            raise ValueError(f"context {context} is outside 1..{trained}, the positions that '{file.path}' knows")
        return config


SMOLLM2_135M_SIZES = Smollm2Config(
    num_layers=30, d_model=576, num_heads=9, num_kv_heads=3, d_ff=1536, vocab_size=49_152
)
"""SmolLM2-135M with a cache of DEFAULT_CONTEXT positions."""


def parameter_shapes(config: Smollm2Config) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each fp32 parameter: matmul weights are [num_layers, inputs, outputs]."""
    layers, width = config.num_layers, config.d_model
    return {
        "embedding": (config.vocab_size, width),
        "attention.norm": (layers, width),
        "attention.q": (layers, width, width),
        "attention.k": (layers, width, config.kv_dim),
        "attention.v": (layers, width, config.kv_dim),
        "attention.output": (layers, width, width),
        "mlp.norm": (layers, width),
        "mlp.gate": (layers, width, config.d_ff),
        "mlp.up": (layers, width, config.d_ff),
        "mlp.down": (layers, config.d_ff, width),
        "norm": (width,),
    }


def random_parameters(config: Smollm2Config, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns fp32 parameters: norms near 1, all else normal with standard deviation (fan in) ** -0.5."""
    rng = np.random.default_rng(seed)
    parameters = {}
    for name, shape in parameter_shapes(config).items():
        noise = rng.standard_normal(shape, np.float32)
        fan_in = shape[-1] if name == "embedding" else shape[-2] if len(shape) > 1 else 1
        parameters[name] = 1 + 0.1 * noise if name.endswith("norm") else noise * np.float32(fan_in**-0.5)
    return parameters


def rope_tables(config: Smollm2Config) -> tuple[np.ndarray, np.ndarray]:
    """Returns the fp32 tables (cos, sin) [context, head_dim / 2], computed in fp64.

    angle[p, i] = p * rope_base ** (-2 i / head_dim); the halves x1, x2 of a head become
    x1 * cos - x2 * sin and x2 * cos + x1 * sin.
    """
    half = config.head_dim // 2
    frequency = config.rope_base ** (-np.arange(half, dtype=np.float64) / half)
    angle = np.arange(config.context, dtype=np.float64)[:, None] * frequency[None, :]
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def by_place(config: Smollm2Config, weights: np.ndarray, axis: int) -> np.ndarray:
    """Query heads along an axis in the order (place within its group, group) instead of (group, place)."""
    first, axis = np.moveaxis(weights, axis, 0), axis % weights.ndim
    heads = first.reshape(config.num_kv_heads, config.heads_per_group, config.head_dim, *first.shape[1:])
    return np.ascontiguousarray(np.moveaxis(heads.swapaxes(0, 1).reshape(first.shape), 0, axis))


def split_halves(config: Smollm2Config, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The columns of q or k [..., inputs, heads * head_dim] as (first halves, second halves) of every head, those of
    q ordered as `by_place` does."""
    if weights.shape[-1] != config.kv_dim:
        weights = by_place(config, weights, axis=-1)
    halves = weights.reshape(*weights.shape[:-1], -1, 2, config.head_dim // 2)
    first, second = (np.ascontiguousarray(halves[..., half, :]) for half in range(2))
    shape = (*weights.shape[:-1], weights.shape[-1] // 2)
    return first.reshape(shape), second.reshape(shape)


def open_parameters(
    path: Path | str, context: int = DEFAULT_CONTEXT, is_compact: bool | None = None
) -> tuple[Smollm2Config, Loader]:
    """Opens a SmolLM2 GGUF file and checks its architecture and every tensor's shape.

    Returns:
      (the sizes, a function from the names of `parameter_shapes` to fp32 parameters).

    Raises:
      ModelFileError: the file is missing, truncated, or holds another architecture or other shapes.
    """
    file = read_gguf(path)
    config = Smollm2Config.from_gguf(file, context, is_compact)
    _check_tensors(file, config)
    return config, lambda name: _load_parameter(file, config, name)


def unpermute_rope(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Undoes the row order of q and k in GGUF files.

    The file rotates neighbours (2 i, 2 i + 1) of a head; we rotate halves (i, i + head_dim / 2). So row 2 i + j of each
    head moves to row j * head_dim / 2 + i.

    Args:
      weight: [num_heads * head_dim, inputs].
      num_heads: heads in `weight`.
    """
    pairs = weight.reshape(num_heads, -1, 2, weight.shape[1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def tensor_shapes(config: Smollm2Config) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each tensor of the file; weights are [outputs, inputs] there."""
    shapes = parameter_shapes(config)
    expected = {tensor: shapes[name] for name, tensor in _SINGLE_TENSORS.items()}
    for name, tensor in _LAYER_TENSORS.items():
        for layer in range(config.num_layers):
            expected[f"blk.{layer}.{tensor}.weight"] = shapes[name][:0:-1]
    return expected


def _check_tensors(file: GgufFile, config: Smollm2Config) -> None:
    expected = tensor_shapes(config)
    for name, shape in expected.items():
        if name not in file.tensors:
            raise model_file_error(file.path, f"foreign: tensor '{name}' is missing")
        if file.shape(name) != shape:
            raise model_file_error(file.path, f"foreign: tensor '{name}' is {file.shape(name)}, expected {shape}")
    extra = sorted(set(file.tensors) - set(expected))
    if extra:
        raise model_file_error(file.path, f"foreign: unknown tensor '{extra[0]}' ({len(extra)} unknown in all)")


def _load_parameter(file: GgufFile, config: Smollm2Config, name: str) -> np.ndarray:
    """Returns one parameter in the shape of `parameter_shapes`."""
    if name in _SINGLE_TENSORS:
        return file.tensor(_SINGLE_TENSORS[name])
    num_heads = {"attention.q": config.num_heads, "attention.k": config.num_kv_heads}.get(name)
    parameter = np.empty(parameter_shapes(config)[name], np.float32)
    for layer in range(config.num_layers):
        tensor = file.tensor(f"blk.{layer}.{_LAYER_TENSORS[name]}.weight")
        parameter[layer] = (tensor if num_heads is None else unpermute_rope(tensor, num_heads)).T
    return parameter
