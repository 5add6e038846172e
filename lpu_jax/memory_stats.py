"""`MemoryStats`: the bytes that a compiled function needs."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from lpu_jax.arguments import num_bytes

if TYPE_CHECKING:
    from lpu_jax.stages import Compiled, Lowered


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryStats:
    """Bytes that a program needs, under the names of jax.stages, and its SRAM.

    Attributes:
      sram_bytes: most SRAM in use at one time.
      sram_capacity_bytes: SRAM that programs may use.
      sram_fragmentation: share of words without a value between the first and the last one in use of every bank, when
        most SRAM is in use.
      memory_map: (name, hemisphere, bytes, slices) of every storage.
    """

    argument_size_in_bytes: int
    output_size_in_bytes: int
    alias_size_in_bytes: int
    temp_size_in_bytes: int
    generated_code_size_in_bytes: int
    peak_memory_in_bytes: int
    sram_bytes: int
    sram_capacity_bytes: int
    sram_fragmentation: float
    memory_map: tuple[tuple[str, str, int, tuple[int, ...]], ...]


def memory_stats(compiled: Compiled) -> MemoryStats:
    """Bytes of arguments, results, code and SRAM."""
    traced, program = compiled.traced, compiled.program
    captured = [(np.shape(c), c.dtype, False) for c in traced.captured]
    aliased = [traced.keys[i - len(traced.captured)] for i in traced.donated.values()]
    results = [(a.shape, a.dtype, False) for a in traced.flat_out_avals]
    sizes = [sum(map(num_bytes, group)) for group in ([*captured, *traced.keys], results, aliased)]
    sram = compiled.compiled_graph.sram_used_bytes
    fragmentation = compiled.compiled_graph.memory_use.fragmentation
    columns = (program.cycle, program.queue, program.opcode, program.count, program.interval, program.operands)
    return MemoryStats(
        argument_size_in_bytes=sizes[0],
        output_size_in_bytes=sizes[1],
        alias_size_in_bytes=sizes[2],
        temp_size_in_bytes=max(0, sram - sizes[0] - sizes[1] + sizes[2]),
        generated_code_size_in_bytes=sum(column.nbytes for column in columns),
        peak_memory_in_bytes=sram,
        sram_bytes=sram,
        sram_capacity_bytes=traced.options.chip.usable_sram_bytes,
        sram_fragmentation=fragmentation,
        memory_map=memory_map(compiled),
    )


def memory_map(compiled: Compiled) -> tuple[tuple[str, str, int, tuple[int, ...]], ...]:
    """(name, hemisphere, bytes, slices) of every storage, named by the argument that it holds."""
    names = _input_labels(compiled.lowered)
    labels = {f"%{v}": name for v, name in zip(compiled.compiled_graph.graph.inputs, names, strict=True)}
    placed = compiled.compiled_graph.allocated.places
    used = (
        s for s, place in zip(compiled.compiled_graph.tile_graph.storages, placed, strict=True) if place is not None
    )
    return tuple(
        (labels.get(name, name) if storage.resident else "temporaries", side, size, slices)
        for storage, (name, side, size, slices) in zip(used, compiled.compiled_graph.memory_map(), strict=True)
    )


def _input_labels(lowered: Lowered) -> list[str]:
    """For every input of the program's graph the argument that it is or was made of."""
    traced, prologue = lowered.traced, lowered.parts[0]
    names = [f"closed-over array {i}" for i in range(len(traced.captured))] + [role.name for role in traced.roles]
    made_of = {v: names[i] for v, i in zip(prologue.inputs, traced.resident_inputs, strict=True)}
    for equation in prologue.equations:
        sources = [made_of[x] for x in equation.operands if isinstance(x, int) and x in made_of]
        made_of |= dict.fromkeys(equation.results, sources[0] if sources else "constant")
    moving = [names[i] for i in traced.moving_inputs]
    return [*moving, *(made_of.get(v, "constant") for v in prologue.outputs)]
