"""Rows of a program as the report sees them: when each one works on which unit, and the values on streams.

Everything is kept per row and for one iteration of its block; `Events` unrolls the repetitions of one block.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import numpy.typing as npt

from lpu_jax.runtime.chip import ChipSpec, Direction, Hemisphere
from lpu_jax.runtime.isa import OPERANDS, VXM_FUNCTIONS, DataFormat, Opcode, OperandKind, queues
from lpu_jax.runtime.program import Block, Program
from lpu_jax.runtime.units.decode import Decoder
from lpu_jax.runtime.units.timing import latencies

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

UNIT_KINDS = (
    "mem read", "mem write", "alu", "mxm load", "mxm install", "mxm multiply", "mxm result",
    "permuter", "transposer", "distributor",
)  # fmt: skip
"""What can be busy: ports of MEM slices, ALUs, the parts of a plane, and the units of the SXM."""

_KIND_OF = {
    Opcode.READ: 0, Opcode.GATHER: 0, Opcode.WRITE: 1, Opcode.SCATTER: 1, Opcode.VXM: 2, Opcode.LW: 3, Opcode.IW: 4,
    Opcode.ABC: 5, Opcode.ACC: 6, Opcode.PERMUTE: 7, Opcode.TRANSPOSE: 8, Opcode.DISTRIBUTE: 9,
}  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Units:
    """Units of a chip: kind (index into UNIT_KINDS) and name of every port of the machine that is a unit."""

    kind: IntArray
    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Columns of a program's rows, [rows] or [rows, 2].

    start: issue in the iteration; last: of its last repetition; finish: cycle at which all of it is done.
    kind: index into UNIT_KINDS, -1 for Sync, Notify and NOP.
    A repetition works on ports port + i * port_stride, i < num_ports, for `duration` cycles from work_offset on.
    take_*[r, o]: operand o is taken off `count` streams from `stream` on, take_offset after the issue; along is the
    position in the direction of flow. drive_*[r, o]: result o enters streams drive_offset after the issue.
    macs: multiply-accumulates per repetition; formats[r]: number formats (activation, weights) of an ABC, else -1.
    """

    program: Program
    start: IntArray
    last: IntArray
    finish: IntArray
    count: IntArray
    interval: IntArray
    kind: IntArray
    port: IntArray
    num_ports: IntArray
    port_stride: IntArray
    duration: IntArray
    work_offset: IntArray
    word: IntArray
    word_step: IntArray
    take_stream: IntArray
    take_count: IntArray
    take_along: IntArray
    take_keep: BoolArray
    take_offset: IntArray
    drive_stream: IntArray
    drive_count: IntArray
    drive_along: IntArray
    drive_offset: IntArray
    macs: IntArray
    formats: IntArray
    units: Units

    @property
    def origin(self) -> IntArray:
        """Number of the scheduled op, -1 for none."""
        return self.program.origin.astype(np.int64)


@dataclasses.dataclass(frozen=True, eq=False)
class Events:
    """Repetitions of the rows of one block in one iteration: row [n], repetition [n], cycle of issue [n]."""

    rows: Rows
    block: Block
    row: IntArray
    repetition: IntArray
    cycle: IntArray

    @functools.cached_property
    def length_cycles(self) -> int:
        """Cycles from the start of an iteration until everything of it is done."""
        span = slice(self.block.row_start, self.block.row_stop)
        return max(self.block.period_cycles, int(self.rows.finish[span].max(initial=0)))


def unroll(rows: Rows, block: Block) -> Events:
    """All repetitions of the rows of a block."""
    index = np.arange(block.row_start, block.row_stop)
    count = rows.count[index]
    row = np.repeat(index, count)
    repetition = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    return Events(rows, block, row, repetition, rows.start[row] + repetition * rows.interval[row])


def program_rows(program: Program) -> Rows:
    """Decodes a program into columns."""
    chip, decoder = program.chip, Decoder(program)
    decoder.decode()
    count = program.count.astype(np.int64)
    interval = np.maximum(program.interval.astype(np.int64), 1)
    start = program.cycle.astype(np.int64)
    last = start + (count - 1) * interval
    kinds = np.full(len(Opcode), -1, np.int64)
    for opcode, kind in _KIND_OF.items():
        kinds[opcode] = kind
    permutes = program.opcode == Opcode.PERMUTE
    late = np.where(permutes, chip.sxm_permute_map_cycles, 0)
    drive_stream, drive_count, drive_along, drive_offset = _drives(program, decoder, late)
    formats = _multiply_formats(program, decoder)
    duration, macs = _multiply_work(program, formats)
    return Rows(
        program=program,
        start=start,
        last=last,
        finish=last + latencies(program),
        count=count,
        interval=interval,
        kind=kinds[program.opcode],
        port=decoder.port,
        num_ports=_planes_too(program, decoder, formats),
        port_stride=np.where(kinds[program.opcode] == _KIND_OF[Opcode.ABC], 4, decoder.port_stride),
        duration=duration,
        work_offset=late,
        word=decoder.word,
        word_step=decoder.word_step,
        take_stream=decoder.take_stream,
        take_count=decoder.take_count,
        take_along=decoder.take_along,
        take_keep=decoder.take_keep,
        take_offset=np.stack([late, np.zeros_like(late)], axis=1),
        drive_stream=drive_stream,
        drive_count=drive_count,
        drive_along=drive_along,
        drive_offset=drive_offset,
        macs=macs,
        formats=formats,
        units=_units(decoder),
    )


