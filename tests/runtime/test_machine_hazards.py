"""Each hazard, injected into a good program, is refused with a message that names cycle, queue, operands and reason."""

import dataclasses

import numpy as np
import pytest
from machine_programs import (
    EAST,
    WEST,
    Scheduler,
    barrier,
    chain,
    copy,
    dropped,
    filled,
    lookup,
    matmul,
    matmul_sram,
    respell,
    reworded,
    shifted,
    tiles,
    with_line,
)

from lpu_jax.runtime.assembly import from_text, to_text
from lpu_jax.runtime.chip import TINY, Direction
from lpu_jax.runtime.errors import ProgramError
from lpu_jax.runtime.isa import DataFormat, Opcode, mem_queue, stream_id
from lpu_jax.runtime.machine import run
from lpu_jax.runtime.sram import Sram

# tiny: 6 MEM columns at 4..9 hops, SXM at 10, results of the MXM at 15, its operands at 17.
COPY, MATMUL, CHAIN = copy(TINY), matmul(TINY).program, chain(TINY)


def refused(program, message, sram=None):
    with pytest.raises(ProgramError, match=message):
        run(program, filled(TINY) if sram is None else sram)


def test_the_copy_is_the_drawing_that_the_tests_below_spoil():
    assert to_text(COPY) == (
        ".chip tiny\n.block start=0 iterations=1 period=0\n"
        "8: MEM_E4 Read a=0+1 loop=2 s=W3 (Repeat 2, 1)\n"
        "19: MEM_W4 Write a=100+1 loop=2 s=W3 (Repeat 2, 1)\n"
    )


# Streams


def test_a_drive_onto_a_passing_value_collides():
    refused(
        with_line(COPY, "9: MEM_E0 Read a=5 s=W3"),
        r"cycle 10: MEM_E0 Read a=5 s=W3: stream collision on W3 with the value of MEM_E4 Read a=0\+1",
    )


def test_two_drives_of_one_register_collide():
    refused(with_line(COPY, "8: MEM_E5 Read a=5 s=W3"), "cycle 9: MEM_E5 .*: stream collision on W3 with .*MEM_E4")


@pytest.mark.parametrize("cycles", [1, -1])
def test_an_operand_a_cycle_early_or_late_is_not_there(cycles):
    refused(
        shifted(COPY, 0, cycles),
        "cycle 19: MEM_W4 Write a=100.*: operand W3 is not there" if cycles > 0 else "operand W3 is not there",
    )


def test_two_readers_cannot_take_one_value():
    refused(with_line(COPY, "19: MEM_W5 Write a=9 s=W3"), "cycle 19: MEM_W5 .* operand W3 is not there: another reader")
    run(with_line(COPY, "19: MEM_W5 Write a=9 s=W3 keep"), filled(TINY))


def test_a_value_must_be_read_before_it_leaves_the_chip():
    program = with_line(dropped(COPY, 1), "200: VXM0 ineg #0x00000000 - -> -1,-1 format=int32")
    refused(program, r"cycle 32: MEM_E4 Read .*: its value on W3 left the chip unread")


def test_a_value_must_be_read_before_the_program_ends():
    refused(dropped(COPY, 1), r"MEM_E4 Read .*: its value on W3 is unread at program end")


# MEM


def test_a_bank_serves_a_read_or_a_write():
    busy = "18: MEM_W4 Read a=0+1 s=W9 (Repeat 3, 1)"
    refused(
        with_line(COPY, busy), r"cycle 19: MEM_W4 .*: bank conflict: read and write of one bank; the other is MEM_W4"
    )
    both = with_line(COPY, busy + "\n20: MEM_W8 Write a=0+1 s=W9 (Repeat 3, 1)")
    run(reworded(both, "a=100+1", "a=300+1"), filled(TINY))


def test_a_slice_reads_once_a_cycle():
    refused(
        with_line(COPY, "6: MEM_E4 Read a=3+1 s=W9 (Repeat 3, 1)"), "cycle 8: MEM_E4 .*: unit double-booked; the other"
    )


def test_a_slice_writes_once_a_cycle():
    refused(with_line(COPY, "17: MEM_W4 Write a=3+1 s=W9 (Repeat 4, 1)"), "cycle 19: MEM_W4 .*: unit double-booked")


def test_an_unwritten_word_cannot_be_read():
    sram = Sram(TINY)
    sram.write(EAST, 4, 0, np.zeros(16, np.uint8))
    refused(COPY, r"cycle 9: MEM_E4 Read a=0\+1 .*: address 1 was never written", sram)


def test_a_word_is_readable_two_cycles_after_its_write():
    late = "21: MEM_W4 Read a=100 s=W9\n23: MEM_W8 Write a=0 s=W9"
    run(with_line(COPY, late), filled(TINY))
    refused(
        with_line(COPY, late.replace("a=100", "a=101")),
        "cycle 21: MEM_W4 Read a=101 s=W9: address 101: read before write completes at cycle 22",
    )


