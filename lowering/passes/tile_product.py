"""Closing a chain: an open chain becomes ChainOps, one per matrix tile, block of rows and pair of hemispheres."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from lpu_jax.lowering.passes.tile_chain import OpenChain, ProductSource
from lpu_jax.lowering.passes.tile_close import Label, chain_op, copy_ops, split_sides
from lpu_jax.lowering.passes.tile_storage import StorageBuilder
from lpu_jax.lowering.passes.tile_windows import Windows
from lpu_jax.lowering.tile_ir import (
    ChainInput,
    ChainOp,
    InputRef,
    IntArray,
    MatMulInput,
    MemoryInput,
    Step,
    StepOperand,
    StepRef,
    View,
    WeightTile,
    storages_of,
)
from lpu_jax.runtime.chip import Hemisphere
from lpu_jax.runtime.isa import DataFormat

_ROWS_PER_PLANE = 8
"""Sums over lanes of fewer rows a plane take longer to begin there than to multiply."""
_MIN_RUN = 32
"""Rows of weights that lie in shorter runs are copied first: every run is an install of its own."""

Result = tuple[StepOperand, tuple[View, ...], DataFormat]


@dataclasses.dataclass(frozen=True, slots=True)
class _Home:
    """Weight tiles in the slices of one plane; tiles[i] meets the activation vectors of K tile k_tiles[i]."""

    side: Hemisphere
    plane: int
    tiles: tuple[WeightTile, ...]
    k_tiles: tuple[int, ...]

    def moved(self, offsets: IntArray) -> _Home:
        """The same weights, those of K tile k loaded offsets[k] rows further on."""
        if not offsets.any():
            return self
        places = zip(self.tiles, offsets[list(self.k_tiles)].tolist(), strict=True)
        tiles = tuple(dataclasses.replace(tile, lane=tile.lane + offset) for tile, offset in places)
        return dataclasses.replace(self, tiles=tiles)

    def rotated(self, turn: int) -> _Home:
        """The same weights, K tiles from number `turn` on first: planes that begin with different activations do not
        wait for each other's reads."""
        turn %= len(self.tiles)
        tiles, k_tiles = self.tiles, self.k_tiles
        return _Home(self.side, self.plane, tiles[turn:] + tiles[:turn], k_tiles[turn:] + k_tiles[:turn])


def close_chain(builder: StorageBuilder, chain: OpenChain, results: Sequence[Result]) -> list[ChainOp]:
    """ChainOps that compute `results` (operand, places, format) of an open chain."""
    if not results:
        return []
    steps, operands = list(chain.steps), []
    for operand, _, _ in results:
        if isinstance(operand, InputRef) or operand in operands:
            steps.append(Step("identity", (operand,)))
            operand = StepRef(len(steps) - 1)
        operands.append(operand)
    outputs = [
        (operand.index, view.refs, data_format)
        for operand, (_, views, data_format) in zip(operands, results, strict=True)
        if isinstance(operand, StepRef)
        for view in views
    ]
    label = (chain.source, chain.name)
    if chain.product is None:
        order = _storage_order(builder, outputs[0][1])
        memory = [MemoryInput(refs[order], data_format) for refs, data_format in chain.inputs]
        outputs = [(step, refs[order], data_format) for step, refs, data_format in outputs]
        return split_sides(builder, chain_op(memory, steps, outputs, label))
    ops: list[ChainOp] = []
    steps = [Step(s.function, tuple(_shift(operand) for operand in s.operands)) for s in steps]
    for vectors, product in _products(builder, chain.product, ops, label):
        memory = [MemoryInput(refs[vectors], data_format) for refs, data_format in chain.inputs]
        part = [(step, refs[vectors], data_format) for step, refs, data_format in outputs]
        ops += split_sides(builder, chain_op([product, *memory], steps, part, label))
    return ops


def _storage_order(builder: StorageBuilder, refs: IntArray) -> IntArray:
    """The vectors of a chain storage by storage, so that each of its ports is in use once only."""
    homes = [builder.storages[s] for s in storages_of(refs)]
    if len(homes) == 1 or any(home.interleave > 1 for home in homes):
        return np.arange(len(refs))
    return np.lexsort((refs[:, 1], refs[:, 0]))


def _shift(operand: StepOperand) -> StepOperand:
    """The MXM is input 0 of a chain with a product; memory inputs follow."""
    return InputRef(operand.index + 1) if isinstance(operand, InputRef) else operand


# Matrix products -------------------------------------------------------------------------------------------------


