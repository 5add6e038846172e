"""Runs a compiled graph on the machine as its host plan says: the host's side of loops and calls."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from lpu_jax.lowering.host_plan import HostLoop, HostMove, HostStep, Run, Stage, loops, runs
from lpu_jax.lowering.loader import load_sram, read_outputs, read_value, write_value
from lpu_jax.lowering.passes.place import AllocatedGraph
from lpu_jax.lowering.tile_bindings import Binding
from lpu_jax.runtime import machine
from lpu_jax.runtime.errors import trip_count_error
from lpu_jax.runtime.host_runs import split
from lpu_jax.runtime.ops import GraphLike
from lpu_jax.runtime.program import Program
from lpu_jax.runtime.sram import Sram


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HostRunResult:
    """What a run gave.

    cycles: of all pieces of the program, as often as each ran. trip_counts: turns of every loop in order of the plan,
    a loop before those inside it.
    """

    outputs: list[Any]
    cycles: int
    trip_counts: tuple[int, ...]


def run_on_machine(
    allocated: AllocatedGraph, program: Program, graph: GraphLike, arguments: Sequence[np.ndarray]
) -> HostRunResult:
    """Loads the arguments, runs the plan, reads the results."""
    sram, plan = load_sram(allocated, arguments, graph), allocated.tiles.plan
    host = _Host(allocated, program, sram)
    host.slots.update(plan.constants)
    host.slots.update((slot, arguments[position]) for position, slot in plan.inputs)
    host.run(plan.stages or (Run(0, len(allocated.tiles.blocks)),))
    kept = {position: host.slots[slot] for position, slot in plan.outputs}
    in_sram = iter(read_outputs(allocated, sram))
    outputs = [kept[i] if i in kept else next(in_sram) for i in range(len(graph.outputs))]
    return HostRunResult(outputs=outputs, cycles=host.cycles, trip_counts=tuple(host.trips.values()))


class _Host:
    def __init__(self, allocated: AllocatedGraph, program: Program, sram: Sram) -> None:
        self.allocated, self.sram = allocated, sram
        starts = [run.start for run in runs(allocated.tiles.plan)] or [0]
        self.pieces = dict(zip(starts, split(program), strict=True))
        self.slots: dict[int, Any] = {}
        self.trips = {id(loop): 0 for loop in loops(allocated.tiles.plan)}
        self.cycles = 0

    def run(self, stages: Sequence[Stage]) -> None:
        for stage in stages:
            if isinstance(stage, Run):
                self.cycles += machine.run(self.pieces[stage.start], self.sram).cycles
            elif isinstance(stage, HostStep):
                self._compute(stage)
            elif isinstance(stage, HostMove):
                self.slots.update([(target, self.slots[source]) for source, target in stage.pairs])
            else:
                self._loop(stage)

    def _compute(self, step: HostStep) -> None:
        operands = [
            read_value(self.allocated, self.sram, x) if isinstance(x, Binding) else self.slots[x] for x in step.operands
        ]
        with jax.enable_x64(True):
            results = [np.asarray(x) for x in jax.jit(step.fun)(*operands)]
        for places, array in zip(step.results, results, strict=True):
            if isinstance(places, int):
                self.slots[places] = array
                continue
            for binding in places:
                write_value(self.allocated, self.sram, binding, array)

    def _loop(self, loop: HostLoop) -> None:
        turns = 0
        while read_value(self.allocated, self.sram, loop.flag):
            if turns == loop.max_trip_count:
                raise trip_count_error(loop.name, loop.max_trip_count)
            self.run(loop.body)
            turns += 1
        self.trips[id(loop)] += turns
