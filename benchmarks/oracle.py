"""How far list schedules are from the best that OR-Tools CP-SAT finds for small kernels, with the same templates.

The model: a start per tile op and a base per stream or ALU it asks for; fixed resources exclude each other in time,
flexible ones in time and base; dependences are those of single vectors. The solver starts from the list schedule, and
what it finds passes the verifier and is emitted, so that its cycles are those of a program.

Usage: python benchmarks/oracle.py [--seconds 20] [--only NAME]    (needs the extra `oracle`)
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from ortools.sat.python import cp_model
from programs import Built, Shape, chain, layer_norm
from rich.console import Console
from rich.table import Table

import lpu_jax
from lpu_jax.lowering.passes.emit import emit
from lpu_jax.lowering.passes.place import AllocatedGraph
from lpu_jax.lowering.passes.schedule import (
    Schedule,
    ScheduledBlock,
    ScheduledOp,
    Tables,
    block_cycles,
)
from lpu_jax.lowering.passes.schedule_checks import verify_schedule
from lpu_jax.lowering.passes.template import Access, Flexible, Key, stream_direction
from lpu_jax.runtime.machine import completion_cycles


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """Cycles of a program: as list scheduled, the best found, and the solver's lower bound for its blocks."""

    listed: int
    found: int
    bound: int
    optimal: bool


def gemv(inner: int, columns: int) -> Built:
    """int8 [1, inner] x [inner, columns] with resident weights."""
    function = lpu_jax.lpu(lambda w, x: jnp.dot(x, w, preferred_element_type=jnp.int32), resident_argnums=0)
    return function, (Shape((inner, columns), jnp.int8), Shape((1, inner), jnp.int8))


def kernels() -> dict[str, Callable[[], Built]]:
    """Small programs of every kind."""
    rows = Shape((4, 320), jnp.float32)
    return {
        "chain 8": lambda: chain(8, 64, 640),
        "gemv 960x1280": lambda: gemv(960, 1280),
        "layernorm 4x320": lambda: layer_norm(4, 320),
        "softmax 4x320": lambda: (lpu_jax.lpu(lambda x: jax.nn.softmax(x, axis=-1)), (rows,)),
    }


def waits(allocated: AllocatedGraph, first: ScheduledOp, second: ScheduledOp) -> int | None:
    """Fewest cycles from time zero of `first` to that of a later op; None if nothing orders them."""
    write = allocated.tiles.chip.mem_write_cycles
    found: list[int] = []

    def collect(before: list[Access], after: list[Access], delay: int) -> None:
        for a in before:
            for b in after:
                if a.storage == b.storage:
                    latest = dict[int, int]()
                    for vector, cycle in zip(a.vectors.tolist(), a.cycles.tolist(), strict=True):
                        latest[vector] = max(cycle, latest.get(vector, cycle))
                    pairs = zip(b.vectors.tolist(), b.cycles.tolist(), strict=True)
                    found.extend(latest[v] + delay - cycle for v, cycle in pairs if v in latest)
                elif after is second.template.writes and a.storage in allocated.reuses[b.storage]:
                    gap = delay if before is first.template.reads else delay + 1
                    found.append(int(a.cycles.max()) + gap - int(b.cycles.min()))

    collect(first.template.writes, second.template.reads, write)
    collect(first.template.writes, second.template.writes, write)
    collect(first.template.reads, second.template.writes, 1)
    return max(found, default=None)


