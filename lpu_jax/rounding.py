"""Weights as they are multiplied in a number format, as plain vectorised JAX: for measuring what a format costs.

`round_operand` gives the values that lowering gives an rhs of the format (lowering/rules/operand_formats.py);
`round_argument` does so for an argument whose moves lead to one.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lpu_jax.lowering.precision import Ordering, Site
from lpu_jax.lowering.rules.operand_formats import TARGET_EXPONENTS
from lpu_jax.runtime import casts
from lpu_jax.runtime.block_words import decode_words, encode_words
from lpu_jax.runtime.chip import ChipSpec
from lpu_jax.runtime.formats import BF16, FP32, INT8, NumberFormat
from lpu_jax.runtime.ops import Reshape, Transpose

Moves = tuple[tuple[Ordering, tuple[int, ...]], ...]

_EXPONENT_MASK = 0x7F800000
_MIRRORED = 254 << 23


@functools.partial(jax.jit, static_argnames=("number_format", "optimal"))
def round_operand(x: jax.Array, number_format: NumberFormat, optimal: bool = True) -> jax.Array:
    """float32 [..., K, N] with the values that it is multiplied with as an rhs of the format.

    optimal: block floating point takes the shared exponent with the least squared error, as policies do.
    """
    if number_format == FP32:
        return x
    if number_format.block_size:
        words = encode_words(jnp, x, number_format, optimal)
        blocks: jax.Array = decode_words(jnp, words, number_format, x.shape[-2], np.float32)
        return blocks
    if number_format == BF16:
        rounded: jax.Array = casts.round_to(jnp, x, BF16)
        return rounded
    if number_format == INT8:
        size = jnp.maximum(jnp.max(jnp.abs(x), axis=-2, keepdims=True), np.float32(2.0**-100))
        factor = (np.float32(127) + jnp.zeros_like(size)) / size
        return jnp.rint(x * factor) * (size * np.float32(1 / 127))
    return _round_scaled(x, number_format)


def _round_scaled(x: jax.Array, number_format: NumberFormat) -> jax.Array:
    """Rounded with the power of two that puts the largest magnitude of a matrix below the format's largest."""
    target = TARGET_EXPONENTS[number_format]
    size = jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True)
    field = jnp.maximum(jax.lax.bitcast_convert_type(size, np.int32) & _EXPONENT_MASK, (target + 1) << 23)
    power = field - (target << 23)
    inverse = jax.lax.bitcast_convert_type(_MIRRORED - power, np.float32)
    rounded: jax.Array = casts.round_to(jnp, x * inverse, number_format)
    return rounded * jax.lax.bitcast_convert_type(power, np.float32)


def round_argument(x: Any, site: Site, number_format: NumberFormat, optimal: bool = True) -> jax.Array:
    """An argument with its values rounded as the rhs (or table) of a site; loop slices each on their own.

    Raises:
      ValueError: the rhs of the site is computed from the argument, so that no argument gives its rounded values.
    """
    if site.moves is None:
        raise ValueError(f"the rhs of {site} is computed, not moved, from the argument")
    with jax.enable_x64(True):
        x = jnp.asarray(x, np.float32)
        if x.shape == site.weight_shape:
            only: jax.Array = _round_slices(x[None], site.moves, number_format, optimal)[0]
            return only
        if x.shape[1:] != site.weight_shape:
            raise ValueError(f"{site}: the argument is {x.shape}, the product takes {site.weight_shape} of it")
        turns: jax.Array = _round_slices(x, site.moves, number_format, optimal)
        return turns


@functools.partial(jax.jit, static_argnames=("moves", "number_format", "optimal"))
def _round_slices(x: jax.Array, moves: Moves, number_format: NumberFormat, optimal: bool) -> jax.Array:
    turns: jax.Array = jax.lax.map(lambda turn: _rounded_slice(turn, moves, number_format, optimal), x)
    return turns


def _rounded_slice(x: jax.Array, moves: Moves, number_format: NumberFormat, optimal: bool) -> jax.Array:
    shapes = [x.shape, *(shape for _, shape in moves)]
    y = x
    for move, shape in moves:
        y = _moved(y, move, shape)
    y = round_operand(y, number_format, optimal)
    for (move, _), shape in zip(reversed(moves), reversed(shapes[:-1]), strict=True):
        y = _moved_back(y, move, shape)
    return y


def _moved(x: jax.Array, move: Ordering, shape: tuple[int, ...]) -> jax.Array:
    if isinstance(move, Reshape):
        return x.reshape(shape)
    return x.transpose(move.permutation) if isinstance(move, Transpose) else jnp.flip(x, move.axes)


def _moved_back(x: jax.Array, move: Ordering, shape: tuple[int, ...]) -> jax.Array:
    if isinstance(move, Transpose):
        return x.transpose(np.argsort(move.permutation).tolist())
    return _moved(x, move, shape)


def num_weight_bytes(x: Any, site: Site, number_format: NumberFormat) -> int:
    """Bytes at rest of an argument in a format: blocks lie along the contracting axis of the product."""
    rows, columns = site.rhs_shape[-2:]
    return number_format.num_sram_bytes(rows, columns) * _num_matrices(x, site)


def num_padded_bytes(x: Any, site: Site, number_format: NumberFormat, chip: ChipSpec) -> int:
    """Bytes in SRAM: columns are filled up to all lanes, weights to whole loads of the MXM."""
    rows, columns = site.rhs_shape[-2:]
    words, per_load = number_format.num_words(rows), 1 if site.is_lookup else chip.num_streams_per_load
    padded = -(-words // per_load) * per_load * -(-columns // chip.num_lanes) * chip.num_lanes
    return padded * _num_matrices(x, site)


def _num_matrices(x: Any, site: Site) -> int:
    size: int = math.prod(np.shape(x))
    return size // math.prod(site.rhs_shape[-2:])
