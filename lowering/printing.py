"""Stable text of the IRs behind the graph: TileGraph, AllocatedGraph, Schedule (a Program prints as assembly)."""

from __future__ import annotations

import numpy as np

from lpu_jax.lowering.passes.place import AllocatedGraph
from lpu_jax.lowering.passes.schedule import Schedule
from lpu_jax.lowering.tile_ir import (
    ChainInput,
    ChainOp,
    GatherInput,
    InputRef,
    IntArray,
    MatMulInput,
    MemoryOutput,
    StepOperand,
    StepRef,
    Storage,
    TileGraph,
    TileOp,
    TransposeOp,
)
from lpu_jax.runtime.ops import Immediate


def tiles_text(tiles: TileGraph) -> str:
    """Storages, then the tile ops of every block."""
    lines = [_storage_text(storage) for storage in tiles.storages]
    for block in tiles.blocks:
        lines.append(f"block x{block.num_iterations} {{")
        lines += [f"  {op_text(op)}" for op in block.ops]
        lines.append("}")
    return "\n".join(lines)


def allocated_text(allocated: AllocatedGraph) -> str:
    """One line per placed storage: slices, first address, live range, and whose addresses it takes over."""
    lines = []
    for storage, place in zip(allocated.tiles.storages, allocated.places, strict=True):
        if place is not None:
            first, last = allocated.live[storage.id]
            slices = ",".join(map(str, place.slices))
            base = ",".join(map(str, place.bases)) or place.base
            reuses = f" after {list(allocated.reuses[storage.id])}" if allocated.reuses[storage.id] else ""
            lines.append(f"{_storage_text(storage)} @ slices {slices} a={base} live {first}..{last}{reuses}")
    return "\n".join(lines)


def schedule_text(plan: Schedule) -> str:
    """Time zero and chosen streams and ALUs of every tile op, in order of time."""
    lines = []
    for block in plan.blocks:
        lines.append(f"block x{block.num_iterations} period {block.period_cycles} {{")
        for op in sorted(block.ops, key=lambda op: op.time_zero):
            first = op.time_zero + op.template.first_cycle()
            last = op.time_zero + op.template.last_cycle()
            lines.append(f"  {op.time_zero}: rows {len(op.template.rows)} cycles {first}..{last} chosen {op.chosen}")
        lines.append("}")
    return "\n".join(lines)


def op_text(op: TileOp) -> str:
    """One tile op."""
    source = f"  # {op.source}" if op.source else ""
    if not isinstance(op, ChainOp):
        if isinstance(op, TransposeOp):
            return f"transpose {op.format.name} {_refs(op.source_refs)} -> {_refs(op.targets)}{source}"
        moved = f"{_refs(op.source_refs)} by {_refs(op.maps)} -> {_refs(op.targets)}"
        return f"{op.unit.value} {op.format.name} {moved}{source}"
    inputs = ", ".join(_input_text(item) for item in op.inputs)
    steps = "; ".join(f"{s.function} {' '.join(_operand_text(o) for o in s.operands)}" for s in op.steps)
    outputs = ", ".join(
        f"t{o.step}.{o.format.name} -> {_refs(o.refs) if isinstance(o, MemoryOutput) else f'scatter s{o.table}'}"
        for o in op.outputs
    )
    return f"chain x{op.num_vectors} ({inputs}) {steps} [{outputs}]{source}"


def _storage_text(storage: Storage) -> str:
    loop = f" x{storage.num_iterations}" if storage.num_iterations > 1 else ""
    spread = f" interleave {storage.interleave}" if storage.interleave > 1 else ""
    spread = " skewed" if storage.skewed else spread
    name = f" {storage.name}" if storage.name else ""
    return f"s{storage.id}: {storage.num_vectors}{loop} {storage.format.name} {storage.hemisphere.name}{spread}{name}"


def _refs(refs: IntArray) -> str:
    """s<storage>[first..last] per run of consecutive vectors; long lists are cut."""
    breaks = np.nonzero((np.diff(refs[:, 0]) != 0) | (np.diff(refs[:, 1]) != 1))[0] + 1
    runs = np.split(refs, breaks)
    texts = [f"s{run[0, 0]}[{run[0, 1]}..{run[-1, 1]}]" for run in runs[:4]]
    return "+".join(texts) + (f"+{len(runs) - 4} runs" if len(runs) > 4 else "")


def _input_text(item: ChainInput) -> str:
    if isinstance(item, MatMulInput):
        weights = "+".join(f"s{w.storage}[{w.first}..{w.first + item.num_vectors(w) - 1}]" for w in item.weights)
        formats = f"{item.lhs_format.name} x {item.rhs_format.name}"
        return f"mxm {item.hemisphere.name}{item.plane} {formats} {_refs(item.activations[0])} . {weights}"
    if isinstance(item, GatherInput):
        return f"gather s{item.table} at {_refs(item.maps)}"
    return f"{item.format.name} {_refs(item.refs)}"


def _operand_text(operand: StepOperand) -> str:
    if isinstance(operand, InputRef):
        return f"i{operand.index}"
    if isinstance(operand, StepRef):
        return f"t{operand.index}"
    assert isinstance(operand, Immediate)
    return repr(operand.value)
