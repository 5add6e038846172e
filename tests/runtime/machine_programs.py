"""Good programs for the machine's tests, scheduled by hand from the geometry of the chip, and ways to spoil them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from lpu_jax.runtime.assembly import from_text, to_text
from lpu_jax.runtime.chip import ChipSpec, Direction, Hemisphere, inward, outward
from lpu_jax.runtime.isa import (
    MXM_ACTIVATIONS,
    MXM_RESULTS,
    MXM_WEIGHTS,
    VXM_FUNCTION_ID,
    DataFormat,
    Opcode,
    OperandKind,
    mem_queue,
    mxm_queue,
    stream_id,
    sxm_queue,
    vxm_queue,
)
from lpu_jax.runtime.program import Program, ProgramBuilder
from lpu_jax.runtime.sram import Sram

INT8, INT32 = DataFormat.INT8, DataFormat.INT32
NONE = (OperandKind.NONE, 0, 0, 0)
WEST, EAST = Hemisphere.WEST, Hemisphere.EAST


def stream(stream_number: int, data_format: DataFormat, keep: int = 0) -> tuple[int, int, int, int]:
    return (OperandKind.STREAM, stream_number, data_format, keep)


def alu(number: int, delay: int = 0) -> tuple[int, int, int, int]:
    return (OperandKind.ALU, number, delay, 0)


def immediate(bits: int) -> tuple[int, int, int, int]:
    return (OperandKind.IMMEDIATE, bits, 0, 0)


@dataclasses.dataclass
class Scheduler:
    """A ProgramBuilder that knows distances: every method takes the cycle in which a value is wanted or made."""

    chip: ChipSpec

    def __post_init__(self) -> None:
        self.builder = ProgramBuilder(self.chip)

    def read(self, hemisphere, mem_slice, address, to_stream, position, arrival, count=1, step=1, loop_step=0) -> int:
        """Reads so that the first value is at `position` at cycle `arrival`; returns the issue cycle."""
        hops = abs(position - self.chip.mem_position(hemisphere, mem_slice))
        cycle = arrival - hops - self.chip.mem_read_cycles
        operands = (address, step, loop_step, to_stream)
        self.builder.add(cycle, mem_queue(self.chip, hemisphere, mem_slice), Opcode.READ, operands, count)
        return cycle

    def write(
        self, hemisphere, mem_slice, address, stream_number, position, leave, count=1, loop_step=0, keep=0
    ) -> int:
        """Writes what leaves `position` at cycle `leave`; returns the issue cycle."""
        cycle = leave + abs(position - self.chip.mem_position(hemisphere, mem_slice))
        operands = (address, 1, loop_step, stream_number, 0)
        self.builder.add(cycle, mem_queue(self.chip, hemisphere, mem_slice), Opcode.WRITE, operands, count)
        return cycle

    def vxm(self, cycle, number, function, lhs, rhs=NONE, out=-1, second=-1, data_format=INT32, count=1) -> None:
        operands = (VXM_FUNCTION_ID[function], *lhs, *rhs, out, second, data_format)
        self.builder.add(cycle, vxm_queue(self.chip, number), Opcode.VXM, operands, count)

    def vxm_in(self, stream_number: int) -> int:
        return self.chip.vxm_operand_position(Direction(stream_number // self.chip.num_streams_per_direction))

    def vxm_out(self, stream_number: int) -> int:
        return self.chip.vxm_result_position(Direction(stream_number // self.chip.num_streams_per_direction))

    def build(self, iterations: int = 1, period: int = 0) -> Program:
        self.builder.close_block(start_cycle=0, num_iterations=iterations, period_cycles=period)
        return self.builder.build()


@dataclasses.dataclass
class Matmul:
    """Cycles of a matmul: of the first and last weights Read, the last ABC, and the VXM that takes the first result."""

    program: Program
    last_weights_read: int
    vxm_cycle: int


def matmul(
    chip: ChipSpec,
    hemisphere: Hemisphere = WEST,
    plane: int = 0,
    weight_slices: tuple[int, ...] = tuple(range(16)),
    activation_slice: int = 20,
    num_vectors: int = 4,
    early: int = 0,
) -> Matmul:
    """relu(activations . weights), int8 in, int32 out to slices 16..19; `early` moves the VXM forward."""
    plan = Scheduler(chip)
    out, back = outward(hemisphere), inward(hemisphere)
    mxm = chip.mxm_operand_position(hemisphere)
    loads = chip.num_mxm_rows // chip.num_streams_per_load
    hops = max(abs(mxm - chip.mem_position(hemisphere, s)) for s in weight_slices)
    load = hops + chip.mem_read_cycles
    first_reads = [
        plan.read(hemisphere, s, 0, stream_id(chip, out, 16 * plane + i), mxm, load, loads)
        for i, s in enumerate(weight_slices)
    ]
    weights = mxm_queue(chip, hemisphere, plane, MXM_WEIGHTS)
    plan.builder.add(load, weights, Opcode.LW, (stream_id(chip, out, 16 * plane), 0, 16, INT8), loads)
    install = load + loads - 1 + (loads == 1)
    plan.builder.add(install, weights, Opcode.IW, ())
    multiply = install + chip.mxm_install_tail_cycles
    lhs = stream_id(chip, out, 16 * (1 - plane))
    plan.read(hemisphere, activation_slice, 0, lhs, mxm, multiply, num_vectors)
    plan.builder.add(
        multiply,
        mxm_queue(chip, hemisphere, plane, MXM_ACTIVATIONS),
        Opcode.ABC,
        (lhs, INT8, 0, 1, 0, chip.num_mxm_rows, 1, 0),
        num_vectors,
    )
    accumulate = multiply + chip.mxm_multiply_cycles
    result = stream_id(chip, back, 4 * plane)
    queue = mxm_queue(chip, hemisphere, plane, MXM_RESULTS)
    plan.builder.add(accumulate, queue, Opcode.ACC, (result, 0, 1), num_vectors)
    enters = accumulate + chip.mxm_accumulate_cycles
    vxm = enters + abs(chip.mxm_result_position(hemisphere) - plan.vxm_in(result)) - early
    to = stream_id(chip, out, 8)
    plan.vxm(vxm, 5, "imax", stream(result, INT32), immediate(0), to, count=num_vectors)
    leaves = vxm + chip.vxm_op_cycles + chip.vxm_operand_cycles + chip.vxm_turn_cycles
    for byte in range(4):
        plan.write(hemisphere, 16 + byte, 100, to + byte, plan.vxm_out(to), leaves, num_vectors)
    return Matmul(plan.build(), max(first_reads[i] + loads - 1 for i in range(16) if first_reads[i] == 0), vxm)


def tiles(chip: ChipSpec, num_loads: int, interval: int, num_tiles: int = 3, lhs_format: DataFormat = INT8) -> Program:
    """Tiles of 16 * num_loads rows on one plane, one IW every `interval` cycles, each met by one vector; one sum."""
    plan = Scheduler(chip)
    mxm, out, back = chip.mxm_operand_position(WEST), outward(WEST), inward(WEST)
    weights = mxm_queue(chip, WEST, 0, MXM_WEIGHTS)
    lhs, result, num_bytes = stream_id(chip, out, 16), stream_id(chip, back, 0), lhs_format.num_bytes
    for tile in range(num_tiles):
        load = 30 + tile * interval
        for s in range(16):
            plan.read(WEST, s, tile * num_loads, stream_id(chip, out, s), mxm, load, num_loads)
        plan.builder.add(load, weights, Opcode.LW, (stream_id(chip, out, 0), 0, 16, INT8), num_loads)
        install = load + num_loads - 1 + (num_loads == 1)
        plan.builder.add(install, weights, Opcode.IW, ())
        multiply = install + chip.mxm_install_tail_cycles
        for byte in range(num_bytes):
            plan.read(WEST, 20 + byte, tile, lhs + byte, mxm, multiply)
        operands = (lhs, lhs_format, 0, 0, 0, 16 * num_loads, int(tile == 0), 0)
        plan.builder.add(multiply, mxm_queue(chip, WEST, 0, MXM_ACTIVATIONS), Opcode.ABC, operands)
    accumulate = multiply + chip.mxm_multiply_cycles
    plan.builder.add(accumulate, mxm_queue(chip, WEST, 0, MXM_RESULTS), Opcode.ACC, (result, 0, 0))
    for byte in range(4):
        enters = accumulate + chip.mxm_accumulate_cycles
        plan.write(WEST, 16 + byte, 100, result + byte, chip.mxm_result_position(WEST), enters)
    return plan.build()


def matmul_sram(chip: ChipSpec, hemisphere=WEST, weight_slices=tuple(range(16)), activation_slice=20, num_vectors=4):
    """SRAM for `matmul`, with the weights [rows, lanes] and activations [vectors, lanes] in it."""
    rng = np.random.default_rng(0)
    weights = rng.integers(-128, 128, (chip.num_mxm_rows, chip.num_lanes)).astype(np.int8)
    activations = rng.integers(-128, 128, (num_vectors, chip.num_lanes)).astype(np.int8)
    sram = Sram(chip)
    loads = np.arange(chip.num_mxm_rows // 16)
    for i, mem_slice in enumerate(weight_slices):
        sram.write(hemisphere, mem_slice, loads, weights[i::16])
    sram.write(hemisphere, activation_slice, np.arange(num_vectors), activations)
    return sram, weights, activations


def read_int32(sram: Sram, hemisphere: Hemisphere, first_slice: int, addresses) -> np.ndarray:
    """int32 vectors stored byte by byte in four slices."""
    parts = [sram.read(hemisphere, first_slice + byte, addresses) for byte in range(4)]
    return np.ascontiguousarray(np.stack(parts, axis=-1)).view(np.int32)[..., 0]


def filled(chip: ChipSpec, slices: int = 24, words: int = 8, limit: int = 256) -> Sram:
    """SRAM with random bytes below `limit` in the first words of the first slices."""
    rng = np.random.default_rng(1)
    sram = Sram(chip)
    for hemisphere in Hemisphere:
        for mem_slice in range(slices):
            sram.write(
                hemisphere, mem_slice, np.arange(words), rng.integers(0, limit, (words, chip.num_lanes), np.uint8)
            )
    return sram


def copy(chip: ChipSpec, iterations: int = 1, mem_slice: int = 4) -> Program:
    """Copies two words a time from east to west, straight through the VXM region."""
    plan = Scheduler(chip)
    west = stream_id(chip, Direction.WESTWARD, 3)
    boundary = chip.position(EAST, 0)
    plan.read(EAST, mem_slice, 0, west, boundary, 10, 2, loop_step=2)
    plan.write(WEST, mem_slice, 100, west, boundary, 10, 2, loop_step=2)
    return plan.build(iterations, 5 if iterations > 1 else 0)


def chain(chip: ChipSpec) -> Program:
    """(a + b) * (a - b) on int8 vectors from both hemispheres, with an ALU that waits; int16 out on two ways."""
    plan = Scheduler(chip)
    a, b = stream_id(chip, Direction.EASTWARD, 2), stream_id(chip, Direction.WESTWARD, 9)
    plan.read(WEST, 6, 0, a, plan.vxm_in(a), 12, 3)
    plan.read(EAST, 9, 0, b, plan.vxm_in(b), 12, 3)
    plan.vxm(12, 0, "iadd", stream(a, INT8, 1), stream(b, INT8, 1), count=3)
    plan.vxm(12, 1, "isub", stream(a, INT8), stream(b, INT8), count=3)
    plan.vxm(15, 2, "ineg", alu(1), count=3)
    east, west = stream_id(chip, Direction.EASTWARD, 20), stream_id(chip, Direction.WESTWARD, 20)
    plan.vxm(18, 3, "imul", alu(0, 3), alu(2), east, west, DataFormat.INT16, 3)
    leaves = 18 + chip.vxm_op_cycles + chip.vxm_operand_cycles
    for byte in range(2):
        plan.write(EAST, 12 + byte, 100, east + byte, plan.vxm_out(east), leaves, 3)
        plan.write(WEST, 12 + byte, 100, west + byte, plan.vxm_out(west), leaves + chip.vxm_turn_cycles, 3)
    return plan.build()


def shuffle(chip: ChipSpec, hemisphere: Hemisphere = EAST) -> Program:
    """Permutes and distributes a vector and transposes 16 of them; the results go to slices of the hemisphere."""
    plan = Scheduler(chip)
    sxm, out, back = chip.sxm_position(hemisphere), outward(hemisphere), inward(hemisphere)
    streams = [stream_id(chip, out, i) for i in range(32)]
    backs = [stream_id(chip, back, i) for i in range(32)]
    plan.read(hemisphere, 0, 0, streams[0], sxm, 30)
    plan.read(hemisphere, 1, 0, streams[1], sxm, 30)
    plan.read(hemisphere, 2, 0, streams[2], sxm, 30 + chip.sxm_permute_map_cycles)
    plan.builder.add(30, sxm_queue(chip, hemisphere, 0), Opcode.PERMUTE, (streams[2], streams[0], backs[0], 0, 0))
    leave = 30 + chip.sxm_permute_map_cycles + chip.sxm_permute_cycles + chip.sxm_permute_exit_cycles
    plan.write(hemisphere, 3, 100, backs[0], sxm, leave)
    plan.read(hemisphere, 4, 0, streams[3], sxm, 30)
    plan.read(hemisphere, 5, 0, streams[4], sxm, 30)
    unit = sxm_queue(chip, hemisphere, 1 + chip.num_transposers)
    plan.builder.add(30, unit, Opcode.DISTRIBUTE, (streams[3], streams[4], backs[1], 0, 0))
    plan.write(hemisphere, 6, 100, backs[1], sxm, 30 + 2 * chip.sxm_crossing_cycles + chip.sxm_distribute_cycles)
    for i in range(16):
        plan.read(hemisphere, 8 + i, 0, streams[10 + i], sxm, 30)
        plan.write(hemisphere, 8 + i, 100, backs[10 + i], sxm, 30 + 12)
    plan.builder.add(30, sxm_queue(chip, hemisphere, 1), Opcode.TRANSPOSE, (streams[10], backs[10], 0))
    return plan.build()


def lookup(chip: ChipSpec) -> Program:
    """Gathers with a map from one slice, scatters the result with the same map (kept on its stream)."""
    plan = Scheduler(chip)
    out = outward(EAST)
    index, data = stream_id(chip, out, 0), stream_id(chip, out, 5)
    here, there = chip.mem_position(EAST, 8), chip.mem_position(EAST, 16)
    plan.read(EAST, 0, 0, index, here, 10)
    plan.builder.add(10, mem_queue(chip, EAST, 8), Opcode.GATHER, (2, 0, 0, data, index, 1))
    # The data is driven a cycle behind the map; a second read of the map meets it at the scatter.
    plan.builder.add(10 + abs(there - here), mem_queue(chip, EAST, 17), Opcode.WRITE, (100, 0, 0, index, 0))
    plan.read(EAST, 1, 0, index + 1, there, 11 + abs(there - here))
    operands = (200, 0, 0, data, index + 1, 0, 0)
    plan.builder.add(11 + abs(there - here), mem_queue(chip, EAST, 16), Opcode.SCATTER, operands)
    return plan.build()


def barrier(chip: ChipSpec, wait: int | None = None) -> Program:
    """Two queues parked from cycle 0, released by a third at cycle 3; then a copy."""
    plan = Scheduler(chip)
    ready = 3 + (chip.barrier_cycles if wait is None else wait)
    reader, writer = mem_queue(chip, EAST, 4), mem_queue(chip, EAST, 8)
    for queue in (reader, writer):
        plan.builder.add(0, queue, Opcode.SYNC, ())
    plan.builder.add(3, vxm_queue(chip, 0), Opcode.NOTIFY, ())
    east = stream_id(chip, Direction.EASTWARD, 1)
    plan.builder.add(ready, reader, Opcode.READ, (0, 1, 0, east), 2)
    plan.builder.add(ready + 2, writer, Opcode.WRITE, (100, 1, 0, east, 0), 2)
    return plan.build()


def good_programs(chip: ChipSpec) -> dict[str, tuple[Program, Callable[[], Sram]]]:
    """Every kind of instruction in some program, each with the SRAM that it needs."""
    bytes_below_256 = lambda: filled(chip)  # noqa: E731
    return {
        "matmul": (matmul(chip).program, lambda: matmul_sram(chip)[0]),
        "tiles": (tiles(chip, 1, 10), bytes_below_256),
        "copy": (copy(chip), bytes_below_256),
        "loop": (copy(chip, 3), bytes_below_256),
        "chain": (chain(chip), bytes_below_256),
        "shuffle": (shuffle(chip), bytes_below_256),
        "lookup": (lookup(chip), lambda: filled(chip, words=4, limit=1)),
        "barrier": (barrier(chip), bytes_below_256),
    }


Row = tuple[int, int, int, int, int, tuple[int, ...]]


def respell(program: Program, change: Callable[[int, Row], Row | None]) -> Program:
    """The program with each row (cycle, queue, opcode, count, interval, operands) changed, or dropped for None."""
    builder = ProgramBuilder(program.chip)
    for block in program.blocks:
        for row in range(block.row_start, block.row_stop):
            columns = (program.cycle, program.queue, program.opcode, program.count, program.interval)
            new = change(row, (*(int(c[row]) for c in columns), tuple(program.operands[row].tolist())))
            if new is not None:
                cycle, queue, opcode, count, interval, operands = new
                builder.add(cycle, queue, opcode, operands, count, interval)
        builder.close_block(
            start_cycle=block.start_cycle, num_iterations=block.num_iterations, period_cycles=block.period_cycles
        )
    return builder.build()


def dropped(program: Program, victim: int) -> Program:
    return respell(program, lambda row, columns: None if row == victim else columns)


def shifted(program: Program, victim: int, cycles: int) -> Program:
    return respell(program, lambda row, c: (c[0] + cycles, *c[1:]) if row == victim else c)


def reworded(program: Program, old: str, new: str) -> Program:
    """The program with a piece of its assembly text replaced, rows sorted again."""
    text = to_text(program)
    assert old in text, f"{old!r} is not in\n{text}"
    return respell(from_text(text.replace(old, new)), lambda _, columns: columns)


def with_line(program: Program, line: str) -> Program:
    """The program with one more row at the end of its last block, rows sorted again."""
    return respell(from_text(to_text(program) + line), lambda _, columns: columns)