@pytest.mark.parametrize("address", ["-1+1", "511+1", "0+600", "1-2"])
def test_addresses_stay_in_their_slice(address):
    refused(
        reworded(COPY, "a=0+1", f"a={address}"), "cycle 8: MEM_E4 Read .*: address out of range: 512 words per slice"
    )


def test_loops_stay_in_their_slice():
    refused(reworded(copy(TINY, 3), "Read a=0+1 loop=2", "Read a=0+1 loop=300"), "address out of range")


def test_a_gather_outside_its_slice_faults():
    program = reworded(lookup(TINY), "Gather a=2", "Gather a=511")
    sram = filled(TINY)
    sram.write(EAST, 0, 0, (np.arange(16) == 0).astype(np.uint8))
    refused(program, "cycle 10: MEM_E8 Gather a=511 .*: GFAULT: superlane 0 asks for address 512, limit 512", sram)


def test_a_gather_and_a_write_cannot_share_a_bank():
    line = "9: MEM_E8 Write a=7+0 s=E9 (Repeat 2, 1)\n6: MEM_E2 Read a=0+1 s=E9 (Repeat 2, 1)"
    refused(with_line(lookup(TINY), line), "cycle 10: MEM_E8 Gather .*: bank conflict", filled(TINY, limit=1))


# Queues


def test_a_queue_issues_one_row_a_cycle():
    refused(with_line(COPY, "8: MEM_E4 Read a=5 s=W9"), "cycle 8: MEM_E4 .*: queue issues two rows in one cycle")


def test_rows_come_in_order():
    order = [1, 0]
    columns = ("cycle", "queue", "opcode", "count", "interval", "operands")
    refused(dataclasses.replace(COPY, **{c: getattr(COPY, c)[order] for c in columns}), "rows out of order")


def test_blocks_come_in_order():
    again = from_text(to_text(COPY) + ".block start=0 iterations=1 period=0\n7: MEM_E4 Read a=3 s=W9\n")
    refused(again, "cycle 7: MEM_E4 Read a=3 s=W9: out of order: the queue issued last at cycle 8")


def test_iterations_come_in_order():
    program = reworded(copy(TINY, 3), "period=5", "period=1")
    refused(with_line(program, "9: MEM_E4 Read a=3 s=W9"), "out of order: the queue's next iteration begins 1 cycles")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Read a=0+1 loop=2 s=W3", "ABC s=E0 format=int8 acc=0 first=0 rows=1", "bad opcode for this queue"),
        ("Read a=0+1 loop=2 s=W3", "Raw opcode=99 columns=0", "bad opcode"),
        ("MEM_E4", "queue(999)", "queue id must be 0..103"),
        ("s=W3", "s=64", "bad stream"),
        ("s=W3", "s=-1", "bad stream"),
        ("(Repeat 2, 1)", "(Repeat 0, 1)", "Repeat count must be at least 1"),
        ("(Repeat 2, 1)", "(Repeat 2, 0)", "Repeat interval must be at least 1"),
        ("(Repeat 2, 1)", "(Repeat 65536, 1)", "Repeat count above 65535"),
        ("8: MEM_E4", "-3: MEM_E4", "negative cycle"),
    ],
)
def test_columns_out_of_range(old, new, message):
    refused(reworded(COPY, old, new), message)


# Barrier


def test_a_parked_queue_waits_for_the_barrier():
    run(barrier(TINY), filled(TINY))
    refused(barrier(TINY, 34), r"MEM_E4 Read .*: queue is parked by SYNC until cycle 38, this issue is at cycle 37")


def test_a_sync_needs_a_notify():
    refused(dropped(barrier(TINY), 2), "cycle 0: MEM_E4 Sync: SYNC at cycle 0 without a NOTIFY")


def test_a_notify_needs_a_parked_queue():
    refused(with_line(COPY, "0: VXM0 Notify"), "cycle 0: VXM0 Notify: NOTIFY at cycle 0 releases no queue")


# MXM


def test_an_install_needs_weights():
    refused(with_line(COPY, "3: MXM_W0 IW"), "cycle 3: MXM_W0 IW: the weight buffer is empty")


def test_a_vector_needs_installed_weights():
    program = reworded(MATMUL, "15: MXM_W0 IW", "16: MXM_W0 IW")
    refused(program, "cycle 18: MXM_W1 ABC .*: no weights are installed", matmul_sram(TINY)[0])


def without(program, *opcodes):
    return respell(program, lambda _, columns: None if columns[2] in opcodes else columns)


