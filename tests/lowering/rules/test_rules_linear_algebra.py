"""Linear algebra: pivots and signs are LAPACK's, factors no further from float64 than twice XLA's, in norm."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from on_lpu import assert_machine_agrees

from lpu_jax import lpu
from lpu_jax.runtime.errors import UnsupportedPrimitiveError

linalg = lax.linalg
SIZES = [(2, 2), (2, 6, 6)]


def assert_as_exact_as_xla(fun, *arguments):
    with jax.enable_x64(True):
        real = jax.tree.leaves(fun(*(np.asarray(x, np.float64) for x in arguments)))
        real = [np.asarray(r) for r in real]
    ours = jax.tree.leaves(lpu(fun, precision="highest")(*arguments))
    for x, xla, r in zip(ours, jax.tree.leaves(jax.jit(fun)(*arguments)), real, strict=True):
        if r.dtype != np.float64:
            np.testing.assert_array_equal(x, xla)
            continue
        size = np.abs(r).max()
        own, error = (np.abs(np.asarray(v) - r).max() / size for v in (xla, x))
        assert x.dtype == xla.dtype
        assert error <= 2 * own + 2.0**-23


def well_conditioned(random, shape):
    a = random.normal(size=shape).astype(np.float32)
    return a + np.eye(*shape[-2:], dtype=np.float32) * 3


@pytest.mark.parametrize("shape", [(2, 2), (2, 6, 6)])
def test_triangular_systems_of_every_kind(random, shape):
    a, n = well_conditioned(random, shape), shape[-1]
    b = random.normal(size=(*shape[:-1], 2)).astype(np.float32)
    kinds = [
        dict(zip(("left_side", "lower", "transpose_a"), k, strict=True)) for k in itertools.product((0, 1), repeat=3)
    ]
    kinds = kinds[::3] if n == 2 else kinds[:1]

    def fun(a, b):
        sides = (jnp.swapaxes(b, -1, -2), b)
        return [
            linalg.triangular_solve(a, sides[k["left_side"]], **{name: bool(on) for name, on in k.items()})
            for k in kinds
        ] + [linalg.triangular_solve(a, b, left_side=True, lower=True, unit_diagonal=True)]

    assert_as_exact_as_xla(fun, a, b)


@pytest.mark.parametrize("shape", SIZES)
def test_cholesky(random, shape):
    a = well_conditioned(random, shape)
    assert_as_exact_as_xla(linalg.cholesky, a @ np.swapaxes(a, -1, -2))


def test_cholesky_reads_the_lower_triangle_and_tells_what_is_not_positive(random):
    good = np.array([[4, 100], [2, 5]], np.float32)
    bad = np.array([[1, 0], [2, 1]], np.float32)
    fun = lpu(lambda a: linalg.cholesky(a, symmetrize_input=False), precision="highest")
    np.testing.assert_allclose(
        fun(np.stack([good, bad])), linalg.cholesky(np.stack([good, bad]), symmetrize_input=False), rtol=1e-6
    )


@pytest.mark.parametrize("shape", [(3, 2), (2, 5, 6)])
def test_lu_and_its_permutation(random, shape):
    assert_as_exact_as_xla(lambda a: linalg.lu(a), random.normal(size=shape).astype(np.float32))
    pivots = np.array([3, 3, 2, 4, 4], np.int32)

    def fun(p):
        return linalg.lu_pivots_to_permutation(p, 6)

    np.testing.assert_array_equal(lpu(fun)(pivots), fun(pivots))


def test_lu_of_singular_matrices(random):
    a = np.array([[0, 0, 1], [0, 0, 2], [0, 3, 0]], np.float32)
    for x, y in zip(lpu(linalg.lu)(a), linalg.lu(a), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(("shape", "full"), [((2, 3), False), ((3, 2), False), ((7, 5), True)])
def test_qr(random, shape, full):
    assert_as_exact_as_xla(lambda a: linalg.qr(a, full_matrices=full), random.normal(size=shape).astype(np.float32))


def test_qr_of_huge_tiny_and_zero_columns():
    a = np.array([[[1e30, 0], [2e30, 0], [2e30, 0]], [[1e-30, 2], [2e-30, 3], [2e-30, 5]]], np.float32)
    q, r = lpu(linalg.qr, precision="highest")(a)
    wanted = linalg.qr(a)
    np.testing.assert_allclose(q, wanted[0], atol=1e-6)
    np.testing.assert_allclose(r, wanted[1], rtol=1e-5)


def test_qr_with_pivoting_is_refused():
    with pytest.raises(UnsupportedPrimitiveError, match="pivoting"):
        lpu(lambda a: linalg.qr(a, pivoting=True))(np.eye(3, dtype=np.float32))


@pytest.mark.parametrize("size", [2, 9])
def test_tridiagonal_systems_with_zeros_on_the_diagonal(random, size):
    lower, middle, upper = random.normal(size=(3, size)).astype(np.float32)
    lower[0], upper[-1], middle[1] = 0, 0, 0
    b = random.normal(size=(size, 2)).astype(np.float32)
    assert_as_exact_as_xla(linalg.tridiagonal_solve, lower, middle, upper, b)


def test_solve_uses_them(random):
    a, b = well_conditioned(random, (5, 5)), random.normal(size=5).astype(np.float32)

    found = lpu(jnp.linalg.solve, precision="highest")(a, b)
    np.testing.assert_allclose(found, np.linalg.solve(a, b), rtol=1e-4, atol=1e-5)


def test_machine_equals_runtime(random):
    a = well_conditioned(random, (5, 5))
    assert_machine_agrees(linalg.cholesky, a @ a.T)
    assert_machine_agrees(linalg.lu, a)
    assert_machine_agrees(linalg.qr, a)
    small = a[:2, :2]
    assert_machine_agrees(lambda a: linalg.triangular_solve(a, a, left_side=True, lower=True), small)
