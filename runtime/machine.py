"""The machine: what a `Program` means, cycle by cycle, on SRAM bytes, stream registers and units.

It takes a Program and an Sram, leaves the results in the Sram, counts cycles, and refuses every hazard.
"""

from __future__ import annotations

import dataclasses
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from lpu_jax.runtime.assembly import row_text
from lpu_jax.runtime.chip import ChipSpec
from lpu_jax.runtime.errors import ProgramError
from lpu_jax.runtime.isa import OPERANDS, VXM_FUNCTIONS, DataFormat, Opcode, stream_name
from lpu_jax.runtime.program import Program
from lpu_jax.runtime.sram import Sram
from lpu_jax.runtime.streams import StreamHazardError, Streams
from lpu_jax.runtime.units import sxm
from lpu_jax.runtime.units.decode import Decoder, Event
from lpu_jax.runtime.units.issue import Window, check_ports, check_queues, windows
from lpu_jax.runtime.units.mem import Memory
from lpu_jax.runtime.units.mxm import Factor, Planes, Sum
from lpu_jax.runtime.units.refusal import Refusal
from lpu_jax.runtime.units.vxm import Alus, Operation, operation

Uint8Array = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Issued instructions in order of time: int64 columns cycle, queue, row, repetition, iteration."""

    cycle: IntArray
    queue: IntArray
    row: IntArray
    repetition: IntArray
    iteration: IntArray


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What a run took.

    finish_cycle: max over executed instructions of issue cycle + latency; 0 for a program without instructions.
    cycles: finish_cycle + chip.skew_cycles, the count that `completion_cycles` predicts.
    """

    cycles: int
    finish_cycle: int
    trace: Trace | None


def run(program: Program, sram: Sram, *, trace: bool = False) -> RunResult:
    """Executes a program on an SRAM, in place.

    Args:
      program: any Program of sram.chip.
      sram: holds the inputs; words that the program writes change.
      trace: also return every issued instruction.

    Returns:
      Cycles: max(issue + latency) + skew_cycles; see `completion_cycles` for the latency of each instruction.

    Raises:
      ProgramError: a hazard, with cycle, queue and operands; the SRAM is then half changed.
    """
    if sram.chip != program.chip:
        raise ProgramError(f"program for chip {program.chip.name!r}, SRAM of chip {sram.chip.name!r}")
    machine = Machine(program, sram)
    parts = []
    for window in windows(program, machine.decoded, machine.streams.num_slots, machine.streams.num_streams):
        machine.run_window(window)
        if trace:
            parts.append(window)
    machine.finish()
    return RunResult(
        cycles=machine.finish_cycle + program.chip.skew_cycles,
        finish_cycle=machine.finish_cycle,
        trace=_trace(program, machine, parts) if trace else None,
    )


def completion_cycles(program: Program) -> int:
    """Cycles of a program by its rows alone: max over instructions of issue + latency, plus skew_cycles.

    latency: Read, Gather mem_read_cycles; Write, Scatter mem_write_cycles; LW 0; IW mxm_install_tail_cycles; ABC
    mxm_multiply_cycles; ACC mxm_accumulate_cycles; VXM vxm_op_cycles * slots, and vxm_operand_cycles more when the
    result leaves on a stream; Permute, Transpose, Distribute until the result leaves; Notify barrier_cycles; NOP and
    Sync 0. A turn in the VXM is not counted: whoever takes the value then comes later by itself.
    """
    latency = _latencies(program)
    finish = 0
    for block in program.blocks:
        rows = slice(block.row_start, block.row_stop)
        if block.row_start == block.row_stop:
            continue
        repeats = (program.count[rows].astype(np.int64) - 1) * program.interval[rows]
        last = program.cycle[rows] + repeats + latency[rows]
        start = block.start_cycle + (block.num_iterations - 1) * block.period_cycles
        finish = max(finish, start + int(last.max()))
    return finish + program.chip.skew_cycles


