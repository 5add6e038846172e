"""Places the pieces of matrix products: loads ahead of their activations, multiplications in the gaps between loads.

  plane   LW 0 | LW 1 | LW 2 | ...          each load leaves a gap for the activations of the tile before it,
                 ABC 0  ABC 1  ABC 2        which still is installed then; ACC follows the last ABC, soon or later

When the last tile of a product is loaded, the first load of the next product of its plane is placed at once, so that
the last multiplication finds its gap like all others. Tiles that are installed already are not loaded again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from lpu_jax.lowering.passes.reservation_table import Table
from lpu_jax.lowering.passes.reservations import Tables
from lpu_jax.lowering.passes.template import ACCUMULATOR, Access, Key, Product, ProductTile, Row, Slot, Template
from lpu_jax.runtime.chip import ChipSpec, Hemisphere
from lpu_jax.runtime.isa import MXM_WEIGHTS, Opcode, mxm_queue

MAX_GAP = 20
"""Loads leave a gap for activations of up to so many cycles; longer ones run beside the loads."""
MAX_IDLE = 256
"""A tile stays installed so many cycles for the next product that uses it."""
MAX_AHEAD = 32
"""The next product's first load is placed ahead if its activations come so soon after it."""

FOREVER = 2**40

Piece = tuple[Template, int, tuple[int, ...]]
Planes = tuple[Hemisphere, tuple[int, ...]]


@dataclasses.dataclass(slots=True)
class _Tenure:
    """The tile that was installed last: its weights, its rows, and the end of its last multiplication."""

    weights: tuple[int, int, int]
    rows: int
    free: int


@dataclasses.dataclass(slots=True)
class _Ahead:
    """The first load of a product (op index), placed before its turn."""

    index: int
    piece: Piece


class ProductPlacer:
    """Places products on the reservation tables of a block."""

    def __init__(self, chip: ChipSpec, tables: Tables, earliest: Callable[[Template], int]) -> None:
        self.chip, self.tables, self.earliest = chip, tables, earliest
        self.tenures: dict[Planes, _Tenure] = {}
        self.ahead: dict[Planes, _Ahead] = {}

    def place(self, index: int, product: Product, follower: tuple[int, Product] | None, is_crowded: bool) -> Placement:
        """Books loads, installs and multiplications of a product; the sums are complete at `Placement.complete`.

        follower: the product that will probably come next on the same planes, with its op index.
        is_crowded: products wait for the other planes of the hemisphere, too.
        """
        key = (product.hemisphere, product.planes)
        given = None
        for planes in [p for p in self.ahead if p[0] == key[0] and set(p[1]) & set(key[1])]:
            ahead = self.ahead.pop(planes)
            if ahead.index == index:
                given = ahead.piece
            else:
                self.tables.release(*ahead.piece)
        start = 0
        while True:
            attempt = Placement(self, product, given, is_crowded)
            blocked = attempt.run(start, follower)
            if blocked is None:
                self._settle(key, attempt)
                return attempt
            attempt.undo()
            given, start = None, max(start + 1, blocked)

    def load_beside(self, index: int, product: Product) -> None:
        """Places the first load of a product whose planes wait for it while another plane of its hemisphere goes first:
        the activations of that one would be in the way of the load for as long as they stream."""
        key, tile = (product.hemisphere, product.planes), product.tiles[0]
        tenure = self.tenures.get(key)
        if key in self.ahead or (tenure is not None and tenure.weights == tile.weights):
            return
        arrives = self.earliest(tile.multiply) - self.chip.mxm_install_tail_cycles - tile.load_cycles + 1
        ready = max(self.earliest(tile.load), arrives)
        piece = self.early_load(product, ready)
        if piece is not None and piece[1] <= ready + MAX_AHEAD:
            self.tables.book(*piece)
            self.ahead[key] = _Ahead(index, piece)

    def early_load(self, product: Product, ready: int) -> Piece | None:
        """The first load of a product from cycle `ready` on, on the streams of its plane; None if a weight buffer is
        taken then."""
        side, planes, tile = product.hemisphere, product.planes, product.tiles[0]
        load = own_streams(self.chip, tile.load, planes[0]) if len(planes) == 1 else tile.load
        time, chosen = self.tables.fit(load, ready)
        buffers = [self.tables["buffer", side, plane] for plane in planes]
        is_taken = any(buffer.free_from(time, time + tile.load_cycles + 1) > time for buffer in buffers)
        return None if is_taken else (load, time, chosen)

    def has_room(self, product: Product) -> bool:
        """Whether accumulators are free, or will be at a known time."""
        choices = self.tables.choices(product.accumulator).values()
        return any(all(not table.ends or table.ends[-1] < FOREVER for table in tables) for tables in choices)

    def _settle(self, key: Planes, attempt: Placement) -> None:
        for planes in [p for p in self.tenures if p[0] == key[0] and set(p[1]) & set(key[1])]:
            del self.tenures[planes]
        self.tenures[key] = attempt.tenure()
        attempt.keep_accumulators()
        if attempt.ahead is not None:
            self.ahead[key] = attempt.ahead