def _units(decoder: Decoder) -> Units:
    """Every port that a program of this chip could use; ports of queues without a unit have kind -1."""
    chip = decoder.chip
    kind, names = np.full(decoder.num_port_ids, -1, np.int64), [""] * decoder.num_port_ids
    for index, queue in enumerate(queues(chip)[: 2 * chip.num_slices]):
        for port, what in ((0, "read"), (1, "write")):
            kind[2 * index + port], names[2 * index + port] = port, f"{queue} {what}"
    for alu in range(chip.num_alus):
        kind[decoder.alu_port + alu], names[decoder.alu_port + alu] = _KIND_OF[Opcode.VXM], f"VXM{alu}"
    parts = (Opcode.LW, Opcode.IW, Opcode.ABC, Opcode.ACC)
    sides = [(h, f"{h.name[0]}") for h in (Hemisphere.WEST, Hemisphere.EAST)]
    for hemisphere, letter in sides:
        for plane in range(chip.num_planes):
            for part, opcode in enumerate(parts):
                port = decoder.plane_port + 4 * (hemisphere * chip.num_planes + plane) + part
                kind[port], names[port] = (
                    _KIND_OF[opcode],
                    f"MXM_{letter} plane {plane} {UNIT_KINDS[_KIND_OF[opcode]][4:]}",
                )
        first = decoder.sxm_port + hemisphere * chip.num_sxm_queues_per_hemisphere
        sizes = (1, chip.num_transposers, chip.num_distributors)
        homes = [(o, i) for o, n in zip(list(_KIND_OF)[-3:], sizes, strict=True) for i in range(n)]
        for index, (opcode, number) in enumerate(homes):
            name = UNIT_KINDS[_KIND_OF[opcode]]
            kind[first + index], names[first + index] = _KIND_OF[opcode], f"SXM_{letter} {name} {number}"
    return Units(kind, tuple(names))


