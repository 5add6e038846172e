"""`View` and `Binding`: where the vectors of a value are, and how it meets the host; refs [n, 2] of vectors."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]

_FEW = 128
"""Up to so many refs a Python set is faster than NumPy."""


def storages_of(refs: IntArray) -> list[int]:
    """The storages that refs [n, 2] name, sorted; neighbours mostly lie in one storage."""
    ids = refs[:, 0]
    if len(ids) > _FEW:
        ids = ids[np.append(True, ids[1:] != ids[:-1])]
    return sorted(set(ids.tolist()))


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class View:
    """Where the vectors of a logical value are.

    lanes layout: the last axis lies on lanes in tiles; vectors are row-major over (leading axes, tiles).
    splat layout: every element has a vector of its own that holds it in all lanes; row-major over all axes.
    refs: int64 [num_vectors, 2], columns storage id and vector.
    """

    shape: tuple[int, ...]
    splat: bool
    refs: IntArray

    def with_shape(self, shape: tuple[int, ...]) -> View:
        """The same vectors under another shape."""
        return View(shape, self.splat, self.refs)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Binding:
    """How a graph value meets the host: per-iteration view, and the number of iterations stacked behind it."""

    value: int
    view: View
    num_iterations: int
    dtype: str
