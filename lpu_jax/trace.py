"""`write_trace`: a program as a Perfetto trace, to be opened at the Perfetto UI.

1 cycle is 1 ns of trace time. Tracks: one per queue, grouped by unit and hemisphere; tile ops below their modules;
counters of streams in use and of SRAM. A row is one slice from its issue to the end of its last repetition; a row that
runs on the unit's sequencer while its queue goes on has a lane of its own, so that slices nest. Flows lead from the
instruction that puts a value on a stream to those that take it. Loops: the first iteration in full, all others as
slices of the tile ops.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lpu_jax.lowering.printing import op_text
from lpu_jax.report.events import Rows, program_rows, unroll
from lpu_jax.report.memory import tensors
from lpu_jax.report.timeline import sram_steps
from lpu_jax.report.values import stream_values, streams_in_use
from lpu_jax.runtime.assembly import row_text
from lpu_jax.runtime.isa import QueueKind, queues
from lpu_jax.runtime.progress import progress

if TYPE_CHECKING:
    from lpu_jax.lowering.pipeline import CompiledGraph
    from lpu_jax.stages import Compiled

METADATA = {
    "time": "1 cycle is shown as 1 ns",
    "loops": "the first iteration is shown in full; the others repeat it exactly and are shown as tile ops",
    "counters": "streams in use after a loop's first iteration are the mean of an iteration",
    "lanes": "repetitions that overlap on one queue are shown on further lanes of it",
    "streams": "a flow leads from the instruction that puts a value on a stream to each one that takes it",
}
"""What a reader has to know; annotations of the trace's first slice, "about this trace"."""


