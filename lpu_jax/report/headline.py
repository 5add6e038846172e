"""The figures of a report that a reader wants first; the page and the notebook show them alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from lpu_jax.report.summary import Report


class Headline(NamedTuple):
    """A figure with its unit, what it is in a word or two, and a sentence about it."""

    value: str
    label: str
    note: str


def headlines(report: Report) -> tuple[Headline, ...]:
    """Cycles, time, distance from the bound, instructions, MACs, SRAM, and PCIe apart."""
    larger = max(report.dependency_bound_cycles, report.resource_bound_cycles)
    pcie = report.pcie_in_seconds + report.pcie_out_seconds
    return (
        Headline(f"{report.cycles:,}", "cycles", "the length of the schedule, exact on this machine model"),
        Headline(f"{report.microseconds:,.2f} µs", "on the chip", f"at {report.clock_hz / 1e6:,.0f} MHz"),
        Headline(
            f"{report.bound_ratio:.2f} x",
            "of the bound",
            f"{larger:,} cycles at least, for any schedule; bounded by {report.bounded_by}",
        ),
        Headline(f"{report.instructions:,}", "instructions", "repeats and loops counted one by one"),
        Headline(f"{sum(report.costs.macs.values()):,}", "MACs", "idle lanes counted"),
        Headline(
            f"{report.sram_used_bytes / report.sram_capacity_bytes:.1%}",
            "SRAM",
            f"{report.sram_used_bytes / 2**20:,.1f} of {report.sram_capacity_bytes / 2**20:,.1f} MiB at the peak",
        ),
        Headline(
            f"{pcie * 1e6:,.2f} µs",
            "PCIe, apart",
            f"{report.pcie_in_bytes:,} bytes in, {report.pcie_out_bytes:,} bytes out; not in the cycles",
        ),
    )
