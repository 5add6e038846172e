"""A report as tables for rich, as HTML for notebooks, as CSV text and as a pandas frame."""

from __future__ import annotations

import csv
import io
import itertools
import operator
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from lpu_jax.report.events import UNIT_KINDS
from lpu_jax.report.notebook import notebook_html
from lpu_jax.report.tree import Node
from lpu_jax.runtime.accumulation import MAX_ACCUMULATOR_BITS

if TYPE_CHECKING:
    import pandas

    from lpu_jax.report.host import HostCosts
    from lpu_jax.report.summary import Report
    from lpu_jax.runtime.widths import SumWidth

_MAX_ROWS = 12
_MAX_TREE_DEPTH = 4
_TREE_COLUMNS = (
    ("mem", ("mem read", "mem write")),
    ("alu", ("alu",)),
    ("mxm load", ("mxm load", "mxm install")),
    ("mxm", ("mxm multiply", "mxm result")),
    ("sxm", ("permuter", "transposer", "distributor")),
)
_BARS = " ▁▂▃▄▅▆▇█"


def tables(report: Report) -> Group:
    """All tables of a report."""
    parts: list[RenderableType] = [
        _summary(report),
        *([_host(report.host)] if report.host else []),
        _blocks(report),
        _units(report),
        _streams(report),
        _tree(report),
        _chain(report),
        _dependencies(report),
        _sram(report),
    ]
    if report.sum_widths:
        parts.append(_sum_widths(report))
    return Group(*parts, *(Text(f"* {text}") for text in report.assumptions))


def plain_text(report: Report) -> str:
    """The tables as text without colours."""
    text = io.StringIO()
    Console(file=text, width=120, color_system=None).print(tables(report))
    return text.getvalue().rstrip()


def html(report: Report) -> str:
    """The report as a piece of HTML; names in the tables are escaped by rich."""
    console = Console(file=io.StringIO(), width=120, record=True)
    console.print(tables(report))
    template = '<pre style="font-family:monospace;line-height:1.2;overflow-x:auto">{code}</pre>'
    return notebook_html(report, console.export_html(inline_styles=True, code_format=template))


def csv_text(records: list[dict[str, Any]]) -> str:
    """Records with equal keys as comma-separated text."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def data_frame(records: list[dict[str, Any]]) -> pandas.DataFrame:
    """Records as a frame.

    Raises:
      ImportError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise ImportError("to_pandas needs pandas: pip install 'lpu_jax[pandas]'") from error
    return pandas.DataFrame.from_records(records)


def _table(title: str, *columns: str, header: bool = True) -> Table:
    """A table; columns whose names begin with "#" are numbers."""
    table = Table(title=title, title_justify="left", show_header=header)
    for column in columns:
        table.add_column(column.removeprefix("#"), justify="right" if column.startswith("#") else "left")
    return table


def _summary(report: Report) -> Table:
    table = _table(f"{report.name} on {report.chip}", "what", "#value", "unit", header=False)
    time = f"{report.microseconds:,.2f} us at {report.clock_hz / 1e6:,.0f} MHz"
    table.add_row("cycles", f"{report.cycles:,}", time)
    table.add_row("resource bound", f"{report.resource_bound_cycles:,}", "cycles")
    table.add_row("dependency bound", f"{report.dependency_bound_cycles:,}", "cycles")
    table.add_row("bounded by", report.bounded_by, f"{report.bound_ratio:.2f} times the larger bound")
    for unit, share in report.utilization.items():
        table.add_row(f"utilisation {unit}", f"{share:.1%}", "of the cycles")
    table.add_row("data movement alone", f"{report.data_movement.share:.1%}", "of the cycles")
    for unit, bound in report.bounds.items():
        table.add_row(f"bound {unit}", f"{bound:,}", "cycles, if nothing else were needed")
    table.add_row("instructions", f"{report.instructions:,}", "repeats counted one by one")
    for formats, amount in report.costs.macs.items():
        table.add_row("MACs", f"{amount:,}", f"{formats}; idle lanes counted")
    table.add_row("model", f"{report.model_flops:,}", "operations as written")
    table.add_row("accumulators", "", report.accumulators)
    table.add_row("SRAM", f"{report.sram_used_bytes:,}", f"of {report.sram_capacity_bytes:,} bytes")
    table.add_row(
        "one call", f"{report.total_seconds * 1e6:,.2f}", "us: PCIe in, the cycles, PCIe out, one after the other"
    )
    for way, size, seconds in (
        ("PCIe in", report.pcie_in_bytes, report.pcie_in_seconds),
        ("PCIe out", report.pcie_out_bytes, report.pcie_out_seconds),
    ):
        table.add_row(way, f"{size:,}", f"bytes, {seconds * 1e6:,.2f} us, not in the cycles")
    return table


