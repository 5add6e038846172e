"""Rows at run-time indices: MEM Gather and Scatter with addresses that the VXM computes from the index.

A table row r lies in slice group r % interleave at address base + r // interleave. Timing stays static: every group is
read (or written) in turn; a gather keeps the wanted group by masking, a scatter sends the others to a spare row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lpu_jax.lowering.passes.tile_close import Label, chain_op, copy_ops, split_sides
from lpu_jax.lowering.passes.tile_storage import FORMATS, StorageBuilder
from lpu_jax.lowering.tile_ir import (
    ChainOp,
    GatherInput,
    InputRef,
    IntArray,
    MemoryInput,
    MemoryOutput,
    ScatterOutput,
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


def _immediate(value: int) -> Immediate:
    return Immediate(value, "int32")


def _table_columns(builder: StorageBuilder, view: View) -> list[tuple[Storage, int]]:
    """(storage, first vector) of every vector of a row; rows must be consecutive vectors."""
    rows = view.shape[0]
    refs = view.refs.reshape(rows, -1, 2)
    columns = []
    for vector in range(refs.shape[1]):
        column = refs[:, vector]
        storage = builder.storages[int(column[0, 0])]
        assert (column[:, 0] == storage.id).all()
        assert (np.diff(column[:, 1]) == 1).all(), "table rows in order"
        assert column[0, 1] % storage.interleave == 0
        columns.append((storage, int(column[0, 1])))
    return columns


def _is_table(builder: StorageBuilder, view: View) -> bool:
    refs = view.refs.reshape(view.shape[0], -1, 2)
    same = (refs[:, :, 0] == refs[:1, :, 0]).all()
    steps = np.diff(refs[:, :, 1], axis=0)
    starts = all(refs[0, v, 1] % builder.storages[refs[0, v, 0]].interleave == 0 for v in range(refs.shape[1]))
    return bool(same and (steps == 1).all() and starts)


def address_shift(builder: StorageBuilder) -> IntArray:
    """A vector of shifts that puts the low address byte on lane 0 of each superlane and the high byte on lane 1."""
    lanes = np.arange(builder.chip.num_lanes) % builder.chip.num_lanes_per_superlane
    return builder.constant(np.where(lanes == 1, 8, 0).astype(np.int32), False)[0].refs


def address_maps(builder: StorageBuilder, count: int, side: Hemisphere, column: str) -> IntArray:
    """New vectors for `count` address maps."""
    return builder.whole(builder.new_storage(count, DataFormat.UINT8, side, column=column, name="addresses"), count)


def address_map_steps(address: int, shift: InputRef) -> list[Step]:
    """The bytes of an address, step number `address`, where a slice reads them; `shift` is `address_shift`."""
    return [
        Step("shift_right_logical", (StepRef(address), shift)),
        Step("and", (StepRef(address + 1), _immediate(255))),
    ]


def _address_ops(
    builder: StorageBuilder, index: IntArray, storage: Storage, scatter: bool, label: Label
) -> tuple[list[ChainOp], IntArray]:
    """Address maps: one per index for a gather; interleave per index for a scatter (others hit the spare row)."""
    shift = address_shift(builder)
    index_input = MemoryInput(index, DataFormat.INT32)
    if not scatter or storage.interleave == 1:
        maps = address_maps(builder, len(index), storage.hemisphere, "near" if scatter else "far")
        steps = [quotient(InputRef(0), storage.interleave), *address_map_steps(0, InputRef(1))]
        inputs = [index_input, MemoryInput(np.repeat(shift, len(index), axis=0), DataFormat.INT32)]
        return split_sides(builder, chain_op(inputs, steps, [(2, maps, DataFormat.UINT8)], label)), maps
    groups = storage.interleave
    count = len(index) * groups
    maps = address_maps(builder, count, storage.hemisphere, "near")
    numbers = builder.constant(np.arange(groups, dtype=np.int32), True)[0].refs
    spare = storage.num_vectors // groups - 1
    steps = [
        remainder(InputRef(0), groups),
        Step("ieq", (StepRef(0), InputRef(1))),
        quotient(InputRef(0), groups),
        Step("mask", (StepRef(2), StepRef(1))),
        Step("mask_bar", (_immediate(spare), StepRef(1))),
        Step("or", (StepRef(3), StepRef(4))),
        Step("shift_right_logical", (StepRef(5), InputRef(2))),
        Step("and", (StepRef(6), _immediate(255))),
    ]
    inputs = [
        MemoryInput(np.repeat(index, groups, axis=0), DataFormat.INT32),
        MemoryInput(np.tile(numbers, (len(index), 1)), DataFormat.INT32),
        MemoryInput(np.repeat(shift, count, axis=0), DataFormat.INT32),
    ]
    return split_sides(builder, chain_op(inputs, steps, [(7, maps, DataFormat.UINT8)], label)), maps


def tile_gather(tiler: Tiler, equation: Equation) -> tuple[View, ...]:
    """rows = table[index]."""
    builder, label = tiler.builder, tiler.label
    table, index = equation.operands
    assert isinstance(table, int)
    assert isinstance(index, int)
    aval = tiler.graph.avals[equation.results[0]]
    view = _ensure_table(tiler, table)
    index_refs = _one_side(tiler, tiler.splat_refs(index), DataFormat.INT32)
    count = len(index_refs)
    columns = _table_columns(builder, view)
    targets = tiler.place(equation.results[0], view.splat)
    form = FORMATS[aval.dtype]
    maps_of: dict[tuple[Hemisphere, int], IntArray] = {}
    for position, (storage, first) in enumerate(columns):
        key = (storage.hemisphere, storage.interleave)
        if key not in maps_of:
            ops, maps_of[key] = _address_ops(builder, index_refs, storage, False, label)
            tiler.ops += ops
        outputs = [target.refs.reshape(count, len(columns), 2)[:, position] for target in targets]
        tiler.ops += _gather_ops(builder, maps_of[key], index_refs, storage, first, outputs, form, label)
    return targets


def _gather_ops(
    builder: StorageBuilder,
    maps: IntArray,
    index: IntArray,
    storage: Storage,
    first: int,
    outputs: list[IntArray],
    form: DataFormat,
    label: Label,
) -> list[ChainOp]:
    """One vector per index from one table column."""
    groups, count = storage.interleave, len(index)
    if any(len({builder.storages[int(s)].hemisphere for s in refs[:, 0]}) > 1 for refs in outputs):
        home = builder.new_storage(count, form, storage.hemisphere, name="gathered")
        whole = builder.whole(home, count)
        ops = _gather_ops(builder, maps, index, storage, first, [whole], form, label)
        shape = (count,)
        return ops + copy_ops(
            builder, View(shape, True, whole), [View(shape, True, refs) for refs in outputs], form, label
        )
    gathered = GatherInput(np.repeat(maps, groups, axis=0), storage.id, first, form)
    if groups == 1:
        memory = tuple(MemoryOutput(0, refs, form) for refs in outputs)
        return [ChainOp(count, (gathered,), (Step("identity", (InputRef(0),)),), memory, *label)]
    numbers = builder.constant(np.arange(groups, dtype=np.int32), True)[0].refs
    side = storage.hemisphere
    width = {1: DataFormat.INT8, 2: DataFormat.INT16, 4: DataFormat.INT32}[form.num_bytes]
    raw = GatherInput(gathered.maps, storage.id, first, width)

    def partial(size: int) -> IntArray:
        return builder.whole(builder.new_storage(size, width, side, name="gathered"), size)

    present = partial(count * groups)
    inputs = (
        raw,
        MemoryInput(_on_side(builder, np.repeat(index, groups, axis=0), side), DataFormat.INT32),
        MemoryInput(_on_side(builder, np.tile(numbers, (count, 1)), side), DataFormat.INT32),
    )
    steps = (
        remainder(InputRef(1), groups),
        Step("ieq", (StepRef(0), InputRef(2))),
        Step("mask", (InputRef(0), StepRef(1))),
    )
    ops = [ChainOp(count * groups, inputs, steps, (MemoryOutput(2, present, width),), *label)]
    layers = list(present.reshape(count, groups, 2).transpose(1, 0, 2))
    while len(layers) > 1:
        half = len(layers) // 2
        halves = [MemoryInput(np.concatenate(layers[h * half : (h + 1) * half]), width) for h in range(2)]
        rest = layers[2 * half :]
        step = Step("or", (InputRef(0), InputRef(1)))
        if half == 1 and not rest:
            return ops + list(split_sides(builder, chain_op(halves, [step], [(0, r, width) for r in outputs], label)))
        merged = partial(count * half)
        ops += split_sides(builder, chain_op(halves, [step], [(0, merged, width)], label))
        layers = [*merged.reshape(half, count, 2), *rest]
    raise AssertionError("a spread table has at least two groups")


def quotient(operand: InputRef, groups: int) -> Step:
    """operand // groups of an operand >= 0."""
    if groups & (groups - 1) == 0:
        return Step("shift_right_logical", (operand, _immediate(groups.bit_length() - 1)))
    return Step("idiv", (operand, _immediate(groups)))


