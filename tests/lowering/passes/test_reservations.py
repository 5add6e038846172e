"""Reservation tables: what is booked never meets, and runs that take every second cycle leave the others free."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpu_jax.chips import tiny
from lpu_jax.lowering.passes import free_times
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


def first_free(tables, fixed, time):
    """Cycle by cycle: the first time at which no table that a booking takes is busy."""
    while any(
        tables[key].free_from(time + start, time + end) > time + start
        for base, start, end in fixed
        for key in booked_keys(base, time + start)
    ):
        time += 1
    return time


@pytest.mark.parametrize("window", [4, 1024])
def test_free_times_are_those_of_a_search_cycle_by_cycle(window, monkeypatch):
    monkeypatch.setattr(free_times, "_WINDOW", window)
    rng = np.random.default_rng(window)
    for _ in range(40):
        tables = Tables(tiny)
        for resource, parity in itertools.product(range(3), range(2)):
            for start in np.nonzero(rng.random(60) < 0.3)[0].tolist():
                tables["R", resource, parity].book(3 * start, 3 * start + int(rng.integers(1, 3)))
        fixed = [
            (("R", int(r), *([ALTERNATE] if r else [])), int(s), int(s + n))
            for r, s, n in zip(rng.integers(0, 3, 3), rng.integers(-5, 9, 3), rng.integers(1, 4, 3), strict=True)
        ]
        free, time = free_times.FreeTimes(tables.of, fixed, 7), 7
        for step in rng.integers(0, 40, 8).tolist():
            expected = first_free(tables, fixed, time + step)
            time = free.next(time + step)
            assert time == expected
