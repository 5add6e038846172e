"""SmolLM2 under a policy: how far its next-token distributions move."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lpu_jax.models.smollm2 import Smollm2, score
from lpu_jax.models.tokenizer import Tokenizer
from lpu_jax.precision import Policy
from lpu_jax.quality.run import lpu_results, rounded
from lpu_jax.quality.text import passages
from lpu_jax.runtime.execute import EXACT, Mode

LENGTH = 128
"""Tokens of a passage."""
NUM_CALIBRATION = 2
"""Passages for calibration; those for tests come after them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageQuality:
    """Over all positions of the test passages.

    Attributes:
      kl, kl_max: KL(fp32 || policy) in nats, mean and largest.
      top1: share of positions with the same likeliest token.
      perplexity, reference_perplexity: of the text, by the policy and by fp32.
      bits: mean bits of the weights that the policy chose a format for; 0 if that was not asked.
    """

    positions: int
    kl: float
    kl_max: float
    top1: float
    perplexity: float
    reference_perplexity: float
    bits: float = 0.0

    @property
    def perplexity_change(self) -> float:
        """Relative change of the perplexity."""
        return self.perplexity / self.reference_perplexity - 1


class LanguageBench:
    """A decoder, its passages and its reference, computed once."""

    def __init__(self, model: Smollm2, calibration: list[np.ndarray], test: list[np.ndarray]) -> None:
        """calibration, test: tokens int32 [T] each, of one length."""
        self.model = model
        self.calibration, self.test = calibration, [(tokens,) for tokens in test]
        self._score = jax.jit(score)

    @classmethod
    def from_gguf(cls, path: Path, num_passages: int = 8, length: int = LENGTH) -> LanguageBench:
        """The real model in fp32, with passages of the standard library's text."""
        tokenizer = Tokenizer.from_gguf(path)
        tokens = [
            np.asarray(tokenizer.encode(text)[:length], np.int32) for text in passages(NUM_CALIBRATION + num_passages)
        ]
        model = Smollm2.from_gguf(path, weights="fp32", context=length)
        return cls(model, tokens[:NUM_CALIBRATION], tokens[NUM_CALIBRATION:])

    @functools.cached_property
    def reference(self) -> list[np.ndarray]:
        """Logits of the fp32 model for every test passage."""
        return [np.asarray(self._score(self.model, *sample)) for sample in self.test]

    def on_lpu(self, policy: Policy | str, mode: Mode = EXACT) -> LanguageQuality:
        """The whole policy in the LPU's arithmetic."""
        return self.compare(lpu_results(score, self.model, self.test, policy, mode))

    def weights_only(self, policy: Policy | str, optimal: bool = True) -> LanguageQuality:
        """Weights rounded, everything else in fp32; optimal: block exponents of least squared error."""
        params, bits = rounded(score, self.model, self.test[0], policy, optimal)
        return dataclasses.replace(self.compare([self._score(params, *sample) for sample in self.test]), bits=bits)

    def compare(self, found: list[Any]) -> LanguageQuality:
        """The distance of logits from the reference."""
        rows = [
            [np.asarray(x) for x in _distances(expected, jnp.asarray(y), tokens)]
            for expected, y, (tokens,) in zip(self.reference, found, self.test, strict=True)
        ]
        kl, same, loss, reference_loss = (np.concatenate(column) for column in zip(*rows, strict=True))
        return LanguageQuality(
            positions=kl.size,
            kl=float(kl.mean()),
            kl_max=float(kl.max()),
            top1=float(same.mean()),
            perplexity=float(np.exp(loss.mean())),
            reference_perplexity=float(np.exp(reference_loss.mean())),
        )


@jax.jit
def _distances(expected: jax.Array, found: jax.Array, tokens: jax.Array) -> tuple[jax.Array, ...]:
    """(KL, same likeliest token) of every position; (loss, reference loss) of every next token."""
    p, q = jax.nn.log_softmax(expected), jax.nn.log_softmax(found)
    kl = jnp.maximum(jnp.sum(jnp.exp(p) * (p - q), axis=-1), 0.0)
    own = tokens[1:, None]
    losses = [-jnp.take_along_axis(x[:-1], own, axis=-1)[:, 0] for x in (q, p)]
    return kl, jnp.argmax(p, -1) == jnp.argmax(q, -1), *losses
