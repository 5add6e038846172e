"""MXM planes: weight buffers, installed tiles, and accumulators that hold sums of products until they are read.

A sum is kept as its terms (activation rows, tile rows) and evaluated when its value leaves the plane, many vectors at
once; the accumulators lose nothing, so the order does not matter and each sum is rounded once.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from lpu_jax.runtime.accumulation import accumulate, add_partial_sums, partial_sums
from lpu_jax.runtime.block_words import decode_words
from lpu_jax.runtime.chip import ChipSpec
from lpu_jax.runtime.isa import DataFormat, buffer_lines
from lpu_jax.runtime.units.refusal import Refusal
from lpu_jax.runtime.units.vxm import from_bytes, to_bytes

Uint8Array = npt.NDArray[np.uint8]


@dataclasses.dataclass(slots=True, eq=False)
class Tile:
    """Weights of one plane (or pair): uint8 [rows, bytes, lanes] as they lay on streams; of blocks [words, 1, lanes].

    source: event source that loaded the first row.
    """

    serial: int
    data: Uint8Array
    data_format: DataFormat
    loaded: npt.NDArray[np.bool_]
    source: int
    is_used: bool = False

    @property
    def is_wide(self) -> bool:
        """Whether the tile takes both planes of a hemisphere."""
        return self.data_format.num_bytes > 1

    def elements(self, rows: slice, num_rows: int) -> npt.NDArray[np.generic]:
        """Some of the `num_rows` rows of the plane in the dtype of their format, blocks unpacked (bf16)."""
        if not self.data_format.is_block:
            return from_bytes(self.data[rows], self.data_format)
        number_format = self.data_format.number_format
        words = self.data[: number_format.num_words(num_rows), 0].view(np.int8)
        values: npt.NDArray[np.generic] = decode_words(np, words, number_format, num_rows)[rows]
        return values


@dataclasses.dataclass(slots=True, frozen=True, eq=False)
class Factor:
    """Lanes first .. first + count - 1 of an activation vector, uint8 [bytes, lanes]; they meet the same rows."""

    activation: Uint8Array
    data_format: DataFormat
    first: int
    count: int


@dataclasses.dataclass(slots=True, frozen=True, eq=False)
class Term:
    """factor . tile."""

    factor: Factor
    tile: Tile

    @property
    def key(self) -> tuple[int, int, int, DataFormat]:
        """Terms with equal keys differ in their activation only."""
        return self.tile.serial, self.factor.first, self.factor.count, self.factor.data_format


@dataclasses.dataclass(slots=True, eq=False)
class Sum:
    """An accumulator; `value` uint8 [4, lanes] once evaluated."""

    terms: list[Term]
    last_cycle: int
    source: int
    plane: int
    value: Uint8Array | None = None


@dataclasses.dataclass(slots=True)
class Plane:
    """State of one plane. `installs` holds (cycle from which it counts, tile or None)."""

    buffer: Tile | None = None
    tile: Tile | None = None
    installs: list[tuple[int, Tile | None]] = dataclasses.field(default_factory=list)
    last_install: int = -(2**62)
    busy_until: int = -(2**62)
    sums: dict[int, Sum] = dataclasses.field(default_factory=dict)
    pending: list[Sum] = dataclasses.field(default_factory=list)

    def settle(self, cycle: int) -> None:
        """Lets installs take effect that count from `cycle` or earlier; each tile must have been used by then."""
        while self.installs and self.installs[0][0] <= cycle:
            effect, tile = self.installs.pop(0)
            if self.tile is not None and not self.tile.is_used:
                raise Refusal(f"the weights replaced at cycle {effect} were never used")
            self.tile = tile

    @property
    def newest(self) -> Tile | None:
        """The tile installed last, whether in effect or not."""
        return self.installs[-1][1] if self.installs else self.tile


class Planes:
    """All planes of a chip; plane id = hemisphere * num_planes + plane."""

    def __init__(self, chip: ChipSpec) -> None:
        """Planes without weights."""
        self.chip = chip
        self.planes = [Plane() for _ in range(2 * chip.num_planes)]
        self.num_tiles = 0

    def _others(self, plane: int, is_wide: bool = True) -> list[Plane]:
        first = plane - plane % self.chip.num_planes
        return [self.planes[i] for i in range(first, first + self.chip.num_planes) if i != plane and is_wide]

    def load(self, plane: int, vectors: Uint8Array, row: int, data_format: DataFormat, source: int) -> None:
        """LW: buffer rows row.. = vectors, uint8 [streams, lanes]; the first load after an install clears the rest."""
        state = self.planes[plane]
        others = self._others(plane)
        if data_format.num_bytes > 1 and any(other.buffer for other in others):
            raise Refusal("a tile wider than one byte needs the other plane's buffer, which holds a tile")
        if any(other.buffer and other.buffer.is_wide for other in others):
            raise Refusal("the buffer belongs to the other plane's wide tile, which is not installed yet")
        if state.buffer is None:
            lines = buffer_lines(self.chip, data_format)
            shape = (lines, data_format.num_bytes, self.chip.num_lanes)
            loaded = np.zeros(lines, np.bool_)
            state.buffer = Tile(self.num_tiles, np.zeros(shape, np.uint8), data_format, loaded, source)
            self.num_tiles += 1
        buffer = state.buffer
        if buffer.data_format != data_format:
            raise Refusal(f"format differs from {buffer.data_format.name.lower()}, in which this tile began")
        stop = row + len(vectors) // data_format.num_bytes
        if buffer.loaded[row:stop].any():
            raise Refusal(f"buffer rows {row}..{stop - 1} are loaded twice before an install")
        buffer.data[row:stop] = vectors.reshape(stop - row, data_format.num_bytes, -1)
        buffer.loaded[row:stop] = True

    def install(self, plane: int, cycle: int) -> None:
        """IW: the buffer becomes the plane's tile, mxm_install_tail_cycles from now."""
        state, interval = self.planes[plane], self.chip.mxm_install_interval_cycles
        tile, effect = state.buffer, cycle + self.chip.mxm_install_tail_cycles
        if tile is None:
            raise Refusal("the weight buffer is empty")
        partners = self._others(plane, tile.is_wide)
        for each in (state, *partners):
            each.settle(cycle)
            if cycle - each.last_install < interval:
                raise Refusal(f"previous IW was at cycle {each.last_install}, the interval is {interval} cycles")
            if each.busy_until > effect:
                raise Refusal(f"plane overwritten while in use until cycle {each.busy_until}")
            each.last_install = cycle
            each.installs.append((effect, None))
        for other in self._others(plane, not tile.is_wide):
            if other.newest is not None and other.newest.is_wide:
                if other.busy_until > effect:
                    raise Refusal(f"plane overwritten while in use until cycle {other.busy_until}")
                other.installs.append((effect, None))
        state.installs[-1] = (effect, tile)
        state.buffer = None

    def multiply(self, plane: int, factor: Factor, accumulator: int, begin: bool, cycle: int, source: int) -> None:
        """ABC: adds activation . tile to an accumulator."""
        state = self.planes[plane]
        tile = self._occupy(plane, factor, cycle)
        found = state.sums.get(accumulator)
        new = Term(factor, tile)
        if begin:
            if found is not None:
                raise Refusal(f"accumulator {accumulator} reused before its sum was read by ACC")
            state.sums[accumulator] = Sum([new], cycle, source, plane)
            return
        if found is None:
            raise Refusal(f"accumulator {accumulator} is empty; the first term of a sum needs `begin`")
        old = found.terms[0]
        if (old.factor.data_format, old.tile.data_format) != (factor.data_format, tile.data_format):
            raise Refusal(f"accumulator {accumulator} holds a sum of other number formats")
        found.terms.append(new)
        found.last_cycle = cycle

    def _occupy(self, plane: int, factor: Factor, cycle: int) -> Tile:
        """The tile in effect at `cycle`, whose planes become busy for one activation vector."""
        state = self.planes[plane]
        state.settle(cycle)
        tile = state.tile
        if tile is None:
            raise Refusal("no weights are installed in this plane")
        tile.is_used = True
        busy = self.chip.cycles_per_vector(
            factor.count, factor.data_format.significand_bytes, tile.data_format.significand_bytes
        )
        for each in (state, *self._others(plane, tile.is_wide)):
            each.settle(cycle)
            if each.busy_until > cycle:
                raise Refusal(f"unit double-booked: the plane is busy until cycle {each.busy_until}")
            each.busy_until = cycle + busy
            if each.installs and each.installs[0][0] < cycle + busy:
                raise Refusal(f"plane overwritten while in use: an install takes effect at {each.installs[0][0]}")
        return tile

    def accumulate(self, plane: int, accumulator: int, cycle: int) -> Sum:
        """ACC: takes a complete sum out of its accumulator."""
        state = self.planes[plane]
        found = state.sums.get(accumulator)
        if found is None:
            raise Refusal(f"accumulator {accumulator} is empty")
        complete = found.last_cycle + self.chip.mxm_multiply_cycles
        if complete > cycle:
            raise Refusal(f"accumulator {accumulator} is complete at cycle {complete}")
        del state.sums[accumulator]
        state.pending.append(found)
        return found

    def evaluate(self, wanted: Sum) -> Uint8Array:
        """The value of a sum that was read by ACC, uint8 [4, lanes]; evaluates its like on the plane with it."""
        if wanted.value is None:
            state = self.planes[wanted.plane]
            key = [term.key for term in wanted.terms]
            alike = [each for each in state.pending if [term.key for term in each.terms] == key]
            state.pending = [each for each in state.pending if each not in alike]
            for each, value in zip(alike, to_bytes(_dot(alike, self.chip)), strict=True):
                each.value = value
                each.terms = []
        assert wanted.value is not None
        return wanted.value

    def leftover(self) -> tuple[int, str] | None:
        """(event source, message) of weights or sums that nobody used."""
        for state in self.planes:
            if state.buffer is not None:
                return state.buffer.source, "loaded weights were never installed"
            for tile in (state.tile, *(installed for _, installed in state.installs)):
                if tile is not None and not tile.is_used:
                    return tile.source, "installed weights were never used"
            for accumulator, left in state.sums.items():
                return left.source, f"accumulator {accumulator} was never read by ACC"
        return None


def _dot(sums: list[Sum], chip: ChipSpec) -> npt.NDArray[np.generic]:
    """Sums with equal keys, [m, lanes] float32 or int32; in mode `tile` with a rounding per term, in order."""
    columns = list(zip(*(each.terms for each in sums), strict=True))
    lhs_format, rhs_format = columns[0][0].factor.data_format, columns[0][0].tile.data_format
    lhs, rhs = [], []
    for column in columns:
        factor, tile = column[0].factor, column[0].tile
        rows = slice(factor.first, factor.first + factor.count)
        lhs.append(from_bytes(np.stack([term.factor.activation for term in column]), lhs_format)[:, rows])
        rhs.append(tile.elements(rows, chip.num_mxm_rows))
    parts: list[npt.NDArray[np.generic]] = []
    if chip.accumulation == "tile":
        for a, b in zip(lhs, rhs, strict=True):
            parts += partial_sums(np, a, b, lhs_format, rhs_format, chip.num_mxm_rows)
    else:
        whole = np.concatenate(lhs, axis=1), np.concatenate(rhs, axis=0)
        parts = [accumulate(np, *whole, lhs_format, rhs_format, chip.accumulation)]
    total: npt.NDArray[np.generic] = add_partial_sums(np, parts)
    return total
