"""English text at hand: the topics of Python's language reference, `pydoc_data.topics` of the standard library.

Prose with some code. Passages for calibration and for tests come from different topics.
"""

from __future__ import annotations

import importlib
import re

_MIN_PASSAGE_CHARACTERS = 3000
_SKIPPED_CHARACTERS = 400
"""Headings and grammar come first."""
_SENTENCE_WORDS = range(8, 41)


def topics() -> list[str]:
    """All topics, by name."""
    content: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    return [content[name] for name in sorted(content)]


def passages(count: int, first: int = 0) -> list[str]:
    """Passages of at least 2,600 characters, one a topic; `first` of them are left out.

    Raises:
      ValueError: there are not as many.
    """
    long = [text[_SKIPPED_CHARACTERS:] for text in topics() if len(text) >= _MIN_PASSAGE_CHARACTERS]
    if first + count > len(long):
        raise ValueError(f"passages {first} to {first + count} of {len(long)}")
    return long[first : first + count]


def sentences(count: int, first: int = 0) -> list[str]:
    """Different sentences of 8 to 40 words, one line each, evenly spread over all topics.

    Raises:
      ValueError: there are not as many.
    """
    found: dict[str, None] = {}
    for text in topics():
        for block in re.split(r"\n\s*\n", text):
            for sentence in re.split(r"(?<=[.!?])\s+", " ".join(block.split())):
                if len(sentence.split()) in _SENTENCE_WORDS and sentence[0].isupper() and sentence.endswith("."):
                    found[sentence.replace("*", "").replace('"', "")] = None
    step = len(found) // (first + count)
    if step == 0:
        raise ValueError(f"sentences {first} to {first + count} of {len(found)}")
    return list(found)[::step][first : first + count]
