"""Rules of rng_bit_generator: Threefry-2x32 and Philox-4x32 as counters in blocks, with the bits of XLA.

A generator's state is four words (uint32): two of the key and two of the counter, the low one first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from lpu_jax.lowering.emit import Operand
from lpu_jax.lowering.registry import RuleContext, register_lowering
from lpu_jax.lowering.rules.random_bits import threefry

_PHILOX_ROUNDS = 10
_PHILOX_FACTORS = (0xD2511F53, 0xCD9E8D57)
_PHILOX_STEPS = (0x9E3779B9, 0xBB67AE85)
_DTYPES = ("uint8", "uint16", "uint32")


def _plus(low: Any, high: Any, number: Any) -> tuple[Any, Any]:
    """Sum of a number of two words and one of one word."""
    total = low + number
    return total, high + lax.convert_element_type(total < low, jnp.uint32)


def _product(x: Any, factor: int) -> tuple[Any, Any]:
    """(high, low) word of x * factor, from products of half words."""
    low, high = x & np.uint32(0xFFFF), x >> np.uint32(16)
    small, large = np.uint32(factor & 0xFFFF), np.uint32(factor >> 16)
    crossed = (low * large, high * small)
    middle = ((low * small) >> np.uint32(16)) + (crossed[0] & np.uint32(0xFFFF)) + (crossed[1] & np.uint32(0xFFFF))
    carried = (crossed[0] >> np.uint32(16)) + (crossed[1] >> np.uint32(16)) + (middle >> np.uint32(16))
    return high * large + carried, x * np.uint32(factor)


def philox(key: Sequence[Any], counter: Sequence[Any]) -> tuple[Any, Any, Any, Any]:
    """Ten rounds of Philox-4x32 on broadcast uint32 arrays."""
    a, b, c, d = counter
    first, second = key
    for _ in range(_PHILOX_ROUNDS):
        (high, low), (other_high, other_low) = (_product(x, k) for x, k in zip((a, c), _PHILOX_FACTORS, strict=True))
        a, b, c, d = other_high ^ b ^ first, other_low, high ^ d ^ second, low
        first, second = (k + np.uint32(step) for k, step in zip((first, second), _PHILOX_STEPS, strict=True))
    return a, b, c, d


def _threefry_bits(state: Any, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """(new state, bits): both words of a block are neighbours along the first even axis, else along the longest one."""
    sizes = shape or (1,)
    axis = next((i for i, n in enumerate(sizes) if n % 2 == 0), int(np.argmax(sizes)))
    half = (*sizes[:axis], -(-sizes[axis] // 2), *sizes[axis + 1 :])
    numbers = np.arange(math.prod(half), dtype=np.uint32).reshape(half)
    words = threefry((state[0], state[1]), _plus(state[2], state[3], numbers))
    pairs = jnp.stack(words, axis + 1).reshape((*half[:axis], 2 * half[axis], *half[axis + 1 :]))
    bits = lax.slice_in_dim(pairs, 0, sizes[axis], axis=axis)
    return _moved(state, numbers.size), bits.reshape(shape)


def _philox_bits(state: Any, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """(new state, bits): the counter's high words are the key, a block gives four numbers in a row."""
    count = -(-math.prod(shape) // 4)
    low, high = _plus(state[2], state[3], np.arange(count, dtype=np.uint32))
    wraps = (high < state[3]) | ((high == state[3]) & (low < state[2]))
    upper, top = _plus(state[0], state[1], lax.convert_element_type(wraps, jnp.uint32))
    words = philox((state[0], state[1]), (low, high, upper, top))
    bits = jnp.stack(words, 1).reshape(4 * count)[: math.prod(shape)].reshape(shape)
    return _moved(state, count), bits


def _moved(state: Any, count: int) -> Any:
    """The state with its counter further."""
    return jnp.stack([state[0], state[1], *_plus(state[2], state[3], np.uint32(count))])


_ALGORITHMS = {0: _philox_bits, 1: _threefry_bits, 2: _philox_bits}
"""RandomAlgorithm to generator; the default one is that of XLA on the CPU."""


@register_lowering("rng_bit_generator")
def _rng_bit_generator(
    ctx: RuleContext, state: Operand, *, shape: Any, dtype: Any, algorithm: Any, out_sharding: Any = None
) -> Sequence[Operand]:
    """Threefry and Philox (the default) with a state of four words of 32 bits."""
    del out_sharding  # a hint to XLA
    ctx.require(state=(tuple(map(str, (ctx.avals_in[0].dtype, *ctx.avals_in[0].shape))), [("uint32", "4")]))
    if 0 in shape:
        raise ctx.unsupported("a state that only moves")
    name = str(np.dtype(dtype))
    generator = _ALGORITHMS[int(algorithm)]

    def fun(words: Any) -> tuple[Any, Any]:
        moved, bits = generator(words, tuple(shape))
        return moved, lax.convert_element_type(bits, name if name in _DTYPES else dtype)

    return ctx.rewrite(fun, state)