def improve(allocated: AllocatedGraph, block: ScheduledBlock, seconds: float) -> tuple[ScheduledBlock, int, bool]:
    """The best schedule of a block that is found in time, a lower bound of its cycles, and whether it is the best."""
    chip = allocated.tiles.chip
    model, tables = cp_model.CpModel(), Tables(chip)
    horizon = block.period_cycles
    fixed: dict[Key, list[cp_model.IntervalVar]] = {}
    areas: dict[Key, tuple[list[cp_model.IntervalVar], list[cp_model.IntervalVar]]] = {}
    starts, bases = [], []
    end = model.new_int_var(0, horizon, "end")
    model.add_hint(end, horizon)
    for number, op in enumerate(block.ops):
        start = model.new_int_var(-op.template.first_cycle(), horizon, f"start{number}")
        model.add_hint(start, op.time_zero)
        starts.append(start)
        model.add(end >= start + op.template.last_cycle() + chip.mem_write_cycles)
        for key, first, stop in op.template.fixed:
            fixed.setdefault(key, []).append(model.new_fixed_size_interval_var(start + first, stop - first, ""))
        bases.append([])
        for item, choice in zip(op.template.flexible, op.chosen, strict=True):
            options = cp_model.Domain.from_values([option for option, _ in tables.pool(item)])
            base = model.new_int_var_from_domain(options, "")
            model.add_hint(base, choice)
            bases[-1].append(base)
            times, places = areas.setdefault(_pool(item), ([], []))
            times.append(model.new_fixed_size_interval_var(start + item.start, item.end - item.start, ""))
            places.append(model.new_fixed_size_interval_var(base, item.width, ""))
    for intervals in fixed.values():
        model.add_no_overlap(intervals)
    for times, places in areas.values():
        model.add_no_overlap_2d(times, places)
    for second in range(len(block.ops)):
        for first in range(second):
            wait = waits(allocated, block.ops[first], block.ops[second])
            if wait is not None:
                model.add(starts[second] >= starts[first] + wait)
    model.minimize(end)
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = seconds
    solver.parameters.num_workers = os.cpu_count() or 1
    status = solver.solve(model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return block, int(np.ceil(solver.best_objective_bound)), False
    ops = [
        dataclasses.replace(op, time_zero=solver.value(start), chosen=tuple(map(solver.value, chosen)))
        for op, start, chosen in zip(block.ops, starts, bases, strict=True)
    ]
    better = dataclasses.replace(block, ops=tuple(ops), period_cycles=block_cycles(chip, ops))
    return better, int(np.ceil(solver.best_objective_bound)), status == cp_model.OPTIMAL


def _pool(item: Flexible) -> Key:
    """Resources of one pool share an axis; streams are pooled by direction and hemisphere."""
    if item.pool == "stream":
        return "stream", stream_direction(item), item.hemisphere
    return (item.pool,) if item.pool == "alu" else (item.pool, item.hemisphere)


def solve(built: Built, seconds: float) -> Outcome:
    """Compares a program's list schedule with the best one found for its blocks."""
    function, arguments = built
    compiled = function.lower(*arguments).compile().compiled_graph
    allocated = compiled.allocated
    found = [improve(allocated, block, seconds) for block in compiled.schedule.blocks]
    plan = Schedule(allocated=allocated, blocks=tuple(block for block, _, _ in found))
    verify_schedule(plan)
    blocks = zip(compiled.schedule.blocks, found, strict=True)
    gain = sum((old.period_cycles - bound) * old.num_iterations for old, (_, bound, _) in blocks)
    return Outcome(
        listed=compiled.cycles,
        found=completion_cycles(emit(plan)),
        bound=compiled.cycles - gain,
        optimal=all(optimal for _, _, optimal in found),
    )


def main() -> None:
    """Solves and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="time limit per block")
    parser.add_argument("--only", default="", metavar="NAME")
    options = parser.parse_args()
    columns = ("kernel", "list schedule", "best found", "solver's bound", "list / best", "proven")
    table = Table(*columns, title=f"list scheduling against CP-SAT, {options.seconds:.0f} s per block, groqchip1")
    for name, build in kernels().items():
        if name.startswith(options.only):
            o = solve(build(), options.seconds)
            ratio = f"{o.listed / o.found:.3f}"
            table.add_row(name, f"{o.listed:,}", f"{o.found:,}", f"{o.bound:,}", ratio, "yes" if o.optimal else "no")
    Console().print(table)


if __name__ == "__main__":
    main()
