"""Making ChainOps: every operand feeds one step, and operands and results of an op stay in one hemisphere each."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np

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
    storages_of,
)
from lpu_jax.runtime.chip import ChipSpec, Hemisphere
from lpu_jax.runtime.isa import DataFormat

Label = tuple[str, str]


def chain_op(
    inputs: Sequence[ChainInput],
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
    """Splits a chain so that operands share no storage, and each operand and result of a part is in one hemisphere."""
    segments = _segments(builder, op)
    if len(segments) > 1:
        return [part for vectors in segments for part in split_sides(builder, _select_chain(op, vectors))]
    copies, op = _part_storages(builder, op)
    columns = [builder.sides(item.refs) for item in op.inputs if isinstance(item, MemoryInput)]
    columns += [builder.sides(item.refs) for item in op.outputs if isinstance(item, MemoryOutput)]
    signature = np.stack(columns, axis=1)
    kinds = np.unique(signature, axis=0)
    num_lanes = builder.chip.num_alus // (chain_slots(builder.chip, op) * len(kinds))
    parts: list[ChainOp] = []
    for kind in kinds:
        vectors = np.nonzero((signature == kind).all(axis=1))[0]
        shared = _shared_inputs(op, vectors) if builder.spread.own_operands else []
        first, *others = [_select_chain(op, lane) for lane in side_by_side(op, vectors, num_lanes, shared)]
        parts.append(first)
        for part in others:
            more, part = _own_inputs(builder, part, shared)
            copies += more
            parts.append(part)
    return [*copies, *parts]


def chain_slots(chip: ChipSpec, op: ChainOp) -> int:
    """ALUs that a chain takes."""
    return sum(chip.alu_slots(step.function) for step in op.steps)


_MIN_REUSE = 64
"""Times that every vector of an operand is read, for which parts of a chain get copies of their own."""
_MAX_SHARED = 16
"""Vectors of an operand that are copied for that: rows of up to 5,120 elements."""
_MIN_SEGMENT = 16
"""Vectors that a chain has on average for every cut that spares a copy of an operand."""
MIN_LANE_VECTORS = 64
"""Chains of fewer vectors are not cut: the latency of one more part would cost as much as it saves."""


def side_by_side(op: ChainOp, vectors: np.ndarray, num_lanes: int, shared: Sequence[int] = ()) -> list[np.ndarray]:
    """Cuts the vectors of a chain into at most num_lanes parts that share no storage, so that they can run at once.

    Storages of the inputs `shared` do not count. Chains with a matrix product stay whole: every part would load the
    weights again.
    """
    num_lanes = min(num_lanes, len(vectors) // MIN_LANE_VECTORS)
    if num_lanes < 2 or not all(isinstance(item, MemoryInput) for item in op.inputs):
        return [vectors]
    own = [item for index, item in enumerate(op.inputs) if index not in shared]
    columns = [item.refs[vectors, 0] for item in (*own, *op.outputs) if isinstance(item, MemoryInput | MemoryOutput)]
    pieces, piece_of = np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)
    lane_of_piece, load = np.zeros(len(pieces), np.int64), [0] * num_lanes
    for group in _connected(pieces):
        lane = load.index(min(load))
        lane_of_piece[group] = lane
        load[lane] += int(np.isin(piece_of, group).sum())
    lanes = lane_of_piece[piece_of.reshape(-1)]
    return [vectors[lanes == lane] for lane in range(num_lanes) if load[lane]]


def _shared_inputs(op: ChainOp, vectors: np.ndarray) -> list[int]:
    """Inputs of so few distinct vectors that parts of a chain had better have them for themselves: scales, biases."""
    most = min(_MAX_SHARED, len(vectors) // _MIN_REUSE)
    if not most:
        return []
    return [
        index
        for index, item in enumerate(op.inputs)
        if isinstance(item, MemoryInput) and len(set(map(tuple, item.refs[vectors].tolist()))) <= most
    ]


def _own_inputs(builder: StorageBuilder, op: ChainOp, shared: Sequence[int]) -> tuple[list[ChainOp], ChainOp]:
    """A part of a chain with its own copies of some inputs."""
    inputs, copies = list(op.inputs), []
    for index in shared:
        item = op.inputs[index]
        assert isinstance(item, MemoryInput)
        side = builder.storages[int(item.refs[0, 0])].hemisphere
        more, refs = _copied(builder, item, side, (op.source, op.name))
        copies += more
        inputs[index] = MemoryInput(refs, item.format)
    return copies, dataclasses.replace(op, inputs=tuple(inputs))


def _copied(
    builder: StorageBuilder, item: MemoryInput, side: Hemisphere, label: Label
) -> tuple[list[ChainOp], IntArray]:
    """Every distinct vector of an operand copied once, and the refs of the operand there."""
    unique, inverse = np.unique(item.refs, axis=0, return_inverse=True)
    target = builder.pieces(len(unique), item.format, side, "operand copy")
    view, copy = (View((len(unique),), True, refs) for refs in (unique, target))
    return copy_ops(builder, view, [copy], item.format, label), target[inverse.reshape(-1)]


def _connected(pieces: np.ndarray) -> list[list[int]]:
    """Rows of storage numbers that share a storage, directly or through others, in order."""
    group_of: dict[int, int] = {}
    groups: dict[int, list[int]] = {}
    for index, storages in enumerate(pieces.tolist()):
        members = [index]
        for other in sorted({group_of[s] for s in storages if s in group_of}):
            members = groups.pop(other) + members
        groups[index] = members
        for member in members:
            group_of.update(dict.fromkeys(pieces[member].tolist(), index))
    return sorted(sorted(members) for members in groups.values())


def _segments(builder: StorageBuilder, op: ChainOp) -> list[np.ndarray]:
    """Neighbouring vectors of a chain of which no two operands lie in one storage: a slice reads one vector per cycle.

    All of them if that is so, or if segments would be short.
    """
    whole = [np.arange(op.num_vectors)]
    if not all(isinstance(item, MemoryInput) for item in op.inputs):
        return whole
    plain = [item.refs[:, 0] for item in op.inputs if isinstance(item, MemoryInput) and not _is_skewed(builder, item)]
    if len(plain) < 2:
        return whole
    homes = np.stack(plain, axis=1)
    starts = [0, *(np.nonzero((homes[1:] != homes[:-1]).any(axis=1))[0] + 1).tolist()]
    seen: list[set[int]] = [set() for _ in plain]
    cuts: list[int] = []
    for start in starts:
        row = homes[start].tolist()
        if len(set(row)) < len(row):
            return whole
        if any(home in others for i, home in enumerate(row) for j, others in enumerate(seen) if i != j):
            seen = [set() for _ in plain]
            cuts.append(start)
        for home, mine in zip(row, seen, strict=True):
            mine.add(home)
    return np.split(whole[0], cuts) if len(cuts) * _MIN_SEGMENT <= op.num_vectors else whole


def _is_skewed(builder: StorageBuilder, item: MemoryInput) -> bool:
    return any(builder.storages[s].skewed for s in storages_of(item.refs))


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
        own = {s for s in storages_of(item.refs) if not builder.storages[s].skewed}
        if own & seen:
            more, refs = _copied(builder, item, builder.next_hemisphere(), (op.source, op.name))
            copies += more
            inputs[index] = MemoryInput(refs, item.format)
            own = set(storages_of(refs))
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
