"""Dependency bound: the longest chain of latencies through a graph on a chip with as many units as anybody wants.

Every element of a value has four times, each the earliest cycle that any layout, order or fusion allows:
  VXM     an ALU may issue with it              MXM   it is at the operand registers of a plane
  STREAM  it passes a MEM slice                 SRAM  it can be read
Arguments and constants are in SRAM when the barrier is over. Moves cost nothing: the host lays out arguments in any
way, and what is computed may be computed in the lanes (or in all lanes) where it is wanted. Times are kept per element,
so slices, rows of loops and joined values keep theirs; axes along which they do not differ have size 1.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lpu_jax.lowering.analysis.products import FREE_FUNCTIONS, SIGNIFICAND_BYTES, is_dense, passes_per_row
from lpu_jax.lowering.passes.tile_moves import FILL, move_indices
from lpu_jax.runtime.chip import ChipSpec, Hemisphere
from lpu_jax.runtime.isa import DataFormat
from lpu_jax.runtime.ops import (
    Aval,
    Broadcast,
    Concatenate,
    Elementwise,
    Equation,
    GatherRows,
    GraphLike,
    HostCall,
    LaneReduce,
    MatMul,
    Move,
    Pad,
    Reshape,
    Reverse,
    Scan,
    ScatterRows,
    Slice,
    Transpose,
    While,
)

Times = npt.NDArray[np.int64]
"""[4, *axes]: times by kind; an axis has the size of the value's, or 1 where the times do not differ along it."""

VXM, MXM, STREAM, SRAM = range(4)
MAX_ELEMENTS = 1 << 20
"""Times of more elements are replaced by their minimum, which is still a bound."""
MAX_STEPS = 30_000
"""Equations of a loop that are followed turn by turn; the turns beyond count with the slowest carry's own path."""


@dataclasses.dataclass(frozen=True, slots=True)
class Link:
    """A part of the longest chain: `cycles` between its operand's and its own arrival in SRAM."""

    op: str
    source: str
    name: str
    cycles: int


