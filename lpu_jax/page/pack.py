"""Integer columns and a JSON head as one deflated block, in text that HTML can hold.

Layout before compression, all little endian: length of the head (uint32), the head (JSON), then the bytes of every
column without gaps. head["columns"] lists [name, type, length, is_delta] in order; a delta column holds the differences
of neighbours, the first one counted from 0.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

_TYPES = ("int8", "uint8", "int16", "uint16", "int32")


def pack(head: Mapping[str, Any], columns: Mapping[str, npt.ArrayLike]) -> str:
    """Base64 of the zlib stream.

    Args:
      head: anything that JSON can hold; the key "columns" is added.
      columns: integer arrays of any shape, values within int32; stored flat in the smallest type that holds them.

    Raises:
      OverflowError: a value outside int32.
    """
    listed, parts = [], []
    for name, values in columns.items():
        flat = np.asarray(values).astype(np.int64).ravel()
        steps = np.diff(flat, prepend=0)
        plain, delta = _smallest_type(flat, name), _smallest_type(steps, name, default="int32")
        is_delta = np.dtype(delta).itemsize < np.dtype(plain).itemsize
        kind = delta if is_delta else plain
        listed.append([name, kind, len(flat), is_delta])
        parts.append((steps if is_delta else flat).astype(np.dtype(kind).newbyteorder("<")).tobytes())
    text = json.dumps({**head, "columns": listed}, separators=(",", ":")).encode()
    raw = len(text).to_bytes(4, "little") + text + b"".join(parts)
    return base64.b64encode(zlib.compress(raw, 9)).decode()


def _smallest_type(values: npt.NDArray[np.int64], name: str, default: str | None = None) -> str:
    low, high = (int(values.min()), int(values.max())) if len(values) else (0, 0)
    for kind in _TYPES:
        limits = np.iinfo(kind)
        if limits.min <= low and high <= limits.max:
            return kind
    if default is not None:
        return default
    raise OverflowError(f"column {name!r} holds {low} .. {high}, more than int32 can")
