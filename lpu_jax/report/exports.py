"""A report as flat records, one kind of row at a time: what CSV text and data frames are made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lpu_jax.report.costs import Costs
from lpu_jax.report.events import UNIT_KINDS
from lpu_jax.report.tree import tree_records

if TYPE_CHECKING:
    from lpu_jax.report.summary import Report

Record = dict[str, Any]


def records(report: Report, what: str) -> list[Record]:
    """Rows of one kind.

    Args:
      report: the report.
      what: a key of KINDS.

    Raises:
      ValueError: another word.
    """
    if what not in KINDS:
        raise ValueError(f"{what!r} is no part of a report; use one of {', '.join(KINDS)}")
    return KINDS[what](report)


def _timeline(costs: Costs) -> list[Record]:
    """One row per bin: shares of busy units, mean streams in use, most bytes of SRAM."""
    line = costs.timeline
    sides = [
        (d, h, f"streams_{a}ward_{b}") for d, a in enumerate(("east", "west")) for h, b in enumerate(("west", "east"))
    ]
    return [
        {
            "first_cycle": int(line.edges[i]),
            "end_cycle": int(line.edges[i + 1]),
            **{f"use_{key(kind)}": float(line.utilization[k, i]) for k, kind in enumerate(UNIT_KINDS)},
            **{name: float(line.streams[d, h, i]) for d, h, name in sides},
            "sram_bytes": int(line.sram_bytes[i]),
        }
        for i in range(len(line.edges) - 1)
    ]


def key(kind: str) -> str:
    """A kind of unit as a name of a column."""
    return kind.replace(" ", "_")


def _plain(rows: Any) -> list[Record]:
    return [dataclasses.asdict(row) for row in rows]


KINDS: dict[str, Callable[[Report], list[Record]]] = {
    "tree": lambda report: tree_records(report.tree),
    "blocks": lambda report: _plain(report.costs.blocks),
    "units": lambda report: _plain(report.costs.units),
    "timeline": lambda report: _timeline(report.costs),
    "tensors": lambda report: _plain(report.costs.tensors),
    "chain": lambda report: _plain(report.costs.chain),
    "dependencies": lambda report: _plain(report.dependency_chain),
    "moves": lambda report: _plain(report.data_movement.moves),
}
"""Part of a report: its rows. Modules and lines; barrier, loops and the rest; units; bins of time; storages in SRAM;
the binding chain of the schedule; the chain of the dependency bound; ops that only move data."""
