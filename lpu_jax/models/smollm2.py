"""SmolLM2 (Llama architecture) as an nnx decoder for one sequence, with int8 or fp32 weights.

Layer parameters are stacked on a leading axis and one `lax.scan` runs them, so the trace does not grow with depth.
Activations are [rows, features]: one row in `decode`, T rows in `prefill`. Use `vmap` outside for more sequences.
Caches are fp16: k_cache [num_layers, num_kv_heads * head_dim, context] has the positions last, so that it is the rhs of
the score matmul as it is stored, and the first halves of all heads before the second ones; v_cache is [num_layers,
context, num_kv_heads * head_dim], or packed (models/packed.py) in a compact model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from lpu_jax.models.layers import FULL_WIDTH, Embedding, Linear, RmsNorm, SharedTable, WeightKind, matmul, row
from lpu_jax.models.packed import PackedValues, mix, pack_table, pack_values, packed, packed_row, packed_rows, updated
from lpu_jax.models.smollm2_config import (
    DEFAULT_CONTEXT,
    Loader,
    Smollm2Config,
    by_place,
    open_parameters,
    parameter_shapes,
    random_parameters,
    rope_tables,
    split_halves,
)

Shape = jax.ShapeDtypeStruct
Caches: TypeAlias = tuple[jax.Array, jax.Array]
Angles: TypeAlias = tuple[jax.Array, jax.Array]
Halves: TypeAlias = tuple[jax.Array, jax.Array]
Attend: TypeAlias = Callable[["Heads"], tuple[jax.Array, Caches]]

_CACHE_DTYPE = jnp.float16
_MASKED = -1e30  # finite, so that masked score - max never becomes inf - inf; exp of it is exactly 0


class Heads(NamedTuple):
    """q, k and v of some rows; q and k in two halves of every head, so that rotation moves nothing between lanes.

    Heads lie in the order (place within its group, group), so that heads of equal place lie as their k and v do.

    Attributes:
      q: (first, second) halves, [rows, num_heads * head_dim / 2] each.
      k: (first, second) halves, [rows, num_kv_heads * head_dim / 2] each.
      v: [rows, kv_dim].
    """

    q: Halves
    k: Halves
    v: jax.Array


class Attention(nnx.Module):  # type: ignore[misc]
    """The projections and the norm of grouped-query attention; `attend` rotates q and k and says what is seen.

    The scale of the scores is in the weights of q.
    """

    def __init__(self, config: Smollm2Config, load: Loader, kind: WeightKind) -> None:
        """Loads attention.{norm,q,k,v,output}."""
        self.norm = RmsNorm(load("attention.norm"), config.rms_eps)
        q, k, v = (load(f"attention.{name}") for name in ("q", "k", "v"))
        q_first, q_second = split_halves(config, q * np.float32(config.scale))
        k_first, k_second = split_halves(config, k)
        self.q_width, self.v_width, half = q_first.shape[-1], v.shape[-1], config.head_dim // 2
        # so many of k join q, and the others v, that three products fill the planes
        self.k_width = min(-self.q_width % FULL_WIDTH // half * half, k_first.shape[-1])
        inside, outside = np.s_[..., : self.k_width], np.s_[..., self.k_width :]
        self.first = Linear(np.concatenate([q_first, k_first[inside]], axis=-1), kind)
        self.second = Linear(np.concatenate([q_second, k_second[inside]], axis=-1), kind)
        self.rest = Linear(np.concatenate([v, k_first[outside], k_second[outside]], axis=-1), kind)
        self.output = Linear(by_place(config, load("attention.output"), axis=-2), kind)

    def __call__(self, x: jax.Array, attend: Attend, angles: Angles) -> tuple[jax.Array, Caches]:
        """Returns (update of the residual [rows, d_model], what `attend` keeps of k and v)."""
        with jax.named_scope("norm"):
            normed = self.norm(x)
        with jax.named_scope("qkv"):
            first, second, rest = self.first(normed), self.second(normed), self.rest(normed)
        with jax.named_scope("rotate"):
            first, second = rotate(first, second, angles)
            middle = (self.v_width + rest.shape[1]) // 2
            v, k_rest = rest[:, : self.v_width], (rest[:, self.v_width : middle], rest[:, middle:])
            q = first[:, : self.q_width], second[:, : self.q_width]
            k = [[each[:, self.q_width :].astype(_CACHE_DTYPE)] for each in (first, second)]
            if k_rest[0].shape[1]:
                for parts, each in zip(k, rotate(*k_rest, angles), strict=True):
                    parts.append(each.astype(_CACHE_DTYPE))
            k_first, k_second = (jnp.concatenate(parts, axis=1) for parts in k)
        with jax.named_scope("attend"):
            mixed, caches = attend(Heads(q, (k_first, k_second), v.astype(_CACHE_DTYPE)))
        with jax.named_scope("output"):
            return self.output(mixed), caches


class FeedForward(nnx.Module):  # type: ignore[misc]
    """SwiGLU: down(silu(gate(n)) * up(n)) with n = norm(x)."""

    def __init__(self, config: Smollm2Config, load: Loader, kind: WeightKind) -> None:
        """Loads mlp.{norm,gate,up,down}."""
        self.norm = RmsNorm(load("mlp.norm"), config.rms_eps)
        self.gate = Linear(load("mlp.gate"), kind)
        self.up = Linear(load("mlp.up"), kind)
        self.down = Linear(load("mlp.down"), kind)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the update of the residual [rows, d_model]."""
        with jax.named_scope("norm"):
            normed = self.norm(x)
        with jax.named_scope("gate"):
            gate = self.gate(normed)
        with jax.named_scope("up"):
            up = self.up(normed)
        with jax.named_scope("silu"):
            hidden = gate * lax.logistic(gate) * up
        with jax.named_scope("down"):
            return self.down(hidden)


