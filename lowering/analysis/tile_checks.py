"""verify_tiles: the invariants of a TileGraph, re-derived from its ops."""

from __future__ import annotations

import numpy as np

from lpu_jax.lowering.tile_ir import (
    GROUP,
    ChainOp,
    GatherInput,
    IntArray,
    MemoryInput,
    MemoryOutput,
    PermuteOp,
    StepRef,
    SxmUnit,
    TileGraph,
    TileOp,
    TransposeOp,
    storages_of,
)
from lpu_jax.runtime.errors import ScheduleError


def verify_tiles(tiles: TileGraph) -> None:
    """Checks that refs are in range and that vectors are written before they are read; raises ScheduleError."""
    sizes = np.array([s.num_vectors * s.num_iterations for s in tiles.storages], np.int64)
    starts = np.cumsum(sizes) - sizes
    written = np.repeat([s.resident for s in tiles.storages], sizes)
    for block in tiles.blocks:
        for op in block.ops:
            for refs in _reads(tiles, op):
                _check_range(sizes, refs, op)
                known = written[starts[refs[:, 0]] + refs[:, 1]]
                if not known.all():
                    storage = refs[known.argmin(), 0]
                    raise ScheduleError(f"tile: storage {storage} is read before it is written {op.source}")
            for refs in _writes(tiles, op):
                _check_range(sizes, refs, op)
                written[starts[refs[:, 0]] + refs[:, 1]] = True
            _check_steps(op)
            _check_sxm(tiles, op)
        for storage in block.looped:
            parts = written[starts[storage] :][: sizes[storage]].reshape(block.num_iterations, -1)
            parts |= parts[:1]


def _whole(tiles: TileGraph, storage: int) -> IntArray:
    count = tiles.storages[storage].num_vectors
    return np.stack([np.full(count, storage), np.arange(count)], axis=1)


def _reads(tiles: TileGraph, op: TileOp) -> list[IntArray]:
    if not isinstance(op, ChainOp):
        return [op.source_refs] if isinstance(op, TransposeOp) else [op.source_refs, op.maps]
    found: list[IntArray] = []
    for item in op.inputs:
        if isinstance(item, MemoryInput):
            found.append(item.refs)
        elif isinstance(item, GatherInput):
            found.append(item.maps)
        else:
            found += item.activations
            for weight in item.weights:
                rows = weight.first + np.arange(item.num_vectors(weight))
                found.append(np.stack([np.full(len(rows), weight.storage), rows], axis=1))
    return found + [output.maps for output in op.outputs if not isinstance(output, MemoryOutput)]


def _writes(tiles: TileGraph, op: TileOp) -> list[IntArray]:
    if not isinstance(op, ChainOp):
        return [op.targets]
    return [o.refs if isinstance(o, MemoryOutput) else _whole(tiles, o.table) for o in op.outputs]


def _check_range(sizes: IntArray, refs: IntArray, op: TileOp) -> None:
    if len(refs) and ((refs < 0).any() or (refs[:, 0] >= len(sizes)).any() or (refs[:, 1] >= sizes[refs[:, 0]]).any()):
        raise ScheduleError(f"tile: a ref of {type(op).__name__} leaves its storage {op.source}")


def _check_steps(op: TileOp) -> None:
    if not isinstance(op, ChainOp):
        return
    for index, step in enumerate(op.steps):
        for operand in step.operands:
            if isinstance(operand, StepRef) and operand.index >= index:
                raise ScheduleError(f"tile: step {index} of a chain reads step {operand.index} {op.source}")
    for output in op.outputs:
        if not 0 <= output.step < len(op.steps):
            raise ScheduleError(f"tile: output of step {output.step} of {len(op.steps)} {op.source}")


def _check_sxm(tiles: TileGraph, op: TileOp) -> None:
    """An SXM reaches its own hemisphere, maps are as wide as its unit reads them, transposed groups lie skewed."""
    if isinstance(op, ChainOp):
        return
    for refs in _reads(tiles, op) + _writes(tiles, op):
        if any(tiles.storages[s].hemisphere is not op.hemisphere for s in storages_of(refs)):
            raise ScheduleError(f"tile: an SXM op of {op.hemisphere.name} meets the other hemisphere {op.source}")
    if isinstance(op, PermuteOp):
        width = 2 if op.unit is SxmUnit.PERMUTER else 1
        if any(tiles.storages[s].format.num_bytes != width for s in storages_of(op.maps)):
            raise ScheduleError(f"tile: {op.unit.value} reads maps of {width} bytes {op.source}")
        return
    for refs in (op.source_refs, op.targets):
        groups = refs.reshape(-1, GROUP, 2) if len(refs) % GROUP == 0 else refs[:0].reshape(0, 1, 2)
        skewed = all(tiles.storages[s].skewed for s in storages_of(refs))
        in_order = (groups[:, :, 0] == groups[:, :1, 0]).all() and (np.diff(groups[:, :, 1], axis=1) == 1).all()
        if len(groups) * GROUP != len(refs) or not skewed or not in_order or (groups[:, 0, 1] % GROUP).any():
            raise ScheduleError(f"tile: a transposer takes aligned groups of {GROUP} skewed vectors {op.source}")