def _host(host: HostCosts) -> Table:
    table = _table("With the host", "what", "#cycles each", "#times", "#PCIe us", "remark")
    for loop in host.loops:
        limit = f"a loop, at most {loop.max_trip_count:,} turns"
        values = (f"{loop.cycles_per_turn:,}", f"{loop.trip_count:,}", f"{loop.pcie_seconds * 1e6:,.2f}")
        table.add_row(Text(loop.name), *values, limit)
    for call in host.calls:
        moved = f"{call.bytes_out:,} bytes out, {call.bytes_in:,} in; {call.source}"
        table.add_row(Text(call.name), "", f"{call.num_calls:,}", f"{call.pcie_seconds * 1e6:,.2f}", Text(moved))
    total = (f"{host.cycles_taken:,}", "", f"{host.pcie_seconds * 1e6:,.2f}")
    table.add_row("cycles taken", *total, f"at most {host.worst_case_cycles:,} cycles")
    return table


def _blocks(report: Report) -> Table:
    table = _table("Cycles in order", "block", "#from cycle", "#trips", "#cycles each", "#cycles")
    for block in report.costs.blocks:
        values = (block.start_cycle, block.num_iterations, block.cycles_per_iteration, block.total_cycles)
        table.add_row(block.kind, *(f"{value:,}" for value in values))
    table.add_row("skew", f"{report.cycles - report.costs.skew_cycles:,}", "", "", f"{report.costs.skew_cycles:,}")
    return table


def _units(report: Report) -> Table:
    table = _table("Units", "kind", "#units", "#busy", "#of them", "#bytes in", "#bytes out", "over time")
    costs = report.costs
    for index, kind in enumerate(UNIT_KINDS):
        number, busy = costs.num_units[kind], costs.busy_cycles[kind]
        if busy:
            share = busy / (number * report.cycles)
            moved = (f"{costs.bytes_in[kind]:,}", f"{costs.bytes_out[kind]:,}")
            table.add_row(
                kind, f"{number}", f"{busy:,}", f"{share:.1%}", *moved, _bar(costs.timeline.utilization[index])
            )
    return table


def _streams(report: Report) -> Table:
    table = _table("Streams in use", "direction", "hemisphere", "#peak", "over time")
    line = report.costs.timeline
    for (d, direction), (h, side) in itertools.product(enumerate(("east", "west")), enumerate(("west", "east"))):
        table.add_row(
            f"{direction}ward",
            side,
            f"{line.peak_streams[d, h]}",
            _bar(line.streams[d, h] / report.costs.num_streams_per_direction),
        )
    return table


