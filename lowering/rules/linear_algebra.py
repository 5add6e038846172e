"""Rules of dense linear algebra on real matrices: one column a turn, in float32, rounded to a narrower dtype once.

Pivots, signs and the places of the factors are LAPACK's. A matrix of few columns is written out, a larger one is a loop
of the program; batches go through it together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from lpu_jax.lowering.emit import FLOATS, Operand
from lpu_jax.lowering.registry import RuleContext, register_lowering

_MAX_WRITTEN_OUT = 4
Step = Callable[[Any, Any, Any], tuple[Any, Any]]


def each(count: int, step: Step, state: Any, rows: Any = None, *, reverse: bool = False) -> tuple[Any, Any]:
    """(state, stacked results) of (state, result) = step(k, state, rows[k]) for k = 0, 1, ..., or backwards."""
    numbers = np.arange(count, dtype=np.int32)
    if count > _MAX_WRITTEN_OUT:
        xs = (jnp.asarray(numbers), rows)
        return lax.scan(lambda carry, x: step(x[0], carry, x[1]), state, xs, reverse=reverse)
    results: list[Any] = [None] * count
    for k in numbers[::-1] if reverse else numbers:
        state, results[k] = step(k, state, None if rows is None else rows[k])
    return state, None if results[0] is None else jnp.stack(results)


def column(x: Any, k: Any) -> Any:
    """Lane k of [..., n] as [..., 1]."""
    return lax.dynamic_index_in_dim(x, k, x.ndim - 1, keepdims=True)


def row(x: Any, k: Any) -> Any:
    """Row k of [..., m, n] as [..., 1, n]."""
    return lax.dynamic_index_in_dim(x, k, x.ndim - 2, keepdims=True)


def transposed(x: Any) -> Any:
    """The last two axes exchanged."""
    return jnp.swapaxes(x, -1, -2)


def _rows(x: Any, axis: int = -2) -> np.ndarray:
    """Numbers of the rows of [..., m, n] as int32 [m, 1], or of its columns as [n]."""
    numbers = np.arange(x.shape[axis], dtype=np.int32)
    return numbers[:, None] if axis == -2 else numbers


def _in_front(x: Any, axis: int) -> Any:
    return jnp.moveaxis(x, axis, 0)


def _remainder(x: Any, y: Any, a: Any) -> Any:
    """a - x y, rounded once: the MXM's sums are exact."""
    ones = jnp.ones((*x.shape[:-1], 1), x.dtype)
    if a.shape[-1] > 1:  # one row of a: it goes under y
        return jnp.matmul(jnp.concatenate([-x, ones], -1), jnp.concatenate([y, a], -2), precision=lax.Precision.HIGHEST)
    ones = jnp.ones((*y.shape[:-2], 1, y.shape[-1]), y.dtype)
    return jnp.matmul(jnp.concatenate([-x, a], -1), jnp.concatenate([y, ones], -2), precision=lax.Precision.HIGHEST)


def solve_lower(a: Any, b: Any, is_unit: bool) -> Any:
    """x of a x = b for lower triangular a [..., n, n] and b [..., n, m]: x[k] = (b[k] - a[k, :k] x[:k]) / a[k, k]."""
    strict = jnp.where(_rows(a) > _rows(a, -1), a, 0.0)
    lines = _in_front(jnp.concatenate([strict, b, a], -1)[..., None, :], -3)
    n, m = b.shape[-2:]

    def step(k: Any, found: Any, line: Any) -> tuple[Any, Any]:
        new = _remainder(line[..., :n], found, line[..., n : n + m])
        new = new if is_unit else new / column(line[..., n + m :], k)
        return jnp.where(_rows(found) == k, new, found), None

    return each(n, step, jnp.zeros_like(b), lines)[0]


