"""Graphs with their arguments, and the one claim about them: the machine gives the executor's bits in known cycles."""

import jax
import numpy as np

from lpu_jax.lowering.ir import GraphBuilder
from lpu_jax.lowering.passes.schedule_checks import verify_schedule
from lpu_jax.lowering.pipeline import compile_graph
from lpu_jax.runtime import vxm
from lpu_jax.runtime.exact_dot import exact_dot
from lpu_jax.runtime.execute import execute, execute_counted
from lpu_jax.runtime.isa import DataFormat
from lpu_jax.runtime.ops import (
    Aval,
    Broadcast,
    Concatenate,
    Elementwise,
    GatherRows,
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
)
from lpu_jax.runtime.units.vxm import INTEGER_FUNCTIONS
from lpu_jax.runtime.wide_sums import exact_sum

SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 2.0**-126, 2.0**-149, 3.4e38, 1.0, -1.0], np.float32)
FORMATS = {"float32": DataFormat.FP32, "float16": DataFormat.FP16, "int8": DataFormat.INT8}


class Sketch(GraphBuilder):
    """A GraphBuilder that keeps an argument for every input and infers the shapes of simple ops."""

    def __init__(self, seed=0):
        super().__init__()
        self.rng = np.random.default_rng(seed)
        self.arguments = []

    def argument(self, array):
        self.arguments.append(np.asarray(array))
        return self.input(Aval(self.arguments[-1].shape, str(self.arguments[-1].dtype)))

    def random(self, shape, dtype="float32", special=False):
        return self.argument(random_array(self.rng, shape, dtype, special))

    def op(self, op, *operands, shape=None, dtype=None):
        """Result of an op; the shape and dtype of the first operand that is a value, where none are given."""
        like = next((self.avals[v] for v in operands if not isinstance(v, Immediate)), None)
        return self.add(op, operands, Aval(like.shape if shape is None else tuple(shape), dtype or like.dtype))[0]

    def fn(self, function, *operands, dtype=None):
        return self.op(Elementwise(function), *operands, dtype=dtype)

    def reduce(self, function, x):
        dtype = "float32" if function == "sum" else None
        return self.op(LaneReduce(function), x, shape=(*self.avals[x].shape[:-1], 1), dtype=dtype)

    def matmul(self, lhs, rhs):
        left, right = self.avals[lhs], self.avals[rhs]
        dtype = "int32" if left.dtype == right.dtype == "int8" else "float32"
        shape = (*left.shape[:2], right.shape[2])
        return self.op(MatMul(FORMATS[left.dtype], FORMATS[right.dtype]), lhs, rhs, shape=shape, dtype=dtype)

    def scan(self, body, consts, carry, xs, num_iterations, reverse=False):
        """Results of a loop; body is a finished graph."""
        scan = Scan(body, num_iterations, len(consts), len(carry), reverse)
        avals = [body.avals[v] for v in body.outputs]
        ys = [Aval((num_iterations, *a.shape), a.dtype) for a in avals[len(carry) :]]
        return self.add(scan, (*consts, *carry, *xs), *avals[: len(carry)], *ys)


def random_array(rng, shape, dtype="float32", special=False):
    """Random values of a dtype; with `special` zeros, infinities, NaN and subnormals among the floats."""
    if dtype == "bool":
        return rng.integers(0, 2, shape).astype(np.bool_)
    if dtype.startswith("int"):
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)
    values = rng.standard_normal(shape).astype(np.float32)
    if special:
        chosen = rng.random(shape) < 0.3
        values = np.where(chosen, rng.choice(SPECIAL, shape), values)
    with np.errstate(over="ignore"):
        return values.astype(dtype)


def assert_same_bits(actual, expected, what=""):
    actual, expected = np.ascontiguousarray(actual), np.ascontiguousarray(expected)
    assert actual.dtype == expected.dtype, what
    assert actual.shape == expected.shape, what
    if actual.tobytes() != expected.tobytes():
        raw = f"V{actual.dtype.itemsize}"
        wrong = np.argwhere(actual.view(raw) != expected.view(raw))
        where = tuple(wrong[0])
        raise AssertionError(
            f"{what}: {len(wrong)} of {actual.size} elements differ, the first at {where}: "
            f"{actual[where]!r} on the machine, {expected[where]!r} expected"
        )


def reference(graph, arguments):
    """The graph in plain NumPy, op by op as runtime/ops.py defines them: needs no compilation by XLA."""
    env = dict(zip(graph.inputs, arguments, strict=True)) | dict(graph.constants)
    for equation in graph.equations:
        operands = [np.array(v.value, v.dtype) if isinstance(v, Immediate) else env[v] for v in equation.operands]
        avals = [graph.avals[v] for v in equation.results]
        env.update(zip(equation.results, _evaluate(equation.op, operands, avals), strict=True))
    return [env[v] for v in graph.outputs]


