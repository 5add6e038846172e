"""MEM slices: Read, Write, Gather and Scatter on the words of an SRAM."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lpu_jax.runtime.sram import Sram
from lpu_jax.runtime.units.refusal import Refusal

Uint8Array = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.int64]

NEVER = 2**62
"""Ready cycle of a word that holds no value."""


class Memory:
    """The words of all slices in one row, and the cycle from which each may be read.

    word = (hemisphere * num_slices + slice) * num_addresses_per_slice + address.
    """

    def __init__(self, sram: Sram) -> None:
        """A view of an SRAM; what the host wrote is ready from cycle 0."""
        self.chip = sram.chip
        self.words: Uint8Array = sram.data.reshape(-1, self.chip.num_lanes)
        self.written = sram.written.reshape(-1)
        self.ready: IntArray = np.where(self.written, 0, NEVER)

    def read(self, words: IntArray, cycle: int) -> Uint8Array:
        """words[n] as uint8 [n, lanes]."""
        self._check_ready(words, cycle)
        return self.words.take(words, axis=0)

    def write(self, words: IntArray, data: Uint8Array, cycle: int) -> int:
        """Writes data[n] to words[n]; returns the cycle from which they can be read."""
        done = cycle + self.chip.mem_write_cycles
        self.words[words] = data
        self.written[words] = True
        self.ready[words] = done
        return done

    def mapped_words(self, first: int, displacement: int, data: Uint8Array) -> IntArray:
        """Word of each superlane [num_superlanes]: first + displacement + entry in its first two lanes of a map vector.

        Args:
          first: first word of the slice.
          displacement: added to each entry; the sum is the address, 0 <= address < num_addresses_per_slice.
          data: uint8 [lanes], the map vector.

        Raises:
          Refusal: an address outside the slice (the hardware's GFAULT).
        """
        entries = data.reshape(self.chip.num_superlanes, self.chip.num_lanes_per_superlane)
        limit = self.chip.num_addresses_per_slice
        addresses: IntArray = displacement + entries[:, 0].astype(np.int64) + 256 * entries[:, 1].astype(np.int64)
        bad = (addresses < 0) | (addresses >= limit)
        if bad.any():
            superlane = int(bad.argmax())
            raise Refusal(f"GFAULT: superlane {superlane} asks for address {addresses[superlane]}, limit {limit}")
        return addresses + first

    def gather(self, words: IntArray, cycle: int) -> Uint8Array:
        """Each superlane's own 16 bytes of its own word, uint8 [lanes]."""
        self._check_ready(words, cycle)
        return self._by_superlane()[words, np.arange(len(words))].reshape(-1)

    def scatter(self, words: IntArray, data: Uint8Array, cycle: int) -> int:
        """Each superlane writes its own 16 bytes to its own word."""
        done = cycle + self.chip.mem_write_cycles
        self._by_superlane()[words, np.arange(len(words))] = data.reshape(len(words), -1)
        self.written[words] = True
        self.ready[words] = done
        return done

    def banks(self, words: IntArray) -> IntArray:
        """Bank of each word, counted over the whole chip."""
        return words // self.chip.num_addresses_per_bank

    def _by_superlane(self) -> Uint8Array:
        return self.words.reshape(-1, self.chip.num_superlanes, self.chip.num_lanes_per_superlane)

    def _check_ready(self, words: IntArray, cycle: int) -> None:
        ready = self.ready[words]
        late = ready > cycle
        if late.any():
            first = int(late.argmax())
            address = int(words[first]) % self.chip.num_addresses_per_slice
            if ready[first] == NEVER:
                raise Refusal(f"address {address} was never written", first)
            raise Refusal(f"address {address}: read before write completes at cycle {ready[first]}", first)
