"""Published cycle counts of GroqChip 1, reproduced by programs on the machine; one cycle less is refused.

The counts of single steps disagree with each other when they are added up, so `ChipSpec` splits them as follows:
  * weights enter the MXM 9 cycles behind the last MEM column, with the cycle of the Read in it: 8 hops + 1;
  * "34 cycles of accumulation" hold the 6 cycles of leaving the MXM (76 = 4 + 9 + 3 + 13 + 34 + 19 - 6): 28 + 6;
  * "10 + 3" columns and VXM entry, but "VXM entry 5": 3 hops to the operand register, 2 cycles on the way out;
  * a one-op trip is 9 when it turns back, but the chain across both hemispheres leaves 5 + 3 n: one cycle for a turn.
"""

import numpy as np
import pytest
from machine_programs import (
    EAST,
    INT8,
    Scheduler,
    alu,
    barrier,
    filled,
    immediate,
    matmul,
    matmul_sram,
    stream,
    tiles,
)

from lpu_jax.runtime.chip import GROQCHIP1, Hemisphere, inward, outward
from lpu_jax.runtime.errors import ProgramError
from lpu_jax.runtime.isa import MXM_ACTIVATIONS, MXM_RESULTS, MXM_WEIGHTS, Opcode, mxm_queue, stream_id, sxm_queue
from lpu_jax.runtime.machine import completion_cycles, run
from lpu_jax.runtime.program import Program

CHIP = GROQCHIP1
S16 = tuple(s for s in range(25, 43) if s not in (28, 38))
HEMISPHERES = pytest.mark.parametrize("hemisphere", list(Hemisphere))


def refused(program: Program, sram, message: str) -> None:
    with pytest.raises(ProgramError, match=message):
        run(program, sram)


def load_all_planes(slices: tuple[int, ...], early: int = 0) -> tuple[Program, int, int]:
    """Loads and uses all four planes; returns the cycles of the last LW and of the first ABC, from the first Read."""
    plan = Scheduler(CHIP)
    reads = []
    for hemisphere in Hemisphere:
        mxm, out = CHIP.mxm_operand_position(hemisphere), outward(hemisphere)
        load = 1 + abs(mxm - CHIP.mem_position(hemisphere, min(slices)))
        for i, s in enumerate(slices):
            reads.append(plan.read(hemisphere, s, 0, stream_id(CHIP, out, i), mxm, load, 20))
        multiply = load + 20 - 1 + CHIP.mxm_install_tail_cycles
        lhs = stream_id(CHIP, out, 0)
        plan.read(hemisphere, 0, 1, lhs, mxm, multiply)
        for plane in range(2):
            queue = mxm_queue(CHIP, hemisphere, plane, MXM_WEIGHTS)
            plan.builder.add(load - early, queue, Opcode.LW, (stream_id(CHIP, out, 16 * plane), 0, 16, INT8), 20)
            plan.builder.add(load + 19 - early, queue, Opcode.IW, ())
            queue = mxm_queue(CHIP, hemisphere, plane, MXM_ACTIVATIONS)
            plan.builder.add(multiply, queue, Opcode.ABC, (lhs, INT8, 0, 0, 0, 320, 1, int(plane == 0)))
            result = stream_id(CHIP, inward(hemisphere), 4 * plane)
            queue = mxm_queue(CHIP, hemisphere, plane, MXM_RESULTS)
            plan.builder.add(multiply + 13, queue, Opcode.ACC, (result, 0, 0))
            for byte in range(4):
                plan.write(
                    hemisphere,
                    40 + byte if plane else 36 + byte,
                    100,
                    result + byte,
                    CHIP.mxm_result_position(hemisphere),
                    multiply + 41,
                )
    assert min(reads) == 0
    return plan.build(), load + 19, multiply


@pytest.mark.parametrize(("slices", "loaded", "usable"), [(range(12, 44), 36, 38), (range(8, 40), 37, 39)])
def test_all_planes_load_in_less_than_40_cycles(slices, loaded, usable):
    """Row 4: all 409,600 weights in fewer than 40 cycles, SRAM and transit included: 20 + transit.

    36 cycles from the first Read until the last row is in the buffers, 38 until the tiles are in use, with the 32
    outermost slices; a column further in costs one more.
    """
    program, last_load, first_use = load_all_planes(tuple(slices))
    assert (last_load + 1, first_use) == (loaded, usable)
    assert first_use < 40
    run(program, filled(CHIP, 44, 20))
    refused(load_all_planes(tuple(slices), early=1)[0], filled(CHIP, 44, 20), "MXM_.* LW .*: operand .* is not there")


