"""Decoding: rows of a `Program` become events with ports, stream takes and stream drives; static rules are checked.

An event is what a unit does in one cycle; a row is one event per repetition, a Permute two (map, then data).
"""

from __future__ import annotations

import dataclasses
import enum
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from lpu_jax.runtime.assembly import row_text
from lpu_jax.runtime.chip import Hemisphere, inward
from lpu_jax.runtime.errors import ProgramError
from lpu_jax.runtime.isa import (
    MXM_ACTIVATIONS,
    MXM_RESULTS,
    MXM_WEIGHTS,
    OPERANDS,
    VXM_FUNCTIONS,
    DataFormat,
    Opcode,
    OperandKind,
    QueueKind,
    queues,
    stream_name,
)
from lpu_jax.runtime.program import Program

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

BINARY_FUNCTIONS = frozenset(
    "add sub mul div max min eq ne lt le gt ge iadd isub imul imax imin ieq ine ilt ile igt ige and or xor "
    "shift_left shift_right_arithmetic shift_right_logical mask mask_bar pow rem idiv irem".split()
)
"""VXM functions that take two operands; the others take one."""


class Event(enum.IntEnum):
    """What happens in a cycle, in this order; only MXM events depend on it (LW before IW, ACC before ABC)."""

    READ = 0
    WRITE = 1
    GATHER = 2
    SCATTER = 3
    LW = 4
    IW = 5
    ACC = 6
    ABC = 7
    VXM = 8
    MAP = 9
    PERMUTE = 10
    TRANSPOSE = 11
    DISTRIBUTE = 12
    SILENT = 13


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """Event sources, one entry per row (two per Permute), sorted by cycle inside a block.

    Columns [m]: row, cycle (in the block), event, count, interval; word = address + first word of the slice, and its
    two steps; ports port + i * port_stride for i < num_ports are used in the cycle; drive_* of the one result whose
    time is fixed: it enters streams drive_stream.. on the diagonal cycle + drive_shift.
    Columns [m, 2]: take_* of the two operands: stream, number of streams, along (position in flow direction), keep.
    bounds: events bounds[b] .. bounds[b + 1] belong to block b.
    """

    row: IntArray
    cycle: IntArray
    event: IntArray
    count: IntArray
    interval: IntArray
    word: IntArray
    word_step: IntArray
    word_loop_step: IntArray
    port: IntArray
    num_ports: IntArray
    port_stride: IntArray
    take_stream: IntArray
    take_count: IntArray
    take_along: IntArray
    take_keep: BoolArray
    drive_stream: IntArray
    drive_count: IntArray
    drive_shift: IntArray
    bounds: tuple[int, ...]
    num_port_ids: int


