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
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import numpy as np

from lpu_jax.lowering.passes.place import AllocatedGraph, op_reads, op_writes
from lpu_jax.lowering.passes.template import Flexible, Key, MemoryAccess, Template, stream_direction
from lpu_jax.lowering.passes.template_chain import chain_template
from lpu_jax.lowering.passes.template_permute import sxm_template
from lpu_jax.lowering.passes.tile_close import select_vectors
from lpu_jax.lowering.tile_ir import ChainOp, ScatterOutput, TileBlock, TileOp, num_parts
from lpu_jax.runtime.chip import ChipSpec
from lpu_jax.runtime.errors import ScheduleError
from lpu_jax.runtime.isa import sxm_queue


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


class Table:
    """Busy intervals [start, end) of one resource, sorted and disjoint."""

    __slots__ = ("ends", "starts")

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.ends: list[int] = []

    def free_from(self, start: int, end: int) -> int:
        """`start` if [start, end) is free, else the end of the last interval in the way."""
        index = bisect_left(self.starts, end)
        if index and self.ends[index - 1] > start:
            return self.ends[index - 1]
        return start

    def book(self, start: int, end: int) -> None:
        """Marks [start, end) busy; merges with neighbours that touch."""
        index = bisect_right(self.starts, start)
        if index and self.ends[index - 1] == start:
            self.ends[index - 1] = end
        else:
            self.starts.insert(index, start)
            self.ends.insert(index, end)


class Tables:
    """Reservation tables of a block, made on first use."""

    def __init__(self, chip: ChipSpec) -> None:
        self.chip = chip
        self.tables: dict[Key, Table] = {}

    def __getitem__(self, key: Key) -> Table:
        table = self.tables.get(key)
        if table is None:
            table = self.tables[key] = Table()
        return table

    def pool(self, flexible: Flexible) -> list[tuple[int, list[Key]]]:
        """(choice, table keys) of a flexible resource, in order of preference."""
        width = flexible.width
        if flexible.pool == "alu":
            return [(a, [("alu", a + i) for i in range(width)]) for a in range(0, self.chip.num_alus - width + 1)]
        if flexible.pool != "stream":
            first = 1 if flexible.pool == "transposer" else 1 + self.chip.num_transposers
            number = self.chip.num_transposers if flexible.pool == "transposer" else self.chip.num_distributors
            units = [sxm_queue(self.chip, flexible.hemisphere, first + i) for i in range(number)]
            return [
                (units[i], [("Q", unit) for unit in units[i : i + width]]) for i in range(0, number - width + 1, width)
            ]
        direction, count = stream_direction(flexible), self.chip.num_streams_per_direction
        bases = range(0, count - width + 1, width) if width > 1 else range(count - 1, -1, -1)
        base_id = direction * count
        return [(base_id + b, [("stream", base_id + b + i, flexible.hemisphere) for i in range(width)]) for b in bases]

    def fit(self, template: Template, earliest: int) -> tuple[int, tuple[int, ...]]:
        """Earliest time zero >= earliest at which a template fits, with the choices made."""
        fixed = [(self[key], start, end) for key, start, end in template.fixed]
        pools = [[(c, [self[key] for key in keys]) for c, keys in self.pool(f)] for f in template.flexible]
        if any(self._choose_alone(template.flexible, pool) for pool in ("stream", "alu", "transposer", "distributor")):
            raise ScheduleError("schedule: one op wants more streams or ALUs than the chip has")
        time = earliest
        while True:
            moved = self._next_fixed(fixed, time)
            if moved > time:
                time = moved
                continue
            chosen, moved = self._choose(template.flexible, pools, time)
            if chosen is not None:
                return time, chosen
            time = moved

    def _choose_alone(self, flexible: list[Flexible], pool: str) -> bool:
        """Whether an op finds no room for its resources of a pool even on an idle chip."""
        own = [item for item in flexible if item.pool == pool]
        idle = Tables(self.chip)
        pools = [[(c, [idle[key] for key in keys]) for c, keys in self.pool(item)] for item in own]
        return self._choose(own, pools, 0)[0] is None

    @staticmethod
    def _next_fixed(fixed: list[tuple[Table, int, int]], time: int) -> int:
        for table, start, end in fixed:
            free = table.free_from(time + start, time + end)
            if free > time + start:
                return free - start
        return time

    @staticmethod
    def _choose(
        flexible: list[Flexible], pools: list[list[tuple[int, list[Table]]]], time: int
    ) -> tuple[tuple[int, ...] | None, int]:
        """First free choice of every flexible resource; bookings of the same op count as taken."""
        chosen: list[int] = []
        own: list[tuple[Table, int, int]] = []
        for item, pool in zip(flexible, pools, strict=True):
            start, end = time + item.start, time + item.end
            wait = None
            for choice, tables in pool:
                if any(t is o and s < end and start < e for t in tables for o, s, e in own):
                    continue
                free = max(table.free_from(start, end) for table in tables)
                if free == start:
                    chosen.append(choice)
                    own += [(table, start, end) for table in tables]
                    break
                wait = free - start if wait is None else min(wait, free - start)
            else:  # taken by others, or by this op itself because others pushed its first choices aside
                return None, time + (wait or 1)
        return tuple(chosen), time

    def book(self, template: Template, time: int, chosen: tuple[int, ...]) -> None:
        """Books a template at a time zero."""
        for key, start, end in template.fixed:
            self[key].book(time + start, time + end)
        for item, choice in zip(template.flexible, chosen, strict=True):
            for option, keys in self.pool(item):
                if option == choice:
                    for key in keys:
                        self[key].book(time + item.start, time + item.end)
                    break


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


