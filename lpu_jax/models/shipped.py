"""The models of this package at full size as (function, arguments), ready to be profiled; shapes stand for weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lpu_jax.models.bert import BertConfig, BertLayer
from lpu_jax.models.smollm2 import Smollm2, decode, prefill
from lpu_jax.models.smollm2_config import SMOLLM2_135M_SIZES
from lpu_jax.runtime.chip import ChipSpec
from lpu_jax.transform import LpuFunction, lpu

Built = tuple[LpuFunction, tuple[Any, ...]]
Shape = jax.ShapeDtypeStruct

SMOLLM2_PROMPT, BERT_LENGTH = 64, 128
"""Tokens of the prompt of `smollm2-prefill`, and of the sequence of `bert-layer`."""


def smollm2_shapes(context: int) -> Smollm2:
    """SmolLM2-135M with int8 weights, each leaf a ShapeDtypeStruct."""
    return Smollm2.shapes(dataclasses.replace(SMOLLM2_135M_SIZES, context=context))


def _smollm2_decode(chip: ChipSpec, context: int) -> Built:
    model = smollm2_shapes(context)
    token = Shape((), jnp.int32)
    function = lpu(decode, chip=chip, resident_argnums=(0, 3, 4), donate_argnums=(3, 4))
    return function, (model, token, token, *model.cache_shapes())


def _smollm2_prefill(chip: ChipSpec, context: int) -> Built:
    prompt = Shape((min(SMOLLM2_PROMPT, context),), jnp.int32)
    function = lpu(prefill, chip=chip, resident_argnums=0)
    return function, (smollm2_shapes(context), prompt, Shape((), jnp.int32))


def _bert_layer(chip: ChipSpec, context: int) -> Built:
    sizes = BertConfig(d_model=768, num_heads=12, d_ff=3072)
    graph, state = nnx.split(nnx.eval_shape(lambda: BertLayer(sizes, rngs=nnx.Rngs(0))))

    def bert_layer(state: Any, x: jax.Array, mask: jax.Array) -> jax.Array:
        encoded: jax.Array = nnx.merge(graph, state)(x, mask)
        return encoded

    inputs = Shape((1, BERT_LENGTH, sizes.d_model), jnp.float32), Shape((1, BERT_LENGTH), jnp.bool_)
    return lpu(bert_layer, chip=chip, resident_argnums=0), (state, *inputs)


SHIPPED: dict[str, tuple[str, Callable[[ChipSpec, int], Built]]] = {
    "smollm2": ("one token of SmolLM2-135M, int8 weights", _smollm2_decode),
    "smollm2-prefill": (f"a prompt of {SMOLLM2_PROMPT} tokens of SmolLM2-135M, int8 weights", _smollm2_prefill),
    "bert-layer": (f"one layer of BERT-base, fp32, {BERT_LENGTH} tokens", _bert_layer),
}
"""Name on the command line: (what it is, (chip, positions in the KV cache) -> function and arguments)."""