def remainder(operand: InputRef, groups: int) -> Step:
    """operand % groups of an operand >= 0."""
    if groups & (groups - 1) == 0:
        return Step("and", (operand, _immediate(groups - 1)))
    return Step("irem", (operand, _immediate(groups)))


def _on_side(builder: StorageBuilder, refs: IntArray, side: Hemisphere) -> IntArray:
    """Operands may come from either hemisphere; a mixed set is not expected here."""
    sides = {builder.storages[int(storage)].hemisphere for storage in refs[:, 0]}
    assert len(sides) == 1, f"index vectors in one hemisphere, wanted near {side.name}"
    return refs


def _ensure_table(tiler: Tiler, value: int) -> View:
    """A view whose rows are consecutive vectors; copied into table layout if they are not."""
    views = tiler.all_views(value)
    if _is_table(tiler.builder, views[0]):
        return views[0]
    aval = tiler.graph.avals[value]
    demand = tiler.table_demand
    targets = tiler.builder.allocate(aval, views[0].splat, demand)
    tiler.ops += copy_ops(tiler.builder, views[0], targets, FORMATS[aval.dtype], tiler.label)
    return targets[0]


def _one_side(tiler: Tiler, refs: IntArray, form: DataFormat) -> IntArray:
    """The same vectors in one hemisphere, copied if they lie in both."""
    builder = tiler.builder
    if len({builder.storages[int(s)].hemisphere for s in refs[:, 0]}) == 1:
        return refs
    storage = builder.new_storage(len(refs), form, builder.next_hemisphere(), name="rows")
    target, shape = builder.whole(storage, len(refs)), (len(refs),)
    tiler.ops += copy_ops(builder, View(shape, True, refs), [View(shape, True, target)], form, tiler.label)
    return target


