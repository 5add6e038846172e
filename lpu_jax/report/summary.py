"""`Report`: what one run of a program costs, as numbers; `profile` makes one next to a result."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from lpu_jax.lowering.analysis.dependency_bound import Link
from lpu_jax.report import exports, printing
from lpu_jax.report.assumptions import assumptions_of
from lpu_jax.report.costs import Costs, measure
from lpu_jax.report.events import IntArray, program_rows
from lpu_jax.report.host import HostCosts, host_costs, pcie_seconds
from lpu_jax.report.movement import DataMovement
from lpu_jax.report.timeline import unit_timeline
from lpu_jax.report.tree import Node
from lpu_jax.runtime.progress import progress
from lpu_jax.runtime.widths import SumWidth
from lpu_jax.transform import LpuFunction, lpu

if TYPE_CHECKING:
    import pandas
    from rich.console import Group

    from lpu_jax.stages import Compiled


_ACCUMULATORS = {
    "exact": "exact sums of products, rounded once to fp32 or int32 when they are read",
    "tile": "exact sums within a pass of the MXM, rounded once to fp32; these are added in fp32, in order",
    "float32": "as on the chip for cycles; values are XLA's own float32 products",
}
"""How sums are kept, by mode of accumulation."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """The cost of one run of a program on one chip.

    Cycles are those of the program, a fact; seconds are cycles / clock_hz. PCIe is apart: arguments that are not
    resident go in before the first cycle, results come out after the last, and each way takes
    pcie_latency_seconds + bytes / pcie_bytes_per_second.

    Invariants:
      cycles >= max(resource_bound_cycles, dependency_bound_cycles) up to the skew; 0 <= utilization[unit] <= 1
      total_seconds == seconds + pcie_in_seconds + pcie_out_seconds without a part for the host
      tree.wall_cycles == cycles; every unit's busy_cycles + idle_cycles == cycles

    Attributes:
      bounded_by: the resource (or "dependencies") whose bound is the largest.
      bound_ratio: cycles / the larger bound.
      bounds: cycles that each resource alone would need, every unit of it busy all the time.
      dependency_chain: the longest chain of latencies, the links of dependency_bound_cycles.
      utilization: share of the cycles in which a unit works, per kind of unit.
      sram_map: (name, hemisphere, bytes) of what is in SRAM, largest first.
      model_flops: operations of the function as written, a multiply-accumulate is two.
      accumulators: how sums are kept.
      sum_widths: bits that a lossless accumulator needs for the values of this run, by product; only from `profile`,
        as the values decide.
      costs: what the program's rows say: blocks, binding chain, units, bytes, MACs, SRAM and all of it over time.
      assumptions: what the figures rest on where nothing is published.
      host: loops that the host starts and calls that it computes, None if there are none. All other figures are those
        of a run in which every such loop makes one turn; cycles_taken are those of this run.
      compiled: the program that the report is of; pickles, copies and exports are without it.
    """

    name: str
    chip: str
    clock_hz: int
    cycles: int
    resource_bound_cycles: int
    dependency_bound_cycles: int
    bounded_by: str
    bound_ratio: float
    bounds: dict[str, int]
    dependency_chain: tuple[Link, ...]
    utilization: dict[str, float]
    instructions: int
    sram_used_bytes: int
    sram_capacity_bytes: int
    sram_map: tuple[tuple[str, str, int], ...]
    pcie_in_bytes: int
    pcie_out_bytes: int
    pcie_in_seconds: float
    pcie_out_seconds: float
    model_flops: int
    accumulators: str
    costs: Costs
    assumptions: tuple[str, ...]
    sum_widths: tuple[SumWidth, ...] = ()
    host: HostCosts | None = None
    compiled: Compiled | None = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def cycles_taken(self) -> int:
        """Cycles with the turns that the loops made; `cycles` if the host has no part in the run."""
        return self.host.cycles_taken if self.host else self.cycles

    @property
    def seconds(self) -> float:
        """Time on the chip."""
        return self.cycles / self.clock_hz

    @property
    def microseconds(self) -> float:
        """Time on the chip in microseconds."""
        return self.cycles * 1_000_000 / self.clock_hz

    @property
    def total_seconds(self) -> float:
        """Time on the chip and on PCIe, one after the other."""
        middle = self.host.pcie_seconds if self.host else 0.0
        return self.cycles_taken / self.clock_hz + self.pcie_in_seconds + self.pcie_out_seconds + middle

    @property
    def tree(self) -> Node:
        """Wall and busy cycles by module path and source line."""
        return self.costs.tree

    @property
    def data_movement(self) -> DataMovement:
        """Cycles that belong to ops which only move data, their share, and each kind of move by op."""
        return self.costs.data_movement

    def to_dict(self, *, detail: bool = True) -> dict[str, Any]:
        """All fields and derived times, ready for JSON; without detail only what is a number or a short list."""
        long = ("costs", "dependency_chain", "sum_widths", "host", "compiled")
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in long}
        found = {**fields, "microseconds": self.microseconds, "total_seconds": self.total_seconds}
        if self.host is not None:
            found["host"] = dataclasses.asdict(self.host)
        if detail:
            found["dependency_chain"] = [dataclasses.asdict(link) for link in self.dependency_chain]
            found["costs"] = self.costs.to_dict()
            found["sum_widths"] = [
                {**dataclasses.asdict(width), "is_too_wide": width.is_too_wide} for width in self.sum_widths
            ]
        return found

    def to_json(self) -> str:
        """The report as one JSON object."""
        return json.dumps(self.to_dict(), indent=2)

    def records(self, what: str = "tree") -> list[dict[str, Any]]:
        """One part of the report as flat records.

        Args:
          what: "tree" (modules and source lines, parents first), "blocks", "units", "timeline", "tensors", "chain" (the
            binding chain), "dependencies" (the chain of the dependency bound) or "moves" (ops that only move data).

        Raises:
          ValueError: another word.
        """
        return exports.records(self, what)

    def to_csv(self, what: str = "tree") -> str:
        """One part of the report, as in `records`, as comma-separated text with a header."""
        return printing.csv_text(self.records(what))

    def to_pandas(self, what: str = "tree") -> pandas.DataFrame:
        """One part of the report, as in `records`, as a data frame.

        Raises:
          ImportError: pandas is not installed.
          ValueError: an unknown part.
        """
        return printing.data_frame(self.records(what))

    def units_over_time(self, num_bins: int = 100) -> tuple[IntArray, dict[str, IntArray]]:
        """(edges of the bins in cycles [bins + 1], busy cycles in each bin [bins] by name of the unit).

        Raises:
          ValueError: the report was pickled, so the program is no longer with it.
        """
        return unit_timeline(program_rows(self._program().compiled_graph.program), self.cycles, num_bins)

    def tables(self) -> Group:
        """The report for a rich console."""
        return printing.tables(self)

    def __str__(self) -> str:
        """The tables as plain text."""
        return printing.plain_text(self)

    def to_html(self) -> str:
        """The tables as a piece of HTML; `write_html` makes a whole page, with timeline and floor plan."""
        return printing.html(self)

    _repr_html_ = to_html

    def write_html(self, path: str | os.PathLike[str]) -> None:
        """Writes the page of the program: see `Compiled.write_html`.

        Raises:
          ValueError: the report was pickled, so the program is no longer with it.
        """
        from lpu_jax.page import write_html  # needs the compiler's text forms

        write_html(self._program(), path, self)

    def _program(self) -> Compiled:
        if self.compiled is None:
            raise ValueError(f"the report of {self.name!r} was pickled and has lost its program; make it anew")
        return self.compiled

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the program, which holds functions that cannot be pickled."""
        return {**self.__dict__, "compiled": None}


