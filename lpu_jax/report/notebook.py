"""A report for a notebook: the first figures, cycles by module and the use of units; all tables folded below.

Colours of text and ground are the notebook's own, so that it reads in light and dark ones.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lpu_jax.report.events import UNIT_KINDS
from lpu_jax.report.headline import headlines
from lpu_jax.report.tree import Node

if TYPE_CHECKING:
    from lpu_jax.report.summary import Report

_MAX_DEPTH, _MAX_MODULES = 3, 20
_SPARK_WIDTH, _SPARK_HEIGHT = 180, 16
_BLUE = "#3b8fd0"  # reads on white and on black; also in the style
_STYLE = """
.lpu-report{font:13px/1.45 system-ui,sans-serif}
.lpu-report .figures{display:flex;flex-wrap:wrap;gap:4px 26px;margin:6px 0 10px}
.lpu-report .figures b{display:block;font-size:17px;font-variant-numeric:tabular-nums}
.lpu-report .figures span{font-size:11px;opacity:.7}
.lpu-report .columns{display:flex;flex-wrap:wrap;gap:8px 40px;align-items:flex-start}
.lpu-report table{border-collapse:collapse;margin:0}
.lpu-report td,.lpu-report th{padding:1px 10px 1px 0;text-align:left;background:none;border:none}
.lpu-report th{font-weight:500;opacity:.7;font-size:11px}
.lpu-report .number{text-align:right;font-variant-numeric:tabular-nums}
.lpu-report .share{width:120px;padding:0}
.lpu-report .share i{display:block;height:9px;border-radius:2px;background:#3b8fd0}
.lpu-report summary{cursor:pointer;opacity:.7;margin-top:8px}
"""


def notebook_html(report: Report, tables: str) -> str:
    """A piece of HTML.

    Args:
      report: the report.
      tables: all of its tables as HTML.
    """
    title = f"<b>{html.escape(report.name)}</b> on {html.escape(report.chip)}"
    figures = "".join(
        f'<div title="{html.escape(note)}"><b>{html.escape(value)}</b><span>{html.escape(label)}</span></div>'
        for value, label, note in headlines(report)
    )
    return (
        f'<div class="lpu-report"><style>{_STYLE}</style>{title}<div class="figures">{figures}</div>'
        f'<div class="columns">{_modules(report)}{_units(report)}</div>'
        f"<details><summary>all tables</summary>{tables}</details></div>"
    )


def _modules(report: Report) -> str:
    """Modules with cycles down to a depth, in the order of the tree."""
    rows: list[Sequence[str]] = []
    left_out = 0
    for path, node in report.tree.walk():
        if not 2 <= len(path) <= _MAX_DEPTH + 1 or not node.wall_cycles or not _is_module(path, node):
            continue
        if len(rows) == _MAX_MODULES:
            left_out += 1
            continue
        share = node.wall_cycles / max(1, report.cycles)
        name = f'<span style="padding-left:{14 * (len(path) - 2)}px">{html.escape(node.name)}</span>'
        bar = f'<i style="width:{100 * share:.1f}%"></i>'
        rows.append((name, f"{node.wall_cycles:,}", f"{share:.1%}", bar))
    if left_out:
        rows.append((f"{left_out} more below", "", "", ""))
    return _table(("module", "#cycles", "#share", "share"), rows)


def _is_module(path: tuple[str, ...], node: Node) -> bool:
    return bool(node.children) or len(path) == 2


def _units(report: Report) -> str:
    """Kinds of units that work, their use and its course over time."""
    costs = report.costs
    rows = []
    for index, kind in enumerate(UNIT_KINDS):
        if busy := costs.busy_cycles[kind]:
            use = busy / (costs.num_units[kind] * max(1, report.cycles))
            rows.append((kind, f"{use:.1%}", _spark(costs.timeline.utilization[index].tolist(), kind)))
    return _table(("units", "#use", "over time"), rows)


def _spark(shares: Sequence[float], name: str) -> str:
    """A curve of shares 0..1 as a picture."""
    step = _SPARK_WIDTH / max(1, len(shares))
    points = [f"0,{_SPARK_HEIGHT}"]
    for index, share in enumerate(shares):
        height = _SPARK_HEIGHT * (1 - min(1.0, share))
        points += [f"{index * step:.1f},{height:.1f}", f"{(index + 1) * step:.1f},{height:.1f}"]
    points.append(f"{_SPARK_WIDTH},{_SPARK_HEIGHT}")
    return (
        f'<svg width="{_SPARK_WIDTH}" height="{_SPARK_HEIGHT}" role="img" aria-label="use of {html.escape(name)}">'
        f'<rect width="100%" height="100%" fill="currentColor" opacity="0.07"/>'
        f'<polygon points="{" ".join(points)}" fill="{_BLUE}"/></svg>'
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of HTML cells; heads that begin with "#" are above numbers."""
    classes = ["number" if head.startswith("#") else "share" if head == "share" else "" for head in heads]
    titles = "".join(
        f'<th class="{c}">{"" if head == "share" else head.removeprefix("#")}</th>'
        for c, head in zip(classes, heads, strict=True)
    )
    body = "".join(
        "<tr>" + "".join(f'<td class="{c}">{cell}</td>' for c, cell in zip(classes, row, strict=True)) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>"
