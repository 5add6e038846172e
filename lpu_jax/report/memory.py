"""SRAM by tensor: where each one lies, and from which cycle to which."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lpu_jax.lowering.tile_ir import TileOp, num_parts
from lpu_jax.report.events import Rows

if TYPE_CHECKING:
    from lpu_jax.lowering.pipeline import CompiledGraph

TEMPORARIES = "temporaries"
"""Name of everything that is neither an argument nor a constant."""


@dataclasses.dataclass(frozen=True, slots=True)
class Tensor:
    """A storage in SRAM, or its part that begins at one address.

    Attributes:
      name: the argument that it holds, or TEMPORARIES.
      slices, base, num_addresses: it fills addresses base .. base + num_addresses - 1 of each slice.
      first_cycle, end_cycle: it holds something from the one to before the other.
    """

    name: str
    hemisphere: str
    format: str
    slices: tuple[int, ...]
    base: int
    num_addresses: int
    num_bytes: int
    is_resident: bool
    first_cycle: int
    end_cycle: int


def tensors(compiled: CompiledGraph, rows: Rows, names: Sequence[str] | None = None) -> tuple[Tensor, ...]:
    """All storages that have a place; one that begins at several addresses is as many tensors.

    Args:
      compiled: every stage of the program.
      rows: its decoded rows.
      names: one name per placed storage; by default resident ones have the name of the graph's value.
    """
    chip, allocated = compiled.tile_graph.chip, compiled.allocated
    spans = _op_spans(compiled, rows)
    placed = [(s, p) for s, p in zip(compiled.tile_graph.storages, allocated.places, strict=True) if p is not None]
    found = []
    for index, (storage, place) in enumerate(placed):
        first, last = allocated.live[storage.id]
        if last < first:
            continue
        start = 0 if storage.resident or not spans else spans[min(first, len(spans) - 1)][0]
        stop = compiled.cycles if storage.resident or last >= len(spans) else spans[last][1]
        default = storage.name if storage.resident and storage.name else TEMPORARIES
        for base in dict.fromkeys(first_address for _, first_address in place.starts):
            slices = tuple(s for s, first_address in place.starts if first_address == base)
            tensor = Tensor(
                name=names[index] if names is not None else default,
                hemisphere=storage.hemisphere.name,
                format=storage.format.name.lower(),
                slices=slices,
                base=base,
                num_addresses=storage.num_addresses,
                num_bytes=len(slices) * storage.num_addresses * chip.num_lanes,
                is_resident=storage.resident,
                first_cycle=start,
                end_cycle=max(stop, start + 1),
            )
            found.append(tensor)
    return tuple(found)


def _op_spans(compiled: CompiledGraph, rows: Rows) -> list[tuple[int, int]]:
    """(start in the first iteration, finish in the last one) of every tile op, counted through the blocks."""
    program = rows.program
    number = sum(len(block.ops) for block in compiled.schedule.blocks)
    start, finish = [2**62] * number, [0] * number
    for block in program.blocks:
        last = block.start_cycle + (block.num_iterations - 1) * block.period_cycles
        span = slice(block.row_start, block.row_stop)
        for op, first, done in zip(
            program.origin[span].tolist(), rows.start[span].tolist(), rows.finish[span].tolist(), strict=True
        ):
            if op >= 0:
                start[op], finish[op] = min(start[op], block.start_cycle + first), max(finish[op], last + done)
    spans, base = [], 0
    for tile_block, scheduled in zip(compiled.tile_graph.blocks, compiled.schedule.blocks, strict=True):
        for parts in _parts(tile_block.ops, [op.op for op in scheduled.ops]):
            own = [base + part for part in parts]
            spans.append((min(start[i] for i in own), max(finish[i] for i in own)))
        base += len(scheduled.ops)
    return spans


def _parts(ops: Sequence[TileOp], scheduled: Sequence[TileOp]) -> list[list[int]]:
    """For every tile op the scheduled ops that do it: itself, or the pieces that it was cut into, in order."""
    position = {id(op): index for index, op in enumerate(scheduled)}
    whole = {position[id(op)] for op in ops if id(op) in position}
    pieces = iter([index for index in range(len(scheduled)) if index not in whole])
    found = []
    for op in ops:
        if id(op) in position:
            found.append([position[id(op)]])
            continue
        wanted, own = num_parts(op), []
        while wanted > 0:
            own.append(next(pieces))
            wanted -= num_parts(scheduled[own[-1]])
        found.append(own)
    return found
