"""dot_general: the exactly summed, once rounded product of the operands rounded to float16 under exact scales."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from on_lpu import assert_machine_agrees

from lpu_jax.lowering.prune import split_resident
from lpu_jax.runtime.execute import execute
from lpu_jax.runtime.isa import DataFormat
from lpu_jax.runtime.ops import Elementwise, MatMul, Transpose

DIMENSION_NUMBERS = [
    ((4, 6), (6, 5), (((1,), (0,)), ((), ()))),
    ((4, 6), (5, 6), (((1,), (1,)), ((), ()))),
    ((6, 4), (6, 5), (((0,), (0,)), ((), ()))),
    ((6,), (6,), (((0,), (0,)), ((), ()))),
    ((6,), (6, 5), (((0,), (0,)), ((), ()))),
    ((2, 4, 6), (2, 6, 5), (((2,), (1,)), ((0,), (0,)))),
    ((4, 2, 6), (5, 6, 2), (((2,), (1,)), ((1,), (2,)))),
    ((2, 3, 4, 6), (2, 3, 5, 6), (((3,), (3,)), ((0, 1), (0, 1)))),
    ((2, 4, 3, 2), (3, 2, 7), (((2, 3), (0, 1)), ((), ()))),
    ((2, 4, 3), (3, 2, 7), (((0, 2), (1, 0)), ((), ()))),
    ((3, 4), (5, 2), (((), ()), ((), ()))),
    ((1, 1), (1, 1), (((1,), (0,)), ((), ()))),
    ((3, 7), (3, 7), (((1,), (1,)), ((0,), (0,)))),
    ((2, 6, 4), (2, 5, 6), (((1,), (2,)), ((0,), (0,)))),
]


def _power_of_two(magnitude):
    """2^e with magnitude * 2^-e in [2^14, 2^15); 1 for 0."""
    return np.where(magnitude > 0, 2.0 ** (np.floor(np.log2(np.where(magnitude > 0, magnitude, 1))) - 14), 1.0)


def _rounded_lhs(x, contract):
    scale = _power_of_two(np.abs(x.astype(np.float64)).sum(axis=contract, keepdims=True).astype(np.float32))
    return (x / scale).astype(np.float16).astype(np.float64) * scale


def _rounded_rhs(x, batch, contract):
    """The sum of the largest values along the last axis as it was written, and the axes of its kind, decides."""
    free = tuple(i for i in range(x.ndim) if i not in batch and i not in contract)
    summed, rest = (contract, free) if x.ndim - 1 in contract else (free, contract)
    largest = np.abs(x.astype(np.float64)).max(axis=tuple(rest), keepdims=True)
    scale = _power_of_two(largest.sum(axis=tuple(summed), keepdims=True).astype(np.float32))
    return (x / scale).astype(np.float16).astype(np.float64) * scale


def _is_swapped(lhs, rhs, numbers):
    """The operand whose contracting axis is the last one is the lhs of the MXM, if the other one's is not."""
    (lhs_contract, rhs_contract), _ = numbers
    has_rows = lhs.ndim > len(lhs_contract) and rhs.ndim > len(rhs_contract)
    return has_rows and lhs.ndim - 1 not in lhs_contract and rhs.ndim - 1 in rhs_contract


