"""MiniLM under a policy: how far its sentence embeddings move."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lpu_jax.models.minilm import MiniLm, embed, encode_sentences, load_minilm
from lpu_jax.precision import Policy
from lpu_jax.quality.run import lpu_results, rounded
from lpu_jax.quality.text import sentences
from lpu_jax.runtime.execute import EXACT, Mode

LENGTH = 48
"""Tokens of a sentence; longer ones are cut."""
BATCH = 16
NUM_CALIBRATION = 48
"""Sentences for calibration; those for tests come after them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentenceQuality:
    """Over the test sentences, against the fp32 model.

    Attributes:
      sqnr_db: 10 log10(sum |e|^2 / sum |difference|^2) of embeddings e.
      cosine: mean cosine of an embedding with its reference.
      neighbours: share of sentences whose nearest other sentence is the same.
      bits: mean bits of the weights that the policy chose a format for; 0 if that was not asked.
    """

    sentences: int
    sqnr_db: float
    cosine: float
    neighbours: float
    bits: float = 0.0


class SentenceBench:
    """An encoder, its sentences and its reference, computed once."""

    def __init__(self, model: MiniLm, calibration: list[Any], test: list[Any]) -> None:
        """calibration, test: (tokens, mask) of batches of equal shape."""
        self.model, self.calibration, self.test = model, calibration, test
        self._embed = jax.jit(embed)

    @classmethod
    def installed(cls, directory: Path | None = None, num_sentences: int = 192) -> SentenceBench:
        """The real model, with sentences of the standard library's text."""
        text = sentences(NUM_CALIBRATION + num_sentences)
        tokens, mask = encode_sentences(text, LENGTH, directory)
        batches = [(tokens[i : i + BATCH], mask[i : i + BATCH]) for i in range(0, len(text), BATCH)]
        first = NUM_CALIBRATION // BATCH
        return cls(load_minilm(directory), batches[:first], batches[first:])

    @functools.cached_property
    def reference(self) -> np.ndarray:
        """Embeddings of the fp32 model, all test sentences."""
        return self.embeddings(self.model, self.test)

    def embeddings(self, params: Any, batches: list[Any]) -> np.ndarray:
        """Embeddings in plain JAX."""
        return np.concatenate([np.asarray(self._embed(params, *batch)) for batch in batches])

    def on_lpu(self, policy: Policy | str, mode: Mode = EXACT) -> SentenceQuality:
        """The whole policy in the LPU's arithmetic."""
        return compare(self.reference, np.concatenate(lpu_results(embed, self.model, self.test, policy, mode)))

    def weights_only(self, policy: Policy | str, optimal: bool = True) -> SentenceQuality:
        """Weights rounded, everything else in fp32; optimal: block exponents of least squared error."""
        params, bits = rounded(embed, self.model, self.test[0], policy, optimal)
        return dataclasses.replace(compare(self.reference, self.embeddings(params, self.test)), bits=bits)


def sqnr_db(expected: np.ndarray, found: np.ndarray) -> float:
    """Signal to quantisation noise in decibels."""
    noise = float(np.sum(np.square(found.astype(np.float64) - expected)))
    return float("inf") if noise == 0 else 10 * float(np.log10(np.sum(np.square(expected.astype(np.float64))) / noise))


def compare(expected: np.ndarray, found: np.ndarray) -> SentenceQuality:
    """The distance of embeddings [sentences, d] of length 1 from the reference."""
    lengths = np.linalg.norm(expected, axis=1) * np.linalg.norm(found, axis=1)
    return SentenceQuality(
        sentences=len(expected),
        sqnr_db=sqnr_db(expected, found),
        cosine=float(np.mean(np.sum(expected * found, axis=1) / lengths)),
        neighbours=float(np.mean(_nearest(expected) == _nearest(found))),
    )


def _nearest(embeddings: np.ndarray) -> np.ndarray:
    similarity = embeddings @ embeddings.T
    np.fill_diagonal(similarity, -np.inf)
    nearest: np.ndarray = similarity.argmax(axis=1)
    return nearest
