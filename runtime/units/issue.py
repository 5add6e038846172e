"""Instruction control: queue order and barriers of a `Program`, and its events window by window."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from lpu_jax.runtime.errors import ProgramError
from lpu_jax.runtime.isa import Opcode
from lpu_jax.runtime.program import Program
from lpu_jax.runtime.units.decode import Decoded, Decoder, Event

IntArray = npt.NDArray[np.int64]

WINDOW_CYCLES = 1024
"""Cycles that are expanded at a time."""

NEVER = 2**62


@dataclasses.dataclass(slots=True, kw_only=True)
class Window:
    """Events of some cycles, sorted by (cycle, event).

    Columns [n]: cycle, event, source (index into `Decoded`), repetition, iteration, word, drive_key (register that the
    first byte of the result enters); take_start [n + 1] bounds the takes of an event in take_keys / take_keep.
    steps: (cycle, [(event, first, last + 1), ...]) of every cycle that has events.
    """

    cycle: IntArray
    event: IntArray
    source: IntArray
    repetition: IntArray
    iteration: IntArray
    word: IntArray
    drive_key: IntArray
    take_start: IntArray
    take_keys: IntArray
    take_keep: npt.NDArray[np.bool_]
    steps: list[tuple[int, list[tuple[int, int, int]]]]


def windows(program: Program, decoded: Decoded, num_slots: int, num_streams: int) -> Iterator[Window]:
    """Yields all events in order of time; memory grows with WINDOW_CYCLES, not with the program.

    num_slots, num_streams: the layout of keys, as in `Streams`.
    """
    bounds = np.array(decoded.bounds)
    starts = np.array([block.start_cycle for block in program.blocks], np.int64)
    periods = np.array([block.period_cycles for block in program.blocks], np.int64)
    iterations = _iterations(program, decoded)
    ahead = next(iterations, None)
    cursors: list[list[int]] = []  # [start cycle, iteration, next event source, end of block]
    active = np.zeros((3, 0), np.int64)  # base cycle, source, iteration
    while ahead is not None or cursors or active.shape[1]:
        waiting = [c[0] + int(decoded.cycle[c[2]]) for c in cursors]
        if ahead is not None:
            waiting.append(ahead[0] + int(decoded.cycle[ahead[2]]))
        if active.shape[1]:
            waiting.append(int(active[0].min()))
        start = min(waiting)
        stop = start + WINDOW_CYCLES
        while ahead is not None and ahead[0] < stop:
            cursors.append(ahead)
            ahead = next(iterations, None)
        parts = [active]
        for cursor in cursors:
            begin, number, first, end = cursor
            last = first + int(np.searchsorted(decoded.cycle[first:end], stop - begin))
            sources = np.arange(first, last)
            parts.append(np.stack([decoded.cycle[first:last] + begin, sources, np.full_like(sources, number)]))
            cursor[2] = last
        cursors = [cursor for cursor in cursors if cursor[2] < cursor[3]]
        active = np.concatenate(parts, axis=1)
        base, source, iteration = active
        interval = decoded.interval[source]
        # `base` is the cycle of the next repetition; `left` how many are still to come.
        block = np.searchsorted(bounds, source, side="right") - 1
        done = (base - starts[block] - iteration * periods[block] - decoded.cycle[source]) // interval
        left = decoded.count[source] - done
        here = np.clip((stop - base + interval - 1) // interval, 0, left)
        yield _expand(decoded, base, source, iteration, done, here, num_slots, num_streams)
        more = left > here
        active = np.stack([base + here * interval, source, iteration])[:, more]


def _iterations(program: Program, decoded: Decoded) -> Iterator[list[int]]:
    for number, block in enumerate(program.blocks):
        first, end = decoded.bounds[number], decoded.bounds[number + 1]
        if first == end:
            continue
        for iteration in range(block.num_iterations):
            yield [block.start_cycle + iteration * block.period_cycles, iteration, first, end]


def _expand(
    decoded: Decoded,
    base: IntArray,
    source: IntArray,
    iteration: IntArray,
    done: IntArray,
    here: IntArray,
    num_slots: int,
    num_streams: int,
) -> Window:
    """Unrolls `here` repetitions of each source, from number `done` at cycle `base` on."""
    total = int(here.sum())
    number = np.arange(total) - np.repeat(np.cumsum(here) - here, here)
    source_of = np.repeat(source, here)
    cycle = np.repeat(base, here) + number * decoded.interval[source_of]
    step = cycle * len(Event) + decoded.event[source_of]
    order = np.argsort(step, kind="stable")
    cycle, source_of = cycle[order], source_of[order]
    repetition = (number + np.repeat(done, here))[order]
    iteration_of = np.repeat(iteration, here)[order]
    word = decoded.word[source_of]
    word += decoded.word_step[source_of] * repetition + decoded.word_loop_step[source_of] * iteration_of
    diagonal = (cycle + decoded.drive_shift[source_of]) % num_slots
    counts = decoded.take_count[source_of]
    take_start = np.concatenate([[0], np.cumsum(counts.sum(axis=1))])
    flat = counts.reshape(-1)
    byte = np.arange(int(flat.sum())) - np.repeat(np.cumsum(flat) - flat, flat)
    slot = (cycle[:, None] - decoded.take_along[source_of]) % num_slots
    first_key = slot * num_streams + decoded.take_stream[source_of]
    return Window(
        cycle=cycle,
        event=decoded.event[source_of],
        source=source_of,
        repetition=repetition,
        iteration=iteration_of,
        word=word,
        drive_key=diagonal * num_streams + decoded.drive_stream[source_of],
        take_start=take_start,
        take_keys=np.repeat(first_key.reshape(-1), flat) + byte,
        take_keep=np.repeat(decoded.take_keep[source_of].reshape(-1), flat),
        steps=_steps(step[order]),
    )


def _steps(step: IntArray) -> list[tuple[int, list[tuple[int, int, int]]]]:
    edges = np.flatnonzero(np.diff(step, prepend=-1))
    last = np.append(edges[1:], len(step)).tolist()
    values = step[edges].tolist()
    steps: list[tuple[int, list[tuple[int, int, int]]]] = []
    for value, first, end in zip(values, edges.tolist(), last, strict=True):
        cycle, event = divmod(value, len(Event))
        if not steps or steps[-1][0] != cycle:
            steps.append((cycle, []))
        steps[-1][1].append((event, first, end))
    return steps


def check_ports(window: Window, decoded: Decoded, words_per_bank: int) -> tuple[str, int, int] | None:
    """Finds a unit used twice in a cycle or a bank read and written in one; returns (message, event, other event)."""
    ports = decoded.num_ports[window.source]
    events = np.repeat(np.arange(len(window.cycle)), ports)
    number = np.arange(len(events)) - np.repeat(np.cumsum(ports) - ports, ports)
    source = window.source[events]
    port = decoded.port[source] + number * decoded.port_stride[source]
    found = _twice(window.cycle[events] * decoded.num_port_ids + port, events)
    if found:
        return ("unit double-booked", *found)
    plain = np.flatnonzero(window.event <= Event.WRITE)
    banks = window.word[plain] // words_per_bank
    # Two reads or two writes of a slice were found above, so a bank that comes twice is read and written.
    found = _twice(window.cycle[plain] * (int(banks.max(initial=0)) + 1) + banks, plain)
    return ("bank conflict: read and write of one bank", *found) if found else None


def _twice(keys: IntArray, events: IntArray) -> tuple[int, int] | None:
    order = np.argsort(keys, kind="stable")
    same = np.flatnonzero(np.diff(keys[order]) == 0)
    if not len(same):
        return None
    return int(events[order[same[0] + 1]]), int(events[order[same[0]]])


# Queues -------------------------------------------------------------------------------------------------------------


def check_queues(program: Program, decoder: Decoder) -> None:
    """Refuses blocks, rows or barriers out of order; one look per row, none per iteration or repetition.

    Raises:
      ProgramError: two rows of one queue in one cycle or out of order; a SYNC without NOTIFY or whose queue issues
        before the barrier; a NOTIFY that releases no queue.
    """
    last_issue: dict[int, int] = {}
    free = 0
    for block in program.blocks:
        if block.start_cycle < free or block.num_iterations < 1 or block.period_cycles < 0:
            raise ProgramError(f"bad block: {block} must start at cycle {free} or later, and run at least once")
        free = block.start_cycle + block.num_iterations * block.period_cycles
        rows = np.arange(block.row_start, block.row_stop)
        key = program.cycle[rows].astype(np.int64) * 2**32 + program.queue[rows]
        unsorted = np.flatnonzero(np.diff(key) <= 0)
        for row in rows[unsorted[:1] + 1]:
            same = program.queue[row] == program.queue[row - 1] and program.cycle[row] == program.cycle[row - 1]
            decoder.refuse(int(row), "queue issues two rows in one cycle" if same else "rows out of order")
        by_queue = rows[np.argsort(program.queue[rows], kind="stable")]
        edges = np.flatnonzero(np.diff(program.queue[by_queue], prepend=-1))
        ends = np.append(edges[1:], len(by_queue)) - 1
        for first, last in zip(by_queue[edges].tolist(), by_queue[ends[: len(edges)]].tolist(), strict=True):
            queue, span = int(program.queue[first]), int(program.cycle[last]) - int(program.cycle[first])
            if block.num_iterations > 1 and span >= block.period_cycles:
                decoder.refuse(
                    last,
                    f"out of order: the queue's next iteration begins {block.period_cycles} cycles after its first "
                    f"row, which is {span} cycles before",
                )
            start = block.start_cycle + int(program.cycle[first])
            if start <= last_issue.get(queue, -1):
                decoder.refuse(first, f"out of order: the queue issued last at cycle {last_issue[queue]}")
            last_issue[queue] = start + span + (block.num_iterations - 1) * block.period_cycles
    _check_barriers(program, decoder)


def _check_barriers(program: Program, decoder: Decoder) -> None:
    marks = _issues(program, np.isin(program.opcode, (Opcode.SYNC, Opcode.NOTIFY)))
    if not marks:
        return
    notified = np.array(sorted(cycle for cycle, row in marks if program.opcode[row] == Opcode.NOTIFY), np.int64)
    released = set()
    parked: dict[int, list[int]] = {}
    for cycle, row in marks:
        if program.opcode[row] != Opcode.SYNC:
            continue
        which = int(np.searchsorted(notified, cycle))
        if which == len(notified):
            decoder.refuse(row, f"SYNC at cycle {cycle} without a NOTIFY at or after it")
        released.add(int(notified[which]))
        parked.setdefault(int(program.queue[row]), []).append(cycle)
    for cycle, row in marks:
        if program.opcode[row] == Opcode.NOTIFY and cycle not in released:
            decoder.refuse(row, f"NOTIFY at cycle {cycle} releases no queue")
    for generation in range(max(map(len, parked.values()), default=0)):
        since = np.full(len(decoder.queue_names), NEVER, np.int64)
        for queue, cycles in parked.items():
            since[queue] = cycles[generation] if generation < len(cycles) else NEVER
        _check_parked(program, decoder, since, notified)


def _check_parked(program: Program, decoder: Decoder, since: IntArray, notified: IntArray) -> None:
    """Refuses a row whose queue was parked at cycle `since[queue]` (NEVER if it was not) and is not yet released."""
    which = np.minimum(np.searchsorted(notified, since), len(notified) - 1)
    free = np.where(since == NEVER, -1, notified[which] + program.chip.barrier_cycles)
    for block in program.blocks:
        rows = np.arange(block.row_start, block.row_stop)
        queue = program.queue[rows]
        first = block.start_cycle + program.cycle[rows].astype(np.int64)
        period = max(block.period_cycles, 1)
        iteration = np.clip((since[queue] - first) // period + 1, 0, block.num_iterations - 1)
        issue = first + iteration * block.period_cycles
        bad = np.flatnonzero((since[queue] < issue) & (issue < free[queue]))
        for index in bad[:1]:
            decoder.refuse(
                int(rows[index]),
                f"queue is parked by SYNC until cycle {free[queue[index]]}, this issue is at cycle {issue[index]}",
            )


def _issues(program: Program, where: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """(cycle, row) of chosen rows in all iterations."""
    found = []
    for block in program.blocks:
        rows = block.row_start + np.flatnonzero(where[block.row_start : block.row_stop])
        for iteration in range(block.num_iterations if len(rows) else 0):
            start = block.start_cycle + iteration * block.period_cycles
            found += [(start + int(program.cycle[row]), int(row)) for row in rows]
    return found
