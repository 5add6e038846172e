"""The Perfetto trace, parsed back: it nests, its flows pair up, and it holds every instruction."""

import itertools
import sys
from collections import Counter

import pytest
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace, TrackEvent

from lpu_jax import trace as trace_module
from lpu_jax.report.events import program_rows, unroll
from lpu_jax.report.values import stream_values
from lpu_jax.runtime.assembly import row_text
from lpu_jax.runtime.isa import queues
from lpu_jax.trace import write_trace


class Parsed:
    """Tracks by id, slices (track path, name, start, stop, annotations, flows out, flows in), counters by path."""

    def __init__(self, path):
        found = Trace()
        found.ParseFromString(path.read_bytes())
        self.names, self.units, self.slices, self.counters = {}, {}, [], {}
        open_slices = {}
        for packet in found.packet:
            if packet.HasField("track_descriptor"):
                each = packet.track_descriptor
                assert each.uuid not in self.names
                self.names[each.uuid] = (*self.names.get(each.parent_uuid, ()), each.name)
                self.units[each.uuid] = each.counter.unit_name
                continue
            event, time = packet.track_event, packet.timestamp
            path_of = self.names[event.track_uuid]
            stack = open_slices.setdefault(event.track_uuid, [])
            if event.type == TrackEvent.TYPE_COUNTER:
                value = event.counter_value or event.double_counter_value
                self.counters.setdefault(path_of, []).append((time, value))
                assert self.units[event.track_uuid]
            elif event.type == TrackEvent.TYPE_SLICE_BEGIN:
                notes = {a.name: a.string_value or a.int_value for a in event.debug_annotations}
                stack.append((event.name, time, notes, list(event.flow_ids)))
            else:
                assert event.type == TrackEvent.TYPE_SLICE_END
                name, start, notes, flows = stack.pop()
                self.slices.append((path_of, name, start, time, notes, flows, list(event.terminating_flow_ids)))
        assert not any(open_slices.values())


@pytest.fixture(scope="module")
def parsed(compiled, tmp_path_factory):
    path = tmp_path_factory.mktemp("trace") / "program.pftrace"
    compiled.write_trace(path)
    assert [entry.name for entry in path.parent.iterdir()] == ["program.pftrace"]
    return Parsed(path)


def test_every_row_is_one_slice_on_its_queue(compiled, parsed):
    program, names = compiled.program, [str(queue) for queue in queues(compiled.program.chip)]
    expected = Counter()
    for block in program.blocks:
        for row in range(block.row_start, block.row_stop):
            start = block.start_cycle + int(program.cycle[row])
            expected[names[program.queue[row]], start, row_text(program, row)] += 1
    rows = [s for s in parsed.slices if "instruction" in s[4]]
    assert Counter((s[0][1], s[2], s[4]["instruction"]) for s in rows) == expected
    groups = {(s[0][0].split()[0], s[0][1].split("_")[0].rstrip("0123456789")) for s in rows}
    assert groups == {(unit, unit) for unit in ("MEM", "MXM", "SXM", "VXM")}
    assert all(s[4]["line"].startswith("conftest.py:") for s in rows if s[0][0] == "MXM west" and s[1] != "Sync")


def test_slices_end_after_they_begin_and_do_not_overlap(parsed):
    by_track = {}
    for path, _, start, stop, *_ in parsed.slices:
        assert start < stop
        by_track.setdefault(path, []).append((start, stop))
    for spans in by_track.values():
        spans.sort()
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))


def test_flows_pair_up_and_lead_forward(compiled, parsed):
    starts = {flow: s for s in parsed.slices for flow in s[5]}
    ends = {flow: s for s in parsed.slices for flow in s[6]}
    assert sum(len(s[5]) for s in parsed.slices) == len(starts) == len(ends) == sum(len(s[6]) for s in parsed.slices)
    assert set(starts) == set(ends)
    assert all(starts[flow][2] < ends[flow][3] for flow in starts)
    wanted = 0
    rows = program_rows(compiled.program)
    for block in compiled.program.blocks:
        events = unroll(rows, block)
        values = stream_values(events)
        makers = events.row[values.drives.event[values.maker]].tolist()
        wanted += len(set(zip(makers, events.row[values.takes.event].tolist(), strict=True)))
    assert len(starts) == wanted > 0
    # Every value that the MXM multiplies comes from a MEM slice or from the VXM.
    takers = [starts[flow][0][0].split()[0] for flow, s in ends.items() if s[1] == "ABC"]
    assert takers
    assert set(takers) <= {"MEM", "VXM"}


def test_tile_ops_lie_below_their_modules_in_every_iteration(compiled, parsed):
    ops = [s for s in parsed.slices if s[0][0] == "modules"]
    assert len(ops) == sum(len(block.ops) * block.num_iterations for block in compiled.compiled_graph.schedule.blocks)
    assert {s[0][1:-1] for s in ops} >= {("layer", "up"), ("tail",)}
    loop = next(block for block in compiled.program.blocks if block.num_iterations > 1)
    starts = {(s[4]["tile op"], s[4].get("iteration", 0)): s[2] for s in ops if s[0][1] == "layer"}
    for (op, iteration), start in starts.items():
        assert start == starts[op, 0] + iteration * loop.period_cycles
    assert max(s[3] for s in ops) <= compiled.cycles


def test_counters_and_metadata(compiled, parsed):
    report = compiled.report()
    assert max(v for _, v in parsed.counters["SRAM in use",]) == report.costs.timeline.sram_bytes.max()
    for d, direction in enumerate(("eastward", "westward")):
        for h, side in enumerate(("west", "east")):
            points = parsed.counters["streams in use", f"{direction} {side}"]
            assert max(v for _, v in points) == report.costs.timeline.peak_streams[d, h]
            assert points[-1][1] == 0
            assert points == sorted(points)
    about = next(s for s in parsed.slices if s[1] == "about this trace")
    assert about[3] == about[4]["cycles"] == compiled.cycles
    assert "1 ns" in about[4]["time"]
    assert "first iteration" in about[4]["loops"]


def test_an_error_leaves_nothing_behind(compiled, tmp_path, monkeypatch):
    path = tmp_path / "program.pftrace"
    path.write_bytes(b"older")
    monkeypatch.setattr(trace_module, "sram_steps", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_trace(compiled.compiled_graph, path)
    assert path.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [path]


def test_without_perfetto_the_error_says_how_to_get_it(compiled, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "perfetto.trace_builder.proto_builder", None)
    with pytest.raises(ImportError, match=r"write_trace needs perfetto: pip install 'lpu_jax\[trace\]'"):
        compiled.write_trace(tmp_path / "program.pftrace")
    assert not list(tmp_path.iterdir())
