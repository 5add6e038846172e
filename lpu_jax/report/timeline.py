"""Use over time: units, streams and SRAM in bins of equal width, loops unrolled by arithmetic."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lpu_jax.report.events import UNIT_KINDS, Events, IntArray, Rows, unroll
from lpu_jax.report.values import stream_values, streams_in_use
from lpu_jax.runtime.program import Block

FloatArray = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False)
class Timeline:
    """A program in bins edges[i] .. edges[i + 1], in cycles.

    busy [kinds, bins]: busy unit cycles in a bin. utilization: the same over units x cycles of the bin, 0..1.
    streams [directions, hemispheres, bins]: streams in use, mean over the cycles of a bin (direction 0 is eastward,
    hemisphere 0 west). peak_streams [directions, hemispheres]. sram_bytes [bins]: most bytes in use in a bin.
    """

    edges: IntArray
    busy: IntArray
    utilization: FloatArray
    streams: FloatArray
    peak_streams: IntArray
    sram_bytes: IntArray


def timeline(rows: Rows, end_cycle: int, num_bins: int, sram: Sequence[tuple[int, int, int]]) -> Timeline:
    """Bins a program.

    Args:
      rows: the decoded program.
      end_cycle: cycles of the program; the bins cover 0 .. end_cycle.
      num_bins: number of bins, at most end_cycle of them are made.
      sram: (first cycle, cycle after the last one, bytes) of every tensor.
    """
    edges = bin_edges(end_cycle, num_bins)
    widths = np.diff(edges)
    busy = np.zeros((len(UNIT_KINDS), len(widths)), np.int64)
    streams = np.zeros((2, 2, len(widths)), np.int64)
    peaks = np.zeros((2, 2), np.int64)
    for block in rows.program.blocks:
        events = unroll(rows, block)
        busy += _binned(busy_units(events), block, edges)
        use = streams_in_use(events, stream_values(events))
        streams += _binned(use.reshape(4, -1), block, edges).reshape(2, 2, -1)
        peaks = np.maximum(peaks, use.max(axis=2, initial=0))
    num_units = np.bincount(rows.units.kind[rows.units.kind >= 0], minlength=len(UNIT_KINDS))
    capacity = np.maximum(num_units[:, None] * widths[None], 1)
    return Timeline(edges, busy, busy / capacity, streams / widths, peaks, sram_peaks(edges, sram))


def bin_edges(end_cycle: int, num_bins: int) -> IntArray:
    """Edges of at most num_bins bins of equal width, as far as cycles are whole, from 0 to end_cycle."""
    return np.unique(np.linspace(0, end_cycle, min(num_bins, max(1, end_cycle)) + 1).astype(np.int64))


def unit_timeline(rows: Rows, end_cycle: int, num_bins: int) -> tuple[IntArray, dict[str, IntArray]]:
    """Every unit on its own.

    Returns:
      (edges [bins + 1], busy cycles in each bin [bins] by name of the unit). Cost: O(rows * bins * trips).
    """
    edges = bin_edges(end_cycle, num_bins)
    busy = np.zeros((len(rows.units.names), len(edges) - 1), np.int64)
    for block in rows.program.blocks:
        chosen = block.row_start + np.flatnonzero(rows.kind[block.row_start : block.row_stop] >= 0)
        begin = rows.start[chosen] + rows.work_offset[chosen] + block.start_cycle
        done = np.zeros((len(chosen), len(edges)), np.int64)
        for shift in block.period_cycles * np.arange(block.num_iterations):
            done += _busy_before(rows, chosen, begin + shift, edges)
        inside = np.diff(done, axis=1)
        for number in range(int(rows.num_ports[chosen].max(initial=0))):
            some = rows.num_ports[chosen] > number
            np.add.at(busy, rows.port[chosen[some]] + number * rows.port_stride[chosen[some]], inside[some])
    named = {name: busy[port] for port, name in enumerate(rows.units.names) if rows.units.kind[port] >= 0}
    return edges, named


def _busy_before(rows: Rows, chosen: IntArray, begin: IntArray, moments: IntArray) -> IntArray:
    """Cycles in which rows that begin work at `begin` have worked before some moments, [rows, moments]."""
    interval, duration, count = rows.interval[chosen], rows.duration[chosen], rows.count[chosen]
    since = np.maximum(moments[None] - begin[:, None], 0)
    whole = np.minimum(since // interval[:, None], count[:, None])
    part = np.where(whole < count[:, None], np.minimum(since - whole * interval[:, None], duration[:, None]), 0)
    # A repetition may still work when the next one begins only if units overlap, which the machine refuses.
    found: IntArray = whole * duration[:, None] + part
    return found


def busy_units(events: Events) -> IntArray:
    """Units at work in each cycle of an iteration, [kinds, length_cycles]."""
    rows, length = events.rows, events.length_cycles + 1
    kind = rows.kind[events.row]
    some = kind >= 0
    row, kind = events.row[some], kind[some]
    start = events.cycle[some] + rows.work_offset[row]
    stop = np.minimum(start + rows.duration[row], length - 1)
    size = len(UNIT_KINDS) * length
    steps = np.bincount(kind * length + start, rows.num_ports[row], size)
    steps -= np.bincount(kind * length + stop, rows.num_ports[row], size)
    used: IntArray = np.cumsum(steps.reshape(len(UNIT_KINDS), length), axis=1)[:, : length - 1].astype(np.int64)
    return used


def _binned(per_cycle: IntArray, block: Block, edges: IntArray) -> IntArray:
    """Sums of a quantity of one iteration, [q, length], over the bins of the whole program, [q, bins]."""
    length = per_cycle.shape[1]
    total = np.zeros((len(per_cycle), length + 1), np.int64)
    np.cumsum(per_cycle, axis=1, out=total[:, 1:])
    iterations = np.arange(block.num_iterations)
    elapsed = edges[:, None] - block.start_cycle - iterations[None] * block.period_cycles
    until = np.stack([row[np.clip(elapsed, 0, length)].sum(axis=1) for row in total])
    binned: IntArray = np.diff(until, axis=1)
    return binned


def sram_peaks(edges: IntArray, sram: Sequence[tuple[int, int, int]]) -> IntArray:
    """Most bytes in use in each bin."""
    cycles, level = sram_steps(sram)
    first = np.searchsorted(cycles, edges[:-1], side="right") - 1  # the level that a bin starts with
    stop = np.searchsorted(cycles, edges[1:], side="left")
    return np.array(
        [level[max(a, 0) : max(b, a + 1)].max(initial=0) for a, b in zip(first, stop, strict=True)], np.int64
    )


def sram_steps(sram: Sequence[tuple[int, int, int]]) -> tuple[IntArray, IntArray]:
    """(cycles, bytes in use from that cycle on), cycles in order."""
    table = np.array(sram, np.int64).reshape(-1, 3)
    cycles, inverse = np.unique(np.concatenate([table[:, 0], table[:, 1]]), return_inverse=True)
    change = np.zeros(len(cycles), np.int64)
    np.add.at(change, inverse, np.concatenate([table[:, 2], -table[:, 2]]))
    return cycles, np.cumsum(change)
