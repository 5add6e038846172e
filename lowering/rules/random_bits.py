"""Rules of random keys: Threefry-2x32 in int32 additions, rotations and exclusive ors; the bits are JAX's own.

A key is its two words (uint32, the last axis); counters are as in JAX with jax_threefry_partitionable, its default.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lpu_jax.lowering import _jax_compat as compat
from lpu_jax.lowering.emit import Operand
from lpu_jax.lowering.registry import RuleContext, register_lowering

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
_WORDS = (2,)
KEY_MOVES = frozenset((
    "broadcast_in_dim", "concatenate", "copy", "dynamic_slice", "dynamic_update_slice", "expand_dims", "gather",
    "reshape", "rev", "select_n", "slice", "split", "squeeze", "stack", "transpose", "unstack",
))  # fmt: skip
"""Primitives that move keys without looking at them."""


def _rotated(x: Any, bits: int) -> Any:
    low, high = (jnp.full_like(x, n) for n in (bits, 32 - bits))
    return lax.shift_left(x, low) | lax.shift_right_logical(x, high)


def threefry(key: Sequence[Any], counter: Sequence[Any]) -> tuple[Any, Any]:
    """Five times four rounds of Threefry-2x32 on broadcast uint32 arrays."""
    schedule = (*key, key[0] ^ key[1] ^ np.uint32(_PARITY))
    x, y = counter[0] + schedule[0], counter[1] + schedule[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x = x + y
            y = x ^ _rotated(y, rotation)
        x = x + schedule[(group + 1) % 3]
        y = y + schedule[(group + 2) % 3] + np.uint32(group + 1)
    return x, y


def _counters(shape: Sequence[int]) -> tuple[Any, Any]:
    """High and low words of 0, 1, 2, ... in row-major order."""
    count = np.arange(math.prod(shape), dtype=np.uint64).reshape(shape)
    return (count >> np.uint64(32)).astype(np.uint32), count.astype(np.uint32)


def _blocks(keys: Any, shape: Sequence[int]) -> tuple[Any, Any]:
    """Threefry of every key [..., 2] at the counters of a shape: two arrays [..., *shape]."""
    words = [lax.expand_dims(keys[..., i], range(keys.ndim - 1, keys.ndim - 1 + len(shape))) for i in range(2)]
    return threefry(words, _counters(shape))


def _require_threefry(ctx: RuleContext, shape: Sequence[int]) -> None:
    is_partitionable = compat.is_threefry_partitionable()
    ctx.require(key_words=(tuple(shape), [_WORDS]), jax_threefry_partitionable=(is_partitionable, [True]))


@register_lowering("random_seed")
def _random_seed(ctx: RuleContext, seeds: Operand, *, impl: Any) -> Sequence[Operand]:
    """The words of a 32-bit seed: 0 and the seed; a negative seed keeps its bits."""
    _require_threefry(ctx, impl.key_shape)

    def fun(seed: Any) -> Any:
        word = lax.convert_element_type(seed, jnp.uint32)
        return lax.concatenate([jnp.zeros((*word.shape, 1), jnp.uint32), word[..., None]], word.ndim)

    return ctx.rewrite(fun, seeds)


@register_lowering("random_wrap")
def _random_wrap(ctx: RuleContext, words: Operand, *, impl: Any) -> Sequence[Operand]:
    _require_threefry(ctx, impl.key_shape)
    return [words]


@register_lowering("random_unwrap")
def _random_unwrap(ctx: RuleContext, keys: Operand) -> Sequence[Operand]:
    return [keys]


@register_lowering("random_clone")
def _random_clone(ctx: RuleContext, keys: Operand) -> Sequence[Operand]:
    return [keys]


@register_lowering("random_bits")
def _random_bits(ctx: RuleContext, keys: Operand, *, bit_width: int, shape: Any) -> Sequence[Operand]:
    """The exclusive or of both words of a block, cut to 8 or 16 bits where fewer are asked for."""
    _require_threefry(ctx, ctx.avals_in[0].shape[-1:])
    ctx.require(bit_width=(bit_width, [8, 16, 32]))

    def fun(words: Any) -> Any:
        high, low = _blocks(words, tuple(shape))
        return lax.convert_element_type(high ^ low, f"uint{bit_width}")

    return ctx.rewrite(fun, keys)


@register_lowering("random_split")
def _random_split(ctx: RuleContext, keys: Operand, *, shape: Any) -> Sequence[Operand]:
    """Both words of a block are a new key."""
    _require_threefry(ctx, ctx.avals_in[0].shape[-1:])

    def fun(words: Any) -> Any:
        high, low = _blocks(words, tuple(shape))
        return lax.concatenate([high[..., None], low[..., None]], high.ndim)

    return ctx.rewrite(fun, keys)


@register_lowering("random_fold_in")
def _random_fold_in(ctx: RuleContext, keys: Operand, data: Operand) -> Sequence[Operand]:
    """Threefry of the key at the words of the number."""
    _require_threefry(ctx, ctx.avals_in[0].shape[-1:])

    def fun(words: Any, number: Any) -> Any:
        low = lax.convert_element_type(number, jnp.uint32)
        x, y = threefry((words[..., 0], words[..., 1]), (jnp.zeros_like(low), low))
        return lax.concatenate([x[..., None], y[..., None]], x.ndim)

    return ctx.rewrite(fun, keys, data)


@register_lowering("threefry2x32")
def _threefry2x32(ctx: RuleContext, *operands: Operand) -> Sequence[Operand]:
    """The block function itself."""
    return ctx.rewrite(lambda a, b, x, y: threefry((a, b), (x, y)), *operands)


def moved_keys(ctx: RuleContext, eqn: Any, operands: Sequence[Operand]) -> list[Operand]:
    """A move of keys is that move of both words."""
    axes_in = [-1 if compat.is_extended_dtype(v.aval.dtype) else None for v in eqn.invars]
    move = jax.vmap(lambda *words: eqn.primitive.bind(*words, **eqn.params), in_axes=axes_in, out_axes=-1)
    return ctx.rewrite(move, *operands)