def _evaluate(op, operands, avals):
    if isinstance(op, Scan):
        return _scan(op, operands)
    aval = avals[0]
    if isinstance(op, Elementwise):
        result = _stored(vxm.apply(np, op.function, *(_working(v, op.function) for v in operands)), aval)
    elif isinstance(op, LaneReduce):
        result = _lane_reduce(op.function, operands[0], aval)
    elif isinstance(op, MatMul):
        result = exact_dot(np, *operands, op.lhs_format, op.rhs_format)
    else:
        result = _MOVES[type(op)](op, operands, aval.shape)
    assert result.shape == aval.shape
    return [result]


def _lane_reduce(function, x, aval):
    if function == "sum":
        return exact_sum(np, x)[..., None]
    columns = np.moveaxis(_working(x, function), -1, 0)
    folded = columns[0]
    for column in columns[1:]:
        folded = vxm.apply(np, function, folded, column)
    return _stored(folded[..., None], aval)


def _broadcast(op, operands, shape):
    sizes = dict(zip(op.dimensions, operands[0].shape, strict=True))
    return np.broadcast_to(operands[0].reshape([sizes.get(i, 1) for i in range(len(shape))]), shape)


def _scatter(op, operands, shape):
    table, rows, index = operands
    table = table.copy()
    table[index] = rows
    return table


_MOVES = {
    Reshape: lambda op, operands, shape: operands[0].reshape(shape),
    Transpose: lambda op, operands, shape: np.transpose(operands[0], op.permutation),
    Slice: lambda op, operands, shape: operands[0][tuple(map(slice, op.start, op.limit, op.stride))],
    Broadcast: _broadcast,
    Concatenate: lambda op, operands, shape: np.concatenate(operands, op.axis),
    Pad: lambda op, operands, shape: np.pad(
        operands[0], [*zip(op.low, op.high, strict=True)], constant_values=op.value
    ),
    Reverse: lambda op, operands, shape: np.flip(operands[0], op.axes),
    GatherRows: lambda op, operands, shape: operands[0][operands[1]],
    ScatterRows: _scatter,
}


def _working(x, function):
    """An operand as the VXM sees it: 32 bits, float32 or int32 as the function asks."""
    if x.dtype == np.float16:
        x = vxm.from_format(np, x, DataFormat.FP16)
    elif x.dtype != np.float32:
        x = x.astype(np.int32)
    return x.view(np.int32 if function in INTEGER_FUNCTIONS else np.float32)


def _stored(x, aval):
    if aval.dtype in ("float32", "float16"):
        return vxm.to_format(np, x.view(np.float32), FORMATS[aval.dtype])
    return x.view(np.int32).astype(aval.dtype)


def _scan(op, operands):
    consts, carry = operands[: op.num_consts], operands[op.num_consts :][: op.num_carry]
    xs = operands[op.num_consts + op.num_carry :]
    ys = {}
    order = range(op.num_iterations)
    for i in reversed(order) if op.reverse else order:
        results = reference(op.body, [*consts, *carry, *(x[i] for x in xs)])
        carry, ys[i] = results[: op.num_carry], results[op.num_carry :]
    return [*carry, *(np.stack([ys[i][k] for i in order]) for k in range(len(op.body.outputs) - op.num_carry))]


def jitted(graph, arguments):
    """The graph's results from the jitted executor."""
    return [np.asarray(x) for x in jax.jit(lambda values: execute(graph, values))(list(arguments))]


def jitted_counted(graph, arguments):
    """As `jitted`, with the turns that the loops of unknown length made and whether they would have gone on."""
    return jax.jit(lambda values: execute_counted(graph, values))(list(arguments))


def assert_agrees(graph, chip, arguments, donated=None, model=reference):
    """Compiles a graph and runs it: the model's bits, the predicted cycles, and a schedule free of conflicts.

    model: `reference`, or `jitted` for the executor that users get.
    """
    compiled = compile_graph(graph, chip, donated=donated)
    verify_schedule(compiled.schedule)
    outputs, cycles = compiled.simulate(arguments)
    expected = model(graph, arguments)
    assert len(outputs) == len(expected)
    for position, (actual, wanted) in enumerate(zip(outputs, expected, strict=True)):
        assert_same_bits(actual, wanted, f"output {position}")
    assert cycles == compiled.cycles
    return compiled
