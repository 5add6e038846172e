"""`profile` and its `Report`: what one run of a program costs, as numbers, as a table and as JSON."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.table import Table

from lpu_jax.runtime.chip import ChipSpec
from lpu_jax.transform import LpuFunction, lpu

if TYPE_CHECKING:
    from lpu_jax.stages import Compiled

_MAX_MAP_ROWS = 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """The cost of one run of a program on one chip.

    Cycles are those of the program, a fact; seconds are cycles / clock_hz. PCIe is apart: arguments that are not
    resident go in before the first cycle, results come out after the last, and each way takes
    pcie_latency_seconds + bytes / pcie_bytes_per_second.

    Invariants:
      cycles >= max(resource_bound_cycles, dependency_bound_cycles) up to the skew; 0 <= utilization[unit] <= 1
      total_seconds == seconds + pcie_in_seconds + pcie_out_seconds

    Attributes:
      bounded_by: the resource (or "dependencies") whose bound is the largest.
      utilization: share of the cycles in which a unit works, per kind of unit.
      sram_map: (name, hemisphere, bytes) of what is in SRAM, largest first.
      assumptions: what the figures rest on where nothing is published.
    """

    name: str
    chip: str
    clock_hz: int
    cycles: int
    resource_bound_cycles: int
    dependency_bound_cycles: int
    bounded_by: str
    utilization: dict[str, float]
    instructions: int
    sram_used_bytes: int
    sram_capacity_bytes: int
    sram_map: tuple[tuple[str, str, int], ...]
    pcie_in_bytes: int
    pcie_out_bytes: int
    pcie_in_seconds: float
    pcie_out_seconds: float
    assumptions: tuple[str, ...]

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
        return self.seconds + self.pcie_in_seconds + self.pcie_out_seconds

    def to_dict(self) -> dict[str, Any]:
        """All fields and derived times, ready for JSON."""
        return {
            **dataclasses.asdict(self),
            "microseconds": self.microseconds,
            "total_seconds": self.total_seconds,
        }

    def to_json(self) -> str:
        """The report as one JSON object."""
        return json.dumps(self.to_dict(), indent=2)

    def tables(self) -> Group:
        """The report for a rich console."""
        return Group(self._summary(), self._sram_table(), "\n".join(f"* {text}" for text in self.assumptions))

    def __str__(self) -> str:
        """The tables as plain text."""
        text = io.StringIO()
        Console(file=text, width=100, color_system=None).print(self.tables())
        return text.getvalue().rstrip()

    def _summary(self) -> Table:
        table = Table(title=f"{self.name} on {self.chip}", show_header=False, title_justify="left")
        table.add_column("what")
        table.add_column("value", justify="right")
        table.add_column("unit")
        table.add_row("cycles", f"{self.cycles:,}", f"{self.microseconds:,.2f} us at {self.clock_hz / 1e6:,.0f} MHz")
        table.add_row("resource bound", f"{self.resource_bound_cycles:,}", "cycles")
        table.add_row("dependency bound", f"{self.dependency_bound_cycles:,}", "cycles")
        table.add_row("bounded by", self.bounded_by, "")
        for unit, share in self.utilization.items():
            table.add_row(f"utilisation {unit}", f"{share:.1%}", "of the cycles")
        table.add_row("instructions", f"{self.instructions:,}", "repeats counted one by one")
        table.add_row("SRAM", f"{self.sram_used_bytes:,}", f"of {self.sram_capacity_bytes:,} bytes")
        for way, size, seconds in (
            ("PCIe in", self.pcie_in_bytes, self.pcie_in_seconds),
            ("PCIe out", self.pcie_out_bytes, self.pcie_out_seconds),
        ):
            table.add_row(way, f"{size:,}", f"bytes, {seconds * 1e6:,.2f} us, not in the cycles")
        return table

    def _sram_table(self) -> Table:
        table = Table(title="SRAM", title_justify="left")
        table.add_column("what")
        table.add_column("hemisphere")
        table.add_column("bytes", justify="right")
        for name, hemisphere, size in self.sram_map[:_MAX_MAP_ROWS]:
            table.add_row(name, hemisphere, f"{size:,}")
        rest = self.sram_map[_MAX_MAP_ROWS:]
        if rest:
            table.add_row(f"{len(rest)} more, not all at one time", "", f"{sum(row[2] for row in rest):,}")
        return table


def pcie_seconds(chip: ChipSpec, num_bytes: int) -> float:
    """Time of one transfer; nothing to send costs nothing."""
    return chip.pcie_latency_seconds + num_bytes / chip.pcie_bytes_per_second if num_bytes else 0.0


def make_report(compiled: Compiled) -> Report:
    """The report of a compiled function."""
    chip, costs = compiled.traced.options.chip, compiled.compiled_graph.cost_analysis()
    memory = compiled.memory_analysis()
    sizes: dict[tuple[str, str], int] = {}
    for name, hemisphere, size, _ in memory.memory_map:
        key = (name, hemisphere)
        sizes[key] = sizes.get(key, 0) + size
    received, sent = compiled.traced.moved_bytes()
    utilization: Any = costs["utilization"]
    return Report(
        name=compiled.traced.fun_name,
        chip=chip.name,
        clock_hz=chip.clock_hz,
        cycles=compiled.cycles,
        resource_bound_cycles=int(costs["resource_bound_cycles"]),  # type: ignore[call-overload]
        dependency_bound_cycles=int(costs["dependency_bound_cycles"]),  # type: ignore[call-overload]
        bounded_by=str(costs["bounded_by"]),
        utilization={unit: float(share) for unit, share in utilization.items()},
        instructions=compiled.program.num_instructions,
        sram_used_bytes=memory.sram_bytes,
        sram_capacity_bytes=memory.sram_capacity_bytes,
        sram_map=tuple((n, h, s) for (n, h), s in sorted(sizes.items(), key=lambda item: (-item[1], item[0]))),
        pcie_in_bytes=received,
        pcie_out_bytes=sent,
        pcie_in_seconds=pcie_seconds(chip, received),
        pcie_out_seconds=pcie_seconds(chip, sent),
        assumptions=(
            *(f"{chip.name}: {text}" for text in chip.assumptions),
            f"clock {chip.clock_hz / 1e6:,.0f} MHz; cost rules where nothing is published: docs/assumptions.md",
            "resident arguments are in SRAM before the first cycle; loading them is not counted",
        ),
    )


def profile(fun: Callable[..., Any]) -> Callable[..., tuple[Any, Report]]:
    """Makes a function return (its result, a `Report`).

    Args:
      fun: an `LpuFunction`; any other function is put on the default chip first.
    """
    function = fun if isinstance(fun, LpuFunction) else lpu(fun)

    def profiled(*args: Any, **kwargs: Any) -> tuple[Any, Report]:
        report = function.lower(*args, **kwargs).compile().report()
        return function(*args, **kwargs), report

    return profiled
