"""What instructions do and when, on programs scheduled by hand."""

import numpy as np
import pytest
from machine_programs import (
    EAST,
    WEST,
    Scheduler,
    alu,
    chain,
    copy,
    filled,
    good_programs,
    immediate,
    lookup,
    matmul,
    matmul_sram,
    read_int32,
    shuffle,
    stream,
    tiles,
)

from lpu_jax.runtime.chip import GROQCHIP1, TINY, Direction
from lpu_jax.runtime.errors import ProgramError
from lpu_jax.runtime.isa import DataFormat, Opcode, mem_queue, mxm_queue, stream_id
from lpu_jax.runtime.machine import completion_cycles, run
from lpu_jax.runtime.program import ProgramBuilder
from lpu_jax.runtime.sram import Sram

CHIPS = pytest.mark.parametrize("chip", [TINY, GROQCHIP1], ids=lambda chip: chip.name)


@CHIPS
@pytest.mark.parametrize("name", good_programs(TINY))
def test_the_machine_finishes_at_the_cycle_that_the_rows_promise(chip, name):
    program, sram = good_programs(chip)[name]
    result = run(program, sram())
    assert result.cycles == completion_cycles(program)
    assert result.cycles == result.finish_cycle + chip.num_superlanes


@CHIPS
@pytest.mark.parametrize("hemisphere", [WEST, EAST])
@pytest.mark.parametrize("plane", [0, 1])
def test_matmul_is_the_integer_product(chip, hemisphere, plane):
    sram, weights, activations = matmul_sram(chip, hemisphere)
    run(matmul(chip, hemisphere, plane).program, sram)
    expected = np.maximum(activations.astype(np.int32) @ weights.astype(np.int32), 0)
    np.testing.assert_array_equal(read_int32(sram, hemisphere, 16, 100 + np.arange(4)), expected)


def test_accumulators_add_tiles():
    sram = filled(TINY)
    run(tiles(TINY, 1, 10), sram)
    weights = np.stack([sram.data[WEST, s, :3] for s in range(16)], axis=1).view(np.int8).astype(np.int32)
    vectors = sram.data[WEST, 20, :3].view(np.int8).astype(np.int32)
    expected = sum(vectors[t] @ weights[t] for t in range(3))
    np.testing.assert_array_equal(read_int32(sram, WEST, 16, 100), expected)


@pytest.mark.parametrize("lhs_format", [DataFormat.FP16, DataFormat.FP32])
def test_wide_activations_meet_byte_weights(lhs_format):
    sram = filled(TINY, limit=64)  # small exponents: no infinities
    run(tiles(TINY, 1, 10, lhs_format=lhs_format), sram)
    assert np.isfinite(read_int32(sram, WEST, 16, 100).view(np.float32)).all()


@CHIPS
def test_a_loop_moves_addresses_by_its_step(chip):
    sram = filled(chip)
    run(copy(chip, 3), sram)
    np.testing.assert_array_equal(sram.read(WEST, 4, 100 + np.arange(6)), sram.read(EAST, 4, np.arange(6)))


@CHIPS
def test_alus_chain_wait_and_send_both_ways(chip):
    sram = filled(chip)
    run(chain(chip), sram)
    a, b = (sram.read(h, s, np.arange(3)).view(np.int8).astype(np.int32) for h, s in ((WEST, 6), (EAST, 9)))
    expected = ((a + b) * -(a - b)).astype(np.int16)
    for hemisphere in (WEST, EAST):
        low, high = (sram.read(hemisphere, s, 100 + np.arange(3)).astype(np.uint16) for s in (12, 13))
        np.testing.assert_array_equal((low + (high << 8)).view(np.int16), expected)


