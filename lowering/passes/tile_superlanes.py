"""Tile ops of a transposition: groups of 16 through the transposers, superlanes by rotations around a Gather."""

from __future__ import annotations

import numpy as np

from lpu_jax.lowering.passes.tile_close import Label, chain_op, split_sides
from lpu_jax.lowering.passes.tile_moves import FILL, Pieces
from lpu_jax.lowering.passes.tile_permute import copies, direct, raw_format, sxm_passes
from lpu_jax.lowering.passes.tile_storage import StorageBuilder
from lpu_jax.lowering.passes.tile_transpose import Blocks, Rotations, clusters
from lpu_jax.lowering.tile_ir import (
    GROUP,
    ChainOp,
    GatherInput,
    InputRef,
    IntArray,
    MemoryInput,
    MemoryOutput,
    Step,
    TileOp,
    TransposeOp,
)
from lpu_jax.runtime.chip import Hemisphere
from lpu_jax.runtime.isa import DataFormat

_GROUPS_AT_ONCE = 16
_TABLE_VECTORS = 256


def transpose_groups(
    builder: StorageBuilder, blocks: Blocks, data_format: DataFormat, label: Label
) -> tuple[list[TileOp], IntArray]:
    """Transposes the groups; returns refs [16 g, 2] of the transposed vectors. Those of one cluster lie together."""
    cluster, _ = clusters(blocks)
    order = np.argsort(cluster, kind="stable")
    ops: list[TileOp] = []
    refs = np.zeros((len(blocks.groups) * GROUP, 2), np.int64)
    raw = raw_format(data_format)
    loads = dict.fromkeys(Hemisphere, 0)
    for number in np.unique(cluster).tolist():
        own = order[cluster[order] == number]
        side = min(loads, key=loads.__getitem__)
        loads[side] += len(own)
        for part in np.split(own, range(_GROUPS_AT_ONCE, len(own), _GROUPS_AT_ONCE)):
            rows, turned = (_skewed(builder, len(part) * GROUP, raw, side) for _ in range(2))
            memory = MemoryInput(blocks.groups[part].reshape(-1, 2), raw)
            ops += split_sides(builder, chain_op([memory], [Step("identity", (InputRef(0),))], [(0, rows, raw)], label))
            ops.append(TransposeOp(rows, turned, raw, side, *label))
            refs[(part[:, None] * GROUP + np.arange(GROUP)).reshape(-1)] = turned
    return ops, refs


def _skewed(builder: StorageBuilder, count: int, data_format: DataFormat, side: Hemisphere) -> IntArray:
    storage = builder.new_storage(count, data_format, side, interleave=GROUP, skewed=True, name="transposed")
    return builder.whole(storage, count)


def rotate_together(
    builder: StorageBuilder,
    blocks: Blocks,
    rotations: Rotations,
    turned: IntArray,
    targets: list[IntArray],
    data_format: DataFormat,
    label: Label,
) -> tuple[list[TileOp], IntArray]:
    """Builds the results from transposed vectors; returns the ops and where the results are.

    turned: refs [16 g, 2]; targets: refs [n, 2] of every place that wants the results, if any.
    """
    ops, table, slot = _tables(builder, blocks, rotations, turned, data_format, label)
    superlanes = np.arange(blocks.vector.shape[1])
    position = (superlanes + rotations.of_result[:, None]) % len(superlanes)  # of each block before it is rotated back
    lanes = (position[:, :, None] * GROUP + np.arange(GROUP)).reshape(len(position), -1)
    maps = np.where(np.repeat(blocks.is_zero, GROUP, axis=1), FILL, lanes)
    address = np.zeros_like(blocks.vector)
    np.put_along_axis(address, position, np.where(blocks.vector >= 0, slot[blocks.vector], 0), axis=1)
    home = table[blocks.vector.max(axis=1)]
    stays = (maps == np.arange(maps.shape[1])).all(axis=1)
    sides = builder.sides(np.stack([home, home], axis=1))
    wanted = builder.sides(targets[0]) if targets else sides
    out = np.zeros((len(home), 2), np.int64)
    for side in Hemisphere:
        here = wanted == side
        if targets:
            out[here & stays] = targets[0][here & stays]
            here &= ~stays
        if here.any():
            out[here] = builder.pieces(int(here.sum()), data_format, side, "moved")
    ops += _gathers(builder, home, address, out, data_format, label)
    if not stays.all():
        pieces = Pieces(np.nonzero(~stays)[0], out[~stays], maps[~stays])
        more, out[~stays] = direct(builder, pieces, [target[~stays] for target in targets], data_format, label)
        ops += more
    for target in targets[1:]:
        if stays.any():
            ops += copies(builder, out[stays], [target[stays]], data_format, label)
    return ops, out


def _tables(
    builder: StorageBuilder,
    blocks: Blocks,
    rotations: Rotations,
    turned: IntArray,
    data_format: DataFormat,
    label: Label,
) -> tuple[list[TileOp], IntArray, IntArray]:
    """Rotates the transposed vectors into tables; returns (ops, table of every vector, its place in the table)."""
    used = np.unique(blocks.vector[blocks.vector >= 0])
    sides = builder.sides(turned)
    order = used[np.lexsort((used, rotations.component_of_vector[used], sides[used]))]
    table, slot = np.full(len(turned), -1, np.int64), np.zeros(len(turned), np.int64)
    component = rotations.component_of_vector[order]
    ends = [*(np.nonzero(np.diff(component))[0] + 1).tolist(), len(order)]
    ops: list[TileOp] = []
    first = 0
    for end in ends:
        if end < len(order) and end - first < _TABLE_VECTORS and sides[order[end]] == sides[order[first]]:
            continue
        own = order[first:end]
        storage = builder.new_storage(len(own), data_format, Hemisphere(int(sides[own[0]])), name="rotated")
        table[own], slot[own] = storage, np.arange(len(own))
        lanes = np.arange(builder.chip.num_lanes)
        maps = (lanes - rotations.of_vector[own][:, None] * GROUP) % builder.chip.num_lanes
        ops += sxm_passes(builder, turned[own], maps, builder.whole(storage, len(own)), data_format, label)
        first = end
    return ops, table, slot


def _gathers(
    builder: StorageBuilder, tables: IntArray, address: IntArray, out: IntArray, data_format: DataFormat, label: Label
) -> list[TileOp]:
    """One chain per table and hemisphere: superlane w of result k is that of vector address[k, w] of its table."""
    ops: list[TileOp] = []
    raw, sides = raw_format(data_format), builder.sides(out)
    for table in np.unique(tables).tolist():
        home = builder.storages[table]
        for side in Hemisphere:
            here = np.nonzero((tables == table) & (sides == side))[0]
            if not len(here):
                continue
            maps = np.zeros((len(here), builder.chip.num_lanes), np.uint8)
            maps[:, 0::GROUP] = address[here] & 0xFF
            maps[:, 1::GROUP] = address[here] >> 8
            storage = builder.new_storage(
                len(here), DataFormat.UINT8, home.hemisphere, resident=True, column="far", name="gather maps"
            )
            refs = builder.whole(storage, len(here))
            builder.constants.append((maps, refs))
            gather = GatherInput(refs, table, 0, raw)
            output = MemoryOutput(0, out[here], raw)
            ops.append(ChainOp(len(here), (gather,), (Step("identity", (InputRef(0),)),), (output,), *label))
    return ops
