"""SmolLM2 with weights whose rounding errors make up for each other on some text (see lpu_jax/compensation.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lpu_jax.compensation import compensate
from lpu_jax.models.layers import Linear, SharedTable
from lpu_jax.models.smollm2 import Layer, Smollm2, attend_prompt, causal_bias
from lpu_jax.runtime.formats import parse_format

INPUT_OF = {
    "attention/first": "attention", "attention/second": "attention", "attention/rest": "attention",
    "attention/output": "output", "mlp/gate": "mlp", "mlp/up": "mlp", "mlp/down": "down",
}  # fmt: skip
"""Weight of a layer -> which of the layer's inputs of products it multiplies."""


def compensated(model: Smollm2, texts: Sequence[np.ndarray], formats: Mapping[str, str]) -> Smollm2:
    """A copy of the model with weights rounded to block formats.

    Args:
      model: with fp32 weights; not changed.
      texts: tokens int32 [T] each, of one length, to weigh errors by.
      formats: weight ("mlp/down", "head") -> name of a block format; others stay as they are. Rounding a weight again
        to its format, as a policy does, changes nothing.
    """
    moments, head_moments = input_moments(model, jnp.asarray(np.stack(texts)))
    copied: Smollm2 = jax.tree.map(lambda leaf: leaf, model)
    for name, source in INPUT_OF.items():
        if name in formats:
            part, weight = name.split("/")
            linear: Linear = getattr(getattr(copied.layers, part), weight)
            pairs = zip(np.asarray(linear.values[...]), moments[source], strict=True)
            rounded = [compensate(w, m, parse_format(formats[name])) for w, m in pairs]
            linear.values[...] = jnp.asarray(np.stack(rounded))
    if "head" in formats:
        _compensate_head(copied, head_moments, formats["head"])
    return copied


def _compensate_head(model: Smollm2, moments: np.ndarray, form: str) -> None:
    """Tile by tile, as columns do not depend on each other; the embedding becomes the same values."""
    head, columns = model.head, 4096
    values = np.asarray(head.values[...])
    shared = isinstance(head, SharedTable)
    matrix = values.swapaxes(0, 1).reshape(values.shape[1], -1) if shared else values
    parts = [
        compensate(matrix[:, i : i + columns], moments, parse_format(form)) for i in range(0, matrix.shape[1], columns)
    ]
    rounded = np.concatenate(parts, axis=1)
    if model.embedding is not None:
        model.embedding.values[...] = jnp.asarray(np.ascontiguousarray(rounded.T))
    back = rounded.reshape(values.shape[1], values.shape[0], -1).swapaxes(0, 1) if shared else rounded
    head.values[...] = jnp.asarray(np.ascontiguousarray(back))


def input_moments(model: Smollm2, tokens: jax.Array) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Second moments of inputs of products over tokens [texts, T]: input -> [layers, K, K], and the head's [K, K]."""
    angles, bias = model.first_angles(tokens.shape[1]), causal_bias(model.config, tokens.shape[1])

    def one(x: jax.Array, layer: Layer) -> tuple[jax.Array, dict[str, jax.Array]]:
        seen: dict[str, jax.Array] = {"attention": layer.attention.norm(x)}

        def attend(heads: Any) -> Any:
            mixed, caches = attend_prompt(model.config, heads, bias)
            seen["output"] = mixed
            return mixed, caches

        x = x + layer.attention(x, attend, angles)[0]
        seen["mlp"] = layer.mlp.norm(x)
        gate = layer.mlp.gate(seen["mlp"])
        seen["down"] = gate * lax.logistic(gate) * layer.mlp.up(seen["mlp"])
        return x + layer.mlp.down(seen["down"]), seen

    @jax.jit
    def step(x: jax.Array, layer: Layer) -> tuple[jax.Array, dict[str, jax.Array]]:
        x, seen = jax.vmap(one, in_axes=(0, None))(x, layer)
        return x, {name: jnp.einsum("bti,btj->ij", v, v) for name, v in seen.items()}

    x, found = jax.vmap(model.lookup)(tokens), []
    for number in range(model.config.num_layers):
        x, moments = step(x, jax.tree.map(lambda leaf, number=number: leaf[number], model.layers))
        found.append(jax.tree.map(np.asarray, moments))
    last = model.norm(x).reshape(-1, x.shape[-1])
    return {name: np.stack([m[name] for m in found]) for name in found[0]}, np.asarray(last.T @ last)