def test_the_barrier_takes_35_cycles():
    """Row 5: Notify to the retirement of Sync."""
    run(barrier(CHIP, 35), filled(CHIP))
    refused(barrier(CHIP, 34), filled(CHIP), "queue is parked by SYNC")


@HEMISPHERES
def test_a_result_reaches_the_vxm_76_cycles_after_the_last_weights(hemisphere):
    """Row 6: 4 + 9 + 3 + 13 + 34 + 19 - 6 from the last weights Read of the innermost slices to the VXM.

    Weights S16 on slices 25-42 without 28 and 38, activation S1 on slice 43, K = 320, int8. The parts: 4 columns to the
    edge, 9 to the MXM with the Read in it, 3 of install tail, 13 multiply, 34 accumulate with the exit in it; the "19"
    from the edge to the operand register includes the 6 of the exit once more, hence - 6.
    """
    options = {"hemisphere": hemisphere, "weight_slices": S16, "activation_slice": 43, "num_vectors": 1}
    good = matmul(CHIP, **options)
    assert good.vxm_cycle - good.last_weights_read == 76
    sram, weights, activations = matmul_sram(CHIP, **options)
    run(good.program, sram)
    low = sram.read(hemisphere, 16, 100)
    np.testing.assert_array_equal(low, np.maximum(activations[0].astype(int) @ weights, 0) & 0xFF)
    refused(matmul(CHIP, **options, early=1).program, sram, "VXM5 imax .*: operand .* is not there")


def round_trip(hemisphere: Hemisphere, mem_slice: int, early: int = 0) -> Program:
    """Read of a slice at cycle 0, one VXM operation, Write to the same slice."""
    plan = Scheduler(CHIP)
    there, back = stream_id(CHIP, inward(hemisphere), 3), stream_id(CHIP, outward(hemisphere), 3)
    arrival = 1 + abs(plan.vxm_in(there) - CHIP.mem_position(hemisphere, mem_slice))
    plan.read(hemisphere, mem_slice, 0, there, plan.vxm_in(there), arrival)
    plan.vxm(arrival, 0, "ineg", stream(there, INT8), out=back, data_format=INT8)
    leaves = arrival + CHIP.vxm_op_cycles + CHIP.vxm_operand_cycles + CHIP.vxm_turn_cycles
    plan.write(hemisphere, mem_slice, 100, back, plan.vxm_out(back), leaves - early)
    return plan.build()


