"""Stream registers: values that move one hop a cycle until a reader takes them off.

A value on a stream is known by its diagonal, cycle - along, where `along` is its position counted in the direction of
flow: the diagonal never changes while the value moves, so nothing is copied when the streams advance.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lpu_jax.runtime.chip import ChipSpec

Uint8Array = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.int64]

Drives = list[tuple[IntArray, Uint8Array, IntArray]]
"""Results that enter streams in one cycle: (keys [d], data uint8 [d, lanes], source [d]) each."""


class StreamHazardError(Exception):
    """A broken stream rule; `machine` turns it into a ProgramError with cycle, queue and operands.

    kind: "missing" (index: position in the takes), "taken twice" (index likewise), "collision" (index: position in the
    drives; other: source of the value in the way), "left" (other: source of the value that left the chip unread).
    """

    def __init__(self, kind: str, index: int = -1, other: int = -1, stream: int = -1) -> None:
        """Keeps what is known; the machine finds the words."""
        super().__init__(kind)
        self.kind, self.index, self.other, self.stream = kind, index, other, stream


class Streams:
    """Values on all streams of a chip, [slots * 2 * num_streams_per_direction] registers of num_lanes bytes.

    key = (diagonal mod slots) * 2 * num_streams_per_direction + stream; slots > number of positions of the chip.

    In one cycle a register may be taken and driven again; a value is seen by readers at its position in the cycle in
    which it is driven, unless the register still held another value, which such a reader takes instead.
    """

    def __init__(self, chip: ChipSpec) -> None:
        """Empty streams."""
        self.num_streams = 2 * chip.num_streams_per_direction
        self.last_along = chip.max_position
        self.num_slots = 1 << (2 * chip.max_position + 2).bit_length()
        size = self.num_slots * self.num_streams
        self.data: Uint8Array = np.zeros((size, chip.num_lanes), np.uint8)
        self.valid: npt.NDArray[np.bool_] = np.zeros(size, np.bool_)
        self.source: IntArray = np.full(size, -1, np.int64)
        self.num_live = 0

    def leave(self, cycle: int) -> None:
        """Refuses a value that has just moved past the last position untaken."""
        slot = (cycle - self.last_along - 1) % self.num_slots
        leaving = self.valid[slot * self.num_streams : (slot + 1) * self.num_streams]
        if leaving.any():
            stream = int(leaving.argmax())
            raise StreamHazardError("left", other=int(self.source[slot * self.num_streams + stream]), stream=stream)

    def exchange(self, drives: Drives, keys: IntArray, keep: npt.NDArray[np.bool_]) -> Uint8Array:
        """One cycle: drives values, takes operands and returns them.

        Args:
          drives: (keys [d], data uint8 [d, lanes], source [d]) of each result that enters a stream now.
          keys: [t] registers that readers want now.
          keep: [t] whether the reader leaves the value on the stream.

        Returns:
          uint8 [t, lanes].
        """
        if not drives:
            return self._take(keys, keep)
        if len(drives) == 1:
            drive_keys, data, source = drives[0]
        else:
            drive_keys = np.concatenate([d[0] for d in drives])
            data = np.concatenate([d[1] for d in drives])
            source = np.concatenate([d[2] for d in drives])
        occupied = self.valid[drive_keys]
        if not occupied.any():
            self._drive(drive_keys, data, source)
            return self._take(keys, keep)
        first = np.isin(keys, drive_keys[occupied])
        operands = np.empty((len(keys), self.data.shape[1]), np.uint8)
        operands[first] = self._take(keys[first], keep[first], np.flatnonzero(first))
        self._drive(drive_keys, data, source)
        operands[~first] = self._take(keys[~first], keep[~first], np.flatnonzero(~first))
        return operands

    def _drive(self, keys: IntArray, data: Uint8Array, source: IntArray) -> None:
        occupied = self.valid[keys]
        if occupied.any():
            index = int(occupied.argmax())
            raise StreamHazardError("collision", index, int(self.source[keys[index]]), int(keys[index]))
        self.valid[keys] = True
        self.num_live += len(keys)
        if np.count_nonzero(self.valid) != self.num_live:
            order = np.argsort(keys, kind="stable")
            again = int(np.flatnonzero(np.diff(keys[order]) == 0)[0])
            raise StreamHazardError(
                "collision", int(order[again + 1]), int(source[order[again]]), int(keys[order[again]])
            )
        self.data[keys] = data
        self.source[keys] = source

    def _take(self, keys: IntArray, keep: npt.NDArray[np.bool_], index_of: IntArray | None = None) -> Uint8Array:
        if not len(keys):
            return self.data[:0]
        present = self.valid[keys]
        if not present.all():
            missing = int(present.argmin())
            raise StreamHazardError("missing", missing if index_of is None else int(index_of[missing]))
        taken = keys[~keep] if keep.any() else keys
        self.valid[taken] = False
        self.num_live -= len(taken)
        if np.count_nonzero(self.valid) != self.num_live:
            takers = np.flatnonzero(~keep)
            order = takers[np.argsort(keys[takers], kind="stable")]
            again = int(order[np.flatnonzero(np.diff(keys[order]) == 0)[0] + 1])
            raise StreamHazardError("taken twice", again if index_of is None else int(index_of[again]))
        return self.data.take(keys, axis=0)

    def unread(self) -> tuple[int, int] | None:
        """(source, stream) of a value that is still on a stream, or None."""
        if not self.num_live:
            return None
        key = int(self.valid.argmax())
        return int(self.source[key]), key % self.num_streams
