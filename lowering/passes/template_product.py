"""The pieces of a matrix product: weights loaded, activations multiplied, sums read; each is placed on its own.

A K tile has a load (LW) and a multiplication (ABC), with an install (IW) somewhere between; the chain behind the
product begins with ACC. The scheduler gives each piece its cycle: a load may come long before its activations, and a
sum may stay in its accumulator until the streams of the result are free.
"""

from __future__ import annotations

import numpy as np

from lpu_jax.lowering.passes.memory_access import MemoryAccess
from lpu_jax.lowering.passes.reservations import accumulator_parts
from lpu_jax.lowering.passes.template import (
    ACCUMULATOR,
    Flexible,
    Product,
    ProductTile,
    Row,
    Slot,
    Template,
    issues,
    merge_own,
    spaced,
)
from lpu_jax.lowering.tile_ir import MatMulInput, WeightTile
from lpu_jax.runtime.chip import ChipSpec
from lpu_jax.runtime.errors import ScheduleError
from lpu_jax.runtime.isa import MXM_ACTIVATIONS, MXM_RESULTS, MXM_WEIGHTS, Opcode, mxm_queue


def _interval(chip: ChipSpec, product: MatMulInput, num_rows: int) -> int:
    return chip.cycles_per_vector(num_rows, product.lhs_format.significand_bytes, product.rhs_format.significand_bytes)


def sum_interval(chip: ChipSpec, product: MatMulInput) -> int:
    """Cycles between two sums: those of the last K tile."""
    return _interval(chip, product, product.weights[-1].num_rows)


def _planes(chip: ChipSpec, product: MatMulInput) -> tuple[int, ...]:
    """The planes that a tile takes; it is issued on the first."""
    shared = chip.planes_per_tile(product.rhs_format.num_bytes)
    return tuple(range(shared)) if shared > 1 else (product.plane,)


def _distance(chip: ChipSpec) -> int:
    """Hops from the VXM boundary to the planes."""
    return chip.num_mem_columns - 1 + chip.mxm_entry_cycles


def add_sums(
    memory: MemoryAccess, template: Template, product: MatMulInput, boundary: int, stream: int, count: int
) -> int:
    """Adds the ACC whose sums pass the VXM boundary from `boundary` on; returns its cycle."""
    chip = memory.chip
    interval, planes = sum_interval(chip, product), _planes(chip, product)
    acc = boundary - (chip.num_mem_columns - 1 + chip.mxm_exit_cycles) - chip.mxm_accumulate_cycles
    span = (count - 1) * interval + 1
    template.fixed += [(("acc", product.hemisphere, plane), acc, acc + span) for plane in planes]
    queue = mxm_queue(chip, product.hemisphere, planes[0], MXM_RESULTS)
    template.fixed += issues(chip, queue, acc, count, interval)
    template.rows.append(Row(acc, queue, Opcode.ACC, (Slot(stream), Slot(ACCUMULATOR), 1), count, interval))
    return acc


