"""`TileGraph`: tile operations over vectors of at most 320 lanes, each done by one unit of the chip.

Grammar (as printed):
  tiles   ::= storage* block* plan                      the plan is what the host does, see `host_plan.py`
  block   ::= "block" "x" iterations "{" tile_op* "}"
  tile_op ::= "chain" ... | "permute" ... | "distribute" ... | "transpose" ...

A `Storage` is a set of equally wide vectors that lives at one place. A `View` says which vectors, in which order, make
up a logical value; reshapes, leading-axis transposes, slices and broadcasts are views and cost nothing.
"""

from __future__ import annotations

import dataclasses
import enum

import numpy as np

from lpu_jax.lowering.host_plan import HostPlan
from lpu_jax.lowering.tile_bindings import Binding as Binding
from lpu_jax.lowering.tile_bindings import IntArray as IntArray
from lpu_jax.lowering.tile_bindings import View as View
from lpu_jax.lowering.tile_bindings import storages_of as storages_of
from lpu_jax.runtime.chip import ChipSpec, Hemisphere
from lpu_jax.runtime.isa import DataFormat
from lpu_jax.runtime.ops import Immediate

GROUP = 16
"""Vectors that a transposer takes at once, and lanes of a superlane."""


@dataclasses.dataclass(frozen=True, slots=True)
class Storage:
    """Vectors that are placed together.

    Vector v of byte b lies in slice slices[(v % interleave) * bytes + b] at address base + v // interleave.
    With num_iterations > 1, iteration i of the enclosing loop uses vectors i * num_vectors + v.
    A skewed storage has 16 slices and interleave 16; v of byte b lies in slice (v + 16 / bytes * b) % 16 at address
    base + v // 16 * bytes + b. So one byte of 16 neighbours is read in one cycle, and so are 16 / bytes neighbours.

    Invariants: num_vectors % interleave == 0 when num_iterations > 1; skewed storages have one iteration.
    """

    id: int
    num_vectors: int
    format: DataFormat
    hemisphere: Hemisphere
    interleave: int = 1
    plane: int | None = None  # weights of this plane lie in its slice set
    # "near": next to the VXM (scatter addresses); "far": the last column (gather addresses); "maps": few slices for all
    # maps of distributors, which are read in the same cycles as the data
    column: str = ""
    num_iterations: int = 1
    resident: bool = False  # filled by the host before the program starts
    name: str = ""
    skewed: bool = False
    gathered: bool = False  # weights that are read by address, too: not in the last slice, from which addresses come
    shared: bool = False  # holds several matrices that are looked up by number (`tile_shared`)

    @property
    def num_slices(self) -> int:
        """MEM slices that the storage spans."""
        return self.interleave * (1 if self.skewed else self.format.num_bytes)

    def slice_index(self, vectors: IntArray, byte: int) -> IntArray:
        """Which of the storage's slices hold a byte of some vectors."""
        if self.skewed:
            return (vectors + self.interleave // self.format.num_bytes * byte) % self.interleave
        return vectors % self.interleave * self.format.num_bytes + byte

    def address(self, vectors: IntArray, byte: int) -> IntArray:
        """Addresses of a byte of some vectors, from the storage's base on."""
        if self.skewed:
            return vectors // self.interleave * self.format.num_bytes + byte
        return vectors // self.interleave

    @property
    def num_addresses(self) -> int:
        """Vector words per slice."""
        if self.skewed:
            return -(-self.num_vectors // self.interleave) * self.format.num_bytes
        return -(-self.num_vectors * self.num_iterations // self.interleave)

    @property
    def loop_step(self) -> int:
        """Addresses between iterations."""
        return self.num_vectors // self.interleave if self.num_iterations > 1 else 0


def num_tiles(shape: tuple[int, ...], num_lanes: int) -> int:
    """Tiles of the last axis."""
    return max(1, -(-shape[-1] // num_lanes)) if shape else 1


def num_rows(shape: tuple[int, ...]) -> int:
    """Elements of the leading axes."""
    return int(np.prod(shape[:-1], dtype=np.int64)) if shape else 1


def num_view_vectors(shape: tuple[int, ...], splat: bool, num_lanes: int) -> int:
    """Vectors of a view."""
    if splat:
        return int(np.prod(shape, dtype=np.int64))
    return num_rows(shape) * num_tiles(shape, num_lanes)


def pack(array: np.ndarray, splat: bool, num_lanes: int) -> np.ndarray:
    """Lays a logical array out as vectors [num_vectors, num_lanes]; padding lanes are zero."""
    if splat:
        return np.broadcast_to(array.reshape(-1, 1), (array.size, num_lanes))
    last = array.shape[-1] if array.ndim else 1
    tiles = max(1, -(-last // num_lanes))
    flat = array.reshape(-1, last)
    padded = np.zeros((flat.shape[0], tiles * num_lanes), dtype=array.dtype)
    padded[:, :last] = flat
    return padded.reshape(-1, num_lanes)


def unpack(vectors: np.ndarray, shape: tuple[int, ...], splat: bool) -> np.ndarray:
    """The logical array that vectors [num_vectors, num_lanes] hold; inverse of `pack`."""
    if splat:
        return vectors[:, 0].reshape(shape)
    last = shape[-1] if shape else 1
    rows = num_rows(shape)
    return vectors.reshape(rows, -1)[:, :last].reshape(shape)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class MemoryInput:
    """Chain operand read from SRAM: refs [num_vectors, 2]."""

    refs: IntArray
    format: DataFormat


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class GatherInput:
    """Chain operand gathered: vector k comes from slice group k % interleave of `table` at map vector maps[k]."""

    maps: IntArray
    table: int
    vector: int  # displacement, in vectors
    format: DataFormat


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class WeightTile:
    """Vectors first .. of a storage in weight layout, loaded as rows lane .. lane + num_rows - 1 of one MXM tile."""

    storage: int
    first: int
    num_rows: int
    lane: int = 0


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class MatMulInput:
    """Chain operand computed by the MXM: vector m = sum over K tiles of activations[k][m] . weights[k]."""

    activations: tuple[IntArray, ...]
    lhs_format: DataFormat
    weights: tuple[WeightTile, ...]
    rhs_format: DataFormat
    hemisphere: Hemisphere
    plane: int

    @property
    def format(self) -> DataFormat:
        """int32 for int8 x int8, else fp32."""
        integer = self.lhs_format is DataFormat.INT8 and self.rhs_format is DataFormat.INT8
        return DataFormat.INT32 if integer else DataFormat.FP32

    def num_vectors(self, weight: WeightTile) -> int:
        """Vectors of a tile from its first one on: a row each, or a word of block floating point."""
        return self.rhs_format.num_words(weight.num_rows) // self.rhs_format.num_bytes


ChainInput = MemoryInput | GatherInput | MatMulInput


@dataclasses.dataclass(frozen=True, slots=True)
class InputRef:
    """Operand of a step: chain input number."""

    index: int


@dataclasses.dataclass(frozen=True, slots=True)
class StepRef:
    """Operand of a step: result of an earlier step."""

    index: int


StepOperand = InputRef | StepRef | Immediate


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One ALU operation on every vector of a chain."""

    function: str
    operands: tuple[StepOperand, ...]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class MemoryOutput:
    """Result of a step written to SRAM: refs [num_vectors, 2]; all in one hemisphere."""

    step: int
    refs: IntArray
    format: DataFormat


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class ScatterOutput:
    """Result of a step scattered: vector k goes to slice group k % interleave of `table` at map vector maps[k]."""

    step: int
    maps: IntArray
    table: int
    vector: int
    format: DataFormat


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class ChainOp:
    """Vectors streamed through a chain of ALUs: steps[i] applied to vector k of every operand, k < num_vectors."""

    num_vectors: int
    inputs: tuple[ChainInput, ...]
    steps: tuple[Step, ...]
    outputs: tuple[MemoryOutput | ScatterOutput, ...]
    source: str = ""
    name: str = ""


class SxmUnit(enum.Enum):
    """What moves the lanes of a PermuteOp: the permuter any lane, the distributors only within its superlane."""

    PERMUTER = "permute"
    DISTRIBUTOR = "distribute"


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class PermuteOp:
    """Vectors sent through an SXM: target[k][lane] = source[k][map[k][lane]], 0 where the map has no lane.

    Maps hold a lane of the vector (permuter, 2 bytes) or of the superlane (distributor, 1 byte).
    """

    source_refs: IntArray
    maps: IntArray
    targets: IntArray
    format: DataFormat
    hemisphere: Hemisphere
    source: str = ""
    name: str = ""
    unit: SxmUnit = SxmUnit.PERMUTER


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class TransposeOp:
    """Groups of 16 vectors transposed by superlane: target[16 g + j][u, lane i] = source[16 g + i][u, lane j].

    The 16 vectors of a group, one byte of each, lie in different slices, and so do its results.
    """

    source_refs: IntArray
    targets: IntArray
    format: DataFormat
    hemisphere: Hemisphere
    source: str = ""
    name: str = ""


TileOp = ChainOp | PermuteOp | TransposeOp


def num_parts(op: TileOp) -> int:
    """Vectors (or groups of them) that can be handled apart."""
    if isinstance(op, ChainOp):
        return op.num_vectors
    return len(op.maps) if isinstance(op, PermuteOp) else len(op.targets) // GROUP


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class TileBlock:
    """Tile ops that run `num_iterations` times; `looped` storages move by one slice per iteration."""

    ops: tuple[TileOp, ...]
    num_iterations: int
    looped: frozenset[int]
    reverse: bool = False  # from the last slice to the first


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TileGraph:
    """All storages and tile ops of a program.

    Invariants:
      every ref names an existing storage and a vector inside it
      ops read only vectors that are resident or written by an earlier op (or an earlier block)
      all outputs of a chain step lie where the step's format says; ScatterOutput tables are resident or written
    """

    chip: ChipSpec
    storages: tuple[Storage, ...]
    blocks: tuple[TileBlock, ...]
    inputs: tuple[Binding, ...]
    constants: tuple[tuple[np.ndarray, IntArray], ...]  # vectors [n, lanes] in storage dtype, refs
    outputs: tuple[Binding, ...]
    plan: HostPlan