def _latencies(program: Program) -> IntArray:
    """Latency of each row, [rows]."""
    chip = program.chip
    table = np.zeros(len(Opcode), np.int64)
    table[[Opcode.READ, Opcode.GATHER]] = chip.mem_read_cycles
    table[[Opcode.WRITE, Opcode.SCATTER]] = chip.mem_write_cycles
    table[Opcode.IW] = chip.mxm_install_tail_cycles
    table[Opcode.ABC] = chip.mxm_multiply_cycles
    table[Opcode.ACC] = chip.mxm_accumulate_cycles
    table[Opcode.PERMUTE] = chip.sxm_permute_map_cycles + chip.sxm_permute_cycles + chip.sxm_permute_exit_cycles
    table[Opcode.TRANSPOSE] = 2 * chip.sxm_crossing_cycles + chip.sxm_transpose_cycles
    table[Opcode.DISTRIBUTE] = 2 * chip.sxm_crossing_cycles + chip.sxm_distribute_cycles
    table[Opcode.NOTIFY] = chip.barrier_cycles
    latency: IntArray = table[program.opcode]
    rows = np.flatnonzero(program.opcode == Opcode.VXM)
    columns = OPERANDS[Opcode.VXM]
    slots = np.array([chip.alu_slots(name) for name in VXM_FUNCTIONS], np.int64)
    leaves = program.operands[rows, columns.index("stream")] >= 0
    latency[rows] = chip.vxm_op_cycles * slots[program.operands[rows, columns.index("function")]]
    latency[rows] += chip.vxm_operand_cycles * leaves
    return latency


