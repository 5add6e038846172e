"""Greedy generation: prompt tokens in, a stream of answer tokens out, under `jax.jit` or any other compiled pair."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from lpu_jax.models.smollm2 import Smollm2, decode, prefill

# (logits [vocab], next token, k_cache, v_cache)
Step: TypeAlias = tuple[jax.Array, jax.Array, jax.Array, jax.Array]

_SMALLEST_BUCKET = 32

jit_prefill: Callable[..., Step] = jax.jit(prefill)
jit_decode: Callable[..., Step] = jax.jit(decode, donate_argnums=(3, 4))


def bucket(length: int, context: int) -> int:
    """Returns the padded prompt length: the smallest power of two >= max(length, 32), at most `context`.

    Few lengths mean few compilations of `prefill`.
    """
    if not 0 < length <= context:
        raise ValueError(f"a prompt of {length} tokens does not fit into a context of 1..{context} positions")
    return min(context, max(_SMALLEST_BUCKET, 1 << (length - 1).bit_length()))


def pad_prompt(prompt: Sequence[int], context: int) -> jax.Array:
    """Returns the prompt as int32 [bucket(len(prompt), context)], padded with token 0."""
    tokens = np.zeros(bucket(len(prompt), context), np.int32)
    tokens[: len(prompt)] = prompt
    return jnp.asarray(tokens)


def generate(
    model: Smollm2,
    prompt: Sequence[int],
    *,
    stop_id: int,
    max_tokens: int | None = None,
    prefill_fn: Callable[..., Step] = jit_prefill,
    decode_fn: Callable[..., Step] = jit_decode,
) -> Iterator[int]:
    """Yields the greedy answer, token by token, without the stop token.

    Args:
      model: the decoder.
      prompt: token ids, for example from `Tokenizer.chat`.
      stop_id: the token that ends the answer.
      max_tokens: largest number of tokens to yield; None means until the context is full.
      prefill_fn: called as `prefill`.
      decode_fn: called as `decode`; it may consume (donate) the caches.
    """
    context = model.config.context
    limit = context - len(prompt) + 1 if max_tokens is None else max_tokens
    padded = pad_prompt(prompt, context)
    _, next_token, k_cache, v_cache = prefill_fn(model, padded, jnp.int32(len(prompt)))
    for position in range(len(prompt), len(prompt) + limit):
        token = int(next_token)
        if token == stop_id:
            return
        yield token
        if position == min(context, len(prompt) + limit - 1):
            return
        _, next_token, k_cache, v_cache = decode_fn(model, jnp.int32(token), jnp.int32(position), k_cache, v_cache)
