"""Speed of the machine: cycles per second on a GEMV that streams weights into all four planes of groqchip1.

python benchmarks/machine.py [tiles]

Each tile takes 21 cycles: 20 in which all 64 outward streams carry weights, and one in which the activation and the
result of an earlier tile pass. The result is compared with NumPy.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from lpu_jax.runtime.chip import GROQCHIP1, Hemisphere, inward, outward
from lpu_jax.runtime.isa import VXM_FUNCTION_ID, DataFormat, Opcode, mem_queue, mxm_queue, stream_id, vxm_queue
from lpu_jax.runtime.machine import completion_cycles, run
from lpu_jax.runtime.program import Program, ProgramBuilder
from lpu_jax.runtime.sram import Sram

CHIP = GROQCHIP1
PERIOD, LOADS, FIRST_LOAD = 21, 20, 30
INT8, INT32 = DataFormat.INT8, DataFormat.INT32


def build(num_tiles: int) -> Program:
    """result[t] = sum over both planes of activation[t, plane] . weights[t, plane], per hemisphere."""
    builder = ProgramBuilder(CHIP)
    for hemisphere in Hemisphere:
        out, back = outward(hemisphere), inward(hemisphere)
        mxm = abs(CHIP.mxm_operand_position(hemisphere))

        def read(mem_slice, stream, arrival, count, loop_step, hemisphere=hemisphere, out=out, mxm=mxm):
            cycle = arrival - (mxm - abs(CHIP.mem_position(hemisphere, mem_slice))) - CHIP.mem_read_cycles
            operands = (0, 1, loop_step, stream_id(CHIP, out, stream))
            builder.add(cycle, mem_queue(CHIP, hemisphere, mem_slice), Opcode.READ, operands, count)

        use = FIRST_LOAD + 41
        for stream in range(32):
            read(stream, stream, FIRST_LOAD, LOADS, LOADS)
        for plane in range(2):
            lhs = stream_id(CHIP, out, 16 * plane)
            read(40 + plane, 16 * plane, use, 1, 1)
            weights, activations, results = (mxm_queue(CHIP, hemisphere, plane, part) for part in range(3))
            builder.add(FIRST_LOAD, weights, Opcode.LW, (lhs, 0, 16, INT8), LOADS)
            builder.add(FIRST_LOAD + 19, weights, Opcode.IW, ())
            builder.add(use, activations, Opcode.ABC, (lhs, INT8, 0, 0, 0, 320, 1, 0))
            builder.add(use + 13, results, Opcode.ACC, (stream_id(CHIP, back, 4 * plane), 0, 0))
        vxm = use + 13 + CHIP.mxm_accumulate_cycles + 19
        alu, result = 2 * int(hemisphere), stream_id(CHIP, out, 1)
        sides = [part for plane in range(2) for part in (1, stream_id(CHIP, back, 4 * plane), INT32, 0)]
        builder.add(vxm, vxm_queue(CHIP, alu), Opcode.VXM, (VXM_FUNCTION_ID["iadd"], *sides, -1, -1, INT32))
        # The result leaves on the diagonal of the gap between two tiles: its delay makes 128 = 2 (mod 21).
        delayed = (VXM_FUNCTION_ID["identity"], 2, alu, 18, 0, 0, 0, 0, 0, result, -1, INT32)
        builder.add(vxm + 3 + 18, vxm_queue(CHIP, alu + 1), Opcode.VXM, delayed)
        leaves = vxm + 3 + 18 + 3 + CHIP.vxm_operand_cycles + CHIP.vxm_turn_cycles
        for byte in range(4):
            mem_slice = 36 + byte
            cycle = leaves + mem_slice // CHIP.num_slices_per_column
            builder.add(cycle, mem_queue(CHIP, hemisphere, mem_slice), Opcode.WRITE, (0, 0, 1, result + byte, 0))
    builder.close_block(start_cycle=0, num_iterations=num_tiles, period_cycles=PERIOD)
    return builder.build()


def main() -> None:
    num_tiles = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    program = build(num_tiles)
    rng = np.random.default_rng(0)
    sram = Sram(CHIP)
    stored = rng.integers(-128, 128, (2, 34, num_tiles * LOADS, CHIP.num_lanes), np.int8)
    for hemisphere in Hemisphere:
        for stream in range(32):
            sram.write(hemisphere, stream, np.arange(num_tiles * LOADS), stored[hemisphere, stream])
        for plane in range(2):
            sram.write(hemisphere, 40 + plane, np.arange(num_tiles), stored[hemisphere, 32 + plane, :num_tiles])
    started = time.perf_counter()
    result = run(program, sram)
    seconds = time.perf_counter() - started
    assert result.cycles == completion_cycles(program)
    for hemisphere in Hemisphere:
        parts = [sram.read(hemisphere, 36 + byte, np.arange(num_tiles)) for byte in range(4)]
        got = np.ascontiguousarray(np.stack(parts, axis=-1)).view(np.int32)[..., 0]
        for tile in range(num_tiles):
            rows = stored[hemisphere, :32, tile * LOADS : (tile + 1) * LOADS].astype(np.float64)
            weights = rows.reshape(2, 16, LOADS, -1).transpose(0, 2, 1, 3).reshape(2, 320, -1)
            expected = sum(stored[hemisphere, 32 + p, tile].astype(np.float64) @ weights[p] for p in range(2))
            np.testing.assert_array_equal(got[tile], expected)
    print(f"{program.num_instructions} instructions, {result.finish_cycle} cycles in {seconds:.2f} s")
    print(f"{result.finish_cycle / seconds:.0f} cycles/s, {program.num_instructions / seconds:.0f} instructions/s")


if __name__ == "__main__":
    main()
