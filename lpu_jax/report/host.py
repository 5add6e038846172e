"""What the host has a part in: loops that it starts turn by turn, and calls that it computes; cycles and PCIe time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np

from lpu_jax.lowering.host_plan import HostLoop, HostStep, Run, Stage, cycles_taken, loops
from lpu_jax.lowering.pipeline import CompiledGraph
from lpu_jax.lowering.tile_bindings import Binding
from lpu_jax.runtime.chip import ChipSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopCost:
    """A loop that the host starts turn by turn.

    Attributes:
      cycles_per_turn: of its own pieces of the program, without those of loops inside it.
      trip_count: turns made in all; 1 if nothing was run.
      max_trip_count: turns after which it is given up; 1 for a branch, the length for a scan.
      pcie_seconds: the host reads the flag before every turn and starts the turn.
    """

    name: str
    source: str
    cycles_per_turn: int
    trip_count: int
    max_trip_count: int
    pcie_seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class CallCost:
    """A call that the host computes: bytes out of the chip and into it per call, and how often it was made."""

    name: str
    source: str
    bytes_out: int
    bytes_in: int
    num_calls: int
    pcie_seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostCosts:
    """All of it; what the host computes takes no time here but that of PCIe.

    Attributes:
      cycles_taken: cycles of the chip for these trip counts.
      worst_case_cycles: if every loop made all the turns that it may.
      pcie_seconds: in the middle of the run, on top of arguments and results.
    """

    loops: tuple[LoopCost, ...]
    calls: tuple[CallCost, ...]
    cycles_taken: int
    worst_case_cycles: int
    pcie_seconds: float


def pcie_seconds(chip: ChipSpec, num_bytes: int) -> float:
    """Time of one transfer; nothing to send costs nothing."""
    return chip.pcie_latency_seconds + num_bytes / chip.pcie_bytes_per_second if num_bytes else 0.0


def host_costs(compiled: CompiledGraph, trip_counts: Sequence[int] | None = None) -> HostCosts | None:
    """Costs for these trip counts (in the order of `host_plan.loops`), one turn each if they are None; None if the host
    does nothing but start the program."""
    plan, chip = compiled.tile_graph.plan, compiled.tile_graph.chip
    if not plan.is_needed:
        return None
    found = loops(plan)
    counts = [int(n) for n in trip_counts] if trip_counts is not None else [1] * len(found)
    times = {id(loop): count for loop, count in zip(found, counts, strict=True)}
    worst = _worst(plan.stages, 1)
    own = _own_cycles(compiled)
    loop_costs = []
    for loop, entries in _entries(plan.stages, times):
        turns = times[id(loop)]
        seconds = (turns + entries) * pcie_seconds(chip, 1) + turns * chip.pcie_latency_seconds
        loop_costs.append(
            LoopCost(
                name=loop.name,
                source=loop.source,
                cycles_per_turn=own[id(loop)],
                trip_count=turns,
                max_trip_count=loop.max_trip_count,
                pcie_seconds=seconds,
            )
        )
    calls = tuple(_call_cost(chip, step, number) for step, number in _calls(plan.stages, times, 1))
    return HostCosts(
        loops=tuple(loop_costs),
        calls=calls,
        cycles_taken=cycles_taken(plan, compiled.piece_cycles, counts),
        worst_case_cycles=cycles_taken(plan, compiled.piece_cycles, worst),
        pcie_seconds=math.fsum([*(c.pcie_seconds for c in loop_costs), *(c.pcie_seconds for c in calls)]),
    )


def _worst(stages: Sequence[Stage], times: int) -> list[int]:
    found: list[int] = []
    for stage in stages:
        if isinstance(stage, HostLoop):
            found += [times * stage.max_trip_count, *_worst(stage.body, times * stage.max_trip_count)]
    return found


def _own_cycles(compiled: CompiledGraph) -> dict[int, int]:
    """Cycles of the runs that stand directly in each loop."""
    pieces, found = iter(compiled.piece_cycles), dict[int, int]()

    def total(stages: Sequence[Stage]) -> int:
        cycles = 0
        for stage in stages:
            if isinstance(stage, Run):
                cycles += next(pieces)
            elif isinstance(stage, HostLoop):
                found[id(stage)] = total(stage.body)
        return cycles

    total(compiled.tile_graph.plan.stages)
    return found


def _entries(stages: Sequence[Stage], times: dict[int, int], number: int = 1) -> Iterator[tuple[HostLoop, int]]:
    """Every loop and how often the host came to it."""
    for stage in stages:
        if isinstance(stage, HostLoop):
            yield stage, number
            yield from _entries(stage.body, times, times[id(stage)])


def _calls(stages: Sequence[Stage], times: dict[int, int], number: int) -> Iterator[tuple[HostStep, int]]:
    for stage in stages:
        if isinstance(stage, HostStep):
            yield stage, number
        elif isinstance(stage, HostLoop):
            yield from _calls(stage.body, times, times[id(stage)])


def _call_cost(chip: ChipSpec, step: HostStep, number: int) -> CallCost:
    given = sum(_num_bytes(x) for x in step.operands if isinstance(x, Binding))
    made = sum(_num_bytes(places[0]) for places in step.results if not isinstance(places, int))
    seconds = number * (pcie_seconds(chip, given) + pcie_seconds(chip, made))
    return CallCost(
        name=step.name, source=step.source, bytes_out=given, bytes_in=made, num_calls=number, pcie_seconds=seconds
    )


def _num_bytes(binding: Binding) -> int:
    dtype = np.dtype(np.bool_ if binding.dtype == "bool" else binding.dtype)
    return math.prod(binding.view.shape) * dtype.itemsize
