"""Building blocks of the decoder: quantised weights, embedding, RMSNorm, and the few array functions they share."""

from __future__ import annotations

from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

WeightKind: TypeAlias = Literal["int8", "fp32"]

FULL_WIDTH = 320
"""Columns that a plane multiplies at once."""
_INT8_MAX = 127
_SCALE_LANE_BITS = 8
_SCALES_PER_ROW = 1 << _SCALE_LANE_BITS


def quantize(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantises fp32 [..., K, N] to int8 with one fp32 scale per output channel.

    scale[..., n] = max_k |weights[..., k, n]| / 127 (1 for an all-zero channel)
    values = round_half_even(weights / scale), so |weights - values * scale| <= scale / 2.
    """
    largest = np.abs(weights).max(axis=-2)
    scale = np.where(largest > 0, largest / np.float32(_INT8_MAX), np.float32(1)).astype(np.float32)
    values = np.rint(weights / scale[..., None, :])
    return np.clip(values, -_INT8_MAX, _INT8_MAX).astype(np.int8), scale


class Linear(nnx.Module):  # type: ignore[misc]
    """A matmul weight without bias.

    y = x @ values (* scale), with x fp32 [rows, K], accumulated in fp32.

    Attributes:
      values: [K, N] int8 or fp32; a leading axis [num_layers] before the scan takes it off.
      scale: fp32 [N] per output channel, or None when `values` is fp32.
    """

    def __init__(self, weights: np.ndarray, kind: WeightKind) -> None:
        """Stores fp32 weights [..., K, N] as `kind`."""
        values, scale = quantize(weights) if kind == "int8" else (weights, None)
        self.values = nnx.Param(jnp.asarray(values))
        self.scale = None if scale is None else nnx.Param(jnp.asarray(scale))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns x @ weights, fp32 [rows, N]."""
        y = matmul(x, self.values[...])
        return y if self.scale is None else y * self.scale[...][None, :]


class Embedding(nnx.Module):  # type: ignore[misc]
    """A table of token vectors.

    Attributes:
      values: [vocab_size, d_model] int8 or fp32.
      scale: fp32 [ceil(vocab_size / 256), 256], one per token in row-major order (a table of rows of 256, so that a
        chip can look one up by row and pick the lane), or None when `values` is fp32.
    """

    def __init__(self, table: np.ndarray, kind: WeightKind) -> None:
        """Stores an fp32 table [vocab_size, d_model] as `kind`."""
        values, scale = table, None
        if kind == "int8":
            columns, per_token = quantize(table.T)
            values = np.ascontiguousarray(columns.T)
            scale = np.ones((-(-len(per_token) // _SCALES_PER_ROW), _SCALES_PER_ROW), np.float32)
            scale.reshape(-1)[: len(per_token)] = per_token
        self.values = nnx.Param(jnp.asarray(values))
        self.scale = None if scale is None else nnx.Param(jnp.asarray(scale))

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Returns fp32 [rows, d_model] for int32 tokens [rows], 0 <= token < vocab_size."""
        rows = take(self.values[...], tokens)
        if self.scale is None:
            return rows
        scales = take(self.scale[...], tokens >> _SCALE_LANE_BITS)
        lane = jnp.arange(_SCALES_PER_ROW, dtype=jnp.int32)[None, :]
        own = jnp.where(lane == (tokens & (_SCALES_PER_ROW - 1))[:, None], scales, 0.0)
        return rows.astype(jnp.float32) * own.sum(axis=1, keepdims=True)


class SharedTable(nnx.Module):  # type: ignore[misc]
    """A table of token vectors that is the output head too, held once, as weights of products.

    Attributes:
      values: [tiles, d_model, 320] int8 or fp32: column n of tile t is token 320 t + n, zero past the last token.
      scale: fp32 [tiles, 320] per token, or None when `values` is fp32.
    """

    def __init__(self, table: np.ndarray, kind: WeightKind) -> None:
        """Stores an fp32 table [vocab_size, d_model] as `kind`."""
        self.vocab_size, width = table.shape
        tiles = -(-self.vocab_size // FULL_WIDTH)
        padded = np.zeros((tiles * FULL_WIDTH, width), np.float32)
        padded[: self.vocab_size] = table
        blocks = np.ascontiguousarray(padded.reshape(tiles, FULL_WIDTH, width).swapaxes(1, 2))
        values, scale = quantize(blocks) if kind == "int8" else (blocks, None)
        self.values = nnx.Param(jnp.asarray(values))
        self.scale = None if scale is None else nnx.Param(jnp.asarray(scale))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the logits fp32 [rows, vocab_size] of x fp32 [rows, d_model]."""
        values = self.values[...]
        y: jax.Array = lax.dot_general(x, values, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
        y = y if self.scale is None else y * self.scale[...][None]
        logits: jax.Array = y.reshape(x.shape[0], -1)[:, : self.vocab_size]
        return logits

    def lookup(self, tokens: jax.Array) -> jax.Array:
        """Returns fp32 [rows, d_model] for int32 tokens [rows], 0 <= token < vocab_size; tokens one after the other."""
        if tokens.shape == (1,):
            return self._column(tokens[0])
        rows: jax.Array = lax.map(self._column, tokens)
        return rows[:, 0]

    def _column(self, token: jax.Array) -> jax.Array:
        """[1, d_model]"""
        tile, lane = lax.div(token, FULL_WIDTH), lax.rem(token, FULL_WIDTH)
        values = self.values[...]
        at, size = (tile, 0, lane), (1, values.shape[1], 1)
        column = lax.dynamic_slice(values, at, size, allow_negative_indices=False).reshape(1, -1).astype(jnp.float32)
        if self.scale is None:
            return column
        own = jnp.arange(FULL_WIDTH, dtype=jnp.int32)[None, :] == lane
        return column * jnp.where(own, row(self.scale[...], tile), 0.0).sum(axis=1, keepdims=True)


class RmsNorm(nnx.Module):  # type: ignore[misc]
    """y = x * rsqrt(mean(x ** 2) + eps) * weight, over the last axis."""

    def __init__(self, weight: np.ndarray, eps: float) -> None:
        """Stores weight [d] (or [num_layers, d] before the scan)."""
        self.weight = nnx.Param(jnp.asarray(weight))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises x [rows, d]."""
        mean_square = jnp.sum(x * x, axis=-1, keepdims=True) * (1.0 / x.shape[-1])
        normed: jax.Array = x * lax.rsqrt(mean_square + self.eps) * self.weight[...][None, :]
        return normed


def matmul(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    """Returns lhs @ rhs in fp32; rhs keeps its storage type (int8, fp16), so this stays one `dot_general`."""
    product: jax.Array = lax.dot_general(lhs, rhs, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    return product


def take(table: jax.Array, rows: jax.Array) -> jax.Array:
    """Returns table[rows] for rows in range, as one `gather`."""
    taken: jax.Array = table.at[rows].get(mode="promise_in_bounds", wrap_negative_indices=False)
    return taken


def row(table: jax.Array, row: jax.Array) -> jax.Array:
    """Returns table[row : row + 1] of a matrix, as one `dynamic_slice`."""
    return lax.dynamic_slice(table, (row, 0), (1, table.shape[1]), allow_negative_indices=False)
