"""The whole-tensor operations of the LPU: what a `Graph` is made of and what both executors give a meaning to.

An op is pure data; an `Equation` binds it to operands and results by value id. Dtypes are those of the LPU's working
set: float32, float16, bfloat16, float8_e4m3fn, float8_e5m2, int32, int8, bool. Meaning, with x, y the operands (NumPy
notation):

  Elementwise(function)       vxm.apply(function, x[, y]) on equal shapes or immediates; then rounded/cast to the
                              result dtype (narrow floats: to_fp16, to_bf16, to_e4m3, to_e5m2; bool: 0 or 1). Where an
                              integer or logic function meets a float, or the other way round, the 32 bits are kept (a
                              narrow float counts as its float32)
  Reshape()                   row-major reshape to the result's shape
  Transpose(permutation)      np.transpose
  Slice(start, limit, stride) x[start:limit:stride] per axis
  Broadcast(dimensions)       axis i of x becomes axis dimensions[i] of the result (as lax.broadcast_in_dim)
  Concatenate(axis)           np.concatenate of all operands
  Pad(low, high, value)       constant padding; low, high >= 0
  Reverse(axes)               np.flip
  MatMul(lhs, rhs formats)    [B, M, K] x [B, K, N] -> [B, M, N]: exact sum over K, one rounding (int8 x int8: int32);
                              an rhs in block floating point is its words, int8 [B, words of K rows, N]
  EncodeBlocks(format)        float32 [..., K, N] -> words int8 [..., words of K rows, N] (block_words.encode_words)
  DecodeBlocks(format)        words -> the values they stand for, float32 or bfloat16 [..., K, N]
  LaneReduce(function)        [..., K] -> [..., 1]: "sum" is the exact float32 sum, rounded once; max, min, imax,
                              imin, and, or as the VXM functions of those names
  GatherRows()                table [R, ...], index int32 [n], 0 <= index < R -> [n, ...]
  ScatterRows()               table [R, ...], rows [n, ...], index int32 [n] -> the table with those rows replaced;
                              distinct indices
  Scan(body, ...)             as lax.scan: operands consts, carry, xs (leading axis num_iterations); results carry, ys
  While(body, ...)            operands consts, carry; carry[0] is a bool scalar: while it holds, carry = body(consts,
                              carry); results carry. The host reads it and starts the program of the body again
  HostCall(fun, ...)          fun of the operands, computed by the host. Its operands and results may have dtypes that
                              only the host holds (complex, 64 bits; "token" is the result of a call without results)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from lpu_jax.runtime.isa import DataFormat


@dataclasses.dataclass(frozen=True, slots=True)
class Immediate:
    """A scalar operand that is part of the instruction: 32 bits, a float32 or an int32 value."""

    value: float | int
    dtype: str  # "float32" or "int32"

    @property
    def bits(self) -> int:
        """The 32-bit pattern as a signed integer."""
        return int(np.array(self.value, dtype=self.dtype).view(np.int32))


@dataclasses.dataclass(frozen=True, slots=True)
class Elementwise:
    """One VXM function on every element."""

    function: str


@dataclasses.dataclass(frozen=True, slots=True)
class Reshape:
    """Row-major reshape."""


@dataclasses.dataclass(frozen=True, slots=True)
class Transpose:
    """Permutes axes."""

    permutation: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Slice:
    """Static slice; stride >= 1."""

    start: tuple[int, ...]
    limit: tuple[int, ...]
    stride: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Broadcast:
    """Axis i of the operand becomes axis dimensions[i]; size-1 axes are repeated."""

    dimensions: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Concatenate:
    """Joins the operands along one axis."""

    axis: int


@dataclasses.dataclass(frozen=True, slots=True)
class Pad:
    """Pads with a constant."""

    low: tuple[int, ...]
    high: tuple[int, ...]
    value: float | int


@dataclasses.dataclass(frozen=True, slots=True)
class Reverse:
    """Reverses axes."""

    axes: tuple[int, ...]


Move = Reshape | Transpose | Slice | Broadcast | Concatenate | Pad | Reverse


@dataclasses.dataclass(frozen=True, slots=True)
class MatMul:
    """Batched matrix product on the MXM; formats of the operands as they enter it.

    skips_padding: rows of the rhs that meet nothing but padding of the lhs are zeros, too, so they may be left out.
    """

    lhs_format: DataFormat
    rhs_format: DataFormat
    skips_padding: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class EncodeBlocks:
    """Quantises to block floating point; on the host, when resident arguments are loaded."""

    format: DataFormat
    optimal: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class DecodeBlocks:
    """Values of block floating point; likewise on the host."""

    format: DataFormat


@dataclasses.dataclass(frozen=True, slots=True)
class LaneReduce:
    """Reduction over the last axis, kept as an axis of size 1."""

    function: str


@dataclasses.dataclass(frozen=True, slots=True)
class GatherRows:
    """Rows of a table at indices known only at run time."""


@dataclasses.dataclass(frozen=True, slots=True)
class ScatterRows:
    """Replaces rows of a table at indices known only at run time."""


@dataclasses.dataclass(frozen=True, slots=True)
class Scan:
    """A loop with a fixed trip count; body operands: consts, carry, one slice of every xs."""

    body: GraphLike
    num_iterations: int
    num_consts: int
    num_carry: int
    reverse: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class While:
    """A loop whose trip count is known only at run time; body operands: consts, carry.

    It makes at most `max_trip_count` turns; a flag that still holds then is an error. name: for reports and errors.
    """

    body: GraphLike
    num_consts: int
    num_carry: int
    max_trip_count: int
    name: str

    def one_turn(self) -> Scan:
        """The loop as if it ran once."""
        return Scan(self.body, 1, self.num_consts, self.num_carry)


@dataclasses.dataclass(frozen=True, slots=True)
class HostCall:
    """A function of arrays that the host computes while the chip waits; `name` is that of the primitive.

    effects: JAX's effects of the call; a call with effects is made even if nobody needs its results.
    """

    fun: Callable[..., Sequence[Any]] = dataclasses.field(repr=False)
    name: str
    effects: frozenset[Any] = dataclasses.field(default=frozenset(), repr=False)


Op = (
    Elementwise
    | Move
    | MatMul
    | EncodeBlocks
    | DecodeBlocks
    | LaneReduce
    | GatherRows
    | ScatterRows
    | Scan
    | While
    | HostCall
)

SRAM_DTYPES = frozenset(("float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int32", "int8", "bool"))
"""Dtypes of values that the chip holds; values of other dtypes stay with the host."""


_SHORT_NAMES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "int32": "i32", "int8": "i8"}
_SHORT_NAMES |= {"float8_e4m3fn": "e4m3", "float8_e5m2": "e5m2"}


@dataclasses.dataclass(frozen=True, slots=True)
class Aval:
    """Shape and dtype of a value."""

    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{_SHORT_NAMES.get(self.dtype, self.dtype)}[{','.join(map(str, self.shape))}]"

    @property
    def is_on_host(self) -> bool:
        """Whether only the host holds such a value: SRAM has no such dtype, or there is nothing to hold."""
        return self.dtype not in SRAM_DTYPES or 0 in self.shape


@dataclasses.dataclass(frozen=True, slots=True)
class Equation:
    """results = op(operands); `source` is the user's file, line and function, `name` the name stack."""

    op: Op
    operands: tuple[int | Immediate, ...]
    results: tuple[int, ...]
    source: str = ""
    name: str = ""