def test_loaded_weights_are_installed_and_used():
    loads = respell(MATMUL, lambda _, c: c if c[2] == Opcode.LW or (c[2] == Opcode.READ and c[3] == 1) else None)
    refused(loads, r"MXM_W0 LW s=W0 row=0\+16 format=int8: loaded weights were never installed", matmul_sram(TINY)[0])
    refused(with_line(loads, "15: MXM_W0 IW"), "installed weights were never used", matmul_sram(TINY)[0])


def test_a_sum_is_read():
    program = without(MATMUL, Opcode.ACC, Opcode.VXM, Opcode.WRITE)
    refused(program, "MXM_W1 ABC .*: accumulator 0 was never read by ACC", matmul_sram(TINY)[0])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("31: MXM_W2", "30: MXM_W2", "cycle 30: MXM_W2 ACC .*: accumulator 0 is complete at cycle 31"),
        ("ACC s=E0 acc=0+1", "ACC s=E0 acc=4+1", "cycle 31: .* accumulator 4 is empty"),
        ("ACC s=E0 acc=0+1", "ACC s=E0 acc=13+1", "accumulator out of range: a plane has 16"),
        ("ACC s=E0", "ACC s=W0", "bad stream W0: results of this unit leave eastward"),
        ("acc=0+1 first", "acc=0 first", "cycle 19: MXM_W1 ABC .* accumulator 0 reused before its sum was read by ACC"),
        (" begin", "", "cycle 18: MXM_W1 ABC .* accumulator 0 is empty; the first term of a sum needs `begin`"),
        ("rows=16 begin", "rows=17 begin", "rows out of range"),
        ("row=0+16", "row=1+16", "row out of range: a plane has 16 rows"),
        ("LW s=W0", "LW s=W20", "bad stream"),
        ("row=0+16 format=int8", "row=0+16 format=int32", "bad format"),
        ("format=int8 acc", "format=uint8 acc", "bad format"),
        ("MXM_W0", "MXM_E0", "cycle 14: MXM_E0 LW .*: operand W0 is not there: no value there"),
    ],
)
def test_matmul_hazards(old, new, message):
    refused(reworded(MATMUL, old, new), message, matmul_sram(TINY)[0])


def test_buffer_rows_are_loaded_once():
    program = without(tiles(TINY, 1, 10, 2), Opcode.IW, Opcode.ABC, Opcode.ACC, Opcode.WRITE)
    only_weights = respell(program, lambda _, c: None if c[1] >= 20 and c[2] == Opcode.READ else c)
    refused(only_weights, r"cycle 40: MXM_W0 LW .*: buffer rows 0\.\.15 are loaded twice before an install")


def test_installs_keep_their_interval():
    run(tiles(TINY, 1, 10), filled(TINY))
    refused(tiles(TINY, 1, 9), "cycle 40: MXM_W0 IW: previous IW was at cycle 31, the interval is 10 cycles")


def test_the_plane_is_busy_for_each_byte_product():
    program = tiles(TINY, 1, 10, 1, DataFormat.FP32)  # 3 significand bytes x 1 byte: 3 cycles a vector
    again = "acc=0 first=0 rows=16 begin (Repeat 2, 2)"
    twice = reworded(program, "acc=0 first=0 rows=16 begin", again)
    for byte in range(4):
        read = f"MEM_W{20 + byte} Read a=0+1 s=W{16 + byte}"
        twice = reworded(twice, read, f"{read} (Repeat 2, 2)")
    message = "cycle 36: MXM_W1 ABC .*: unit double-booked: the plane is busy until cycle 37"
    refused(twice, message, filled(TINY, limit=64))


@pytest.mark.parametrize("late", [0, 1])
def test_a_plane_is_not_overwritten_while_in_use(late):
    # The second install counts from cycle 44; three cycles of one vector from 41 end just in time, from 42 they do not.
    program = tiles(TINY, 1, 10, 2, DataFormat.FP32)
    program = reworded(program, "34: MXM_W1 ABC", f"{41 + late}: MXM_W1 ABC")
    for byte in range(4):
        queue = f"MEM_W{20 + byte} Read a=0+1"
        cycle = 34 - 1 - (17 - 9)
        program = reworded(program, f"{cycle}: {queue}", f"{cycle + 7 + late}: {queue}")
    if late:
        refused(program, "plane overwritten while in use: an install takes effect at 44", filled(TINY, limit=64))
    else:
        run(program, filled(TINY, limit=64))


def test_a_wide_tile_belongs_to_plane_0():
    refused(
        reworded(matmul(TINY, plane=1).program, "row=0+16 format=int8", "row=0+4 format=fp32"),
        "MXM_W3 LW .*: a tile wider than one byte is loaded by plane 0",
    )


# VXM


def test_an_alu_issues_once_a_cycle():
    line = "10: VXM0 iadd #0x00000001 #0x00000001 -> -1,-1 format=int32 (Repeat 3, 1)"
    refused(with_line(CHAIN, line), "cycle 12: VXM0 .*: unit double-booked; the other is VXM0")


