"""Windows: rows that are neighbouring lanes of one vector each, used where they lie.

  row r of head h of [rows, 5 * 64]  =  lanes 64 h .. 64 h + 63 of vector r

A matrix product meets such activations with weights that are loaded at the same rows of the MXM; weights that are
windows give sums in the same lanes. Elementwise operations do not mind where a row begins, if it begins at the same
lane in all operands. So heads are taken apart and put together without the SXM. What the other lanes of a vector hold
does not matter.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from lpu_jax.lowering.passes.tile_moves import ANY_LANE, code_lanes, code_refs, refs_codes
from lpu_jax.lowering.tile_ir import IntArray


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """The rows of a value.

    refs: one array [rows, 2] for every place of the value: the vector that a row lies in;
    offsets [rows]: lane at which it begins.
    """

    refs: tuple[IntArray, ...]
    offsets: IntArray

    def codes(self, shape: tuple[int, ...]) -> IntArray:
        """Where every element is in the first place."""
        first = refs_codes(self.refs[0]) + self.offsets
        return (first[:, None] + np.arange(shape[-1])).reshape(shape)

    def common_offset(self, group: int) -> IntArray | None:
        """The offset of every `group` rows, None if they differ within a group."""
        offsets = self.offsets.reshape(-1, group)
        return offsets[:, 0] if bool((offsets == offsets[:, :1]).all()) else None


def find_windows(codes: IntArray, num_lanes: int) -> Windows | None:
    """The rows of a value whose elements lie at `codes` [..., K] as windows, None if one of them is none."""
    size = codes.shape[-1] if codes.ndim else 0
    if not 1 < size <= num_lanes:
        return None
    rows = codes.reshape(-1, size)
    offsets = code_lanes(rows[:, 0])
    fits = (rows[:, 0] >= 0) & (offsets != ANY_LANE) & (offsets + size <= num_lanes)
    if not (fits.all() and np.array_equal(rows, rows[:, :1] + np.arange(size))):
        return None
    return Windows((code_refs(rows[:, 0]),), offsets)