class Placement:
    """One product on its way: pieces placed so far, and what is booked of its planes."""

    def __init__(self, placer: ProductPlacer, product: Product, given: Piece | None, is_crowded: bool) -> None:
        self.placer, self.product, self.given, self.is_crowded = placer, product, given, is_crowded
        self.chip, self.tables = placer.chip, placer.tables
        self.side, self.planes = product.hemisphere, product.planes
        self.pieces: list[Piece] = []
        self.spans: list[tuple[Key, int, int]] = []
        self.accumulator = 0
        self.first = 0  # first ABC
        self.complete = 0  # first ACC may come here
        self.installed = 0  # from here on the installed tile is booked
        self.multiplied = 0  # end of the last multiplication
        self.last_install = -(2**40)
        self.ahead: _Ahead | None = None
        self.used_rows = 0

    # Bookings ---------------------------------------------------------------------------------------------------

    def undo(self) -> None:
        """Takes all bookings back."""
        for piece in self.pieces:
            self.tables.release(*piece)
        for key, start, end in self.spans:
            self.tables[key].release(start, end)
        if self.ahead is not None:
            self.tables.release(*self.ahead.piece)
        if self.given is not None and not any(piece is self.given for piece in self.pieces):
            self.tables.release(*self.given)

    def _add(self, template: Template, earliest: int) -> int:
        time, chosen = self.tables.fit(template, earliest)
        self.tables.book(template, time, chosen)
        self.pieces.append((template, time, chosen))
        return time

    def _span(self, name: str, start: int, end: int) -> int | None:
        """Books a property of all planes; where it is taken, returns the end of the booking in the way."""
        keys: list[Key] = [(name, self.side, plane) for plane in self.planes]
        taken = max(self.tables[key].free_from(start, end) for key in keys)
        if taken > start:
            return taken
        for key in keys:
            if start < end:
                self.tables[key].book(start, end)
                self.spans.append((key, start, end))
        return None

    def _free_accumulators(self) -> int:
        """Chooses the accumulators that are free soonest, for good; returns the cycle."""
        soonest = None
        for base, tables in self.tables.choices(self.product.accumulator).items():
            free = max(table.ends[-1] if table.ends else -(2**40) for table in tables)
            if soonest is None or free < soonest:
                soonest, self.accumulator = free, base
        assert soonest is not None
        return soonest

    # Pieces -----------------------------------------------------------------------------------------------------

    def run(self, start: int, follower: tuple[int, Product] | None) -> int | None:
        """Places everything from cycle `start` on; returns a later start if other products are in the way."""
        tiles, tail = self.product.tiles, self.chip.mxm_install_tail_cycles
        ready = [self.placer.earliest(tile.multiply) for tile in tiles]
        ready[0] = max(ready[0], self._free_accumulators())
        lead = tiles[0].load_cycles + tail
        # a tile that stayed installed was in the way of others: it is loaded again later
        pending = self._reuse(tiles[0], ready[0]) if self.given is None and start == 0 else False
        if pending:
            self.multiplied = max(self.multiplied, self.installed)
        free = start
        for k, tile in enumerate(tiles):
            if k == 0 and pending:
                self.used_rows = self.placer.tenures[self.side, self.planes].rows
                free = self.multiplied
                continue
            if k and tile.weights == tiles[k - 1].weights and tile.rows <= self.used_rows:
                blocked = self._multiply(k - 1, ready[k - 1])
                if blocked is not None:
                    return blocked - lead
                continue
            load = self._load(k, max(free, start), ready[0] - tail - tile.load_cycles + 1)
            if k:
                blocked = self._multiply(k - 1, ready[k - 1])
                if blocked is not None:
                    return blocked - lead
            free, blocked = self._install(tile, load)
            if blocked is not None:
                return blocked if k == 0 else blocked - lead
        self._load_ahead(follower, free)
        blocked = self._multiply(len(tiles) - 1, ready[-1])
        return None if blocked is None else blocked - lead

    def _reuse(self, tile: ProductTile, ready: int) -> bool:
        """Whether the first tile is installed already and may stay until its activations come."""
        tenure = self.placer.tenures.get((self.side, self.planes))
        if tenure is None or tenure.weights != tile.weights or tenure.rows < tile.rows:
            return False
        if ready - tenure.free > MAX_IDLE:
            return False
        time, _ = self.tables.fit(tile.multiply, max(ready, tenure.free))
        keys = [("weights", self.side, plane) for plane in self.planes]
        if any(self.tables[key].free_from(tenure.free, time + tile.span) > tenure.free for key in keys):
            return False
        self.installed = tenure.free
        return True

    def _load(self, k: int, free: int, just_in_time: int) -> int:
        """Places a load; the first one just in time for its activations, or before if it would come late."""
        load = self.product.tiles[k].load
        if k == 0 and self.given is not None:
            self.pieces.append(self.given)
            return self.given[1]
        ready = max(free, self.placer.earliest(load))
        best, time = self._best_load(k, max(ready, just_in_time) if k == 0 else ready)
        if k == 0 and time > just_in_time > ready:
            sooner, before = self._best_load(k, max(ready, just_in_time - 4 * MAX_GAP))
            best, time = (sooner, before) if before < time else (best, time)
        return self._add(best, time)

    def _fit_load(self, load: Template, k: int, earliest: int) -> int:
        """First cycle from which the load fits and the weight buffers are free for it."""
        tile = self.product.tiles[k]
        buffers: list[Table] = [self.tables["buffer", self.side, plane] for plane in self.planes]
        while True:
            time, _ = self.tables.fit(load, earliest)
            earliest = max(buffer.free_from(time, time + tile.load_cycles + 1) for buffer in buffers)
            if earliest <= time:
                return time

    def _best_load(self, k: int, earliest: int) -> tuple[Template, int]:
        """The load and its first cycle; each plane keeps to its own streams unless it would wait long for them."""
        load = self.product.tiles[k].load
        time = self._fit_load(load, k, earliest)
        if len(self.planes) > 1:
            return load, time
        own = own_streams(self.chip, load, self.planes[0])
        own_time = self._fit_load(own, k, earliest)
        return (own, own_time) if own_time <= time + MAX_GAP else (load, time)

    def _install(self, tile: ProductTile, load: int) -> tuple[int, int | None]:
        """Places IW; returns the cycle from which the next load may come, and what is in the way."""
        chip, queue = self.chip, mxm_queue(self.chip, self.side, self.planes[0], MXM_WEIGHTS)
        tail, interval = chip.mxm_install_tail_cycles, chip.mxm_install_interval_cycles
        fixed: list[tuple[Key, int, int]] = [(("install", self.side, plane), 0, interval) for plane in self.planes]
        template = Template(first_flex=1, fixed=[*fixed, (("Q", queue), 0, 1)], rows=[Row(0, queue, Opcode.IW, ())])
        soonest = max(load + max(tile.load_cycles - 1, 1), self.multiplied - tail, self.last_install + interval)
        install = self._add(template, soonest)
        self.last_install = install
        self.used_rows = tile.rows
        self.installed = install + tail
        blocked = self._span("buffer", load, install + 1)
        return max(install + 1, load + tile.load_cycles + self._gap(tile)), blocked

    def _gap(self, tile: ProductTile) -> int:
        """Idle cycles behind a load: loads of byte weights leave no stream for short runs of activations."""
        return tile.span if len(self.planes) == 1 and tile.span <= MAX_GAP else 0

    def _multiply(self, k: int, ready: int) -> int | None:
        """Places the ABC of a K tile; the tile stays installed until it ends."""
        tile = self.product.tiles[k]
        piece = tile.multiply
        if self.is_crowded and len(self.planes) == 1 and tile.span <= MAX_GAP:
            piece = own_streams(self.chip, piece, self.planes[0])
        time = self._add(piece, max(ready, self.installed, self.multiplied))
        end = time + tile.span
        blocked = self._span("weights", self.installed, end)
        if k == 0:
            self.first = time
        self.installed = self.multiplied = end
        self.complete = time + self.chip.mxm_multiply_cycles
        return blocked

    def _load_ahead(self, follower: tuple[int, Product] | None, free: int) -> None:
        """Places the first load of the next product behind the last one of this, if it would come there anyway."""
        if follower is None:
            return
        index, product = follower
        tile, last = product.tiles[0], self.product.tiles[-1]
        if tile.weights == last.weights and tile.rows <= self.used_rows:
            return
        piece = self.placer.early_load(product, max(free, self.placer.earliest(tile.load)))
        if piece is None:
            return
        time, arrives = piece[1], self.placer.earliest(tile.multiply)
        if time > free + MAX_AHEAD or arrives > time + tile.load_cycles + MAX_AHEAD:
            return
        self.tables.book(*piece)
        self.ahead = _Ahead(index, piece)

    # Results ----------------------------------------------------------------------------------------------------

    def tenure(self) -> _Tenure:
        """What is installed when all is done."""
        return _Tenure(self.product.tiles[-1].weights, self.used_rows, self.multiplied)

    def keep_accumulators(self) -> None:
        """Books the accumulators from the first multiplication on, until `join` knows when they are read."""
        for table in self.tables.choices(self.product.accumulator)[self.accumulator]:
            table.book(self.first, FOREVER)

    def join(self, chain: Template, time: int, chosen: tuple[int, ...]) -> tuple[Template, tuple[int, ...]]:
        """One template of the product and the chain behind it, with the choices of all flexible resources."""
        until = time + self.product.acc + self.product.acc_span
        accumulator = dataclasses.replace(self.product.accumulator, start=self.first - time, end=until - time)
        for table in self.tables.choices(self.product.accumulator)[self.accumulator]:
            table.release(until, FOREVER)
        whole = Template(flexible=[accumulator], fixed=[(k, a - time, b - time) for k, a, b in self.spans])
        choices = [self.accumulator]
        for piece, begin, picked in [(chain, time, chosen), *self.pieces]:
            _append(whole, piece, begin - time)
            choices += picked
        return whole, tuple(choices)


