"""Moves of lanes: permuter passes for the pieces of a result, merged on the VXM."""

from __future__ import annotations

import numpy as np

from lpu_jax.lowering.passes.tile_close import Label, chain_op, split_sides
from lpu_jax.lowering.passes.tile_moves import FILL, Pieces
from lpu_jax.lowering.passes.tile_storage import StorageBuilder
from lpu_jax.lowering.tile_ir import (
    InputRef,
    IntArray,
    MemoryInput,
    PermuteOp,
    Step,
    StepRef,
    TileOp,
    View,
)
from lpu_jax.runtime.isa import DataFormat

_MERGED_AT_ONCE = 3
_MANY_MAPS = 256
"""Beyond so many different maps, single lanes are spread over all lanes and masked: one map per source lane."""


def permute_pieces(
    builder: StorageBuilder, pieces: Pieces, targets: tuple[View, ...], data_format: DataFormat, label: Label
) -> list[TileOp]:
    """Tile ops that build every target vector from its pieces (lanes without a piece become 0).

    Result vectors of one piece are written by the permuter itself; others are merged by bitwise or.
    """
    count = len(targets[0].refs)
    lanes_of = None
    single = ((pieces.maps != FILL).sum(axis=1) == 1).all()
    if single and len(np.unique(pieces.maps, axis=0)) > _MANY_MAPS:
        lanes_of = np.argmax(pieces.maps != FILL, axis=1)
        spread = np.broadcast_to(pieces.maps.max(axis=1, keepdims=True), pieces.maps.shape)
        pieces = Pieces(pieces.targets, pieces.sources, spread, pieces.refs)
    order = np.argsort(pieces.targets, kind="stable")
    target_of = pieces.targets[order]
    rank = np.arange(len(order)) - np.searchsorted(target_of, target_of)  # number of the piece within its target
    depth = int(rank.max()) + 1 if len(rank) else 0
    if depth == 1 and len(order) == count and len(targets) == 1:
        return _permute(builder, pieces, order, targets[0].refs[target_of], data_format, label)
    ops: list[TileOp] = []
    merger = _Merger(builder, targets, data_format, label)
    for level in range(max(depth, 1)):
        chosen = order[rank == level]
        layer, mask = _zeros(builder, count, data_format), None
        if len(chosen):
            side = builder.storages[pieces.refs[pieces.sources[chosen[0]], 0]].hemisphere
            storage = builder.new_storage(len(chosen), data_format, side, name="pieces")
            written = builder.whole(storage, len(chosen))
            ops += _permute(builder, pieces, chosen, written, data_format, label)
            layer[pieces.targets[chosen]] = written
        if lanes_of is not None:
            mask = _one_hot(builder, count, pieces.targets[chosen], lanes_of[chosen])
        ops += merger.add(layer, mask, level == max(depth, 1) - 1)
    return ops


def _one_hot(builder: StorageBuilder, count: int, targets: np.ndarray, lanes: np.ndarray) -> IntArray:
    """For every target vector a mask of the one lane that a piece fills."""
    refs = _zeros(builder, count, DataFormat.UINT8)
    numbers = np.arange(builder.chip.num_lanes)
    for lane in np.unique(lanes).tolist():
        mask = builder.constant((numbers == lane).astype(np.int8), False)[0].refs[0]
        refs[targets[lanes == lane]] = mask
    return refs


def _zeros(builder: StorageBuilder, count: int, data_format: DataFormat) -> IntArray:
    dtype = {1: "int8", 2: "int16", 4: "int32"}[data_format.num_bytes]
    zero = builder.constant(np.zeros((1,), dtype), True)[0].refs
    return np.repeat(zero, count, axis=0)


