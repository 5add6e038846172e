"""The template of a chain: operands read (or gathered, or computed by the MXM), ALU steps, results written."""

from __future__ import annotations

import dataclasses

import numpy as np

from lpu_jax.lowering.passes.template import Access, MemoryAccess, Row, Slot, Template, merge_own
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
)
from lpu_jax.runtime.chip import Direction, Hemisphere, inward, outward
from lpu_jax.runtime.errors import ScheduleError
from lpu_jax.runtime.isa import (
    MXM_ACTIVATIONS,
    MXM_RESULTS,
    MXM_WEIGHTS,
    VXM_FUNCTION_ID,
    Opcode,
    OperandKind,
    mxm_queue,
)
from lpu_jax.runtime.ops import Immediate


def chain_template(memory: MemoryAccess, op: ChainOp) -> Template:
    """Builds the template of a chain; tries a delayed or unoverlapped variant where the op would block itself."""
    for held, delay in [(held, delay) for held in ((), _crowded(memory, op)) for delay in range(4)]:
        for overlap in (True, False):
            if len(held) * op.num_vectors > memory.chip.vxm_max_delay_cycles // 2:
                continue
            builder = _ChainBuilder(memory, op, delay, overlap, held)
            if builder.num_slots() <= memory.chip.num_alus and merge_own(template := builder.build()):
                return template
    raise ScheduleError(f"schedule: a chain of {op.num_vectors} vectors collides with itself ({op.source or op.name})")


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
        homes = [memory.home(int(storage)) for storage in np.unique(item.refs[:, 0])]
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
    def __init__(
        self, memory: MemoryAccess, op: ChainOp, delay: int, overlap: bool, held: tuple[int, ...] = ()
    ) -> None:
        op = _hold(op, held)
        self.num_held = len(held)
        self.memory, self.op, self.chip = memory, op, memory.chip
        self.template = Template()
        self.overlap = overlap
        self.steps, self.outputs = _delayed(op, delay)
        self.products = [item for item in op.inputs if isinstance(item, MatMulInput)]
        self.interval = self._last_interval(self.products[0]) if self.products else 1
        self.span = (op.num_vectors - 1) * self.interval + 1
        self.order = np.arange(op.num_vectors) * self.interval

    def _last_interval(self, product: MatMulInput) -> int:
        return self._interval(product, product.weights[-1].num_rows)

    def _interval(self, product: MatMulInput, num_rows: int) -> int:
        chip = self.chip
        return chip.cycles_per_vector(
            num_rows, product.lhs_format.significand_bytes, product.rhs_format.significand_bytes
        )

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
                    raise ScheduleError(f"schedule: an operand waits {delay} cycles for its partner")
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
            self._product(item, boundary, stream)
            return stream
        times = boundary - self.chip.mem_read_cycles + self.order
        if isinstance(item, MemoryInput):
            for byte in range(width):
                self.memory.add(self.template, Opcode.READ, item.refs, byte, times, -1, (Slot(stream, byte),))
            return stream
        self._gather(item, stream, times)
        return stream

    def _gather(self, item: GatherInput, stream: int, times: np.ndarray) -> None:
        """Addresses flow inward past the slices of the table; the last slice they pass takes them off."""
        maps = self.template.stream(True, self._side_of(item.table), 1, int(times[0]), self.span)
        self.memory.add(self.template, Opcode.READ, item.maps, 0, times - self.chip.mem_read_cycles, -1, (Slot(maps),))
        self._indexed(Opcode.GATHER, item.table, item.vector, item.format.num_bytes, times, -1, stream, maps)

    def _side_of(self, storage: int) -> Hemisphere:
        return self.memory.storages[storage].hemisphere

    def _indexed(
        self,
        opcode: Opcode,
        table: int,
        vector: int,
        width: int,
        times: np.ndarray,
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
                mine = np.nonzero(np.arange(len(times)) % groups == group)[0]
                own = [columns[group * width + b] for b in range(width)]
                ahead = own[byte] > min(own) if sign < 0 else own[byte] < max(own)
                same = [b for b in range(width) if own[b] == own[byte]]
                keep_map = int(ahead or byte != same[-1])
                last: tuple[int | Slot, ...] = (Slot(stream, byte), Slot(maps))
                last += (keep_map,) if opcode is Opcode.GATHER else (0, keep_map)
                self.memory.add(self.template, opcode, refs[mine], byte, times[mine], sign, last)
        all_vectors = np.arange(storage.num_vectors)
        cycles = np.full(len(all_vectors), times.min() + sign * (min(columns) if sign > 0 else max(columns)))
        if opcode is Opcode.GATHER:
            late = np.full(len(all_vectors), times.max() + sign * min(columns))
            self.template.reads += [Access(table, all_vectors, cycles), Access(table, all_vectors, late)]
        else:
            late = np.full(len(all_vectors), times.max() + sign * max(columns))
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
            times = boundary + self.order
            if isinstance(output, MemoryOutput):
                for byte in range(width):
                    operands = (Slot(stream, byte), 0)
                    self.memory.add(self.template, Opcode.WRITE, output.refs, byte, times, 1, operands)
            else:
                maps = self.template.stream(False, side, 1, boundary, self.span)
                read = times - self.chip.mem_read_cycles
                self.memory.add(self.template, Opcode.READ, output.maps, 0, read, 1, (Slot(maps),))
                self._indexed(Opcode.SCATTER, output.table, output.vector, width, times, 1, stream, maps)
        return [tuple(column) for column in columns]

    # MXM ---------------------------------------------------------------------------------------------------------

    def _product(self, product: MatMulInput, boundary: int, stream: int) -> None:
        """Weight tiles are loaded while the one before computes; the sums leave after the last tile."""
        chip, count = self.chip, self.op.num_vectors
        plan = self._plan(product)
        exit_hops = chip.num_mem_columns - 1 + chip.mxm_exit_cycles
        acc = boundary - exit_hops - chip.mxm_accumulate_cycles
        shift = acc - chip.mxm_multiply_cycles - plan[-1][2]
        side = product.hemisphere
        planes = range(chip.planes_per_tile(product.rhs_format.significand_bytes))
        first = planes[0] if len(planes) > 1 else product.plane
        used = planes if len(planes) > 1 else [product.plane]
        fixed = self.template.fixed
        for k, (load, install, begin) in enumerate(plan):
            weight = product.weights[k]
            interval = self._interval(product, weight.num_rows)
            end = begin + (count - 1) * interval + interval
            self._load(product, k, load + shift, first)
            self._row(side, first, MXM_WEIGHTS, Opcode.IW, install + shift, ())
            self._stream_activations(product, k, begin + shift, interval, first)
            for plane in used:
                fixed.append((("buffer", side, plane), load + shift, install + shift + 1))
                interval_end = install + shift + chip.mxm_install_interval_cycles
                fixed.append((("install", side, plane), install + shift, interval_end))
                fixed.append((("weights", side, plane), install + shift + chip.mxm_install_tail_cycles, end + shift))
                fixed.append((("abc", side, plane), begin + shift, end + shift))
        for plane in used:
            fixed.append((("accumulator", side, plane), plan[0][2] + shift, acc + self.span))
            fixed.append((("acc", side, plane), acc, acc + self.span))
        self._row(side, first, MXM_RESULTS, Opcode.ACC, acc, (Slot(stream), 0, 1), count, self.interval)

    def _plan(self, product: MatMulInput) -> list[tuple[int, int, int]]:
        """(load, install, first activation) of every K tile, from load = 0 on."""
        chip, count = self.chip, self.op.num_vectors
        rows_per_cycle = chip.num_streams_per_load // product.rhs_format.num_bytes
        plan: list[tuple[int, int, int]] = []
        load, last_install, busy = 0, -chip.mxm_install_interval_cycles, 0
        for weight in product.weights:
            cycles = -(-weight.num_rows // rows_per_cycle)
            install = max(
                load + max(cycles - 1, 1),
                last_install + chip.mxm_install_interval_cycles,
                busy - chip.mxm_install_tail_cycles,
            )
            begin = install + chip.mxm_install_tail_cycles
            plan.append((load, install, begin))
            busy = begin + count * self._interval(product, weight.num_rows)
            last_install = install
            load = install + 1 if self.overlap else busy + chip.num_mem_columns
        return plan

    def _row(
        self,
        side: Hemisphere,
        plane: int,
        part: int,
        opcode: Opcode,
        cycle: int,
        operands: tuple[int | Slot, ...],
        count: int = 1,
        interval: int = 1,
    ) -> None:
        queue = mxm_queue(self.chip, side, plane, part)
        self.template.rows.append(Row(cycle, queue, opcode, operands, count, interval))
        self.template.fixed.append((("Q", queue), cycle, cycle + 1))

    def _mxm_distance(self) -> int:
        return self.chip.num_mem_columns - 1 + self.chip.mxm_entry_cycles

    def _load(self, product: MatMulInput, k: int, cycle: int, plane: int) -> None:
        """LW: the rows of a weight tile arrive at the MXM from `cycle` on."""
        chip, weight = self.chip, product.weights[k]
        width = product.rhs_format.num_bytes
        rows_per_cycle = chip.num_streams_per_load // width
        cycles = -(-weight.num_rows // rows_per_cycle)
        side = product.hemisphere
        leave = cycle - self._mxm_distance()
        streams = self.template.stream(False, side, chip.num_streams_per_load, leave, cycles)
        storage, _ = self.memory.home(weight.storage)
        padded = min(cycles * rows_per_cycle, storage.num_vectors * storage.num_iterations - weight.first)
        rows = np.arange(padded)
        times = leave - chip.mem_read_cycles + rows // rows_per_cycle
        for lane_group in range(rows_per_cycle):
            mine = rows[rows % rows_per_cycle == lane_group]
            refs = np.stack([np.full(len(mine), weight.storage), weight.first + mine], axis=1)
            for byte in range(width):
                lane = (Slot(streams, lane_group * width + byte),)
                self.memory.add(self.template, Opcode.READ, refs, byte, times[mine], 1, lane)
        operands = (Slot(streams), 0, rows_per_cycle, int(product.rhs_format))
        self._row(side, plane, MXM_WEIGHTS, Opcode.LW, cycle, operands, cycles)

    def _stream_activations(self, product: MatMulInput, k: int, cycle: int, interval: int, plane: int) -> None:
        """ABC: activations of one K tile arrive at the MXM from `cycle` on."""
        chip, count = self.chip, self.op.num_vectors
        width, side = product.lhs_format.num_bytes, product.hemisphere
        leave = cycle - self._mxm_distance()
        stream = self.template.stream(False, side, width, leave, (count - 1) * interval + 1)
        times = leave - chip.mem_read_cycles + np.arange(count) * interval
        for byte in range(width):
            self.memory.add(self.template, Opcode.READ, product.activations[k], byte, times, 1, (Slot(stream, byte),))
        rows = product.weights[k].num_rows
        operands = (Slot(stream), int(product.lhs_format), 0, 1, 0, rows, int(k == 0), 0)
        self._row(side, plane, MXM_ACTIVATIONS, Opcode.ABC, cycle, operands, count, interval)
