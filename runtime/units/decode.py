"""Decoding: rows of a `Program` become events with ports, stream takes and stream drives; static rules are checked.

An event is what a unit does in one cycle; a row is one event per repetition, a Permute two (map, then data).
"""

from __future__ import annotations

import numpy as np

from lpu_jax.runtime.isa import (
    MXM_ACTIVATIONS,
    MXM_RESULTS,
    MXM_WEIGHTS,
    PRODUCT_FORMATS,
    VXM_FUNCTIONS,
    WEIGHT_FORMATS,
    DataFormat,
    Opcode,
    OperandKind,
    QueueKind,
    buffer_lines,
)
from lpu_jax.runtime.units.rows import Decoded, Event, IntArray, RowTable

__all__ = ["Decoded", "Decoder", "Event"]

BINARY_FUNCTIONS = frozenset((
    "add", "sub", "mul", "div", "max", "min", "eq", "ne", "lt", "le", "gt", "ge", "iadd", "isub", "imul",
    "imax", "imin", "ieq", "ine", "ilt", "ile", "igt", "ige", "and", "or", "xor", "shift_left",
    "shift_right_arithmetic", "shift_right_logical", "mask", "mask_bar", "pow", "rem", "idiv", "irem",
))  # fmt: skip
"""VXM functions that take two operands; the others take one."""


class Decoder(RowTable):
    """Fills the columns of `Decoded` opcode by opcode."""

    def decode(self) -> Decoded:
        """Checks every static rule and returns the events."""
        self._columns()
        for opcode in (Opcode.READ, Opcode.WRITE, Opcode.GATHER, Opcode.SCATTER):
            self._mem(opcode, self.rows(opcode))
        self._mxm()
        self._vxm(self.rows(Opcode.VXM))
        self._sxm()
        return self.by_cycle()

    def _columns(self) -> None:
        program = self.program
        self.refuse_where(program.cycle < 0, "negative cycle")
        self.refuse_where(program.count < 1, "Repeat count must be at least 1")
        self.refuse_where(program.count > self.chip.max_repeat, f"Repeat count above {self.chip.max_repeat}")
        self.refuse_where((program.count > 1) & (program.interval < 1), "Repeat interval must be at least 1")
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
        self.refuse_where(~legal, "bad opcode for this queue")
        planes = (self.kind == QueueKind.MXM) & (self.index >= 3 * self.chip.num_planes)
        self.refuse_where(planes & ~np.isin(program.opcode, (0, 1, 2)), f"plane out of {self.chip.num_planes}")

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
            low: IntArray = address + np.minimum(far, 0) + np.minimum(loop, 0)
            high: IntArray = address + np.maximum(far, 0) + np.maximum(loop, 0)
            limit = chip.num_addresses_per_slice
            self.refuse_where((low < 0) | (high >= limit), f"address out of range: {limit} words per slice", rows)
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
        outside = chip.vxm_pass_cycles // 2 + chip.num_mem_columns - 1
        for opcode, offset in ((Opcode.LW, 0), (Opcode.IW, 1), (Opcode.ABC, 2), (Opcode.ACC, 3)):
            rows = self.rows(opcode)
            self.event[rows] = Event[opcode.name]
            plane = self.hemisphere[rows] * chip.num_planes + self.index[rows] // 3
            self.use_port(rows, self.plane_port + 4 * plane + offset)
        rows = self.rows(Opcode.LW)
        data_format = self.column(Opcode.LW, "format", rows)
        num_bytes = self.formats(rows, data_format, WEIGHT_FORMATS)
        wide = num_bytes > 1
        self.refuse_where(wide & (self.index[rows] != 0), "a tile wider than one byte is loaded by plane 0", rows)
        self.num_ports[rows], self.port_stride[rows] = np.where(wide, chip.planes_per_tile(2), 1), 4
        first, step = self.column(Opcode.LW, "row", rows), self.column(Opcode.LW, "row_step", rows)
        last = first + step * (self.program.count[rows] - 1)
        lines = np.array([buffer_lines(chip, f) for f in DataFormat], np.int64)[data_format]
        highest = lines - chip.num_streams_per_load // num_bytes
        outer = (np.minimum(first, last) < 0) | (np.maximum(first, last) > highest)
        self.refuse_where(outer, f"row out of range: a plane has {chip.num_mxm_rows} rows", rows)
        position = self.sign[rows] * (outside + chip.mxm_entry_cycles)
        self.take(rows, 0, self.column(Opcode.LW, "stream", rows), chip.num_streams_per_load, position, 0 * position)
        rows = self.rows(Opcode.ABC)
        num_bytes = self.formats(rows, self.column(Opcode.ABC, "format", rows), PRODUCT_FORMATS)
        first, count = self.column(Opcode.ABC, "first_row", rows), self.column(Opcode.ABC, "num_rows", rows)
        limit = min(chip.num_mxm_rows, chip.num_lanes)
        outer = (first < 0) | (count < 1) | (first + count > limit)
        self.refuse_where(outer, f"rows out of range: first + rows must be 1..{limit}", rows)
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
            self.refuse_where(outer, f"accumulator out of range: a plane has {limit}", rows)

    def _vxm(self, rows: IntArray) -> None:
        chip, vxm = self.chip, Opcode.VXM
        self.event[rows] = Event.VXM
        function = self.column(vxm, "function", rows)
        self.refuse_where((function < 0) | (function >= len(VXM_FUNCTIONS)), "bad function id", rows)
        slots = np.array([chip.alu_slots(name) for name in VXM_FUNCTIONS], np.int64)[function]
        self.refuse_where(self.index[rows] + slots > chip.num_alus, f"needs more ALUs than {chip.num_alus}", rows)
        self.use_port(rows, self.alu_port + self.index[rows], slots)
        binary = np.array([name in BINARY_FUNCTIONS for name in VXM_FUNCTIONS])[function]
        entry = np.full(len(rows), chip.vxm_entry_cycles - chip.vxm_pass_cycles // 2, np.int64)
        for operand, side in enumerate(("lhs", "rhs")):
            kind = self.column(vxm, f"{side}_kind", rows)
            self.refuse_where((kind < 0) | (kind >= len(OperandKind)), f"bad {side} kind", rows)
            wanted = binary if side == "rhs" else np.ones_like(binary)
            missing = kind == OperandKind.NONE
            self.refuse_where(missing & wanted, f"{side} missing: this function takes {1 + operand} operands", rows)
            self.refuse_where(~missing & ~wanted, "this function takes 1 operand", rows)
            value, data_format = self.column(vxm, side, rows), self.column(vxm, f"{side}_format", rows)
            some = kind == OperandKind.STREAM
            here, stream = rows[some], value[some]
            num_bytes = self.formats(here, data_format[some])
            along = np.where(stream < chip.num_streams_per_direction, entry[some], -entry[some])
            self.take(here, operand, stream, num_bytes, along, self.column(vxm, f"{side}_keep", here))
            alu = kind == OperandKind.ALU
            self.refuse_where(alu & ((value < 0) | (value >= chip.num_alus)), f"{side}: ALU out of range", rows)
            late = (data_format < 0) | (data_format > chip.vxm_max_delay_cycles)
            self.refuse_where(alu & late, f"{side}: delay must be 0..{chip.vxm_max_delay_cycles}", rows)
        num_bytes = self.formats(rows, self.column(vxm, "format", rows))
        first, second = self.column(vxm, "stream", rows), self.column(vxm, "second_stream", rows)
        self.refuse_where((first < -1) | (second < -1) | ((first < 0) & (second >= 0)), "bad stream", rows)
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
