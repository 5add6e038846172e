"""Matrix products and reductions over lanes: where their operands lie, and the chains that begin with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lpu_jax.lowering.passes.tile_chain import Domain, OpenChain, ProductSource
from lpu_jax.lowering.passes.tile_demand import MIN_SEGMENT
from lpu_jax.lowering.passes.tile_reduce import tile_lane_reduce
from lpu_jax.lowering.passes.tile_storage import FORMATS
from lpu_jax.lowering.passes.tile_windows import Windows, whole_rows
from lpu_jax.lowering.tile_ir import InputRef, IntArray, num_rows, num_tiles
from lpu_jax.runtime.chip import ChipSpec, Hemisphere
from lpu_jax.runtime.errors import NumberFormatError
from lpu_jax.runtime.isa import DataFormat
from lpu_jax.runtime.ops import Equation, LaneReduce, MatMul

if TYPE_CHECKING:
    from lpu_jax.lowering.passes.tile import Tiler


def _open_product(tiler: Tiler, equation: Equation, domain: Domain, product: ProductSource) -> None:
    """Starts a chain fed by the MXM; an older chain over the same space is closed first."""
    if domain in tiler.chains:
        tiler.close(tiler.chains[domain])
    chain = OpenChain(domain, equation.source, equation.name, product)
    result = equation.results[0]
    chain.values[result] = InputRef(-1)
    tiler.chains[domain] = chain
    tiler.chain_of[result] = chain
    tiler.used(equation)


def tile_matmul(tiler: Tiler, equation: Equation, op: MatMul) -> None:
    """Opens a chain that begins with a matrix product.

    Raises:
      NumberFormatError: blocks of the rhs do not fit the planes of the chip.
    """
    lhs, rhs = equation.operands
    assert isinstance(lhs, int)
    assert isinstance(rhs, int)
    batches, rows, contracting = tiler.graph.avals[lhs].shape
    block, tile_rows = op.rhs_format.number_format.block_size, min(tiler.chip.num_mxm_rows, tiler.chip.num_lanes)
    if block and tile_rows % block:
        raise NumberFormatError(
            f"{op.rhs_format.name.lower()} has blocks of {block} rows, but a plane of chip {tiler.chip.name!r} "
            f"takes {tile_rows}, which is no multiple of it {equation.source}: use smaller blocks"
        )
    columns = tiler.graph.avals[rhs].shape[-1]
    places, first_columns = _weights(tiler, rhs)
    vectors = batches * tiler.graph.avals[rhs].shape[1]
    rhs_refs = [refs.reshape(vectors, -1, 2) for refs in places]
    activations = _activations(tiler, lhs, op, columns)
    product = ProductSource(
        lhs=activations,
        lhs_format=op.lhs_format,
        rhs=rhs_refs[0],
        rhs_format=op.rhs_format,
        mirrors=tuple(rhs_refs[1:]),
        num_batches=batches,
        num_rows=rows,
        contracting=contracting,
        num_column_tiles=num_tiles((columns,), tiler.chip.num_lanes),
    )
    offsets = b"" if first_columns is None else np.repeat(first_columns, rows).tobytes()
    _open_product(tiler, equation, Domain(batches * rows, columns, False, offsets), product)


def _rows_per_load(chip: ChipSpec, rhs_format: DataFormat) -> int:
    """Rows of the MXM that are loaded at a time; blocks of rows have to begin at row 0."""
    return chip.num_mxm_rows if rhs_format.is_block else chip.num_streams_per_load // rhs_format.num_bytes


def _activations(tiler: Tiler, value: int, op: MatMul, columns: int) -> Windows:
    """Rows of the lhs of a product; windows as they are if their weights can be loaded at the same rows."""
    chip, shape = tiler.chip, tiler.shape(value)
    rows_per_load = _rows_per_load(chip, op.rhs_format)
    most = 1 if chip.accumulation != "exact" else max(2 * num_tiles(shape, chip.num_lanes), shape[-1] // MIN_SEGMENT)
    windows = tiler.segments_of(value, most, op.skips_padding)
    if windows is not None and _is_worth_it(chip, windows, num_rows(shape), op, columns):
        loaded = -(-np.array(windows.sizes) // rows_per_load) * rows_per_load
        is_aligned = all(edge % rows_per_load == 0 for edge in windows.edges[:-1])
        if is_aligned and int((windows.offsets + loaded).max()) <= chip.num_mxm_rows:
            return windows
    return whole_rows(tuple(view.refs for view in tiler.lanes_views(value)), shape, chip.num_lanes)


def _is_worth_it(chip: ChipSpec, windows: Windows, rows: int, op: MatMul, columns: int) -> bool:
    """Whether to multiply segments one by one takes no longer than to have the SXM bring them together first.

    More segments cost multiplications, once per column tile; joined, each takes its turn in one of two permuters.
    """
    size, count = windows.edges[-1], windows.num_segments
    tiles = -(-size // chip.num_lanes)
    if count <= 2 * tiles:
        return True
    bytes_of = op.lhs_format.significand_bytes, op.rhs_format.significand_bytes
    planes = 2 * chip.num_planes / chip.planes_per_tile(op.rhs_format.num_bytes)

    def cycles(sizes: Sequence[int]) -> float:
        each = [max(rows * chip.cycles_per_vector(n, *bytes_of), chip.mxm_install_interval_cycles) for n in sizes]
        return sum(each) * max(1 / len(Hemisphere), num_tiles((columns,), chip.num_lanes) / planes)

    joined = cycles([min(chip.num_lanes, size - start) for start in range(0, size, chip.num_lanes)])
    moves = chip.sxm_permute_cycles + rows * count * op.lhs_format.num_bytes / len(Hemisphere)
    return cycles(windows.sizes) <= joined + moves


def _weights(tiler: Tiler, value: int) -> tuple[tuple[IntArray, ...], IntArray | None]:
    """Places of the rhs of a product, and the lane at which the columns of every matrix begin if it is not 0."""
    windows = tiler.windows_of(value)
    offsets = windows.common_offset(tiler.shape(value)[1]) if windows is not None else None
    if windows is None or offsets is None:
        return tuple(view.refs for view in tiler.lanes_views(value)), None
    return windows.refs, offsets


def tile_reduction(tiler: Tiler, equation: Equation, op: LaneReduce) -> None:
    """A sum over lanes opens a chain that begins with a product with ones; others go through the SXM."""
    operand = equation.operands[0]
    assert isinstance(operand, int)
    shape = tiler.graph.avals[operand].shape
    rows = num_rows(shape)
    if op.function == "sum":
        lhs_format = FORMATS[tiler.graph.avals[operand].dtype]
        ones = MatMul(lhs_format, DataFormat.INT8, skips_padding=True)
        activations = _activations(tiler, operand, ones, 1)
        product = ProductSource(
            lhs=activations,
            lhs_format=lhs_format,
            rhs=None,
            rhs_format=DataFormat.INT8,
            mirrors=(),
            num_batches=1,
            num_rows=rows,
            contracting=shape[-1],
            num_column_tiles=1,
        )
        _open_product(tiler, equation, Domain(rows, 1, True), product)
        return
    views = tiler.lanes_views(operand)
    result = equation.results[0]
    targets = tiler.place(result, True)
    aval = tiler.graph.avals[operand]
    tiler.ops += tile_lane_reduce(tiler.builder, op.function, views[0], targets, aval, tiler.label)
    tiler.set_views(equation, targets)