def _bar(shares: Any) -> str:
    """Shares 0..1 as at most 25 bars, means of neighbours; anything above nothing shows."""
    step = max(1, -(-len(shares) // 25))
    means = [sum(group) / len(group) for group in (shares[i : i + step] for i in range(0, len(shares), step))]
    return "".join(_BARS[min(8, int(mean * 8) + (mean > 0))] for mean in means)


def _tree(report: Report) -> Table:
    used = [(name, kinds) for name, kinds in _TREE_COLUMNS if any(_busy(report.tree, kinds))]
    table = _table(
        "Cycles by name; busy cycles of all units of a kind", "#cycles", "#share", *(f"#{n}" for n, _ in used)
    )
    table.columns.insert(0, Column("name", no_wrap=True, overflow="ellipsis", min_width=40))
    for path, node in report.tree.walk():
        if len(path) <= _MAX_TREE_DEPTH and (node.wall_cycles or any(node.busy_cycles)):
            share = f"{node.wall_cycles / max(1, report.cycles):.1%}"
            busy = (f"{sum(_busy(node, kinds)):,}" for _, kinds in used)
            table.add_row(Text("  " * (len(path) - 1) + node.name), f"{node.wall_cycles:,}", share, *busy)
    return table


def _busy(node: Node, kinds: tuple[str, ...]) -> list[int]:
    return [node.busy_cycles[UNIT_KINDS.index(kind)] for kind in kinds]


def _chain(report: Report) -> Table:
    """Neighbours with one name, source and reason count as one link."""
    table = _table(
        "Longest stretches of the binding chain", "name", "source", "#cycles", "#ops", "#block", "waited for"
    )
    key = operator.attrgetter("block", "name", "source", "reason")
    runs = [(names, list(links)) for names, links in itertools.groupby(report.costs.chain, key=key)]
    runs.sort(key=lambda run: run[1][0].start - run[1][-1].stop)
    for (block, name, source, reason), links in runs[:_MAX_ROWS]:
        cycles = links[-1].stop - links[0].start
        table.add_row(Text(name), Text(source), f"{cycles:,}", f"{len(links)}", f"{block}", reason)
    return table


def _dependencies(report: Report) -> Table:
    """Links of one name and source count as one."""
    table = _table("The dependency bound, longest parts of its chain", "name", "source", "#cycles", "#links")
    found: dict[tuple[str, str], list[int]] = {}
    for link in report.dependency_chain:
        found.setdefault((link.name or link.op, link.source), []).append(link.cycles)
    parts = sorted(found.items(), key=lambda item: -sum(item[1]))
    for (name, source), cycles in parts[:_MAX_ROWS]:
        table.add_row(Text(name), Text(source), f"{sum(cycles):,}", f"{len(cycles):,}")
    return table


def _sum_widths(report: Report) -> Table:
    """The widest sums; products of one name, source and format count as one."""
    table = _table("Widest sums of this call", "name", "source", "formats", "#terms", "#bits", "")
    found: dict[tuple[str, str, str], SumWidth] = {}
    for width in report.sum_widths:
        key = (width.name, width.source, f"{width.lhs_format} x {width.rhs_format}")
        found[key] = max(found.get(key, width), width, key=operator.attrgetter("bits"))
    ordered = sorted(found.items(), key=lambda item: -item[1].bits)
    for (name, source, formats), width in ordered[:_MAX_ROWS]:
        flag = f"more than the published {MAX_ACCUMULATOR_BITS}" if width.is_too_wide else ""
        table.add_row(Text(name), Text(source), formats, f"{width.num_terms:,}", f"{width.bits}", flag)
    rest = [width.is_too_wide for _, width in ordered[_MAX_ROWS:]]
    if rest:
        table.add_row(f"{len(rest)} more, {sum(rest)} of them above {MAX_ACCUMULATOR_BITS} bits", "", "", "", "", "")
    return table


def _sram(report: Report) -> Table:
    table = _table("SRAM", "what", "hemisphere", "#bytes")
    line = report.costs.timeline.sram_bytes / max(1, report.sram_capacity_bytes)
    table.add_row("in use over time", Text(_bar(line)), f"{int(report.costs.timeline.sram_bytes.max(initial=0)):,}")
    for number_format, size in sorted(report.costs.sram_formats.items()):
        table.add_row(f"all {number_format}", "", f"{size:,}")
    for name, hemisphere, size in report.sram_map[:_MAX_ROWS]:
        table.add_row(Text(name), hemisphere, f"{size:,}")
    rest = report.sram_map[_MAX_ROWS:]
    if rest:
        table.add_row(f"{len(rest)} more, not all at one time", "", f"{sum(row[2] for row in rest):,}")
    return table
