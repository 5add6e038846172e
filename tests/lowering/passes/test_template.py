"""Templates: runs of accesses lose nothing, bookings of one op are merged only where they never meet."""

import itertools

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lpu_jax.lowering.passes.memory_access import affine_runs
from lpu_jax.lowering.passes.reservation_table import booked_keys
from lpu_jax.lowering.passes.template import Accesses, Row, Run, Template, merge_own
from lpu_jax.runtime.isa import Opcode

FIXED = settings(derandomize=True, database=None, deadline=None, max_examples=200)
INCREASING = st.lists(st.integers(0, 4), min_size=1, max_size=30).map(
    lambda steps: np.cumsum(np.array(steps) + 1).astype(np.int64)
)


def pieces(draw_steps):
    """Addresses made of a few affine pieces, as real accesses are."""
    return np.cumsum(np.array(draw_steps)).astype(np.int64)


@FIXED
@given(INCREASING, st.data())
def test_affine_runs_reproduce_all_accesses(times, data):
    steps = st.sampled_from((-1, 0, 1, 1, 1, 7))
    addresses = pieces(data.draw(st.lists(steps, min_size=len(times), max_size=len(times))))
    found, following = [], 0
    for start, count, interval, step in affine_runs(times, addresses):
        assert start == following
        assert count >= 1
        found += [(times[start] + i * interval, addresses[start] + i * step) for i in range(count)]
        following = start + count
    assert found == list(zip(times, addresses, strict=True))


@FIXED
@given(st.integers(1, 50), st.integers(1, 5), st.integers(-3, 3), st.integers(0, 100))
def test_one_affine_access_is_one_run(count, interval, step, first):
    index = np.arange(count)
    (run,) = affine_runs(7 + index * interval, first + index * step)
    assert run == ((0, count, interval, step) if count > 1 else (0, 1, 1, 0))


@FIXED
@given(st.lists(st.integers(1, 12), min_size=1, max_size=4))
def test_jumps_split_runs_at_most_twice(lengths):
    """Pieces of equal steps with jumps between them: a jump may cost a run of its own beside the two pieces."""
    addresses = np.concatenate([100 * i + np.arange(n) for i, n in enumerate(lengths)])
    runs = list(affine_runs(np.arange(len(addresses)), addresses))
    assert len(runs) <= 2 * len(lengths)


def run_cycles(start, count, interval):
    return range(start, start + (count - 1) * interval + 1, interval)


def booked(runs):
    """A template with runs (port, queue, bank, start, count, interval) of MEM slices."""
    found = [Run(q, port, start, count, step, 0, 0, (bank, bank)) for port, q, bank, start, count, step in runs]
    return Template(accesses=[Accesses(0, Opcode.READ, 0, (), found)])


def issued_together(runs):
    """Whether a queue would issue two runs in one cycle."""
    return len({(run[1], run[3]) for run in runs}) < len(runs)


def collide(runs, key):
    """Whether two runs with the same key meet in a cycle."""
    seen = set()
    for run in runs:
        for cycle in run_cycles(*run[3:]):
            if (key(run), cycle) in seen:
                return True
            seen.add((key(run), cycle))
    return False


RUNS = st.lists(
    st.tuples(
        st.sampled_from("RW"),
        st.integers(0, 1),
        st.integers(0, 1),
        st.integers(0, 12),
        st.integers(1, 4),
        st.integers(1, 4),
    ),
    min_size=1,
    max_size=4,
)


@FIXED
@given(RUNS)
@example([("R", 0, 0, 0, 3, 4), ("R", 0, 0, 1, 3, 4)])
@example([("R", 0, 0, 0, 3, 4), ("R", 0, 0, 4, 3, 4)])
def test_ports_are_merged_unless_they_collide(runs):
    template = booked([(*run[:2], 2 + i, *run[3:]) for i, run in enumerate(runs)])  # each in a bank of its own
    assert merge_own(template) == (not collide(runs, lambda run: run[:2]) and not issued_together(runs))


@FIXED
@given(RUNS)
def test_banks_that_collide_are_refused(runs):
    by_port, by_bank = collide(runs, lambda run: run[:2]), collide(runs, lambda run: run[1:3])
    if by_port or by_bank:
        assert not merge_own(booked(runs))


@FIXED
@given(RUNS)
def test_merged_bookings_cover_every_cycle_and_are_disjoint(runs):
    template = booked(runs)
    if not merge_own(template):
        return
    spans = {}
    for key, start, end in template.fixed:
        for table in booked_keys(key, start):
            spans.setdefault(table, []).append((start, end))
    for found in spans.values():
        found.sort()
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(found))
    for run in runs:
        for key in (run[:2], ("B", *run[1:3])):
            for cycle in run_cycles(*run[3:]):
                assert any(start <= cycle < end for start, end in spans[*key, cycle % 2])


def test_accesses_of_an_op_are_rows_and_bookings_so_many_cycles_later():
    run = Run(3, "W", 5, 4, 2, 100, 1, (0, 0))
    template = Template(accesses=[Accesses(7, Opcode.WRITE, 64, (9, 0), [run])])
    assert merge_own(template)
    assert template.rows == [Row(12, 3, Opcode.WRITE, (100, 1, 64, 9, 0), 4, 2)]
    assert {(key, start, end) for key, start, end in template.fixed if key[0] == "Q"} == {(("Q", 3), 12, 13)}
    assert {(start, end) for key, start, end in template.fixed if key[0] in ("W", "B")} == {(12, 19)}
    assert not template.accesses


def test_runs_that_touch_are_one_booking():
    """A vector per cycle, each from another address: one booking of the port, the bank and the queue."""
    template = booked([("R", 0, 0, start, 1, 1) for start in (3, 5, 4, 7)])
    assert merge_own(template)
    assert sorted(span for key, *span in template.fixed if key[0] == "R") == [[3, 6], [7, 8]]
