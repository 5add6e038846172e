"""Writes docs/validation.md: every published figure that one chip can show, ours beside it.

Micro figures are measured anew, by the programs of tests/calibration; workloads come from the rows that
`benchmarks/schedule.py --json` has stored.

Usage: python benchmarks/validation.py [--check]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from programs import (
    BERT_BASE_CYCLES,
    BERT_LARGE_CYCLES,
    GEMM_COLUMNS,
    GEMM_INNER,
    GEMM_ROWS,
    RESNET_CYCLES,
    gemm_bound,
)

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests" / folder) for folder in ("runtime", "calibration")]

from calibration_programs import CHIP, Figure, geometry_figures, micro_figures  # noqa: E402

STORED, PAGE = ROOT / "benchmarks" / "schedule.json", ROOT / "docs" / "validation.md"
NUM_TARGETS = 34
HEADER = ("row", "what", "published", "ours", "ours / published", "source", "confidence", "mechanism")

RESNET_FLOOR, RESNET_BLOCK = 10_010, 533  # 4.1 GMAC and 218 MMAC (a block of 17 more) / 409,600 per cycle
RESNETS = ((12, "ResNet-50", 0), (13, "ResNet-101", 17), (13, "ResNet-152", 34))
PUSH_BUTTON_CYCLES = 1_962_000  # 459.3 images per second: 2.18 ms

_LINKS = "needs several chips: links are not built yet"
_SYSTEM = "needs several chips: a whole system of them"
_LANGUAGE = "needs several chips: the weights do not fit one, and the mapping is not published"
NOT_SHOWN: Mapping[int, str] = {
    **dict.fromkeys((18, 19, 20), _LINKS),
    **dict.fromkeys((21, 22, 23, 24), _SYSTEM),
    25: "needs several chips: the published figures are ratios of 2, 4 and 8 chips to one",
    **dict.fromkeys((26, 27, 28, 29), _LANGUAGE),
    30: "needs the host: 2 x 10 us of the 56 us are PCIe, and the sizes of the audited model are not public",
    **dict.fromkeys((31, 32), "needs several chips: latency between Groq 3 LPUs"),
    33: "needs several chips: sums over 256 Groq 3 LPUs",
    34: "no run of a chip: the vendor's formula for host and chip time together",
}
"""Targets that no table shows, each with its reason."""


def gemm_figures(rows: Mapping[str, Any]) -> Iterator[Figure]:
    """Row 11: share of the fp16 peak, 102,400 multiply-accumulates per cycle."""
    peak = CHIP.macs_per_cycle_int8 // 4
    for columns in GEMM_COLUMNS:
        cycles = _cycles(rows, f"gemm {columns}")
        work = GEMM_ROWS * GEMM_INNER * columns / peak
        ideal = work / gemm_bound(columns)
        tiles = f"tiles of 160 x 320 alone allow {ideal:.1%}"
        if cycles is not None:
            above = cycles - gemm_bound(columns)
            tiles += f"; the {above:,} cycles above that are barrier, filling, draining and the gaps between row blocks"
        yield Figure(
            row=11,
            what=f"[2304 x 4096] x [4096 x {columns}] fp16, % of peak",
            published=">= 80",
            ours=f"{work / cycles:.1%} ({cycles:,} cycles)" if cycles else _missing(rows, f"gemm {columns}"),
            ratio=None,
            source="ISCA22",
            confidence="M-H",
            mechanism=tiles,
        )


def resnet_figures(rows: Mapping[str, Any]) -> Iterator[Figure]:
    """Rows 12 and 13."""
    for row, name, blocks in RESNETS:
        yield _workload(
            row,
            f"{name}, batch 1, int8, cycles",
            RESNET_CYCLES[name.lower()],
            _cycles(rows, name.lower()),
            _missing(rows, name.lower()),
            "ABS20" if row == 12 else "ISCA20",
            "H" if row == 12 else "M-H",
            f"multiplications that fill all planes would take {RESNET_FLOOR + blocks * RESNET_BLOCK:,} cycles; ours: "
            "products of 64 to 256 channels leave most columns of a plane idle, scales of activations are found while "
            "the program runs, and batch normalisation is not folded into weights",
        )


def bert_figures(rows: Mapping[str, Any]) -> Iterator[Figure]:
    """Rows 14 to 17: the share of one chip."""
    base, layer = _cycles(rows, "bert-base"), _cycles(rows, "bert-large layer")
    base_text, layer_text = _missing(rows, "bert-base"), _missing(rows, "bert-large layer")
    yield _workload(
        14, "BERT-base, batch 1, cycles", BERT_BASE_CYCLES, base, base_text, "AF22", "H", _bounds(rows, "bert-base")
    )
    yield _workload(
        15,
        "BERT-Large, one layer of 24, cycles",
        BERT_LARGE_CYCLES // 24,
        layer,
        layer_text,
        "R2",
        "H",
        f"{_bounds(rows, 'bert-large layer')}; published: a 24th of P99 on 4 chips, which holds PCIe and links",
    )
    yield _workload(
        16,
        "6 encoders of BERT-Large on one chip, cycles",
        None,
        None if layer is None else 6 * layer,
        layer_text,
        "ISCA22",
        "M",
        "only the ratio to 4, 8 and 16 chips is published; six times the layer above",
    )
    yield _workload(
        17,
        "BERT-base, push-button, cycles",
        PUSH_BUTTON_CYCLES,
        base,
        base_text,
        "ML",
        "H",
        "published: 4 chips in a chain, with host and PCIe, not tuned; ours: one chip, no PCIe",
    )


def _workload(
    row: int, what: str, published: int | None, ours: int | None, reason: str, source: str, confidence: str, how: str
) -> Figure:
    return Figure(
        row=row,
        what=what,
        published=f"{published:,}" if published else "-",
        ours=f"{ours:,}" if ours else reason,
        ratio=ours / published if ours and published else None,
        source=source,
        confidence=confidence,
        mechanism=how,
    )


def _cycles(rows: Mapping[str, Any], name: str) -> int | None:
    cycles: int | None = rows.get(name, {}).get("cycles")
    return cycles


def _missing(rows: Mapping[str, Any], name: str) -> str:
    """Why a program has no cycles."""
    note = rows.get(name, {}).get("note", "")
    refused = [part for part in note.split("; ") if part.startswith("refused")]
    return refused[0] if refused else note or "not measured"


def _bounds(rows: Mapping[str, Any], name: str) -> str:
    """What the schedule is up against."""
    row = rows.get(name, {})
    if not row.get("cycles"):
        return "no program was measured"
    resource, dependency = row["resource_bound"], row["dependency_bound"]
    return f"busiest unit {resource:,} cycles, longest path {dependency:,}; what lies above is not broken down"


def table(figures: Sequence[Figure]) -> str:
    """Figures as a Markdown table."""
    lines = ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    for f in figures:
        ratio = "-" if f.ratio is None else f"{f.ratio:.2f}"
        cells = (str(f.row), f.what, f.published, f.ours, ratio, f.source, f.confidence, f.mechanism)
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return "\n".join(lines)


def page(micro: Sequence[Figure], stored: Mapping[str, Any]) -> str:
    """The whole page."""
    rows = stored.get("rows", {})
    workloads = [*gemm_figures(rows), *resnet_figures(rows), *bert_figures(rows)]
    missing = "\n".join(f"* row {row}: {reason}." for row, reason in sorted(NOT_SHOWN.items()))
    return f"""# Validation against published figures

Written by `python benchmarks/validation.py`; do not edit. Rows are numbered as our list of calibration targets;
sources and confidence are those of [assumptions.md](assumptions.md). Nothing is tuned to hit a total: what differs
says why.

## Micro figures

Measured on the machine by the programs of `tests/calibration`; one cycle less is refused there.

{table(micro)}

## Workloads

Cycles of compiled programs as stored in `benchmarks/schedule.json`, written by
`{stored.get("command", "-")}`. Host and PCIe are not in our cycles.

{table(workloads)}

## Not shown

{missing}
"""


def main() -> None:
    """Writes the page, or checks it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the page instead of writing it")
    options = parser.parse_args()
    text = page([*geometry_figures(), *micro_figures()], json.loads(STORED.read_text()))
    if options.check:
        sys.exit(0 if text == PAGE.read_text() else "docs/validation.md is out of date")
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
