"""The tokenizer of a SmolLM2 GGUF file: byte-level BPE, the ChatML template, and a decoder for streams of tokens."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits
from tokenizers.pre_tokenizers import Sequence as PreTokenizers

from lpu_jax.models.gguf_file import GgufFile, model_file_error, read_gguf

_SPECIAL_TOKEN_TYPES = (3, 4)  # control and user-defined tokens in GGUF
_TURN_START, _TURN_END = "<|im_start|>", "<|im_end|>"
_DEFAULT_SYSTEM = re.compile(r"<\|im_start\|>system\n(.*?)<\|im_end\|>", re.DOTALL)


class Tokenizer:
    """Text to token ids and back.

    Attributes:
      eos_id: the token that ends a turn (<|im_end|>).
      vocab_size: number of tokens.
      default_system: the system prompt that the file's chat template adds when a chat has none; "" if it adds none.
    """

    def __init__(self, file: GgufFile) -> None:
        """Builds the tokenizer from GGUF metadata.

        Raises:
          ModelFileError: another kind of tokenizer, or damaged tables.
        """
        for key, expected in (("model", "gpt2"), ("pre", "smollm")):
            found = file.value(f"tokenizer.ggml.{key}", str)
            if found != expected:
                raise model_file_error(file.path, f"foreign: tokenizer.ggml.{key} is '{found}', expected '{expected}'")
        tokens: list[str] = file.value("tokenizer.ggml.tokens", list)
        merges: list[str] = file.value("tokenizer.ggml.merges", list)
        types: list[int] = file.value("tokenizer.ggml.token_type", list)
        self.vocab_size = len(tokens)
        self.eos_id: int = file.value("tokenizer.ggml.eos_token_id", int)
        self.default_system = _default_system(file)
        self._special = {
            token: i for i, (token, kind) in enumerate(zip(tokens, types, strict=False)) if _is_special(kind)
        }
        if self._special.get(_TURN_END) != self.eos_id or _TURN_START not in self._special:
            raise model_file_error(
                file.path, f"foreign: end of turn is token {self.eos_id}, expected '{_TURN_END}' beside '{_TURN_START}'"
            )
        self._bytes = _token_bytes(tokens, set(self._special.values()))
        self._bpe = _byte_level_bpe(file, tokens, merges)

    @classmethod
    def from_gguf(cls, path: Path | str) -> Tokenizer:
        """Reads the tokenizer of a GGUF file."""
        return cls(read_gguf(path))

    def encode(self, text: str) -> list[int]:
        """Returns the tokens of plain text; the text of a special token has no special meaning."""
        ids: list[int] = self._bpe.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of tokens; special tokens are left out, bytes that are not UTF-8 become U+FFFD."""
        return b"".join(self.token_bytes(i) for i in ids).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Returns the bytes of one token, b"" for a special token."""
        if not 0 <= token_id < self.vocab_size:
            raise ValueError(f"token {token_id} is outside 0..{self.vocab_size - 1}")
        return self._bytes[token_id]

    def special_id(self, token: str) -> int:
        """Returns the id of a special token such as "<|im_start|>"."""
        return self._special[token]

    def chat(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """Returns the prompt tokens of a chat, up to where the assistant's answer starts.

        Args:
          messages: (role, content), role "system", "user" or "assistant". Without a leading "system" message the
            template's own is added. Special tokens within a content are plain text.
        """
        if self.default_system and messages and messages[0][0] != "system":
            messages = [("system", self.default_system), *messages]
        start, end, newline = self.special_id(_TURN_START), self.eos_id, self.encode("\n")
        ids: list[int] = []
        for role, content in messages:
            ids += [start, *self.encode(f"{role}\n{content}"), end, *newline]
        return [*ids, start, *self.encode("assistant\n")]

    def stream(self) -> StreamDecoder:
        """Returns a decoder for one answer."""
        return StreamDecoder(self)


class StreamDecoder:
    """Turns tokens into text one by one; holds back the bytes of a character that is not complete."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Starts an empty stream."""
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """Takes a token and returns the text that is complete now; may be ""."""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def finish(self) -> str:
        """Ends the stream; returns U+FFFD if it ended inside a character, else ""."""
        return self._decoder.decode(b"", final=True)


def byte_characters() -> list[str]:
    """Returns the character that stands for each byte 0..255 in a byte-level vocabulary.

    Printable bytes stand for themselves; the others take U+0100, U+0101, ... in order.
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _is_special(kind: int) -> bool:
    return kind in _SPECIAL_TOKEN_TYPES


def _default_system(file: GgufFile) -> str:
    template = file.value("tokenizer.chat_template", str)
    if _TURN_START not in template or _TURN_END not in template:
        raise model_file_error(file.path, f"foreign: the chat template does not use '{_TURN_START}'")
    found = _DEFAULT_SYSTEM.search(template)
    return found.group(1) if found else ""


def _token_bytes(tokens: Sequence[str], special: set[int]) -> list[bytes]:
    byte_of = {character: byte for byte, character in enumerate(byte_characters())}
    return [b"" if i in special else bytes(byte_of[c] for c in token if c in byte_of) for i, token in enumerate(tokens)]


def _byte_level_bpe(file: GgufFile, tokens: Sequence[str], merges: Sequence[str]) -> Any:
    vocab = {token: i for i, token in enumerate(tokens)}
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    try:
        bpe = tokenizers.Tokenizer(BPE(vocab=vocab, merges=pairs))
    except Exception as error:  # the library raises plain Exception
        raise model_file_error(file.path, f"damaged: its merges do not fit its tokens ({error})") from error
    bpe.pre_tokenizer = PreTokenizers(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    return bpe