def _permute(
    builder: StorageBuilder,
    pieces: Pieces,
    chosen: np.ndarray,
    written: IntArray,
    data_format: DataFormat,
    label: Label,
) -> list[TileOp]:
    """Permuter passes for some pieces; sources, maps and targets of one pass lie in one hemisphere."""
    sources = pieces.refs[pieces.sources[chosen]]
    sides = np.array([int(storage.hemisphere) for storage in builder.storages])
    ops: list[TileOp] = []
    for side in sorted({int(s) for s in sides[sources[:, 0]]}):
        hemisphere = builder.storages[int(sources[sides[sources[:, 0]] == side][0, 0])].hemisphere
        here = np.nonzero(sides[sources[:, 0]] == side)[0]
        maps = builder.lane_maps(hemisphere, pieces.maps[chosen[here]])
        target = written[here]
        away = np.array([int(builder.storages[s].hemisphere) != side for s in target[:, 0]])
        landing = target.copy()
        if away.any():
            storage = builder.new_storage(int(away.sum()), data_format, hemisphere, name="permuted")
            landing[away] = builder.whole(storage, int(away.sum()))
        ops.append(PermuteOp(sources[here], maps, landing, data_format, hemisphere, *label))
        if away.any():
            raw = _raw(data_format)
            memory = MemoryInput(landing[away], raw)
            step = Step("identity", (InputRef(0),))
            ops += split_sides(builder, chain_op([memory], [step], [(0, target[away], raw)], label))
    return ops


def _raw(data_format: DataFormat) -> DataFormat:
    """Integer format of the same width: merging and copying must not touch the bits."""
    return {1: DataFormat.UINT8, 2: DataFormat.INT16, 4: DataFormat.INT32}[data_format.num_bytes]


class _Merger:
    """target = layer | layer | ... (each under its mask, if it has one), a few per chain.

    A chain is emitted as soon as its layers are there, so that few layers are alive at a time.
    """

    def __init__(
        self, builder: StorageBuilder, targets: tuple[View, ...], data_format: DataFormat, label: Label
    ) -> None:
        self.builder, self.targets, self.label = builder, targets, label
        self.raw, self.data_format = _raw(data_format), data_format
        self.waiting: list[tuple[IntArray, IntArray | None]] = []
        self.merged: IntArray | None = None

    def add(self, layer: IntArray, mask: IntArray | None, is_last: bool) -> list[TileOp]:
        """Takes a layer; returns the chain that merges it with those that wait, if it is due."""
        self.waiting.append((layer, mask))
        if len(self.waiting) < _MERGED_AT_ONCE and not is_last:
            return []
        inputs, steps = self._steps()
        last = len(steps) - 1
        if is_last:
            outputs = [(last, target.refs, self.raw) for target in self.targets]
        else:
            storage = self.builder.new_storage(
                len(layer), self.data_format, self.builder.next_hemisphere(), name="merged"
            )
            self.merged = self.builder.whole(storage, len(layer))
            outputs = [(last, self.merged, self.raw)]
        self.waiting = []
        return list(split_sides(self.builder, chain_op(inputs, steps, outputs, self.label)))

    def _steps(self) -> tuple[list[MemoryInput], list[Step]]:
        """Operands and steps that join the waiting layers and what is merged so far."""
        inputs: list[MemoryInput] = []
        steps: list[Step] = []
        parts: list[StepRef | InputRef] = []
        for layer, mask in self.waiting:
            inputs.append(MemoryInput(layer, self.raw))
            parts.append(InputRef(len(inputs) - 1))
            if mask is not None:
                inputs.append(MemoryInput(mask, DataFormat.UINT8))
                steps.append(Step("mask", (parts[-1], InputRef(len(inputs) - 1))))
                parts[-1] = StepRef(len(steps) - 1)
        if self.merged is not None:
            inputs.append(MemoryInput(self.merged, self.raw))
            parts.append(InputRef(len(inputs) - 1))
        present = parts[0]
        for part in parts[1:]:
            steps.append(Step("or", (present, part)))
            present = StepRef(len(steps) - 1)
        if not steps:
            steps.append(Step("identity", (present,)))
        return inputs, steps