def tile_scatter(tiler: Tiler, equation: Equation) -> tuple[View, ...]:
    """table[index] = rows, in place when nothing reads the old table afterwards."""
    builder, label = tiler.builder, tiler.label
    table, rows, index = equation.operands
    assert isinstance(table, int)
    assert isinstance(rows, int)
    assert isinstance(index, int)
    result = equation.results[0]
    aval = tiler.graph.avals[result]
    form = FORMATS[aval.dtype]
    old = tiler.all_views(table)[0]
    row_views = tiler.all_views(rows) if old.splat else tiler.lanes_views(rows)
    if tiler.may_overwrite(table, result, old):
        new: tuple[View, ...] = (old,)
    else:
        new = tiler.place(result, old.splat)
        tiler.ops += copy_ops(builder, old, new, form, label)
    index_refs = tiler.splat_refs(index)
    count = len(index_refs)
    for view in new:
        columns = _table_columns(builder, view)
        maps_of: dict[tuple[Hemisphere, int, int], IntArray] = {}
        for position, (storage, first) in enumerate(columns):
            key = (storage.hemisphere, storage.interleave, storage.num_vectors)
            if key not in maps_of:
                ops, maps_of[key] = _address_ops(builder, index_refs, storage, True, label)
                tiler.ops += ops
            groups = storage.interleave
            source = _one_side(tiler, row_views[0].refs.reshape(count, len(columns), 2)[:, position], form)
            memory = MemoryInput(np.repeat(source, groups, axis=0), form)
            output = ScatterOutput(0, maps_of[key], storage.id, first, form)
            step = Step("identity", (InputRef(0),))
            tiler.ops.append(ChainOp(count * groups, (memory,), (step,), (output,), *label))
    return new
