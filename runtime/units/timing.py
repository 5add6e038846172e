"""Cycles of a program from its rows alone, without running it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lpu_jax.runtime.isa import OPERANDS, VXM_FUNCTIONS, Opcode
from lpu_jax.runtime.program import Program

IntArray = npt.NDArray[np.int64]


def completion_cycles(program: Program) -> int:
    """Cycles of a program by its rows alone: max over instructions of issue + latency, plus skew_cycles.

    latency: Read, Gather mem_read_cycles; Write, Scatter mem_write_cycles; LW 0; IW mxm_install_tail_cycles; ABC
    mxm_multiply_cycles; ACC mxm_accumulate_cycles; VXM vxm_op_cycles * slots, and vxm_operand_cycles more when the
    result leaves on a stream; Permute, Transpose, Distribute until the result leaves; Notify barrier_cycles; NOP and
    Sync 0. A turn in the VXM is not counted: whoever takes the value then comes later by itself.
    """
    latency = latencies(program)
    finish = 0
    for block in program.blocks:
        rows = slice(block.row_start, block.row_stop)
        if block.row_start == block.row_stop:
            continue
        repeats = (program.count[rows].astype(np.int64) - 1) * program.interval[rows]
        last = program.cycle[rows] + repeats + latency[rows]
        start = block.start_cycle + (block.num_iterations - 1) * block.period_cycles
        finish = max(finish, start + int(last.max()))
    return finish + program.chip.skew_cycles


def latencies(program: Program) -> IntArray:
    """Cycles from the issue of each row (or of its last repetition) until it is done, [rows]."""
    chip = program.chip
    table = np.zeros(len(Opcode), np.int64)
    table[[Opcode.READ, Opcode.GATHER]] = chip.mem_read_cycles
    table[[Opcode.WRITE, Opcode.SCATTER]] = chip.mem_write_cycles
    table[Opcode.IW] = chip.mxm_install_tail_cycles
    table[Opcode.ABC] = chip.mxm_multiply_cycles
    table[Opcode.ACC] = chip.mxm_accumulate_cycles
    table[Opcode.PERMUTE] = chip.sxm_permute_map_cycles + chip.sxm_permute_cycles + chip.sxm_permute_exit_cycles
    table[Opcode.TRANSPOSE] = 2 * chip.sxm_crossing_cycles + chip.sxm_transpose_cycles
    table[Opcode.DISTRIBUTE] = 2 * chip.sxm_crossing_cycles + chip.sxm_distribute_cycles
    table[Opcode.NOTIFY] = chip.barrier_cycles
    latency: IntArray = table[program.opcode]
    rows = np.flatnonzero(program.opcode == Opcode.VXM)
    columns = OPERANDS[Opcode.VXM]
    slots = np.array([chip.alu_slots(name) for name in VXM_FUNCTIONS], np.int64)
    leaves = program.operands[rows, columns.index("stream")] >= 0
    latency[rows] = chip.vxm_op_cycles * slots[program.operands[rows, columns.index("function")]]
    latency[rows] += chip.vxm_operand_cycles * leaves
    return latency