def cholesky(a: Any) -> Any:
    """Lower factor of [..., n, n] from its lower triangle, above it what was there.

    All of a matrix that is not positive definite is NaN.
    """

    def step(k: Any, factor: Any, _: Any) -> tuple[Any, Any]:
        rest = _remainder(factor, transposed(row(factor, k)), column(a, k))
        pivot = row(rest, k)
        new = jnp.where(_rows(a) >= k, rest / lax.sqrt(pivot), 0.0)
        return jnp.where(_rows(a, -1) == k, new, factor), pivot[..., 0, 0]

    factor, pivots = each(a.shape[-1], step, jnp.zeros_like(a))
    is_positive = jnp.all(pivots > 0, 0)[..., None, None]
    return jnp.where(is_positive, jnp.where(_rows(a) >= _rows(a, -1), factor, a), jnp.nan)


def lu(a: Any) -> tuple[Any, Any, Any]:
    """(factors, pivots, permutation) of [..., m, n], the largest element of every column as its pivot."""
    m, n = a.shape[-2:]
    batch = a.shape[:-2]

    def step(k: Any, state: Any, _: Any) -> tuple[Any, Any]:
        rest, permutation = state
        numbers, col = _rows(rest), column(rest, k)
        candidates = jnp.where(numbers >= k, lax.abs(col), -1.0)[..., 0]
        pivot = lax.argmax(candidates, candidates.ndim - 1, np.int32)[..., None, None]
        is_pivot, is_here = numbers == pivot, numbers == k
        chosen = jnp.where(is_pivot, rest, 0.0).sum(-2, keepdims=True)
        rest = jnp.where(is_here, chosen, jnp.where(is_pivot, row(rest, k), rest))
        permutation = _exchanged(permutation, k, pivot[..., 0])
        col, divisor = column(rest, k), column(chosen, k)
        is_below = numbers > k
        factors = jnp.where(is_below & (divisor != 0), col / divisor, col)
        is_right = _rows(rest, -1) > k
        lessened = jnp.where(is_below & is_right, rest - factors * chosen, rest)
        rest = jnp.where(_rows(rest, -1) == k, factors, lessened)
        return (rest, permutation), pivot[..., 0, 0]

    order = jnp.broadcast_to(np.arange(m, dtype=np.int32), (*batch, m))
    (rest, permutation), pivots = each(min(m, n), step, (a, order))
    return rest, jnp.moveaxis(pivots, 0, -1), permutation


def _exchanged(permutation: Any, k: Any, pivot: Any) -> Any:
    """Elements k and pivot [..., 1] of int32 [..., m] exchanged."""
    places = _rows(permutation, -1)
    chosen = jnp.where(places == pivot, permutation, 0).sum(-1, keepdims=True)
    here = column(permutation, k)
    return jnp.where(places == k, chosen, jnp.where(places == pivot, here, permutation))


def permutation_of(pivots: Any, size: int) -> Any:
    """The permutation that the exchanges of an LU decomposition make."""
    order = jnp.broadcast_to(np.arange(size, dtype=np.int32), (*pivots.shape[:-1], size))
    return each(
        pivots.shape[-1], lambda k, p, pivot: (_exchanged(p, k, pivot), None), order, _in_front(pivots, -1)[..., None]
    )[0]


def _power_of_two(x: Any) -> Any:
    """The largest power of two below positive x; 1 for zero and what is not finite."""
    bits = lax.bitcast_convert_type(x, jnp.int32) & 0x7F800000
    return jnp.where((bits == 0) | (bits == 0x7F800000), 1.0, lax.bitcast_convert_type(bits, jnp.float32))


def householder(a: Any) -> tuple[Any, Any]:
    """(R above, reflectors below the diagonal, their factors): H = 1 - tau v v^T takes a column to -sign |x|."""
    m, n = a.shape[-2:]

    def step(k: Any, rest: Any, _: Any) -> tuple[Any, Any]:
        numbers, col = _rows(rest), column(rest, k)
        head = jnp.where(numbers == k, col, 0.0).sum(-2, keepdims=True)
        tail = jnp.where(numbers > k, col, 0.0)
        largest = lax.abs(jnp.where(numbers >= k, col, 0.0)).max(-2, keepdims=True)
        scale = _power_of_two(largest)
        small, first = tail / scale, head / scale
        length = scale * lax.sqrt((small * small).sum(-2, keepdims=True) + first * first)
        is_done = jnp.all(tail == 0, -2, keepdims=True)
        beta = jnp.where(is_done, head, jnp.where(head < 0, length, -length))
        tau = jnp.where(is_done, 0.0, (beta - head) / beta)
        v = jnp.where(is_done, 0.0, tail / (head - beta))
        whole = jnp.where(numbers == k, 1.0, v)
        reflected = rest - (tau * whole) * (whole * rest).sum(-2, keepdims=True)
        made = jnp.where(numbers > k, v, jnp.where(numbers == k, beta, rest))
        is_right, is_here = _rows(rest, -1) > k, _rows(rest, -1) == k
        return jnp.where(is_here, made, jnp.where(is_right, reflected, rest)), tau[..., 0, 0]

    rest, taus = each(min(m, n), step, a)
    return rest, jnp.moveaxis(taus, 0, -1)


