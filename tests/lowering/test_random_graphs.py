"""Random graphs: whatever the ops and shapes, machine and executor agree in bits and cycles."""

import numpy as np
from helpers import Sketch, assert_agrees, jitted
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lpu_jax.chips import groqchip1, tiny
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

SIZES = (1, 2, 3, 5, 15, 16, 17, 33)
FLOATS, INTEGERS = ("float32", "float16"), ("int32", "int8", "bool")
UNARY = ("exp", "tanh", "neg", "abs", "floor", "sign", "rsqrt")
BINARY = ("add", "sub", "mul", "div", "max", "min")
INTEGER_BINARY = ("iadd", "isub", "imul", "imax", "imin", "xor", "and")
STEPS = {}


def step(build):
    """Registers a function (sketch, draw, value) -> value, or None where the op does not apply."""
    STEPS[build.__name__] = build
    return build


def fresh(s, draw, shape, dtype):
    """An operand of a shape: an earlier value if there is one, or a new argument."""
    known = [v for v, a in enumerate(s.avals) if a.shape == shape and a.dtype == dtype]
    return draw(st.sampled_from(known)) if known and draw(st.booleans()) else s.random(shape, dtype, special=True)


@step
def float_function(s, draw, x):
    aval = s.avals[x]
    if aval.dtype not in FLOATS:
        return s.fn("to_float", x, dtype="float32")
    if draw(st.booleans()):
        return s.fn(draw(st.sampled_from(UNARY)), x, dtype="float32")
    y = Immediate(-0.75, "float32") if draw(st.booleans()) else fresh(s, draw, aval.shape, aval.dtype)
    operands = (x, y) if draw(st.booleans()) else (y, x)
    return s.fn(draw(st.sampled_from(BINARY)), *operands, dtype=draw(st.sampled_from(FLOATS)))


@step
def integer_function(s, draw, x):
    aval = s.avals[x]
    if aval.dtype not in INTEGERS:
        return s.fn("to_int", x, dtype="int32")
    y = Immediate(11, "int32") if draw(st.booleans()) else fresh(s, draw, aval.shape, aval.dtype)
    return s.fn(draw(st.sampled_from(INTEGER_BINARY)), x, y, dtype=draw(st.sampled_from(("int32", "int8"))))


@step
def select(s, draw, x):
    aval = s.avals[x]
    if aval.dtype != "float32":
        return None
    chosen = s.fn("lt", x, fresh(s, draw, aval.shape, aval.dtype), dtype="bool")
    return s.fn(draw(st.sampled_from(["mask", "mask_bar"])), x, chosen)


@step
def narrow(s, draw, x):
    return s.fn("to_fp16", x, dtype="float16") if s.avals[x].dtype == "float32" else None


@step
def reduce(s, draw, x):
    aval = s.avals[x]
    functions = {"float32": ("sum", "max", "min"), "int32": ("imax", "imin")}.get(aval.dtype)
    return s.reduce(draw(st.sampled_from(functions)), x) if functions and aval.shape else None


@step
def matmul(s, draw, x):
    aval = s.avals[x]
    if aval.dtype not in ("float16", "float32", "int8") or len(aval.shape) < 2:
        return None
    k, dtypes = aval.shape[-1], {"float16": ("int8", "float16"), "float32": ("float32",), "int8": ("int8",)}
    batched = len(aval.shape) == 3 and draw(st.booleans())
    batches, rows = aval.shape[:2] if batched else (1, int(np.prod(aval.shape[:-1])))
    lhs = s.op(Reshape(), x, shape=(batches, rows, k))
    shape = (batches, k, draw(st.sampled_from(SIZES)))
    return s.matmul(lhs, fresh(s, draw, shape, draw(st.sampled_from(dtypes[aval.dtype]))))


