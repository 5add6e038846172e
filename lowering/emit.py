"""`Emitter`: appends whole-tensor operations to a graph, infers their avals and shares equal ones.

An operand is a value id or an `Immediate`, which stands for a constant of any shape with one value. Moves of an
immediate are that immediate, and functions of immediates are computed at once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, TypeVar, overload

import numpy as np

from lpu_jax.lowering.analysis.magnitude import MagnitudeAnalysis
from lpu_jax.lowering.analysis.range import RangeAnalysis, range_of_array
from lpu_jax.lowering.ir import GraphBuilder
from lpu_jax.runtime import vxm
from lpu_jax.runtime.isa import DataFormat
from lpu_jax.runtime.ops import (
    Aval,
    Broadcast,
    Concatenate,
    DecodeBlocks,
    Elementwise,
    EncodeBlocks,
    Equation,
    GatherRows,
    Immediate,
    LaneReduce,
    MatMul,
    Op,
    Pad,
    Reshape,
    Reverse,
    ScatterRows,
    Slice,
    Transpose,
)

Operand = int | Immediate
AnyOperand = TypeVar("AnyOperand", int, Immediate, Operand)
"""Moves make a value of a value, and of an immediate that immediate."""
NARROW_FLOATS = {
    "float16": "to_fp16",
    "bfloat16": "to_bf16",
    "float8_e4m3fn": "to_e4m3",
    "float8_e5m2": "to_e5m2",
}
"""Floats narrower than float32, and the VXM functions that round to them."""
FLOATS = ("float32", *NARROW_FLOATS)
DTYPES = (*FLOATS, "int32", "int8", "bool")
CARRIED = {"uint32": "int32", "uint16": "int32", "int16": "int32", "uint8": "int32"}
"""Integer dtypes of JAX that a graph holds as int32: the same number, or the same bits for uint32."""
TRACED_DTYPES = (*DTYPES, *CARRIED)
"""Dtypes that arguments, results and equations may have."""
MAX_FOLDED_ELEMENTS = 65_536
"""Larger constants of one value are a broadcast, larger constant expressions stay in the program."""

_FLAG_FUNCTIONS = frozenset(
    ("eq", "ne", "lt", "le", "gt", "ge", "ieq", "ine", "ilt", "ile", "igt", "ige", "is_finite")
)  # fmt: skip
_INT_FUNCTIONS = frozenset(
    ("iadd", "isub", "imul", "imax", "imin", "ineg", "iabs", "isign", "idiv", "irem", "and", "or", "xor", "not",
     "shift_left", "shift_right_arithmetic", "shift_right_logical", "to_int")
)  # fmt: skip


def held(aval: Aval) -> Aval:
    """The aval with which a graph holds a value of a traced dtype."""
    return Aval(aval.shape, CARRIED.get(aval.dtype, aval.dtype))


def immediate(value: object, dtype: str) -> Immediate:
    """The immediate that stands for a scalar of a graph dtype."""
    if dtype in FLOATS:
        return Immediate(float(np.asarray(value, dtype)), "float32")
    return Immediate(int(np.asarray(value).astype(np.int64).astype(np.int32)), "int32")


def as_graph_array(array: np.ndarray) -> np.ndarray:
    """A known array in the dtype in which a graph holds it."""
    return array.astype(CARRIED[str(array.dtype)]) if str(array.dtype) in CARRIED else array


def as_operand(emitter: Emitter, array: np.ndarray) -> Operand:
    """A known array as an operand: an immediate if it holds one value, else a constant of the graph."""
    array = as_graph_array(array)
    if array.size:
        flat_first = array[(0,) * array.ndim]
        is_uniform = all(s == 0 or n == 1 for s, n in zip(array.strides, array.shape, strict=True))
        if is_uniform or ((array == flat_first).all() and _same_sign_of_zero(array)):
            return immediate(flat_first, str(array.dtype))
    return emitter.constant(array)


def _same_sign_of_zero(array: np.ndarray) -> bool:
    signs = np.signbit(array) if str(array.dtype) in FLOATS else np.zeros(1, bool)
    return bool(signs.all() or not signs.any())


@dataclasses.dataclass(frozen=True, eq=False)
class Emitter:
    """What every rule builds its equations with."""

    builder: GraphBuilder
    ranges: RangeAnalysis
    magnitudes: MagnitudeAnalysis
    memo: dict[str, tuple[int, ...]]

    def aval(self, operand: Operand) -> Aval:
        """Shape and dtype of a value; an immediate counts as a scalar."""
        if isinstance(operand, Immediate):
            return Aval((), operand.dtype)
        return self.builder.avals[operand]

    def add(self, op: Op, operands: Sequence[Operand], *avals: Aval) -> tuple[int, ...]:
        """Appends results = op(operands), or finds the equal equation that is already there."""
        operands = tuple(operands)
        keys = [f"{x.dtype}:{x.bits}" if isinstance(x, Immediate) else f"%{x}" for x in operands]
        key = f"{op!r}{keys}{avals}"
        if key not in self.memo:
            results = self.builder.add(op, operands, *avals)
            self.ranges.record(Equation(op, operands, results), avals)
            self.magnitudes.record(Equation(op, operands, results), avals)
            self.memo[key] = results
        return self.memo[key]

    def constant(self, array: np.ndarray) -> int:
        """Adds a constant."""
        value = self.builder.constant(array)
        self.ranges.set(value, range_of_array(array))
        self.magnitudes.set_resident(value)
        return value

    def value(self, operand: Operand, aval: Aval) -> int:
        """The id of an operand; an immediate becomes a constant of this aval."""
        if not isinstance(operand, Immediate):
            return operand
        aval = held(aval)
        scalar = np.array(operand.value, aval.dtype)
        if math.prod(aval.shape) <= MAX_FOLDED_ELEMENTS:
            return self.constant(np.full(aval.shape, scalar))
        return self.add(Broadcast(()), (self.constant(scalar),), aval)[0]

    # arithmetic

    @overload
    def elementwise(self, function: str, x: int, /, *operands: Operand, dtype: str | None = None) -> int: ...

    @overload
    def elementwise(self, function: str, *operands: Operand, dtype: str | None = None) -> Operand: ...

    def elementwise(self, function: str, *operands: Operand, dtype: str | None = None) -> Operand:
        """A VXM function on operands that broadcast as in NumPy.

        The dtype of the result defaults to bool for comparisons, int32 for integer functions, that of the first operand
        for mask and mask_bar, and float32 otherwise. Bits are kept where an integer function meets a float32.
        """
        if dtype is None:
            default = self.aval(operands[0]).dtype if function in ("mask", "mask_bar") else "float32"
            default = "int32" if function in _INT_FUNCTIONS else default
            dtype = "bool" if function in _FLAG_FUNCTIONS else default
        dtype = CARRIED.get(dtype, dtype)
        if all(isinstance(x, Immediate) for x in operands):
            return self._evaluate(function, operands, dtype)
        rest = [x for x in operands if not isinstance(x, Immediate)]
        if function == "max" and Immediate(-math.inf, "float32") in operands and self.aval(rest[0]).dtype == dtype:
            return rest[0]  # every softmax asks for it
        shapes = [self.aval(x).shape for x in rest]
        shape = np.broadcast_shapes(*shapes)
        operands = tuple(x if isinstance(x, Immediate) else self.broadcast_to(x, shape) for x in operands)
        return self.add(Elementwise(function), operands, Aval(shape, dtype))[0]

    def _evaluate(self, function: str, operands: Sequence[Operand], dtype: str) -> Operand:
        is_float = function not in (_INT_FUNCTIONS | _INT_COMPARISONS) - {"to_int"}
        arrays = []
        for operand in operands:
            array = np.array([operand.value], operand.dtype)  # type: ignore[union-attr]
            wanted: Any = np.float32 if is_float and function not in _ANY_DTYPE else array.dtype
            wanted = np.int32 if not is_float or function == "to_float" else wanted
            arrays.append(array.view(wanted))
        result = vxm.apply(np, function, *arrays)
        if dtype in NARROW_FLOATS:
            rounded = vxm.apply(np, NARROW_FLOATS[dtype], result.view(np.float32))
            return Immediate(float(rounded[0]), "float32")
        return immediate(result.view(np.float32)[0] if dtype == "float32" else result.view(np.int32)[0], dtype)

    def select(self, predicate: Operand, on_true: Operand, on_false: Operand, dtype: str) -> Operand:
        """on_true where the predicate holds, else on_false; bits are kept."""
        dtype = CARRIED.get(dtype, dtype)
        if isinstance(predicate, Immediate):
            return on_true if predicate.value else on_false
        if on_true == on_false and not isinstance(on_true, Immediate):
            return on_true
        kept = [self.elementwise("mask", on_true, predicate, dtype=dtype)] if _has_bits(on_true) else []
        kept += [self.elementwise("mask_bar", on_false, predicate, dtype=dtype)] if _has_bits(on_false) else []
        if not kept:
            return on_false
        return kept[0] if len(kept) == 1 else self.elementwise("or", *kept, dtype=dtype)

    def lane_reduce(self, function: str, x: int, dtype: str | None = None) -> int:
        """[..., K] -> [..., 1], of another dtype if that is given: float32 sums of narrow floats."""
        aval = self.aval(x)
        return self.add(LaneReduce(function), (x,), Aval((*aval.shape[:-1], 1), dtype or aval.dtype))[0]

    def matmul(
        self,
        lhs: int,
        rhs: int,
        lhs_format: DataFormat,
        rhs_format: DataFormat,
        rhs_values: int | None = None,
        skips_padding: bool = False,
    ) -> int:
        """[B, M, K] x [B, K, N] -> [B, M, N], summed exactly and rounded once.

        An rhs in block floating point is its words; `rhs_values` are what it stands for, to bound the results.
        """
        batch, rows, _ = self.aval(lhs).shape
        is_integer = lhs_format is DataFormat.INT8 and rhs_format is DataFormat.INT8
        aval = Aval((batch, rows, self.aval(rhs).shape[2]), "int32" if is_integer else "float32")
        (result,) = self.add(MatMul(lhs_format, rhs_format, skips_padding), (lhs, rhs), aval)
        values = rhs if rhs_values is None else rhs_values
        self.magnitudes.record_product(result, self.aval(lhs).shape[2], lhs, values)
        return result

    def encode_blocks(self, x: int, data_format: DataFormat, optimal: bool = False) -> int:
        """float32 [..., K, N] -> words int8 [..., words of K rows, N]."""
        *batch, rows, columns = self.aval(x).shape
        shape = (*batch, data_format.num_words(rows), columns)
        return self.add(EncodeBlocks(data_format, optimal), (x,), Aval(shape, "int8"))[0]

    def decode_blocks(self, words: int, data_format: DataFormat, num_rows: int, dtype: str = "float32") -> int:
        """Words -> their values, float32 or bfloat16 [..., num_rows, N]."""
        *batch, _, columns = self.aval(words).shape
        return self.add(DecodeBlocks(data_format), (words,), Aval((*batch, num_rows, columns), dtype))[0]

    # moves

    def reshape(self, x: AnyOperand, shape: Sequence[int]) -> AnyOperand:
        """Row-major reshape; a reshape of a reshape is one of what was there before."""
        if isinstance(x, Immediate) or self.aval(x).shape == tuple(shape):
            return x
        definition = self.ranges.definition(x)
        if definition is not None and definition.op == Reshape():
            (source,) = definition.operands
            assert isinstance(source, int)
            return self.reshape(source, shape)
        return self.add(Reshape(), (x,), Aval(tuple(shape), self.aval(x).dtype))[0]

    def transpose(self, x: AnyOperand, permutation: Sequence[int]) -> AnyOperand:
        """np.transpose; a reshape where only axes of size 1 move."""
        if isinstance(x, Immediate):
            return x
        aval, permutation = self.aval(x), tuple(permutation)
        shape = tuple(aval.shape[i] for i in permutation)
        moved = [i for i in permutation if aval.shape[i] != 1]
        if moved == sorted(moved):
            return self.reshape(x, shape)
        return self.add(Transpose(permutation), (x,), Aval(shape, aval.dtype))[0]

    def broadcast(self, x: AnyOperand, shape: Sequence[int], dimensions: Sequence[int]) -> AnyOperand:
        """Axis i of x becomes axis dimensions[i] of the result."""
        if isinstance(x, Immediate):
            return x
        aval, shape = self.aval(x), tuple(shape)
        if math.prod(aval.shape) == math.prod(shape) and list(dimensions) == sorted(dimensions):
            return self.reshape(x, shape)
        return self.add(Broadcast(tuple(dimensions)), (x,), Aval(shape, aval.dtype))[0]

    def broadcast_to(self, x: AnyOperand, shape: Sequence[int]) -> AnyOperand:
        """np.broadcast_to."""
        if isinstance(x, Immediate) or self.aval(x).shape == tuple(shape):
            return x
        rank = len(self.aval(x).shape)
        return self.broadcast(x, shape, range(len(shape) - rank, len(shape)))

    def slice(
        self, x: AnyOperand, start: Sequence[int], limit: Sequence[int], stride: Sequence[int] | None = None
    ) -> AnyOperand:
        """Static slice."""
        if isinstance(x, Immediate):
            return x
        aval = self.aval(x)
        stride = tuple(stride) if stride is not None else (1,) * len(aval.shape)
        shape = tuple(-(-(b - a) // s) for a, b, s in zip(start, limit, stride, strict=True))
        if shape == aval.shape:
            return x
        return self.add(Slice(tuple(start), tuple(limit), stride), (x,), Aval(shape, aval.dtype))[0]

    def slice_axis(self, x: AnyOperand, axis: int, start: int, limit: int) -> AnyOperand:
        """x[..., start:limit, ...] on one axis."""
        if isinstance(x, Immediate):
            return x
        shape = self.aval(x).shape
        starts, limits = [0] * len(shape), list(shape)
        starts[axis], limits[axis] = start, limit
        return self.slice(x, starts, limits)

    def concatenate(self, values: Sequence[int], axis: int) -> int:
        """np.concatenate; empty operands are left out."""
        avals = [self.aval(x) for x in values]
        kept = [x for x, aval in zip(values, avals, strict=True) if aval.shape[axis]] or list(values[:1])
        if len(kept) == 1:
            return kept[0]
        shape = list(avals[0].shape)
        shape[axis] = sum(aval.shape[axis] for aval in avals)
        return self.add(Concatenate(axis), kept, Aval(tuple(shape), avals[0].dtype))[0]

    def pad(self, x: int, low: Sequence[int], high: Sequence[int], value: Immediate) -> int:
        """Constant padding."""
        aval = self.aval(x)
        if not any(low) and not any(high):
            return x
        shape = tuple(n + a + b for n, a, b in zip(aval.shape, low, high, strict=True))
        return self.add(Pad(tuple(low), tuple(high), value.value), (x,), Aval(shape, aval.dtype))[0]

    def reverse(self, x: AnyOperand, axes: Sequence[int]) -> AnyOperand:
        """np.flip."""
        if isinstance(x, Immediate):
            return x
        axes = tuple(a for a in axes if self.aval(x).shape[a] > 1)
        return self.add(Reverse(axes), (x,), self.aval(x))[0] if axes else x

    def gather_rows(self, table: int, index: int) -> int:
        """table[R, ...] at index int32 [n] -> [n, ...]; the caller keeps 0 <= index < R."""
        aval = self.aval(table)
        shape = (self.aval(index).shape[0], *aval.shape[1:])
        return self.add(GatherRows(), (table, index), Aval(shape, aval.dtype))[0]

    def scatter_rows(self, table: int, rows: int, index: int) -> int:
        """The table with rows replaced at distinct indices."""
        return self.add(ScatterRows(), (table, rows, index), self.aval(table))[0]


_INT_COMPARISONS = frozenset(("ieq", "ine", "ilt", "ile", "igt", "ige"))
_ANY_DTYPE = frozenset(("identity", "mask", "mask_bar"))


def _has_bits(operand: Operand) -> bool:
    return not isinstance(operand, Immediate) or operand.bits != 0
