"""Reservation tables: what is booked never meets, and runs that take every second cycle leave the others free."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpu_jax.chips import tiny
from lpu_jax.lowering.passes.free_times import CHUNK, BusyCycles, FreeTimes, book, release, window
from lpu_jax.lowering.passes.reservation_table import booked_keys
from lpu_jax.lowering.passes.reservations import Tables
from lpu_jax.lowering.passes.template import ALTERNATE, Accesses, Run, Template, merge_own
from lpu_jax.runtime.isa import Opcode

RUNS = st.lists(
    st.tuples(st.sampled_from("RW"), st.integers(0, 1), st.integers(0, 5), st.integers(1, 5), st.integers(1, 4)),
    min_size=1,
    max_size=3,
)


def template_of(runs):
    """Runs (port, queue, start, count, interval) as a MEM slice books them."""
    found = [Run(q, p, start, count, step, 0, 0, (i, i)) for i, (p, q, start, count, step) in enumerate(runs)]
    template = Template(accesses=[Accesses(0, Opcode.READ, 0, (), found)])
    if not merge_own(template):
        return None
    ports = [booking for booking in template.fixed if booking[0][0] in ("R", "W")]
    return Template(fixed=ports)


def cycles_of(runs, time):
    return {(port, queue, time + start + i * step) for port, queue, start, count, step in runs for i in range(count)}


@given(st.lists(RUNS, min_size=1, max_size=6), st.integers(0, 3))
def test_templates_never_meet_in_a_cycle(many, earliest):
    tables, taken = Tables(tiny), set()
    for runs in many:
        template = template_of(runs)
        if template is None:
            continue
        time, chosen = tables.fit(template, earliest)
        assert time >= earliest
        tables.book(template, time, chosen)
        own = cycles_of(runs, time)
        assert not own & taken
        taken |= own


@given(RUNS, st.integers(0, 5))
def test_a_released_template_fits_where_it_was(runs, earliest):
    tables, template = Tables(tiny), template_of(runs)
    if template is None:
        return
    time, chosen = tables.fit(template, earliest)
    tables.book(template, time, chosen)
    tables.release(template, time, chosen)
    assert tables.fit(template, earliest) == (time, chosen)


@pytest.mark.parametrize("interval", [2, 4])
def test_every_second_cycle_is_left_to_others(interval):
    tables, template = Tables(tiny), template_of([("R", 0, 0, 10, interval)])
    times = []
    for _ in range(3):
        time, chosen = tables.fit(template, 0)
        tables.book(template, time, chosen)
        times.append(time)
    assert times[:2] == [0, 1]
    assert times[2] >= 9 * interval + 1


def test_runs_of_odd_intervals_take_all_cycles():
    tables, template = Tables(tiny), template_of([("R", 0, 0, 10, 3)])
    tables.book(template, *tables.fit(template, 0))
    assert tables.fit(template, 0)[0] == 28


def first_free(busy, fixed, time):
    """Cycle by cycle: the first time at which no resource that a booking takes is busy; busy: (key, cycle)."""
    while any(
        (key, cycle) in busy
        for base, start, end in fixed
        for key in booked_keys(base, time + start)
        for cycle in range(time + start, time + end)
    ):
        time += 1
    return time


@pytest.mark.parametrize(("longest", "cases"), [(3, 20), (3 * CHUNK, 2)])
def test_free_times_are_those_of_a_search_cycle_by_cycle(longest, cases):
    rng = np.random.default_rng(longest)
    for _ in range(cases):
        tables, busy = Tables(tiny), set()
        for resource in range(3):
            for time in np.cumsum(rng.integers(1, 2 * longest, 6)).tolist():
                interval = ("R", resource), time, time + int(rng.integers(1, 1 + longest // 3))
                if (("R", resource, 0), time) not in busy:
                    tables.book(Template(fixed=[interval]), 0, ())
                    busy |= {(("R", resource, p), c) for p in range(2) for c in range(*interval[1:])}
        fixed = [
            (("R", int(r), *([ALTERNATE] if r else [])), int(s), int(s + n))
            for r, s, n in zip(rng.integers(0, 3, 3), rng.integers(0, 9, 3), rng.integers(1, 4, 3), strict=True)
        ]
        free, time = FreeTimes(tables.fixed_of(Template(fixed=fixed)), 7), 7
        for step in rng.integers(0, longest, 4).tolist():
            expected = first_free(busy, fixed, time + step)
            time = free.next(time + step)
            assert time == expected


def test_released_cycles_are_free_again():
    busy = BusyCycles()
    spans = [(0, 1), (5, CHUNK), (CHUNK, 2 * CHUNK + 7), (4 * CHUNK - 1, 4 * CHUNK + 1)]
    for span in spans:
        book([busy], *span)
    length = 5 * CHUNK
    assert window([busy], 0, length) == sum((1 << stop) - (1 << start) for start, stop in spans)
    assert window([busy], 17, length) == window([busy], 0, length) >> 17
    for span in spans:
        release([busy], *span)
    assert window([busy], 0, length) == 0