def _products(
    builder: StorageBuilder, product: ProductSource, ops: list[ChainOp], label: Label
) -> list[tuple[IntArray, ChainInput]]:
    """The product cut into (chain vectors, their source) by matrix, tile of N and block of rows."""
    tiles, k_tiles = product.num_column_tiles, product.lhs.num_segments
    parts: list[tuple[IntArray, ChainInput]] = []
    copies: dict[Hemisphere, IntArray] = {}

    def multiply(home: _Home, batch: int, rows: IntArray, turn: int) -> MatMulInput:
        if builder.chip.accumulation == "exact":
            home = home.rotated(turn)
        lhs = _activations(builder, product, home.side, copies, ops, label)
        lhs = lhs.reshape(product.num_batches, product.num_rows, k_tiles, 2)[batch]
        activations = tuple(lhs[rows, k] for k in home.k_tiles)
        formats = product.lhs_format, product.rhs_format
        return MatMulInput(activations, formats[0], home.tiles, formats[1], home.side, home.plane)

    offsets = product.lhs.offsets.reshape(product.num_batches, product.num_rows, k_tiles)
    for batch in range(product.num_batches):
        for tile in range(tiles):
            places = _places(builder, product, batch, tile, ops, label)
            for number, (homes, rows) in enumerate(_row_blocks(builder, offsets[batch], places)):
                vectors = (batch * product.num_rows + rows) * tiles + tile
                turn = (tile if tiles > 1 else number) * k_tiles // max(tiles, len(places))
                terms = [multiply(home, batch, rows, turn) for home in homes]
                parts.append((vectors, terms[0] if len(terms) == 1 else _add_terms(builder, terms, ops, label)))
    return parts


