"""Matrix products: planes share the work, loads leave gaps, accumulators have one owner, only exact sums are split."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from helpers import Sketch, assert_agrees

from lpu_jax.chips import groqchip1, tiny
from lpu_jax.lowering.passes.place import place
from lpu_jax.lowering.passes.reservations import Table
from lpu_jax.lowering.passes.schedule import schedule
from lpu_jax.lowering.passes.schedule_product import Placement
from lpu_jax.lowering.passes.template import ACCUMULATOR
from lpu_jax.lowering.passes.tile import tile
from lpu_jax.lowering.pipeline import compile_graph
from lpu_jax.lowering.tile_ir import ChainOp, MatMulInput
from lpu_jax.runtime.isa import DataFormat, Opcode, queues


def product(rows, contracting, columns, lhs="int8", rhs="int8"):
    s = Sketch(seed=5)
    result = s.matmul(s.random((1, rows, contracting), lhs), s.random((1, contracting, columns), rhs))
    return s.build((result,)), s.arguments


def terms(graph, chip):
    """(product, rows) of every matrix product of the tiled graph."""
    ops = [op for block in tile(graph, chip).blocks for op in block.ops if isinstance(op, ChainOp)]
    return [(item, op.num_vectors) for op in ops for item in op.inputs if isinstance(item, MatMulInput)]


def plane_rows(plan, opcode):
    """Rows of an opcode by queue: sorted (first cycle, last cycle, accumulators or None)."""
    chip, found = plan.allocated.tiles.chip, {}
    for op in plan.blocks[0].ops:
        for row in op.template.rows:
            if row.opcode is opcode:
                first = op.time_zero + row.offset
                last = first + (row.repeats - 1) * row.interval
                base = op.chosen[ACCUMULATOR]
                found.setdefault(str(queues(chip)[row.queue]), []).append((first, last, base, base + row.repeats))
    return {queue: sorted(rows) for queue, rows in found.items()}


@pytest.mark.parametrize("columns", [16, 5 * 16, 6 * 16, 7 * 16])
@pytest.mark.parametrize("lhs", ["int8", "float16"])
def test_leftover_tiles_are_split_over_k_for_integers_only(columns, lhs):
    graph, arguments = product(1, 13 * 16, columns, lhs)
    found = terms(graph, tiny)
    num_tiles, num_planes = columns // 16, 2 * tiny.num_planes
    left = num_tiles % num_planes
    parts = num_planes // math.gcd(left, num_planes) if lhs == "int8" else 1
    assert len(found) == num_tiles - left + left * parts
    assert all(item.format is DataFormat.INT32 for item, _ in found if len(item.weights) < 13)
    num_ops = sum(len(block.ops) for block in tile(graph, tiny).blocks)
    assert num_ops == len(found) + 2 * left * (parts > 1)  # nothing is copied; split tiles are added up and written
    assert_agrees(graph, tiny, arguments)


def test_split_product_loads_equally_much_on_every_plane():
    graph, _ = product(1, 13 * 16, 5 * 16)
    loads = Counter()
    for item, _ in terms(graph, tiny):
        loads[item.hemisphere, item.plane] += sum(weight.num_rows for weight in item.weights)
    assert len(loads) == 2 * tiny.num_planes
    assert max(loads.values()) - min(loads.values()) <= tiny.num_streams_per_load


def test_short_products_are_not_split():
    assert len(terms(product(1, 3 * 16, 5 * 16)[0], tiny)) == 5


@pytest.mark.parametrize("num_tiles", [1, 3, 4])
def test_both_hemispheres_multiply_within_one_tile_equally_much(num_tiles):
    rows = 70
    graph, arguments = product(rows, 2 * 16, num_tiles * 16, "float16", "float16")
    work = Counter()
    for item, count in terms(graph, tiny):
        work[item.hemisphere] += count
    assert sum(work.values()) == rows * num_tiles
    assert len(work) == 2
    assert max(work.values()) - min(work.values()) <= 1
    assert_agrees(graph, tiny, arguments)


def test_narrow_weights_of_one_byte_lie_at_all_planes():
    """One column tile leaves three of four planes idle unless each multiplies a quarter of the rows."""
    graph, arguments = product(200, 96, 40)
    found = Counter()
    for item, rows in terms(graph, groqchip1):
        found[item.hemisphere, item.plane] += rows
    assert list(found.values()) == [50] * 4
    assert_agrees(graph, groqchip1, arguments)


def test_weights_made_by_the_program_lie_in_one_place():
    s = Sketch()
    made = s.fn("neg", s.random((1, 16, 16), "float16"), dtype="float16")
    graph = s.build((s.matmul(s.random((1, 70, 16), "float16"), made),))
    assert len({item.hemisphere for item, _ in terms(graph, tiny)}) == 1
    assert_agrees(graph, tiny, s.arguments)


@pytest.mark.parametrize(("rows", "contracting", "lhs"), [(40, 40, "float16"), (33, 100, "int8"), (3, 64, "float32")])
def test_accumulators_are_read_before_others_fill_them(rows, contracting, lhs):
    rhs = "int8" if lhs == "int8" else "float16"
    plan = schedule(place(tile(product(rows, contracting, 5 * 16, lhs, rhs)[0], tiny)))
    for plane in range(tiny.num_planes):
        for side in "WE":
            filled = plane_rows(plan, Opcode.ABC).get(f"MXM_{side}{3 * plane + 1}", [])
            read = plane_rows(plan, Opcode.ACC).get(f"MXM_{side}{3 * plane + 2}", [])
            live = []
            for _, last, low, high in read:
                start = min(
                    f for f, done, a, b in filled if (a, b) == (low, high) and done < last and f >= _end(live, low)
                )
                live.append((start, last, low, high))
            for (start, end, low, high), (after, _, other_low, other_high) in itertools.combinations(sorted(live), 2):
                assert after > end or other_low >= high or low >= other_high, (start, end, after)


def _end(live, low):
    """Last read of the accumulators from `low` on so far."""
    return max((end + 1 for _, end, first, _ in live if first == low), default=-(2**40))


def test_every_load_leaves_a_gap_in_which_the_tile_before_is_multiplied():
    chip = groqchip1
    plan = schedule(place(tile(product(1, 3 * 320, 12 * 320)[0], chip)))
    loads, multiplied = plane_rows(plan, Opcode.LW), plane_rows(plan, Opcode.ABC)
    for side in "WE":
        for plane in range(chip.num_planes):
            found = loads[f"MXM_{side}{3 * plane}"]
            cycles = [first for first, *_ in multiplied[f"MXM_{side}{3 * plane + 1}"]]
            assert len(found) == len(cycles) == 9
            assert all(following > last + 1 for (_, last, *_), (following, *_) in itertools.pairwise(found))
            in_gap = [
                any(last < cycle < following for cycle in cycles)
                for (_, last, *_), (following, *_) in itertools.pairwise(found)
            ]
            assert sum(in_gap) >= len(in_gap) - 2
            assert found[-1][1] - found[0][0] <= 9 * (20 + 1) + 20


def test_many_columns_take_little_more_than_their_loads():
    compiled = compile_graph(product(1, 2 * 320, 16 * 320)[0], groqchip1)
    loads = 2 * 16 * 20 // 4
    fixed = groqchip1.barrier_cycles + groqchip1.skew_cycles + 13 + 71
    assert loads < compiled.cycles <= 1.05 * (loads + loads // 20) + fixed + 20


def test_long_products_keep_the_planes_busy():
    rows, k_tiles, num_tiles = 640, 4, 3
    compiled = compile_graph(product(rows, k_tiles * 320, num_tiles * 320, "float16", "float16")[0], groqchip1)
    # barrier, skew, first load and last results take 2.7 %; the rest is idle
    assert compiled.cycles <= 1.05 * rows * k_tiles * 2 * num_tiles / 2


def test_sums_over_lanes_load_their_ones_once():
    s = Sketch()
    graph = s.build((s.reduce("sum", s.random((2, 5 * 16))),))
    compiled = assert_agrees(graph, tiny, s.arguments)
    found = Counter(row.opcode for op in compiled.schedule.blocks[0].ops for row in op.template.rows)
    assert found[Opcode.IW] == found[Opcode.LW] == 1
    assert found[Opcode.ABC] == 5


def test_released_bookings_are_free_again():
    rng, table, known = np.random.default_rng(0), Table(), np.zeros(200, bool)
    booked = []
    for _ in range(300):
        start = int(rng.integers(0, 190))
        end = start + int(rng.integers(1, 10))
        if booked and rng.random() < 0.4:
            span = booked.pop(int(rng.integers(len(booked))))
            table.release(*span)
            known[slice(*span)] = False
        elif table.free_from(start, end) == start:
            table.book(start, end)
            booked.append((start, end))
            known[start:end] = True
        assert (table.free_from(start, end) == start) == (not known[start:end].any())
    free = [table.free_from(cycle, cycle + 1) == cycle for cycle in range(200)]
    assert np.array_equal(free, ~known)


def test_weights_that_stayed_installed_are_reused_at_the_first_attempt_only(monkeypatch):
    """They are where they are, whatever cycle an attempt begins at: one that was in the way would be so for ever."""
    run, reuse, starts, asked = Placement.run, Placement._reuse, [], []

    def noted_run(placement, start, follower):
        starts.append(start)
        return run(placement, start, follower)

    def noted_reuse(placement, tile, ready):
        asked.append(starts[-1])
        return reuse(placement, tile, ready)

    monkeypatch.setattr(Placement, "run", noted_run)
    monkeypatch.setattr(Placement, "_reuse", noted_reuse)
    compile_graph(product(70, 2 * 16, 3 * 16, "float16", "float16")[0], tiny)
    assert any(starts), "some attempts are repeated"
    assert asked
    assert not any(asked)


def test_row_sums_start_on_all_planes_of_a_hemisphere_at_once():
    """Their activations lie in different slices, and each plane is loaded before those of another are in the way."""
    s = Sketch(seed=5)
    graph = s.build((s.reduce("sum", s.random((128, 768))),))
    starts = {
        queue: rows[0][0] for queue, rows in plane_rows(compile_graph(graph, groqchip1).schedule, Opcode.ABC).items()
    }
    assert len(starts) == 2 * groqchip1.num_planes
    load = groqchip1.num_lanes * DataFormat.INT8.num_bytes // groqchip1.num_streams_per_load
    for side in ("W", "E"):
        own = [start for queue, start in starts.items() if queue.startswith(f"MXM_{side}")]
        assert max(own) - min(own) <= 2 * load
