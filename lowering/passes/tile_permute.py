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
    ops: list[TileOp] = []
    layers: list[IntArray] = []
    masks: list[IntArray] = []
    for level in range(max(depth, 1)):
        chosen = order[rank == level]
        if depth == 1 and len(chosen) == count and len(targets) == 1:
            inverse = pieces.targets[chosen]
            ops += _permute(builder, pieces, chosen, targets[0].refs[inverse], data_format, label)
            return ops
        layer = _zeros(builder, count, data_format)
        if len(chosen):
            side = builder.storages[pieces.refs[pieces.sources[chosen[0]], 0]].hemisphere
            storage = builder.new_storage(len(chosen), data_format, side, name="pieces")
            written = builder.whole(storage, len(chosen))
            ops += _permute(builder, pieces, chosen, written, data_format, label)
            layer[pieces.targets[chosen]] = written
        layers.append(layer)
        if lanes_of is not None:
            masks.append(_one_hot(builder, count, pieces.targets[chosen], lanes_of[chosen]))
    return ops + _merge(builder, layers, masks, targets, data_format, label)


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


def _merge(
    builder: StorageBuilder,
    layers: list[IntArray],
    masks: list[IntArray],
    targets: tuple[View, ...],
    data_format: DataFormat,
    label: Label,
) -> list[TileOp]:
    """target = layers[0] | layers[1] | ... (each layer under its mask, if there are masks), a few per chain."""
    raw = _raw(data_format)
    ops: list[TileOp] = []
    merged: IntArray | None = None
    while True:
        group, layers = layers[:_MERGED_AT_ONCE], layers[_MERGED_AT_ONCE:]
        hiding, masks = masks[:_MERGED_AT_ONCE], masks[_MERGED_AT_ONCE:]
        inputs = [MemoryInput(layer, raw) for layer in group]
        steps = [Step("identity", (InputRef(index),)) for index in range(len(group))]
        if hiding:
            inputs += [MemoryInput(mask, DataFormat.UINT8) for mask in hiding]
            steps = [Step("mask", (InputRef(i), InputRef(len(group) + i))) for i in range(len(group))]
        last = 0
        for index in range(1, len(group)):
            steps.append(Step("or", (StepRef(last), StepRef(index))))
            last = len(steps) - 1
        if merged is not None:
            inputs.append(MemoryInput(merged, raw))
            steps.append(Step("or", (StepRef(last), InputRef(len(inputs) - 1))))
            last = len(steps) - 1
        if not layers:
            outputs = [(last, target.refs, raw) for target in targets]
            return ops + list(split_sides(builder, chain_op(inputs, steps, outputs, label)))
        storage = builder.new_storage(len(group[0]), data_format, builder.next_hemisphere(), name="merged")
        target = builder.whole(storage, len(group[0]))
        ops += split_sides(builder, chain_op(inputs, steps, [(last, target, raw)], label))
        merged = target
