"""Closing a chain: an open chain becomes ChainOps, one per matrix tile and per pair of hemispheres."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np

from lpu_jax.lowering.passes.tile_chain import OpenChain, ProductSource
from lpu_jax.lowering.passes.tile_storage import StorageBuilder
from lpu_jax.lowering.tile_ir import (
    GROUP,
    ChainInput,
    ChainOp,
    InputRef,
    IntArray,
    MatMulInput,
    MemoryInput,
    MemoryOutput,
    PermuteOp,
    ScatterOutput,
    Step,
    StepOperand,
    StepRef,
    TileOp,
    TransposeOp,
    View,
    WeightTile,
)
from lpu_jax.runtime.chip import Hemisphere
from lpu_jax.runtime.isa import DataFormat

Label = tuple[str, str]
Result = tuple[StepOperand, tuple[View, ...], DataFormat]


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
    ops: list[ChainOp] = []
    if chain.product is None:
        memory = [MemoryInput(refs, data_format) for refs, data_format in chain.inputs]
        return split_sides(builder, chain_op(memory, steps, outputs, label))
    steps = [Step(s.function, tuple(_shift(operand) for operand in s.operands)) for s in steps]
    for vectors, product in _products(builder, chain.product, ops, label):
        memory = [MemoryInput(refs[vectors], data_format) for refs, data_format in chain.inputs]
        part = [(step, refs[vectors], data_format) for step, refs, data_format in outputs]
        ops += split_sides(builder, chain_op([product, *memory], steps, part, label))
    return ops


def _shift(operand: StepOperand) -> StepOperand:
    """The MXM is input 0 of a chain with a product; memory inputs follow."""
    return InputRef(operand.index + 1) if isinstance(operand, InputRef) else operand


def chain_op(
    inputs: Sequence[MemoryInput | MatMulInput],
    steps: Sequence[Step],
    outputs: Sequence[tuple[int, IntArray, DataFormat]],
    label: Label,
) -> ChainOp:
    """A ChainOp in which every input feeds one operand; inputs used more often are first held by an ALU."""
    uses = Counter(o.index for s in steps for o in s.operands if isinstance(o, InputRef))
    shared = sorted(index for index, count in uses.items() if count > 1)
    position = {index: place for place, index in enumerate(shared)}

    def remap(operand: StepOperand) -> StepOperand:
        if isinstance(operand, InputRef) and operand.index in position:
            return StepRef(position[operand.index])
        if isinstance(operand, StepRef):
            return StepRef(operand.index + len(shared))
        return operand

    latched = [Step("identity", (InputRef(index),)) for index in shared]
    latched += [Step(s.function, tuple(remap(operand) for operand in s.operands)) for s in steps]
    return ChainOp(
        num_vectors=len(outputs[0][1]),
        inputs=tuple(inputs),
        steps=tuple(latched),
        outputs=tuple(MemoryOutput(step + len(shared), refs, form) for step, refs, form in outputs),
        source=label[0],
        name=label[1],
    )


def split_sides(builder: StorageBuilder, op: ChainOp) -> list[ChainOp]:
    """Splits a chain so that each operand and result of a part stays in one hemisphere."""
    copies, op = _part_storages(builder, op)
    sides = np.array([int(storage.hemisphere) for storage in builder.storages])
    columns = [sides[i.refs[:, 0]] for i in op.inputs if isinstance(i, MemoryInput)]
    columns += [sides[o.refs[:, 0]] for o in op.outputs if isinstance(o, MemoryOutput)]
    signature = np.stack(columns, axis=1)
    if (signature == signature[0]).all():
        return [*copies, op]
    parts = list(copies)
    for kind in np.unique(signature, axis=0):
        vectors = np.nonzero((signature == kind).all(axis=1))[0]
        parts.append(_select_chain(op, vectors))
    return parts


def _part_storages(builder: StorageBuilder, op: ChainOp) -> tuple[list[ChainOp], ChainOp]:
    """Copies operands that lie in one storage with another operand: a slice reads one vector per cycle.

    Skewed storages are left to those who read them side by side.
    """
    seen: set[int] = set()
    copies: list[ChainOp] = []
    inputs = list(op.inputs)
    for index, item in enumerate(op.inputs):
        if not isinstance(item, MemoryInput):
            continue
        own = {int(s) for s in np.unique(item.refs[:, 0]) if not builder.storages[int(s)].skewed}
        if own & seen:
            unique, inverse = np.unique(item.refs, axis=0, return_inverse=True)
            storage = builder.new_storage(len(unique), item.format, builder.next_hemisphere(), name="operand copy")
            target = builder.whole(storage, len(unique))
            view, copy = (View((len(unique),), True, refs) for refs in (unique, target))
            copies += copy_ops(builder, view, [copy], item.format, (op.source, op.name))
            inputs[index] = MemoryInput(target[inverse.reshape(-1)], item.format)
            own = {storage}
        seen |= own
    return copies, dataclasses.replace(op, inputs=tuple(inputs))


def select_vectors(op: TileOp, vectors: np.ndarray) -> TileOp:
    """The part of an op that handles some of its vectors."""
    if isinstance(op, PermuteOp):
        refs = (op.source_refs[vectors], op.maps[vectors], op.targets[vectors])
        return dataclasses.replace(op, source_refs=refs[0], maps=refs[1], targets=refs[2])
    if isinstance(op, TransposeOp):
        rows = (vectors[:, None] * GROUP + np.arange(GROUP)).reshape(-1)
        return dataclasses.replace(op, source_refs=op.source_refs[rows], targets=op.targets[rows])
    return _select_chain(op, vectors)


def _select_chain(op: ChainOp, vectors: np.ndarray) -> ChainOp:
    inputs: list[ChainInput] = []
    for item in op.inputs:
        if isinstance(item, MemoryInput):
            inputs.append(MemoryInput(item.refs[vectors], item.format))
        elif isinstance(item, MatMulInput):
            activations = tuple(refs[vectors] for refs in item.activations)
            inputs.append(
                MatMulInput(activations, item.lhs_format, item.weights, item.rhs_format, item.hemisphere, item.plane)
            )
        else:
            inputs.append(dataclasses.replace(item, maps=item.maps[vectors]))
    outputs = []
    for output in op.outputs:
        assert not isinstance(output, ScatterOutput)
        outputs.append(MemoryOutput(output.step, output.refs[vectors], output.format))
    return ChainOp(len(vectors), tuple(inputs), op.steps, tuple(outputs), op.source, op.name)


def copy_ops(
    builder: StorageBuilder, view: View, targets: Sequence[View], data_format: DataFormat, label: Label
) -> list[ChainOp]:
    """Copies a view through one ALU into every target."""
    memory = MemoryInput(view.refs, data_format)
    outputs = [(0, target.refs, data_format) for target in targets]
    return split_sides(builder, chain_op([memory], [Step("identity", (InputRef(0),))], outputs, label))


# Matrix products -------------------------------------------------------------------------------------------------


def _products(
    builder: StorageBuilder, product: ProductSource, ops: list[ChainOp], label: Label
) -> list[tuple[np.ndarray, MatMulInput]]:
    """The product cut into (chain vectors, MatMulInput) by matrix, tile of N and block of rows."""
    chip = builder.chip
    block = max(1, chip.num_accumulator_vectors // 2)
    k_tiles = -(-product.contracting // chip.num_lanes)
    tiles = product.num_column_tiles
    parts = []
    copies: dict[tuple[int, Hemisphere], IntArray] = {}
    for batch in range(product.num_batches):
        for tile in range(tiles):
            weights, side, plane = _weights(builder, product, batch, tile, ops, label)
            lhs = _activations(builder, product, side, copies, ops, label)
            lhs = lhs.reshape(product.num_batches, product.num_rows, k_tiles, 2)[batch]
            for start in range(0, product.num_rows, block):
                rows = np.arange(start, min(start + block, product.num_rows))
                vectors = (batch * product.num_rows + rows) * tiles + tile
                activations = tuple(lhs[rows, k] for k in range(k_tiles))
                parts.append(
                    (
                        vectors,
                        MatMulInput(activations, product.lhs_format, weights, product.rhs_format, side, plane),
                    )
                )
    return parts


def _tile_rows(contracting: int, lanes: int) -> list[tuple[int, int]]:
    """(first row, number of rows) of every K tile."""
    return [(first, min(lanes, contracting - first)) for first in range(0, contracting, lanes)]


def _weights(
    builder: StorageBuilder, product: ProductSource, batch: int, tile: int, ops: list[ChainOp], label: Label
) -> tuple[tuple[WeightTile, ...], Hemisphere, int]:
    """The weight tiles of one matrix and column tile, copied into weight layout if they are not there."""
    tiles = _tile_rows(product.contracting, builder.chip.num_lanes)
    if product.rhs is None:
        side, plane = builder.next_plane()
        storage = builder.ones_weights(side, plane)
        return tuple(WeightTile(storage, 0, count) for _, count in tiles), side, plane
    refs = product.rhs[batch * product.contracting : (batch + 1) * product.contracting, tile]
    home = builder.storages[refs[0, 0]]
    in_order = (refs[:, 0] == home.id).all() and (np.diff(refs[:, 1]) == 1).all()
    if not (in_order and home.plane is not None and refs[0, 1] % home.interleave == 0):
        interleave = builder.chip.num_streams_per_load // product.rhs_format.num_bytes
        side, plane = builder.next_plane(-(-len(refs) // interleave))
        storage = builder.new_storage(
            -(-len(refs) // interleave) * interleave,
            product.rhs_format,
            side,
            interleave=interleave,
            plane=plane,
            name="weights",
        )
        target = builder.whole(storage, len(refs))
        ops += copy_ops(
            builder, View((len(refs),), True, refs), [View((len(refs),), True, target)], product.rhs_format, label
        )
        refs, home = target, builder.storages[storage]
    assert home.plane is not None
    first = int(refs[0, 1])
    return tuple(WeightTile(home.id, first + k, count) for k, count in tiles), home.hemisphere, home.plane


def _activations(
    builder: StorageBuilder,
    product: ProductSource,
    side: Hemisphere,
    copies: dict[tuple[int, Hemisphere], IntArray],
    ops: list[ChainOp],
    label: Label,
) -> IntArray:
    """Activation vectors in the hemisphere of the plane, copied there if no place of the value is."""
    sides = np.array([int(storage.hemisphere) for storage in builder.storages])
    for refs in product.lhs:
        if (sides[refs[:, 0]] == side).all():
            return refs
    key = (0, side)
    if key not in copies:
        refs = product.lhs[0]
        storage = builder.new_storage(len(refs), product.lhs_format, side, name="activations")
        target = builder.whole(storage, len(refs))
        ops += copy_ops(
            builder, View((len(refs),), True, refs), [View((len(refs),), True, target)], product.lhs_format, label
        )
        copies[key] = target
    return copies[key]