@dataclasses.dataclass(frozen=True, slots=True)
class DependencyBound:
    """cycles == sum of the cycles of the chain."""

    cycles: int
    chain: tuple[Link, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Paths:
    """Shortest ways between units, in cycles; a write starts in the nearest slice, a read in the best one.

    read_to_vxm = mem_read + hops of the first column + vxm_entry; read_to_mxm = mem_read + hops from the last column;
    vxm_to_mxm = vxm_operand + all columns + mxm_entry; mxm_to_vxm = mxm_accumulate + mxm_exit + all columns + vxm_entry
    """

    read_to_vxm: int
    read_to_mxm: int
    vxm_to_mxm: int
    vxm_to_mem: int
    mxm_to_vxm: int
    mxm_to_mem: int


def paths(chip: ChipSpec) -> Paths:
    """The shortest ways of a chip."""
    columns = [s // chip.num_slices_per_column for side in Hemisphere for s in chip.usable_slices(side)]
    first, beyond, across = min(columns), chip.num_mem_columns - 1 - max(columns), chip.num_mem_columns - 1
    return Paths(
        read_to_vxm=chip.mem_read_cycles + first + chip.vxm_entry_cycles,
        read_to_mxm=chip.mem_read_cycles + beyond + chip.mxm_entry_cycles,
        vxm_to_mxm=chip.vxm_operand_cycles + across + chip.mxm_entry_cycles,
        vxm_to_mem=chip.vxm_operand_cycles + first,
        mxm_to_vxm=chip.mxm_accumulate_cycles + chip.mxm_exit_cycles + across + chip.vxm_entry_cycles,
        mxm_to_mem=chip.mxm_accumulate_cycles + chip.mxm_exit_cycles + beyond,
    )


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Value:
    """Times of a value; the step that made it (-1: none); whether it is known before the program runs; whether no
    element is a filler or a repetition of another one."""

    times: Times
    step: int
    is_known: bool
    is_dense: bool


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One equation of one turn: when all of it was in SRAM, and the step that it waited for."""

    equation: Equation
    time: int
    before: int


def dependency_bound(graph: GraphLike, chip: ChipSpec) -> DependencyBound:
    """The fewest cycles that a program of the graph takes on a chip without any shortage of units.

    barrier_cycles + read + latencies and hops of the longest chain + mem_write_cycles + skew_cycles. A graph whose
    outputs are arguments, or moves of them, needs no instruction: skew_cycles.
    """
    walk = _Walk(chip)
    outputs = walk.graph(graph, [walk.resident(graph.avals[v]) for v in graph.inputs])
    late = [v for v in outputs if v.times.size and int(v.times[SRAM].max()) > chip.barrier_cycles]
    skew = Link("skew", "", "", chip.skew_cycles)
    if not late:
        return DependencyBound(chip.skew_cycles, (skew,))
    last = max(late, key=lambda v: int(v.times[SRAM].max()))
    end = int(last.times[SRAM].max())
    chain = (Link("barrier", "", "", chip.barrier_cycles), *walk.chain(last.step, end), skew)
    return DependencyBound(end + chip.skew_cycles, chain)


class _Walk:
    """Gives every value of a graph its times, loops turn by turn."""

    def __init__(self, chip: ChipSpec) -> None:
        self.chip, self.paths = chip, paths(chip)
        self.steps: list[Step] = []
        self.start = self._read(np.array(chip.barrier_cycles))
        self.start[SRAM] = chip.barrier_cycles

    # Times ------------------------------------------------------------------------------------------------------

    def resident(self, aval: Aval, is_known: bool = False, is_dense: bool = True) -> Value:
        """A value that is in SRAM from the start."""
        return Value(self.start.reshape(4, *(1 for _ in aval.shape)), -1, is_known, is_dense)

    def _read(self, issue: Times) -> Times:
        """Times of what a Read or Gather at `issue` delivers."""
        way, stream = self.paths, issue + self.chip.mem_read_cycles
        return np.stack(
            [issue + way.read_to_vxm, issue + way.read_to_mxm, stream, stream + self.chip.mem_write_cycles]
        ).astype(np.int64)

    def _vxm(self, finish: Times) -> Times:
        """Times of an ALU's result that other ALUs may use from `finish` on."""
        stream = finish + self.paths.vxm_to_mem
        return np.stack([finish, finish + self.paths.vxm_to_mxm, stream, stream + self.chip.mem_write_cycles])

    def _mxm(self, last_abc: Times) -> Times:
        """Times of a sum whose last activation was issued at `last_abc`."""
        way, accumulate = self.paths, last_abc + self.chip.mxm_multiply_cycles
        written = accumulate + way.mxm_to_mem + self.chip.mem_write_cycles
        vxm = accumulate + way.mxm_to_vxm
        again = np.minimum(written + way.read_to_mxm, vxm + self.chip.vxm_op_cycles + way.vxm_to_mxm)
        return np.stack([vxm, again, accumulate + way.mxm_to_mem, written])

    # Graphs -----------------------------------------------------------------------------------------------------

    def graph(self, graph: GraphLike, arguments: Sequence[Value]) -> list[Value]:
        """Values of the outputs."""
        env = dict(zip(graph.inputs, arguments, strict=True))
        for value, array in graph.constants:
            env[value] = self.resident(graph.avals[value], is_known=True, is_dense=is_dense(array))
        for equation in graph.equations:
            operands = [env[v] for v in equation.operands if isinstance(v, int)]
            avals = [graph.avals[v] for v in equation.results]
            shapes = [graph.avals[v] for v in equation.operands if isinstance(v, int)]
            env.update(zip(equation.results, self._equation(equation, operands, shapes, avals), strict=True))
        return [env[v] for v in graph.outputs]

    def _equation(
        self, equation: Equation, operands: list[Value], shapes: list[Aval], avals: list[Aval]
    ) -> Sequence[Value]:
        if all(v.is_known for v in operands):  # folded when the program is made
            return [self.resident(aval, is_known=True, is_dense=False) for aval in avals]
        if isinstance(equation.op, While):  # cycles are those of one turn
            equation = dataclasses.replace(equation, op=equation.op.one_turn())
        if isinstance(equation.op, HostCall):
            return [self.resident(aval) for aval in avals]
        if isinstance(equation.op, Scan):
            return self._scan(equation, equation.op, operands)
        if any(0 in aval.shape for aval in (*shapes, *avals)):
            return [self.resident(aval) for aval in avals]
        times = self._times(equation, operands, shapes, avals[0])
        before = self._critical(operands, int(times[SRAM].max()))
        self.steps.append(Step(equation, int(times[SRAM].max()), before))
        dense = all(v.is_dense or v.is_known for v in operands)
        if isinstance(equation.op, Broadcast | Pad | GatherRows):
            dense = False
        elif isinstance(equation.op, Elementwise | LaneReduce):
            dense = any(v.is_dense for v in operands)
        elif isinstance(equation.op, Concatenate):
            dense = all(v.is_dense for v in operands) and len(set(equation.operands)) == len(operands)
        return [Value(_squeeze(times), len(self.steps) - 1, False, dense)]

    def _critical(self, operands: Sequence[Value], time: int) -> int:
        """The step that is taken to have been waited for: the latest one that is not later than the result."""
        ends = [(int(v.times[SRAM].max()), v.step) for v in operands if v.step >= 0 and v.times.size]
        return max((pair for pair in ends if pair[0] <= time), default=(0, -1))[1]

    def chain(self, step: int, end: int) -> list[Link]:
        """From the first step to the last one; moves, which take no time, are left out."""
        links: list[Link] = []
        while step >= 0:
            item = self.steps[step]
            before = self.steps[item.before].time if item.before >= 0 else self.chip.barrier_cycles
            cycles = min(end, item.time) - min(end, before)
            if cycles:
                op = item.equation.op
                text = f"Scan x{op.num_iterations}" if isinstance(op, Scan) else str(op)
                links.append(Link(text, item.equation.source, item.equation.name, cycles))
            end, step = min(end, before), item.before
        return links[::-1]

    def _times(self, equation: Equation, operands: list[Value], shapes: list[Aval], aval: Aval) -> Times:
        op, times = equation.op, [v.times for v in operands]
        if isinstance(op, Elementwise):
            if op.function in FREE_FUNCTIONS:
                return times[0]
            latency = self.chip.vxm_op_cycles * self.chip.alu_slots(op.function)
            return self._vxm(_latest([t[VXM] for t in times]) + latency)
        if isinstance(op, MatMul):
            return self._matmul(op, operands, shapes)
        if isinstance(op, LaneReduce):
            return self._lane_reduce(op, operands[0], shapes[0])
        if isinstance(op, GatherRows):
            return self._gather(operands, shapes)
        if isinstance(op, ScatterRows):
            return self._scatter(operands, shapes)
        assert isinstance(op, Move)
        return _move(op, times, [s.shape for s in shapes], aval.shape, self.start)

    # Units ------------------------------------------------------------------------------------------------------

    def _matmul(self, op: MatMul, operands: list[Value], shapes: list[Aval]) -> Times:
        """The last activation waits for all operands, for all K rows of its column to be loaded, and for the passes of
        the other K tiles, as a sum that is rounded once stays on one plane (int8 sums are exact on several)."""
        chip = self.chip
        lhs, rhs = operands[0].times[MXM], operands[1].times[MXM]
        rows, passes, last = 1, 1, 1
        if operands[0].is_dense and operands[1].is_dense:
            rows = shapes[0].shape[-1]
            passes = passes_per_row(chip, rows, op.lhs_format.significand_bytes, op.rhs_format.significand_bytes)
            tile = min(rows, chip.num_mxm_rows, chip.num_lanes)
            last = passes_per_row(chip, tile, op.lhs_format.significand_bytes, op.rhs_format.significand_bytes)
        if op.lhs_format is op.rhs_format is DataFormat.INT8:
            rows, passes = -(-rows // (2 * chip.num_planes)), last
        loads = -(-op.rhs_format.num_words(rows) // chip.num_streams_per_load) if rows > 1 else 1
        installed = np.maximum(rhs.max(1, keepdims=True), rhs.min(1, keepdims=True) + loads - 1)
        installed = installed + chip.mxm_install_tail_cycles
        streamed = np.maximum(lhs.max(2, keepdims=True), lhs.min(2, keepdims=True) + passes - last)
        return self._mxm(np.maximum(streamed, installed))

    def _lane_reduce(self, op: LaneReduce, operand: Value, aval: Aval) -> Times:
        """Functions of two operands: a tree of depth log2(K), whatever the lanes. Sums of three and more, which are
        rounded once, need the MXM, as activations that meet ones or as weights that ones meet."""
        chip, size, times = self.chip, aval.shape[-1], operand.times
        if size == 1:
            return times
        if op.function != "sum" or size == 2:
            step = chip.vxm_op_cycles * chip.alu_slots(op.function)
            depth = math.ceil(math.log2(size))
            late, early = times[VXM].max(-1, keepdims=True), times[VXM].min(-1, keepdims=True)
            return self._vxm(np.maximum(late + step, early + step * depth))
        width, passes, last = DataFormat.FP32.num_bytes, 1, 1
        if operand.is_dense:
            significand = SIGNIFICAND_BYTES[aval.dtype]
            passes = passes_per_row(chip, size, significand, 1)
            last = passes_per_row(chip, min(size, chip.num_mxm_rows, chip.num_lanes), significand, 1)
        else:
            size = 1
        loads = -(-size // (chip.num_streams_per_load // width)) - 1 + chip.mxm_install_tail_cycles
        late, early = times[MXM].max(-1, keepdims=True), times[MXM].min(-1, keepdims=True)
        ones = int(self.start[MXM]) + chip.mxm_install_tail_cycles
        return self._mxm(np.maximum(np.maximum(late, early + min(passes - last, loads)), ones))

    def _gather(self, operands: list[Value], shapes: list[Aval]) -> Times:
        """Any row may be wanted: a Gather once the table is written and the address is at the slice, or a selection
        by two VXM functions or more."""
        table, index = operands[0].times, operands[1].times
        rank = len(shapes[0].shape) - 1
        if operands[1].is_known or shapes[0].shape[0] == 1:
            found: Times = table.min(1, keepdims=True)
            return found
        table = table.max(1, keepdims=True)
        index = index.reshape(4, -1, *(1 for _ in range(rank)))
        gathered = self._read(np.maximum(table[SRAM], index[STREAM]))
        selected = self._vxm(np.maximum(table[VXM], index[VXM]) + 2 * self.chip.vxm_op_cycles)
        return np.minimum(gathered, selected)

    def _scatter(self, operands: list[Value], shapes: list[Aval]) -> Times:
        """Any row may be the new one: a Scatter into the table, then a Read, or a selection by the VXM."""
        table, rows = operands[0].times, operands[1].times
        rank = len(shapes[0].shape) - 1
        if operands[2].is_known:
            least = rows.min(1, keepdims=True)
            found: Times = least if shapes[0].shape[0] == shapes[1].shape[0] else np.minimum(table, least)
            return found
        rows = rows.max(1, keepdims=True)
        index = operands[2].times.reshape(4, -1).max(1).reshape(4, *(1 for _ in range(rank + 1)))
        if shapes[0].shape[0] == 1:
            found = rows
            return found
        parts = [rows, index] if shapes[0].shape[0] == shapes[1].shape[0] else [table, rows, index]
        written = _latest([rows[STREAM], index[STREAM]]) + self.chip.mem_write_cycles
        written = _latest([written, *(p[SRAM] for p in parts[:-2])])
        scattered = self._read(written)
        scattered[SRAM] = written
        return np.minimum(scattered, self._vxm(_latest([p[VXM] for p in parts]) + 2 * self.chip.vxm_op_cycles))

    # Loops ------------------------------------------------------------------------------------------------------

    def _scan(self, equation: Equation, op: Scan, operands: list[Value]) -> list[Value]:
        """The body turn by turn; beyond MAX_STEPS equations, a carry grows by its own path through one turn."""
        consts = operands[: op.num_consts]
        carry = operands[op.num_consts :][: op.num_carry]
        xs = operands[op.num_consts + op.num_carry :]
        turns = min(op.num_iterations, max(4, MAX_STEPS // max(1, len(op.body.equations))))
        rows: dict[int, list[Value]] = {}
        for turn in range(turns):
            if turn == turns - 1 and turns < op.num_iterations:
                carry = self._later(op, carry, op.num_iterations - turns)
                turn = op.num_iterations - 1
            place = op.num_iterations - 1 - turn if op.reverse else turn
            results = self.graph(op.body, [*consts, *carry, *(_row(x, place) for x in xs)])
            carry, rows[place] = results[: op.num_carry], results[op.num_carry :]
        avals = [op.body.avals[v] for v in op.body.outputs[op.num_carry :]]
        filler = [self.resident(aval) for aval in avals]
        stacked = [
            _stack([rows.get(i, filler)[k] for i in range(op.num_iterations)], aval) for k, aval in enumerate(avals)
        ]
        return [*carry, *stacked]

    def _later(self, op: Scan, carry: list[Value], turns: int) -> list[Value]:
        """Carries after more turns: each at least its own shortest path per turn behind its earliest time."""
        long_ago = -(2**40)
        moved = []
        for number, value in enumerate(carry):
            arguments = []
            for position, v in enumerate(op.body.inputs):
                is_own = position == op.num_consts + number
                shape = (4, *(1 for _ in op.body.avals[v].shape))
                arguments.append(Value(np.full(shape, 0 if is_own else long_ago), -1, False, False))
            result = _Walk(self.chip).graph(op.body, arguments)[number]
            growth = max(0, int(result.times.min()))
            earliest = int(value.times.min()) + growth * turns
            moved.append(dataclasses.replace(value, times=np.full_like(value.times, earliest), is_known=False))
        return moved


def _latest(times: Sequence[Times]) -> Times:
    latest = times[0]
    for other in times[1:]:
        latest = np.maximum(latest, other)
    return latest


def _squeeze(times: Times) -> Times:
    """Axes along which nothing differs get size 1."""
    for axis in range(1, times.ndim):
        if times.shape[axis] > 1:
            first = times.take([0], axis)
            if (times == first).all():
                times = first
    return times


def _move(
    op: Move, times: list[Times], shapes: Sequence[tuple[int, ...]], shape: tuple[int, ...], start: Times
) -> Times:
    """The move of elements applied to their times."""
    first = times[0]
    if isinstance(op, Transpose):
        return first.transpose(0, *(axis + 1 for axis in op.permutation))
    if isinstance(op, Reverse):
        return np.flip(first, tuple(axis + 1 for axis in op.axes))
    if isinstance(op, Broadcast):
        sizes = [1] * len(shape)
        for axis, dimension in enumerate(op.dimensions):
            sizes[dimension] = first.shape[axis + 1]
        return first.reshape(4, *sizes)
    if isinstance(op, Slice):
        bounds = zip(op.start, op.limit, op.stride, first.shape[1:], strict=True)
        return first[(slice(None), *(slice(a, b, c) if n > 1 else slice(None) for a, b, c, n in bounds))]
    if isinstance(op, Reshape) and first.size == 4:
        return first.reshape(4, *(1 for _ in shape))
    if math.prod(shape) > MAX_ELEMENTS or any(math.prod(s) > MAX_ELEMENTS for s in shapes):
        least = np.min([t.reshape(4, -1).min(1) for t in times], axis=0)
        if isinstance(op, Pad):
            least = np.minimum(least, start)
        found: Times = least.reshape(4, *(1 for _ in shape))
        return found
    whole = [np.broadcast_to(t, (4, *s)) for t, s in zip(times, shapes, strict=True)]
    moved = np.stack([move_indices(op, [t[kind] for t in whole], shape) for kind in range(4)])
    if isinstance(op, Pad):
        moved = np.where(moved == FILL, start.reshape(4, *(1 for _ in shape)), moved)
    return moved


def _row(value: Value, index: int) -> Value:
    """Element `index` of the leading axis."""
    return dataclasses.replace(value, times=value.times[:, index if value.times.shape[1] > 1 else 0])


def _stack(rows: list[Value], aval: Aval) -> Value:
    """Rows along a new leading axis."""
    if len(rows) * math.prod(aval.shape) > MAX_ELEMENTS:
        least = np.min([r.times.reshape(4, -1).min(1) for r in rows], axis=0)
        times = least.reshape(4, 1, *(1 for _ in aval.shape))
    else:
        shape = np.broadcast_shapes(*(r.times.shape for r in rows))
        times = _squeeze(np.stack([np.broadcast_to(r.times, shape) for r in rows], axis=1))
    step = max(rows, key=lambda r: int(r.times[SRAM].max())).step
    return Value(times, step, all(r.is_known for r in rows), all(r.is_dense for r in rows))
