"""Reductions over lanes that are no sums: the SXM brings lanes side by side, the VXM combines them.

max, min, imax, imin, and, or are idempotent, associative and commutative in their bits (runtime/vxm.py), so values may
be combined in any order and more than once.

  [rows, tiles] -> fold tiles -> 16 rows of one tile: transposed by superlane, so that lanes lie in 16 vectors
                -> fold the 16 vectors: lane i of superlane u holds row i of superlane u
                -> rotate by whole superlanes and fold: all superlanes agree
                -> distribute lane i over its superlane: every lane holds row i
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from lpu_jax.lowering.passes.tile_close import Label, chain_op, split_sides
from lpu_jax.lowering.passes.tile_permute import sxm_passes
from lpu_jax.lowering.passes.tile_storage import FORMATS, StorageBuilder
from lpu_jax.lowering.tile_ir import (
    GROUP,
    InputRef,
    IntArray,
    MemoryInput,
    Step,
    StepOperand,
    StepRef,
    TileOp,
    TransposeOp,
    View,
    num_rows,
    num_tiles,
)
from lpu_jax.runtime.chip import Hemisphere
from lpu_jax.runtime.isa import DataFormat
from lpu_jax.runtime.ops import Aval

IDENTITIES: dict[str, int] = {
    "max": int(np.float32(-np.inf).view(np.int32)),
    "min": int(np.float32(np.inf).view(np.int32)),
    "imax": -(2**31),
    "imin": 2**31 - 1,
    "and": -1,
    "or": 0,
}
"""Bits that leave the other operand as it is."""

_ROWS_AT_ONCE = 256
_FAN_IN = 4
"""Operands of a fold: four 4-byte vectors of a skewed storage lie in different slices."""
_FAN_IN_OF_BOTH = 6
"""Three from either hemisphere."""


def tile_lane_reduce(
    builder: StorageBuilder, function: str, view: View, targets: tuple[View, ...], aval: Aval, label: Label
) -> list[TileOp]:
    """All lanes of the result hold function over the last axis."""
    rows, tiles = num_rows(aval.shape), num_tiles(aval.shape, builder.chip.num_lanes)
    refs = view.refs.reshape(rows, tiles, 2)
    ops: list[TileOp] = []
    for start in range(0, rows, _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, rows)
        side = builder.next_hemisphere()
        reduction = _Reduction(builder, function, FORMATS[aval.dtype], side, -(-rows // GROUP), label, ops)
        reduction.run(refs[start:stop], aval.shape[-1], [target.refs[start:stop] for target in targets])
    return ops


@dataclasses.dataclass(slots=True, eq=False)
class _Reduction:
    """One reduction of up to _ROWS_AT_ONCE rows, of num_groups * 16 in all; its ops are appended to `ops`."""

    builder: StorageBuilder
    function: str
    stored: DataFormat
    side: Hemisphere
    num_groups: int
    label: Label
    ops: list[TileOp]

    @property
    def working(self) -> DataFormat:
        """Format of values in between: the VXM's own 32 bits."""
        return DataFormat.FP32 if self.function in ("max", "min") else DataFormat.INT32

    def run(self, refs: IntArray, size: int, targets: list[IntArray]) -> None:
        """Reduces rows [rows, tiles, 2] of `size` lanes into the target refs."""
        groups = -(-len(refs) // GROUP)
        rows = self._fold_tiles(refs, size, groups * GROUP)
        columns = self._skewed(groups * GROUP)
        self.ops.append(TransposeOp(rows, columns, self.working, self.side, *self.label))
        quarters = columns.reshape(-1, _FAN_IN, 2)
        folded = self._fold([quarters[:, i] for i in range(_FAN_IN)]).reshape(groups, _FAN_IN, 2)
        agreed = self._join([folded[:, i] for i in range(_FAN_IN)], self._superlanes(size))
        self._distribute(agreed, len(refs), targets)

    # Storages ---------------------------------------------------------------------------------------------------

    def _skewed(self, count: int, side: Hemisphere | None = None) -> IntArray:
        side = self.side if side is None else side
        storage = self.builder.new_storage(
            count, self.working, side, interleave=GROUP, skewed=True, name=f"{self.function} partial"
        )
        return self.builder.whole(storage, count)

    def _plain(self, count: int, side: Hemisphere, form: DataFormat) -> IntArray:
        storage = self.builder.new_storage(count, form, side, name=f"{self.function} partial")
        return self.builder.whole(storage, count)

    def _emit(self, inputs: list[MemoryInput], steps: list[Step], outputs: list[tuple[IntArray, DataFormat]]) -> None:
        last = len(steps) - 1
        results = [(last, refs, form) for refs, form in outputs]
        self.ops.extend(split_sides(self.builder, chain_op(inputs, steps, results, self.label)))

    def _tree(self, count: int, steps: Sequence[Step] = ()) -> list[Step]:
        """Steps that combine `count` inputs pairwise, and with them the last of the steps given."""
        made = list(steps)
        operands: list[StepOperand] = [InputRef(i) for i in range(count)]
        operands += [StepRef(len(made) - 1)] if made else []
        while len(operands) > 1:
            pairs = [operands[i : i + 2] for i in range(0, len(operands), 2)]
            operands = []
            for pair in pairs:
                if len(pair) == 2:
                    made.append(Step(self.function, (pair[0], pair[1])))
                operands.append(StepRef(len(made) - 1) if len(pair) == 2 else pair[0])
        return made or [Step("identity", (operands[0],))]

    # Stages -----------------------------------------------------------------------------------------------------

    def _fold_tiles(self, refs: IntArray, size: int, count: int) -> IntArray:
        """One vector per row, in a skewed storage; the rows are repeated to fill its groups of 16."""
        rows, tiles = refs.shape[:2]
        padded = size % self.builder.chip.num_lanes != 0 and self._superlanes(size) == self.builder.chip.num_superlanes
        forms = [self.stored] * tiles
        while tiles > (2 if padded else _FAN_IN):
            whole = tiles - 1 if padded else tiles  # the last tile keeps its padding until the end
            fan_in = min(_FAN_IN, whole)
            parts = -(-whole // fan_in)
            picked = np.minimum(np.arange(parts)[:, None] + np.arange(fan_in) * parts, whole - 1)
            folded = self._plain(rows * parts, self.side, self.working)
            inputs = [MemoryInput(refs[:, picked[:, i]].reshape(-1, 2), forms[0]) for i in range(fan_in)]
            self._emit(inputs, self._tree(fan_in), [(folded, self.working)])
            refs = np.concatenate([folded.reshape(rows, parts, 2), refs[:, whole:]], axis=1)
            forms = [self.working] * parts + forms[whole:]
            tiles = len(forms)
        order = np.arange(count) % rows
        inputs = [MemoryInput(refs[order, tile], forms[tile]) for tile in range(tiles)]
        steps: list[Step] = []
        if padded:
            inputs += self._padding(size, count)
            steps.append(Step("mask", (InputRef(tiles - 1), InputRef(tiles))))
            steps.append(Step("or", (StepRef(0), InputRef(tiles + 1))))
        result = self._skewed(count)
        self._emit(inputs, self._tree(tiles - padded, steps), [(result, self.working)])
        return result

    def _superlanes(self, size: int) -> int:
        """Superlanes that hold lanes in use only; all of them, if others are padded."""
        width = self.builder.chip.num_lanes_per_superlane
        return size // width if size < self.builder.chip.num_lanes and size % width == 0 else self._all_superlanes()

    def _all_superlanes(self) -> int:
        return self.builder.chip.num_superlanes

    def _padding(self, size: int, count: int) -> list[MemoryInput]:
        """Mask of the lanes in use, and the identity in the others."""
        valid = np.arange(self.builder.chip.num_lanes) < size % self.builder.chip.num_lanes
        fill = np.where(valid, 0, np.int64(IDENTITIES[self.function])).astype(np.int32)
        found = []
        for array, form in ((valid.astype(np.int8), DataFormat.INT8), (fill, DataFormat.INT32)):
            refs = self.builder.constant(array, False)[0].refs
            found.append(MemoryInput(np.repeat(refs, count, axis=0), form))
        return found

    def _fold_into(self, operands: list[IntArray], outputs: list[tuple[IntArray, DataFormat]]) -> None:
        self._emit([MemoryInput(refs, self.working) for refs in operands], self._tree(len(operands)), outputs)

    def _fold(self, operands: list[IntArray]) -> IntArray:
        """Combines operands vector by vector into a skewed storage."""
        result = self._skewed(len(operands[0]))
        self._fold_into(operands, [(result, self.working)])
        return result

    def _join(self, operands: list[IntArray], superlanes: int) -> dict[Hemisphere, IntArray]:
        """Combines operands [groups, 2], then the first superlanes of the result; both hemispheres get it.

        A rotation by n brings superlane (u + n) % superlanes to superlane u, so all of the chip's are filled.
        """
        groups, step = len(operands[0]), 1
        for radix in self._rounds(superlanes):
            shifts = [step * i for i in range(radix) if step * i < superlanes]
            operands = self._rotated(operands, shifts, superlanes, step == 1)
            step *= radix
        results = {side: self._plain(groups, side, self.stored) for side in Hemisphere}
        self._fold_into(operands, [(results[side], self.stored) for side in Hemisphere])
        return results

    def _rounds(self, superlanes: int) -> list[int]:
        """Radix of every round of rotations: many rounds cost latency, a large radix costs passes."""
        chip = self.builder.chip
        fold = chip.vxm_entry_cycles + 3 * chip.vxm_op_cycles + chip.vxm_operand_cycles
        trip = chip.sxm_permute_map_cycles + chip.sxm_permute_cycles + chip.sxm_permute_exit_cycles
        latency = trip + fold + 4 * chip.num_mem_columns
        found: list[tuple[int, list[int]]] = []
        for radix in range(2, min(superlanes, _FAN_IN * _FAN_IN_OF_BOTH) + 1):
            rounds, reach = [], 1
            while reach < superlanes:
                rounds.append(min(radix, -(-superlanes // reach)))
                reach *= radix
            passes = sum(r - 1 for r in rounds) * self.working.num_bytes * self.num_groups
            found.append((len(rounds) * latency + passes // 2, rounds))
        if superlanes == 1:
            return [1] if self._all_superlanes() > 1 else []
        return min(found)[1]

    def _rotated(self, operands: list[IntArray], shifts: list[int], superlanes: int, is_first: bool) -> list[IntArray]:
        """Combines operands and rotates the result by some numbers of superlanes; returns what is left to combine.

        The rotations are done half in one hemisphere, half in the other; each fold reads three from either.
        """
        groups, sets = len(operands[0]), -(-len(shifts) // _FAN_IN_OF_BOTH)
        half = _FAN_IN_OF_BOTH // 2
        places = {
            side: self._skewed(groups * sets * _FAN_IN, side).reshape(groups, sets, _FAN_IN, 2) for side in Hemisphere
        }
        other = Hemisphere(1 - self.side)
        is_spread = superlanes == self._all_superlanes() or not is_first  # all superlanes hold something
        first = {side: self._plain(groups, side, self.working) for side in Hemisphere}
        if is_spread:
            first[self.side] = places[self.side][:, 0, 0]
        self._fold_into(operands, [(first[side], self.working) for side in (self.side, other)])
        for parity, side in enumerate((self.side, other)):
            own = shifts[parity::2]
            for number, shift in enumerate(own):
                if shift or not is_spread:
                    self._rotate(first[side], places[side][:, number // half, number % half], shift, superlanes)
            for number in range(len(own), half * sets if sets > 1 else 0):  # an earlier one again
                places[side][:, number // half, number % half] = places[side][:, number // half - 1, number % half]
        if sets == 1:
            used = {side: len(shifts[parity::2]) for parity, side in enumerate((self.side, other))}
            return [places[side][:, 0, i] for side in (self.side, other) for i in range(used[side])]
        columns = [places[side][:, :, i].reshape(-1, 2) for side in (self.side, other) for i in range(half)]
        padded = self._skewed(groups * _FAN_IN).reshape(groups, _FAN_IN, 2)
        self._fold_into(columns, [(padded[:, :sets].reshape(-1, 2), self.working)])
        return [padded[:, i] for i in range(sets)]

    def _rotate(self, sources: IntArray, targets: IntArray, shift: int, superlanes: int) -> None:
        width, lanes = self.builder.chip.num_lanes_per_superlane, np.arange(self.builder.chip.num_lanes)
        lane_map = (lanes // width + shift) % superlanes * width + lanes % width
        maps = np.repeat(lane_map[None], len(sources), axis=0)
        self.ops += sxm_passes(self.builder, sources, maps, targets, self.working, self.label)

    def _distribute(self, agreed: dict[Hemisphere, IntArray], rows: int, targets: list[IntArray]) -> None:
        """Row r is lane r % 16 of every superlane of vector r // 16."""
        width, row = self.builder.chip.num_lanes_per_superlane, np.arange(rows)
        lanes = np.arange(self.builder.chip.num_lanes)
        maps = lanes // width * width + (row % GROUP)[:, None]
        for target in targets:
            for side in Hemisphere:
                here = np.nonzero(self.builder.sides(target) == side)[0]
                if len(here):
                    sources = agreed[side][row[here] // GROUP]
                    self.ops += sxm_passes(self.builder, sources, maps[here], target[here], self.stored, self.label)
