"""One small graph per op family, for any size of the last axis."""

import numpy as np
from helpers import Sketch

from lpu_jax.runtime.ops import (
    Broadcast,
    Concatenate,
    GatherRows,
    Immediate,
    Pad,
    Reshape,
    Reverse,
    ScatterRows,
    Slice,
    Transpose,
)

FAMILIES = {}


def family(build):
    """Registers a function (sketch, last-axis size) -> outputs."""
    FAMILIES[build.__name__] = build
    return build


# Vector unit


@family
def elementwise_float32(s, n):
    x, y = s.random((3, n), special=True), s.random((3, n), special=True)
    chain = s.fn("max", s.fn("mul", s.fn("add", x, y), Immediate(0.5, "float32")), s.fn("neg", y))
    return s.fn("exp", chain), s.fn("div", x, y), s.fn("abs", x)


@family
def elementwise_float16(s, n):
    x, y = s.random((3, n), "float16", special=True), s.random((3, n), "float16", special=True)
    narrow = s.fn("to_fp16", s.fn("mul", x, y, dtype="float32"), dtype="float16")
    return narrow, s.fn("add", narrow, x), s.fn("identity", y), s.fn("sub", x, y, dtype="float32")


@family
def elementwise_int32(s, n):
    x, y = s.random((3, n), "int32"), s.random((3, n), "int32")
    product = s.fn("imul", s.fn("iadd", x, y), Immediate(-77, "int32"))
    return product, s.fn("shift_right_logical", x, Immediate(5, "int32")), s.fn("to_float", y, dtype="float32")


@family
def elementwise_int8(s, n):
    x, y = s.random((3, n), "int8"), s.random((3, n), "int8")
    return s.fn("iadd", x, y), s.fn("imul", x, y, dtype="int32"), s.fn("iabs", x)


@family
def elementwise_bool(s, n):
    x, y = s.random((3, n), special=True), s.random((3, n), special=True)
    less = s.fn("lt", x, y, dtype="bool")
    both = s.fn("and", less, s.random((3, n), "bool"))
    return less, both, s.fn("mask", x, less), s.fn("mask_bar", y, both)


@family
def lane_sum(s, n):
    return (s.reduce("sum", s.random((2, n))),)


@family
def lane_max_min(s, n):
    x = s.random((2, n))
    return s.reduce("max", x), s.reduce("min", x)


@family
def lane_imax_imin(s, n):
    x = s.random((2, n), "int32")
    return s.reduce("imax", x), s.reduce("imin", x)


@family
def lane_reduce_of_a_chain(s, n):
    x = s.random((2, n))
    return (s.fn("add", s.reduce("max", s.fn("mul", x, x)), Immediate(1.0, "float32")),)


# Matrix unit


@family
def matmul_float16_int8(s, n):
    return (s.matmul(s.random((1, 2, n), "float16"), s.random((1, n, 5), "int8")),)


@family
def matmul_float16_int8_wide(s, n):
    return (s.matmul(s.random((1, 2, 7), "float16"), s.random((1, 7, n), "int8")),)


@family
def matmul_float16_float16(s, n):
    return (s.matmul(s.random((1, 2, n), "float16"), s.random((1, n, 5), "float16")),)


@family
def matmul_float32_float32(s, n):
    return (s.matmul(s.random((1, 2, n)), s.random((1, n, 5))),)


@family
def matmul_int8_int8(s, n):
    return (s.matmul(s.random((1, 3, n), "int8"), s.random((1, n, 4), "int8")),)


@family
def matmul_batched(s, n):
    product = s.matmul(s.random((3, 2, n), "float16"), s.random((3, n, 5), "float16"))
    return (s.fn("mul", product, Immediate(0.25, "float32")),)


@family
def matmul_of_a_product(s, n):
    hidden = s.matmul(s.random((1, 2, 6), "float16"), s.random((1, 6, n), "int8"))
    narrow = s.fn("to_fp16", s.fn("max", hidden, Immediate(0.0, "float32")), dtype="float16")
    return (s.matmul(narrow, s.random((1, n, 3), "int8")),)