def _duration(template: Template) -> int:
    return template.last_cycle() - template.first_cycle() + 1


def _priorities(before: list[set[int]], lengths: list[int]) -> list[int]:
    """Longest path from the start of every op to the end of the block, in cycles."""
    path = list(lengths)
    for index in range(len(before) - 1, -1, -1):
        for predecessor in before[index]:
            path[predecessor] = max(path[predecessor], lengths[predecessor] + path[index])
    return path


class _Vectors:
    """Per storage and vector: cycle from which it can be read, and cycle of its last read."""

    def __init__(self, allocated: AllocatedGraph) -> None:
        self.allocated = allocated
        self.ready: dict[int, np.ndarray] = {}
        self.last_read: dict[int, np.ndarray] = {}

    def _of(self, table: dict[int, np.ndarray], storage: int) -> np.ndarray:
        if storage not in table:
            home = self.allocated.tiles.storages[storage]
            table[storage] = np.full(home.num_vectors * home.num_iterations, -(2**40), np.int64)
        return table[storage]

    def earliest(self, template: Template) -> int:
        """Smallest time zero at which every operand is ready and nothing still needed is overwritten."""
        time = -template.first_cycle()
        for access in template.reads:
            ready = self._of(self.ready, access.storage)[access.vectors]
            time = max(time, int((ready - access.cycles).max()))
        for access in template.writes:
            read = self._of(self.last_read, access.storage)[access.vectors]
            ready = self._of(self.ready, access.storage)[access.vectors]
            time = max(time, int((np.maximum(read + 1, ready) - access.cycles).max()))
            for other in self.allocated.reuses[access.storage]:
                last = max(
                    int(self.last_read[other].max()) if other in self.last_read else -(2**40),
                    int(self.ready[other].max()) if other in self.ready else -(2**40),
                )
                time = max(time, last + 1 - int(access.cycles.min()))
        return time

    def commit(self, template: Template, time: int, write_cycles: int) -> None:
        """Records the accesses of a scheduled op."""
        for access in template.reads:
            np.maximum.at(self._of(self.last_read, access.storage), access.vectors, access.cycles + time)
        for access in template.writes:
            table = self._of(self.ready, access.storage)
            np.maximum.at(table, access.vectors, access.cycles + time + write_cycles)


def _fit(memory: MemoryAccess, op: TileOp) -> list[tuple[TileOp, Template]]:
    """The template of an op; an op that would read and write one bank in the same cycles is done in halves."""
    count = num_parts(op)
    try:
        template = chain_template(memory, op) if isinstance(op, ChainOp) else sxm_template(memory, op)
        return [(op, template)]
    except ScheduleError:
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
    fitted = [part for op in block.ops for part in _fit(memory, op)]
    block, templates = dataclasses.replace(block, ops=tuple(op for op, _ in fitted)), [t for _, t in fitted]
    before = dependencies(allocated, block)
    after: list[list[int]] = [[] for _ in block.ops]
    for index, found in enumerate(before):
        for predecessor in found:
            after[predecessor].append(index)
    path = _priorities(before, [_duration(template) for template in templates])
    return _Work(block.ops, tuple(templates), before, after, path, block.num_iterations)


def _list_schedule(allocated: AllocatedGraph, work: _Work, priorities: Sequence[float]) -> ScheduledBlock:
    """Takes the ready op of the highest priority and gives it the earliest place, until none is left."""
    chip = allocated.tiles.chip
    missing = [len(found) for found in work.before]
    ready = [(-priorities[i], i) for i, count in enumerate(missing) if count == 0]
    heapq.heapify(ready)
    tables, vectors = Tables(chip), _Vectors(allocated)
    placed: list[ScheduledOp | None] = [None] * len(work.templates)
    while ready:
        _, index = heapq.heappop(ready)
        template = work.templates[index]
        time, chosen = tables.fit(template, vectors.earliest(template))
        tables.book(template, time, chosen)
        vectors.commit(template, time, chip.mem_write_cycles)
        placed[index] = ScheduledOp(work.ops[index], template, time, chosen)
        for successor in work.after[index]:
            missing[successor] -= 1
            if missing[successor] == 0:
                heapq.heappush(ready, (-priorities[successor], successor))
    ops = [op for op in placed if op is not None]
    assert len(ops) == len(work.templates), "the dependences of a block form no cycle"
    return ScheduledBlock(tuple(ops), block_cycles(chip, ops), work.num_iterations)


def block_cycles(chip: ChipSpec, ops: list[ScheduledOp]) -> int:
    """Cycles until every write of a block is done; the next block (or iteration) starts then."""
    return max((op.time_zero + op.template.last_cycle() for op in ops), default=0) + chip.mem_write_cycles


def verify_schedule(plan: Schedule) -> None:
    """Re-derives all bookings: no resource is used twice in a cycle, no operand is read before it is written."""
    chip = plan.allocated.tiles.chip
    for block in plan.blocks:
        spans: dict[Key, list[tuple[int, int]]] = {}
        tables = Tables(chip)
        for op in block.ops:
            for key, start, end in op.template.fixed:
                spans.setdefault(key, []).append((op.time_zero + start, op.time_zero + end))
            for item, choice in zip(op.template.flexible, op.chosen, strict=True):
                keys = dict(tables.pool(item))[choice]
                for key in keys:
                    spans.setdefault(key, []).append((op.time_zero + item.start, op.time_zero + item.end))
        for key, intervals in spans.items():
            intervals.sort()
            for (start, end), (following, _) in itertools.pairwise(intervals):
                if following < end:
                    raise ScheduleError(f"schedule: {key} booked twice, from {start} to {end} and at {following}")
