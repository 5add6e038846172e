"""Windows: rows that are neighbouring lanes of one vector each, or of a few, used where they lie.

  row r of head h of [rows, 5 * 64]  =  lanes 64 h .. 64 h + 63 of vector r
  row of concatenate([a, b], axis=1), [rows, 2 * 96]  =  lanes 0 .. 95 of a vector of a, then those of one of b

A matrix product meets such activations with weights that are loaded at the same rows of the MXM; weights that are
windows give sums in the same lanes. Elementwise operations do not mind where a row begins, if it begins at the same
lane in all operands. So heads are taken apart and put together without the SXM. What the other lanes of a vector hold
does not matter.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from lpu_jax.lowering.passes.tile_moves import ANY_LANE, FILL, code_lanes, code_refs, refs_codes
from lpu_jax.lowering.tile_ir import IntArray, num_tiles

if TYPE_CHECKING:
    from lpu_jax.lowering.passes.tile_storage import StorageBuilder


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """The rows of a value, each in segments that begin at the same elements in all rows.

    refs: one array [rows, segments, 2] for every place of the value: the vector that a segment lies in;
    offsets [rows, segments]: lane at which it begins; edges: first element of every segment, and the number of all;
    sizes: elements of every segment, behind which there may be padding up to the next one.
    """

    refs: tuple[IntArray, ...]
    offsets: IntArray
    edges: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def num_segments(self) -> int:
        """Vectors that hold one row."""
        return len(self.sizes)

    def mirrored(self, builder: StorageBuilder) -> Windows:
        """The same rows with their second place if all their vectors have one."""
        (refs,) = self.refs
        other = builder.mirrored(refs.reshape(-1, 2))
        return self if other is None else dataclasses.replace(self, refs=(refs, other.reshape(refs.shape)))

    def codes(self, shape: tuple[int, ...]) -> IntArray:
        """Where every element is in the first place; for rows of one segment."""
        first = refs_codes(self.refs[0][:, 0]) + self.offsets[:, 0]
        return (first[:, None] + np.arange(shape[-1])).reshape(shape)

    def common_offset(self, group: int) -> IntArray | None:
        """The offset of every `group` rows, None if they differ within a group; for rows of one segment."""
        offsets = self.offsets[:, 0].reshape(-1, group)
        return offsets[:, 0] if bool((offsets == offsets[:, :1]).all()) else None


def whole_rows(refs: tuple[IntArray, ...], shape: tuple[int, ...], num_lanes: int) -> Windows:
    """Rows that begin at lane 0 and fill one vector after the other."""
    tiles = num_tiles(shape, num_lanes)
    rows = tuple(place.reshape(-1, tiles, 2) for place in refs)
    edges = (*range(0, tiles * num_lanes, num_lanes), shape[-1])
    return Windows(rows, np.zeros(rows[0].shape[:2], np.int64), edges, tuple(np.diff(edges).tolist()))


def find_windows(
    codes: IntArray, num_lanes: int, zero: IntArray, max_segments: int = 1, skips_padding: bool = False
) -> Windows | None:
    """The rows of a value whose elements lie at `codes` [..., K] as windows, None if one of them is none.

    zero: ref of a vector of zeros, in which segments of nothing but padding lie. skips_padding: what is padding in all
    rows is left out behind segments, where vectors may hold something else.
    """
    size = codes.shape[-1] if codes.ndim else 0
    if not 1 < size <= num_lanes * max_segments:
        return None
    rows = codes.reshape(-1, size)
    is_zero = rows == FILL
    is_next = (rows[:, 1:] == rows[:, :-1] + 1) & ~is_zero[:, :-1]  # the first code of all follows FILL, as a number
    follows = (is_next | is_zero[:, 1:] & is_zero[:, :-1]).all(axis=0)
    starts = [0, *(np.nonzero(~follows)[0] + 1).tolist()]
    sizes = np.diff([*starts, size])
    if skips_padding:
        real = [i for i, start in enumerate(starts) if i == 0 or not is_zero[:, start].all()]
        starts, sizes = [starts[i] for i in real], sizes[real]
    if len(starts) > max_segments:
        return None
    first, blank = rows[:, starts], is_zero[:, starts]
    offsets = np.where(blank, 0, code_lanes(first))
    if not ((first >= 0) | blank).all() or (offsets == ANY_LANE).any():
        return None
    offsets = np.where(blank, offsets.max(axis=0), offsets)  # where the others begin, so that they go together
    if (offsets + sizes > num_lanes).any():
        return None
    refs = code_refs(first.reshape(-1)).reshape(*first.shape, 2)
    return Windows((np.where(blank[..., None], zero, refs),), offsets, (*starts, size), tuple(sizes.tolist()))