class Decoder:
    """Fills the columns of `Decoded` opcode by opcode."""

    def __init__(self, program: Program) -> None:
        self.program, self.chip = program, program.chip
        rows = program.num_rows
        all_queues = queues(self.chip)
        self.queue_names = [str(queue) for queue in all_queues]
        self._refuse_where(
            (program.queue < 0) | (program.queue >= len(all_queues)), f"queue id must be 0..{len(all_queues) - 1}"
        )
        self._refuse_where((program.opcode < 0) | (program.opcode >= len(Opcode)), "bad opcode")
        kinds = np.array([queue.kind for queue in all_queues], np.int64)
        self.kind = kinds[program.queue]
        self.hemisphere = np.array([queue.hemisphere for queue in all_queues], np.int64)[program.queue]
        self.index = np.array([queue.index for queue in all_queues], np.int64)[program.queue]
        self.sign = np.where(self.hemisphere == Hemisphere.EAST, 1, -1)
        zero = np.zeros(rows, np.int64)
        self.event = np.full(rows, Event.SILENT, np.int64)
        self.word, self.word_step, self.word_loop_step = zero.copy(), zero.copy(), zero.copy()
        self.port, self.num_ports, self.port_stride = zero.copy(), zero.copy(), zero.copy()
        self.take_stream, self.take_count, self.take_along = (np.zeros((rows, 2), np.int64) for _ in range(3))
        self.take_keep = np.zeros((rows, 2), np.bool_)
        self.drive_stream, self.drive_count, self.drive_shift = zero.copy(), zero.copy(), zero.copy()
        # Ports: read and write per MEM slice, ALUs, then LW, IW, ABC, ACC per plane, then SXM queues.
        self.alu_port = 4 * self.chip.num_slices
        self.plane_port = self.alu_port + self.chip.num_alus
        self.sxm_port = self.plane_port + 8 * self.chip.num_planes
        self.num_port_ids = self.sxm_port + 2 * self.chip.num_sxm_queues_per_hemisphere

    # Checks -----------------------------------------------------------------------------------------------------------

    def refuse(self, row: int, message: str) -> NoReturn:
        """Raises ProgramError for the first issue of a row."""
        block = next((b for b in self.program.blocks if b.row_start <= row < b.row_stop), None)
        cycle = int(self.program.cycle[row]) + (block.start_cycle if block else 0)
        queue = int(self.program.queue[row])
        name = self.queue_names[queue] if 0 <= queue < len(self.queue_names) else f"queue {queue}"
        raise ProgramError(f"cycle {cycle}: {name} {row_text(self.program, row)}: {message}")

    def _refuse_where(self, bad: BoolArray, message: str, rows: IntArray | None = None) -> None:
        if bad.any():
            first = int(bad.argmax())
            self.refuse(first if rows is None else int(rows[first]), message)

    def rows(self, opcode: Opcode) -> IntArray:
        """Rows that hold an opcode."""
        return np.flatnonzero(self.program.opcode == opcode)

    def column(self, opcode: Opcode, name: str, rows: IntArray) -> IntArray:
        """An operand column of rows, as int64."""
        values: IntArray = self.program.operands[rows, OPERANDS[opcode].index(name)].astype(np.int64)
        return values

    def stream_end(self, rows: IntArray, stream: IntArray, count: IntArray | int) -> None:
        """Refuses streams that do not exist or whose value spills over to the other direction."""
        size = self.chip.num_streams_per_direction
        self._refuse_where(
            (stream < 0) | (stream >= 2 * size) | (stream % size + count > size),
            f"bad stream: a value needs consecutive streams below {size} of one direction",
            rows,
        )

    def formats(self, rows: IntArray, data_format: IntArray, legal: tuple[DataFormat, ...] | None = None) -> IntArray:
        """Bytes per element of each row's format; refuses formats that are not legal."""
        allowed = tuple(DataFormat) if legal is None else legal
        self._refuse_where(~np.isin(data_format, allowed), "bad format", rows)
        return np.array([f.num_bytes for f in DataFormat], np.int64)[data_format]

    # Filling ----------------------------------------------------------------------------------------------------------

    def take(
        self, rows: IntArray, operand: int, stream: IntArray, count: IntArray | int, position: IntArray, keep: IntArray
    ) -> None:
        """Gives rows an operand from streams, taken at a position."""
        self.stream_end(rows, stream, count)
        self.take_stream[rows, operand] = stream
        self.take_count[rows, operand] = count
        eastward = stream < self.chip.num_streams_per_direction
        self.take_along[rows, operand] = np.where(eastward, position, -position)
        self.take_keep[rows, operand] = keep != 0

    def drive(
        self, rows: IntArray, stream: IntArray, count: IntArray | int, position: IntArray, cycles: int, inwards: bool
    ) -> None:
        """Gives rows a result that enters streams at a position, some cycles after the event."""
        self.stream_end(rows, stream, count)
        eastward = stream < self.chip.num_streams_per_direction
        if inwards:
            wrong = eastward != (self.hemisphere[rows] == Hemisphere.WEST)
            for row in rows[wrong][:1]:
                way = inward(Hemisphere(int(self.hemisphere[row]))).name.lower()
                name = stream_name(self.chip, int(stream[rows == row][0]))
                self.refuse(int(row), f"bad stream {name}: results of this unit leave {way}")
        self.drive_stream[rows] = stream
        self.drive_count[rows] = count
        self.drive_shift[rows] = cycles - np.where(eastward, position, -position)

    def use_port(self, rows: IntArray, port: IntArray, count: IntArray | int = 1, stride: int = 1) -> None:
        """Marks the ports that an event of these rows occupies for its cycle."""
        self.port[rows], self.num_ports[rows], self.port_stride[rows] = port, count, stride

    def decode(self) -> Decoded:
        """Checks every static rule and returns the events."""
        self._columns()
        for opcode in (Opcode.READ, Opcode.WRITE, Opcode.GATHER, Opcode.SCATTER):
            self._mem(opcode, self.rows(opcode))
        self._mxm()
        self._vxm(self.rows(Opcode.VXM))
        self._sxm()
        return self._sorted()

    def _columns(self) -> None:
        program = self.program
        self._refuse_where(program.cycle < 0, "negative cycle")
        self._refuse_where(program.count < 1, "Repeat count must be at least 1")
        self._refuse_where(program.count > self.chip.max_repeat, f"Repeat count above {self.chip.max_repeat}")
        self._refuse_where((program.count > 1) & (program.interval < 1), "Repeat interval must be at least 1")
        part = np.where(self.kind == QueueKind.MXM, self.index % 3, -1)
        last = 1 + self.chip.num_transposers
        unit = np.where(self.index == 0, 0, np.where(self.index < last, 1, 2))
        unit[self.index >= last + self.chip.num_distributors] = -1
        homes = {
            QueueKind.MEM: (self.kind == QueueKind.MEM, (Opcode.READ, Opcode.WRITE, Opcode.GATHER, Opcode.SCATTER)),
            QueueKind.VXM: (self.kind == QueueKind.VXM, (Opcode.VXM,)),
            "weights": (part == MXM_WEIGHTS, (Opcode.LW, Opcode.IW)),
            "activations": (part == MXM_ACTIVATIONS, (Opcode.ABC,)),
            "results": (part == MXM_RESULTS, (Opcode.ACC,)),
            "permuter": ((self.kind == QueueKind.SXM) & (unit == 0), (Opcode.PERMUTE,)),
            "transposer": ((self.kind == QueueKind.SXM) & (unit == 1), (Opcode.TRANSPOSE,)),
            "distributor": ((self.kind == QueueKind.SXM) & (unit == 2), (Opcode.DISTRIBUTE,)),
        }
        legal = np.isin(program.opcode, (Opcode.NOP, Opcode.SYNC, Opcode.NOTIFY))
        for here, opcodes in homes.values():
            legal |= here & np.isin(program.opcode, opcodes)
        self._refuse_where(~legal, "bad opcode for this queue")
        planes = (self.kind == QueueKind.MXM) & (self.index >= 3 * self.chip.num_planes)
        self._refuse_where(planes & ~np.isin(program.opcode, (0, 1, 2)), f"plane out of {self.chip.num_planes}")

    def _mem(self, opcode: Opcode, rows: IntArray) -> None:
        chip = self.chip
        position = self.sign[rows] * (chip.vxm_pass_cycles // 2 + self.index[rows] // chip.num_slices_per_column)
        address, step, loop_step, stream = (
            self.column(opcode, name, rows) for name in ("address", "address_step", "loop_step", "stream")
        )
        self.event[rows] = Event[opcode.name]
        mem_slice = self.hemisphere[rows] * chip.num_slices + self.index[rows]
        self.word[rows] = address + mem_slice * chip.num_addresses_per_slice
        self.word_step[rows], self.word_loop_step[rows] = step, loop_step
        if opcode in (Opcode.READ, Opcode.WRITE):
            iterations = np.ones(self.program.num_rows, np.int64)
            for block in self.program.blocks:
                iterations[block.row_start : block.row_stop] = block.num_iterations
            far = step * (self.program.count[rows] - 1)
            loop = loop_step * (iterations[rows] - 1)
            low = address + np.minimum(far, 0) + np.minimum(loop, 0)
            high = address + np.maximum(far, 0) + np.maximum(loop, 0)
            limit = chip.num_addresses_per_slice
            self._refuse_where((low < 0) | (high >= limit), f"address out of range: {limit} words per slice", rows)
        else:
            self.take(
                rows,
                int(opcode == Opcode.SCATTER),
                self.column(opcode, "map_stream", rows),
                1,
                position,
                self.column(opcode, "keep_map", rows),
            )
        if opcode in (Opcode.READ, Opcode.GATHER):
            self.use_port(rows, 2 * mem_slice)
            self.drive(rows, stream, 1, position, chip.mem_read_cycles, inwards=False)
        else:
            self.use_port(rows, 2 * mem_slice + 1)
            self.take(rows, 0, stream, 1, position, self.column(opcode, "keep", rows))

    def _mxm(self) -> None:
        chip = self.chip
        legal = (DataFormat.FP32, DataFormat.FP16, DataFormat.INT8)
        outside = chip.vxm_pass_cycles // 2 + chip.num_mem_columns - 1
        for opcode, offset in ((Opcode.LW, 0), (Opcode.IW, 1), (Opcode.ABC, 2), (Opcode.ACC, 3)):
            rows = self.rows(opcode)
            self.event[rows] = Event[opcode.name]
            plane = self.hemisphere[rows] * chip.num_planes + self.index[rows] // 3
            self.use_port(rows, self.plane_port + 4 * plane + offset)
        rows = self.rows(Opcode.LW)
        num_bytes = self.formats(rows, self.column(Opcode.LW, "format", rows), legal)
        wide = num_bytes > 1
        self._refuse_where(wide & (self.index[rows] != 0), "a tile wider than one byte is loaded by plane 0", rows)
        self.num_ports[rows], self.port_stride[rows] = np.where(wide, chip.planes_per_tile(2), 1), 4
        first, step = self.column(Opcode.LW, "row", rows), self.column(Opcode.LW, "row_step", rows)
        last = first + step * (self.program.count[rows] - 1)
        limit = chip.num_mxm_rows - chip.num_streams_per_load // num_bytes
        outer = (np.minimum(first, last) < 0) | (np.maximum(first, last) > limit)
        self._refuse_where(outer, f"row out of range: a plane has {chip.num_mxm_rows} rows", rows)
        position = self.sign[rows] * (outside + chip.mxm_entry_cycles)
        self.take(rows, 0, self.column(Opcode.LW, "stream", rows), chip.num_streams_per_load, position, 0 * position)
        rows = self.rows(Opcode.ABC)
        num_bytes = self.formats(rows, self.column(Opcode.ABC, "format", rows), legal)
        first, count = self.column(Opcode.ABC, "first_row", rows), self.column(Opcode.ABC, "num_rows", rows)
        limit = min(chip.num_mxm_rows, chip.num_lanes)
        outer = (first < 0) | (count < 1) | (first + count > limit)
        self._refuse_where(outer, f"rows out of range: first + rows must be 1..{limit}", rows)
        position = self.sign[rows] * (outside + chip.mxm_entry_cycles)
        keep = self.column(Opcode.ABC, "keep", rows)
        self.take(rows, 0, self.column(Opcode.ABC, "stream", rows), num_bytes, position, keep)
        rows = self.rows(Opcode.ACC)
        position = self.sign[rows] * (outside + chip.mxm_exit_cycles)
        self.drive(rows, self.column(Opcode.ACC, "stream", rows), 4, position, chip.mxm_accumulate_cycles, inwards=True)
        for opcode in (Opcode.ABC, Opcode.ACC):
            rows = self.rows(opcode)
            first, step = self.column(opcode, "accumulator", rows), self.column(opcode, "accumulator_step", rows)
            last = first + step * (self.program.count[rows] - 1)
            limit = chip.num_accumulator_vectors
            outer = (np.minimum(first, last) < 0) | (np.maximum(first, last) >= limit)
            self._refuse_where(outer, f"accumulator out of range: a plane has {limit}", rows)

    def _vxm(self, rows: IntArray) -> None:
        chip, vxm = self.chip, Opcode.VXM
        self.event[rows] = Event.VXM
        function = self.column(vxm, "function", rows)
        self._refuse_where((function < 0) | (function >= len(VXM_FUNCTIONS)), "bad function id", rows)
        slots = np.array([chip.alu_slots(name) for name in VXM_FUNCTIONS], np.int64)[function]
        self._refuse_where(self.index[rows] + slots > chip.num_alus, f"needs more ALUs than {chip.num_alus}", rows)
        self.use_port(rows, self.alu_port + self.index[rows], slots)
        binary = np.array([name in BINARY_FUNCTIONS for name in VXM_FUNCTIONS])[function]
        entry = np.full(len(rows), chip.vxm_entry_cycles - chip.vxm_pass_cycles // 2, np.int64)
        for operand, side in enumerate(("lhs", "rhs")):
            kind = self.column(vxm, f"{side}_kind", rows)
            self._refuse_where((kind < 0) | (kind >= len(OperandKind)), f"bad {side} kind", rows)
            wanted = binary if side == "rhs" else np.ones_like(binary)
            self._refuse_where(
                (kind == OperandKind.NONE) == wanted, f"this function needs {1 + operand} operands", rows
            )
            value, data_format = self.column(vxm, side, rows), self.column(vxm, f"{side}_format", rows)
            some = kind == OperandKind.STREAM
            here, stream = rows[some], value[some]
            num_bytes = self.formats(here, data_format[some])
            along = np.where(stream < chip.num_streams_per_direction, entry[some], -entry[some])
            self.take(here, operand, stream, num_bytes, along, self.column(vxm, f"{side}_keep", here))
            alu = kind == OperandKind.ALU
            self._refuse_where(alu & ((value < 0) | (value >= chip.num_alus)), f"{side}: ALU out of range", rows)
            late = (data_format < 0) | (data_format > chip.vxm_max_delay_cycles)
            self._refuse_where(alu & late, f"{side}: delay must be 0..{chip.vxm_max_delay_cycles}", rows)
        num_bytes = self.formats(rows, self.column(vxm, "format", rows))
        first, second = self.column(vxm, "stream", rows), self.column(vxm, "second_stream", rows)
        self._refuse_where((first < -1) | (second < -1) | ((first < 0) & (second >= 0)), "bad stream", rows)
        for stream in (first, second):
            self.stream_end(rows[stream >= 0], stream[stream >= 0], num_bytes[stream >= 0])

    def _sxm(self) -> None:
        chip = self.chip
        cycles = {
            Opcode.PERMUTE: chip.sxm_permute_cycles + chip.sxm_permute_exit_cycles,
            Opcode.TRANSPOSE: 2 * chip.sxm_crossing_cycles + chip.sxm_transpose_cycles,
            Opcode.DISTRIBUTE: 2 * chip.sxm_crossing_cycles + chip.sxm_distribute_cycles,
        }
        for opcode, latency in cycles.items():
            rows = self.rows(opcode)
            self.event[rows] = Event[opcode.name]
            self.use_port(
                rows,
                self.sxm_port + self.hemisphere[rows] * chip.num_sxm_queues_per_hemisphere + self.index[rows],
            )
            position = self.sign[rows] * (chip.vxm_pass_cycles // 2 + chip.num_mem_columns)
            count = chip.num_streams_per_transpose if opcode == Opcode.TRANSPOSE else 1
            keep = self.column(opcode, "keep", rows)
            self.take(rows, 0, self.column(opcode, "stream", rows), count, position, keep)
            self.drive(rows, self.column(opcode, "out_stream", rows), count, position, latency, inwards=True)
            if opcode == Opcode.TRANSPOSE:
                continue
            width = 2 if opcode == Opcode.PERMUTE else 1
            keep_map = self.column(opcode, "keep_map", rows)
            self.take(rows, 1, self.column(opcode, "map_stream", rows), width, position, keep_map)

    def _sorted(self) -> Decoded:
        """Splits a Permute into map and data events and sorts each block by cycle."""
        permutes = self.rows(Opcode.PERMUTE)
        source = np.concatenate([np.arange(self.program.num_rows), permutes])
        cycle = self.program.cycle.astype(np.int64)[source]
        event = self.event[source]
        take_count, num_ports, drive_count = (
            self.take_count[source],
            self.num_ports[source],
            self.drive_count[source],
        )
        data = slice(self.program.num_rows, None)
        maps = permutes
        cycle[data] += self.chip.sxm_permute_map_cycles
        event[maps], num_ports[data], drive_count[maps] = Event.MAP, 0, 0
        take_count[maps, 0], take_count[data, 1] = 0, 0
        block_of = np.full(self.program.num_rows, -1, np.int64)
        for number, block in enumerate(self.program.blocks):
            block_of[block.row_start : block.row_stop] = number
        self._refuse_where(block_of < 0, "the row lies in no block")
        order = np.lexsort((cycle, block_of[source]))
        source = source[order]
        bounds = np.searchsorted(block_of[source], np.arange(len(self.program.blocks) + 1))
        return Decoded(
            row=source,
            cycle=cycle[order],
            event=event[order],
            count=self.program.count.astype(np.int64)[source],
            interval=np.maximum(self.program.interval.astype(np.int64), 1)[source],
            word=self.word[source],
            word_step=self.word_step[source],
            word_loop_step=self.word_loop_step[source],
            port=self.port[source],
            num_ports=num_ports[order],
            port_stride=self.port_stride[source],
            take_stream=self.take_stream[source],
            take_count=take_count[order],
            take_along=self.take_along[source],
            take_keep=self.take_keep[source],
            drive_stream=self.drive_stream[source],
            drive_count=drive_count[order],
            drive_shift=self.drive_shift[source],
            bounds=tuple(int(bound) for bound in bounds),
            num_port_ids=self.num_port_ids,
        )
