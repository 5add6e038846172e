"""Accesses to vectors: runs touch every byte where its storage has it, in its cycle, whatever was divided before."""

import types

import numpy as np
import pytest

from lpu_jax.chips import groqchip1
from lpu_jax.lowering.passes.memory_access import MemoryAccess
from lpu_jax.lowering.passes.slots import Place
from lpu_jax.lowering.passes.template import Template
from lpu_jax.lowering.tile_ir import Storage, TileBlock
from lpu_jax.runtime.chip import Hemisphere
from lpu_jax.runtime.isa import DataFormat, Opcode, mem_queue

FORMS = [(DataFormat.INT8, 1, False), (DataFormat.FP32, 1, False), (DataFormat.FP32, 4, False)]
FORMS += [(DataFormat.INT8, 16, True), (DataFormat.FP16, 16, True)]


def allocation(rng, is_apart):
    """Storages of every form, twice, each at a place of its own; is_apart: other first addresses in every slice."""
    storages, places = [], []
    for number, (form, interleave, skewed) in enumerate(FORMS * 2):
        storage = Storage(number, 320, form, Hemisphere(number % 2), interleave, skewed=skewed)
        slices = tuple(int(rng.integers(0, 60)) + i for i in range(storage.num_slices))
        bases = tuple(rng.integers(0, 4096, len(slices)).tolist()) if is_apart else ()
        storages.append(storage)
        places.append(Place(slices, bases[0] if bases else int(rng.integers(0, 4096)), bases))
    tiles = types.SimpleNamespace(chip=groqchip1, storages=tuple(storages))
    return types.SimpleNamespace(tiles=tiles, places=tuple(places))


def expected(allocated, refs, times, byte, sign):
    """(queue, cycle, address) of every access, one by one."""
    for (number, vector), time in zip(refs.tolist(), times, strict=True):
        storage, place, vector = allocated.tiles.storages[number], allocated.places[number], np.array(vector)
        index = int(storage.slice_index(vector, byte))
        mem_slice, base = place.starts[index]
        cycle = time + sign * (mem_slice // groqchip1.num_slices_per_column)
        yield (
            mem_queue(groqchip1, storage.hemisphere, mem_slice),
            cycle,
            base + int(storage.address(vector, byte)),
        )


@pytest.mark.parametrize("is_apart", [False, True])
def test_runs_touch_every_byte_where_it_lies(is_apart):
    rng = np.random.default_rng(int(is_apart))
    allocated = allocation(rng, is_apart)
    memory = MemoryAccess(allocated, TileBlock((), 1, frozenset()))
    for trial in range(60):
        count, first, sign = int(rng.integers(1, 40)), int(rng.integers(0, 200)), int(rng.choice((-1, 1)))
        numbers = np.full(count, trial % 10) if trial % 3 else rng.choice((trial % 5, trial % 5 + 5), count)
        steps = np.arange(count) if trial % 2 else rng.integers(0, 100, count)
        refs, times = np.stack([numbers, first + steps], axis=1), range(7, 7 + 2 * count, 2)
        planes = {byte: (byte,) for byte in range(allocated.tiles.storages[trial % 5].format.num_bytes)}
        template = Template()
        memory.add(template, Opcode.READ, refs, times, sign, planes)
        touched = {}
        for byte in planes:
            wanted = list(expected(allocated, refs, times, byte, sign))
            rows = [row for item in template.accesses if item.operands == (byte,) for row in item.rows()]
            found = [
                (row.queue, row.offset + i * row.interval, row.operands[0] + i * row.operands[1])
                for row in rows
                for i in range(row.repeats)
            ]
            assert sorted(found) == sorted(wanted)
            for (number, vector), (_, cycle, _) in zip(refs.tolist(), wanted, strict=True):
                touched.setdefault((number, vector), set()).add(cycle)
        recorded = {}
        for access in template.reads:
            for vector, cycle in zip(access.vectors.tolist(), access.cycles.tolist(), strict=True):
                recorded.setdefault((access.storage, vector), set()).add(cycle)
        assert recorded == touched
