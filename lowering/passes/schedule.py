"""schedule: AllocatedGraph -> Schedule. List scheduling on reservation tables with backfilling.

Tile ops are taken by critical path (longest chain of latencies to the end of the block) among those whose
predecessors are scheduled; each gets the earliest time zero at which its template fits and its operands are ready,
in any gap of the tables. Operand readiness is kept per vector, so a consumer follows its producer vector by vector.
Each block is scheduled once, whatever its trip count. Cost: O(ops * bookings * log(intervals)).
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from lpu_jax.lowering.passes.memory_access import MemoryAccess
from lpu_jax.lowering.passes.place import AllocatedGraph, op_reads, op_writes
from lpu_jax.lowering.passes.reservations import Tables
from lpu_jax.lowering.passes.schedule_product import MAX_GAP, Placement, Planes, ProductPlacer
from lpu_jax.lowering.passes.template import Access, Product, Template
from lpu_jax.lowering.passes.template_chain import chain_template
from lpu_jax.lowering.passes.template_permute import sxm_template
from lpu_jax.lowering.passes.tile_close import select_vectors
from lpu_jax.lowering.tile_ir import (
    ChainOp,
    MatMulInput,
    MemoryInput,
    MemoryOutput,
    PermuteOp,
    ScatterOutput,
    TileBlock,
    TileOp,
    num_parts,
)
from lpu_jax.runtime.chip import ChipSpec
from lpu_jax.runtime.errors import ChipLimitError, ScheduleError
from lpu_jax.runtime.progress import progress

LATER = 128
"""Sums are read after the products that are this much less urgent: results find gaps between loads, while a load does
not find a gap between results. Only long runs of sums are read at once, as they empty the accumulators."""
NOW = 2**40
"""More cycles than any block takes."""
MAX_RUN = 32
"""An op of at least twice as many vectors is scheduled in equal parts of so many or a few more."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class ScheduledOp:
    """A tile op with its time zero (cycles from the start of its block) and its choice per flexible resource."""

    op: TileOp
    template: Template
    time_zero: int
    chosen: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class ScheduledBlock:
    """A block: its ops, the cycles of one iteration, and how often it runs."""

    ops: tuple[ScheduledOp, ...]
    period_cycles: int
    num_iterations: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Schedule:
    """When everything happens. Blocks run one after the other, the first one after the chip barrier."""

    allocated: AllocatedGraph
    blocks: tuple[ScheduledBlock, ...]


def schedule(allocated: AllocatedGraph, *, num_orders: int = 1) -> Schedule:
    """Schedules every block; of several orders of its ops the shortest schedule is kept.

    Args:
      allocated: a verified AllocatedGraph.
      num_orders: how many orders to try: first by critical path, then with its lengths stretched at random.
    """
    return Schedule(
        allocated=allocated,
        blocks=tuple(_best_block(allocated, block, num_orders) for block in allocated.tiles.blocks),
    )


_LARGEST_STRETCHES = (0.02, 0.1, 0.3)
"""By how much a critical path may be stretched at most, in turn: near orders often win in loops, far ones in wide
blocks."""


def _best_block(allocated: AllocatedGraph, block: TileBlock, num_orders: int) -> ScheduledBlock:
    """The shortest of `num_orders` schedules, the first one if several are; seeded, so equal calls agree."""
    work = _work(allocated, block)
    best = _list_schedule(allocated, work, work.path)
    for seed in range(1, num_orders):
        stretch = 1 + _LARGEST_STRETCHES[seed % 3] * np.random.default_rng(seed).random(len(work.path))
        found = _list_schedule(allocated, work, (stretch * work.path).tolist())
        best = min(best, found, key=lambda each: each.period_cycles)
    return best


