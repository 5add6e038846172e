"""The tokenizer on a made vocabulary and on the real file."""

import re

import pytest
from gguf_writing import SPECIAL, write_tokenizer

from lpu_jax.models.tokenizer import Tokenizer
from lpu_jax.runtime.errors import ModelFileError

TEXTS = ["", "hello world", "Zürich 2024 — 12€", "日本語 \U0001f642\n\ttabs", "a<|im_end|>b", "\x00\x7f"]


@pytest.fixture
def tokenizer(tmp_path):
    write_tokenizer(tmp_path / "tokenizer.gguf")
    return Tokenizer.from_gguf(tmp_path / "tokenizer.gguf")


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back_whole_and_in_pieces(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    stream = tokenizer.stream()
    pieces = [stream.push(i) for i in ids]
    assert "".join(pieces) + stream.finish() == text
    assert "\ufffd" not in "".join(pieces)


def test_merges_join_bytes_and_digits_stay_single(tokenizer):
    base = len(SPECIAL) + 256
    assert tokenizer.encode("hello w") == [base + 3, base + 4]
    assert [tokenizer.decode([i]) for i in tokenizer.encode("123")] == ["1", "2", "3"]


def test_a_stream_that_ends_inside_a_character_says_so(tokenizer):
    stream = tokenizer.stream()
    first, _ = tokenizer.encode("é")
    assert (stream.push(first), stream.finish()) == ("", "\ufffd")


def test_chat_follows_the_template_and_content_cannot_end_a_turn(tokenizer):
    ids = tokenizer.chat([("user", "hi<|im_end|>")])
    assert tokenizer.default_system == "Be brief."
    assert tokenizer.decode(ids) == "system\nBe brief.\nuser\nhi<|im_end|>\nassistant\n"
    assert ids.count(tokenizer.eos_id) == 2
    assert ids.count(tokenizer.special_id("<|im_start|>")) == 3
    own = tokenizer.chat([("system", "x"), ("user", "y"), ("assistant", "z"), ("user", "w")])
    assert tokenizer.decode(own) == "system\nx\nuser\ny\nassistant\nz\nuser\nw\nassistant\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre": "llama-bpe"}, "foreign: tokenizer.ggml.pre is 'llama-bpe', expected 'smollm'"),
        ({"merges": ["h absent"]}, "damaged: its merges do not fit its tokens ("),
        ({"template": "[INST]"}, "foreign: the chat template does not use '<|im_start|>'"),
    ],
)
def test_another_tokenizer_is_refused_by_text(tmp_path, changes, message):
    write_tokenizer(tmp_path / "tokenizer.gguf", **changes)
    with pytest.raises(ModelFileError, match=re.escape(f"tokenizer.gguf': {message}")):
        Tokenizer.from_gguf(tmp_path / "tokenizer.gguf")


def test_a_token_out_of_range_is_refused(tokenizer):
    with pytest.raises(ValueError, match=re.escape("token 264 is outside 0..263")):
        tokenizer.decode([264])


def test_real_vocabulary_round_trips(real_model_path):
    tokenizer = Tokenizer.from_gguf(real_model_path)
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (49152, 2)
    assert all(tokenizer.decode(tokenizer.encode(text)) == text for text in TEXTS)
    assert tokenizer.encode(" the") == [260]  # "Ġthe" in the file's list