def _row_blocks(
    builder: StorageBuilder, offsets: IntArray, places: list[tuple[_Home, ...]]
) -> list[tuple[tuple[_Home, ...], IntArray]]:
    """Blocks of rows that fill half of the accumulators; every place of the weights takes an equal share of rows.

    Rows that begin at the same lanes go together, with the weights at the same rows of the MXM.
    """
    block = max(1, builder.chip.num_accumulator_vectors // 2)
    blocks = []
    for offset in np.unique(offsets, axis=0):
        rows = np.nonzero((offsets == offset).all(axis=1))[0]
        shares = [i * len(rows) // len(places) for i in range(len(places) + 1)]
        edges = sorted({*range(0, len(rows), block), *shares})
        for start, stop in itertools.pairwise(edges):
            place = max(i for i in range(len(places)) if shares[i] <= start)
            blocks.append((tuple(home.moved(offset) for home in places[place]), rows[start:stop]))
    return blocks


def _add_terms(builder: StorageBuilder, terms: list[MatMulInput], ops: list[ChainOp], label: Label) -> MemoryInput:
    """Sums over parts of K, added up on the VXM: exact, as they are integers."""
    assert all(term.format is DataFormat.INT32 for term in terms), "sums that are rounded must not be split"
    count, side = len(terms[0].activations[0]), builder.next_hemisphere()
    places = [
        builder.whole(builder.new_storage(count, DataFormat.INT32, side, name="partial sums"), count)
        for _ in range(len(terms) + 1)
    ]
    for term, refs in zip(terms, places, strict=False):
        ops.append(chain_op([term], [Step("identity", (InputRef(0),))], [(0, refs, DataFormat.INT32)], label))
    steps = [Step("iadd", (InputRef(0), InputRef(1)))]
    steps += [Step("iadd", (StepRef(i - 2), InputRef(i))) for i in range(2, len(terms))]
    memory = [MemoryInput(refs, DataFormat.INT32) for refs in places[:-1]]
    total = [(len(steps) - 1, places[-1], DataFormat.INT32)]
    ops += split_sides(builder, chain_op(memory, steps, total, label))
    return MemoryInput(places[-1], DataFormat.INT32)


def _places(
    builder: StorageBuilder, product: ProductSource, batch: int, tile: int, ops: list[ChainOp], label: Label
) -> list[tuple[_Home, ...]]:
    """Where the weights of one matrix and column tile are: one place or more, each in one part or in several of K.

    They are copied into weight layout if they are not there.
    """
    if product.rhs is None:
        return _ones(builder, product)
    own = slice(batch * product.num_weight_vectors, (batch + 1) * product.num_weight_vectors)
    refs = product.rhs[own, tile]
    found = _homes(builder, product, refs)
    if found is None:
        return [_copied(builder, product, refs, ops, label)]
    others = [mirror[own, tile] for mirror in product.mirrors]
    mirrored = [_homes(builder, product, other) for other in others if not np.array_equal(other, refs)]
    return [found, *(homes for homes in mirrored if homes is not None)]


def _tile_rows(first: int, stop: int, lhs: Windows) -> list[tuple[int, int, int]]:
    """(K tile, first row in it, number of rows) of rows first .. stop - 1 of K; padding of activations is left out."""
    edges = lhs.edges
    cuts = sorted({first, stop, *(edge for edge in edges if first < edge < stop)})
    tiles = [bisect.bisect_right(edges, cut) - 1 for cut in cuts[:-1]]
    parts = [(k, a - edges[k], b - a) for k, (a, b) in zip(tiles, itertools.pairwise(cuts), strict=True)]
    return [(k, lane, min(count, lhs.sizes[k] - lane)) for k, lane, count in parts if lane < lhs.sizes[k]]


def _ones(builder: StorageBuilder, product: ProductSource) -> list[tuple[_Home, ...]]:
    """Weights of ones in one plane, or in several if there are many rows to share."""
    planes = [(side, plane) for plane in range(builder.chip.num_planes) for side in Hemisphere]
    count = min(len(planes), product.num_rows // _ROWS_PER_PLANE)
    rows = _tile_rows(0, product.contracting, product.lhs)
    places: list[tuple[_Home, ...]] = []
    for side, plane in planes[:count] if count > 1 else [builder.next_plane()]:
        storage = builder.ones_weights(side, plane)
        tiles = tuple(WeightTile(storage, 0, size) for _, _, size in rows)
        places.append((_Home(side, plane, tiles, tuple(range(len(rows)))),))
    return places


def _homes(builder: StorageBuilder, product: ProductSource, refs: IntArray) -> tuple[_Home, ...] | None:
    """The weights refs [K, 2] (or words) as they lie in weight layout, None if they do not.

    Runs of rows in the slices of several planes are as many parts, which only integers can be added up from.
    """
    is_next = (np.diff(refs[:, 0]) == 0) & (np.diff(refs[:, 1]) == 1)
    edges = [0, *(np.nonzero(~is_next)[0] + 1).tolist(), len(refs)]
    integer = product.lhs_format is product.rhs_format is DataFormat.INT8
    rounds = builder.chip.accumulation != "exact" and not integer  # once per tile, so that a tile must not be cut
    if len(edges) > 2 and (rounds or product.rhs_format.is_block or (len(edges) - 1) * _MIN_RUN > len(refs)):
        return None
    homes = []
    for start, stop in itertools.pairwise(edges):
        home, first = builder.storages[refs[start, 0]], int(refs[start, 1])
        if home.plane is None or first % home.interleave or start % home.interleave:
            return None
        if product.rhs_format.is_block:
            rows = _tile_rows(0, product.contracting, product.lhs)
            offsets = [k * product.rhs_format.num_words(builder.chip.num_lanes) for k, _, _ in rows]
        else:
            rows = _tile_rows(start, stop, product.lhs)
            if len(edges) > 2 and integer:
                rows.sort(key=lambda row: row[2])  # short loads first: installs need an interval
            offsets = [product.lhs.edges[k] + lane - start for k, lane, _ in rows]
        tiles = tuple(
            WeightTile(home.id, first + offset, count, lane)
            for (_, lane, count), offset in zip(rows, offsets, strict=True)
        )
        homes.append(_Home(home.hemisphere, home.plane, tiles, tuple(k for k, _, _ in rows)))
    if len({(home.side, home.plane) for home in homes}) == 1:
        return (_joined(homes),)
    return tuple(homes) if integer else None


def _joined(homes: Sequence[_Home]) -> _Home:
    """Weights in several runs of rows, all in the slices of one plane."""
    tiles, k_tiles = (
        tuple(itertools.chain(*parts)) for parts in zip(*((h.tiles, h.k_tiles) for h in homes), strict=True)
    )
    return _Home(homes[0].side, homes[0].plane, tiles, k_tiles)


def _copied(
    builder: StorageBuilder, product: ProductSource, refs: IntArray, ops: list[ChainOp], label: Label
) -> tuple[_Home, ...]:
    """The weights refs [K, 2] copied into the slice set of a plane."""
    interleave = builder.chip.num_streams_per_load // product.weight_format.num_bytes
    addresses = -(-len(refs) // interleave)
    side, plane = builder.next_plane(addresses)
    storage = builder.new_storage(
        addresses * interleave, product.weight_format, side, interleave=interleave, plane=plane, name="weights"
    )
    target = builder.whole(storage, len(refs))
    source, copy = View((len(refs),), True, refs), View((len(refs),), True, target)
    ops += copy_ops(builder, source, [copy], product.weight_format, label)
    homes = _homes(builder, product, target)
    assert homes is not None
    return homes


def _activations(
    builder: StorageBuilder,
    product: ProductSource,
    side: Hemisphere,
    copies: dict[Hemisphere, IntArray],
    ops: list[ChainOp],
    label: Label,
) -> IntArray:
    """Activation vectors in the hemisphere of the plane, copied there if no place of the value is."""
    for refs in product.lhs.refs:
        if (builder.sides(refs.reshape(-1, 2)) == side).all():
            return refs
    if side not in copies:
        refs, inverse = np.unique(product.lhs.refs[0].reshape(-1, 2), axis=0, return_inverse=True)
        target = builder.pieces(len(refs), product.lhs_format, side, "activations")
        source, copy = View((len(refs),), True, refs), View((len(refs),), True, target)
        ops += copy_ops(builder, source, [copy], product.lhs_format, label)
        copies[side] = target[inverse.reshape(-1)]
    return copies[side]
