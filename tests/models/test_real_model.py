"""The real weights, if they are in the cache."""

import pytest

from lpu_jax.models.chat import generate
from lpu_jax.models.smollm2 import Smollm2
from lpu_jax.models.tokenizer import Tokenizer


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["fp32", "int8"])
def test_the_capital_of_france_is_paris(real_model_path, weights):
    tokenizer = Tokenizer.from_gguf(real_model_path)
    model = Smollm2.from_gguf(real_model_path, weights=weights, context=128)
    prompt = tokenizer.chat([("user", "What is the capital of France?")])
    answer = tokenizer.decode(generate(model, prompt, stop_id=tokenizer.eos_id, max_tokens=20))
    assert answer == "The capital of France is Paris."
