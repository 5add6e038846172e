"""Quality of policies on small random models: zero distance for fp32, order by bits, and the same numbers both ways."""

import jax
import numpy as np
import pytest

from lpu_jax.models.bert import BertConfig
from lpu_jax.models.minilm import MiniLm, MiniLmConfig
from lpu_jax.models.smollm2 import Smollm2, prefill, score
from lpu_jax.models.smollm2_config import Smollm2Config
from lpu_jax.precision import Policy, Rule
from lpu_jax.quality.language import LanguageBench
from lpu_jax.quality.run import lpu_results
from lpu_jax.quality.sentences import SentenceBench, compare, sqnr_db
from lpu_jax.quality.text import passages, sentences
from lpu_jax.transform import lpu

RNG = np.random.default_rng(0)
CONFIG = Smollm2Config(num_layers=2, d_model=32, num_heads=4, num_kv_heads=2, d_ff=48, vocab_size=64, context=12)


@pytest.fixture(scope="module")
def language():
    tokens = [RNG.integers(0, 64, 12).astype(np.int32) for _ in range(3)]
    return LanguageBench(Smollm2.random(CONFIG, weights="fp32"), tokens[:1], tokens[1:])


def weights(form):
    return Policy(form, (Rule("*dot_general@*", rhs=form),))


def test_score_gives_the_logits_of_every_position(language):
    (tokens,) = language.test[0]
    logits = jax.jit(score)(language.model, tokens)
    assert logits.shape == (12, 64)
    for length in (1, 7, 12):
        wanted = jax.jit(prefill)(language.model, tokens, np.int32(length))[0]
        np.testing.assert_allclose(logits[length - 1], wanted, atol=1e-5)


def test_more_bits_are_closer(language):
    found = [language.weights_only(weights(form)) for form in ("e4m3", "fp16", "fp32")]
    assert [q.bits for q in found] == [8, 16, 32]
    assert found[0].kl > found[1].kl > found[2].kl == 0
    assert found[2].top1 == 1
    assert found[2].perplexity_change == 0
    assert found[0].positions == 24


def test_results_of_the_lpu_are_those_of_a_call():
    w, samples = (
        RNG.standard_normal((24, 8)).astype(np.float32),
        [(RNG.standard_normal((2, 24), np.float32),) for _ in "ab"],
    )

    def product(w, x):
        return x @ w

    step = lpu(product, precision=weights("bfp4"), resident_argnums=0).lower(w, *samples[0]).load(w)
    for found, (x,) in zip(lpu_results(product, w, samples, weights("bfp4")), samples, strict=True):
        assert found.tobytes() == np.asarray(step(x)).tobytes()


def test_sentences_more_bits_are_closer():
    config = MiniLmConfig(
        layer=BertConfig(d_model=32, num_heads=2, d_ff=48), num_layers=1, vocab_size=40, num_positions=8
    )
    batches = [(RNG.integers(0, 40, (4, 8)).astype(np.int32), np.ones((4, 8), bool)) for _ in range(2)]
    bench = SentenceBench(MiniLm(config), batches[:1], batches)
    narrow, wide, same = (bench.weights_only(weights(form)) for form in ("e4m3", "fp16", "fp32"))
    assert narrow.sqnr_db + 15 < wide.sqnr_db
    assert (same.sqnr_db, same.cosine, same.neighbours) == (float("inf"), pytest.approx(1), 1)


def test_the_measures_are_those_of_their_definition():
    expected = np.eye(4, dtype=np.float32)
    found = expected + np.float32([[0.1, 0, 0, 0]] * 4)
    assert sqnr_db(expected, found) == pytest.approx(20)
    before = np.float32([[1, 0, 0], [0.8, 0.6, 0], [0, 1, 0]])  # nearest: 1, 0, 1
    after = np.float32([[1, 0, 0], [0.6, 0.8, 0], [0, 1, 0]])  # nearest: 1, 2, 1
    quality = compare(before, after)
    assert quality.neighbours == pytest.approx(2 / 3)
    assert quality.cosine == pytest.approx((1 + 0.96 + 1) / 3)


def test_text_is_english_and_the_parts_are_apart():
    first, second = passages(2), passages(2, first=2)
    assert len({*first, *second}) == 4
    assert min(map(len, (*first, *second))) >= 2600
    assert len(set(sentences(60))) == 60
    assert all(s.endswith(".") for s in sentences(60))
    with pytest.raises(ValueError, match=r"passages 0 to 999 of \d+"):
        passages(999)
    with pytest.raises(ValueError, match="sentences 0 to 999999"):
        sentences(999_999)
