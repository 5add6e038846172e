"""Whole models from Flax's parts, of any size, with random weights: what the tests and the benchmark of speed run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


class ResNetBlock(nn.Module):
    """Two convolutions of 3 x 3, the first with a stride of 2, beside one of 1 x 1; the mean over all places."""

    width: int = 8

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] -> [N, width]."""
        y = nn.Conv(self.width, (3, 3), strides=2, use_bias=False)(x)
        y = nn.relu(nn.BatchNorm(use_running_average=True)(y))
        y = nn.BatchNorm(use_running_average=True)(nn.Conv(self.width, (3, 3), use_bias=False)(y))
        return nn.relu(y + nn.Conv(self.width, (1, 1), strides=2, use_bias=False)(x)).mean((1, 2))


class Bottleneck(nn.Module):
    """Convolutions of 1 x 1, 3 x 3 and 1 x 1 with normalisation, beside what came in."""

    width: int
    strides: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] -> [N, H / strides, W / strides, 4 width]."""

        def convolved(x: jax.Array, width: int, size: int, strides: int = 1) -> jax.Array:
            y = nn.Conv(width, (size, size), strides=strides, use_bias=False)(x)
            normed: jax.Array = nn.BatchNorm(use_running_average=True)(y)
            return normed

        y = nn.relu(convolved(x, self.width, 1))
        y = nn.relu(convolved(y, self.width, 3, self.strides))
        y = convolved(y, 4 * self.width, 1)
        if x.shape != y.shape:
            x = convolved(x, 4 * self.width, 1, self.strides)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A ResNet of bottlenecks; the defaults are those of ResNet-50."""

    blocks: Sequence[int] = (3, 4, 6, 3)
    width: int = 64
    classes: int = 1000

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Images [N, H, W, 3] -> [N, classes]."""
        x = nn.Conv(self.width, (7, 7), strides=2, use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for stage, count in enumerate(self.blocks):
            for block in range(count):
                x = Bottleneck(self.width << stage, 2 if stage and not block else 1)(x)
        scores: jax.Array = nn.Dense(self.classes)(x.mean((1, 2)))
        return scores


class Layer(nn.Module):
    """A pre-norm layer of a transformer, with attention to `memory` if it is given."""

    heads: int = 2
    hidden: int = 16

    @nn.compact
    def __call__(self, x: jax.Array, memory: jax.Array | None = None, mask: jax.Array | None = None) -> jax.Array:
        """[N, S, C] -> [N, S, C]."""
        h = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(self.heads)(h, h, mask=mask)
        if memory is not None:
            x = x + nn.MultiHeadDotProductAttention(self.heads)(nn.LayerNorm()(x), memory)
        return x + nn.Dense(x.shape[-1])(nn.gelu(nn.Dense(self.hidden)(nn.LayerNorm()(x))))


class VisionTransformer(nn.Module):
    """Patches of an image through transformer layers; the first token is classified."""

    width: int = 8
    patch: int = 3
    layers: int = 1
    heads: int = 2
    hidden: int = 16
    classes: int = 5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Images [N, H, W, C] -> [N, classes]."""
        x = nn.Conv(self.width, (self.patch, self.patch), strides=self.patch)(x).reshape(x.shape[0], -1, self.width)
        first = self.param("class", nn.initializers.normal(), (1, 1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(first, (x.shape[0], 1, self.width)), x], 1)
        x = x + self.param("positions", nn.initializers.normal(), x.shape[1:])
        for _ in range(self.layers):
            x = Layer(self.heads, self.hidden)(x)
        scores: jax.Array = nn.Dense(self.classes)(nn.LayerNorm()(x)[:, 0])
        return scores


class EncoderDecoder(nn.Module):
    """Layers over a source, and causal layers over its beginning turned round that attend to it."""

    layers: int = 1
    heads: int = 2
    hidden: int = 16
    target: int = 4
    classes: int = 7

    @nn.compact
    def __call__(self, source: jax.Array) -> jax.Array:
        """[N, S, C] -> [N, target, classes]."""
        target = jnp.flip(source[:, : self.target], 1)
        mask = nn.make_causal_mask(target[..., 0])
        for _ in range(self.layers):
            source = Layer(self.heads, self.hidden)(source)
        for _ in range(self.layers):
            target = Layer(self.heads, self.hidden)(target, memory=source, mask=mask)
        scores: jax.Array = nn.Dense(self.classes)(target)
        return scores


class Mixture(nn.Module):
    """Two of some experts for every token."""

    experts: int = 4

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, S, C] -> [N, S, C]."""
        width = x.shape[-1]
        gates, chosen = lax.top_k(nn.softmax(nn.Dense(self.experts, use_bias=False)(x)), 2)
        experts = self.param("experts", nn.initializers.lecun_normal(), (self.experts, width, width))
        weights = (jax.nn.one_hot(chosen, self.experts) * gates[..., None]).sum(-2)
        return jnp.einsum("bse,bsef->bsf", weights, jnp.einsum("bsd,edf->bsef", x, experts))


class StateSpace(nn.Module):
    """A gated linear recurrence over the sequence, as an associative scan."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, S, C] -> [N, S, C]."""
        width = x.shape[-1]
        decay = jnp.exp(-nn.softplus(nn.Dense(width)(x)))
        b = nn.Dense(width)(x)

        def join(left: Any, right: Any) -> Any:
            return left[0] * right[0], right[0] * left[1] + right[1]

        _, states = lax.associative_scan(join, (decay, b), axis=1)
        y: jax.Array = nn.Dense(width)(nn.silu(nn.Dense(width)(x)) * states)
        return y


def beam_search(table: jax.Array, first: jax.Array, *, width: int = 3, length: int = 6) -> Any:
    """The best sequences of a chain whose step scores are a table [V, V]; ends when every beam has met token 0."""

    def goes_on(state: Any) -> jax.Array:
        step, tokens, _ = state
        running: jax.Array = (step < length) & (tokens[:, step - 1] != 0).any()
        return running

    def extend(state: Any) -> Any:
        step, tokens, scores = state
        last = tokens[:, step - 1]
        scored = scores[:, None] + jax.nn.log_softmax(table[last])
        ended = jnp.where(jnp.arange(len(table)) == 0, scores[:, None], -jnp.inf)
        scores, places = lax.top_k(jnp.where((last == 0)[:, None], ended, scored).reshape(-1), width)
        tokens = tokens[places // len(table)].at[:, step].set(places % len(table))
        return step + 1, tokens, scores

    tokens = jnp.zeros((width, length), jnp.int32).at[:, 0].set(first)
    scores = jnp.where(jnp.arange(width) == 0, 0.0, -jnp.inf)
    return lax.while_loop(goes_on, extend, (1, tokens, scores))
