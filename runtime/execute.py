"""execute: a graph as vectorised JAX, one array operation per equation, with the bits of the machine.

It is a pure JAX function: it can be jitted, vmapped and scanned over. Every result has a single rounding that does not
depend on tiling, so working on whole tensors gives the bits that the machine's tiles give.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lpu_jax.runtime import fusion, numerics, vxm, vxm_float32, xla_functions
from lpu_jax.runtime.accumulation import accumulate, add_partial_sums, in_tiles, tile_rows
from lpu_jax.runtime.block_words import decode_words, encode_words
from lpu_jax.runtime.chip import GROQCHIP1
from lpu_jax.runtime.errors import trip_count_error
from lpu_jax.runtime.exponents import exponent_sum, scale_sums
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
    GraphLike,
    HostCall,
    Immediate,
    LaneReduce,
    MatMul,
    Pad,
    Reshape,
    Reverse,
    Scan,
    ScatterRows,
    Slice,
    Transpose,
    While,
    loops_of,
)
from lpu_jax.runtime.prepared import PreparedWeights, exact_dot_prepared, prepare_weights, values_of
from lpu_jax.runtime.units.vxm import INTEGER_FUNCTIONS
from lpu_jax.runtime.vxm_float32 import Known
from lpu_jax.runtime.wide_sums import exact_sum

Array = Any


@dataclasses.dataclass(frozen=True, slots=True)
class Mode:
    """How sums over K are accumulated (runtime/accumulation.py), the rows of a plane, and who looks on."""

    accumulation: str = "exact"
    num_mxm_rows: int = GROQCHIP1.num_mxm_rows
    observe: Callable[[Equation, list[Any]], None] | None = None  # sees every equation and its traced operands


EXACT = Mode()
Counts = list[Array]
"""Turns made by every loop of a graph (int64 scalars), in the order of `ops.loops_of`."""


def execute(graph: GraphLike, arguments: Sequence[Array], mode: Mode = EXACT) -> list[Array]:
    """Evaluates a graph.

    Args:
      graph: a verified Graph.
      arguments: one array per input, of its shape and dtype; inputs named by `prepared_inputs` may be given as
        `prepare` made them.
      mode: how dot products are accumulated.

    Returns:
      The results, in the graph's dtypes.
    """
    with jax.enable_x64(True):
        results, counts = _run(graph, [as_held(argument) for argument in arguments], mode)
        return _unless_endless(graph, results, counts) if counts else results


def execute_counted(
    graph: GraphLike, arguments: Sequence[Array], mode: Mode = EXACT
) -> tuple[list[Array], list[Array], list[Array]]:
    """As `execute`, without refusing a loop that does not end.

    Returns:
      The results; the turns that each loop of `ops.loops_of(graph)` made (int64); whether it would have gone on.
    """
    with jax.enable_x64(True):
        results, counts = _run(graph, [as_held(argument) for argument in arguments], mode)
        return results, [count for count, _ in counts], [goes_on for _, goes_on in counts]


def as_held(argument: Array) -> Array:
    """Unsigned and 16-bit integers are held as int32: the same number, or the same bits for uint32."""
    if isinstance(argument, PreparedWeights):
        return argument
    argument = jnp.asarray(argument)
    is_held = argument.dtype in (np.uint32, np.uint16, np.int16, np.uint8)
    return argument.astype(np.int32) if is_held else argument


def _run(graph: GraphLike, arguments: Sequence[Array], mode: Mode) -> tuple[list[Array], Counts]:
    """Results, and for every loop its turns and whether it would have gone on."""
    counts: Counts = []
    env: dict[int, Array] = dict(zip(graph.inputs, arguments, strict=True))
    env.update((value, jnp.asarray(content)) for value, content in graph.constants)
    kept = fusion.kept_values(graph) if mode.accumulation != "float32" else frozenset()
    scales = scale_sums(graph) if mode.accumulation == "exact" else frozenset()
    known = {value: vxm_float32.known_constant(content) for value, content in graph.constants}
    for equation in graph.equations:
        operands = [
            jnp.asarray(v.value, dtype=v.dtype) if isinstance(v, Immediate) else env[v] for v in equation.operands
        ]
        facts = [vxm_float32.known_of(v, known) for v in equation.operands]
        if mode.observe is not None:
            mode.observe(equation, operands)
        if isinstance(equation.op, While):
            results, made = _while(equation.op, operands, mode)
            counts += made
        elif equation.results and equation.results[0] in scales and facts[0].is_magnitude:
            results = [exponent_sum(operands[0])]
        else:
            results = evaluate(equation, operands, [graph.avals[r] for r in equation.results], mode, facts)
            if len(results) == 1:
                aval = graph.avals[equation.results[0]]
                known[equation.results[0]] = vxm_float32.known_result(equation, facts, aval.dtype)
        env.update((v, fusion.keep(x) if v in kept else x) for v, x in zip(equation.results, results, strict=True))
    return [env[value] for value in graph.outputs], counts


def evaluate(
    equation: Equation, operands: list[Array], avals: list[Aval], mode: Mode, known: Sequence[Known] = ()
) -> list[Array]:
    """The results of one equation, of these avals; known: of its operands, if anything is."""
    op = equation.op
    if isinstance(op, Scan):
        return _scan(op, operands, mode)
    if isinstance(op, HostCall):
        return list(op.fun(*operands))
    if isinstance(op, MatMul):
        return [_matmul(op, operands, mode)]
    if mode.accumulation == "float32" and isinstance(op, Elementwise):
        return [_elementwise(op, operands, avals[0], xla_functions.apply)]
    if mode.accumulation == "float32" and isinstance(op, LaneReduce):
        folded = xla_functions.lane_reduce(op.function, operands[0])
        return [_lane_reduce(op, operands, avals[0]) if folded is None else folded.astype(avals[0].dtype)]
    if isinstance(op, Elementwise):
        facts = [
            _known_as_float32(x, fact) for x, fact in zip(operands, known or [Known()] * len(operands), strict=True)
        ]
        return [_elementwise(op, operands, avals[0], lambda function, *x: vxm_float32.apply(function, x, facts))]
    if isinstance(op, LaneReduce) and op.function == "sum":
        return [_lane_sum(operands[0], mode)]
    return [_RULES[type(equation.op)](equation.op, operands, avals[0])]


# Vector unit ------------------------------------------------------------------------------------------------------


def storage_format(dtype: Any) -> DataFormat:
    """Format in which a graph dtype is stored; bool as 0 or 1 in a byte."""
    return DataFormat.UINT8 if np.dtype(dtype) == np.bool_ else DataFormat[_FORMAT_NAMES[np.dtype(dtype).name]]


_FORMAT_NAMES = {"float32": "FP32", "float16": "FP16", "int32": "INT32", "int16": "INT16", "int8": "INT8"}
_FORMAT_NAMES |= {"bfloat16": "BF16", "float8_e4m3fn": "E4M3", "float8_e5m2": "E5M2"}


def _working(x: Array) -> Array:
    stored = x.astype(np.uint8) if x.dtype == np.bool_ else x
    return vxm.from_format(jnp, stored, storage_format(x.dtype))


def _as(x: Array, dtype: Any) -> Array:
    """The same 32 bits as float32 or int32."""
    return x if x.dtype == dtype else numerics.bitcast(jnp, x, dtype)


def _stored(working: Array, aval: Aval) -> Array:
    """A working value in the result dtype: rounded to fp16, or cut to the low bits of narrow integers."""
    data_format = storage_format(aval.dtype)
    working = _as(working, np.float32 if data_format.is_float else np.int32)
    stored = vxm.to_format(jnp, working, data_format)
    return stored.astype(np.bool_) if aval.dtype == "bool" else stored


def _known_as_float32(x: Array, known: Known) -> Known:
    """Subnormals of narrow floats are normal as float32; bf16 has the exponents of float32."""
    is_narrow = x.dtype in (np.float16, *map(vxm.storage_dtype, (DataFormat.E4M3, DataFormat.E5M2)))
    return dataclasses.replace(known, is_flushed=True) if is_narrow else known


def _elementwise(op: Elementwise, operands: list[Array], aval: Aval, apply: Callable[..., Array]) -> Array:
    dtype = np.int32 if op.function in INTEGER_FUNCTIONS else np.float32
    working = [_as(_working(x), dtype) for x in operands]
    result = apply(op.function, *working)
    return jnp.broadcast_to(_stored(result, aval), aval.shape)


def _lane_reduce(op: LaneReduce, operands: list[Array], aval: Aval) -> Array:
    x = operands[0]
    dtype = np.int32 if op.function in INTEGER_FUNCTIONS else np.float32
    working = _as(_working(x), dtype)
    if working.shape[-1] > 1 and (found := vxm_float32.lane_reduce(op.function, working)) is not None:
        return _stored(found, aval)
    while working.shape[-1] > 1:
        half = working.shape[-1] // 2
        rest = working[..., 2 * half :]
        folded = vxm.apply(jnp, op.function, working[..., :half], working[..., half : 2 * half])
        working = jnp.concatenate([folded, rest], axis=-1)
    return _stored(working, aval)


def _lane_sum(x: Array, mode: Mode) -> Array:
    """A product with ones, as the MXM makes it."""
    step = tile_rows(storage_format(x.dtype), DataFormat.INT8, mode.num_mxm_rows)
    x = x.astype(np.float32)
    if mode.accumulation != "tile":
        return exact_sum(jnp, x)[..., None]
    parts = exact_sum(jnp, jnp.moveaxis(in_tiles(jnp, x, step, -1), -2, 0))
    return add_partial_sums(jnp, list(parts))[..., None]


# Matrix unit ------------------------------------------------------------------------------------------------------


def _matmul(op: MatMul, operands: list[Array], mode: Mode) -> Array:
    lhs, rhs = operands
    if isinstance(rhs, PreparedWeights):
        return _product_prepared(op, lhs[0], rhs, mode)[None]
    if lhs.shape[0] == 1:  # XLA on CPU is slow at batches of one
        return _product(op, lhs[0], rhs[0], mode)[None]
    return _product(op, lhs, rhs, mode)


def _product(op: MatMul, lhs: Array, rhs: Array, mode: Mode) -> Array:
    if op.rhs_format.is_block and rhs.dtype == np.int8:
        rhs = decode_words(jnp, rhs, op.rhs_format.number_format, lhs.shape[-1])
    return accumulate(jnp, lhs, rhs, op.lhs_format, op.rhs_format, mode.accumulation, mode.num_mxm_rows)


def _product_prepared(op: MatMul, lhs: Array, rhs: PreparedWeights, mode: Mode) -> Array:
    if mode.accumulation == "exact":
        return exact_dot_prepared(lhs, rhs, op.lhs_format)
    values = values_of(rhs)
    return accumulate(jnp, lhs, values, op.lhs_format, op.rhs_format, mode.accumulation, mode.num_mxm_rows)


def _encode(op: EncodeBlocks, operands: list[Array], aval: Aval) -> Array:
    return encode_words(jnp, operands[0], op.format.number_format, op.optimal)


def _decode(op: DecodeBlocks, operands: list[Array], aval: Aval) -> Array:
    return decode_words(jnp, operands[0], op.format.number_format, aval.shape[-2], np.dtype(aval.dtype))


# Memory -----------------------------------------------------------------------------------------------------------


def _gather(op: GatherRows, operands: list[Array], aval: Aval) -> Array:
    table, index = operands
    if index.shape == (1,):
        return lax.dynamic_index_in_dim(table, index[0], axis=0, keepdims=True)
    return jnp.take(table, index, axis=0, mode="clip")


def _scatter(op: ScatterRows, operands: list[Array], aval: Aval) -> Array:
    table, rows, index = operands
    if index.shape == (1,):
        return lax.dynamic_update_slice_in_dim(table, rows, index[0], axis=0)
    return table.at[index].set(rows, unique_indices=True, mode="promise_in_bounds")


def _reshape(x: Array, aval: Aval) -> Array:
    return x if isinstance(x, PreparedWeights) else x.reshape(aval.shape)


def _pad(op: Pad, operands: list[Array], aval: Aval) -> Array:
    widths = list(zip(op.low, op.high, strict=True))
    return jnp.pad(operands[0], widths, constant_values=np.asarray(op.value, operands[0].dtype))


_RULES: dict[type, Callable[[Any, list[Array], Aval], Array]] = {
    EncodeBlocks: _encode,
    DecodeBlocks: _decode,
    LaneReduce: _lane_reduce,
    GatherRows: _gather,
    ScatterRows: _scatter,
    Reshape: lambda op, operands, aval: _reshape(operands[0], aval),
    Transpose: lambda op, operands, aval: operands[0].transpose(op.permutation),
    Slice: lambda op, operands, aval: lax.slice(operands[0], op.start, op.limit, op.stride),
    Broadcast: lambda op, operands, aval: lax.broadcast_in_dim(operands[0], aval.shape, op.dimensions),
    Concatenate: lambda op, operands, aval: lax.concatenate(operands, op.axis),
    Pad: _pad,
    Reverse: lambda op, operands, aval: jnp.flip(operands[0], op.axes),
}


# Loops ------------------------------------------------------------------------------------------------------------


def _scan(op: Scan, operands: list[Array], mode: Mode) -> list[Array]:
    consts, carry = operands[: op.num_consts], operands[op.num_consts :][: op.num_carry]
    xs = operands[op.num_consts + op.num_carry :]
    inputs = [None if isinstance(x, PreparedWeights) else x.dtype for x in xs]
    outputs = [np.dtype(op.body.avals[v].dtype) for v in op.body.outputs[op.num_carry :]]

    def step(state: Sequence[Array], slices: Sequence[Array]) -> tuple[list[Array], list[Array]]:
        slices = [_from_bits(x, dtype) for x, dtype in zip(slices, inputs, strict=True)]
        results, _ = _run(op.body, [*consts, *state, *slices], mode)
        ys = results[op.num_carry :]
        return results[: op.num_carry], [_to_bits(y) for y in ys]

    packed = [_to_bits(x) for x in xs]
    final, ys = lax.scan(step, list(carry), packed, length=op.num_iterations, reverse=op.reverse)
    return [*final, *(_from_bits(y, dtype) for y, dtype in zip(ys, outputs, strict=True))]


def _while(op: While, operands: list[Array], mode: Mode) -> tuple[list[Array], Counts]:
    """The state of the loop: carry, turns made, and turns and ends of the loops inside."""
    consts, start = operands[: op.num_consts], operands[op.num_consts :]

    def goes_on(state: Any) -> Array:
        carry, turns, _ = state
        return carry[0] & (turns < op.max_trip_count)

    def turn(state: Any) -> Any:
        carry, turns, inner = state
        results, counts = _run(op.body, [*consts, *carry], mode)
        added = [(total + count, end | ends) for (total, end), (count, ends) in zip(inner, counts, strict=True)]
        return results, turns + 1, added

    none = jnp.zeros((), np.int64)
    inner = [(none, jnp.zeros((), np.bool_)) for _ in loops_of(op.body)]
    carry, turns, inner = lax.while_loop(goes_on, turn, (list(start), none, inner))
    return carry, [(turns, carry[0]), *inner]


def _unless_endless(graph: GraphLike, results: list[Array], counts: Counts) -> list[Array]:
    """The results; raises TripCountError at run time if a loop would have gone on."""
    names = loops_of(graph)

    def refuse(ends: np.ndarray, *values: np.ndarray) -> tuple[np.ndarray, ...]:
        for goes_on, (name, limit) in zip(ends.tolist(), names, strict=True):
            if goes_on:
                raise trip_count_error(name, limit)
        return values

    def checked(ends: Array, *values: Array) -> list[Array]:
        shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in values]
        return list(jax.pure_callback(refuse, tuple(shapes), ends, *values, vmap_method="sequential"))

    ends = jnp.stack([goes_on for _, goes_on in counts])
    found: list[Array] = lax.cond(ends.any(), checked, lambda _, *values: list(values), ends, *results)
    return found


_CARRIERS = {"float16": np.uint16, "bfloat16": np.uint16, "float8_e4m3fn": np.uint8, "float8_e5m2": np.uint8}


def _to_bits(x: Array) -> Array:
    """Narrow floats travel through loops as integers: XLA on CPU would widen the whole stack otherwise."""
    if isinstance(x, PreparedWeights):
        return x
    carrier = _CARRIERS.get(x.dtype.name)
    return x if carrier is None else lax.bitcast_convert_type(x, carrier)


def _from_bits(x: Array, dtype: Any) -> Array:
    return x if dtype is None or dtype.name not in _CARRIERS else lax.bitcast_convert_type(x, dtype)


# Prepared weights -------------------------------------------------------------------------------------------------


def prepared_inputs(graph: GraphLike) -> tuple[int, ...]:
    """Inputs that are only multiplied with, directly or in a loop, and may be passed prepared."""
    return tuple(v for v in graph.inputs if _weight_use(graph, v) is not None)


@dataclasses.dataclass(frozen=True, slots=True)
class _WeightUse:
    """Rhs of products of `num_terms` in one format with `num_rows` rows; in_loop: sliced turn by turn."""

    data_format: DataFormat
    num_terms: int
    num_rows: int
    in_loop: bool = False


def _weight_use(graph: GraphLike, value: int) -> _WeightUse | None:
    """How a value is used as weights; None if it is used in any other way, or in several formats."""
    if value in graph.outputs:
        return None
    uses = [(e, i) for e in graph.equations for i, v in enumerate(e.operands) if v is value or v == value]
    found = [_use_in(graph, equation, index) for equation, index in uses]
    if not found or None in found:
        return None
    fewest = min(use.num_rows for use in found if use is not None)
    first, *others = (dataclasses.replace(use, num_rows=fewest) for use in found if use is not None)
    return first if all(use == first for use in others) else None


def _use_in(graph: GraphLike, equation: Equation, index: int) -> _WeightUse | None:
    op = equation.op
    if isinstance(op, Reshape):
        return _weight_use(graph, equation.results[0]) if _keeps_matrix(graph, equation) else None
    if isinstance(op, MatMul):
        lhs = equation.operands[0]
        assert isinstance(lhs, int)
        batches, num_rows, num_terms = graph.avals[lhs].shape
        is_integer = op.lhs_format is op.rhs_format is DataFormat.INT8
        if index != 1 or batches != 1 or is_integer or op.rhs_format is DataFormat.FP32:
            return None
        return _WeightUse(op.rhs_format, num_terms, num_rows)
    if isinstance(op, Scan) and index >= op.num_consts + op.num_carry:
        inside = _weight_use(op.body, op.body.inputs[index])
        return None if inside is None or inside.in_loop else dataclasses.replace(inside, in_loop=True)
    return None


def _keeps_matrix(graph: GraphLike, equation: Equation) -> bool:
    """Whether a reshape only adds or drops leading axes of size 1."""
    before, after = graph.avals[equation.operands[0]].shape, graph.avals[equation.results[0]].shape  # type: ignore[index]
    return len(before) >= 2 and len(after) >= 2 and before[-2:] == after[-2:]


def prepare(graph: GraphLike, values: dict[int, np.ndarray]) -> dict[int, PreparedWeights]:
    """Prepared forms of the given inputs (by value id), computed once at load."""
    found = {}
    for value, array in values.items():
        use = _weight_use(graph, value)
        assert use is not None
        if use.data_format.is_block:
            array = decode_words(np, np.asarray(array), use.data_format.number_format, use.num_terms)
        if _is_finite(array):
            matrix = array.reshape((array.shape[0] if use.in_loop else 1, *array.shape[-2:]))
            chosen = matrix if use.in_loop else matrix[0]
            found[value] = prepare_weights(chosen, use.data_format, not use.in_loop, use.num_rows)
    return found


def widen_weights(graph: GraphLike, values: dict[int, np.ndarray]) -> dict[int, Array]:
    """The given inputs (by value id) as float32 with the same values, which is what mode `float32` multiplies."""
    found = {}
    for value, array in values.items():
        use = _weight_use(graph, value)
        assert use is not None
        if use.data_format.is_block:
            number_format = use.data_format.number_format
            found[value] = jnp.asarray(decode_words(np, array, number_format, use.num_terms).astype(np.float32))
        else:
            found[value] = jnp.asarray(array.astype(np.float32))
    return found


def _is_finite(array: np.ndarray) -> bool:
    return array.dtype.kind == "i" or bool(np.isfinite(array.astype(np.float32)).all())