def write_trace(compiled: Compiled | CompiledGraph, path: str | os.PathLike[str]) -> None:
    """Writes a program as a Perfetto trace; the file appears when it is complete.

    Raises:
      ImportError: the package `perfetto` is not installed.
    """
    try:
        from perfetto.trace_builder.proto_builder import StreamingTraceProtoBuilder
    except ImportError as error:
        raise ImportError("write_trace needs perfetto: pip install 'lpu_jax[trace]'") from error
    with _replacing(Path(path)) as file, progress("Writing the trace"):
        graph: Any = getattr(compiled, "compiled_graph", compiled)  # a Compiled has one, a CompiledGraph is one
        _Writer(StreamingTraceProtoBuilder(file), graph).write()


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Any]:
    """A binary file that takes the place of `path` if the body succeeds, and vanishes if it does not."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


@dataclasses.dataclass(frozen=True, slots=True)
class _Slice:
    """An interval of a track; flows are ids that start or end here, annotations are shown with it."""

    track: int
    start: int
    stop: int
    name: str
    annotations: dict[str, str | int]
    starts: Sequence[int] = ()
    ends: Sequence[int] = ()


class _Writer:
    """Writes packets; keeps the ids of tracks."""

    def __init__(self, builder: Any, compiled: CompiledGraph) -> None:
        from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as protos

        self.builder, self.protos, self.compiled = builder, protos, compiled
        self.program, self.chip = compiled.program, compiled.program.chip
        self.rows: Rows = program_rows(compiled.program)
        self.num_tracks = 0
        self.tracks: dict[tuple[str, ...], int] = {}
        self.slices: list[_Slice] = []
        self.ops = [op for block in compiled.schedule.blocks for op in block.ops]

    def write(self) -> None:
        """The whole trace: tracks are described before their events, events are in order of time."""
        about = self.track(("program",))
        notes: dict[str, str | int] = {"chip": self.chip.name, "cycles": self.compiled.cycles, **METADATA}
        self.slices.append(_Slice(about, 0, self.compiled.cycles, "about this trace", notes))
        flows = self._flows()
        lanes = self._lanes()
        self._instructions(lanes, flows)
        self._tile_ops()
        self._write_slices()
        self._stream_counters()
        self._sram_counter()

    # Tracks -------------------------------------------------------------------------------------------------------

    def track(self, path: tuple[str, ...], unit: str | None = None, rank: int = 0) -> int:
        """Id of the track under a path of names; made, with its parents, on first use. Counters have a unit."""
        if path in self.tracks:
            return self.tracks[path]
        parent = self.track(path[:-1]) if len(path) > 1 else 0
        self.num_tracks += 1
        self.tracks[path] = self.num_tracks
        packet = self._packet()
        packet.track_descriptor.uuid = self.num_tracks
        packet.track_descriptor.name = path[-1]
        if parent:
            packet.track_descriptor.parent_uuid = parent
        packet.track_descriptor.child_ordering = self.protos.TrackDescriptor.ChildTracksOrdering.EXPLICIT
        packet.track_descriptor.sibling_order_rank = rank or self.num_tracks
        # Tracks of one name, such as the lanes of different queues, stay apart.
        packet.track_descriptor.sibling_merge_behavior = (
            self.protos.TrackDescriptor.SiblingMergeBehavior.SIBLING_MERGE_BEHAVIOR_NONE
        )
        if unit is not None:
            packet.track_descriptor.counter.unit_name = unit
        self.builder.write_packet(packet)
        return self.num_tracks

    def _packet(self) -> Any:
        packet = self.builder.create_packet()
        packet.trusted_packet_sequence_id = 1
        return packet

    # Instructions -------------------------------------------------------------------------------------------------

    def _lanes(self) -> list[int]:
        """Track of every row: the first lane of its queue that is free when it issues, in order of time."""
        names = [self._queue_path(queue) for queue in range(len(queues(self.chip)))]
        for queue in np.unique(self.program.queue).tolist():
            self.track(names[queue], rank=queue + 1)
        found = [0] * self.program.num_rows
        busy: dict[int, list[int]] = {}
        for block in self.program.blocks:
            for row in range(block.row_start, block.row_stop):
                queue, start = int(self.program.queue[row]), block.start_cycle + int(self.rows.start[row])
                ends = busy.setdefault(queue, [])
                lane = next((i for i, end in enumerate(ends) if end <= start), len(ends))
                ends[lane : lane + 1] = [block.start_cycle + self._stop(row)]
                path = names[queue] if lane == 0 else (*names[queue], f"{names[queue][-1]} lane {lane + 1}")
                found[row] = self.track(path)
        return found

    def _stop(self, row: int) -> int:
        """Cycle after the last work of a row, from the start of the iteration."""
        return int(self.rows.last[row] + self.rows.work_offset[row] + self.rows.duration[row])

    def _queue_path(self, queue: int) -> tuple[str, ...]:
        home = queues(self.chip)[queue]
        if home.kind is QueueKind.VXM:
            return ("VXM", str(home))
        return (f"{home.kind.name} {home.hemisphere.name.lower()}", str(home))

    def _instructions(self, lanes: list[int], flows: tuple[list[list[int]], list[list[int]]]) -> None:
        starts, ends = flows
        for block in self.program.blocks:
            for row in range(block.row_start, block.row_stop):
                text = row_text(self.program, row)
                notes: dict[str, str | int] = {"instruction": text, "cycle in iteration": int(self.rows.start[row])}
                op = int(self.program.origin[row])
                if op >= 0:
                    tile_op = self.ops[op].op
                    notes |= {"line": tile_op.source, "module": tile_op.name, "tile op": op}
                notes["bytes taken"] = int(self.rows.take_count[row].sum() * self.rows.count[row] * self.chip.num_lanes)
                start = block.start_cycle + int(self.rows.start[row])
                stop = block.start_cycle + self._stop(row)
                self.slices.append(_Slice(lanes[row], start, stop, text.split()[0], notes, starts[row], ends[row]))

    def _flows(self) -> tuple[list[list[int]], list[list[int]]]:
        """(ids that start at a row, ids that end there): one flow per pair of rows that share a value."""
        starts: list[list[int]] = [[] for _ in range(self.program.num_rows)]
        ends: list[list[int]] = [[] for _ in range(self.program.num_rows)]
        number = 0
        for block in self.program.blocks:
            events = unroll(self.rows, block)
            values = stream_values(events)
            maker = events.row[values.drives.event[values.maker]]
            pairs = np.unique(np.stack([maker, events.row[values.takes.event]], axis=1), axis=0)
            for source, target in pairs.tolist():
                number += 1
                starts[source].append(number)
                ends[target].append(number)
        return starts, ends

    # Tile ops -----------------------------------------------------------------------------------------------------

    def _tile_ops(self) -> None:
        """Slices of all tile ops in all iterations, on lanes below their module."""
        spans = self._op_spans()
        base = 0
        blocks = [b for b in self.program.blocks if (self.program.origin[b.row_start : b.row_stop] >= 0).any()]
        filled = [block for block in self.compiled.schedule.blocks if block.ops]
        for block, scheduled in zip(blocks, filled, strict=True):
            numbers = sorted(range(base, base + len(scheduled.ops)), key=lambda op: spans[op])
            lanes = self._op_lanes(numbers, spans)
            for iteration in range(block.num_iterations):
                start = block.start_cycle + iteration * block.period_cycles
                for op in numbers:
                    notes: dict[str, str | int] = {"tile op": op, "iteration": iteration}
                    tile_op = self.ops[op].op
                    if iteration == 0:
                        notes |= {"line": tile_op.source, "module": tile_op.name, "operands": op_text(tile_op)}
                    name = tile_op.source or type(tile_op).__name__
                    first, stop = spans[op]
                    self.slices.append(_Slice(lanes[op], start + first, start + stop, name, notes))
            base += len(scheduled.ops)

    def _op_spans(self) -> list[tuple[int, int]]:
        start, stop = [2**62] * len(self.ops), [0] * len(self.ops)
        for row, op in enumerate(self.program.origin.tolist()):
            if op >= 0:
                start[op] = min(start[op], int(self.rows.start[row]))
                stop[op] = max(stop[op], int(self.rows.finish[row]), int(self.rows.start[row]) + 1)
        return list(zip(start, stop, strict=True))

    def _op_lanes(self, numbers: list[int], spans: list[tuple[int, int]]) -> dict[int, int]:
        """Ops of one module that overlap lie on different lanes of it."""
        ends: dict[tuple[str, ...], list[int]] = {}
        found = {}
        for op in numbers:
            name = self.ops[op].op.name
            path = ("modules", *(name.split("/") if name else ("(unnamed)",)))
            busy = ends.setdefault(path, [])
            start, stop = spans[op]
            lane = next((i for i, end in enumerate(busy) if end <= start), len(busy))
            busy[lane : lane + 1] = [stop]
            found[op] = self.track((*path, f"ops of {path[-1]}{f' lane {lane + 1}' if lane else ''}"))
        return found

    # Packets ------------------------------------------------------------------------------------------------------

    def _write_slices(self) -> None:
        """Begins and ends in order of time; at one time a track's ends come before its begins."""
        moments = [(s.start, 1, i) for i, s in enumerate(self.slices)] + [
            (s.stop, 0, i) for i, s in enumerate(self.slices)
        ]
        types = self.protos.TrackEvent.Type
        for time, begins, index in sorted(moments):
            each = self.slices[index]
            packet = self._packet()
            packet.timestamp = time
            event = packet.track_event
            event.track_uuid = each.track
            event.type = types.TYPE_SLICE_BEGIN if begins else types.TYPE_SLICE_END
            if begins:
                event.name = each.name
                event.flow_ids.extend(each.starts)
                self._annotate(event, each.annotations)
            else:  # with its repetitions a row may begin before a value that it takes later is made
                event.terminating_flow_ids.extend(each.ends)
            self.builder.write_packet(packet)

    def _annotate(self, event: Any, annotations: dict[str, str | int]) -> None:
        for name, value in annotations.items():
            note = event.debug_annotations.add()
            note.name = name
            if isinstance(value, int):
                note.int_value = value
            else:
                note.string_value = value

    def _counter(self, track: int, cycles: Sequence[int], values: Sequence[float]) -> None:
        last = None
        for cycle, value in zip(cycles, values, strict=True):
            if value == last:
                continue
            last = value
            packet = self._packet()
            packet.timestamp = cycle
            packet.track_event.track_uuid = track
            packet.track_event.type = self.protos.TrackEvent.Type.TYPE_COUNTER
            if isinstance(value, int):
                packet.track_event.counter_value = value
            else:
                packet.track_event.double_counter_value = value
            self.builder.write_packet(packet)

    def _stream_counters(self) -> None:
        """Streams in use by direction and hemisphere; of a loop the first iteration, then the mean of the others."""
        used = []
        for block in self.program.blocks:
            events = unroll(self.rows, block)
            used.append(streams_in_use(events, stream_values(events)))
        for d, direction in enumerate(("eastward", "westward")):
            for h, hemisphere in enumerate(("west", "east")):
                track = self.track(("streams in use", f"{direction} {hemisphere}"), unit="streams")
                cycles: list[int] = []
                values: list[float] = []
                for block, use in zip(self.program.blocks, used, strict=True):
                    shown = use[d, h, : block.period_cycles].tolist()
                    cycles += range(block.start_cycle, block.start_cycle + len(shown))
                    values += shown
                    if block.num_iterations > 1:
                        cycles.append(block.start_cycle + block.period_cycles)
                        values.append(float(np.mean(use[d, h])))
                self._counter(track, [*cycles, self.compiled.cycles - self.chip.skew_cycles], [*values, 0])

    def _sram_counter(self) -> None:
        found = tensors(self.compiled, self.rows)
        spans = [(t.first_cycle, t.end_cycle, t.num_bytes) for t in found]
        cycles, level = sram_steps(spans)
        self._counter(self.track(("SRAM in use",), unit="bytes"), cycles.tolist(), level.tolist())