@step
def reshape(s, draw, x):
    size = int(np.prod(s.avals[x].shape))
    last = draw(st.sampled_from([d for d in (1, 2, 3, 5, 16, 17, size) if size % d == 0]))
    shape = draw(st.sampled_from([(size,), (size // last, last), (1, size // last, last)]))
    return s.op(Reshape(), x, shape=shape)


@step
def transpose(s, draw, x):
    shape = s.avals[x].shape
    permutation = draw(st.permutations(range(len(shape))))
    return s.op(Transpose(tuple(permutation)), x, shape=[shape[i] for i in permutation])


@step
def take(s, draw, x):
    shape = s.avals[x].shape
    start = [draw(st.integers(0, n - 1)) for n in shape]
    limit = [draw(st.integers(i + 1, n)) for i, n in zip(start, shape, strict=True)]
    stride = [draw(st.integers(1, 3)) for _ in shape]
    sizes = [-(-(b - a) // c) for a, b, c in zip(start, limit, stride, strict=True)]
    return s.op(Slice(tuple(start), tuple(limit), tuple(stride)), x, shape=sizes)


@step
def broadcast(s, draw, x):
    shape = s.avals[x].shape
    wide = [draw(st.sampled_from((2, 17))) if n == 1 else n for n in shape]
    if len(shape) < 3 and draw(st.booleans()):
        return s.op(Broadcast(tuple(range(1, len(shape) + 1))), x, shape=(2, *wide))
    return s.op(Broadcast(tuple(range(len(shape)))), x, shape=wide)


@step
def concatenate(s, draw, x):
    aval = s.avals[x]
    if not aval.shape:
        return None
    axis = draw(st.integers(0, len(aval.shape) - 1))
    other = list(aval.shape)
    other[axis] = draw(st.sampled_from((1, 2, 16)))
    parts = draw(st.permutations([x, fresh(s, draw, tuple(other), aval.dtype)]))
    total = sum(s.avals[p].shape[axis] for p in parts)
    return s.op(Concatenate(axis), *parts, shape=[total if i == axis else n for i, n in enumerate(aval.shape)])


@step
def pad(s, draw, x):
    shape = s.avals[x].shape
    if not shape:
        return None
    low, high = (tuple(draw(st.integers(0, 2)) for _ in shape) for _ in range(2))
    return s.op(
        Pad(low, high, draw(st.sampled_from((0, 1)))),
        x,
        shape=[a + n + b for a, n, b in zip(low, shape, high, strict=True)],
    )


@step
def reverse(s, draw, x):
    shape = s.avals[x].shape
    return s.op(Reverse((draw(st.integers(0, len(shape) - 1)),)), x) if shape else None


@step
def gather(s, draw, x):
    shape = s.avals[x].shape
    if len(shape) < 2:
        return None
    index = draw(st.lists(st.integers(0, shape[0] - 1), min_size=1, max_size=3))
    return s.op(GatherRows(), x, s.argument(np.array(index, np.int32)), shape=(len(index), *shape[1:]))


@step
def scatter(s, draw, x):
    aval = s.avals[x]
    if len(aval.shape) < 2:
        return None
    index = draw(st.lists(st.integers(0, aval.shape[0] - 1), min_size=1, max_size=2, unique=True))
    rows = fresh(s, draw, (len(index), *aval.shape[1:]), aval.dtype)
    return s.op(ScatterRows(), x, rows, s.argument(np.array(index, np.int32)))


@step
def loop(s, draw, x):
    aval = s.avals[x]
    if aval.dtype != "float32" or len(aval.shape) < 2 or aval.shape[0] < 2:
        return None
    b = Sketch()
    const, carry, part = (b.random(aval.shape[1:]) for _ in range(3))
    following = b.fn("add", b.fn("mul", carry, const), part)
    body = b.build((following, draw(st.sampled_from([carry, part, following]))))
    consts, carries = ([fresh(s, draw, aval.shape[1:], aval.dtype)] for _ in range(2))
    return draw(st.sampled_from(s.scan(body, consts, carries, [x], aval.shape[0], draw(st.booleans()))))


@st.composite
def sketches(draw, sizes=SIZES, max_elements=300):
    """(graph, arguments) of up to eight random ops in a row or side by side."""
    s = Sketch(draw(st.integers(0, 1000)))
    shape = (*draw(st.lists(st.sampled_from((1, 2, 3)), max_size=2)), draw(st.sampled_from(sizes)))
    values = [s.random(shape, draw(st.sampled_from(FLOATS + INTEGERS)), special=True)]
    for _ in range(draw(st.integers(1, 8))):
        build = STEPS[draw(st.sampled_from(sorted(STEPS)))]
        value = build(s, draw, draw(st.sampled_from(values[-3:])))
        if value is not None and np.prod(s.avals[value].shape) <= max_elements:
            values.append(value)
    outputs = draw(st.lists(st.sampled_from(values), max_size=2))
    return s.build((values[-1], *outputs)), s.arguments


COMMON = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=150, **COMMON)
@given(sketches())
def test_machine_agrees_with_definition(sketch):
    graph, arguments = sketch
    assert_agrees(graph, tiny, arguments)


@settings(max_examples=15, **COMMON)
@given(sketches())
def test_machine_agrees_with_jitted_executor(sketch):
    graph, arguments = sketch
    assert_agrees(graph, tiny, arguments, model=jitted)


@settings(max_examples=30, **COMMON)
@given(sketches(sizes=(1, 319, 320, 321, 641), max_elements=4000))
def test_machine_of_320_lanes_agrees_with_definition(sketch):
    graph, arguments = sketch
    assert_agrees(graph, groqchip1, arguments)