@HEMISPHERES
def test_a_round_trip_through_the_vxm_takes_12_cycles_and_2_per_column(hemisphere):
    """Row 7: 12 + 2 * (s // 4) for every slice: Read 1, columns, VXM 9 (entry to exit, with the turn), Write 2.

    Kept against "VXM entry 5 and 3 per operation" alone, which would give 11.
    """
    sram = filled(CHIP, 44, 1)
    for mem_slice in range(CHIP.num_slices):
        program = round_trip(hemisphere, mem_slice)
        assert run(program, sram).finish_cycle == 12 + 2 * (mem_slice // 4)
        early = round_trip(hemisphere, mem_slice, early=1)
        refused(early, sram, "MEM_.* Write .*: operand .* is not there")


def sxm_chain(hemisphere: Hemisphere, early: int = 0) -> tuple[Program, int, int]:
    """Transposer of one hemisphere -> three VXM operations -> distributor of the other; cycles of their issues."""
    plan = Scheduler(CHIP)
    other = Hemisphere(1 - hemisphere)
    here, there = CHIP.sxm_position(hemisphere), CHIP.sxm_position(other)
    into, flow = stream_id(CHIP, outward(hemisphere), 0), stream_id(CHIP, inward(hemisphere), 0)
    start = 30
    for s in range(16):
        plan.read(hemisphere, s, 0, into + s, here, start)
    plan.builder.add(start, sxm_queue(CHIP, hemisphere, 1), Opcode.TRANSPOSE, (into, flow, 0))
    leaves = start + 2 * CHIP.sxm_crossing_cycles + CHIP.sxm_transpose_cycles
    for s in range(1, 16):
        plan.write(hemisphere, 16 + s, 100, flow + s, here, leaves)
    vxm = leaves + abs(here - plan.vxm_in(flow))
    plan.vxm(vxm, 0, "ineg", stream(flow, INT8))
    plan.vxm(vxm + 3, 1, "iadd", alu(0), immediate(5))
    out = flow + 20
    plan.vxm(vxm + 6, 2, "ineg", alu(1), out=out, data_format=INT8)
    leaves = vxm + 9 + CHIP.vxm_operand_cycles
    distribute = leaves + abs(there - plan.vxm_out(out)) - early
    lane_map = out + 1
    plan.read(hemisphere, 40, 0, lane_map, there, distribute)
    unit = sxm_queue(CHIP, other, 1 + CHIP.num_transposers)
    result = stream_id(CHIP, inward(other), 0)
    plan.builder.add(distribute, unit, Opcode.DISTRIBUTE, (out, lane_map, result, 0, 0))
    plan.write(other, 40, 100, result, there, distribute + 2 * CHIP.sxm_crossing_cycles + CHIP.sxm_distribute_cycles)
    return plan.build(), start, distribute


@HEMISPHERES
def test_a_chain_from_transposer_to_distributor_takes_50_cycles(hemisphere):
    """Row 8: 4 + 4 + 11 + 5 + 9 + 11 + 4 + 2, from the transposer's start of work to the distributor's end.

    Both units work one crossing (4 cycles) after their issue, so the issues lie 48 cycles apart. Nothing turns, so the
    VXM takes 5 + 3 * 3 here and not 9 + 2 * 3.
    """
    program, transpose, distribute = sxm_chain(hemisphere)
    crossing = CHIP.sxm_crossing_cycles
    assert (distribute + crossing + CHIP.sxm_distribute_cycles) - (transpose + crossing) == 50
    run(program, filled(CHIP, 44, 2))
    refused(sxm_chain(hemisphere, early=1)[0], filled(CHIP, 44, 2), "SXM_.* Distribute .*: operand .* is not there")


def permutes(num_vectors: int, early: int = 0) -> Program:
    """Permutes vectors, one a cycle from cycle 20 on, and writes them one hop further in."""
    plan = Scheduler(CHIP)
    sxm = CHIP.sxm_position(EAST)
    east, west = stream_id(CHIP, outward(EAST), 0), stream_id(CHIP, inward(EAST), 0)
    for byte in range(2):
        plan.read(EAST, byte, 0, east + byte, sxm, 20, num_vectors)
    plan.read(EAST, 2, 0, east + 24, sxm, 20 + CHIP.sxm_permute_map_cycles, num_vectors)
    operands = (east + 24, east, west, 0, 0)
    plan.builder.add(20, sxm_queue(CHIP, EAST, 0), Opcode.PERMUTE, operands, num_vectors)
    plan.write(EAST, 43, 100, west, sxm, 20 + 60 - early, num_vectors)
    return plan.build()


@pytest.mark.parametrize("num_vectors", [1, 7])
def test_a_permute_takes_60_cycles_and_one_per_vector(num_vectors):
    """Row 9: 8 until the data follows the map, 48 in the permuter, 4 to leave."""
    program = permutes(num_vectors)
    finish = run(program, filled(CHIP)).finish_cycle
    hop, write = 1, CHIP.mem_write_cycles
    assert finish - hop - write == 20 + 60 + (num_vectors - 1)
    refused(permutes(num_vectors, early=1), filled(CHIP), "MEM_E43 Write .*: operand W0 is not there")


@pytest.mark.parametrize(("num_rows", "interval"), [(320, 20), (176, 11), (160, 10), (96, 10), (16, 10)])
def test_weight_tiles_follow_each_other_every_10_cycles_or_a_sixteenth_of_their_rows(num_rows, interval):
    """Row 10: max(K / 16, 10) cycles per tile of K rows on one plane.

    A cycle less meets the IW interval for small tiles; for the others the next LW would begin with the last one of this
    tile still on the port, and in the cycle in which the same queue issues IW, which is reported first.
    """
    assert interval == max(num_rows // 16, 10)
    program = tiles(CHIP, num_rows // 16, interval)
    sram = filled(CHIP, 24, 60)
    assert run(program, sram).cycles == completion_cycles(program)
    message = "queue issues two rows in one cycle" if num_rows >= 160 else "the interval is 10 cycles"
    refused(tiles(CHIP, num_rows // 16, interval - 1), sram, message)
