"""Storages and views of a growing TileGraph: what `tile` and its parts share."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from lpu_jax.lowering.tile_bindings import storages_of
from lpu_jax.lowering.tile_ir import IntArray, Storage, SxmUnit, View, num_rows, num_tiles, num_view_vectors, pack
from lpu_jax.runtime.chip import ChipSpec, Hemisphere
from lpu_jax.runtime.isa import DataFormat
from lpu_jax.runtime.ops import Aval
from lpu_jax.runtime.vxm import storage_dtype

FORMATS = {
    "float32": DataFormat.FP32,
    "float16": DataFormat.FP16,
    "bfloat16": DataFormat.BF16,
    "float8_e4m3fn": DataFormat.E4M3,
    "float8_e5m2": DataFormat.E5M2,
    "int32": DataFormat.INT32,
    "int16": DataFormat.INT16,
    "int8": DataFormat.INT8,
    "uint8": DataFormat.UINT8,
    "bool": DataFormat.UINT8,
}
"""Storage format of every dtype."""

STORAGE_DTYPES: dict[DataFormat, np.dtype[Any]] = {form: storage_dtype(form) for form in DataFormat}


@dataclasses.dataclass(frozen=True, slots=True)
class Demand:
    """How a value will be used, which decides where it is written.

    mirrored: it enters the MXM as activation, so both hemispheres hold a copy.
    num_batches: > 0 if it is installed as weights of that many matrices (weight layout).
    table: its rows are gathered or scattered by address.
    scattered: rows are also written by address, so a spare row takes what belongs to other slices.
    num_rows: most activation rows of a product that it is the weights of.
    gathered: its rows are read by address.
    rounds: one of these products rounds its sums, so that they must not be put together from parts.
    """

    mirrored: bool = False
    num_batches: int = 0
    table: bool = False
    scattered: bool = False
    num_rows: int = 0
    rounds: bool = False
    gathered: bool = False

    def merge(self, other: Demand) -> Demand:
        """The union of two demands; the finer batching wins."""
        return Demand(
            self.mirrored or other.mirrored,
            max(self.num_batches, other.num_batches),
            self.table or other.table,
            self.scattered or other.scattered,
            max(self.num_rows, other.num_rows),
            self.rounds or other.rounds,
            self.gathered or other.gathered,
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Spread:
    """How generously SRAM is used for speed.

    unevenness: by which share of their addresses the slice sets of the planes may differ, so that the tiles of one
    product are on different planes; max_piece: vectors of a value that share a storage, so that parts of it are read
    and written side by side; max_copies: of weights that would leave planes idle; own_operands: parts of a chain have
    scales and biases of their own; by_side: whether hemispheres fill up evenly, and planes within them, as weights may
    lie in all slices of a hemisphere.
    """

    unevenness: float
    max_piece: int
    max_copies: int
    own_operands: bool
    by_side: bool = False


SPREADS = (
    Spread(1 / 4, 64, 4, True),
    Spread(1 / 32, 64, 2, False),
    Spread(0, 128, 2, False),
    Spread(0, 256, 2, False),
)
"""In the order in which they are tried: a program that nearly fills the chip has to fill it evenly, in large pieces."""

BRIMFUL = Spread(0, 256, 2, False, by_side=True)
"""For weights that the slice sets of the planes do not hold."""

MAX_TABLE_ADDRESSES = 128
"""A table with more rows is spread over slices where that is cheap, so that it does not need a long free range."""


_MAX_COLUMNS = 4
"""Tiles of a row that get storages of their own."""


_LEAST_PIECE = 16
"""Vectors that stay in one storage on every chip: as many as a spread table has groups."""

_FEW_ROWS = 16
"""Values of so few rows have their tiles in both hemispheres; for others one chain for all tiles is quicker."""
MIN_SPLIT_TILES = 7
"""A column tile with so many tiles of K loads longer than the sums of its parts take to add up (about 100 cycles)."""
MIN_MIRRORED_ROWS = 64
"""With so many activation rows a product is bound by multiplying, and its rows may be split between hemispheres."""


def _pieces(count: int, tiles: int, columns: int, chunk: int) -> list[IntArray]:
    """The vectors, numbered row by row, that share a storage: at most `chunk` of them.

    With few tiles a row (columns == tiles > 1) those of one tile; otherwise, where several storages are needed anyway,
    blocks of rows of one tile, as a matrix product reads and writes vectors block by block.
    """
    vectors = np.arange(count)
    if columns > 1:
        starts = range(0, count, chunk * columns)
        return [
            vectors[start : start + chunk * columns][column::columns] for start in starts for column in range(columns)
        ]
    if tiles == 1 or count <= chunk:
        return [vectors[start : start + chunk] for start in range(0, count, chunk)]
    grid = vectors.reshape(-1, tiles)
    rows = len(grid)
    if rows > chunk:
        return [grid[start : start + chunk, tile] for start in range(0, rows, chunk) for tile in range(tiles)]
    together = chunk // rows
    return [grid[:, tile : tile + together].T.reshape(-1) for tile in range(0, tiles, together)]


def _cut(vectors: IntArray, cuts: Sequence[int]) -> list[IntArray]:
    """A piece divided where vectors of other parts follow; parts have the vectors before, between and behind cuts."""
    part = np.searchsorted(cuts, vectors, side="right")
    return np.split(vectors, np.nonzero(np.diff(part))[0] + 1)


def longest_piece(chip: ChipSpec) -> int:
    """Vectors up to which a value is not cut up: a sixteenth of a bank, so that each part finds room."""
    return max(_LEAST_PIECE, chip.num_addresses_per_bank // 16)


class StorageBuilder:
    """Creates storages, constants and views; shared by all blocks of a program."""

    def __init__(self, chip: ChipSpec, spread: Spread) -> None:
        self.chip = chip
        self.spread = spread
        self._max_surplus = int(spread.unevenness * chip.num_addresses_per_slice)
        self.storages: list[Storage] = []
        self.constants: list[tuple[np.ndarray, IntArray]] = []
        self._constant_views: dict[tuple[object, ...], View] = {}
        self._turn = 0
        self._loads = {(side, plane): 0 for side in Hemisphere for plane in range(chip.num_planes)}
        self._filled = dict.fromkeys(Hemisphere, 0)
        self._lane_maps: dict[tuple[int, bytes], IntArray] = {}
        self._mirrors: dict[int, int] = {}
        self.zero_storages: set[int] = set()  # constants of nothing but zeros
        self.num_slots = 0  # values that only the host holds
        self.slot_constants: dict[int, np.ndarray] = {}

    def next_hemisphere(self) -> Hemisphere:
        """Alternates between the hemispheres."""
        self._turn += 1
        return Hemisphere(self._turn % 2)

    def next_plane(self, num_addresses: int = 1, partners: Sequence[int] = ()) -> tuple[Hemisphere, int]:
        """A plane with few partners, which are multiplied at the same time, and whose slice set holds the least so far.

        The weights to come are counted. Weights wider than a byte take both planes of the hemisphere, whichever set
        they lie in.
        """
        places = [(plane, side) for plane in range(self.chip.num_planes) for side in Hemisphere]
        homes = [self.storages[s] for s in partners]
        taken = Counter((home.plane, home.hemisphere) for home in homes)
        limit = min(self._loads.values()) + self._max_surplus

        def price(place: tuple[int, Hemisphere]) -> tuple[bool, int, int]:
            load = self._loads[place[1], place[0]]
            return load > limit, taken[place], load

        plane, side = min(places, key=self._fullness if self.spread.by_side else price)
        self._loads[side, plane] += num_addresses
        return side, plane

    def _fullness(self, place: tuple[int, Hemisphere]) -> tuple[float, int]:
        """Weights of a plane's hemisphere per slice, then those of the plane."""
        plane, side = place
        load = sum(self._loads[side, p] for p in range(self.chip.num_planes))
        return load / len(self.chip.usable_slices(side)), self._loads[side, plane]

    def _next_pair(self, num_addresses: int) -> tuple[Hemisphere, int]:
        """As next_plane, for weights that are multiplied with many rows and take both planes: they fill one slice set
        first, so that the other one stays free for activations and results that move at the same time."""
        load = {side: sum(self._loads[side, p] for p in range(self.chip.num_planes)) for side in Hemisphere}
        side = min(Hemisphere, key=lambda side: load[side])
        for plane in range(self.chip.num_planes):
            self._loads[side, plane] += num_addresses // self.chip.num_planes
        self._filled[side] += num_addresses
        fits = self._filled[side] <= self.chip.num_addresses_per_slice // 2
        return side, 0 if fits else self._filled[side] // num_addresses % self.chip.num_planes

    def new_storage(self, num_vectors: int, data_format: DataFormat, hemisphere: Hemisphere, **fields: object) -> int:
        """Adds a storage and returns its id; fields as in `Storage`."""
        storage = Storage(len(self.storages), num_vectors, data_format, hemisphere, **fields)  # type: ignore[arg-type]
        self.storages.append(storage)
        return storage.id

    def pieces(self, num_vectors: int, data_format: DataFormat, hemisphere: Hemisphere, name: str) -> IntArray:
        """Refs to new vectors of one hemisphere, in storages of which each finds room."""
        longest = longest_piece(self.chip)
        sizes = [min(longest, num_vectors - start) for start in range(0, num_vectors, longest)]
        parts = [self.whole(self.new_storage(size, data_format, hemisphere, name=name), size) for size in sizes]
        return np.concatenate(parts) if parts else np.zeros((0, 2), np.int64)

    def whole(self, storage: int, num_vectors: int) -> IntArray:
        """Refs to vectors 0 .. num_vectors - 1 of a storage."""
        return np.stack([np.full(num_vectors, storage), np.arange(num_vectors)], axis=1).astype(np.int64)

    # Views of values --------------------------------------------------------------------------------------------

    def allocate(
        self,
        aval: Aval,
        splat: bool,
        demand: Demand,
        *,
        num_iterations: int = 1,
        resident: bool = False,
        cuts: tuple[int, ...] = (),
        name: str = "",
    ) -> tuple[View, ...]:
        """New storages for a value: one view, or two (west, east) if it is mirrored.

        With num_iterations > 1 the aval is that of one iteration and the refs are those of iteration 0. Rows before and
        behind a cut do not share a storage.
        """
        fields = {"num_iterations": num_iterations, "resident": resident, "name": name}
        data_format = FORMATS[aval.dtype]
        looked_up = demand.table and not demand.scattered and resident and num_iterations == 1
        if demand.num_batches > 1 and looked_up and not splat and aval.shape[-1] <= self.chip.num_lanes:
            return (self._shared_view(aval, data_format, demand.num_batches, fields),)
        if demand.num_batches and not splat:
            return self._weight_views(aval, data_format, demand, fields)
        if demand.table:
            return (self._table_view(aval, data_format, demand, splat or len(aval.shape) == 1, fields),)
        count = num_view_vectors(aval.shape, splat, self.chip.num_lanes)
        tiles = 1 if splat or num_iterations > 1 else num_tiles(aval.shape, self.chip.num_lanes)
        columns = tiles if tiles <= _MAX_COLUMNS else 1  # tiles of one row are often read at a time
        sides = list(Hemisphere) if demand.mirrored else [None]
        views = []
        for side in sides:
            refs = np.zeros((count, 2), np.int64)
            chunk, interleave = self._chunk(count // columns, num_iterations, data_format)
            pieces = _pieces(count, tiles, columns, chunk)
            if cuts and interleave == 1:
                per_row = count // num_rows(aval.shape)
                pieces = [part for vectors in pieces for part in _cut(vectors, [cut * per_row for cut in cuts])]
            for number, vectors in enumerate(pieces):
                home = side if side is not None else self._home(number, columns, count)
                padded = -(-len(vectors) // interleave) * interleave
                storage = self.new_storage(padded, data_format, home, interleave=interleave, **fields)
                refs[vectors] = self.whole(storage, len(vectors))
            views.append(View(aval.shape, splat, refs))
        if len(views) == 2:
            pairs = zip(views[0].refs[:, 0].tolist(), views[1].refs[:, 0].tolist(), strict=True)
            for one, other in dict.fromkeys(pairs):
                self._mirrors[one], self._mirrors[other] = other, one
        return tuple(views)

    def mirrored(self, refs: IntArray) -> IntArray | None:
        """The same vectors in the other hemisphere, None if one of them lies in one hemisphere only."""
        others = {s: self._mirrors.get(s, -1) for s in storages_of(refs)}
        if -1 in others.values():
            return None
        return np.stack([np.array([others[s] for s in refs[:, 0].tolist()], np.int64), refs[:, 1]], axis=1)

    def sides(self, refs: IntArray) -> IntArray:
        """Hemisphere of every ref."""
        storages = storages_of(refs)
        homes = np.zeros(storages[-1] + 1 if storages else 0, np.int64)
        homes[storages] = [int(self.storages[s].hemisphere) for s in storages]
        return np.asarray(homes[refs[:, 0]], np.int64)

    def _home(self, piece: int, columns: int, count: int) -> Hemisphere:
        """Alternates between pieces; the tiles of a row stay together where there are many rows."""
        if piece % columns and count > _FEW_ROWS * columns:
            return Hemisphere(self._turn % 2)
        return self.next_hemisphere()

    def _chunk(self, num_vectors: int, num_iterations: int, data_format: DataFormat) -> tuple[int, int]:
        """(vectors per storage, interleave) of a plain value: large ones are cut up, so that each part finds room."""
        longest = longest_piece(self.chip)
        if num_iterations == 1 or num_vectors * num_iterations <= longest:
            return min(num_vectors, longest, self.spread.max_piece), 1
        interleave = self.chip.num_streams_per_load // data_format.num_bytes
        per_iteration = max(1, longest * interleave // num_iterations // interleave) * interleave
        return min(per_iteration, -(-num_vectors // interleave) * interleave), interleave

    def _weight_views(
        self, aval: Aval, data_format: DataFormat, demand: Demand, fields: dict[str, object]
    ) -> tuple[View, ...]:
        """One storage per matrix and tile of the last axis, rows spread over the 16 slices of a plane's set.

        Tiles that are left over when all planes have equally many are split: over K where sums are exact integers, or
        laid out several times (as many views), each for a share of the activation rows.
        """
        interleave = self.chip.num_streams_per_load // data_format.num_bytes
        rows, tiles = num_rows(aval.shape), num_tiles(aval.shape, self.chip.num_lanes)
        per_batch = rows // demand.num_batches
        shared = self.chip.planes_per_tile(data_format.num_bytes)
        left = tiles % (2 * self.chip.num_planes // shared) if demand.num_batches == 1 else 0
        once = int(str(fields["num_iterations"])) == 1 and not demand.scattered
        parts = self._num_parts(left, per_batch, data_format, demand) if once else 1
        mirrors = once and bool(fields["resident"]) and demand.num_rows >= MIN_MIRRORED_ROWS and parts == 1
        copies = min(self.spread.max_copies, 2 * self.chip.num_planes // (left * shared)) if mirrors and left else 1
        refs = np.zeros((copies, demand.num_batches, per_batch, tiles, 2), np.int64)
        known: list[int] = []
        for batch in range(demand.num_batches):
            for tile in range(tiles):
                is_left = tile >= tiles - left
                number = copies if is_left else 1
                bounds = [i * per_batch // parts // interleave * interleave for i in range(parts)] if is_left else [0]
                for start, stop in itertools.pairwise([*bounds, per_batch]):
                    homes = self._weight_storages(stop - start, data_format, demand, fields, number, known)
                    known += homes
                    for place, home in enumerate(homes):
                        refs[place:, batch, start:stop, tile] = self.whole(home, stop - start)
        return tuple(View(aval.shape, False, place.reshape(-1, 2)) for place in refs)

    def _shared_view(self, aval: Aval, data_format: DataFormat, num_batches: int, fields: dict[str, object]) -> View:
        """Matrices that are looked up whole, too: one storage per plane, see `tile_shared`."""
        interleave = self.chip.num_streams_per_load // data_format.num_bytes
        places = [(side, plane) for plane in range(self.chip.num_planes) for side in Hemisphere][:num_batches]
        rows, per_home = num_rows(aval.shape) // num_batches, -(-num_batches // len(places))
        padded = -(-rows // interleave) * interleave
        refs = np.zeros((num_batches, rows, 2), np.int64)
        for number, (side, plane) in enumerate(places):
            self._loads[side, plane] += per_home * padded // interleave
            kind = {"interleave": interleave, "plane": plane, "shared": True, "gathered": True}
            storage = self.new_storage(per_home * padded, data_format, side, **kind, **fields)
            vectors = self.whole(storage, per_home * padded).reshape(per_home, padded, 2)[:, :rows]
            refs[number :: len(places)] = vectors[: len(refs[number :: len(places)])]
        return View(aval.shape, False, refs.reshape(-1, 2))

    def _num_parts(self, left: int, contracting: int, data_format: DataFormat, demand: Demand) -> int:
        """Parts of K into which each of the `left` last column tiles is split, one plane each."""
        exact = data_format is DataFormat.INT8 and not demand.rounds
        few_rows = demand.num_rows <= self.chip.num_streams_per_load
        if not (left and exact and few_rows and contracting >= MIN_SPLIT_TILES * self.chip.num_lanes):
            return 1
        planes = 2 * self.chip.num_planes
        return planes // math.gcd(left, planes)

    def _weight_storages(
        self,
        rows: int,
        data_format: DataFormat,
        demand: Demand,
        fields: dict[str, object],
        copies: int,
        known: Sequence[int],
    ) -> list[int]:
        """Storages for rows of one column tile, each at another plane, in both hemispheres in turn.

        known: storages of the other tiles of the same weights.
        """
        interleave = self.chip.num_streams_per_load // data_format.num_bytes
        padded = -(-rows // interleave) * interleave + (interleave if demand.scattered else 0)
        addresses = padded // interleave * int(str(fields["num_iterations"]))
        many = demand.num_rows >= MIN_MIRRORED_ROWS and fields["resident"]
        wide = self.chip.planes_per_tile(data_format.num_bytes) > 1
        side, plane = self._next_pair(addresses) if wide and many else self.next_plane(addresses, known)
        planes = [(plane + turn) % self.chip.num_planes for turn in range(self.chip.num_planes)]
        homes = [(home, number) for number in planes for home in (side, Hemisphere(1 - side))][:copies]
        for home, number in homes[1:]:
            self._loads[home, number] += addresses
        kind = {"interleave": interleave, "gathered": demand.table and demand.gathered}
        return [self.new_storage(padded, data_format, home, plane=number, **kind, **fields) for home, number in homes]

    def _table_view(
        self, aval: Aval, data_format: DataFormat, demand: Demand, splat: bool, fields: dict[str, object]
    ) -> View:
        """One storage per vector of a row, so that a row index is an address; long tables take several slices."""
        rows = aval.shape[0]
        inner = num_view_vectors((1, *aval.shape[1:]), splat, self.chip.num_lanes)
        interleave = -(-rows // self.chip.num_addresses_per_slice)
        if rows <= self.chip.num_addresses_per_slice // 2:
            widest = self.chip.num_streams_per_load // data_format.num_bytes
            interleave = min(widest, -(-rows // MAX_TABLE_ADDRESSES))
        refs = np.zeros((rows, inner, 2), np.int64)
        padded = -(-rows // interleave) * interleave + (interleave if interleave > 1 and demand.scattered else 0)
        for vector in range(inner):
            storage = self.new_storage(padded, data_format, self.next_hemisphere(), interleave=interleave, **fields)
            refs[:, vector] = self.whole(storage, rows)
        return View(aval.shape, splat, refs.reshape(-1, 2))

    def stacked(self, view: View, num_iterations: int) -> View:
        """The view of all iterations of a looped value, [num_iterations, *shape]."""
        sizes = np.array([self.storages[s].num_vectors for s in view.refs[:, 0]], np.int64)
        parts = [view.refs + np.stack([np.zeros_like(sizes), i * sizes], axis=1) for i in range(num_iterations)]
        return View((num_iterations, *view.shape), view.splat, np.concatenate(parts))

    # Constants --------------------------------------------------------------------------------------------------

    def constant(self, array: np.ndarray, splat: bool, demand: Demand = Demand()) -> tuple[View, ...]:
        """Views of a constant; equal requests share storages."""
        key = (array.tobytes(), array.shape, str(array.dtype), splat, demand)
        if key not in self._constant_views:
            aval = Aval(array.shape, str(array.dtype))
            views = self.allocate(aval, splat, demand, resident=True, name="constant")
            stored = array.astype(STORAGE_DTYPES[FORMATS[aval.dtype]])
            for view in views:
                self.constants.append((pack(stored, splat, self.chip.num_lanes), view.refs))
                if not stored.tobytes().strip(b"\0"):
                    self.zero_storages.update(storages_of(view.refs))
            self._constant_views[key] = views  # type: ignore[assignment]
        return self._constant_views[key]  # type: ignore[return-value]

    def zero(self, dtype: str) -> IntArray:
        """Ref of a vector of zeros, which both hemispheres have."""
        (ref,) = self.constant(np.zeros((1,), dtype), True, Demand(mirrored=True))[0].refs
        return np.asarray(ref, np.int64)

    def ones_weights(self, hemisphere: Hemisphere, plane: int) -> int:
        """Storage that holds a full int8 tile of ones in a plane's weight layout."""
        key = ("ones", hemisphere, plane)
        if key not in self._constant_views:
            rows = self.chip.num_mxm_rows
            interleave = self.chip.num_streams_per_load
            storage = self.new_storage(
                rows, DataFormat.INT8, hemisphere, interleave=interleave, plane=plane, resident=True, name="ones"
            )
            refs = self.whole(storage, rows)
            self.constants.append((np.ones((rows, self.chip.num_lanes), np.int8), refs))
            self._constant_views[key] = View((rows, self.chip.num_lanes), False, refs)
        return int(self._constant_views[key].refs[0, 0])

    def lane_maps(self, hemisphere: Hemisphere, maps: np.ndarray, unit: SxmUnit = SxmUnit.PERMUTER) -> IntArray:
        """Refs of maps [n, lanes] (source lane, or -1 for none) held in a hemisphere as a unit reads them."""
        if unit is SxmUnit.PERMUTER:
            stored, form = np.where(maps < 0, 0xFFFF, maps).astype(np.uint16).view(np.int16), DataFormat.INT16
        else:
            lanes = maps % self.chip.num_lanes_per_superlane
            stored, form = np.where(maps < 0, 0xFF, lanes).astype(np.uint8), DataFormat.UINT8
        kinds, inverse = np.unique(stored, axis=0, return_inverse=True)
        refs = np.zeros((len(kinds), 2), np.int64)
        new: list[int] = []
        for index, lane_map in enumerate(kinds):
            known = self._lane_maps.get((int(hemisphere), lane_map.tobytes()))
            if known is None:
                new.append(index)
            else:
                refs[index] = known
        if new:
            column = "" if unit is SxmUnit.PERMUTER else "maps"
            storage = self.new_storage(len(new), form, hemisphere, resident=True, column=column, name="lane maps")
            refs[new] = self.whole(storage, len(new))
            self.constants.append((kinds[new], refs[new]))
            for index in new:
                self._lane_maps[int(hemisphere), kinds[index].tobytes()] = refs[index]
        return refs[inverse.reshape(-1)]
