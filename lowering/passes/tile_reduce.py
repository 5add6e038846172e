"""Reductions over lanes that are no sums: rotations on the SXM, combined on the VXM."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lpu_jax.lowering.passes.tile_close import Label, chain_op, split_sides
from lpu_jax.lowering.passes.tile_storage import FORMATS, StorageBuilder
from lpu_jax.lowering.tile_ir import (
    InputRef,
    IntArray,
    MemoryInput,
    PermuteOp,
    Step,
    StepRef,
    TileOp,
    View,
    num_rows,
    num_tiles,
)
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


def tile_lane_reduce(
    builder: StorageBuilder, function: str, view: View, targets: tuple[View, ...], aval: Aval, label: Label
) -> list[TileOp]:
    """All lanes of the result hold function over the last axis.

    Padding lanes are set to the identity, tiles are combined pairwise, then log2(lanes) rotations by 1, 2, 4, ...
    lanes; the functions are idempotent, so overlapping windows do no harm.
    """
    lanes = builder.chip.num_lanes
    rows, tiles = num_rows(aval.shape), num_tiles(aval.shape, lanes)
    working = FORMATS["int32"] if function not in ("max", "min") else FORMATS["float32"]
    refs = view.refs.reshape(rows, tiles, 2)
    ops: list[TileOp] = []
    side = builder.storages[int(refs[0, 0, 0])].hemisphere

    def write(count: int) -> IntArray:
        return builder.whole(builder.new_storage(count, working, side, name=f"{function} partial"), count)

    def emit(inputs: list[MemoryInput], steps: list[Step], outputs: list[tuple[int, IntArray, DataFormat]]) -> None:
        ops.extend(split_sides(builder, chain_op(inputs, steps, outputs, label)))

    columns = [refs[:, t] for t in range(tiles)]
    stored = FORMATS[aval.dtype]
    tail = aval.shape[-1] - (tiles - 1) * lanes
    if tail < lanes:
        valid = (np.arange(lanes) < tail).astype(np.int32)
        fill = np.where(valid == 1, 0, np.int64(IDENTITIES[function])).astype(np.int32)
        padded = write(rows)
        masks = [np.repeat(builder.constant(row, False)[0].refs, rows, axis=0) for row in (valid, fill)]
        int32 = DataFormat.INT32
        inputs = [MemoryInput(columns[-1], stored), MemoryInput(masks[0], int32), MemoryInput(masks[1], int32)]
        steps = [Step("mask", (InputRef(0), InputRef(1))), Step("or", (StepRef(0), InputRef(2)))]
        emit(inputs, steps, [(1, padded, working)])
        columns[-1] = padded
    elif stored is not working:
        for index, column in enumerate(columns):
            widened = write(rows)
            emit([MemoryInput(column, stored)], [Step("identity", (InputRef(0),))], [(0, widened, working)])
            columns[index] = widened
    formats = [working if tail < lanes or stored is not working else stored] * tiles
    if tail < lanes and tiles > 1 and stored is not working:
        formats = [stored] * (tiles - 1) + [working]
    present = _combine_tiles(function, columns, formats, working, write, emit)
    if any(builder.storages[int(storage)].hemisphere != side for storage in present[:, 0]):
        moved = write(rows)
        emit([MemoryInput(present, working)], [Step("identity", (InputRef(0),))], [(0, moved, working)])
        present = moved
    shift = 1
    while shift < lanes:
        last = shift * 2 >= lanes
        rotated = write(rows)
        maps = builder.lane_maps(side, ((np.arange(lanes) + shift) % lanes)[None])
        ops.append(PermuteOp(present, np.repeat(maps, rows, axis=0), rotated, working, side, *label))
        result = write(rows)
        outputs = [(0, target.refs, stored) for target in targets] if last else [(0, result, working)]
        emit(
            [MemoryInput(present, working), MemoryInput(rotated, working)],
            [Step(function, (InputRef(0), InputRef(1)))],
            outputs,
        )
        present, shift = result, shift * 2
    return ops


def _combine_tiles(
    function: str,
    columns: list[IntArray],
    formats: list[DataFormat],
    working: DataFormat,
    write: Callable[[int], IntArray],
    emit: Callable[[list[MemoryInput], list[Step], list[tuple[int, IntArray, DataFormat]]], None],
) -> IntArray:
    """Pairwise combination of the tiles of every row, all rows and pairs of a level in one chain."""
    rows = len(columns[0])
    while len(columns) > 1:
        half = len(columns) // 2
        uniform = [i for i in range(half) if formats[i] is formats[0] and formats[half + i] is formats[half]]
        groups = [uniform, *[[i] for i in range(half) if i not in uniform]]
        results: dict[int, IntArray] = {}
        for group in groups:
            if not group:
                continue
            out = write(rows * len(group))
            lhs = np.concatenate([columns[i] for i in group])
            rhs = np.concatenate([columns[half + i] for i in group])
            inputs = [MemoryInput(lhs, formats[group[0]]), MemoryInput(rhs, formats[half + group[0]])]
            emit(inputs, [Step(function, (InputRef(0), InputRef(1)))], [(0, out, working)])
            for place, i in enumerate(group):
                results[i] = out[place * rows : (place + 1) * rows]
        rest = len(columns) - 2 * half
        columns = [results[i] for i in range(half)] + columns[len(columns) - rest :]
        formats = [working] * half + formats[len(formats) - rest :]
    if formats[0] is not working:
        out = write(rows)
        emit([MemoryInput(columns[0], formats[0])], [Step("identity", (InputRef(0),))], [(0, out, working)])
        return out
    return columns[0]