def _multiply_formats(program: Program, decoder: Decoder) -> IntArray:
    """(activation, weight) formats of every ABC row: the weights are those of the plane's last install before it."""
    found = np.full((program.num_rows, 2), -1, np.int64)
    absolute = program.cycle.astype(np.int64)
    for block in program.blocks:
        absolute[block.row_start : block.row_stop] += block.start_cycle
    multiplies = decoder.rows(Opcode.ABC)
    found[multiplies, 0] = decoder.column(Opcode.ABC, "format", multiplies)
    for plane in np.unique(decoder.port[multiplies] // 4):
        loads, installs, mine = (
            rows[decoder.port[rows] // 4 == plane]
            for rows in (decoder.rows(Opcode.LW), decoder.rows(Opcode.IW), multiplies)
        )
        # A tile counts from the end of the install on; an ABC at that cycle already meets it.
        which = _before(absolute[installs] + program.chip.mxm_install_tail_cycles, absolute[mine])
        load = loads[_before(absolute[loads], absolute[installs])]
        found[mine, 1] = decoder.column(Opcode.LW, "format", load)[which]
    return found


def _before(times: IntArray, moments: IntArray) -> IntArray:
    """Index of the last of sorted `times` that is not after each moment."""
    assert (np.diff(times) >= 0).all(), "rows are in order of time"
    return np.maximum(np.searchsorted(times, moments, side="right") - 1, 0)


def _multiply_work(program: Program, formats: IntArray) -> tuple[IntArray, IntArray]:
    """(cycles of work, multiply-accumulates) of one repetition of every row; the first is 1 but for ABC."""
    chip = program.chip
    duration, macs = np.ones(program.num_rows, np.int64), np.zeros(program.num_rows, np.int64)
    rows = np.flatnonzero(program.opcode == Opcode.ABC)
    num_rows = program.operands[rows, OPERANDS[Opcode.ABC].index("num_rows")].astype(np.int64)
    keys, inverse = np.unique(np.stack([num_rows, *formats[rows].T], axis=1), axis=0, return_inverse=True)
    cycles = [
        chip.cycles_per_vector(n, DataFormat(lhs).significand_bytes, DataFormat(rhs).significand_bytes)
        for n, lhs, rhs in keys.tolist()
    ]
    duration[rows] = np.array(cycles, np.int64)[inverse]
    macs[rows] = num_rows * chip.num_lanes
    return duration, macs


def _planes_too(program: Program, decoder: Decoder, formats: IntArray) -> IntArray:
    """Ports per repetition; an ABC on a wide tile works on all planes of the pair."""
    num_ports: IntArray = decoder.num_ports.copy()
    sizes = np.array([f.num_bytes for f in DataFormat], np.int64)
    wide = (program.opcode == Opcode.ABC) & (sizes[formats[:, 1]] > 1)
    num_ports[wide] = program.chip.planes_per_tile(2)
    return num_ports


def _drives(program: Program, decoder: Decoder, late: IntArray) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    """(stream, count, along, offset) of up to two results of every row, each [rows, 2]."""
    chip = program.chip
    shape = (program.num_rows, 2)
    stream, count, along, offset = (np.zeros(shape, np.int64) for _ in range(4))
    stream[:, 0], count[:, 0] = decoder.drive_stream, decoder.drive_count
    latency = np.zeros(len(Opcode), np.int64)
    latency[[Opcode.READ, Opcode.GATHER]] = chip.mem_read_cycles
    latency[Opcode.ACC] = chip.mxm_accumulate_cycles
    latency[Opcode.PERMUTE] = chip.sxm_permute_cycles + chip.sxm_permute_exit_cycles
    latency[Opcode.TRANSPOSE] = 2 * chip.sxm_crossing_cycles + chip.sxm_transpose_cycles
    latency[Opcode.DISTRIBUTE] = 2 * chip.sxm_crossing_cycles + chip.sxm_distribute_cycles
    offset[:, 0] = latency[program.opcode] + late
    along[:, 0] = latency[program.opcode] - decoder.drive_shift
    rows = decoder.rows(Opcode.VXM)
    flow = _flows(program, decoder, rows)
    width = decoder.formats(rows, decoder.column(Opcode.VXM, "format", rows))
    done = latencies(program)[rows]
    for result, name in enumerate(("stream", "second_stream")):
        target = decoder.column(Opcode.VXM, name, rows)
        turns = (flow >= 0) & (flow != target // chip.num_streams_per_direction)
        stream[rows, result], count[rows, result] = target, np.where(target >= 0, width, 0)
        along[rows, result] = chip.vxm_pass_cycles // 2
        offset[rows, result] = done + chip.vxm_turn_cycles * turns
    return stream, count, along, offset


def _flows(program: Program, decoder: Decoder, rows: IntArray) -> IntArray:
    """Direction in which the first operand of every VXM row came, -1 for immediates only.

    A chain inherits it from the row that made its ALU operand; all repetitions of a compiled row agree with the first.
    """
    chip, size = program.chip, program.chip.num_streams_per_direction
    names = OPERANDS[Opcode.VXM]
    slots = [chip.alu_slots(name) for name in VXM_FUNCTIONS]
    flow = np.full(len(rows), -1, np.int64)
    columns = program.operands[rows].tolist()
    starts, alus = program.cycle[rows].tolist(), decoder.index[rows].tolist()
    counts, intervals = program.count[rows].tolist(), program.interval[rows].tolist()
    made: dict[tuple[int, int], int] = {}
    bounds = {block.row_start for block in program.blocks}
    for index, row in enumerate(rows.tolist()):
        if row in bounds or (index and any(rows[index - 1] < bound <= row for bound in bounds)):
            made = {}
        values = dict(zip(names, columns[index], strict=False))
        for side in ("lhs", "rhs"):
            if values[f"{side}_kind"] == OperandKind.STREAM:
                flow[index] = values[side] // size
            elif values[f"{side}_kind"] == OperandKind.ALU:
                flow[index] = made.get((values[side], starts[index] - values[f"{side}_format"]), -1)
            if flow[index] >= 0:
                break
        ready = starts[index] + chip.vxm_op_cycles * slots[values["function"]]
        for repetition in range(counts[index]):
            made[alus[index], ready + repetition * intervals[index]] = int(flow[index])
    return flow


def hemisphere_of(position: IntArray) -> IntArray:
    """Hemisphere of positions; the VXM is cut in the middle."""
    return np.where(position < 0, int(Hemisphere.WEST), int(Hemisphere.EAST))


def direction_sign(chip: ChipSpec, stream: IntArray) -> IntArray:
    """+1 for eastward streams, -1 for westward ones."""
    eastward = stream // chip.num_streams_per_direction == Direction.EASTWARD
    return np.where(eastward, 1, -1)