def own_streams(chip: ChipSpec, piece: Template, plane: int) -> Template:
    """A load or multiplication on the streams that belong to a plane: those of different planes then never meet."""
    (streams,) = piece.flexible
    num_groups = chip.num_streams_per_direction // chip.num_streams_per_load
    return dataclasses.replace(piece, flexible=[dataclasses.replace(streams, group=plane % num_groups)])


def _append(whole: Template, piece: Template, shift: int) -> None:
    """Adds a piece `shift` cycles later; its flexible resources are numbered on."""
    more = len(whole.flexible) - piece.first_flex

    def moved(operands: tuple[int | Slot, ...]) -> tuple[int | Slot, ...]:
        return tuple(
            [Slot(o.flex + more, o.offset) if isinstance(o, Slot) and o.flex != ACCUMULATOR else o for o in operands]
        )

    for offset, queue, opcode, operands, count, interval in piece.rows:
        if more:
            (queue,), operands = moved((queue,)), moved(operands)
        whole.rows.append(Row(offset + shift, queue, opcode, operands, count, interval))
    whole.flexible += [item.later(shift) for item in piece.flexible]
    whole.fixed += [(key, start + shift, end + shift) for key, start, end in piece.fixed]
    whole.reads += [Access(a.storage, a.vectors, a.cycles + shift) for a in piece.reads]
    whole.writes += [Access(a.storage, a.vectors, a.cycles + shift) for a in piece.writes]
