"""The template of a chain: operands read (or gathered, or computed by the MXM), ALU steps, results written."""

from __future__ import annotations

import dataclasses

import numpy as np

from lpu_jax.lowering.passes.memory_access import MemoryAccess
from lpu_jax.lowering.passes.template import ACCUMULATOR, Access, Row, Slot, Template, merge_own
from lpu_jax.lowering.passes.template_product import add_sums, build_product, sum_interval
from lpu_jax.lowering.tile_ir import (
    ChainOp,
    GatherInput,
    InputRef,
    MatMulInput,
    MemoryInput,
    MemoryOutput,
    ScatterOutput,
    Step,
    StepOperand,
    StepRef,
    storages_of,
)
from lpu_jax.runtime.chip import ChipSpec, Direction, Hemisphere, inward, outward
from lpu_jax.runtime.errors import ChipLimitError, ScheduleError
from lpu_jax.runtime.isa import VXM_FUNCTION_ID, Opcode, OperandKind
from lpu_jax.runtime.ops import Immediate


def chain_template(memory: MemoryAccess, op: ChainOp) -> Template:
    """Builds the template of a chain; tries a delayed variant where the op would block itself."""
    for held, delay in [(held, delay) for held in ((), _crowded(memory, op)) for delay in range(4)]:
        if len(held) * op.num_vectors > memory.chip.vxm_max_delay_cycles // 2:
            continue
        builder = _ChainBuilder(memory, op, delay, held)
        if builder.num_slots() <= memory.chip.num_alus and merge_own(template := builder.build()):
            if builder.acc is not None:
                item, acc = builder.acc
                template.product = build_product(memory, item, op.num_vectors, acc)
            return template
    _check_alus(memory.chip, op)
    raise ScheduleError(f"schedule: a chain of {op.num_vectors} vectors collides with itself ({op.source or op.name})")


def _check_alus(chip: ChipSpec, op: ChainOp) -> None:
    """Raises ChipLimitError for a function that takes more ALUs than there are."""
    for function in dict.fromkeys(step.function for step in op.steps):
        if (slots := chip.alu_slots(function)) > chip.num_alus:
            raise ChipLimitError(
                f"ChipSpec.num_alus={chip.num_alus} of chip {chip.name!r}: the function {function} takes {slots} ALUs "
                f"({op.source or op.name}). Use a chip with more of them, or a smaller number in vxm_slots."
            )


def _too_long(chip: ChipSpec, op: ChainOp, delay: int) -> ChipLimitError:
    """The error of a value that has to wait in front of an ALU for longer than the chip can hold it."""
    return ChipLimitError(
        f"ChipSpec.vxm_max_delay_cycles={chip.vxm_max_delay_cycles} of chip {chip.name!r}: an operand waits {delay} "
        f"cycles for its partner ({op.source or op.name}). Use a chip with a longer delay, or with fewer vxm_op_cycles "
        f"({chip.vxm_op_cycles})."
    )


def _delayed(op: ChainOp, delay: int) -> tuple[tuple[Step, ...], tuple[MemoryOutput | ScatterOutput, ...]]:
    """Steps and outputs with `delay` identities behind every step that is written to memory."""
    steps, moved = list(op.steps), {}
    for step in dict.fromkeys(output.step for output in op.outputs):
        moved[step] = step
        for _ in range(delay):
            steps.append(Step("identity", (StepRef(moved[step]),)))
            moved[step] = len(steps) - 1
    return tuple(steps), tuple(dataclasses.replace(output, step=moved[output.step]) for output in op.outputs)


def _crowded(memory: MemoryAccess, op: ChainOp) -> tuple[int, ...]:
    """Inputs that share a slice with an earlier input: they are read first, one after the other, and held by ALUs."""
    used: set[tuple[Hemisphere, int]] = set()
    crowded = []
    for index, item in enumerate(op.inputs):
        if not isinstance(item, MemoryInput):
            continue
        homes = [memory.home(storage) for storage in storages_of(item.refs)]
        slices = {(storage.hemisphere, s) for storage, place in homes for s in place.slices}
        if slices & used:
            crowded.append(index)
        used |= slices
    return tuple(crowded)


def _hold(op: ChainOp, held: tuple[int, ...]) -> ChainOp:
    """A chain in which identities take the held inputs; they become the first steps."""
    if not held:
        return op
    place = {index: position for position, index in enumerate(held)}

    def remap(operand: StepOperand) -> StepOperand:
        if isinstance(operand, InputRef) and operand.index in place:
            return StepRef(place[operand.index])
        return StepRef(operand.index + len(held)) if isinstance(operand, StepRef) else operand

    steps = [Step("identity", (InputRef(index),)) for index in held]
    steps += [Step(step.function, tuple(remap(operand) for operand in step.operands)) for step in op.steps]
    outputs = tuple(dataclasses.replace(output, step=output.step + len(held)) for output in op.outputs)
    return dataclasses.replace(op, steps=tuple(steps), outputs=outputs)


