"""Values on streams as flights: who sends what, when, from where, and how long it is on the way."""

from __future__ import annotations

import dataclasses

import numpy as np

from lpu_jax.report.events import Events, IntArray
from lpu_jax.report.values import Values


@dataclasses.dataclass(frozen=True, eq=False)
class Flights:
    """Values that move alike, columns [n].

    Repetition k < repetitions of `row` puts a value on `width` streams from `stream` on, `first` + k * interval cycles
    after the start of an iteration, `along` hops in its direction; it is last taken `life` cycles later.
    """

    row: IntArray
    stream: IntArray
    width: IntArray
    first: IntArray
    repetitions: IntArray
    interval: IntArray
    along: IntArray
    life: IntArray

    def columns(self) -> dict[str, IntArray]:
        """Field name: column."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def flights(events: Events, values: Values) -> Flights:
    """All values of one iteration of a block; repetitions in a row with one life are one flight, so are their bytes."""
    drives = values.drives
    row, repetition = events.row[drives.event], events.repetition[drives.event]
    life = values.last_take - drives.cycle
    table = np.stack([row, drives.stream, drives.along, life, drives.cycle, repetition])
    table = table[:, np.lexsort((repetition, drives.along, drives.stream, row))]
    same = (np.diff(table[:4], axis=1) == 0).all(axis=0) & (np.diff(table[5]) == 1)
    starts = np.flatnonzero(np.concatenate([[True], ~same])) if table.shape[1] else np.zeros(0, np.int64)
    runs = np.concatenate([table[:5, starts], np.diff(starts, append=table.shape[1])[None]])
    # Rows of runs: row, stream, along, life, first, repetitions; bytes of a value differ in the stream only.
    runs = runs[:, np.lexsort((runs[1], runs[5], runs[4], runs[3], runs[2], runs[0]))]
    others = runs[[0, 2, 3, 4, 5]]
    joined = (np.diff(others, axis=1) == 0).all(axis=0) & (np.diff(runs[1]) == 1)
    starts = np.flatnonzero(np.concatenate([[True], ~joined])) if runs.shape[1] else np.zeros(0, np.int64)
    width = np.diff(starts, append=runs.shape[1])
    row, stream, along, life, first, repetitions = runs[:, starts]
    return Flights(row, stream, width, first, repetitions, events.rows.interval[row], along, life)