def make_report(compiled: Compiled, trip_counts: Sequence[int] | None = None) -> Report:
    """The report of a compiled function; trip_counts: turns of its loops of unknown length, one each if None."""
    chip, costs = compiled.traced.options.chip, compiled.compiled_graph.cost_analysis(compiled.traced.moved_bytes())
    memory = compiled.memory_analysis()
    sizes: dict[tuple[str, str], int] = {}
    for name, hemisphere, size, _ in memory.memory_map:
        key = (name, hemisphere)
        sizes[key] = sizes.get(key, 0) + size
    received, sent = compiled.traced.moved_bytes()
    utilization: Any = costs["utilization"]
    bounds: Any = costs["resource_bounds"]
    tensor_names = [name for name, *_ in memory.memory_map]
    with progress("Measuring"):
        measured = measure(compiled.compiled_graph, name=compiled.traced.fun_name, tensor_names=tensor_names)
    return Report(
        name=compiled.traced.fun_name,
        chip=chip.name,
        clock_hz=chip.clock_hz,
        cycles=compiled.cycles,
        resource_bound_cycles=int(costs["resource_bound_cycles"]),  # type: ignore[call-overload]
        dependency_bound_cycles=int(costs["dependency_bound_cycles"]),  # type: ignore[call-overload]
        bounded_by=str(costs["bounded_by"]),
        bound_ratio=float(costs["bound_ratio"]),  # type: ignore[arg-type]
        dependency_chain=compiled.compiled_graph.dependency_bound.chain,
        bounds={unit: int(bound) for unit, bound in bounds.items()},
        utilization={unit: float(share) for unit, share in utilization.items()},
        instructions=compiled.program.num_instructions,
        sram_used_bytes=memory.sram_bytes,
        sram_capacity_bytes=memory.sram_capacity_bytes,
        sram_map=tuple((n, h, s) for (n, h), s in sorted(sizes.items(), key=lambda item: (-item[1], item[0]))),
        pcie_in_bytes=received,
        pcie_out_bytes=sent,
        pcie_in_seconds=pcie_seconds(chip, received),
        pcie_out_seconds=pcie_seconds(chip, sent),
        model_flops=int(compiled.lowered.cost_analysis()["flops"]),
        accumulators=_ACCUMULATORS[compiled.traced.options.accumulation],
        costs=measured,
        assumptions=assumptions_of(compiled.program, tuple(measured.macs)),
        host=host_costs(compiled.compiled_graph, trip_counts),
        compiled=compiled,
    )


def profile(fun: Callable[..., Any]) -> Callable[..., tuple[Any, Report]]:
    """Makes a function return (its result, a `Report`), which also tells how wide the sums of this call are.

    `report.write_html(path)` shows the program in a browser.

    Args:
      fun: an `LpuFunction`; any other function is put on the default chip first.
    """
    function = fun if isinstance(fun, LpuFunction) else lpu(fun)

    def profiled(*args: Any, **kwargs: Any) -> tuple[Any, Report]:
        lowered = function.lower(*args, **kwargs)
        compiled = lowered.compile()
        leaves = function.leaves(*args, **kwargs)
        result, trip_counts = lowered.run_counted(leaves)
        report = dataclasses.replace(make_report(compiled, trip_counts), sum_widths=compiled.sum_widths(leaves))
        return result, report

    return profiled