def test_a_chained_function_occupies_the_next_alus():
    line = "18: VXM2 div #0x3f800000 #0x3f800000 -> -1,-1 format=fp32"
    refused(with_line(CHAIN, line), "cycle 18: VXM3 imul .*: unit double-booked; the other is VXM2 div")
    last = "18: VXM15 div #0x3f800000 #0x3f800000 -> -1,-1 format=fp32"
    refused(with_line(CHAIN, last), "needs more ALUs than 16")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("ALU0@3", "ALU0@2", "cycle 20: VXM3 .*: operand is not there: ALU0 has no result of cycle 18"),
        ("ALU0@3", "ALU0@4", "cycle 18: VXM3 .*: operand is not there: ALU0 has no result of cycle 14"),
        ("ALU0@3", "ALU16@3", "lhs: ALU out of range"),
        ("ALU0@3", "ALU0@65", r"lhs: delay must be 0\.\.64"),
        ("ineg", "function(500)", "bad function id"),
        ("ineg ALU1@0 -", "ineg ALU1@0 ALU1@0", "this function takes 1 operand"),
        ("isub E2.int8 W9.int8", "isub E2.int8 -", "this function takes 2 operands"),
        ("E20,W20", "-1,W20", "bad stream"),
        ("E2.int8 W9.int8 ->", "E2.9 W9.int8 ->", "bad format"),
        ("E2.int8 W9.int8 ->", "?7,0,0,0 W9.int8 ->", "bad lhs kind"),
        ("27: MEM_W12", "26: MEM_W12", "cycle 26: MEM_W12 Write .*: operand W20 is not there"),
    ],
)
def test_vxm_hazards(old, new, message):
    refused(reworded(CHAIN, old, new), message)


def test_vectors_of_words_end_at_the_last_stream():
    plan = Scheduler(TINY)
    plan.vxm(0, 0, "identity", (3, 0, 0, 0), out=stream_id(TINY, Direction.EASTWARD, 30))
    refused(plan.build(), "bad stream: a value needs consecutive streams below 32")
    assert mem_queue(TINY, WEST, 0) == 0


# Tiles of two planes


def wide_tile() -> str:
    """An fp16 tile of 8 rows in plane 0 of the west, as text; its 16 streams come from slices 0..15."""
    reads = "".join(f"{s // 4}: MEM_W{s} Read a=0 s=W{s}\n" for s in range(16))
    return HEAD + reads + "14: MXM_W0 LW s=W0 row=0 format=fp16\n"


HEAD = ".chip tiny\n.block start=0 iterations=1 period=0\n"
THIRD = "".join(f"{s // 4 + 2}: MEM_W{s} Read a=2 s=W{s}\n" for s in range(16))
SECOND = "".join(f"{s // 4 + 1}: MEM_W{s} Read a=1 s=W{s}\n" for s in range(16))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (SECOND + "15: MXM_W3 LW s=W0 row=0 format=int8", "MXM_W3 LW .*: the buffer belongs to the other plane's wide"),
        (SECOND + "15: MXM_W0 LW s=W0 row=0 format=int8", "MXM_W0 LW .*: format differs from fp16"),
        ("14: MXM_W3 LW s=W0 row=0 format=int8", "cycle 14: MXM_W3 LW .*: unit double-booked; the other is MXM_W0"),
        ("15: MXM_W0 IW\n15: MXM_W3 IW", "MXM_W3 IW: the weight buffer is empty"),
        (
            "15: MXM_W0 IW\n9: MEM_W20 Read a=0 s=W16\n18: MXM_W4 ABC s=W16 format=int8 acc=0 first=0 rows=8 begin",
            "MXM_W4 ABC .*: no weights are installed in this plane",
        ),
        (
            THIRD + "15: MXM_W0 IW\n16: MXM_W3 LW s=W0 row=0 format=int8\n24: MXM_W3 IW",
            "cycle 24: MXM_W3 IW: previous IW was at cycle 15, the interval is 10 cycles",
        ),
        (
            THIRD + "15: MXM_W0 IW\n16: MXM_W3 LW s=W0 row=0 format=int8\n25: MXM_W3 IW\n40: VXM0 NOP",
            "installed weights were never used",
        ),
    ],
)
def test_a_wide_tile_takes_both_planes(more, message):
    program = respell(from_text(wide_tile() + more), lambda _, columns: columns)
    refused(program, message)


def test_blocks_do_not_overlap():
    text = to_text(COPY) + ".block start=3 iterations=1 period=0\n"
    run(from_text(text), filled(TINY))
    refused(from_text(text.replace("start=0", "start=4")), "bad block: .* must start at cycle 4 or later")