def _rounded_operands(lhs, rhs, numbers):
    (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = numbers
    if _is_swapped(lhs, rhs, numbers):
        return _rounded_rhs(lhs, lhs_batch, lhs_contract), _rounded_lhs(rhs, rhs_contract)
    return _rounded_lhs(lhs, lhs_contract), _rounded_rhs(rhs, rhs_batch, rhs_contract)


def _float64_dot(lhs, rhs, numbers):
    with jax.enable_x64(True):
        return np.asarray(lax.dot_general(lhs, rhs, numbers, precision=lax.Precision.HIGHEST))


@pytest.mark.parametrize(("lhs_shape", "rhs_shape", "numbers"), DIMENSION_NUMBERS)
@pytest.mark.parametrize("magnitude", [1.0, 1e-20, 3e8])
def test_a_float32_product_is_that_of_scaled_float16_operands(on_lpu, random, lhs_shape, rhs_shape, numbers, magnitude):
    lhs = (random.normal(size=lhs_shape) * magnitude).astype(np.float32)
    rhs = random.normal(size=rhs_shape).astype(np.float32)
    wanted = _float64_dot(*_rounded_operands(lhs, rhs, numbers), numbers)
    # float64 sums of 11-bit x 11-bit products over less than 2^10 terms are exact enough to decide the rounding
    np.testing.assert_array_equal(
        on_lpu(lambda a, b: lax.dot_general(a, b, numbers), lhs, rhs), wanted.astype(np.float32)
    )


@pytest.mark.parametrize(("lhs_shape", "rhs_shape", "numbers"), DIMENSION_NUMBERS)
def test_float16_operands_enter_as_they_are(on_lpu, random, lhs_shape, rhs_shape, numbers):
    lhs, rhs = random.normal(size=lhs_shape).astype(np.float16), random.normal(size=rhs_shape).astype(np.float16)
    wanted = _float64_dot(lhs.astype(np.float64), rhs.astype(np.float64), numbers).astype(np.float32)

    def product(a, b):
        return lax.dot_general(a, b, numbers, preferred_element_type=jnp.float32)

    np.testing.assert_array_equal(on_lpu(product, lhs, rhs), wanted)
    np.testing.assert_array_equal(
        on_lpu(lambda a, b: lax.dot_general(a, b, numbers), lhs, rhs), wanted.astype(np.float16)
    )


@pytest.mark.parametrize(("lhs_shape", "rhs_shape", "numbers"), DIMENSION_NUMBERS)
def test_int8_products_are_integers(on_lpu, random, lhs_shape, rhs_shape, numbers):
    lhs, rhs = (random.integers(-128, 128, size=shape, dtype=np.int8) for shape in (lhs_shape, rhs_shape))

    def product(a, b):
        return lax.dot_general(a, b, numbers, preferred_element_type=jnp.int32)

    np.testing.assert_array_equal(on_lpu(product, lhs, rhs), product(lhs, rhs))


@pytest.mark.parametrize("how", ["option", "equation"])
def test_highest_precision_is_the_rounded_real_product(on_lpu, lowered, random, how):
    lhs, rhs = (random.normal(size=(12, 12)) * 10.0 ** random.integers(-5, 5, (12, 12)) for _ in range(2))
    lhs, rhs = lhs.astype(np.float32), rhs.astype(np.float32)
    precision = lax.Precision.HIGHEST if how == "equation" else None
    option = {"precision": "highest"} if how == "option" else {}

    def product(a, b):
        return jnp.matmul(a, b, precision=precision)

    (matmul,) = [e.op for e in lowered(product, lhs, rhs, **option).equations if isinstance(e.op, MatMul)]
    assert matmul == MatMul(DataFormat.FP32, DataFormat.FP32)
    exact = np.array([[sum(int(a * 2.0**60) * int(b * 2.0**60) for a, b in zip(row, column, strict=True))
                       for column in rhs.T.astype(object)] for row in lhs.astype(object)])  # fmt: skip
    wanted = np.array([[float(v) * 2.0**-120 for v in row] for row in exact])
    np.testing.assert_allclose(on_lpu(product, lhs, rhs, **option), wanted, rtol=2.0**-24 * 1.001)


def test_rows_of_zeros_infinities_and_nans(on_lpu):
    lhs = np.array([[0, 0], [np.inf, 1], [np.nan, 1], [3e38, 3e38], [2e-38, 2e-38]], np.float32)
    rhs = np.array([[1, 2], [4, 8]], np.float32)
    result = on_lpu(jnp.matmul, lhs, rhs)
    np.testing.assert_array_equal(result[:4], [[0, 0], [np.inf, np.inf], [np.nan, np.nan], [np.inf, np.inf]])
    np.testing.assert_allclose(result[4], [1e-37, 2e-37], rtol=2.0**-10)


def test_matrices_of_zeros_infinities_and_nans(on_lpu):
    lhs = np.array([[1, 2]], np.float32)
    np.testing.assert_array_equal(on_lpu(jnp.matmul, lhs, np.zeros((2, 3), np.float32)), np.zeros((1, 3)))
    rhs = np.array([[np.inf, np.nan, 1], [1, 1, 1]], np.float32)
    result = on_lpu(jnp.matmul, lhs, rhs)
    np.testing.assert_array_equal(result[0, :2], [np.inf, np.nan])


def _functions(graph):
    return [e.op.function for e in graph.equations if isinstance(e.op, Elementwise)]


def test_probabilities_need_no_scale(lowered):
    def attend(scores, values):
        return jax.nn.softmax(scores) @ values.astype(jnp.float16).astype(jnp.float32)

    assert "isub" not in _functions(lowered(attend, np.ones((4, 6), np.float32), np.ones((6, 5), np.float32)))


def test_a_value_from_float16_needs_no_scale(lowered, on_lpu, random):
    lhs, rhs = random.normal(size=(3, 5)).astype(np.float16), random.normal(size=(5, 4)).astype(np.float16)

    def product(a, b):
        return a.astype(jnp.float32) @ b.astype(jnp.float32)

    assert "isub" not in _functions(lowered(product, lhs, rhs))
    wanted = (lhs.astype(np.float64) @ rhs.astype(np.float64)).astype(np.float32)
    np.testing.assert_array_equal(on_lpu(product, lhs, rhs), wanted)


def test_products_of_one_operand_share_its_scale(lowered):
    graph = lowered(lambda x, a, b: (x @ a, x @ b), *[np.ones((4, 4), np.float32)] * 3)
    matmuls = [e for e in graph.equations if isinstance(e.op, MatMul)]
    assert len({e.operands[0] for e in matmuls}) == 1


def test_constant_weights_are_scaled_while_lowering(lowered, on_lpu, random):
    weights = (random.normal(size=(5, 4)) * 1e-3).astype(np.float32)
    x = random.normal(size=(2, 5)).astype(np.float32)
    constants = [array.dtype for _, array in lowered(lambda x: x @ weights, x).constants]
    assert constants == [np.float16]
    np.testing.assert_array_equal(on_lpu(lambda x: x @ weights, x), on_lpu(jnp.matmul, x, weights))


def test_resident_weights_are_scaled_once_at_load(lowered, random):
    w, x = random.normal(size=(2, 6, 6)).astype(np.float32)
    graph = lowered(lambda w, x: jnp.tanh(x @ w.T) @ w, w, x)
    prologue, main = split_resident(graph, {graph.inputs[0]})
    assert [prologue.avals[v].dtype for v in prologue.outputs].count("float16") == 2
    loaded = execute(prologue, [w])
    np.testing.assert_array_equal(execute(main, [x, *loaded])[0], execute(graph, [w, x])[0])
    assert not any(e.op == Elementwise("abs") for e in main.equations if main.avals[e.results[0]].shape == (1, 6, 6)
                   and e.operands[0] in main.inputs[1:])  # fmt: skip


def test_int8_weights_have_an_identity_prologue(lowered):
    graph = lowered(
        lambda w, x: lax.dot_general(x, w, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32),
        np.ones((6, 4), np.int8),
        np.ones((2, 6), np.float16),
    )
    prologue, main = split_resident(graph, {graph.inputs[0]})
    assert [prologue.avals[v].dtype for v in prologue.outputs] == ["int8"]
    assert [e.op for e in main.equations if isinstance(e.op, MatMul)] == [MatMul(DataFormat.FP16, DataFormat.INT8)]


def test_attention_over_values_transposes_neither_operand(lowered, random):
    """JAX writes this einsum as v . p and transposes the result; p and v are used as they are."""
    p, v = jax.nn.softmax(random.normal(size=(2, 3, 5, 6))), random.normal(size=(2, 6, 3, 4))
    graph = lowered(lambda p, v: jnp.einsum("bhqk,bkhd->bqhd", p, v), p.astype(np.float16), v.astype(np.float16))
    maker = {result: e for e in graph.equations for result in e.results}
    (product,) = [e for e in graph.equations if isinstance(e.op, MatMul)]
    pending = list(product.operands)
    while pending:
        made = maker.get(pending.pop())
        if made is not None:
            assert not (isinstance(made.op, Transpose) and made.op.permutation[-1] != len(made.op.permutation) - 1)
            pending += made.operands


def test_slices_of_one_operand_share_its_scale_and_rounding(lowered):
    def heads(x, y):
        bounded = jnp.clip(x, -50.0, 50.0)
        return bounded[:, :4] @ y, bounded[:, 4:] @ y

    graph = lowered(heads, np.zeros((3, 8), np.float32), np.zeros((4, 5), np.float16))
    assert sum(e.op == Elementwise("to_fp16") for e in graph.equations) == 1


def test_heads_of_the_rhs_are_scaled_one_by_one(on_lpu, random):
    """A head that is 2^60 times smaller keeps its accuracy, though the scale is applied to whole rows."""
    q, k = random.normal(size=(2, 3, 4)).astype(np.float32), random.normal(size=(5, 2, 4)).astype(np.float32)
    k[:, 1] *= np.float32(2.0**-60)
    scores = on_lpu(lambda q, k: jnp.einsum("hqd,khd->hqk", q, k), q, k)
    exact = np.einsum("hqd,khd->hqk", q.astype(np.float64), k.astype(np.float64))
    bound = np.einsum("hqd,khd->hqk", abs(q).astype(np.float64), abs(k).astype(np.float64)) * 2.0**-9
    assert (abs(scores - exact) <= bound).all()


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_a_product_of_one_element_may_become_a_scalar(dtype):
    def fun(x):
        matrix = (x + x).reshape(1, 1)
        return (matrix @ matrix.T).reshape(()) + x

    assert_machine_agrees(fun, dtype(3))
