"""A good program with one thing wrong is always refused.

Shifts that are no hazard, and are left out by rule:
  * NOP does nothing; a Sync may go, or move to any cycle up to its Notify; a Notify may come earlier, as long as it is
    not before the first Sync, since the queues then wait less than they could;
  * an instruction that touches no stream and no ALU (only IW) may move within its slack: these programs install each
    tile right after its last load and use it right when it takes effect, so there is none.
"""

import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machine_programs import EAST, WEST, Scheduler, dropped, filled, good_programs, shifted

from lpu_jax.runtime.assembly import row_text
from lpu_jax.runtime.chip import TINY, Direction
from lpu_jax.runtime.errors import ProgramError
from lpu_jax.runtime.isa import DataFormat, Opcode, queues, stream_id
from lpu_jax.runtime.machine import run

PROGRAMS = good_programs(TINY)
HARMLESS = {(Opcode.SYNC, "drop"), (Opcode.SYNC, "+1"), (Opcode.NOTIFY, "-1")}
"""Sync at cycle 0 cannot move earlier, and a later Notify keeps its queues parked too long: both are refused."""


def spoiled(program, row, fault):
    return dropped(program, row) if fault == "drop" else shifted(program, row, int(fault))


@pytest.mark.parametrize("fault", ["drop", "+1", "-1"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_every_dropped_or_shifted_row_is_refused(name, fault):
    program, sram = PROGRAMS[name]
    run(program, sram())
    unnoticed = []
    for row in range(program.num_rows):
        if (Opcode(int(program.opcode[row])), fault) in HARMLESS:
            continue
        try:
            run(spoiled(program, row, fault), sram())
            unnoticed.append(row_text(program, row))
        except ProgramError as error:
            assert re.match(r"cycle -?\d+: (MEM_[WE]|VXM|MXM_[WE]|SXM_[WE])\d+ .*: .+", str(error))  # noqa: PT017
    assert not unnoticed


@pytest.mark.parametrize("name", PROGRAMS)
def test_two_rows_of_a_queue_out_of_order_are_refused(name):
    program, sram = PROGRAMS[name]
    columns = ("cycle", "queue", "opcode", "count", "interval", "operands")
    for first in range(program.num_rows):
        later = np.flatnonzero(program.queue[first + 1 :] == program.queue[first])
        if not len(later):
            continue
        order = np.arange(program.num_rows)
        order[[first, first + 1 + later[0]]] = order[[first + 1 + later[0], first]]
        swapped = {column: getattr(program, column)[order] for column in columns}
        with pytest.raises(ProgramError, match=r"out of order|two rows in one cycle"):
            run(dataclasses.replace(program, **swapped), sram())


@st.composite
def pipelines(draw):
    """Two vectors meet in an ALU, then a second ALU works on the result and one hemisphere stores it."""
    plan = Scheduler(TINY)
    count = draw(st.integers(1, 4))
    start = draw(st.integers(20, 40))
    sides = [draw(st.sampled_from([WEST, EAST])) for _ in range(2)]
    slices = draw(st.lists(st.integers(0, 19), min_size=2, max_size=2, unique=True))
    names = draw(st.lists(st.integers(0, 31), min_size=3, max_size=3, unique=True))
    operands = []
    for side, mem_slice, name in zip(sides, slices, names, strict=False):
        number = stream_id(TINY, Direction.EASTWARD if side is WEST else Direction.WESTWARD, name)
        plan.read(side, mem_slice, 0, number, plan.vxm_in(number), start, count)
        operands.append((1, number, DataFormat.INT8, 0))
    first, second = draw(st.lists(st.integers(0, 15), min_size=2, max_size=2, unique=True))
    delay = draw(st.integers(0, 8))
    way = draw(st.sampled_from(list(Direction)))
    out = stream_id(TINY, way, names[2])
    plan.vxm(start, first, draw(st.sampled_from(["iadd", "isub", "imax"])), *operands, count=count)
    plan.vxm(start + 3 + delay, second, "ineg", (2, first, delay, 0), out=out, data_format=DataFormat.INT8, count=count)
    turn = Direction(operands[0][1] // 32) is not way
    leaves = start + 3 + delay + 5 + turn
    plan.write(
        EAST if way is Direction.EASTWARD else WEST, draw(st.integers(20, 23)), 9, out, plan.vxm_out(out), leaves, count
    )
    return plan.build()


@settings(max_examples=150, deadline=None, derandomize=True)
@given(pipelines(), st.data())
def test_random_pipelines_run_and_any_fault_in_them_is_refused(program, data):
    run(program, filled(TINY))
    row = data.draw(st.integers(0, program.num_rows - 1))
    fault = data.draw(st.sampled_from(["drop", "+1", "-1"]))
    with pytest.raises(ProgramError):
        run(spoiled(program, row, fault), filled(TINY))


def test_the_programs_use_every_instruction():
    used = {int(opcode) for program, _ in PROGRAMS.values() for opcode in program.opcode}
    assert used == set(Opcode) - {Opcode.NOP}
    assert len(queues(TINY)) == 2 * 24 + 16 + 2 * 6 + 2 * 14
