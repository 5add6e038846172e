"""Rows of a `Program` as event sources: the columns, and the checks and fillers that `Decoder` uses."""

from __future__ import annotations

import dataclasses
import enum
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from lpu_jax.runtime.assembly import row_text
from lpu_jax.runtime.chip import Hemisphere, inward
from lpu_jax.runtime.errors import ProgramError
from lpu_jax.runtime.isa import OPERANDS, VECTOR_FORMATS, DataFormat, Opcode, queues, stream_name
from lpu_jax.runtime.program import Program

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


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


class RowTable:
    """Columns of `Decoded` in the order of rows, empty at first."""

    def __init__(self, program: Program) -> None:
        """Looks up queues and opcodes; refuses ids that do not exist."""
        self.program, self.chip = program, program.chip
        rows = program.num_rows
        all_queues = queues(self.chip)
        self.queue_names = [str(queue) for queue in all_queues]
        self.refuse_where(
            (program.queue < 0) | (program.queue >= len(all_queues)), f"queue id must be 0..{len(all_queues) - 1}"
        )
        self.refuse_where((program.opcode < 0) | (program.opcode >= len(Opcode)), "bad opcode")
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
        raise ProgramError(f"cycle {cycle}: {self.text(row)}: {message}")

    def text(self, row: int) -> str:
        """Queue and instruction of a row."""
        queue = int(self.program.queue[row])
        name = self.queue_names[queue] if 0 <= queue < len(self.queue_names) else f"queue {queue}"
        return f"{name} {row_text(self.program, row)}"

    def refuse_where(self, bad: BoolArray, message: str, rows: IntArray | None = None) -> None:
        """Refuses the first row (of `rows`) that is bad."""
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
        self.refuse_where(
            (stream < 0) | (stream >= 2 * size) | (stream % size + count > size),
            f"bad stream: a value needs consecutive streams below {size} of one direction",
            rows,
        )

    def formats(self, rows: IntArray, data_format: IntArray, legal: tuple[DataFormat, ...] | None = None) -> IntArray:
        """Bytes per element of each row's format; refuses formats that are not legal."""
        allowed = VECTOR_FORMATS if legal is None else legal
        self.refuse_where(~np.isin(data_format, allowed), "bad format", rows)
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

    def by_cycle(self) -> Decoded:
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
        self.refuse_where(block_of < 0, "the row lies in no block")
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