class GraphLike(Protocol):
    """What an executor needs of a graph."""

    @property
    def avals(self) -> tuple[Aval, ...]:
        """Aval of every value id."""

    @property
    def inputs(self) -> tuple[int, ...]:
        """Value ids of the arguments."""

    @property
    def constants(self) -> tuple[tuple[int, np.ndarray], ...]:
        """Value ids and contents of constants."""

    @property
    def equations(self) -> tuple[Equation, ...]:
        """Equations in topological order."""

    @property
    def outputs(self) -> tuple[int, ...]:
        """Value ids of the results."""


def loops_of(graph: GraphLike) -> list[tuple[str, int]]:
    """(name, max_trip_count) of every loop whose trip count is known only at run time: each before those inside it."""
    found: list[tuple[str, int]] = []
    for equation in graph.equations:
        if isinstance(equation.op, While):
            found += [(equation.op.name, equation.op.max_trip_count), *loops_of(equation.op.body)]
    return found


def effects_of(graph: GraphLike) -> frozenset[object]:
    """JAX's effects of all calls of the host in a graph."""
    found: frozenset[object] = frozenset()
    for equation in graph.equations:
        if isinstance(equation.op, HostCall):
            found |= equation.op.effects
        elif isinstance(equation.op, While | Scan):
            found |= effects_of(equation.op.body)
    return found