def dependencies(allocated: AllocatedGraph, block: TileBlock) -> list[set[int]]:
    """Predecessors of every op of a block: writers of what it reads (RAW), and for every storage it writes the
    readers and writers before it (WAR, WAW), also of storages whose addresses it takes over."""
    before: list[set[int]] = []
    writers: dict[int, list[int]] = {}
    readers: dict[int, list[int]] = {}
    for index, op in enumerate(block.ops):
        reads, writes = set(op_reads(op)), set(op_writes(op))
        found: set[int] = set()
        outputs = op.outputs if isinstance(op, ChainOp) else ()
        tables = {output.table for output in outputs if isinstance(output, ScatterOutput)}
        for storage in reads:
            found.update(writers.get(storage, ()))
        for storage in writes:
            for other in (storage, *allocated.reuses[storage]):
                found.update(readers.get(other, ()))
                if other != storage or storage in tables:
                    found.update(writers.get(other, ()))
        found.discard(index)
        before.append(found)
        for storage in reads:
            readers.setdefault(storage, []).append(index)
        for storage in writes:
            writers.setdefault(storage, []).append(index)
    return before


def _duration(chip: ChipSpec, template: Template) -> int:
    """Cycles from the first operand of an op to its last result."""
    product, last = template.product, template.last_cycle()
    if product is None:
        return last - template.first_cycle() + 1
    work = sum(max(tile.load_cycles, tile.span) for tile in product.tiles)
    return last - product.acc + chip.mxm_multiply_cycles + work - product.tiles[0].multiply.first_cycle()


def _priorities(before: list[set[int]], lengths: list[int]) -> list[int]:
    """Longest path from the start of every op to the end of the block, in cycles."""
    path = list(lengths)
    for index in range(len(before) - 1, -1, -1):
        for predecessor in before[index]:
            path[predecessor] = max(path[predecessor], lengths[predecessor] + path[index])
    return path


class _Vectors:
    """Per storage and vector: cycle from which it can be read, and cycle of its last read.

    Only storages that the block writes, and those whose addresses they take over, have to be known.
    """

    def __init__(self, allocated: AllocatedGraph, ops: Sequence[TileOp]) -> None:
        self.allocated = allocated
        written = {storage for op in ops for storage in op_writes(op)}
        self.known = written | {other for storage in written for other in allocated.reuses[storage]}
        self.ready: dict[int, np.ndarray] = {}
        self.last_read: dict[int, np.ndarray] = {}
        self.last: dict[int, int] = {}  # cycle from which all of a storage can be read, or of its last read

    def earliest(self, template: Template) -> int:
        """Smallest time zero at which every operand is ready and nothing still needed is overwritten."""
        time = -template.first_cycle()
        for access in template.reads:
            ready = self.ready.get(access.storage)
            if ready is not None:
                time = max(time, int((ready[access.vectors] - access.cycles).max()))
        for access in template.writes:
            for table, later in ((self.last_read, 1), (self.ready, 0)):
                cycles = table.get(access.storage)
                if cycles is not None:
                    time = max(time, int((cycles[access.vectors] - access.cycles).max()) + later)
            last = max((self.last.get(other, -NOW) for other in self.allocated.reuses[access.storage]), default=-NOW)
            if last > -NOW:
                time = max(time, last + 1 - int(access.cycles.min()))
        return time

    def commit(self, template: Template, time: int, write_cycles: int) -> None:
        """Records the accesses of a scheduled op."""
        for access in template.reads:
            if access.storage in self.known:
                self._record(self.last_read, access, time)
        for access in template.writes:
            self._record(self.ready, access, time + write_cycles)

    def _record(self, table: dict[int, np.ndarray], access: Access, time: int) -> None:
        if access.storage not in table:
            home = self.allocated.tiles.storages[access.storage]
            table[access.storage] = np.full(home.num_vectors * home.num_iterations, -NOW, np.int64)
        cycles = access.cycles + time
        np.maximum.at(table[access.storage], access.vectors, cycles)
        self.last[access.storage] = max(self.last.get(access.storage, -NOW), int(cycles.max()))


