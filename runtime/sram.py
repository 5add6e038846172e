"""SRAM of a chip as bytes, with the words that have been written so far."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lpu_jax.runtime.chip import ChipSpec, Hemisphere
from lpu_jax.runtime.errors import ProgramError

Uint8Array = npt.NDArray[np.uint8]


class Sram:
    """All MEM slices of one chip.

    Layout:
      data     uint8 [2, num_slices, num_addresses_per_slice, num_lanes]
               hemisphere (0 west, 1 east), slice, vector word, lane
      written  bool  [2, num_slices, num_addresses_per_slice]
               words that hold a value; a Scatter counts as writing the whole word at each of its addresses

    The bank of a word is address // num_addresses_per_bank. `data` starts as zeros, which the operating system commits
    page by page, so an unused chip costs no memory. `write` and `read` are the host's way in and out and count no
    cycles; a Program goes through `machine.run`.
    """

    def __init__(self, chip: ChipSpec) -> None:
        """Zeros, none of them written."""
        self.chip = chip
        words = (2, chip.num_slices, chip.num_addresses_per_slice)
        self.data: Uint8Array = np.zeros((*words, chip.num_lanes), np.uint8)
        self.written: npt.NDArray[np.bool_] = np.zeros(words, np.bool_)

    def write(
        self, hemisphere: Hemisphere, mem_slice: int, addresses: int | npt.ArrayLike, data: npt.ArrayLike
    ) -> None:
        """Writes words of one slice: sram[hemisphere, mem_slice, addresses[n]] = data[n].

        Args:
          hemisphere: half of the chip.
          mem_slice: 0 <= mem_slice < num_slices.
          addresses: an int, or ints [n]; each 0 <= address < num_addresses_per_slice.
          data: uint8 or int8 [n, num_lanes], or [num_lanes] for one address.

        Raises:
          ProgramError: slice or address out of range, or data of another shape.
        """
        where = self._check(hemisphere, mem_slice, addresses)
        stored = np.asarray(data)
        if stored.dtype == np.int8:
            stored = stored.view(np.uint8)
        if stored.dtype != np.uint8 or stored.shape != (*where.shape, self.chip.num_lanes):
            raise ProgramError(
                f"SRAM write to MEM_{hemisphere.name[0]}{mem_slice}: data is {stored.dtype}{list(stored.shape)}, "
                f"needs uint8{[*where.shape, self.chip.num_lanes]}"
            )
        self.data[hemisphere, mem_slice, where] = stored
        self.written[hemisphere, mem_slice, where] = True

    def read(self, hemisphere: Hemisphere, mem_slice: int, addresses: int | npt.ArrayLike) -> Uint8Array:
        """Reads words of one slice, uint8 [n, num_lanes], or [num_lanes] for one address.

        Raises:
          ProgramError: slice or address out of range, or a word that was never written.
        """
        where = self._check(hemisphere, mem_slice, addresses)
        written = self.written[hemisphere, mem_slice, where]
        if not written.all():
            first = int(where[~written].flat[0]) if where.ndim else int(where)
            raise ProgramError(f"SRAM read of MEM_{hemisphere.name[0]}{mem_slice} a={first}: never written")
        words: Uint8Array = self.data[hemisphere, mem_slice, where].copy()
        return words

    def _check(self, hemisphere: Hemisphere, mem_slice: int, addresses: int | npt.ArrayLike) -> npt.NDArray[np.int64]:
        where = np.asarray(addresses, dtype=np.int64)
        if not 0 <= mem_slice < self.chip.num_slices:
            raise ProgramError(f"MEM slice {mem_slice} out of range: {self.chip.name} has {self.chip.num_slices}")
        limit = self.chip.num_addresses_per_slice
        bad = (where < 0) | (where >= limit)
        if bad.any():
            first = int(where[bad].flat[0]) if where.ndim else int(where)
            raise ProgramError(
                f"SRAM address {first} of MEM_{hemisphere.name[0]}{mem_slice} out of range: {limit} words per slice"
            )
        return where
