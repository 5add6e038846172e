"""What the host does while a program runs: starts it again, reads flags, computes what the chip cannot.

Grammar:
  plan  ::= stage*
  stage ::= Run blocks | HostStep operands results | HostMove slots | HostLoop flag { stage* }

A value that only the host can hold (complex, 64 bits) lies in a numbered slot. The chip waits between two stages.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from lpu_jax.lowering.tile_bindings import Binding


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """The chip runs blocks start .. stop - 1."""

    start: int
    stop: int


@dataclasses.dataclass(frozen=True, slots=True)
class HostStep:
    """The host reads operands out of SRAM (or has them in a slot), computes and writes every place of the results."""

    fun: Callable[..., Sequence[Any]]
    name: str
    source: str
    operands: tuple[Binding | int, ...]
    results: tuple[tuple[Binding, ...] | int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class HostMove:
    """Slots take the contents of other slots, all at once: (source, target)."""

    pairs: tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class HostLoop:
    """While the flag holds, which the host reads before every turn, the stages of the body run."""

    flag: Binding
    body: tuple[Stage, ...]
    name: str
    source: str
    max_trip_count: int


Stage = Run | HostStep | HostMove | HostLoop


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class HostPlan:
    """Stages in order; inputs, outputs: (position among arguments or results, slot) of what only the host holds.

    constants: (slot, content).
    """

    stages: tuple[Stage, ...] = ()
    inputs: tuple[tuple[int, int], ...] = ()
    outputs: tuple[tuple[int, int], ...] = ()
    constants: tuple[tuple[int, np.ndarray], ...] = ()

    @property
    def is_needed(self) -> bool:
        """Whether the host does anything but start the program once."""
        return any(not isinstance(stage, Run) for stage in self.stages)


def walk(stages: Sequence[Stage]) -> Iterator[Stage]:
    """All stages in order of the program, a loop before its body."""
    for stage in stages:
        yield stage
        if isinstance(stage, HostLoop):
            yield from walk(stage.body)


def runs(plan: HostPlan) -> list[Run]:
    """The pieces of the program that are started one by one, in order of their blocks."""
    return [stage for stage in walk(plan.stages) if isinstance(stage, Run)]


def loop_blocks(plan: HostPlan) -> list[tuple[int, int]]:
    """(first, last + 1) block of every loop that has blocks, inner loops too."""
    found = []
    for stage in walk(plan.stages):
        if isinstance(stage, HostLoop):
            inside = [run for run in walk(stage.body) if isinstance(run, Run)]
            if inside:
                found.append((inside[0].start, inside[-1].stop))
    return found


def loops(plan: HostPlan) -> list[HostLoop]:
    """All loops, each before those inside it."""
    return [stage for stage in walk(plan.stages) if isinstance(stage, HostLoop)]


def read_by_host(plan: HostPlan) -> set[int]:
    """Storages that the host reads between stages."""
    found: set[int] = set()
    for stage in walk(plan.stages):
        bindings: list[Any] = []
        if isinstance(stage, HostStep):
            bindings = [b for b in stage.operands if isinstance(b, Binding)]
        elif isinstance(stage, HostLoop):
            bindings = [stage.flag]
        found.update(int(s) for b in bindings for s in b.view.refs[:, 0])
    return found


def cycles_taken(plan: HostPlan, piece_cycles: Sequence[int], trip_counts: Sequence[int]) -> int:
    """Cycles of all runs: piece_cycles[i] of the i-th run of `runs`, as often as the loop around it turned.

    trip_counts: turns in all, per loop of `loops`; Python integers, so nothing overflows.
    """
    if not plan.is_needed:
        return sum(piece_cycles)
    pieces, counts = iter(piece_cycles), iter(trip_counts)

    def total(stages: Sequence[Stage], times: int) -> int:
        found = 0
        for stage in stages:
            if isinstance(stage, Run):
                found += times * next(pieces)
            elif isinstance(stage, HostLoop):
                found += total(stage.body, int(next(counts)))
        return found

    return total(plan.stages, 1)
