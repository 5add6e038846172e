"""The report adds up, and agrees with what the machine is seen to do."""

import csv
import io
import itertools
import json
import sys
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lpu_jax
from lpu_jax.lowering.passes.tile_close import select_vectors
from lpu_jax.lowering.tile_ir import num_parts
from lpu_jax.report import exports
from lpu_jax.report.events import UNIT_KINDS
from lpu_jax.report.memory import _parts
from lpu_jax.report.tree import roll_up
from lpu_jax.runtime.isa import Opcode
from lpu_jax.runtime.streams import Streams
from lpu_jax.runtime.units.issue import _expand
from lpu_jax.runtime.units.mxm import Planes

TRIPS = 5


def model(w, table, x, index):
    """A loop of matmuls between a lookup and a normalisation: all units but the SXM's small ones."""
    with jax.named_scope("lookup"):
        x = x + table[index]

    def layer(h, weights):
        with jax.named_scope("layer/up"):
            h = jnp.tanh(h @ weights)
        with jax.named_scope("layer/norm"):
            return h * jax.lax.rsqrt(jnp.mean(h * h, axis=-1, keepdims=True) + 1e-3), None

    x, _ = jax.lax.scan(layer, x, w)
    with jax.named_scope("tail"):
        return x.T + 1


def arguments(trips=TRIPS, dtype=np.float32):
    rng = np.random.default_rng(0)
    w = (rng.standard_normal((trips, 24, 24)) / 5).astype(dtype)
    table = rng.standard_normal((6, 24)).astype(np.float32)
    return w, table, rng.standard_normal((3, 24)).astype(np.float32), np.int32(2)


@pytest.fixture(scope="module", params=["float32", "highest"])
def compiled(request):
    precision = "fp16" if request.param == "float32" else request.param
    function = lpu_jax.lpu(model, chip=lpu_jax.chips.groqchip1, precision=precision, resident_argnums=(0, 1))
    return function.lower(*arguments()).compile()


@pytest.fixture(scope="module")
def report(compiled):
    return compiled.report()


def test_the_tree_adds_up_to_all_cycles(report):
    costs = report.costs
    assert report.tree.wall_cycles == report.cycles == costs.cycles
    for _, node in report.tree.walk():
        if node.children:
            assert node.wall_cycles == sum(child.wall_cycles for child in node.children)
            assert node.busy_cycles == tuple(map(sum, zip(*(c.busy_cycles for c in node.children), strict=True)))
    assert sum(block.total_cycles for block in costs.blocks) + costs.skew_cycles == report.cycles
    assert {"lookup", "layer", "tail", "(barrier)", "(skew)"} <= {child.name for child in report.tree.children}
    assert report.tree.find("(skew)").wall_cycles == lpu_jax.chips.groqchip1.skew_cycles
    assert any(
        name.startswith("test_report.py:") for name in (c.name for c in report.tree.find("layer", "up").children)
    )
    with pytest.raises(KeyError, match="'nothing' is not below 'layer'; there:"):
        report.tree.find("layer", "nothing")


def test_busy_and_idle_are_the_whole_of_every_unit(report):
    totals = dict.fromkeys(UNIT_KINDS, 0)
    for unit in report.costs.units:
        assert unit.busy_cycles >= 0
        assert unit.idle_cycles >= 0
        assert unit.busy_cycles + unit.idle_cycles == report.cycles
        totals[unit.kind] += unit.busy_cycles
    assert totals == report.costs.busy_cycles
    assert report.costs.timeline.busy.sum(axis=1).tolist() == list(totals.values())
    assert {kind for kind, busy in totals.items() if busy} >= {"mem read", "mem write", "alu", "mxm multiply"}


class Watch:
    """What a run of the machine uses: unit cycles by name of the unit, and streams in use in every cycle."""

    def __init__(self, patch, compiled, args):
        chip = compiled.traced.options.chip
        self.ports, self.multiply, self.streams = {}, 0, {}

        def expand(decoded, *rest):
            window = _expand(decoded, *rest)
            for i in range(int(decoded.num_ports.max())):
                some = window.source[decoded.num_ports[window.source] > i]
                ports = decoded.port[some] + i * decoded.port_stride[some]
                for port, count in zip(*np.unique(ports, return_counts=True), strict=True):
                    self.ports[int(port)] = self.ports.get(int(port), 0) + int(count)
            return window

        def occupy(planes, plane, factor, cycle):
            tile = occupy_before(planes, plane, factor, cycle)
            state = planes.planes[plane]
            self.multiply += (state.busy_until - cycle) * (2 if tile.is_wide else 1)
            return tile

        def leave(streams, cycle):
            self.cycle = cycle
            leave_before(streams, cycle)

        def exchange(streams, drives, keys, keep):
            held = np.concatenate([np.flatnonzero(streams.valid), *(d[0] for d in drives)])
            slot, stream = np.divmod(held, streams.num_streams)
            half = streams.num_slots // 2
            along = (self.cycle - slot + half) % streams.num_slots - half
            direction = stream // chip.num_streams_per_direction
            east = np.where(direction == 0, along, -along) >= 0
            for key in set(zip(direction.tolist(), east.astype(int).tolist(), stream.tolist(), strict=True)):
                at = (*key[:2], self.cycle)
                self.streams[at] = self.streams.get(at, 0) + 1
            return exchange_before(streams, drives, keys, keep)

        occupy_before, leave_before, exchange_before = Planes._occupy, Streams.leave, Streams.exchange
        patch.setattr("lpu_jax.runtime.units.issue._expand", expand)
        patch.setattr(Planes, "_occupy", occupy)
        patch.setattr(Streams, "leave", leave)
        patch.setattr(Streams, "exchange", exchange)
        _, self.cycles = compiled.simulate(*args)