class Machine:
    """State of one run."""

    def __init__(self, program: Program, sram: Sram) -> None:
        self.program, self.chip = program, program.chip
        self.decoder = Decoder(program)
        self.decoded = self.decoder.decode()
        check_queues(program, self.decoder)
        self.memory = Memory(sram)
        self.streams = Streams(self.chip)
        self.planes = Planes(self.chip)
        self.alus = Alus(self.chip)
        self.maps: dict[tuple[int, int], Uint8Array] = {}
        self.operations: dict[int, Operation] = {}
        self.columns: dict[int, dict[str, int]] = {}
        self.drives: dict[int, list[tuple[IntArray, Uint8Array | Sum, IntArray]]] = {}
        self.now = -1
        self.finish_cycle = 0
        self.executing = 0
        self.execute = {
            Event.READ: self._read,
            Event.WRITE: self._write,
            Event.GATHER: self._gather,
            Event.SCATTER: self._scatter,
            Event.LW: self._load_weights,
            Event.IW: self._install_weights,
            Event.ACC: self._accumulate,
            Event.ABC: self._activate,
            Event.VXM: self._vxm,
            Event.MAP: self._permute_map,
            Event.PERMUTE: self._permute,
            Event.TRANSPOSE: self._transpose,
            Event.DISTRIBUTE: self._distribute,
            Event.SILENT: self._silent,
        }

    # Time ---------------------------------------------------------------------------------------------------------

    def run_window(self, window: Window) -> None:
        """Checks the ports of a window and steps through its cycles."""
        found = check_ports(window, self.decoded, self.chip.num_addresses_per_bank)
        if found:
            message, event, other = found
            self._refuse(int(window.cycle[event]), int(window.source[event]), f"{message}; {self._name(window, other)}")
        for cycle, groups in window.steps:
            self._idle(cycle)
            self.step(cycle, window, groups)
        self.alus.forget(self.now)

    def step(self, cycle: int, window: Window, groups: list[tuple[int, int, int]]) -> None:
        """One cycle: streams move, results enter them, units take operands and work."""
        self.now = cycle
        operands = self._exchange(cycle, window, groups)
        self._operands, self._first_take = operands, int(window.take_start[groups[0][1]])
        for event, first, last in groups:
            self.executing = first
            try:
                self.execute[Event(event)](window, first, last, cycle)
            except Refusal as refusal:
                source = int(window.source[self.executing + refusal.index])
                self._refuse(cycle, source, str(refusal))

    def finish(self) -> None:
        """Lets the last results enter their streams; refuses anything left over."""
        while self.drives:
            self._idle(max(self.drives) + 1)
        left = self.streams.unread()
        if left:
            source, stream = left
            self._refuse(self.now, source, f"its value on {stream_name(self.chip, stream)} is unread at program end")
        unused = self.planes.leftover()
        if unused:
            self._refuse(self.now, *unused)

    def _idle(self, cycle: int) -> None:
        """Moves streams through cycles in which nothing is issued, up to `cycle`."""
        while self.now + 1 < cycle:
            if not self.streams.num_live:
                self.now = min([cycle, *self.drives]) - 1 if self.drives else cycle - 1
                if self.now + 1 >= cycle:
                    return
            self.now += 1
            self._exchange(self.now, None, [])

    def _exchange(self, cycle: int, window: Window | None, groups: list[tuple[int, int, int]]) -> Uint8Array:
        drives = [(keys, self._value(data), source) for keys, data, source in self.drives.pop(cycle, ())]
        if window is None:
            first = last = 0
            keys, keep = _NO_KEYS, _NO_KEEP
        else:
            first, last = int(window.take_start[groups[0][1]]), int(window.take_start[groups[-1][2]])
            keys, keep = window.take_keys[first:last], window.take_keep[first:last]
        try:
            self.streams.leave(cycle)
            return self.streams.exchange(drives, keys, keep)
        except StreamHazardError as hazard:
            self._stream_hazard(hazard, cycle, window, first, drives)

    def _value(self, data: Uint8Array | Sum) -> Uint8Array:
        if isinstance(data, Sum):
            return self.planes.evaluate(data)
        return data

    def _drive(self, cycle: int, keys: IntArray, data: Uint8Array | Sum, source: IntArray) -> None:
        """Puts values on streams, in a later cycle."""
        self.finish_cycle = max(self.finish_cycle, cycle)
        self.drives.setdefault(cycle, []).append((keys, data, source))

    def _drive_one(self, window: Window, index: int, latency: int, data: Uint8Array | Sum, count: int) -> None:
        """Puts the result of one event on `count` streams, as decoded."""
        keys = int(window.drive_key[index]) + np.arange(count)
        self._drive(int(window.cycle[index]) + latency, keys, data, np.full(count, window.source[index]))

    # Units --------------------------------------------------------------------------------------------------------

    def _taken(self, window: Window, first: int, last: int) -> Uint8Array:
        """Operands of events first .. last - 1, uint8 [takes, lanes]."""
        starts, base = window.take_start, self._first_take
        return self._operands[int(starts[first]) - base : int(starts[last]) - base]

    def _values(self, source: int) -> dict[str, int]:
        """Operand columns of an event source, by name."""
        if source not in self.columns:
            row = int(self.decoded.row[source])
            names = OPERANDS[Opcode(int(self.program.opcode[row]))]
            self.columns[source] = dict(zip(names, self.program.operands[row].tolist(), strict=False))
        return self.columns[source]

    def _plane(self, source: int) -> int:
        return (int(self.decoded.port[source]) - self.decoder.plane_port) // 4

    def _read(self, window: Window, first: int, last: int, cycle: int) -> None:
        data = self.memory.read(window.word[first:last], cycle)
        self._drive(cycle + self.chip.mem_read_cycles, window.drive_key[first:last], data, window.source[first:last])

    def _write(self, window: Window, first: int, last: int, cycle: int) -> None:
        done = self.memory.write(window.word[first:last], self._taken(window, first, last), cycle)
        self.finish_cycle = max(self.finish_cycle, done)

    def _mapped(self, window: Window, index: int, data: Uint8Array) -> IntArray:
        first = int(self.decoded.port[window.source[index]]) // 2 * self.chip.num_addresses_per_slice
        return self.memory.mapped_words(first, int(window.word[index]) - first, data)

    def _gather(self, window: Window, first: int, last: int, cycle: int) -> None:
        for self.executing in range(first, last):
            words = self._mapped(window, self.executing, self._taken(window, self.executing, self.executing + 1)[0])
            self._check_banks(window, self.executing, words)
            data = self.memory.gather(words, cycle)
            self._drive_one(window, self.executing, self.chip.mem_read_cycles, data[None], 1)

    def _scatter(self, window: Window, first: int, last: int, cycle: int) -> None:
        for self.executing in range(first, last):
            data, index_map = self._taken(window, self.executing, self.executing + 1)
            words = self._mapped(window, self.executing, index_map)
            self._check_banks(window, self.executing, words)
            self.finish_cycle = max(self.finish_cycle, self.memory.scatter(words, data, cycle))

    def _check_banks(self, window: Window, index: int, words: IntArray) -> None:
        """Refuses a Gather or Scatter that meets the slice's other port in a bank; only data tells the banks."""
        port = int(self.decoded.port[window.source[index]]) ^ 1
        cycle = int(window.cycle[index])
        low, high = np.searchsorted(window.cycle, [cycle, cycle + 1])
        mem = np.arange(low, high)[window.event[low:high] <= Event.SCATTER]
        for other in mem[self.decoded.port[window.source[mem]] == port]:
            other_words = window.word[other : other + 1]
            if window.event[other] in (Event.GATHER, Event.SCATTER):
                taken = self._taken(window, int(other), int(other) + 1)
                other_words = self._mapped(window, int(other), taken[-1])
            if np.isin(self.memory.banks(words), self.memory.banks(other_words)).any():
                raise Refusal(f"bank conflict: read and write of one bank; {self._name(window, int(other))}")

    def _load_weights(self, window: Window, first: int, last: int, cycle: int) -> None:
        for self.executing in range(first, last):
            source, repetition = int(window.source[self.executing]), int(window.repetition[self.executing])
            values = self._values(source)
            row = values["row"] + values["row_step"] * repetition
            vectors = self._taken(window, self.executing, self.executing + 1)
            self.planes.load(self._plane(source), vectors, row, DataFormat(values["format"]), source)
        self.finish_cycle = max(self.finish_cycle, cycle)

    def _install_weights(self, window: Window, first: int, last: int, cycle: int) -> None:
        for self.executing in range(first, last):
            self.planes.install(self._plane(int(window.source[self.executing])), cycle)
        self.finish_cycle = max(self.finish_cycle, cycle + self.chip.mxm_install_tail_cycles)

    def _accumulator(self, values: dict[str, int], window: Window) -> int:
        return values["accumulator"] + values["accumulator_step"] * int(window.repetition[self.executing])

    def _accumulate(self, window: Window, first: int, last: int, cycle: int) -> None:
        for self.executing in range(first, last):
            source = int(window.source[self.executing])
            accumulator = self._accumulator(self._values(source), window)
            total = self.planes.accumulate(self._plane(source), accumulator, cycle)
            self._drive_one(window, self.executing, self.chip.mxm_accumulate_cycles, total, 4)

    def _activate(self, window: Window, first: int, last: int, cycle: int) -> None:
        for self.executing in range(first, last):
            source = int(window.source[self.executing])
            values = self._values(source)
            taken = self._taken(window, self.executing, self.executing + 1)
            factor = Factor(taken, DataFormat(values["format"]), values["first_row"], values["num_rows"])
            accumulator, begin = self._accumulator(values, window), values["begin"] != 0
            self.planes.multiply(self._plane(source), factor, accumulator, begin, cycle, source)
        self.finish_cycle = max(self.finish_cycle, cycle + self.chip.mxm_multiply_cycles)

    def _vxm(self, window: Window, first: int, last: int, cycle: int) -> None:
        for self.executing in range(first, last):
            source = int(window.source[self.executing])
            op = self.operations.get(source)
            if op is None:
                alu = int(self.decoded.port[source]) - self.decoder.alu_port
                columns = self.program.operands[self.decoded.row[source]].tolist()
                op = self.operations[source] = operation(self.chip, alu, columns)
            result, data = self.alus.execute(op, self._taken(window, self.executing, self.executing + 1), cycle)
            self.finish_cycle = max(self.finish_cycle, cycle + op.latency_cycles)
            for stream in op.streams if data is not None else ():
                leave = self.alus.leave_cycle(op, result, stream, cycle)
                diagonal = leave - self.chip.vxm_pass_cycles // 2
                key = diagonal % self.streams.num_slots * self.streams.num_streams + stream
                assert data is not None
                self._drive(leave, key + np.arange(len(data)), data, np.full(len(data), source))

    def _permute_map(self, window: Window, first: int, last: int, cycle: int) -> None:
        for self.executing in range(first, last):
            port = int(self.decoded.port[window.source[self.executing]])
            taken = self._taken(window, self.executing, self.executing + 1)
            self.maps[port, cycle + self.chip.sxm_permute_map_cycles] = taken

    def _permute(self, window: Window, first: int, last: int, cycle: int) -> None:
        for self.executing in range(first, last):
            port = int(self.decoded.port[window.source[self.executing]])
            taken = self._taken(window, self.executing, self.executing + 1)
            out = sxm.permute(taken[0], self.maps.pop((port, cycle)))
            latency = self.chip.sxm_permute_cycles + self.chip.sxm_permute_exit_cycles
            self._drive_one(window, self.executing, latency, out[None], 1)

    def _transpose(self, window: Window, first: int, last: int, cycle: int) -> None:
        latency = 2 * self.chip.sxm_crossing_cycles + self.chip.sxm_transpose_cycles
        for self.executing in range(first, last):
            out = sxm.transpose(self._taken(window, self.executing, self.executing + 1))
            self._drive_one(window, self.executing, latency, out, len(out))

    def _distribute(self, window: Window, first: int, last: int, cycle: int) -> None:
        latency = 2 * self.chip.sxm_crossing_cycles + self.chip.sxm_distribute_cycles
        for self.executing in range(first, last):
            data, lane_map = self._taken(window, self.executing, self.executing + 1)
            out = sxm.distribute(data, lane_map, self.chip.num_lanes_per_superlane)
            self._drive_one(window, self.executing, latency, out[None], 1)

    def _silent(self, window: Window, first: int, last: int, cycle: int) -> None:
        """NOP, Sync and Notify: their rules were checked before the run; a barrier takes time."""
        opcodes = self.program.opcode[self.decoded.row[window.source[first:last]]]
        barrier = self.chip.barrier_cycles if (opcodes == Opcode.NOTIFY).any() else 0
        self.finish_cycle = max(self.finish_cycle, cycle + barrier)

    # Errors -------------------------------------------------------------------------------------------------------

    def _text(self, source: int) -> str:
        row = int(self.decoded.row[source])
        return f"{self.decoder.queue_names[int(self.program.queue[row])]} {row_text(self.program, row)}"

    def _name(self, window: Window, event: int) -> str:
        return f"the other is {self._text(int(window.source[event]))}"

    def _refuse(self, cycle: int, source: int, message: str) -> NoReturn:
        raise ProgramError(f"cycle {cycle}: {self._text(source)}: {message}") from None

    def _stream_hazard(
        self,
        hazard: StreamHazardError,
        cycle: int,
        window: Window | None,
        first: int,
        drives: list[tuple[IntArray, Uint8Array, IntArray]],
    ) -> NoReturn:
        if hazard.kind == "left":
            name = stream_name(self.chip, hazard.stream)
            self._refuse(cycle, hazard.other, f"its value on {name} left the chip unread")
        if hazard.kind == "collision":
            source = int(np.concatenate([d[2] for d in drives])[hazard.index])
            name = stream_name(self.chip, hazard.stream % self.streams.num_streams)
            self._refuse(cycle, source, f"stream collision on {name} with the value of {self._text(hazard.other)}")
        assert window is not None
        take = first + hazard.index
        event = int(np.searchsorted(window.take_start, take, side="right")) - 1
        name = stream_name(self.chip, int(window.take_keys[take]) % self.streams.num_streams)
        reason = "another reader takes it in this cycle" if hazard.kind == "taken twice" else "no value there"
        self._refuse(cycle, int(window.source[event]), f"operand {name} is not there: {reason}")


_NO_KEYS: IntArray = np.zeros(0, np.int64)
_NO_KEEP: npt.NDArray[np.bool_] = np.zeros(0, np.bool_)


def _trace(program: Program, machine: Machine, parts: list[Window]) -> Trace:
    """Concatenates the columns of all windows, without the second halves of Permutes."""

    def column(name: str) -> IntArray:
        if not parts:
            return _NO_KEYS
        found: IntArray = np.concatenate([getattr(part, name) for part in parts])
        return found

    issued = column("event") != Event.PERMUTE
    row = machine.decoded.row[column("source")[issued]]
    return Trace(
        cycle=column("cycle")[issued],
        queue=program.queue[row].astype(np.int64),
        row=row,
        repetition=column("repetition")[issued],
        iteration=column("iteration")[issued],
    )
