"""The host's side of a program: arguments and constants into SRAM before it starts, results out of it afterwards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lpu_jax.lowering.passes.place import AllocatedGraph
from lpu_jax.lowering.passes.tile_storage import FORMATS, STORAGE_DTYPES
from lpu_jax.lowering.tile_ir import Binding, IntArray, pack, unpack
from lpu_jax.runtime.ops import GraphLike
from lpu_jax.runtime.sram import Sram


def load_sram(allocated: AllocatedGraph, arguments: Sequence[np.ndarray], graph: GraphLike) -> Sram:
    """An SRAM that holds the constants and the arguments of a graph; padding rows of weight layouts are zero."""
    tiles = allocated.tiles
    sram = Sram(tiles.chip)
    for storage, spot in zip(tiles.storages, allocated.places, strict=True):
        is_spread = storage.interleave > 1 and not storage.skewed
        if spot is not None and is_spread and (storage.plane is not None or not storage.resident):
            addresses = np.arange(storage.num_addresses)
            zeros = np.zeros((len(addresses), tiles.chip.num_lanes), np.uint8)
            for mem_slice, base in spot.starts:
                sram.write(storage.hemisphere, mem_slice, base + addresses, zeros)
    for vectors, refs in tiles.constants:
        _store(allocated, sram, refs, vectors)
    values = dict(zip(graph.inputs, arguments, strict=True))
    for binding in tiles.inputs:
        write_value(allocated, sram, binding, values[binding.value])
    return sram


def write_value(allocated: AllocatedGraph, sram: Sram, binding: Binding, value: np.ndarray) -> None:
    """Writes an array to one place of a value."""
    array = np.asarray(value)
    dtype = STORAGE_DTYPES[FORMATS[binding.dtype]]
    parts = array[None] if binding.num_iterations == 1 and array.shape == binding.view.shape else array
    for iteration, part in enumerate(parts):
        vectors = pack(part.astype(dtype), binding.view.splat, allocated.tiles.chip.num_lanes)
        _store(allocated, sram, _of_iteration(allocated, binding, iteration), vectors)


def _of_iteration(allocated: AllocatedGraph, binding: Binding, iteration: int) -> IntArray:
    sizes = np.array([allocated.tiles.storages[s].num_vectors for s in binding.view.refs[:, 0]], np.int64)
    return binding.view.refs + np.stack([np.zeros_like(sizes), sizes * iteration], axis=1)


def _store(allocated: AllocatedGraph, sram: Sram, refs: IntArray, vectors: np.ndarray) -> None:
    for storage_id in np.unique(refs[:, 0]).tolist():
        storage, spot = allocated.tiles.storages[storage_id], allocated.places[storage_id]
        if spot is None:
            continue
        mine = np.nonzero(refs[:, 0] == storage_id)[0]
        data = np.ascontiguousarray(vectors[mine])
        planes = data.view(np.uint8).reshape(*data.shape, data.dtype.itemsize)
        for byte in range(data.dtype.itemsize):
            index = storage.slice_index(refs[mine, 1], byte)
            word = spot.base_at(index) + storage.address(refs[mine, 1], byte)
            for number in np.unique(index).tolist():
                rows = index == number
                sram.write(storage.hemisphere, spot.slices[number], word[rows], planes[rows, :, byte])


def read_outputs(allocated: AllocatedGraph, sram: Sram) -> list[np.ndarray]:
    """The results of a graph that lie in SRAM, as arrays of the graph's dtypes."""
    return [read_value(allocated, sram, binding) for binding in allocated.tiles.outputs]


def read_value(allocated: AllocatedGraph, sram: Sram, binding: Binding) -> np.ndarray:
    """Reads one place of a value."""
    refs = binding.view.refs
    dtype = STORAGE_DTYPES[FORMATS[binding.dtype]]
    lanes = allocated.tiles.chip.num_lanes
    planes = np.zeros((len(refs), lanes, dtype.itemsize), np.uint8)
    for storage_id in np.unique(refs[:, 0]).tolist():
        storage, spot = allocated.tiles.storages[storage_id], allocated.places[storage_id]
        assert spot is not None
        mine = np.nonzero(refs[:, 0] == storage_id)[0]
        for byte in range(dtype.itemsize):
            index = storage.slice_index(refs[mine, 1], byte)
            word = spot.base_at(index) + storage.address(refs[mine, 1], byte)
            for number in np.unique(index).tolist():
                rows = index == number
                planes[mine[rows], :, byte] = sram.read(storage.hemisphere, spot.slices[number], word[rows])
    vectors = planes.reshape(len(refs), -1).view(dtype)
    array = unpack(vectors, binding.view.shape, binding.view.splat)
    return array.astype(binding.dtype)