# Moves


@family
def reshape(s, n):
    x = s.random((2, 3, n))
    return s.op(Reshape(), x, shape=(6, n)), s.op(Reshape(), x, shape=(6 * n,)), s.op(Reshape(), x, shape=(n, 6))


@family
def transpose(s, n):
    x = s.random((2, 3, n), "float16")
    shapes = ((1, 0, 2), (2, 1, 0), (0, 2, 1))
    return [s.op(Transpose(p), x, shape=[(2, 3, n)[i] for i in p]) for p in shapes]


@family
def slices(s, n):
    x = s.random((5, n), "int8")
    first, step = n // 3, min(2, n)
    lanes = -(-(n - first) // step)
    rows = s.op(Slice((1, 0), (5, n), (3, 1)), x, shape=(2, n))
    return rows, s.op(Slice((0, first), (5, n), (1, step)), x, shape=(5, lanes))


@family
def broadcast(s, n):
    row, column = s.random((n,)), s.random((3, 1))
    return s.op(Broadcast((1,)), row, shape=(3, n)), s.op(Broadcast((0, 1)), column, shape=(3, n))


@family
def concatenate(s, n):
    x, y, z = s.random((2, n)), s.random((3, n)), s.random((2, 4))
    return s.op(Concatenate(0), x, y, shape=(5, n)), s.op(Concatenate(1), z, x, z, shape=(2, n + 8))


@family
def pad(s, n):
    x, y = s.random((2, n)), s.random((2, n + 1))
    rows = s.op(Pad((1, 0), (2, 0), 0.0), x, shape=(5, n))
    return rows, s.op(Pad((0, 3), (0, 1), 0.0), y, shape=(2, n + 5))


@family
def reverse(s, n):
    x = s.random((3, n), "int32")
    return s.op(Reverse((0,)), x), s.op(Reverse((1,)), x)


# Rows at run-time indices


@family
def gather_rows(s, n):
    table = s.random((9, n))
    return [s.op(GatherRows(), table, s.argument(np.array(i, np.int32)), shape=(len(i), n)) for i in ([8], [3, 0, 3])]


@family
def gather_rows_of_bytes(s, n):
    return (s.op(GatherRows(), s.random((9, n), "int8"), s.argument(np.array([7, 2], np.int32)), shape=(2, n)),)


@family
def scatter_rows(s, n):
    table, index = s.random((9, n), "float16"), s.argument(np.array([6, 1], np.int32))
    return (s.op(ScatterRows(), table, s.random((2, n), "float16"), index),)


# Loops


def loop_body(n):
    """(const, carry, x) -> (carry * const + x, (carry - x, x as fp16))."""
    b = Sketch()
    const, carry, x = b.random((2, n)), b.random((2, n)), b.random((2, n))
    following = b.fn("add", b.fn("mul", carry, const), x)
    return b.build((following, b.fn("sub", carry, x), b.fn("identity", x, dtype="float16")))


@family
def scan(s, n):
    return s.scan(loop_body(n), [s.random((2, n))], [s.random((2, n))], [s.random((4, 2, n))], 4)


@family
def scan_of_matmuls(s, n):
    b = Sketch()
    carry, weights = b.random((1, 2, n), "float16"), b.random((1, n, n), "int8")
    product = b.fn("mul", b.matmul(carry, weights), Immediate(1 / 256, "float32"), dtype="float16")
    body = b.build((product, product))
    return s.scan(body, [], [s.random((1, 2, n), "float16")], [s.random((2, 1, n, n), "int8")], 2)


@family
def scan_that_swaps(s, n):
    b = Sketch()
    x, y = b.random((2, n)), b.random((2, n))
    return s.scan(b.build((y, x)), [], [s.random((2, n)), s.random((2, n))], [], 3)


def build(name, n):
    """(graph, arguments) of a family."""
    sketch = Sketch(seed=n)
    graph = sketch.build(tuple(FAMILIES[name](sketch, n)))
    return graph, sketch.arguments
