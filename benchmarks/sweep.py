"""How long a sweep takes: 100 variants of a chip for one decoder layer of SmolLM2-135M, on all cores.

Usage: python benchmarks/sweep.py [--jobs N] [--csv PATH]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from programs import Built, smollm2_decode
from rich.console import Console
from rich.table import Table

import lpu_jax

TARGET_SECONDS = 60

FIELDS: dict[str | tuple[str, ...], list[Any]] = {
    "num_slices": [32, 44, 56, 72, 88],
    ("num_planes", "num_mxm_queues_per_hemisphere"): [(1, 3), (2, 6), (3, 9), (4, 12)],
    "mxm_accumulate_cycles": [10, 16, 22, 28, 34],
}
"""5 * 4 * 5 = 100 variants: more SRAM, more planes, another accumulator path."""


def decoder_layer() -> Built:
    """One token through one layer at a context of 512; a vocabulary of one vector leaves next to nothing around it."""
    return smollm2_decode(1, 512, vocab_size=320)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=-1, metavar="N", help="processes; -1 is one for each core")
    parser.add_argument("--csv", type=Path, metavar="PATH", help="write the rows to a file")
    options = parser.parse_args()
    function, arguments = decoder_layer()
    start = time.perf_counter()
    frame = lpu_jax.sweep(function, arguments, fields=FIELDS, num_jobs=options.jobs)
    seconds = time.perf_counter() - start
    if options.csv:
        frame.to_csv(options.csv, index=False)
    best = frame[lpu_jax.pareto_front(frame)]
    columns = ["num_slices", "num_planes", "mxm_accumulate_cycles", "cycles", "bounded_by", "sram_capacity_bytes"]
    table = Table(*columns, title="smallest cycles for the SRAM they need")
    for values in best[columns].astype(str).itertuples(index=False):
        table.add_row(*values)
    Console().print(table)
    refused = int(frame["error"].notna().sum())
    met = "met" if seconds <= TARGET_SECONDS else "NOT met"
    print(f"{len(frame)} variants ({refused} refused) in {seconds:.1f} s; target {TARGET_SECONDS} s: {met}")


if __name__ == "__main__":
    main()
