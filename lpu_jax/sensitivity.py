"""How far a model's results move when one weight is rounded to a format.

direct    every tensor in every format, one at a time: forward passes over all samples
gradient  |J d|^2 of the rounding d, from random projections of the results: backward passes, then dot products alone
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lpu_jax.lowering.precision import Site
from lpu_jax.rounding import round_argument
from lpu_jax.runtime.formats import NumberFormat

Distance = Callable[[Any, Any], jax.Array]
"""(results of the model as it is, results with a rounded weight) -> float32 scalar."""

NUM_PROJECTIONS = 8


def squared_distance(reference: Any, found: Any) -> jax.Array:
    """|found - reference|^2 / |reference|^2, added over the float results: the inverse of the SQNR for one result."""
    total: jax.Array = jnp.float32(0)
    for expected, y in zip(_floats(reference), _floats(found), strict=True):
        total += jnp.sum(jnp.square(y - expected)) / jnp.maximum(jnp.sum(jnp.square(expected)), 1e-30)
    return total


def kl_distance(reference: Any, found: Any) -> jax.Array:
    """KL(softmax(reference) || softmax(found)) in nats, mean over all but the last axis of the first result."""
    expected, y = (jax.nn.log_softmax(_floats(x)[0]) for x in (reference, found))
    return jnp.mean(jnp.sum(jnp.exp(expected) * (expected - y), axis=-1))


DISTANCES: dict[str, Distance] = {"squared": squared_distance, "kl": kl_distance}


def _floats(results: Any) -> list[jax.Array]:
    return [jnp.asarray(x, jnp.float32) for x in jax.tree.leaves(results) if jnp.issubdtype(x.dtype, jnp.floating)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensor:
    """A weight whose format is open.

    Attributes:
      name: path of the argument; index: its number among the leaves of the parameters.
      sites: where it is used, in one layout.
      formats: candidates, cheapest first.
    """

    name: str
    index: int
    sites: tuple[Site, ...]
    formats: tuple[NumberFormat, ...]


@dataclasses.dataclass(frozen=True)
class Model:
    """A function of (parameters, *arguments), its parameters as leaves, and the samples."""

    fun: Callable[..., Any]
    leaves: tuple[Any, ...]
    tree: Any
    samples: tuple[tuple[Any, ...], ...]

    def results(self, leaves: Sequence[Any], sample: Sequence[Any]) -> Any:
        """The results with other leaves."""
        return self.fun(jax.tree.unflatten(self.tree, leaves), *sample)


def direct_errors(model: Model, tensors: Sequence[Tensor], distance: Distance) -> Iterator[list[float]]:
    """For every tensor the mean distance over the samples in each of its formats."""
    run = jax.jit(model.results)
    compare = jax.jit(lambda leaves, sample, reference: distance(reference, model.results(leaves, sample)))
    references = [run(model.leaves, sample) for sample in model.samples]
    for tensor in tensors:
        errors = []
        for form in tensor.formats:
            leaves = list(model.leaves)
            leaves[tensor.index] = round_argument(leaves[tensor.index], tensor.sites[0], form)
            distances = [compare(leaves, s, r) for s, r in zip(model.samples, references, strict=True)]
            errors.append(float(np.mean([float(d) for d in distances])))
        yield errors


def gradient_errors(
    model: Model, tensors: Sequence[Tensor], loss: str, seed: int = 0, num_projections: int = NUM_PROJECTIONS
) -> Iterator[list[float]]:
    """Estimates of `direct_errors` to second order, for the losses "squared" and "kl".

    With v random so that E[v v^T] is the curvature of the loss at the results, E[(v^T J d)^2] is the curvature in the
    direction J d of a rounding d. Projections go round the samples; each one's gradient is kept in memory.
    """
    gradient = jax.jit(lambda ws, sample, key: _projected(model, tensors, loss, ws, sample, key))
    weights = [model.leaves[t.index] for t in tensors]
    keys = jax.random.split(jax.random.key(seed), num_projections)
    gradients = [gradient(weights, model.samples[i % len(model.samples)], key) for i, key in enumerate(keys)]
    dot = jax.jit(lambda g, d: jnp.sum(g * d))
    for i, tensor in enumerate(tensors):
        errors = []
        for form in tensor.formats:
            change = round_argument(weights[i], tensor.sites[0], form) - weights[i]
            errors.append(float(np.mean([float(dot(g[i], change)) ** 2 for g in gradients])))
        yield errors


def _projected(
    model: Model, tensors: Sequence[Tensor], loss: str, weights: list[Any], sample: Any, key: Any
) -> list[Any]:
    def results(ws: list[Any]) -> list[jax.Array]:
        leaves = list(model.leaves)
        for tensor, w in zip(tensors, ws, strict=True):
            leaves[tensor.index] = w
        return _floats(model.results(leaves, sample))

    found, pullback = jax.vjp(results, weights)
    gradient: list[Any]
    (gradient,) = pullback(_directions(loss, found, key))
    return gradient


def _directions(loss: str, results: list[jax.Array], key: Any) -> list[jax.Array]:
    keys = jax.random.split(key, len(results))
    noise = [jax.random.normal(k, y.shape) for k, y in zip(keys, results, strict=True)]
    if loss == "squared":
        sizes = [jnp.maximum(jnp.sum(jnp.square(y)), 1e-30) for y in results]
        return [n * jax.lax.rsqrt(size) for n, size in zip(noise, sizes, strict=True)]
    root = jnp.sqrt(jax.nn.softmax(results[0]))
    rows = results[0].size // results[0].shape[-1]
    first = root * noise[0] - root * root * jnp.sum(root * noise[0], axis=-1, keepdims=True)
    return [first * np.float32((0.5 / rows) ** 0.5), *(jnp.zeros_like(y) for y in results[1:])]