def build_product(memory: MemoryAccess, product: MatMulInput, count: int, acc: int) -> Product:
    """The pieces of a product of `count` vectors whose sums are read `acc` cycles after time zero of their chain."""
    chip, planes = memory.chip, _planes(memory.chip, product)
    tiles: list[ProductTile] = []
    for k, weight in enumerate(product.weights):
        load, cycles = _load_once(memory, product, weight, planes[0])
        multiply = _multiply(memory, product, k, count, planes[0])
        _merge(multiply, product)
        span = count * _interval(chip, product, weight.num_rows)
        place = weight.storage, weight.first, weight.lane
        tiles.append(ProductTile(place, weight.num_rows, load, cycles, multiply, span))
    size, _ = accumulator_parts(chip)
    parts = Flexible("accumulator", False, product.hemisphere, -(-count // size), 0, 0, planes)
    span = (count - 1) * sum_interval(chip, product) + 1
    return Product(product.hemisphere, planes, tuple(tiles), parts, acc, span)


def _merge(piece: Template, product: MatMulInput) -> None:
    """Books the accesses of a piece."""
    if not merge_own(piece):
        count = len(product.activations[0])
        raise ScheduleError(f"schedule: the operands of a product of {count} vectors collide with themselves")


def _load_once(memory: MemoryAccess, product: MatMulInput, weight: WeightTile, plane: int) -> tuple[Template, int]:
    """The load of a tile, which all products with that tile share."""
    key = (weight.storage, weight.first, weight.num_rows, weight.lane, product.rhs_format, product.hemisphere, plane)
    found = memory.loads.get(key)
    if found is None:
        found = memory.loads[key] = _load(memory, product, weight, plane)
        _merge(found[0], product)
    return found


def _load(memory: MemoryAccess, product: MatMulInput, weight: WeightTile, plane: int) -> tuple[Template, int]:
    """LW: the rows of a weight tile arrive at the MXM from cycle 0 on; returns the cycles it takes, too."""
    chip, template = memory.chip, Template(first_flex=ACCUMULATOR + 1)
    width, side = product.rhs_format.num_bytes, product.hemisphere
    rows_per_cycle = chip.num_streams_per_load // width
    cycles = -(-product.num_vectors(weight) // rows_per_cycle)
    leave = -_distance(chip)
    streams = template.stream(False, side, chip.num_streams_per_load, leave, cycles)
    storage, _ = memory.home(weight.storage)
    padded = cycles * rows_per_cycle
    if not product.rhs_format.is_block:
        padded = min(padded, storage.num_vectors * storage.num_iterations - weight.first)
    vectors = weight.first + np.arange(padded)
    if product.rhs_format.is_block:  # tiles begin anywhere; beyond the last word any one of the same slice will do
        vectors = np.where(vectors < storage.num_vectors, vectors, vectors - storage.interleave)
    refs = np.stack([np.full(padded, weight.storage), vectors], axis=1)
    for lane in range(min(rows_per_cycle, padded)):
        mine = refs[lane::rows_per_cycle]
        operands = {byte: (Slot(streams, lane * width + byte),) for byte in range(width)}
        memory.add(template, Opcode.READ, mine, spaced(leave - chip.mem_read_cycles, len(mine)), 1, operands)
    queue = mxm_queue(chip, side, plane, MXM_WEIGHTS)
    fields = (Slot(streams), weight.lane, rows_per_cycle, int(product.rhs_format))
    template.rows.append(Row(0, queue, Opcode.LW, fields, cycles))
    template.fixed += issues(chip, queue, 0, cycles, 1)
    return template, cycles


def _multiply(memory: MemoryAccess, product: MatMulInput, k: int, count: int, plane: int) -> Template:
    """ABC: the activations of one K tile arrive at the MXM from cycle 0 on."""
    chip, template = memory.chip, Template(first_flex=ACCUMULATOR + 1)
    width, side, weight = product.lhs_format.num_bytes, product.hemisphere, product.weights[k]
    interval = _interval(chip, product, weight.num_rows)
    leave = -_distance(chip)
    stream = template.stream(False, side, width, leave, (count - 1) * interval + 1)
    times = spaced(leave - chip.mem_read_cycles, count, interval)
    lanes = {byte: (Slot(stream, byte),) for byte in range(width)}
    memory.add(template, Opcode.READ, product.activations[k], times, 1, lanes)
    queue = mxm_queue(chip, side, plane, MXM_ACTIVATIONS)
    rows = (weight.lane, weight.num_rows)
    operands = (Slot(stream), int(product.lhs_format), Slot(ACCUMULATOR), 1, *rows, int(k == 0), 0)
    template.rows.append(Row(0, queue, Opcode.ABC, operands, count, interval))
    template.fixed += issues(chip, queue, 0, count, interval)
    return template
