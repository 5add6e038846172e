"""Puts the page together: template, style and scripts of this folder, and the packed data of one program."""

from __future__ import annotations

import html
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpu_jax.page.data import page_data
from lpu_jax.page.pack import pack
from lpu_jax.report.events import IntArray
from lpu_jax.report.headline import headlines
from lpu_jax.runtime.progress import progress

if TYPE_CHECKING:
    from lpu_jax.report import Report
    from lpu_jax.stages import Compiled

SCRIPTS = (
    "decode",
    "time",
    "theme",
    "density",
    "lanes",
    "timeline",
    "overview",
    "floorplan",
    "sram",
    "tree",
    "assembly",
    "tables",
    "main",
)
"""Files of script/ in the order in which the browser reads them; they share one scope."""


def write_html(compiled: Compiled, path: str | os.PathLike[str], report: Report | None = None) -> None:
    """Writes the page of a compiled function.

    Args:
      compiled: the function.
      path: the file; it is replaced if it exists.
      report: that of `compiled`, if it is at hand.

    Raises:
      OSError: the file cannot be written.
    """
    Path(path).write_text(page_text(compiled, report), encoding="utf-8")


def page_text(compiled: Compiled, report: Report | None = None) -> str:
    """The page as text. Equal programs have equal pages."""
    report = compiled.report() if report is None else report
    with progress("Writing the page"):
        return render(report, *page_data(compiled, report))


def render(report: Report, head: Mapping[str, Any], columns: Mapping[str, IntArray]) -> str:
    """The page of these data, see `page_data`."""
    scripts = "\n".join(f"<script>\n{_file(f'script/{name}.js')}</script>" for name in SCRIPTS)
    parts = {
        "title": html.escape(f"{report.name} on {report.chip}"),
        "name": html.escape(report.name),
        "chip": html.escape(report.chip),
        "style": _file("style.css"),
        "figures": figures(report),
        "data": pack(head, columns),
        "scripts": scripts,
    }
    pieces = _file("page.html").split("{{")
    return pieces[0] + "".join(parts[name] + rest for name, rest in (piece.split("}}", 1) for piece in pieces[1:]))


def figures(report: Report) -> str:
    """The head line: what a reader wants to know first, as HTML that needs no script."""
    return "".join(
        f'<div class="figure" title="{html.escape(note)}"><b>{html.escape(value)}</b>'
        f"<span>{html.escape(label)}</span></div>"
        for value, label, note in headlines(report)
    )


def _file(name: str) -> str:
    return resources.files("lpu_jax.page").joinpath(name).read_text(encoding="utf-8")