def test_the_machine_is_seen_to_use_the_same(compiled, report, monkeypatch):
    watch = Watch(monkeypatch, compiled, arguments())
    costs = report.costs
    assert watch.cycles == report.cycles
    used = sorted(count for count in watch.ports.values())
    multiplies = sum(int(compiled.program.count[r]) * n for r, n in _rows_of(compiled.program, Opcode.ABC))
    assert sum(used) - multiplies == sum(b for k, b in costs.busy_cycles.items() if k != "mxm multiply")
    assert watch.multiply == costs.busy_cycles["mxm multiply"]
    by_name = {unit.name: unit.busy_cycles for unit in costs.units}
    chip = compiled.traced.options.chip
    for port in range(2 * chip.num_slices):
        assert (
            watch.ports.get(2 * port, 0) == by_name[f"MEM_{'WE'[port // chip.num_slices]}{port % chip.num_slices} read"]
        )
    for direction in (0, 1):
        for side in (0, 1):
            seen = np.zeros(report.cycles, np.int64)
            for (d, s, cycle), count in watch.streams.items():
                if (d, s) == (direction, side):
                    seen[cycle] = count
            line = costs.timeline
            assert line.peak_streams[direction, side] == seen.max()
            means = [seen[a:b].mean() for a, b in itertools.pairwise(line.edges.tolist())]
            np.testing.assert_allclose(line.streams[direction, side], means)


def _rows_of(program, opcode):
    for block in program.blocks:
        for row in range(block.row_start, block.row_stop):
            if program.opcode[row] == opcode:
                yield row, block.num_iterations


def test_loops_count_with_their_trips(report):
    loop = next(block for block in report.costs.blocks if block.kind == "loop")
    assert loop.num_iterations == TRIPS
    assert loop.total_cycles == TRIPS * loop.cycles_per_iteration
    more = TRIPS + 3
    function = lpu_jax.lpu(model, chip=lpu_jax.chips.groqchip1, resident_argnums=(0, 1))
    longer, same = (function.lower(*arguments(trips)).compile().report() for trips in (more, TRIPS))
    before, after = same.tree.find("layer"), longer.tree.find("layer")
    assert after.wall_cycles * TRIPS == before.wall_cycles * more
    assert [b * TRIPS for b in after.busy_cycles] == [b * more for b in before.busy_cycles]


def test_the_binding_chain_covers_every_block_without_gaps(report):
    for number, block in enumerate(report.costs.blocks):
        links = [link for link in report.costs.chain if link.block == number]
        assert links[0].start == 0
        assert links[-1].stop == block.cycles_per_iteration
        assert all(a.stop == b.start for a, b in itertools.pairwise(links))
    reasons = [link.reason for link in report.costs.chain]
    assert "memory" in reasons
    assert all(link.slack_cycles >= 0 for link in report.costs.chain)


def test_bounds_come_with_their_chain(compiled, report):
    assert sum(link.cycles for link in report.dependency_chain) == report.dependency_bound_cycles
    assert max(v for unit, v in report.bounds.items() if unit != "pcie") == report.resource_bound_cycles
    assert report.cycles == pytest.approx(
        report.bound_ratio * max(report.dependency_bound_cycles, report.resource_bound_cycles)
    )
    parsed = json.loads(report.to_json())
    assert len(parsed["dependency_chain"]) == len(report.dependency_chain)
    assert parsed.keys() - report.to_dict(detail=False).keys() == {"dependency_chain", "costs", "sum_widths"}


