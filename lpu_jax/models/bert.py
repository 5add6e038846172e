"""A small BERT-style encoder layer and an MLP as nnx modules with random weights."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

_MASKED = -1e9


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertConfig:
    """Sizes of an encoder; d_model % num_heads == 0."""

    d_model: int = 64
    num_heads: int = 4
    d_ff: int = 128
    layer_norm_eps: float = 1e-12
    approximate_gelu: bool = False  # True: the tanh form, False: erf

    def __post_init__(self) -> None:
        """Checks the invariant."""
        if self.d_model % self.num_heads:
            raise ValueError(f"d_model {self.d_model} is not a multiple of num_heads {self.num_heads}")


def _layer_norm(width: int, epsilon: float, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """With the variance of centred values: it cannot cancel, and bounds what it divides."""
    return nnx.LayerNorm(width, epsilon=epsilon, use_fast_variance=False, rngs=rngs)


class BertLayer(nnx.Module):  # type: ignore[misc]
    """One post-norm encoder layer: x = norm(x + attention(x)), then x = norm(x + mlp(x))."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs) -> None:
        """Draws random weights."""
        width = config.d_model
        self.config = config
        self.query, self.key, self.value, self.output = (nnx.Linear(width, width, rngs=rngs) for _ in range(4))
        self.attention_norm = _layer_norm(width, config.layer_norm_eps, rngs)
        self.up = nnx.Linear(width, config.d_ff, rngs=rngs)
        self.down = nnx.Linear(config.d_ff, width, rngs=rngs)
        self.mlp_norm = _layer_norm(width, config.layer_norm_eps, rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Encodes x.

        Args:
          x: fp32 [batch, length, d_model].
          mask: bool [batch, length]; False positions are not attended to.

        Returns:
          fp32 [batch, length, d_model].
        """
        with jax.named_scope("attention"):
            x = self.attention_norm(x + self.output(self._attend(x, mask)))
        with jax.named_scope("mlp"):
            hidden = jax.nn.gelu(self.up(x), approximate=self.config.approximate_gelu)
            normed: jax.Array = self.mlp_norm(x + self.down(hidden))
            return normed

    def _attend(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        heads = (*x.shape[:2], self.config.num_heads, x.shape[2] // self.config.num_heads)
        q, k, v = (project(x).reshape(heads) for project in (self.query, self.key, self.value))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * (heads[-1] ** -0.5)
        scores = jnp.where(mask[:, None, None, :], scores, jnp.float32(_MASKED))
        return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, axis=-1), v).reshape(x.shape)


class Mlp(nnx.Module):  # type: ignore[misc]
    """Linear layers with ReLU between them."""

    def __init__(self, sizes: Sequence[int], *, rngs: nnx.Rngs) -> None:
        """Draws random weights for sizes[0] inputs, ..., sizes[-1] outputs."""
        self.layers = nnx.List(
            [nnx.Linear(inputs, outputs, rngs=rngs) for inputs, outputs in itertools.pairwise(sizes)]
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps fp32 [batch, sizes[0]] to [batch, sizes[-1]]."""
        for layer in self.layers[:-1]:
            x = jax.nn.relu(layer(x))
        y: jax.Array = self.layers[-1](x)
        return y