class Layer(nnx.Module):  # type: ignore[misc]
    """One decoder layer: x + attention(x), then x + mlp(x)."""

    def __init__(self, config: Smollm2Config, load: Loader, kind: WeightKind) -> None:
        """Loads the stacked parameters of all layers."""
        self.attention = Attention(config, load, kind)
        self.mlp = FeedForward(config, load, kind)

    def __call__(self, x: jax.Array, attend: Attend, angles: Angles) -> tuple[jax.Array, Caches]:
        """Returns (residual after the layer [rows, d_model], caches of the layer)."""
        with jax.named_scope("layer"):
            with jax.named_scope("attention"):
                update, caches = self.attention(x, attend, angles)
                x = x + update
            with jax.named_scope("mlp"):
                return x + self.mlp(x), caches


class Smollm2(nnx.Module):  # type: ignore[misc]
    """The parameters of the decoder; `decode` and `prefill` run it.

    Attributes:
      config: the sizes (static).
      embedding: token table; None if the head holds it.
      layers: one `Layer` whose parameters are stacked, [num_layers, ...].
      norm: the last RMSNorm.
      head: [d_model, vocab_size], the values of the embedding in the layout of a matmul weight.
      cos, sin: rotary tables, fp32 [context, head_dim / 2], see `rope_tables`; packed in a compact model.
    """

    def __init__(self, config: Smollm2Config, load: Loader, weights: WeightKind = "int8") -> None:
        """Builds the decoder.

        Args:
          config: the sizes.
          load: name -> fp32 array of the shape `parameter_shapes(config)[name]`; called once per name.
          weights: "int8" (per-channel scales) or "fp32" for embedding, head and all matmul weights.
        """
        if weights not in ("int8", "fp32"):
            raise ValueError(f"weights={weights!r}: expected 'int8' or 'fp32'")
        self.config = config
        table = load("embedding")
        self.embedding = None if config.is_compact else Embedding(table, weights)
        self.head: Linear | SharedTable
        self.head = SharedTable(table, weights) if config.is_compact else Linear(np.ascontiguousarray(table.T), weights)
        self.layers = Layer(config, load, weights)
        self.norm = RmsNorm(load("norm"), config.rms_eps)
        cos, sin = (pack_table(t) if config.is_compact else t for t in rope_tables(config))
        self.cos = nnx.Variable(jnp.asarray(cos))
        self.sin = nnx.Variable(jnp.asarray(sin))

    @classmethod
    def from_gguf(
        cls,
        path: Path | str,
        weights: WeightKind = "int8",
        context: int = DEFAULT_CONTEXT,
        is_compact: bool | None = None,
    ) -> Smollm2:
        """Loads a SmolLM2 GGUF file; is_compact as in `Smollm2Config`.

        Raises:
          ModelFileError: the file is missing, truncated, or holds another architecture or other shapes.
        """
        config, load = open_parameters(path, context, is_compact)
        return cls(config, load, weights)

    @classmethod
    def random(cls, config: Smollm2Config, seed: int = 0, weights: WeightKind = "int8") -> Smollm2:
        """Returns a decoder with normal weights of standard deviation K ** -0.5, equal for equal seeds."""
        parameters = random_parameters(config, seed)
        return cls(config, parameters.__getitem__, weights)

    @classmethod
    def shapes(cls, config: Smollm2Config, weights: WeightKind = "int8") -> Smollm2:
        """Returns a decoder of jax.ShapeDtypeStructs: enough to lower and compile, without weights."""
        one_layer = dataclasses.replace(config, num_layers=1)
        sizes = parameter_shapes(one_layer)
        model = cls(one_layer, lambda name: np.broadcast_to(np.float32(0), sizes[name]), weights)
        model.config = config
        model.layers = jax.tree.map(lambda x: Shape((config.num_layers, *x.shape[1:]), x.dtype), model.layers)
        shapes: Smollm2 = jax.tree.map(lambda leaf: Shape(leaf.shape, leaf.dtype), model)
        return shapes

    def lookup(self, tokens: jax.Array) -> jax.Array:
        """The vectors fp32 [rows, d_model] of tokens int32 [rows]."""
        found: jax.Array = self.head.lookup(tokens) if self.embedding is None else self.embedding(tokens)
        return found

    def angles(self, position: jax.Array) -> Angles:
        """cos and sin of a position, repeated for every head: fp32 [1, d_model] each."""
        tables, half = [self.cos[...], self.sin[...]], self.config.head_dim // 2
        if not self.config.is_compact:
            return _over_heads(self.config, *(row(table, position) for table in tables))
        cos, sin = (jnp.clip(packed_row(t, half, position, 2 * self.config.num_heads), -1.0, 1.0) for t in tables)
        return cos, sin

    def first_angles(self, rows: int) -> Angles:
        """As `angles`, of positions 0 .. rows - 1: fp32 [rows, d_model] each."""
        tables = [self.cos[...], self.sin[...]]
        if self.config.is_compact:
            tables = [packed_rows(table, self.config.head_dim // 2, rows) for table in tables]
        return _over_heads(self.config, *(lax.slice_in_dim(table, 0, rows) for table in tables))

    def empty_caches(self) -> Caches:
        """Returns (k_cache, v_cache) of zeros."""
        k_cache, v_cache = (jnp.zeros(cache.shape, cache.dtype) for cache in self.cache_shapes())
        return k_cache, v_cache

    def cache_shapes(self) -> tuple[Shape, Shape]:
        """Returns (k_cache, v_cache) as jax.ShapeDtypeStructs."""
        config = self.config
        return (
            Shape((config.num_layers, config.kv_dim, config.context), _CACHE_DTYPE),
            Shape((config.num_layers, *_value_shape(config)), _CACHE_DTYPE),
        )


def decode(
    model: Smollm2, token: jax.Array, position: jax.Array, k_cache: jax.Array, v_cache: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Runs one token.

    Args:
      model: the decoder.
      token: int32 scalar, 0 <= token < vocab_size.
      position: int32 scalar, 0 <= position < context; the caches hold positions 0..position - 1.
      k_cache: fp16 [num_layers, kv_dim, context].
      v_cache: fp16 [num_layers, context, kv_dim], or packed.

    Returns:
      (logits fp32 [vocab_size], argmax of the logits as int32 scalar, k_cache, v_cache with `position` written).
    """
    config = model.config
    with jax.named_scope("embedding"):
        x = model.lookup(jnp.reshape(token, (1,)))
    with jax.named_scope("rope_row"):
        angles = model.angles(position)
    with jax.named_scope("mask"):
        is_before = lax.broadcasted_iota(jnp.int32, (1, config.context), 1) < position
        bias = jnp.where(is_before, jnp.float32(0), jnp.float32(_MASKED))

    def layer_step(x: jax.Array, inputs: tuple[Layer, jax.Array, jax.Array]) -> tuple[jax.Array, Caches]:
        layer, k_layer, v_layer = inputs
        return layer(x, lambda heads: _attend_cache(config, heads, k_layer, v_layer, position, bias), angles)

    x, (k_cache, v_cache) = lax.scan(layer_step, x, (model.layers, k_cache, v_cache))
    logits, next_token = _head(model, x)
    return logits, next_token, k_cache, v_cache


def prefill(model: Smollm2, tokens: jax.Array, length: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Runs a prompt from position 0.

    Args:
      model: the decoder.
      tokens: int32 [T], T <= context; tokens[length:] is padding (any valid token).
      length: int32 scalar, 1 <= length <= T.

    Returns:
      As `decode`, for the prompt's last token. Cache positions length..T - 1 hold values of the padding; `decode`
      writes each position before it reads it.
    """
    x, k_cache, v_cache = _read_prompt(model, tokens)
    with jax.named_scope("last_row"):
        x = row(x, length - 1)
    logits, next_token = _head(model, x)
    return logits, next_token, k_cache, v_cache


def score(model: Smollm2, tokens: jax.Array) -> jax.Array:
    """Runs a text from position 0; returns the logits of every position, fp32 [T, vocab_size].

    Args:
      model: the decoder.
      tokens: int32 [T], T <= context.
    """
    x, _, _ = _read_prompt(model, tokens)
    with jax.named_scope("head"):
        return model.head(model.norm(x))


def _read_prompt(model: Smollm2, tokens: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(residual after the last layer [T, d_model], k_cache, v_cache)."""
    config = model.config
    (rows,) = tokens.shape
    if rows > config.context:
        raise ValueError(f"{rows} prompt tokens do not fit into a context of {config.context} positions")
    with jax.named_scope("embedding"):
        x = model.lookup(tokens)
    with jax.named_scope("rope_row"):
        angles = model.first_angles(rows)
    with jax.named_scope("mask"):
        bias = causal_bias(config, rows)

    def layer_step(x: jax.Array, layer: Layer) -> tuple[jax.Array, Caches]:
        return layer(x, lambda heads: attend_prompt(config, heads, bias), angles)

    x, (k_columns, v_rows) = lax.scan(layer_step, x, model.layers)
    rest = config.context - rows
    k_cache = jnp.pad(k_columns, ((0, 0), (0, 0), (0, rest)))
    return x, k_cache, v_rows if _layout(config) is not None else jnp.pad(v_rows, ((0, 0), (0, rest), (0, 0)))


def causal_bias(config: Smollm2Config, rows: int) -> jax.Array:
    """What is added to scores of `attend_prompt`: 0 where position t sees position s <= t, fp32 [.., rows]."""
    shape = (rows, config.heads_per_group, rows)
    seen = lax.broadcasted_iota(jnp.int32, shape, 0) >= lax.broadcasted_iota(jnp.int32, shape, 2)
    return jnp.where(seen, jnp.float32(0), jnp.float32(_MASKED)).reshape(-1, rows)


def _head(model: Smollm2, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    with jax.named_scope("head"):
        logits = model.head(model.norm(x)).reshape(-1)
        return logits, lax.argmax(logits, 0, jnp.int32)


def _attend_cache(
    config: Smollm2Config,
    heads: Heads,
    k_layer: jax.Array,
    v_layer: jax.Array,
    position: jax.Array,
    bias: jax.Array,
) -> tuple[jax.Array, Caches]:
    """Attends from one row to the caches of one layer as they are, and to the row itself; then writes its k and v.

    Nothing waits for the caches to be written. Row h of q is zero outside the lanes of head h, and k is repeated for
    the heads of a group, so that the scores of all heads are one matmul with the cache as stored. The mixed values are
    another one; of those, a head takes the columns of its group.
    Probabilities are divided by their sum after they have mixed the values: sum and mix need not wait for each other.
    """
    num_heads, group_heads, half = config.num_heads, config.heads_per_group, config.head_dim // 2
    own_lanes = np.arange(num_heads * half)[None, :] // half == np.arange(num_heads)[:, None]
    q = [jnp.where(own_lanes, each, 0.0) for each in heads.q]
    k, v = heads.k, heads.v
    k_halves = k_layer[: config.kv_dim // 2], k_layer[config.kv_dim // 2 :]
    columns = jnp.concatenate([jnp.tile(each, (group_heads, 1)) for each in k_halves])
    scores = matmul(jnp.concatenate(q, axis=1), columns) + bias
    first, second = (a * jnp.tile(b.astype(jnp.float32), (1, group_heads)) for a, b in zip(q, k, strict=True))
    own = jnp.sum(first + second, axis=1, keepdims=True)
    largest = jnp.maximum(jnp.max(scores, axis=1, keepdims=True), own)
    weights, own_weight = jnp.exp(scores - largest), jnp.exp(own - largest)
    layout = _layout(config)
    from_cache = matmul(weights, v_layer) if layout is None else mix(layout, weights, v_layer)
    mixed = from_cache + own_weight * v.astype(jnp.float32)
    mixed = mixed / (jnp.sum(weights, axis=1, keepdims=True) + own_weight)
    mixed = _own_group(config, mixed.reshape(group_heads, config.num_kv_heads, config.kv_dim))
    k_column = jnp.concatenate([each.T for each in k])
    k_layer = lax.dynamic_update_slice(k_layer, k_column, (0, position), allow_negative_indices=False)
    if layout is None:
        v_layer = lax.dynamic_update_slice(v_layer, v, (position, 0), allow_negative_indices=False)
    else:
        v_layer = updated(layout, v_layer, v, position)
    return mixed.reshape(1, -1), (k_layer, v_layer)


def _own_group(config: Smollm2Config, mixed: jax.Array) -> jax.Array:
    """Of mixed [heads_per_group, groups, kv_dim] each group's columns of its own row: [heads_per_group, kv_dim]."""
    group = np.arange(config.kv_dim)[None, :] // config.head_dim
    taken = mixed[:, 0]
    for number in range(1, config.num_kv_heads):
        taken = jnp.where(group == number, mixed[:, number], taken)
    return taken


def attend_prompt(config: Smollm2Config, heads: Heads, bias: jax.Array) -> tuple[jax.Array, Caches]:
    """Attends within the prompt, group by group; row t * heads_per_group + h of a group is head h of position t."""
    rows, width, group_heads = heads.v.shape[0], config.head_dim, config.heads_per_group
    q = [each.reshape(rows, group_heads, config.num_kv_heads, width // 2) for each in heads.q]
    k_columns, v_rows = jnp.concatenate(heads.k, axis=1).T, heads.v
    mixed = []
    for group in range(config.num_kv_heads):
        q_group = jnp.concatenate([each[:, :, group] for each in q], axis=-1).reshape(-1, width)
        k_group = k_columns.reshape(2, config.num_kv_heads, width // 2, rows)[:, group].reshape(width, rows)
        v_group = lax.slice_in_dim(v_rows, group * width, (group + 1) * width, axis=1)
        scores = matmul(q_group, k_group) + bias
        weights = jnp.exp(scores - jnp.max(scores, axis=1, keepdims=True))
        taken = matmul(weights, v_group) / jnp.sum(weights, axis=1, keepdims=True)
        mixed.append(taken.reshape(rows, group_heads, width))
    if (layout := _layout(config)) is not None:
        v_rows = packed(layout, jnp.pad(v_rows, ((0, config.context - rows), (0, 0))))
    return jnp.stack(mixed, axis=2).reshape(rows, -1), (k_columns, v_rows)


def _layout(config: Smollm2Config) -> PackedValues | None:
    """The packed layout of the values, None if a compact model would gain nothing by it."""
    if not config.is_compact:
        return None
    layout = pack_values(config.context, config.num_kv_heads, config.head_dim)
    return layout if layout.blocks else None


def _value_shape(config: Smollm2Config) -> tuple[int, int]:
    layout = _layout(config)
    return (config.context, config.kv_dim) if layout is None else (layout.num_rows, layout.width)


def _over_heads(config: Smollm2Config, cos: jax.Array, sin: jax.Array) -> Angles:
    """Tables [rows, head_dim / 2] repeated for every head: rotation works on whole rows.

    The clip changes nothing; it tells the compiler that rotated values are not much larger than they were.
    """
    cos, sin = (jnp.tile(jnp.clip(table, -1.0, 1.0), (1, 2 * config.num_heads)) for table in (cos, sin))
    return cos, sin


def rotate(first: jax.Array, second: jax.Array, angles: Angles) -> Halves:
    """Rotates the first and second halves of some heads by the angles of their row."""
    cos, sin = (lax.slice_in_dim(table, 0, first.shape[1], axis=1) for table in angles)
    return first * cos - second * sin, second * cos + first * sin