def product_of_reflectors(a: Any, taus: Any) -> Any:
    """H[0] H[1] ... of the reflectors below the diagonal of [..., m, n], its first n columns."""
    m, n = a.shape[-2:]
    start = jnp.broadcast_to(np.eye(m, n, dtype=np.float32), a.shape)

    def step(k: Any, q: Any, tau: Any) -> tuple[Any, Any]:
        numbers = _rows(q)
        whole = jnp.where(numbers == k, 1.0, jnp.where(numbers > k, column(a, k), 0.0))
        return q - (tau * whole) * (whole * q).sum(-2, keepdims=True), None

    return each(taus.shape[-1], step, start, _in_front(taus, -1)[..., None, None], reverse=True)[0]


def qr(a: Any, full_matrices: bool) -> tuple[Any, Any]:
    """(Q, R) by Householder reflectors."""
    m, n = a.shape[-2:]
    packed, taus = householder(a)
    size = m if full_matrices else min(m, n)
    padded = jnp.pad(packed, [(0, 0)] * (a.ndim - 1) + [(0, max(0, size - n))])
    upper = jnp.where(_rows(packed) <= _rows(packed, -1), packed, 0.0)
    return product_of_reflectors(padded[..., :size], taus), upper[..., :size, :]


def solve_tridiagonal(lower: Any, diagonal: Any, upper: Any, b: Any) -> Any:
    """x of a system with rows lower[i], diagonal[i], upper[i] [..., n] and sides b [..., n, m].

    A row whose diagonal is smaller than what stands below it changes places with the next.
    """
    count = diagonal.shape[-1]
    lines = jnp.stack([lower, diagonal, upper], -1)[..., None]  # [..., n, 3, 1]
    following = jnp.moveaxis(jnp.concatenate([lines[..., 1:, :, :], jnp.zeros_like(lines[..., :1, :, :])], -3), -3, 0)
    sides = _in_front(jnp.concatenate([b[..., 1:, :], jnp.zeros_like(b[..., :1, :])], -2), -2)

    def forward(k: Any, state: Any, x: Any) -> tuple[Any, Any]:
        first, second, side = state  # of the present row: its diagonal, the element right of it, its side
        line, other = x[..., :3, :], x[..., 3, :]
        below, middle, right = line[..., 0, :], line[..., 1, :], line[..., 2, :]
        keeps = lax.abs(first) >= lax.abs(below)
        factor = jnp.where(keeps, below, first) / jnp.where(keeps, first, below)
        factor = jnp.where(k == count - 1, 0.0, factor)
        done = [jnp.where(keeps, first, below), jnp.where(keeps, second, middle), jnp.where(keeps, 0.0, right)]
        new = jnp.where(keeps, middle, second) - factor * jnp.where(keeps, second, middle)
        beyond = jnp.where(keeps, right, -factor * right)
        rest = jnp.where(keeps, other, side) - factor * jnp.where(keeps, side, other)
        return (new, beyond, rest), jnp.concatenate([*done, jnp.where(keeps, side, other)], -1)

    given = jnp.concatenate(
        [jnp.broadcast_to(following, (*following.shape[:-1], b.shape[-1])), sides[..., None, :]], -2
    )
    start = (diagonal[..., :1], upper[..., :1], b[..., 0, :])
    widened = tuple(jnp.broadcast_to(s, b[..., 0, :].shape) for s in start)
    _, made = each(count, forward, widened, given)
    width = b.shape[-1]

    def backward(k: Any, state: Any, x: Any) -> tuple[Any, Any]:
        del k
        near, far = state
        pivot, second, third, side = (x[..., i * width : (i + 1) * width] for i in range(4))
        found = (side - second * near - third * far) / pivot
        return (found, near), found

    zero = jnp.zeros_like(b[..., 0, :])
    _, found = each(count, backward, (zero, zero), made, reverse=True)
    return jnp.moveaxis(found, 0, -2)


