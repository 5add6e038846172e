"""emit: Schedule -> Program. Fills the chosen streams and ALUs into the rows of every template."""

from __future__ import annotations

from collections.abc import Sequence

from lpu_jax.lowering.host_plan import runs
from lpu_jax.lowering.passes.schedule import Schedule, ScheduledBlock, ScheduledOp
from lpu_jax.lowering.passes.template import Slot
from lpu_jax.runtime.chip import ChipSpec
from lpu_jax.runtime.host_runs import join
from lpu_jax.runtime.isa import OPERANDS, Opcode, queues, vxm_queue
from lpu_jax.runtime.program import Program, ProgramBuilder


def emit(plan: Schedule) -> Program:
    """The program: a chip barrier, then the blocks one after the other; again a barrier where the host starts it again.

    The origin of a row is the number of its op in the schedule, counted through the blocks.
    """
    tiles = plan.allocated.tiles
    pieces = [plan.blocks[run.start : run.stop] for run in runs(tiles.plan)] or [()]
    parts, origin = [], 0
    for blocks in pieces:
        parts.append(_emit_piece(tiles.chip, blocks, origin))
        origin += sum(len(block.ops) for block in blocks)
    return join(parts)


def _emit_piece(chip: ChipSpec, blocks: Sequence[ScheduledBlock], origin: int) -> Program:
    """A barrier and some blocks; their ops count from `origin` on."""
    builder = ProgramBuilder(chip)
    used: set[int] = set()
    bodies = []
    for block in blocks:
        rows = []
        for op in block.ops:
            chosen = op.chosen
            for row in op.template.rows:
                offset, where, opcode, slots, repeats, interval = row
                operands = tuple([chosen[o.flex] + o.offset if isinstance(o, Slot) else int(o) for o in slots])
                queue = where if isinstance(where, int) else _queue(chip, op, where)
                used.add(queue)
                for done in range(0, repeats, chip.max_repeat):
                    again, count = _moved(opcode, operands, done), min(repeats - done, chip.max_repeat)
                    cycle = op.time_zero + offset + done * interval
                    rows.append((cycle, queue, opcode, again, count, interval, origin))
            origin += 1
        bodies.append(rows)
    for queue in sorted(used):
        builder.add(0, queue, Opcode.SYNC, ())
    if used:
        builder.add(0, _free_queue(chip, used), Opcode.NOTIFY, ())
    builder.close_block(start_cycle=0, num_iterations=1, period_cycles=chip.barrier_cycles)
    start = chip.barrier_cycles
    for block, rows in zip(blocks, bodies, strict=True):
        for fields in rows:
            builder.add(*fields)
        builder.close_block(start_cycle=start, num_iterations=block.num_iterations, period_cycles=block.period_cycles)
        start += block.num_iterations * block.period_cycles
    return builder.build()


_STEPS = {
    opcode: tuple((names.index(name), names.index(f"{name}_step")) for name in names if f"{name}_step" in names)
    for opcode, names in OPERANDS.items()
}
"""(operand, its step) of every opcode: what a repetition moves on."""


def _moved(opcode: Opcode, operands: tuple[int, ...], repetitions: int) -> tuple[int, ...]:
    """The operands of an instruction after some repetitions."""
    if not repetitions:
        return operands
    moved = list(operands)
    for operand, step in _STEPS[opcode]:
        moved[operand] += repetitions * operands[step]
    return tuple(moved)


def _queue(chip: ChipSpec, op: ScheduledOp, queue: Slot) -> int:
    """Queue of a row that is not fixed: an ALU's, or that of the SXM unit chosen."""
    chosen = op.chosen[queue.flex] + queue.offset
    return vxm_queue(chip, chosen) if op.template.flexible[queue.flex].pool == "alu" else chosen


def _free_queue(chip: ChipSpec, used: set[int]) -> int:
    """A queue that is not parked gives the signal."""
    return next(q for q in range(len(queues(chip)) - 1, -1, -1) if q not in used)