def test_sram_by_tensor_and_over_time(compiled, report):
    costs, chip = report.costs, compiled.traced.options.chip
    assert sum(size for *_, size in report.sram_map) == sum(t.num_bytes for t in costs.tensors)
    assert {"w", "table", "x"} <= {tensor.name for tensor in costs.tensors}
    for tensor in costs.tensors:
        assert 0 <= tensor.first_cycle < tensor.end_cycle <= report.cycles
        assert 0 <= tensor.base <= tensor.base + tensor.num_addresses <= chip.num_addresses_per_slice
        assert tensor.num_bytes == len(tensor.slices) * tensor.num_addresses * chip.num_lanes
        assert not tensor.is_resident or (tensor.first_cycle, tensor.end_cycle) == (0, report.cycles)
    moments = range(0, report.cycles, 7)
    used = [sum(t.num_bytes for t in costs.tensors if t.first_cycle <= c < t.end_cycle) for c in moments]
    bins = np.searchsorted(costs.timeline.edges, list(moments), side="right") - 1
    assert (np.array(used) <= costs.timeline.sram_bytes[bins]).all()
    assert costs.timeline.sram_bytes.max() >= report.sram_used_bytes // 2
    assert sum(costs.sram_formats.values()) == sum(t.num_bytes for t in costs.tensors)


def test_pieces_of_an_op_are_found_again(compiled):
    ops = next(block.ops for block in compiled.compiled_graph.tile_graph.blocks if len(block.ops) > 3)
    index = next(i for i, op in enumerate(ops) if num_parts(op) > 2)
    cut = num_parts(ops[index])
    pieces = [select_vectors(ops[index], np.arange(*part)) for part in ((0, 1), (1, cut))]
    scheduled = [*ops[:index], *pieces, *ops[index + 1 :]]
    found = _parts(ops, scheduled)
    assert found[index] == [index, index + 1]
    assert [i for part in found for i in part] == list(range(len(scheduled)))


def test_macs_and_bytes_of_one_matmul():
    w, x = np.ones((640, 320), np.int8), np.ones((3, 640), np.int8)

    def matmul(w, x):
        return jax.lax.dot(x, w, preferred_element_type=np.int32)

    report = lpu_jax.lpu(matmul, resident_argnums=0).lower(w, x).compile().report()
    assert report.costs.macs == {"int8 x int8": 3 * 640 * 320}
    assert report.model_flops == 2 * 3 * 640 * 320
    assert report.costs.bytes_in["mxm load"] == w.size
    assert report.costs.bytes_out["mxm result"] >= 3 * 320 * 4
    assert report.costs.bytes_in["mem write"] == 320 * report.costs.busy_cycles["mem write"]


def test_exports_hold_the_same_tree(report):
    whole = json.loads(report.to_json())
    rows = list(csv.DictReader(io.StringIO(report.to_csv())))
    frame = report.to_pandas()
    records = report.records()
    assert len(rows) == len(frame) == len(records) == sum(1 for _ in report.tree.walk())
    assert [int(row["wall_cycles"]) for row in rows] == frame["wall_cycles"].tolist()
    assert whole["costs"]["tree"] == records
    assert whole["cycles"] == report.cycles
    leaves = frame[frame["is_leaf"]]
    assert leaves["wall_cycles"].sum() == report.cycles
    assert leaves["busy_alu"].sum() == report.costs.busy_cycles["alu"]


def test_every_part_exports_and_adds_up(report):
    frames = {what: report.to_pandas(what) for what in exports.KINDS}
    for what, frame in frames.items():
        assert (
            len(list(csv.DictReader(io.StringIO(report.to_csv(what))))) == len(frame) == len(report.records(what)) > 0
        )
    assert frames["blocks"]["total_cycles"].sum() + report.costs.skew_cycles == report.cycles
    assert (frames["units"]["busy_cycles"] + frames["units"]["idle_cycles"] == report.cycles).all()
    line = frames["timeline"]
    widths = line["end_cycle"] - line["first_cycle"]
    assert widths.sum() == report.cycles
    assert (line["use_alu"] * widths).sum() * report.costs.num_units["alu"] == pytest.approx(
        report.costs.busy_cycles["alu"]
    )
    assert frames["tensors"]["num_bytes"].sum() == sum(report.costs.sram_formats.values())
    assert frames["dependencies"]["cycles"].sum() == report.dependency_bound_cycles
    with pytest.raises(ValueError, match="'trees' is no part of a report; use one of tree, blocks, units"):
        report.records("trees")


def test_units_over_time_are_the_units_and_their_kinds(report):
    costs = report.costs
    edges, busy = report.units_over_time(100)
    np.testing.assert_array_equal(edges, costs.timeline.edges)
    assert {unit.name: unit.busy_cycles for unit in costs.units} == {name: line.sum() for name, line in busy.items()}
    kinds = {unit.name: unit.kind for unit in costs.units}
    for index, kind in enumerate(UNIT_KINDS):
        together = sum(line for name, line in busy.items() if kinds[name] == kind)
        np.testing.assert_array_equal(together, costs.timeline.busy[index])
    assert all((line <= np.diff(edges)).all() for line in busy.values())


