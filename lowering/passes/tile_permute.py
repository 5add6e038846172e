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
    SxmUnit,
    TileOp,
)
from lpu_jax.runtime.chip import Hemisphere
from lpu_jax.runtime.isa import DataFormat

_MERGED_AT_ONCE = 3
_MANY_MAPS = 256
"""Beyond so many different maps of one lane each, one map per source lane is used."""


def direct(
    builder: StorageBuilder, pieces: Pieces, targets: list[IntArray], data_format: DataFormat, label: Label
) -> tuple[list[TileOp], IntArray]:
    """Result vectors of one piece, which the permuter writes where they are wanted; each target in its hemisphere."""
    ops: list[TileOp] = []
    landed = np.full((len(pieces.targets), 2), -1, np.int64)
    missing = []
    for target in targets:
        sources = nearest(builder, pieces.sources, builder.sides(target))
        near = builder.sides(sources) == builder.sides(target)
        if near.any():
            ops += sxm_passes(builder, sources[near], pieces.maps[near], target[near], data_format, label)
            landed[near] = target[near]
        missing.append(~near)
    lost = landed[:, 0] < 0
    if lost.any():
        landed[lost] = landing(builder, pieces.sources[lost], data_format)
        ops += sxm_passes(builder, pieces.sources[lost], pieces.maps[lost], landed[lost], data_format, label)
    for target, far in zip(targets, missing, strict=True):
        if far.any():
            ops += copies(builder, landed[far], [target[far]], data_format, label)
    return ops, landed


def nearest(builder: StorageBuilder, sources: IntArray, sides: IntArray | Hemisphere) -> IntArray:
    """Sources, in the hemisphere wanted where they are mirrored."""
    other = builder.mirrored(sources)
    if other is None:
        return sources
    return np.where((builder.sides(sources) == sides)[:, None], sources, other)


def landing(builder: StorageBuilder, sources: IntArray, data_format: DataFormat) -> IntArray:
    """New places in the hemispheres of the sources."""
    refs, sides = np.zeros_like(sources), builder.sides(sources)
    for side in Hemisphere:
        here = np.nonzero(sides == side)[0]
        refs[here] = builder.pieces(len(here), data_format, side, "moved")
    return refs


def copies(
    builder: StorageBuilder, refs: IntArray, targets: list[IntArray], data_format: DataFormat, label: Label
) -> list[TileOp]:
    """Copies vectors to every target."""
    raw = raw_format(data_format)
    outputs = [(0, target, raw) for target in targets]
    step = Step("identity", (InputRef(0),))
    return list(split_sides(builder, chain_op([MemoryInput(refs, raw)], [step], outputs, label)))


def sxm_passes(
    builder: StorageBuilder, sources: IntArray, maps: IntArray, targets: IntArray, data_format: DataFormat, label: Label
) -> list[TileOp]:
    """Passes of an SXM; source and target of each vector lie in one hemisphere.

    The distributors take what stays in its superlane (4 bytes per cycle, 10 cycles), the permuter the rest (1, 60).
    """
    ops: list[TileOp] = []
    sides, width = builder.sides(sources), builder.chip.num_lanes_per_superlane
    stays = ((maps < 0) | (maps // width == np.arange(maps.shape[1]) // width)).all(axis=1)
    for side in Hemisphere:
        for unit in SxmUnit:
            here = np.nonzero((sides == side) & (stays == (unit is SxmUnit.DISTRIBUTOR)))[0]
            if len(here):
                map_refs = builder.lane_maps(side, maps[here], unit)
                refs = (sources[here], map_refs, targets[here])
                ops.append(PermuteOp(*refs, data_format, side, *label, unit))
    return ops


def merged(
    builder: StorageBuilder,
    pieces: Pieces,
    count: int,
    targets: list[IntArray],
    data_format: DataFormat,
    label: Label,
) -> list[TileOp]:
    """Result vectors of several pieces: each piece through a permuter (or under a mask, if its lanes stay), then OR.

    With many different maps of single lanes each, lanes are spread over all lanes and masked: one map per source lane.
    """
    stays = pieces.in_place()
    masks = pieces.maps != FILL
    maps = pieces.maps
    if (masks[~stays].sum(axis=1) == 1).all() and len(np.unique(maps[~stays], axis=0)) > _MANY_MAPS:
        maps = np.broadcast_to(maps.max(axis=1, keepdims=True), maps.shape)
    elif not stays.all():
        masks = np.where(stays[:, None], masks, True)  # the map itself leaves zeros
    order = np.argsort(pieces.targets, kind="stable")
    target_of = pieces.targets[order]
    rank = np.arange(len(order)) - np.searchsorted(target_of, target_of)  # number of the piece within its target
    depth = int(rank.max()) + 1
    ops: list[TileOp] = []
    merger = _Merger(builder, targets, data_format, label)
    for level in range(depth):
        chosen = order[rank == level]
        layer = zeros(builder, count, data_format)
        layer[pieces.targets[chosen]] = pieces.sources[chosen]
        moved = chosen[~stays[chosen]]
        if len(moved):
            written = landing(builder, pieces.sources[moved], data_format)
            ops += sxm_passes(builder, pieces.sources[moved], maps[moved], written, data_format, label)
            layer[pieces.targets[moved]] = written
        mask = None
        if not masks[chosen].all():
            mask = _masks(builder, count, pieces.targets[chosen], masks[chosen])
        ops += merger.add(layer, mask, level == depth - 1)
    return ops


def _masks(builder: StorageBuilder, count: int, targets: IntArray, masks: np.ndarray) -> IntArray:
    """For every result vector the mask of the lanes that a piece fills."""
    refs = zeros(builder, count, DataFormat.UINT8)
    kinds, inverse = np.unique(masks, axis=0, return_inverse=True)
    known = np.concatenate([builder.constant(kind.astype(np.int8), False)[0].refs for kind in kinds])
    refs[targets] = known[inverse.reshape(-1)]
    return refs


def zeros(builder: StorageBuilder, count: int, data_format: DataFormat) -> IntArray:
    """A vector of zeros, `count` times."""
    dtype = {1: "int8", 2: "int16", 4: "int32"}[data_format.num_bytes]
    zero = builder.constant(np.zeros((1,), dtype), True)[0].refs
    return np.repeat(zero, count, axis=0)


def raw_format(data_format: DataFormat) -> DataFormat:
    """Integer format of the same width: merging and copying must not touch the bits."""
    return {1: DataFormat.UINT8, 2: DataFormat.INT16, 4: DataFormat.INT32}[data_format.num_bytes]


class _Merger:
    """target = layer | layer | ... (each under its mask, if it has one), a few per chain.

    A chain is emitted as soon as its layers are there, so that few layers are alive at a time.
    """

    def __init__(self, builder: StorageBuilder, targets: list[IntArray], data_format: DataFormat, label: Label) -> None:
        self.builder, self.targets, self.label = builder, targets, label
        self.raw, self.data_format = raw_format(data_format), data_format
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
            outputs = [(last, target, self.raw) for target in self.targets]
        else:
            side = self.builder.next_hemisphere()
            self.merged = self.builder.pieces(len(layer), self.data_format, side, "merged")
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
