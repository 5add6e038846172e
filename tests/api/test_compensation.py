"""Rounding errors that make up for each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpu_jax.compensation import compensate
from lpu_jax.models.smollm2 import Smollm2, score
from lpu_jax.models.smollm2_config import Smollm2Config
from lpu_jax.quality.compensated import compensated
from lpu_jax.rounding import round_operand
from lpu_jax.runtime.formats import FP16, parse_format

TINY = Smollm2Config(num_layers=2, d_model=64, num_heads=4, num_kv_heads=2, d_ff=96, vocab_size=330, context=32)
FORM = parse_format("bfp4x32")


def nearest(weights):
    with jax.enable_x64(True):
        return np.asarray(round_operand(jnp.asarray(weights), FORM))


def products(seed=0):
    """Weights and inputs whose elements depend on each other."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((64, 64)).astype(np.float32) * np.exp2(-np.arange(64) / 8).astype(np.float32)[:, None]
    return rng.standard_normal((64, 24)).astype(np.float32), rng.standard_normal((300, 64)).astype(np.float32) @ mixing


def test_products_err_less_than_with_nearest_values():
    weights, x = products()
    error = np.square(x @ weights - x @ compensate(weights, x.T @ x, FORM)).sum()
    assert error < 0.5 * np.square(x @ weights - x @ nearest(weights)).sum()


def test_results_are_values_of_the_format():
    weights, x = products()
    rounded = compensate(weights, x.T @ x, FORM)
    np.testing.assert_array_equal(nearest(rounded), rounded)


def test_independent_inputs_leave_nothing_to_make_up_for():
    weights, _ = products()
    np.testing.assert_array_equal(compensate(weights, np.eye(64), FORM), nearest(weights))


def test_refusals():
    weights, x = products()
    with pytest.raises(ValueError, match="block floating point"):
        compensate(weights, x.T @ x, FP16)
    with pytest.raises(ValueError, match=r"expected \[64, 64\]"):
        compensate(weights, np.eye(3), FORM)


@pytest.mark.parametrize("is_compact", [False, True])
def test_a_compensated_model_is_nearer_to_the_original(is_compact):
    config = Smollm2Config(**{**{f: getattr(TINY, f) for f in TINY.__dataclass_fields__}, "is_compact": is_compact})
    model = Smollm2.random(config, seed=1, weights="fp32")
    texts = [np.random.default_rng(i).integers(0, 330, 32).astype(np.int32) for i in range(12)]
    formats = {"mlp/up": "bfp4x32", "mlp/down": "bfp4x32", "attention/output": "bfp4x32", "head": "bfp8x32"}
    found = compensated(model, texts, formats)
    plain = Smollm2.random(config, seed=1, weights="fp32")
    for part, name in (("mlp", "up"), ("mlp", "down"), ("attention", "output")):
        linear = getattr(getattr(plain.layers, part), name)
        linear.values[...] = jnp.asarray(np.stack([nearest(w) for w in np.asarray(linear.values[...])]))
    reference, near, ours = (np.asarray(score(m, jnp.asarray(texts[0]))) for m in (model, plain, found))
    assert np.square(ours - reference).sum() < np.square(near - reference).sum()
    assert not np.array_equal(np.asarray(found.head.values[...]), np.asarray(model.head.values[...]))
