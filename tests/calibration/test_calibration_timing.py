"""Published cycle counts of GroqChip 1, reproduced by programs on the machine; one cycle less is refused.

The counts of single steps disagree with each other when they are added up, so `ChipSpec` splits them as follows:
  * weights enter the MXM 9 cycles behind the last MEM column, with the cycle of the Read in it: 8 hops + 1;
  * "34 cycles of accumulation" hold the 6 cycles of leaving the MXM (76 = 4 + 9 + 3 + 13 + 34 + 19 - 6): 28 + 6;
  * "10 + 3" columns and VXM entry, but "VXM entry 5": 3 hops to the operand register, 2 cycles on the way out;
  * a one-op trip is 9 when it turns back, but the chain across both hemispheres leaves 5 + 3 n: one cycle for a turn.
"""

import numpy as np
import pytest
from calibration_programs import CHIP, S16, load_all_planes, permutes, round_trip, sxm_chain
from machine_programs import barrier, filled, matmul, matmul_sram, tiles

from lpu_jax.runtime.chip import Hemisphere
from lpu_jax.runtime.errors import ProgramError
from lpu_jax.runtime.machine import completion_cycles, run
from lpu_jax.runtime.program import Program

HEMISPHERES = pytest.mark.parametrize("hemisphere", list(Hemisphere))


def refused(program: Program, sram, message: str) -> None:
    with pytest.raises(ProgramError, match=message):
        run(program, sram)


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
