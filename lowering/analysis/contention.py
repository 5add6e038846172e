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
from collections.abc import Iterator

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
from lpu_jax.runtime.chip import Hemisphere

LONG_RUN = 16
"""Products of so many rows read and write their storages most of the time."""
_FEW_PAIRS = 256
"""So many pairs of storages are all kept apart: accesses of one op shift against each other."""
_SAME_OP = 8
"""A cycle in which an op meets itself costs as much as so many in which it meets another one: it runs in halves, and
every half has its latency."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Contention:
    """Cycles that pairs of storages lose: for storage s those at starts[s] : starts[s + 1]; every pair is there twice.

    slice_cost: lost if the two share a slice; bank_cost: lost only if they also share a bank (a read and a write).
    """

    starts: IntArray
    others: IntArray
    slice_cost: IntArray
    bank_cost: IntArray

    def of(self, storage: int) -> tuple[IntArray, IntArray, IntArray]:
        """Those that should lie elsewhere than a storage, with both costs."""
        part = slice(self.starts[storage], self.starts[storage + 1])
        return self.others[part], self.slice_cost[part], self.bank_cost[part]


@dataclasses.dataclass(frozen=True, slots=True)
class Operand:
    """One operand or result of an op: how many words of every storage it reads or writes, a slice.

    order: the storage of every vector, if vectors stream one by one with those of other operands.
    """

    is_write: bool
    words: dict[int, int]
    order: IntArray | None = None


_Pairs = tuple[IntArray, IntArray, IntArray]
"""Storages, others, and the cycles in which both are accessed."""


def contention(tiles: TileGraph) -> Contention:
    """For every storage, those that should lie elsewhere."""
    count = len(tiles.storages)
    found: tuple[list[_Pairs], list[_Pairs]] = ([], [])  # two reads or two writes; a read and a write

    def add(one: Operand, other: Operand, weight: int) -> None:
        a, b, cycles = _simultaneous(one, other, count)
        found[one.is_write != other.is_write].append((a, b, weight * cycles))

    for block in tiles.blocks:
        add(*_long_products(block), 1)
        for one, other in _on_other_planes(block):
            add(one, other, 1)
        for ops in side_by_side(tiles, block):
            for one, other in itertools.combinations([each for op in ops for each in operands(op)], 2):
                add(one, other, _SAME_OP)
    return _summed(found, count)


def _summed(found: tuple[list[_Pairs], list[_Pairs]], count: int) -> Contention:
    """Adds up the costs of every pair of `count` storages, in both directions."""
    kinds: list[tuple[IntArray, IntArray]] = []
    none = np.zeros(0, np.int64)
    for pairs in found:
        a, b, cycles = (np.concatenate(column) for column in zip((none, none, none), *pairs, strict=True))
        apart = a != b
        a, b, cycles = a[apart], b[apart], cycles[apart]
        kinds.append((np.concatenate([a * count + b, b * count + a]), np.concatenate([cycles, cycles])))
    keys = np.sort(np.concatenate([key for key, _ in kinds]))
    keys = keys[np.diff(keys, prepend=-1) != 0]
    costs = np.zeros((len(kinds), len(keys)), np.int64)
    for cost, (key, cycles) in zip(costs, kinds, strict=True):
        np.add.at(cost, np.searchsorted(keys, key), cycles)
    starts = np.searchsorted(keys, np.arange(count + 1) * count)
    return Contention(starts, keys % max(count, 1), *costs)


def _simultaneous(one: Operand, other: Operand, count: int) -> _Pairs:
    """Pairs of `count` storages, one of each operand; in which cycles both are accessed."""
    if one.order is None or other.order is None or len(one.words) * len(other.words) <= _FEW_PAIRS:
        (a, words), (b, others) = (
            np.array([*operand.words.items()], np.int64).reshape(-1, 2).T for operand in (one, other)
        )
        return np.repeat(a, len(b)), np.tile(b, len(a)), np.minimum(words[:, None], others).reshape(-1)
    length = min(len(one.order), len(other.order))
    both, cycles = np.unique(one.order[:length] * count + other.order[:length], return_counts=True)
    return both // count, both % count, cycles


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


def _on_other_planes(block: TileBlock) -> Iterator[tuple[Operand, Operand]]:
    """Activations of products of one source on different planes of a hemisphere: they stream at the same time."""
    groups: dict[tuple[str, str, Hemisphere], dict[int, Counter[int]]] = {}
    for op in block.ops:
        for item in op.inputs if isinstance(op, ChainOp) else ():
            if isinstance(item, MatMulInput) and len(item.activations[0]) >= LONG_RUN:
                planes = groups.setdefault((op.source, op.name, item.hemisphere), {})
                for refs in item.activations:
                    planes.setdefault(item.plane, Counter()).update(_words(refs))
    for planes in groups.values():
        for one, other in itertools.combinations(planes.values(), 2):
            yield Operand(False, one), Operand(False, other)


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
    ids = refs[:, 0]
    if (ids == ids[:1]).all():
        return dict.fromkeys(ids[:1].tolist(), len(ids))
    first = int(ids.min())
    counts = np.bincount(ids - first)
    storages = np.flatnonzero(counts)
    return dict(zip((storages + first).tolist(), counts[storages].tolist(), strict=True))
