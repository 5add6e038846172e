"""Caches and tables that fill all 320 lanes, for contexts that would not fit otherwise.

Values: a row of kv_dim lanes per position leaves lanes free, enough for some more heads, the slots. Positions
0 .. num_rows - 1 have a row each; the later ones lie in the slots of these rows, head by head. Positions come in pages
of 320, as the scores have them in vectors:

  lanes        0 .. 191           192 .. 255       256 .. 319          SmolLM2, 2048 positions in 1280 rows
  rows   0     page 0, all heads  page 4, head 0   page 4, head 1
       320     page 1             page 5, head 0   page 5, head 1
       640     page 2             page 6, heads 0 and 2 (128 positions each), head 1
       960     page 3             page 4, head 2   page 5, head 2

Rotary tables: 320 / (head_dim / 2) positions a row.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lpu_jax.models.layers import FULL_WIDTH, matmul, row, take

_ALIGNMENT = 16
"""Rows at which a page may begin within a tile: whole loads of the MXM."""


@dataclasses.dataclass(frozen=True, slots=True)
class Block:
    """The values of one head at positions start .. start + size - 1: rows first .. of a slot of free lanes."""

    head: int
    start: int
    size: int
    slot: int
    first: int


@dataclasses.dataclass(frozen=True, slots=True)
class PackedValues:
    """Where the values of all positions lie; see the module.

    Invariants: num_rows is a multiple of 320; blocks cover the positions from num_rows on once for every head.
    """

    num_heads: int
    head_dim: int
    num_rows: int
    blocks: tuple[Block, ...]

    @property
    def width(self) -> int:
        """Lanes of a row: those of all heads and the slots."""
        return self.num_heads * self.head_dim + self.head_dim * (1 + max((b.slot for b in self.blocks), default=-1))

    def slots_of(self, head: int) -> list[int]:
        """The slots that hold later positions of a head."""
        return sorted({b.slot for b in self.blocks if b.head == head})


@functools.lru_cache(maxsize=64)
def pack_values(context: int, num_heads: int, head_dim: int) -> PackedValues:
    """The layout with the fewest rows."""
    num_slots = max(0, FULL_WIDTH // head_dim - num_heads)
    for num_rows in range(FULL_WIDTH, context + FULL_WIDTH, FULL_WIDTH):
        blocks = _blocks(context, num_heads, num_slots, num_rows)
        if blocks is not None:
            return PackedValues(num_heads, head_dim, num_rows, blocks)
    raise AssertionError("with as many rows as positions there is nothing to place")


def _blocks(context: int, num_heads: int, num_slots: int, num_rows: int) -> tuple[Block, ...] | None:
    """First fit, heads one after the other: in slots that a head has already, then in empty ones; None if some find no
    room. Whole pages come before a short last one."""
    pages = [(start, min(FULL_WIDTH, context - start)) for start in range(num_rows, context, FULL_WIDTH)]
    used = {(slot, first): 0 for slot in range(num_slots) for first in range(0, num_rows, FULL_WIDTH)}
    found: list[Block] = []
    for head, (start, size) in itertools.product(range(num_heads), pages):
        own = {b.slot for b in found if b.head == head}
        taken = {b.slot for b in found}
        places = sorted(used, key=lambda p: (p[0] not in own, p[0] in taken, p))
        place = next((p for p in places if used[p] + size <= FULL_WIDTH), None)
        if place is None:
            return None
        found.append(Block(head, start, size, place[0], place[1] + used[place]))
        used[place] += -(-size // _ALIGNMENT) * _ALIGNMENT
    return tuple(found)


def packed(layout: PackedValues, v: jax.Array) -> jax.Array:
    """The cache [num_rows, width] of values [context, kv_dim]."""
    width, missing = layout.head_dim, max(0, layout.num_rows - v.shape[0])
    columns = [jnp.concatenate([v[: layout.num_rows], jnp.zeros((missing, v.shape[1]), v.dtype)])]
    for slot in range((layout.width - v.shape[1]) // width):
        blocks = sorted((b for b in layout.blocks if b.slot == slot), key=lambda b: b.first)
        parts, filled = [], 0
        for b in blocks:
            parts.append(jnp.zeros((b.first - filled, width), v.dtype))
            parts.append(v[b.start : b.start + b.size, b.head * width : (b.head + 1) * width])
            filled = b.first + b.size
        parts.append(jnp.zeros((layout.num_rows - filled, width), v.dtype))
        columns.append(jnp.concatenate(parts))
    return jnp.concatenate(columns, axis=1)


def mix(layout: PackedValues, weights: jax.Array, cache: jax.Array) -> jax.Array:
    """weights [places * heads, context] x values -> fp32 [places * heads, kv_dim], whose row (place, head) is right in
    the columns of its head only.

    One product with the cache as it is: rows for the first positions, then for every slot that a head has rows that are
    zero where the slot holds other heads.
    """
    heads, width = layout.num_heads, layout.head_dim
    own = np.arange(weights.shape[0])[:, None] % heads
    rounds = max((len(layout.slots_of(h)) for h in range(heads)), default=0)
    rows = [_padded(weights[:, : layout.num_rows], layout.num_rows)]
    rows += [_later(layout, weights, own, number) for number in range(rounds)]
    mixed = matmul(jnp.concatenate(rows), cache).reshape(rounds + 1, *weights.shape[:1], -1)
    total = mixed[0, :, : heads * width]
    for number in range(rounds):
        parts = []
        for head in range(heads):
            slots = layout.slots_of(head)
            if number >= len(slots):
                parts.append(jnp.zeros((weights.shape[0] // heads, width), jnp.float32))
                continue
            first = (heads + slots[number]) * width
            parts.append(mixed[1 + number, head::heads, first : first + width])
        later = jnp.stack(parts, axis=1).reshape(weights.shape[0], width)
        total = total + jnp.where(np.arange(heads * width) // width == own, jnp.tile(later, (1, heads)), 0.0)
    return total


def _padded(x: jax.Array, size: int, before: int = 0) -> jax.Array:
    after = size - before - x.shape[1]
    return jnp.pad(x, ((0, 0), (before, after))) if before or after else x


def _later(layout: PackedValues, weights: jax.Array, own: np.ndarray, number: int) -> jax.Array:
    """Weights of what heads have in their slot number `number`, [rows, num_rows]."""
    slot_of = {h: s[number] for h in range(layout.num_heads) if number < len(s := layout.slots_of(h))}
    tiles = []
    for first in range(0, layout.num_rows, FULL_WIDTH):
        total = jnp.zeros((weights.shape[0], FULL_WIDTH), weights.dtype)
        inside = [b for b in layout.blocks if b.slot == slot_of.get(b.head) and 0 <= b.first - first < FULL_WIDTH]
        for (start, offset), group in itertools.groupby(inside, key=lambda b: (b.start, b.first - first)):
            blocks = list(group)
            part = _padded(weights[:, start : start + blocks[0].size], FULL_WIDTH, offset)
            total = jnp.where(np.isin(own, [b.head for b in blocks]), part, total)
        tiles.append(total)
    return jnp.concatenate(tiles, axis=1)


def updated(layout: PackedValues, cache: jax.Array, v: jax.Array, position: jax.Array) -> jax.Array:
    """The cache with v [1, kv_dim] at a position: of the row of every head, the lanes of all heads that lie in it."""
    heads, width = layout.num_heads, layout.head_dim
    row_of, slot_of = [], []
    for head in range(heads):
        target, slot = position, jnp.int32(head)
        for b in sorted((b for b in layout.blocks if b.head == head), key=lambda b: b.start):
            is_there = position >= b.start
            target = jnp.where(is_there, position + np.int32(b.first - b.start), target)
            slot = jnp.where(is_there, np.int32(heads + b.slot), slot)
        row_of.append(target)
        slot_of.append(slot)
    rows = jnp.stack(row_of)
    new = take(cache, rows)
    lane_slot = np.arange(cache.shape[1])[None] // width
    for head in range(heads):
        own = jnp.tile(v[:, head * width : (head + 1) * width], (1, cache.shape[1] // width))
        is_own = (rows[:, None] == row_of[head]) & (lane_slot == slot_of[head])
        new = jnp.where(is_own, own, new)
    for head in range(heads):
        cache = lax.dynamic_update_slice(cache, new[head : head + 1], (row_of[head], 0), allow_negative_indices=False)
    return cache


def pack_table(table: np.ndarray) -> np.ndarray:
    """A table [positions, width] with as many positions a row as 320 lanes hold, the last row filled up with zeros."""
    per_row = max(1, FULL_WIDTH // table.shape[1])
    padded = np.pad(table, ((0, -len(table) % per_row), (0, 0)))
    return padded.reshape(-1, per_row * table.shape[1])


def packed_row(table: jax.Array, width: int, position: jax.Array, copies: int) -> jax.Array:
    """Row `position` of a packed table, fp32 [1, copies * width]: repeated side by side, exactly."""
    per_row = table.shape[1] // width
    found = row(table, lax.div(position, np.int32(per_row)))
    is_own = np.arange(table.shape[1])[None] // width == lax.rem(position, np.int32(per_row))
    repeat = (np.arange(table.shape[1])[:, None] % width == np.arange(copies * width) % width).astype(np.int8)
    own = jnp.where(is_own, found, 0.0)
    repeated: jax.Array = lax.dot(
        own, jnp.asarray(repeat), precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )
    return repeated


def packed_rows(table: jax.Array, width: int, rows: int) -> jax.Array:
    """The first rows of a packed table, [rows, width]."""
    return table.reshape(-1, width)[:rows]