def _in_float32(ctx: RuleContext, fun: Callable[..., Any], *operands: Operand) -> Sequence[Operand]:
    """A function of real matrices, its floats rounded to the dtypes of the results."""
    for aval in ctx.avals_in:
        if aval.dtype not in (*FLOATS, "int32"):
            raise ctx.unsupported(f"matrices of {aval.dtype}")

    def whole(*arrays: Any) -> Any:
        wide = [lax.convert_element_type(x, jnp.float32) if str(x.dtype) in FLOATS else x for x in arrays]
        results = fun(*wide)
        results = results if isinstance(results, tuple) else (results,)
        return [lax.convert_element_type(r, a.dtype) for r, a in zip(results, ctx.avals_out, strict=True)]

    return ctx.rewrite(whole, *operands)


@register_lowering("triangular_solve")
def _triangular_solve(
    ctx: RuleContext,
    a: Operand,
    b: Operand,
    *,
    left_side: bool,
    lower: bool,
    transpose_a: bool,
    conjugate_a: bool,
    unit_diagonal: bool,
) -> Sequence[Operand]:
    """Real matrices."""
    del conjugate_a  # of real numbers

    def fun(matrix: Any, side: Any) -> Any:
        is_turned = transpose_a == left_side
        matrix = transposed(matrix) if is_turned else matrix
        side = side if left_side else transposed(side)
        if lower == is_turned:  # an upper triangle backwards is a lower one
            found = jnp.flip(solve_lower(jnp.flip(matrix, (-1, -2)), jnp.flip(side, -2), unit_diagonal), -2)
        else:
            found = solve_lower(matrix, side, unit_diagonal)
        return found if left_side else transposed(found)

    return _in_float32(ctx, fun, a, b)


@register_lowering("cholesky")
def _cholesky(ctx: RuleContext, a: Operand) -> Sequence[Operand]:
    """Real matrices; NaN where one is not positive definite."""
    return _in_float32(ctx, cholesky, a)


@register_lowering("lu")
def _lu(ctx: RuleContext, a: Operand) -> Sequence[Operand]:
    """Real matrices, with partial pivoting."""
    return _in_float32(ctx, lu, a)


@register_lowering("lu_pivots_to_permutation")
def _lu_pivots_to_permutation(ctx: RuleContext, pivots: Operand, *, permutation_size: int) -> Sequence[Operand]:
    return _in_float32(ctx, lambda p: permutation_of(p, permutation_size), pivots)


@register_lowering("geqrf")
def _geqrf(ctx: RuleContext, a: Operand) -> Sequence[Operand]:
    """Real matrices."""
    return _in_float32(ctx, householder, a)


@register_lowering("householder_product")
def _householder_product(ctx: RuleContext, a: Operand, taus: Operand) -> Sequence[Operand]:
    """Real matrices."""
    return _in_float32(ctx, product_of_reflectors, a, taus)


@register_lowering("qr")
def _qr(
    ctx: RuleContext, a: Operand, *, pivoting: bool, full_matrices: bool, use_magma: Any = None
) -> Sequence[Operand]:
    """Real matrices, without pivoting."""
    del use_magma  # of another platform
    ctx.require(pivoting=(pivoting, [False]))
    return _in_float32(ctx, lambda x: qr(x, full_matrices), a)


@register_lowering("tridiagonal_solve")
def _tridiagonal_solve(
    ctx: RuleContext,
    lower: Operand,
    diagonal: Operand,
    upper: Operand,
    b: Operand,
    *,
    perturb_singular: bool = False,
) -> Sequence[Operand]:
    """Real matrices, with partial pivoting."""
    ctx.require(perturb_singular=(perturb_singular, [False]))
    return _in_float32(ctx, solve_tridiagonal, lower, diagonal, upper, b)
