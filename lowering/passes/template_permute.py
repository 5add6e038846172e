"""Templates of SXM ops: maps and data flow out to the SXM, results flow back. Time zero is the first issue there."""

from __future__ import annotations

from lpu_jax.lowering.passes.memory_access import MemoryAccess
from lpu_jax.lowering.passes.template import Row, Slot, Template, issues, merge_own, spaced
from lpu_jax.lowering.tile_ir import GROUP, PermuteOp, SxmUnit, TransposeOp
from lpu_jax.runtime.errors import ScheduleError
from lpu_jax.runtime.isa import Opcode, sxm_queue


def sxm_template(memory: MemoryAccess, op: PermuteOp | TransposeOp) -> Template:
    """The template of an op of the SXM."""
    if isinstance(op, PermuteOp) and op.unit is SxmUnit.PERMUTER:
        return permute_template(memory, op)
    template = _transpose(memory, op) if isinstance(op, TransposeOp) else _distribute(memory, op)
    if merge_own(template):
        return template
    raise ScheduleError(f"schedule: an SXM op of {len(op.targets)} vectors collides with itself ({op.source})")


def permute_template(memory: MemoryAccess, op: PermuteOp) -> Template:
    """Byte planes go through the permuter one after the other.

    Vector by vector, so that the first result is whole early; or byte by byte, with `gap` idle cycles in between
    where reads and writes of one slice would meet.
    """
    for gap in (None, 0, 1, 16, 128, 1024):
        template = _permute(memory, op, gap)
        if merge_own(template):
            return template
    raise ScheduleError(f"schedule: a permute of {len(op.maps)} vectors collides with itself ({op.source or op.name})")


def _permute(memory: MemoryAccess, op: PermuteOp, gap: int | None) -> Template:
    chip, template = memory.chip, Template()
    count, width, side = len(op.maps), op.format.num_bytes, op.hemisphere
    hops = chip.num_mem_columns
    data_delay = chip.sxm_permute_map_cycles
    result_delay = data_delay + chip.sxm_permute_cycles + chip.sxm_permute_exit_cycles
    queue = sxm_queue(chip, side, 0)
    interval, shift = (width, 1) if gap is None else (1, count + gap)
    for byte in range(width):
        start = byte * shift
        if gap is not None or byte == 0:
            duration = count if gap is not None else count * width
            maps = template.stream(False, side, 2, start - hops, duration)
            data = template.stream(False, side, 1, start + data_delay - hops, duration)
            result = template.stream(True, side, 1, start + result_delay + hops, duration)
            template.fixed.append((("permuter", side), start, start + duration))
        leave = start - hops - chip.mem_read_cycles
        halves = {half: (Slot(maps, half),) for half in range(2)}
        memory.add(template, Opcode.READ, op.maps, spaced(leave, count, interval), 1, halves)
        read, write = (spaced(first, count, interval) for first in (leave + data_delay, start + result_delay + hops))
        memory.add(template, Opcode.READ, op.source_refs, read, 1, {byte: (Slot(data),)})
        memory.add(template, Opcode.WRITE, op.targets, write, -1, {byte: (Slot(result), 0)})
        template.fixed += issues(chip, queue, start, count, interval)
        operands = (Slot(data), Slot(maps), Slot(result), 0, 0)
        template.rows.append(Row(start, queue, Opcode.PERMUTE, operands, count, interval))
    return template


def _distribute(memory: MemoryAccess, op: PermuteOp) -> Template:
    """One distributor per byte plane, a vector per cycle; all of them take the same map."""
    chip, template = memory.chip, Template()
    count, width, side = len(op.maps), op.format.num_bytes, op.hemisphere
    hops, delay = chip.num_mem_columns, 2 * chip.sxm_crossing_cycles + chip.sxm_distribute_cycles
    units = template.sxm("distributor", side, width, 0, count)
    maps = template.stream(False, side, 1, -hops, count)
    data = template.stream(False, side, width, -hops, count)
    result = template.stream(True, side, width, delay + hops, count)
    read, write = (spaced(first, count) for first in (-hops - chip.mem_read_cycles, delay + hops))
    memory.add(template, Opcode.READ, op.maps, read, 1, {0: (Slot(maps),)})
    memory.add(template, Opcode.READ, op.source_refs, read, 1, {byte: (Slot(data, byte),) for byte in range(width)})
    memory.add(template, Opcode.WRITE, op.targets, write, -1, {byte: (Slot(result, byte), 0) for byte in range(width)})
    for byte in range(width):
        operands = (Slot(data, byte), Slot(maps), Slot(result, byte), 0, int(byte < width - 1))
        template.rows.append(Row(0, Slot(units, byte), Opcode.DISTRIBUTE, operands, count, 1))
    return template


def _transpose(memory: MemoryAccess, op: TransposeOp) -> Template:
    """A transposer takes one byte of the 16 vectors of a group per cycle."""
    chip, template = memory.chip, Template()
    width, side = op.format.num_bytes, op.hemisphere
    groups = len(op.targets) // GROUP
    hops, delay = chip.num_mem_columns, 2 * chip.sxm_crossing_cycles + chip.sxm_transpose_cycles
    unit = template.sxm("transposer", side, 1, 0, groups * width)
    data = template.stream(False, side, GROUP, -hops, groups * width)
    result = template.stream(True, side, GROUP, delay + hops, groups * width)
    for byte in range(width):
        firsts = byte - hops - chip.mem_read_cycles, byte + delay + hops
        read, write = (spaced(first, groups, width) for first in firsts)
        for lane in range(GROUP):
            sources, targets = op.source_refs[lane::GROUP], op.targets[lane::GROUP]
            memory.add(template, Opcode.READ, sources, read, 1, {byte: (Slot(data, lane),)})
            memory.add(template, Opcode.WRITE, targets, write, -1, {byte: (Slot(result, lane), 0)})
        operands = (Slot(data), Slot(result), 0)
        template.rows.append(Row(byte, Slot(unit), Opcode.TRANSPOSE, operands, groups, width))
    return template
