"""The template of a permuter pass: maps and data flow out to the SXM, results flow back."""

from __future__ import annotations

import numpy as np

from lpu_jax.lowering.passes.template import MemoryAccess, Row, Slot, Template, merge_own
from lpu_jax.lowering.tile_ir import PermuteOp
from lpu_jax.runtime.errors import ScheduleError
from lpu_jax.runtime.isa import Opcode, sxm_queue


def permute_template(memory: MemoryAccess, op: PermuteOp) -> Template:
    """Byte planes go through the permuter one after the other; time zero is the first Permute.

    With `gap` idle cycles between byte planes where reads and writes of one slice would meet.
    """
    for gap in (0, 1, 16, 128, 1024):
        template = _build(memory, op, gap)
        if merge_own(template):
            return template
    raise ScheduleError(f"schedule: a permute of {len(op.maps)} vectors collides with itself ({op.source or op.name})")


def _build(memory: MemoryAccess, op: PermuteOp, gap: int) -> Template:
    chip, template = memory.chip, Template()
    count, width, side = len(op.maps), op.format.num_bytes, op.hemisphere
    hops = chip.num_mem_columns
    data_delay = chip.sxm_permute_map_cycles
    result_delay = data_delay + chip.sxm_permute_cycles + chip.sxm_permute_exit_cycles
    queue = sxm_queue(chip, side, 0)
    for byte in range(width):
        start = byte * (count + gap)
        cycles = start + np.arange(count)
        maps = template.stream(False, side, 2, start - hops, count)
        data = template.stream(False, side, 1, start + data_delay - hops, count)
        result = template.stream(True, side, 1, start + result_delay + hops, count)
        leave = cycles - hops - chip.mem_read_cycles
        for half in range(2):
            memory.add(template, Opcode.READ, op.maps, half, leave, 1, (Slot(maps, half),))
        memory.add(template, Opcode.READ, op.source_refs, byte, leave + data_delay, 1, (Slot(data),))
        memory.add(template, Opcode.WRITE, op.targets, byte, cycles + result_delay + hops, -1, (Slot(result), 0))
        template.fixed.append((("permuter", side), start, start + count))
        template.fixed.append((("Q", queue), start, start + 1))
        template.rows.append(Row(start, queue, Opcode.PERMUTE, (Slot(data), Slot(maps), Slot(result), 0, 0), count, 1))
    return template
