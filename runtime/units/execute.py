"""Units at work: hands the events of a cycle to MEM, MXM, VXM and SXM, and keeps results until they enter a stream."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from lpu_jax.runtime.isa import OPERANDS, DataFormat, Opcode
from lpu_jax.runtime.sram import Sram
from lpu_jax.runtime.streams import Drives, Streams
from lpu_jax.runtime.units import sxm
from lpu_jax.runtime.units.decode import Decoded, Decoder, Event
from lpu_jax.runtime.units.issue import Window
from lpu_jax.runtime.units.mem import Memory
from lpu_jax.runtime.units.mxm import Factor, Planes, Sum
from lpu_jax.runtime.units.refusal import Refusal
from lpu_jax.runtime.units.vxm import Alus, Operation, operation

Uint8Array = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.int64]


class Units:
    """All units of a chip.

    drives: results on their way, by the cycle in which they enter streams; executing: the event at work, for errors.
    """

    def __init__(self, decoder: Decoder, decoded: Decoded, sram: Sram, streams: Streams) -> None:
        """Idle units; `streams` gives the layout of stream keys."""
        self.program, self.chip = decoder.program, decoder.chip
        self.decoder, self.decoded = decoder, decoded
        self.num_slots, self.num_streams = streams.num_slots, streams.num_streams
        self.memory = Memory(sram)
        self.planes = Planes(self.chip)
        self.alus = Alus(self.chip)
        self.maps: dict[tuple[int, int], Uint8Array] = {}
        self.operations: dict[int, Operation] = {}
        self.columns: dict[int, dict[str, int]] = {}
        self.drives: dict[int, list[tuple[IntArray, Uint8Array | Sum, IntArray]]] = {}
        self.finish_cycle = 0
        self.executing = 0
        self._operands: Uint8Array = np.zeros((0, self.chip.num_lanes), np.uint8)
        self._first_take = 0
        self.handlers: dict[Event, Callable[[Window, int, int, int], None]] = {
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

    def work(self, cycle: int, window: Window, groups: list[tuple[int, int, int]], operands: Uint8Array) -> None:
        """Executes the events of a cycle on the operands that they took, uint8 [takes, lanes].

        Raises:
          Refusal: a hazard of the event `executing` (plus the refusal's index).
        """
        self._operands, self._first_take = operands, int(window.take_start[groups[0][1]])
        for event, first, last in groups:
            self.executing = first
            self.handlers[Event(event)](window, first, last, cycle)

    def results(self, cycle: int) -> Drives:
        """Takes out the results that enter streams in a cycle."""
        return [
            (keys, self.planes.evaluate(data) if isinstance(data, Sum) else data, source)
            for keys, data, source in self.drives.pop(cycle, ())
        ]

    def _drive(self, cycle: int, keys: IntArray, data: Uint8Array | Sum, source: IntArray) -> None:
        """Puts values on streams, in a later cycle."""
        self.finish_cycle = max(self.finish_cycle, cycle)
        self.drives.setdefault(cycle, []).append((keys, data, source))

    def _drive_one(self, window: Window, index: int, latency: int, data: Uint8Array | Sum, count: int) -> None:
        """Puts the result of one event on `count` streams, as decoded."""
        keys = int(window.drive_key[index]) + np.arange(count)
        self._drive(int(window.cycle[index]) + latency, keys, data, np.full(count, window.source[index]))

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
                raise Refusal(f"bank conflict: read and write of one bank; {self._other(window, int(other))}")

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
                key = diagonal % self.num_slots * self.num_streams + stream
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

    def _other(self, window: Window, event: int) -> str:
        return f"the other is {self.decoder.text(int(self.decoded.row[window.source[event]]))}"