def _cut(op: TileOp) -> list[TileOp]:
    """An op of many vectors in parts, which find room between others sooner than the whole does."""
    count = num_parts(op) // MAX_RUN
    if count < 2 or not _is_divisible(op):
        return [op]
    edges = [i * num_parts(op) // count for i in range(count + 1)]
    return [select_vectors(op, np.arange(start, stop)) for start, stop in itertools.pairwise(edges)]


def _has_products(block: TileBlock) -> bool:
    """Whether loads and sums have to find room; chains alone fill their streams best in long runs."""
    inputs = (item for op in block.ops if isinstance(op, ChainOp) for item in op.inputs)
    return any(isinstance(item, MatMulInput) for item in inputs)


def _is_divisible(op: TileOp) -> bool:
    """Whether the parts of an op cost no more than the whole: products would load their weights again."""
    if isinstance(op, ChainOp):
        inputs = all(isinstance(item, MemoryInput) for item in op.inputs)
        return inputs and all(isinstance(item, MemoryOutput) for item in op.outputs)
    return isinstance(op, PermuteOp)


def _fit(memory: MemoryAccess, op: TileOp) -> list[tuple[TileOp, Template]]:
    """The template of an op; an op that would read and write one bank in the same cycles, or hold an operand for too
    long while others are read, is done in halves."""
    count = num_parts(op)
    try:
        template = chain_template(memory, op) if isinstance(op, ChainOp) else sxm_template(memory, op)
        return [(op, template)]
    except (ScheduleError, ChipLimitError):
        if count == 1:
            raise
        parts = (np.arange(count // 2), np.arange(count // 2, count))
        return [pair for vectors in parts for pair in _fit(memory, select_vectors(op, vectors))]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Work:
    """What has to be scheduled in a block: ops with templates, who comes before and after whom, and critical paths in
    cycles."""

    ops: tuple[TileOp, ...]
    templates: tuple[Template, ...]
    before: list[set[int]]
    after: list[list[int]]
    path: list[int]
    num_iterations: int


def _work(allocated: AllocatedGraph, block: TileBlock) -> _Work:
    memory = MemoryAccess(allocated, block)
    parts = [part for op in block.ops for part in _cut(op)] if _has_products(block) else block.ops
    fitted = [fitting for op in parts for fitting in _fit(memory, op)]
    block, templates = dataclasses.replace(block, ops=tuple(op for op, _ in fitted)), [t for _, t in fitted]
    before = dependencies(allocated, block)
    after: list[list[int]] = [[] for _ in block.ops]
    for index, found in enumerate(before):
        for predecessor in found:
            after[predecessor].append(index)
    path = _priorities(before, [_duration(allocated.tiles.chip, template) for template in templates])
    return _Work(block.ops, tuple(templates), before, after, path, block.num_iterations)


def _list_schedule(allocated: AllocatedGraph, work: _Work, priorities: Sequence[float]) -> ScheduledBlock:
    """Takes the ready op of the highest priority and gives it the earliest place, until none is left."""
    missing = [len(found) for found in work.before]
    scheduler = _Scheduler(allocated, work, priorities)
    scheduler.queue(i for i, count in enumerate(missing) if count == 0)
    with progress("Scheduling", total=len(missing)) as bar:
        while scheduler.ready:
            for index in scheduler.next():
                bar.advance()
                for successor in work.after[index]:
                    missing[successor] -= 1
                    scheduler.queue([successor] if missing[successor] == 0 else [])
    ops = [op for op in scheduler.placed if op is not None]
    assert len(ops) == len(work.templates), "the dependences of a block form no cycle"
    return ScheduledBlock(tuple(ops), block_cycles(allocated.tiles.chip, ops), work.num_iterations)


class _Scheduler:
    """Ready ops of a block by priority, and where the ones before them were placed."""

    def __init__(self, allocated: AllocatedGraph, work: _Work, path: Sequence[float]) -> None:
        self.chip, self.ops, self.templates, self.path = allocated.tiles.chip, work.ops, work.templates, path
        self.tables, self.vectors = Tables(self.chip), _Vectors(allocated, work.ops)
        self.placer = ProductPlacer(self.chip, self.tables, self.vectors.earliest)
        self.placed: list[ScheduledOp | None] = [None] * len(work.templates)
        self.ready: list[tuple[float, int, int]] = []
        self.products: dict[Planes, list[tuple[float, int]]] = {}
        self.sums: dict[int, Placement] = {}

    def queue(self, indices: Iterable[int]) -> None:
        """Ops whose predecessors are placed."""
        for index in indices:
            entry, product = self._entry(index), self.templates[index].product
            heapq.heappush(self.ready, (*entry, 0))
            if product is not None:
                heapq.heappush(self.products.setdefault((product.hemisphere, product.planes), []), entry)

    def _entry(self, index: int) -> tuple[float, int]:
        """Sort key of an op: the cycles to the end of the block, for a product those behind its loads (of products
        that wait for one plane, the one with the longest way to go after it comes first)."""
        product = self.templates[index].product
        work = sum(max(tile.load_cycles, tile.span) for tile in product.tiles) if product else 0
        return work - self.path[index], index

    def next(self) -> list[int]:
        """Places the op (or part) with the longest way to the end; returns the numbers of the ops that are done.

        A product and the chain that reads its sums are two turns: sums wait in accumulators while loads go on.
        """
        _, index, turn = heapq.heappop(self.ready)
        template = self.templates[index]
        if template.product is None:
            time, chosen = self.tables.fit(template, self.vectors.earliest(template))
            self.tables.book(template, time, chosen)
            self.vectors.commit(template, time, self.chip.mem_write_cycles)
            self.placed[index] = ScheduledOp(self.ops[index], template, time, chosen)
            return [index]
        if turn:
            return self._read_sums(index) if index in self.sums else []
        done = []
        while not self.placer.has_room(template.product):
            done += self._read_sums(next(i for i in self.sums if self._shares_planes(i, template.product)))
        self._multiply(index, template, template.product)
        return done

    def _shares_planes(self, index: int, product: Product) -> bool:
        other = self.sums[index].product
        return other.hemisphere == product.hemisphere and bool(set(other.planes) & set(product.planes))

    def _multiply(self, index: int, chain: Template, product: Product) -> None:
        """Places loads and multiplications; the chain that reads the sums becomes ready."""
        waiting = self.products[product.hemisphere, product.planes]
        waiting.remove(self._entry(index))
        heapq.heapify(waiting)
        follower = self.templates[waiting[0][1]].product if waiting else None
        beside = [
            (found[0][1], self.templates[found[0][1]].product)
            for (side, planes), found in self.products.items()
            if side == product.hemisphere and planes != product.planes and found
        ]
        if any(tile.span > MAX_GAP for tile in product.tiles):
            for other, waits in beside:
                if waits is not None and not set(waits.planes) & set(product.planes):
                    self.placer.load_beside(other, waits)
        placement = self.placer.place(index, product, (waiting[0][1], follower) if follower else None, bool(beside))
        for piece, begin, _ in placement.pieces:
            self.vectors.commit(piece, begin, self.chip.mem_write_cycles)
        self.sums[index] = placement
        before = _duration(self.chip, chain) - (chain.last_cycle() - product.acc)
        is_short = all(tile.span <= MAX_GAP for tile in product.tiles) and len(product.planes) == 1
        urgency: float = self.path[index] - before - LATER if is_short else NOW
        heapq.heappush(self.ready, (-urgency, index, 1))

    def _read_sums(self, index: int) -> list[int]:
        """Places the chain behind a product."""
        chain, placement = self.templates[index], self.sums.pop(index)
        earliest = max(self.vectors.earliest(chain), placement.complete - placement.product.acc)
        time, chosen = self.tables.fit(chain, earliest)
        self.tables.book(chain, time, chosen)
        self.vectors.commit(chain, time, self.chip.mem_write_cycles)
        whole, chosen = placement.join(chain, time, chosen)
        self.placed[index] = ScheduledOp(self.ops[index], whole, time, chosen)
        return [index]


def block_cycles(chip: ChipSpec, ops: list[ScheduledOp]) -> int:
    """Cycles until every write of a block is done; the next block (or iteration) starts then."""
    return max((op.time_zero + op.template.last_cycle() for op in ops), default=0) + chip.mem_write_cycles
