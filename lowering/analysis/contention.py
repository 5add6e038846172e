"""Which storages want the ports of MEM slices at the same time, and for how many cycles.

A slice reads one word and writes one word per cycle, and the two must lie in different banks. Two operands of one op in
one slice cost most: the op would meet itself and has to be cut up. Operands of ops that only overlap wait for each
other. A cost counts the cycles in which both are accessed: vectors of the same number, where operands stream side by
side, else the shorter one of two accesses.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter

import numpy as np

from lpu_jax.lowering.tile_ir import (
    ChainOp,
    GatherInput,
    IntArray,
    MatMulInput,
    MemoryInput,
    MemoryOutput,
    PermuteOp,
    TileBlock,
    TileGraph,
    TileOp,
    TransposeOp,
)

LONG_RUN = 64
"""Products of so many rows read and write their storages most of the time."""
_FEW_PAIRS = 256
"""So many pairs of storages are all kept apart: accesses of one op shift against each other."""
_SAME_OP = 8
"""A cycle in which an op meets itself costs as much as so many in which it meets another one: it runs in halves, and
every half has its latency."""


@dataclasses.dataclass(slots=True)
class Contention:
    """Cycles lost if two storages share a slice, and those lost only if they also share a bank (a read and a write)."""

    slice_cost: int = 0
    bank_cost: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Operand:
    """One operand or result of an op: how many words of every storage it reads or writes, a slice.

    order: the storage of every vector, if vectors stream one by one with those of other operands.
    """

    is_write: bool
    words: dict[int, int]
    order: IntArray | None = None


def contention(tiles: TileGraph) -> list[dict[int, Contention]]:
    """For every storage, those that should lie elsewhere."""
    found: list[dict[int, Contention]] = [{} for _ in tiles.storages]

    def add(one: Operand, other: Operand, weight: int) -> None:
        for a, b, cycles in _simultaneous(one, other):
            if a == b:
                continue
            for pair in (found[a].setdefault(b, Contention()), found[b].setdefault(a, Contention())):
                if one.is_write == other.is_write:
                    pair.slice_cost += weight * cycles
                else:
                    pair.bank_cost += weight * cycles

    for block in tiles.blocks:
        add(*_long_products(block), 1)
        for ops in side_by_side(tiles, block):
            for one, other in itertools.combinations([each for op in ops for each in operands(op)], 2):
                add(one, other, _SAME_OP)
    return found


def _simultaneous(one: Operand, other: Operand) -> list[tuple[int, int, int]]:
    """(storage, other storage, cycles in which both are accessed)."""
    if one.order is None or other.order is None or len(one.words) * len(other.words) <= _FEW_PAIRS:
        pairs = itertools.product(one.words.items(), other.words.items())
        return [(a, b, min(words, others)) for (a, words), (b, others) in pairs]
    count = min(len(one.order), len(other.order))
    both, cycles = np.unique(np.stack([one.order[:count], other.order[:count]]), axis=1, return_counts=True)
    return [(int(a), int(b), int(n)) for a, b, n in zip(*both, cycles, strict=True)]


def companions(tiles: TileGraph) -> dict[int, int]:
    """For storages of chains that run side by side: the number of the operand that a storage is part of.

    One operand of one such chain should lie in one slice group, so that its neighbours find slices of their own.
    """
    found: dict[int, int] = {}
    numbers = itertools.count()
    for block in tiles.blocks:
        for ops in side_by_side(tiles, block):
            for operand in (operand for op in ops if len(ops) > 1 for operand in operands(op)):
                number = next(numbers)
                for storage in operand.words:
                    found.setdefault(storage, number)
    return found


def side_by_side(tiles: TileGraph, block: TileBlock) -> list[list[TileOp]]:
    """The ops of a block; neighbours that are parts of one chain and may run at once are together."""
    numbers = itertools.count()

    def key(op: TileOp) -> tuple[object, ...]:
        if not isinstance(op, ChainOp) or not all(isinstance(item, MemoryInput) for item in op.inputs):
            return (next(numbers),)
        sides = [tiles.storages[next(iter(operand.words))].hemisphere for operand in operands(op)]
        return (*op.steps, op.source, op.name, *sides)

    return [list(ops) for _, ops in itertools.groupby(block.ops, key=key)]


def streamed(block: TileBlock) -> set[int]:
    """Storages of the activations of all long products of a block."""
    return set(_long_products(block)[0].words)


def _long_products(block: TileBlock) -> tuple[Operand, Operand]:
    """The activations and the results of all long products of a block: they overlap."""
    activations: Counter[int] = Counter()
    results: Counter[int] = Counter()
    for op in block.ops:
        products = [i for i in op.inputs if isinstance(i, MatMulInput)] if isinstance(op, ChainOp) else []
        if products and len(products[0].activations[0]) >= LONG_RUN:
            for refs in (refs for item in products for refs in item.activations):
                activations.update(_words(refs))
            for operand in operands(op):
                results.update(operand.words if operand.is_write else {})
    return Operand(False, activations), Operand(True, results)


def operands(op: TileOp) -> list[Operand]:
    """What one op reads and writes at the same time."""
    if isinstance(op, TransposeOp):
        return [_streaming(False, op.source_refs), _streaming(True, op.targets)]
    if isinstance(op, PermuteOp):
        return [_streaming(False, op.source_refs), _streaming(False, op.maps), _streaming(True, op.targets)]
    found: list[Operand] = []
    for item in op.inputs:
        if isinstance(item, MemoryInput):
            found.append(_streaming(False, item.refs))
        elif isinstance(item, GatherInput):
            found += [_streaming(False, item.maps), Operand(False, {item.table: op.num_vectors})]
        else:
            activations: Counter[int] = Counter()
            for refs in item.activations:
                activations.update(_words(refs))
            weights: Counter[int] = Counter()
            for weight in item.weights:
                weights[weight.storage] += weight.num_rows
            found += [Operand(False, activations), Operand(False, weights)]
    for output in op.outputs:
        if isinstance(output, MemoryOutput):
            found.append(_streaming(True, output.refs))
        else:
            found += [_streaming(False, output.maps), Operand(True, {output.table: op.num_vectors})]
    return found


def _streaming(is_write: bool, refs: IntArray) -> Operand:
    return Operand(is_write, _words(refs), refs[:, 0])


def _words(refs: IntArray) -> dict[int, int]:
    storages, counts = np.unique(refs[:, 0], return_counts=True)
    return dict(zip(storages.tolist(), counts.tolist(), strict=True))
