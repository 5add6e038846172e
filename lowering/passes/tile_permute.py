"""Moves of lanes: permuter passes for the pieces of a result, merged on the VXM."""

from __future__ import annotations

import numpy as np

from lpu_jax.lowering.passes.tile_close import Label, chain_op, split_sides
from lpu_jax.lowering.passes.tile_moves import Pieces
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

_MERGED_AT_ONCE = 4


def permute_pieces(
    builder: StorageBuilder, pieces: Pieces, targets: tuple[View, ...], data_format: DataFormat, label: Label
) -> list[TileOp]:
    """Tile ops that build every target vector from its pieces (lanes without a piece become 0).

    Result vectors of one piece are written by the permuter itself; others are merged by bitwise or.
    """
    count = len(targets[0].refs)
    order = np.argsort(pieces.targets, kind="stable")
    target_of = pieces.targets[order]
    rank = np.arange(len(order)) - np.searchsorted(target_of, target_of)  # number of the piece within its target
    depth = int(rank.max()) + 1 if len(rank) else 0
    ops: list[TileOp] = []
    layers: list[IntArray] = []
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
    return ops + _merge(builder, layers, targets, data_format, label)


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
    builder: StorageBuilder, layers: list[IntArray], targets: tuple[View, ...], data_format: DataFormat, label: Label
) -> list[TileOp]:
    """target = layers[0] | layers[1] | ..., a few layers per chain."""
    raw = _raw(data_format)
    ops: list[TileOp] = []
    while True:
        group, layers = layers[:_MERGED_AT_ONCE], layers[_MERGED_AT_ONCE:]
        inputs = [MemoryInput(layer, raw) for layer in group]
        steps = [Step("identity", (InputRef(0),))]
        for index in range(1, len(group)):
            steps.append(Step("or", (StepRef(index - 1), InputRef(index))))
        last = len(steps) - 1
        if not layers:
            outputs = [(last, target.refs, raw) for target in targets]
            return ops + list(split_sides(builder, chain_op(inputs, steps, outputs, label)))
        storage = builder.new_storage(len(group[0]), data_format, builder.next_hemisphere(), name="merged")
        merged = builder.whole(storage, len(group[0]))
        ops += split_sides(builder, chain_op(inputs, steps, [(last, merged, raw)], label))
        layers = [merged, *layers]