@CHIPS
@pytest.mark.parametrize("hemisphere", [WEST, EAST])
def test_sxm_moves_lanes(chip, hemisphere):
    sram = filled(chip)
    low = np.arange(chip.num_lanes)[::-1]
    sram.write(hemisphere, 0, 0, (low % 256).astype(np.uint8))
    sram.write(hemisphere, 1, 0, (low // 256).astype(np.uint8))
    sram.write(hemisphere, 5, 0, sram.read(hemisphere, 5, 0) % 20)
    lanes = sram.read(hemisphere, 5, 0).astype(int)
    run(shuffle(chip, hemisphere), sram)
    np.testing.assert_array_equal(sram.read(hemisphere, 3, 100), sram.read(hemisphere, 2, 0)[::-1])
    data = sram.read(hemisphere, 4, 0)
    for lane in range(chip.num_lanes):
        moved = data[lane // 16 * 16 + lanes[lane]] if lanes[lane] < 16 else 0
        assert sram.read(hemisphere, 6, 100)[lane] == moved
    before = np.stack([sram.read(hemisphere, 8 + i, 0) for i in range(16)])
    after = np.stack([sram.read(hemisphere, 8 + i, 100) for i in range(16)])
    for superlane in range(chip.num_superlanes):
        here = slice(16 * superlane, 16 * superlane + 16)
        np.testing.assert_array_equal(after[:, here], before[:, here].T)


@CHIPS
def test_gather_and_scatter_take_an_address_per_superlane(chip):
    sram = filled(chip, words=30)
    index_map = np.zeros(chip.num_lanes, np.uint8)
    index_map[::16] = np.arange(chip.num_superlanes)
    sram.write(EAST, 0, 0, index_map)
    sram.write(EAST, 1, 0, index_map)
    run(lookup(chip), sram)
    for superlane in range(chip.num_superlanes):
        here = slice(16 * superlane, 16 * superlane + 16)
        source = sram.read(EAST, 8, 2 + superlane)[here]
        np.testing.assert_array_equal(sram.read(EAST, 16, 200 + superlane)[here], source)


def test_values_are_bits_until_a_function_reads_them():
    plan = Scheduler(TINY)
    out = stream_id(TINY, Direction.EASTWARD, 0)
    plan.vxm(0, 0, "add", immediate(0x3F800000), immediate(0x40000000))  # 1.0 + 2.0
    plan.vxm(3, 1, "iadd", alu(0), immediate(1))
    plan.vxm(6, 2, "mask", alu(1), immediate(0), out)
    plan.vxm(6, 3, "mask_bar", alu(1), immediate(0), out + 4)
    for byte in range(8):
        plan.write(EAST, 4 + byte, 0, out + byte, plan.vxm_out(out), 11)
    sram = Sram(TINY)
    run(plan.build(), sram)
    assert (read_int32(sram, EAST, 4, 0) == 0).all()
    assert (read_int32(sram, EAST, 8, 0) == np.float32(3).view(np.int32) + 1).all()


def test_a_function_of_more_slots_takes_longer():
    plan = Scheduler(TINY)
    plan.vxm(0, 0, "div", immediate(0x3F800000), immediate(0x40000000))
    slots = TINY.alu_slots("div")
    out = stream_id(TINY, Direction.EASTWARD, 0)
    plan.vxm(TINY.vxm_op_cycles * slots, slots, "identity", alu(0), out=out)
    for byte in range(4):
        leaves = TINY.vxm_op_cycles * (slots + 1) + TINY.vxm_operand_cycles
        plan.write(EAST, byte, 0, out + byte, plan.vxm_out(out), leaves)
    sram = Sram(TINY)
    run(plan.build(), sram)
    assert (read_int32(sram, EAST, 0, 0).view(np.float32) == 0.5).all()


def test_a_register_may_be_taken_and_driven_in_one_cycle():
    plan = Scheduler(TINY)
    east = stream_id(TINY, Direction.EASTWARD, 0)
    here = TINY.mem_position(EAST, 8)
    plan.read(EAST, 0, 0, east, here, 10)
    plan.write(EAST, 8, 100, east, here, 10)
    plan.read(EAST, 9, 1, east, here, 10)
    plan.write(EAST, 12, 100, east, here, 10)
    sram = filled(TINY)
    run(plan.build(), sram)
    np.testing.assert_array_equal(sram.read(EAST, 8, 100), sram.read(EAST, 0, 0))
    np.testing.assert_array_equal(sram.read(EAST, 12, 100), sram.read(EAST, 9, 1))


def test_fp16_tiles_take_both_planes_and_round_once():
    chip = TINY
    plan = Scheduler(chip)
    rng = np.random.default_rng(2)
    weights = rng.normal(size=(16, chip.num_lanes)).astype(np.float16)
    vector = rng.normal(size=chip.num_lanes).astype(np.float16)
    sram, mxm = Sram(chip), chip.mxm_operand_position(EAST)
    west = chip.num_streams_per_direction
    for s in range(16):  # stream s carries byte s % 2 of row s // 2 (+ 8 in the second load)
        planes = weights.view(np.uint8).reshape(16, -1, 2)[:, :, s % 2]
        sram.write(EAST, s, [0, 1], planes[[s // 2, 8 + s // 2]])
        plan.read(EAST, s, 0, s, mxm, 30, 2)
    for byte in range(2):
        sram.write(EAST, 16 + byte, 0, vector.view(np.uint8)[byte::2])
        plan.read(EAST, 16 + byte, 0, 16 + byte, mxm, 34)
    plan.builder.add(30, mxm_queue(chip, EAST, 0, 0), Opcode.LW, (0, 0, 8, DataFormat.FP16), 2)
    plan.builder.add(31, mxm_queue(chip, EAST, 0, 0), Opcode.IW, ())
    plan.builder.add(34, mxm_queue(chip, EAST, 0, 1), Opcode.ABC, (16, DataFormat.FP16, 3, 0, 2, 9, 1, 0))
    plan.builder.add(47, mxm_queue(chip, EAST, 0, 2), Opcode.ACC, (west, 3, 0))
    for byte in range(4):
        plan.write(EAST, 20 + byte, 0, west + byte, chip.mxm_result_position(EAST), 75)
    run(plan.build(), sram)
    exact = vector[2:11].astype(np.float64) @ weights[2:11].astype(np.float64)
    np.testing.assert_array_equal(read_int32(sram, EAST, 20, 0).view(np.float32), exact.astype(np.float32))


def test_a_trace_lists_every_issue():
    program = copy(TINY, 3)
    trace = run(program, filled(TINY), trace=True).trace
    assert trace is not None
    assert len(trace.cycle) == program.num_instructions == 12
    reads = trace.queue == mem_queue(TINY, EAST, 4)
    np.testing.assert_array_equal(trace.cycle[reads], [8, 9, 13, 14, 18, 19])
    np.testing.assert_array_equal(trace.repetition[reads], [0, 1] * 3)
    np.testing.assert_array_equal(trace.iteration[reads], [0, 0, 1, 1, 2, 2])


def test_long_repeats_and_idle_times_cross_windows():
    builder = ProgramBuilder(TINY)
    east = stream_id(TINY, Direction.EASTWARD, 0)
    builder.add(0, mem_queue(TINY, EAST, 0), Opcode.READ, (0, 0, 0, east), 5000, 3)
    builder.add(2, mem_queue(TINY, EAST, 4), Opcode.WRITE, (9, 0, 0, east, 0), 5000, 3)
    builder.close_block(start_cycle=0)
    builder.add(0, mem_queue(TINY, EAST, 0), Opcode.READ, (1, 0, 0, east))
    builder.add(2, mem_queue(TINY, EAST, 4), Opcode.WRITE, (9, 0, 0, east, 0))
    builder.close_block(start_cycle=10**9)
    program, sram = builder.build(), filled(TINY)
    result = run(program, sram)
    assert result.finish_cycle == 10**9 + 4
    assert result.cycles == completion_cycles(program)
    np.testing.assert_array_equal(sram.read(EAST, 4, 9), sram.read(EAST, 0, 1))


def test_an_empty_program_takes_the_skew():
    program = ProgramBuilder(TINY).build()
    assert run(program, Sram(TINY)).cycles == completion_cycles(program) == TINY.skew_cycles


def test_the_sram_must_be_of_the_same_chip():
    with pytest.raises(ProgramError, match="program for chip 'tiny', SRAM of chip 'groqchip1'"):
        run(copy(TINY), Sram(GROQCHIP1))


def test_sram_refuses_what_is_not_there():
    sram = Sram(TINY)
    with pytest.raises(ProgramError, match="MEM_E3 a=7: never written"):
        sram.read(EAST, 3, 7)
    with pytest.raises(ProgramError, match="address 512 of MEM_W0 out of range: 512 words"):
        sram.read(WEST, 0, [0, 512])
    with pytest.raises(ProgramError, match="MEM slice 24 out of range"):
        sram.read(WEST, 24, 0)
    with pytest.raises(ProgramError, match=r"data is float64\[2\], needs uint8\[1, 16\]"):
        sram.write(WEST, 0, [0], np.zeros(2))


def test_stream_operands_and_results_may_be_float():
    plan = Scheduler(TINY)
    a, out = stream_id(TINY, Direction.WESTWARD, 0), stream_id(TINY, Direction.EASTWARD, 0)
    sram = Sram(TINY)
    x = np.linspace(-2, 2, TINY.num_lanes).astype(np.float32)
    for byte in range(4):
        sram.write(EAST, byte, 0, x.view(np.uint8)[byte::4])
        plan.read(EAST, byte, 0, a + byte, plan.vxm_in(a), 10)
        plan.write(EAST, 8 + byte, 0, out + byte, plan.vxm_out(out), 16)
    plan.vxm(10, 0, "mul", stream(a, DataFormat.FP32), immediate(0x3F000000), out, data_format=DataFormat.FP32)
    run(plan.build(), sram)
    np.testing.assert_array_equal(read_int32(sram, EAST, 8, 0).view(np.float32), x / 2)
