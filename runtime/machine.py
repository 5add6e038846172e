"""The machine: what a `Program` means, cycle by cycle, on SRAM bytes, stream registers and units.

It takes a Program and an Sram, leaves the results in the Sram, counts cycles, and refuses every hazard.
"""

from __future__ import annotations

import dataclasses
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from lpu_jax.runtime.errors import ProgramError
from lpu_jax.runtime.isa import stream_name
from lpu_jax.runtime.program import Program
from lpu_jax.runtime.progress import progress
from lpu_jax.runtime.sram import Sram
from lpu_jax.runtime.streams import Drives, StreamHazardError, Streams
from lpu_jax.runtime.units.decode import Decoder, Event
from lpu_jax.runtime.units.execute import Units
from lpu_jax.runtime.units.issue import Window, check_ports, check_queues, windows
from lpu_jax.runtime.units.refusal import Refusal
from lpu_jax.runtime.units.timing import completion_cycles

__all__ = ["RunResult", "Trace", "completion_cycles", "run"]

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
    with progress("Running the machine", total=completion_cycles(program)) as bar:
        for window in windows(program, machine.decoded, machine.streams.num_slots, machine.streams.num_streams):
            machine.run_window(window)
            bar.to(machine.now)
            if trace:
                parts.append(window)
        machine.finish()
    return RunResult(
        cycles=machine.units.finish_cycle + program.chip.skew_cycles,
        finish_cycle=machine.units.finish_cycle,
        trace=_trace(program, machine, parts) if trace else None,
    )


class Machine:
    """State of one run: the streams, and the units with everything that they hold."""

    def __init__(self, program: Program, sram: Sram) -> None:
        """Decodes a program and checks the rules that need no data."""
        self.program, self.chip = program, program.chip
        self.decoder = Decoder(program)
        self.decoded = self.decoder.decode()
        check_queues(program, self.decoder)
        self.streams = Streams(self.chip)
        self.units = Units(self.decoder, self.decoded, sram, self.streams)
        self.now = -1

    # Time ---------------------------------------------------------------------------------------------------------

    def run_window(self, window: Window) -> None:
        """Checks the ports of a window and steps through its cycles."""
        found = check_ports(window, self.decoded, self.chip.num_addresses_per_bank)
        if found:
            message, event, other = found
            self._refuse(
                int(window.cycle[event]),
                int(window.source[event]),
                f"{message}; the other is {self.decoder.text(int(self.decoded.row[window.source[other]]))}",
            )
        for cycle, groups in window.steps:
            self._idle(cycle)
            self.step(cycle, window, groups)
        self.units.alus.forget(self.now)

    def step(self, cycle: int, window: Window, groups: list[tuple[int, int, int]]) -> None:
        """One cycle: streams move, results enter them, units take operands and work."""
        self.now = cycle
        operands = self._exchange(cycle, window, groups)
        try:
            self.units.work(cycle, window, groups, operands)
        except Refusal as refusal:
            source = int(window.source[self.units.executing + refusal.index])
            self._refuse(cycle, source, str(refusal))

    def finish(self) -> None:
        """Lets the last results enter their streams; refuses anything left over."""
        while self.units.drives:
            self._idle(max(self.units.drives) + 1)
        left = self.streams.unread()
        if left:
            source, stream = left
            self._refuse(self.now, source, f"its value on {stream_name(self.chip, stream)} is unread at program end")
        unused = self.units.planes.leftover()
        if unused:
            self._refuse(self.now, *unused)

    def _idle(self, cycle: int) -> None:
        """Moves streams through cycles in which nothing is issued, up to `cycle`."""
        while self.now + 1 < cycle:
            if not self.streams.num_live:
                self.now = min([cycle, *self.units.drives]) - 1
                if self.now + 1 >= cycle:
                    return
            self.now += 1
            self._exchange(self.now, None, [])

    def _exchange(self, cycle: int, window: Window | None, groups: list[tuple[int, int, int]]) -> Uint8Array:
        drives = self.units.results(cycle)
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

    # Errors -------------------------------------------------------------------------------------------------------

    def _refuse(self, cycle: int, source: int, message: str) -> NoReturn:
        raise ProgramError(f"cycle {cycle}: {self.decoder.text(int(self.decoded.row[source]))}: {message}") from None

    def _stream_hazard(
        self,
        hazard: StreamHazardError,
        cycle: int,
        window: Window | None,
        first: int,
        drives: Drives,
    ) -> NoReturn:
        if hazard.kind == "left":
            name = stream_name(self.chip, hazard.stream)
            self._refuse(cycle, hazard.other, f"its value on {name} left the chip unread")
        if hazard.kind == "collision":
            source = int(np.concatenate([d[2] for d in drives])[hazard.index])
            name = stream_name(self.chip, hazard.stream % self.streams.num_streams)
            other = self.decoder.text(int(self.decoded.row[hazard.other]))
            self._refuse(cycle, source, f"stream collision on {name} with the value of {other}")
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
