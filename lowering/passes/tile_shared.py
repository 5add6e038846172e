"""Matrices that are weights of products and are looked up whole, by a number known at run time: held once.

Matrix b lies in home b % homes, one storage per plane, at the address (b // homes) * addresses of a matrix. So its
number is an address in all homes; one of them has the right matrix, the others' vectors are masked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lpu_jax.lowering.passes.tile_close import Label, chain_op, split_sides
from lpu_jax.lowering.passes.tile_indexing import (
    address_map_steps,
    address_maps,
    address_shift,
    quotient,
    remainder,
    tile_gather,
)
from lpu_jax.lowering.passes.tile_storage import FORMATS, StorageBuilder
from lpu_jax.lowering.tile_ir import (
    ChainOp,
    GatherInput,
    InputRef,
    IntArray,
    MemoryInput,
    MemoryOutput,
    Step,
    StepRef,
    Storage,
    View,
)
from lpu_jax.runtime.chip import Hemisphere
from lpu_jax.runtime.isa import DataFormat
from lpu_jax.runtime.ops import Equation, Immediate

if TYPE_CHECKING:
    from lpu_jax.lowering.passes.tile import Tiler


def tile_lookup(tiler: Tiler, equation: Equation) -> tuple[View, ...]:
    """rows = table[index], of a table of rows or of matrices that are shared."""
    table = equation.operands[0]
    assert isinstance(table, int)
    homes = _shared_homes(tiler.builder, tiler.view(table))
    return tile_gather(tiler, equation) if homes is None else _shared_gather(tiler, equation, homes)


def _shared_homes(builder: StorageBuilder, view: View) -> list[Storage] | None:
    """The homes of matrices [B, rows, columns] that are laid out as `StorageBuilder` does for looked-up weights."""
    if view.splat or len(view.shape) != 3:
        return None
    first = view.refs.reshape(view.shape[0], -1, 2)[:, 0, 0]
    homes = [builder.storages[s] for s in dict.fromkeys(first.tolist())]
    return homes if view.shape[0] > 1 and all(home.shared for home in homes) else None


def _shared_gather(tiler: Tiler, equation: Equation, homes: list[Storage]) -> tuple[View, ...]:
    """matrices[index]: of every home the matrix at the address, masked, joined by `or`."""
    builder, label = tiler.builder, tiler.label
    table, index = equation.operands
    assert isinstance(table, int)
    assert isinstance(index, int)
    num_matrices, rows, _ = tiler.shape(table)
    per_matrix = homes[0].num_vectors // -(-num_matrices // len(homes))
    targets = tiler.place(equation.results[0], False)
    form = FORMATS[tiler.graph.avals[table].dtype]
    width = {1: DataFormat.INT8, 2: DataFormat.INT16, 4: DataFormat.INT32}[form.num_bytes]
    for position, own in enumerate(tiler.splat_refs(index)):
        parts = []
        maps: dict[Hemisphere, IntArray] = {}
        for number, home in enumerate(homes):
            if home.hemisphere not in maps:
                ops, maps[home.hemisphere] = _maps(builder, own[None], home, len(homes), per_matrix, label)
                tiler.ops += ops
            ops, refs = _masked(builder, own, maps[home.hemisphere][:rows], home, (number, len(homes)), width, label)
            tiler.ops += ops
            parts.append(MemoryInput(refs, width))
        wanted = [(0, t.refs.reshape(-1, rows, 2)[position], width) for t in targets]
        tiler.ops += split_sides(builder, _joined(parts, wanted, label))
    return targets


def _joined(parts: list[MemoryInput], wanted: list[tuple[int, IntArray, DataFormat]], label: Label) -> ChainOp:
    steps = [Step("or", (InputRef(0), InputRef(1)))] if len(parts) > 1 else [Step("identity", (InputRef(0),))]
    steps += [Step("or", (StepRef(i - 2), InputRef(i))) for i in range(2, len(parts))]
    outputs = [(len(steps) - 1, refs, width) for _, refs, width in wanted]
    return chain_op(parts, steps, outputs, label)


def _maps(
    builder: StorageBuilder, index: IntArray, home: Storage, num_homes: int, per_matrix: int, label: Label
) -> tuple[list[ChainOp], IntArray]:
    """Address maps of all vectors of matrix `index`, the same ones for every home of a hemisphere."""
    addresses = per_matrix // home.interleave
    maps = address_maps(builder, addresses, home.hemisphere, "far")
    offsets = builder.constant(np.arange(addresses, dtype=np.int32), True)[0].refs
    steps = [
        quotient(InputRef(0), num_homes),
        Step("imul", (StepRef(0), Immediate(addresses, "int32"))),
        Step("iadd", (StepRef(1), InputRef(1))),
        *address_map_steps(2, InputRef(2)),
    ]
    inputs = [
        MemoryInput(np.repeat(index, addresses, axis=0), DataFormat.INT32),
        MemoryInput(offsets, DataFormat.INT32),
        MemoryInput(np.repeat(address_shift(builder), addresses, axis=0), DataFormat.INT32),
    ]
    ops = split_sides(builder, chain_op(inputs, steps, [(len(steps) - 1, maps, DataFormat.UINT8)], label))
    return list(ops), np.repeat(maps, home.interleave, axis=0)


def _masked(
    builder: StorageBuilder,
    index: IntArray,
    maps: IntArray,
    home: Storage,
    number_of: tuple[int, int],
    width: DataFormat,
    label: Label,
) -> tuple[list[ChainOp], IntArray]:
    """What a home, number_of = (its number, homes), has of a matrix: zeros if it is none of its own."""
    count, (number, num_homes) = len(maps), number_of
    flag = builder.whole(builder.new_storage(1, DataFormat.UINT8, home.hemisphere, name="is here"), 1)
    steps = [remainder(InputRef(0), num_homes), Step("ieq", (StepRef(0), Immediate(number, "int32")))]
    flag_op = chain_op([MemoryInput(index[None], DataFormat.INT32)], steps, [(1, flag, DataFormat.UINT8)], label)
    refs = builder.whole(builder.new_storage(count, width, home.hemisphere, name="gathered"), count)
    inputs = GatherInput(maps, home.id, 0, width), MemoryInput(np.repeat(flag, count, axis=0), DataFormat.UINT8)
    mask = Step("mask", (InputRef(0), InputRef(1)))
    masked = ChainOp(count, inputs, (mask,), (MemoryOutput(0, refs, width),), *label)
    return [*split_sides(builder, flag_op), masked], refs