class _ChainBuilder:
    def __init__(self, memory: MemoryAccess, op: ChainOp, delay: int, held: tuple[int, ...] = ()) -> None:
        op = _hold(op, held)
        self.num_held = len(held)
        self.memory, self.op, self.chip = memory, op, memory.chip
        self.acc: tuple[MatMulInput, int] | None = None
        self.steps, self.outputs = _delayed(op, delay)
        self.products = [item for item in op.inputs if isinstance(item, MatMulInput)]
        self.template = Template(first_flex=ACCUMULATOR + 1 if self.products else 0)
        self.interval = sum_interval(self.chip, self.products[0]) if self.products else 1
        self.span = (op.num_vectors - 1) * self.interval + 1

    def num_slots(self) -> int:
        """ALUs that the chain takes."""
        return sum(self.chip.alu_slots(step.function) for step in self.steps)

    def build(self) -> Template:
        levels = self._levels()
        alus = [self._alu(step.function, level) for step, level in zip(self.steps, levels, strict=True)]
        flows: list[Direction] = []
        operands: list[list[int | Slot]] = []
        for step, level in zip(self.steps, levels, strict=True):
            flows.append(self._flow(step, flows))
            operands.append(self._operands(step, level, levels, alus))
        results = self._results(levels, flows)
        for index, step in enumerate(self.steps):
            row = (VXM_FUNCTION_ID[step.function], *operands[index], *results[index])
            queue = Slot(alus[index])
            self.template.rows.append(Row(levels[index], queue, Opcode.VXM, row, self.op.num_vectors, self.interval))
        return self.template

    def _alu(self, function: str, level: int) -> int:
        """Books an ALU; behind a function of several slots it stays booked until its last result is out."""
        slots = self.chip.alu_slots(function)
        return self.template.alu(slots, level, self.span + self.chip.vxm_op_cycles * (slots - 1))

    def _levels(self) -> list[int]:
        """Issue of every step: as soon as its operands are there; inputs are read to arrive just then."""
        levels = [position * self.span for position in range(self.num_held)]
        start = self.num_held * self.span + self.chip.vxm_op_cycles if self.num_held else 0
        for step in self.steps[self.num_held :]:
            ready = [
                levels[o.index] + self.chip.vxm_op_cycles * self.chip.alu_slots(self.steps[o.index].function)
                for o in step.operands
                if isinstance(o, StepRef)
            ]
            levels.append(max([start, *ready]))
        return levels

    def _side(self, index: int) -> Hemisphere:
        item = self.op.inputs[index]
        if isinstance(item, MatMulInput):
            return item.hemisphere
        storage = item.table if isinstance(item, GatherInput) else int(item.refs[0, 0])
        return self.memory.storages[storage].hemisphere

    def _flow(self, step: Step, flows: list[Direction]) -> Direction:
        """Direction that a result inherits from its first operand that is no immediate."""
        for operand in step.operands:
            if isinstance(operand, InputRef):
                return inward(self._side(operand.index))
            if isinstance(operand, StepRef):
                return flows[operand.index]
        return Direction.EASTWARD

    def _operands(self, step: Step, level: int, levels: list[int], alus: list[int]) -> list[int | Slot]:
        columns: list[int | Slot] = []
        for operand in step.operands:
            if isinstance(operand, Immediate):
                columns += [int(OperandKind.IMMEDIATE), operand.bits, 0, 0]
            elif isinstance(operand, StepRef):
                slots = self.chip.alu_slots(self.steps[operand.index].function)
                delay = level - levels[operand.index] - self.chip.vxm_op_cycles * slots
                if delay > self.chip.vxm_max_delay_cycles:
                    raise _too_long(self.chip, self.op, delay)
                columns += [int(OperandKind.ALU), Slot(alus[operand.index]), delay, 0]
            else:
                item = self.op.inputs[operand.index]
                stream = self._input(operand.index, level)
                columns += [int(OperandKind.STREAM), Slot(stream), int(item.format), 0]
        if len(step.operands) == 1:
            columns += [int(OperandKind.NONE), 0, 0, 0]
        return columns

    def _input(self, index: int, level: int) -> int:
        """Brings an operand to the VXM at `level`; returns its stream."""
        item = self.op.inputs[index]
        side = self._side(index)
        boundary = level - self.chip.vxm_entry_cycles
        width = item.format.num_bytes
        stream = self.template.stream(True, side, width, boundary, self.span)
        if isinstance(item, MatMulInput):
            acc = add_sums(self.memory, self.template, item, boundary, stream, self.op.num_vectors)
            self.acc = (item, acc)
            return stream
        times = self._times(boundary - self.chip.mem_read_cycles)
        if isinstance(item, MemoryInput):
            operands = {byte: (Slot(stream, byte),) for byte in range(width)}
            self.memory.add(self.template, Opcode.READ, item.refs, times, -1, operands)
            return stream
        self._gather(item, stream, times)
        return stream

    def _times(self, first: int) -> range:
        """Cycles of all vectors, from that of the first one on."""
        return range(first, first + self.span, self.interval)

    def _gather(self, item: GatherInput, stream: int, times: range) -> None:
        """Addresses flow inward past the slices of the table; the last slice they pass takes them off."""
        maps = self.template.stream(True, self._side_of(item.table), 1, times.start, self.span)
        read = self._times(times.start - self.chip.mem_read_cycles)
        self.memory.add(self.template, Opcode.READ, item.maps, read, -1, {0: (Slot(maps),)})
        self._indexed(Opcode.GATHER, item.table, item.vector, item.format.num_bytes, times, -1, stream, maps)

    def _side_of(self, storage: int) -> Hemisphere:
        return self.memory.storages[storage].hemisphere

    def _indexed(
        self,
        opcode: Opcode,
        table: int,
        vector: int,
        width: int,
        times: range,
        sign: int,
        stream: int,
        maps: int,
    ) -> None:
        """Gather or Scatter rows: vector k at slice group k % interleave, displaced to the table's first row."""
        storage, place = self.memory.home(table)
        groups = storage.interleave
        refs = np.stack([np.full(len(times), table), vector + np.arange(len(times)) % groups], axis=1)
        columns = [self.memory.column(s) for s in place.slices]
        for byte in range(width):
            for group in range(groups):
                own = [columns[group * width + b] for b in range(width)]
                ahead = own[byte] > min(own) if sign < 0 else own[byte] < max(own)
                same = [b for b in range(width) if own[b] == own[byte]]
                keep_map = int(ahead or byte != same[-1])
                last: tuple[int | Slot, ...] = (Slot(stream, byte), Slot(maps))
                last += (keep_map,) if opcode is Opcode.GATHER else (0, keep_map)
                if group < len(times):
                    self.memory.add(
                        self.template, opcode, refs[group::groups], times[group::groups], sign, {byte: last}
                    )
        all_vectors = np.arange(storage.num_vectors)
        cycles = np.full(len(all_vectors), times[0] + sign * (min(columns) if sign > 0 else max(columns)))
        if opcode is Opcode.GATHER:
            late = np.full(len(all_vectors), times[-1] + sign * min(columns))
            self.template.reads += [Access(table, all_vectors, cycles), Access(table, all_vectors, late)]
        else:
            late = np.full(len(all_vectors), times[-1] + sign * max(columns))
            self.template.writes += [Access(table, all_vectors, cycles), Access(table, all_vectors, late)]

    def _results(self, levels: list[int], flows: list[Direction]) -> list[tuple[int | Slot, ...]]:
        columns: list[list[int | Slot]] = [[-1, -1, 0] for _ in self.steps]
        taken = [0] * len(self.steps)
        for output in self.outputs:
            step = output.step
            table = output.refs[0, 0] if isinstance(output, MemoryOutput) else output.table
            side = self._side_of(int(table))
            done = levels[step] + self.chip.vxm_op_cycles * self.chip.alu_slots(self.steps[step].function)
            turn = self.chip.vxm_turn_cycles if outward(side) != flows[step] else 0
            boundary = done + self.chip.vxm_operand_cycles + turn
            width = output.format.num_bytes
            stream = self.template.stream(False, side, width, boundary, self.span)
            columns[step][taken[step]] = Slot(stream)
            columns[step][2] = int(output.format)
            taken[step] += 1
            times = self._times(boundary)
            if isinstance(output, MemoryOutput):
                operands = {byte: (Slot(stream, byte), 0) for byte in range(width)}
                self.memory.add(self.template, Opcode.WRITE, output.refs, times, 1, operands)
            else:
                maps = self.template.stream(False, side, 1, boundary, self.span)
                read = self._times(boundary - self.chip.mem_read_cycles)
                self.memory.add(self.template, Opcode.READ, output.maps, read, 1, {0: (Slot(maps),)})
                self._indexed(Opcode.SCATTER, output.table, output.vector, width, times, 1, stream, maps)
        return [tuple(column) for column in columns]
