"""The compiler in a row of calls, and what it hands out: `CompiledGraph`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np

from lpu_jax.lowering.analysis.dependency_bound import DependencyBound, dependency_bound
from lpu_jax.lowering.analysis.memory import MemoryUse, memory_use
from lpu_jax.lowering.analysis.resource_bounds import ON_CHIP, resource_bounds
from lpu_jax.lowering.analysis.tile_checks import verify_tiles
from lpu_jax.lowering.analysis.use import resource_use
from lpu_jax.lowering.garbage import collection_paused
from lpu_jax.lowering.host_plan import cycles_taken
from lpu_jax.lowering.host_run import HostRunResult, run_on_machine
from lpu_jax.lowering.passes.emit import emit
from lpu_jax.lowering.passes.filling import RESERVES
from lpu_jax.lowering.passes.place import AllocatedGraph, place, resident_bytes, verify_allocation
from lpu_jax.lowering.passes.roll import roll
from lpu_jax.lowering.passes.schedule import Schedule, schedule
from lpu_jax.lowering.passes.schedule_checks import verify_schedule
from lpu_jax.lowering.passes.tile import tile
from lpu_jax.lowering.passes.tile_storage import BRIMFUL, SPREADS, Spread
from lpu_jax.lowering.tile_ir import TileGraph
from lpu_jax.runtime import machine
from lpu_jax.runtime.chip import ChipSpec
from lpu_jax.runtime.errors import SramOverflowError
from lpu_jax.runtime.host_runs import split
from lpu_jax.runtime.ops import GraphLike
from lpu_jax.runtime.program import Program
from lpu_jax.runtime.progress import progress


def compile_graph(
    graph: GraphLike, chip: ChipSpec, *, donated: Mapping[int, int] | None = None, num_orders: int = 1
) -> CompiledGraph:
    """Compiles a graph for one chip.

    Args:
      graph: a verified Graph.
      chip: the target.
      donated: output position -> input position whose SRAM the output may take over.
      num_orders: orders of the ops that are tried for every block; the shortest schedule is kept.

    Raises:
      SramOverflowError: the values do not fit.
    """
    with progress("Compiling", total=4) as bar, collection_paused():
        graph = roll(graph)
        bar.to(1)
        allocated = _allocate(graph, chip, dict(donated or {}))
        bar.to(2)
        plan = schedule(allocated, num_orders=num_orders)
        verify_schedule(plan)
        bar.to(3)
        program = emit(plan)
    return CompiledGraph(graph=graph, tile_graph=allocated.tiles, allocated=allocated, schedule=plan, program=program)


def _allocate(graph: GraphLike, chip: ChipSpec, donated: dict[int, int]) -> AllocatedGraph:
    """Tiles and places a graph, as generously as fits."""
    reserves: dict[Spread, tuple[float | None, ...]] = {**dict.fromkeys(SPREADS, (None,)), BRIMFUL: RESERVES}
    for spread, shares in reserves.items():
        tiles = tile(graph, chip, donated, spread=spread)
        verify_tiles(tiles)
        for reserve in shares:
            try:
                allocated = place(tiles, reserve=reserve)
            except SramOverflowError:
                if reserve == RESERVES[-1] or resident_bytes(tiles) > chip.usable_sram_bytes:
                    raise
                continue
            verify_allocation(allocated)
            return allocated
    raise AssertionError("the last attempt returns or raises")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CompiledGraph:
    """A program with every stage it came from."""

    graph: GraphLike
    tile_graph: TileGraph
    allocated: AllocatedGraph
    schedule: Schedule
    program: Program

    @functools.cached_property
    def cycles(self) -> int:
        """Cycles from the start of the program to its last write, skew included; one turn of every loop that the host
        starts."""
        return machine.completion_cycles(self.program)

    @functools.cached_property
    def memory_use(self) -> MemoryUse:
        """SRAM in use when most of it is, and how much of it lies in holes."""
        return memory_use(self.allocated)

    @property
    def sram_used_bytes(self) -> int:
        """Most bytes of SRAM that hold something at one time."""
        return self.memory_use.used_bytes

    def simulate(self, arguments: Sequence[np.ndarray]) -> tuple[list[np.ndarray], int]:
        """Runs the program on the machine; returns the outputs and the cycles it took."""
        result = self.run(arguments)
        return result.outputs, result.cycles

    def run(self, arguments: Sequence[np.ndarray]) -> HostRunResult:
        """Runs the program on the machine; also tells how many turns its loops made."""
        return run_on_machine(self.allocated, self.program, self.graph, arguments)

    @functools.cached_property
    def piece_cycles(self) -> tuple[int, ...]:
        """Cycles of every piece of the program that the host starts; they sum to `cycles`."""
        return tuple(machine.completion_cycles(piece) for piece in split(self.program))

    def cycles_taken(self, trip_counts: Sequence[int]) -> int:
        """Cycles of a run in which the loops made so many turns in all, in the order of `host_plan.loops`."""
        return cycles_taken(self.tile_graph.plan, self.piece_cycles, trip_counts)

    @functools.cached_property
    def dependency_bound(self) -> DependencyBound:
        """The longest chain of latencies through the graph, as cycles and link by link."""
        return dependency_bound(self.graph, self.tile_graph.chip)

    def cost_analysis(self, moved_bytes: tuple[int, int] | None = None) -> dict[str, object]:
        """Cycles, both bounds, what bounds the program, and the use of every unit.

        moved_bytes: what crosses PCIe at a call, in and out; by default all arguments and results.
        bound_ratio = cycles / max(resource_bound_cycles, dependency_bound_cycles); "pcie" in `resource_bounds` is no
        part of the cycles, so it is left out of resource_bound_cycles.
        """
        bounds = resource_bounds(self.graph, self.tile_graph.chip, moved_bytes)
        busiest = max(ON_CHIP, key=lambda name: bounds[name])
        resource, dependency = bounds[busiest], self.dependency_bound.cycles
        return {
            "cycles": self.cycles,
            "resource_bound_cycles": resource,
            "dependency_bound_cycles": dependency,
            "bounded_by": busiest if resource >= dependency else "dependencies",
            "bound_ratio": self.cycles / max(resource, dependency),
            "resource_bounds": bounds,
            "utilization": {name: value / self.cycles for name, value in resource_use(self.tile_graph).items()},
            "instructions": self.program.num_instructions,
            "rows": self.program.num_rows,
        }

    def memory_map(self) -> list[tuple[str, str, int, tuple[int, ...]]]:
        """(name, hemisphere, bytes, slices) of every storage that is in use."""
        chip = self.tile_graph.chip
        return [
            (s.name, s.hemisphere.name, s.num_slices * s.num_addresses * chip.num_lanes, spot.slices)
            for s, spot in zip(self.tile_graph.storages, self.allocated.places, strict=True)
            if spot is not None
        ]