def test_assumptions_are_those_that_the_program_uses(report):
    def of(function, *shapes, chip="groqchip1"):
        arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
        return " | ".join(lpu_jax.lpu(function, chip=chip).lower(*arguments).compile().report().assumptions)

    everything = " | ".join(report.assumptions)
    assert "accumulators keep the sum over all of K" in everything
    assert "delivered again in every trip" in everything
    plain = of(lambda x: x + 1, ((4, 8), jnp.float32), chip="lp30")
    assert "lp30: clock 1.46 GHz" in plain
    for text in ("accumulators", "trip", "Gather", "ALUs that a function takes", "significands"):
        assert text not in plain
    assert "ALUs that a function takes: log 2" in of(jnp.log, ((4, 8), jnp.float32))
    assert "unpublished for bf16 x int8" in of(
        lambda x, w: jax.lax.dot(x, w, preferred_element_type=jnp.float32), ((4, 8), jnp.bfloat16), ((8, 8), jnp.int8)
    )
    assert "fp16 x fp16" not in of(jnp.dot, ((4, 8), jnp.float16), ((8, 8), jnp.float16))


def test_without_pandas_the_error_says_how_to_get_it(report, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"to_pandas needs pandas: pip install 'lpu_jax\[pandas\]'"):
        report.to_pandas()


def test_it_prints_and_shows_in_a_notebook(report):
    text, page = str(report), report._repr_html_()
    for expected in (f"{report.cycles:,}", "layer", "binding chain", "mem read", "loop", "(barrier)", "westward"):
        assert expected in text
        assert expected in page
    named = lpu_jax.lpu(lambda x: x * 3).lower(jnp.ones(3)).compile().report()
    assert "<lambda>" in str(named)
    assert "&lt;lambda&gt;" in named._repr_html_()
    assert "<lambda>" not in named._repr_html_()


def test_a_notebook_shows_figures_modules_and_units_first(report):
    page = ElementTree.fromstring(report.to_html())  # well-formed, so that no notebook breaks on it
    assert [value.text for value in page.findall("div[@class='figures']/div/b")][:2] == [
        f"{report.cycles:,}",
        f"{report.microseconds:,.2f} µs",
    ]
    modules, units = page.findall("div[@class='columns']/table/tbody")
    names = [row.find("td/span").text for row in modules if row.find("td/span") is not None]
    assert names[: len(report.tree.children)][0] == report.tree.children[0].name
    assert {child.name for child in report.tree.children if child.wall_cycles} <= set(names)
    assert [row.find("td").text for row in units] == [kind for kind, busy in report.costs.busy_cycles.items() if busy]
    assert page.find("details/pre") is not None


def test_a_program_without_instructions_has_a_report():
    report = lpu_jax.lpu(lambda x: x).lower(jnp.ones(3)).compile().report()
    assert report.tree.wall_cycles == report.cycles
    assert str(report)


def test_a_name_may_be_a_leaf_and_a_module():
    zero = (0,) * len(UNIT_KINDS)
    tree = roll_up("all", [(("a",), 3, zero), (("a", "b"), 4, zero), ((), 0, zero)])
    assert tree.wall_cycles == 7
    assert [(child.name, child.wall_cycles) for child in tree.find("a").children] == [("b", 4), ("(itself)", 3)]


def test_moves_own_cycles_and_computations_none(report, compiled):
    moves = report.data_movement
    assert moves.share == moves.cycles / report.cycles
    assert {"gather", "permute"} <= {move.kind for move in moves.moves}
    records = report.records("moves")
    assert sum(record["cycles"] for record in records) == moves.cycles
    assert records == sorted(records, key=lambda record: -record["cycles"])
    ops = [op.op for block in compiled.compiled_graph.schedule.blocks for op in block.ops]
    assert 0 < sum(move.num_ops for move in moves.moves) < len(ops)
    for move in moves.moves:  # no more than the tree has for the line
        lines = [node for path, node in report.tree.walk() if path[-1] == move.source]
        assert move.cycles <= sum(node.wall_cycles for node in lines)


def test_movement_is_nothing_for_a_function_and_most_of_a_gather():
    function = lpu_jax.lpu(lambda table, index: table[index], resident_argnums=0)
    found = function.lower(np.zeros((40, 50), np.float32), np.int32(3)).compile().report()
    (gather,) = found.data_movement.moves
    assert gather.kind == "gather"
    assert f"{gather.cycles / found.cycles:.1%}" in str(found)
    none = lpu_jax.lpu(lambda x: x * 2).lower(np.zeros((40, 50), np.float32)).compile().report().data_movement
    assert (none.cycles, none.share, none.moves) == (0, 0.0, ())
