"""Reads a GGUF file: path in, metadata and dequantised fp32 tensors out; anything wrong is a `ModelFileError`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from lpu_jax.runtime.errors import ModelFileError

_MAGIC = b"GGUF"
_WAY_OUT = "Pass the path of a SmolLM2 GGUF file, or delete the file and let it be fetched again."


def model_file_error(path: Path | str, problem: str) -> ModelFileError:
    """Returns the error for a model file: path, what is wrong, what to do."""
    return ModelFileError(f"model file '{path}': {problem}. {_WAY_OUT}")


@dataclasses.dataclass(frozen=True)
class GgufFile:
    """An open GGUF file.

    Attributes:
      path: where it was read from.
      metadata: key -> str, int, float, bool or a list of these.
      tensors: name -> gguf.ReaderTensor, a view of the mapped file.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, Any]

    def value(self, key: str, kind: type) -> Any:
        """Returns metadata[key]; an absent key or another type than `kind` is a `ModelFileError`."""
        if key not in self.metadata:
            raise model_file_error(self.path, f"foreign: metadata has no '{key}'")
        value = self.metadata[key]
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise model_file_error(
                self.path, f"foreign: metadata '{key}' is a {type(value).__name__}, expected {kind.__name__}"
            )
        return value

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a tensor in row-major order (a weight is [outputs, inputs])."""
        return tuple(int(size) for size in reversed(self.tensors[name].shape))

    def tensor(self, name: str) -> np.ndarray:
        """Returns a tensor dequantised to fp32, in the shape of `shape(name)`."""
        entry = self.tensors[name]
        try:
            values = gguf.quants.dequantize(entry.data, entry.tensor_type)
        except NotImplementedError as error:
            raise model_file_error(
                self.path, f"tensor '{name}' has the storage type {entry.tensor_type.name}, which cannot be read"
            ) from error
        return np.asarray(values, np.float32).reshape(self.shape(name))


def read_gguf(path: Path | str) -> GgufFile:
    """Opens a GGUF file and reads its metadata; tensors stay on disk until they are asked for.

    Raises:
      ModelFileError: no such file, not GGUF, truncated or damaged.
    """
    path = Path(path)
    try:
        size_bytes = path.stat().st_size
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
    except OSError as error:
        raise model_file_error(path, f"cannot be opened ({error.strerror or error})") from error
    if magic != _MAGIC:
        raise model_file_error(path, f"not a GGUF file (starts with {magic!r}, expected {_MAGIC!r})")
    try:
        reader = gguf.GGUFReader(path)
        metadata = {key: field.contents() for key, field in reader.fields.items()}
        tensors = {tensor.name: tensor for tensor in reader.tensors}
    except Exception as error:  # the reader has no error type of its own: damage surfaces wherever it is met
        raise model_file_error(
            path, f"truncated or damaged ({size_bytes:_} bytes; reading stopped with {type(error).__name__}: {error})"
        ) from error
    return GgufFile(path=path, metadata=metadata, tensors=tensors)
