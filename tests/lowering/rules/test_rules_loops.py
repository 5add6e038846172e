"""Loops of unknown length: the host starts every turn; machine and runtime agree in bits, turns and cycles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import jitted_counted
from jax import lax

from lpu_jax.lowering.lower import lower_jaxpr
from lpu_jax.lowering.pipeline import compile_graph
from lpu_jax.precision import as_policy
from lpu_jax.runtime.chip import TINY as tiny
from lpu_jax.runtime.errors import TripCountError
from lpu_jax.runtime.execute import execute
from lpu_jax.runtime.ops import HostCall, Scan, While

X = np.arange(6, dtype=np.float32).reshape(2, 3)
THREE = np.int32(3)


def double_until(x, limit=1000):
    return lax.while_loop(lambda s: s.sum() < limit, lambda s: s * 2 + 1, x)


def check(fun, *args, trip_counts=None, fallback=None):
    """Plain JAX's values in both executors, the same turns, and the cycles that are predicted for them."""
    graph = lower_jaxpr(jax.make_jaxpr(fun)(*args), precision=as_policy("highest"), fallback=fallback)
    leaves = jax.tree.leaves(args)
    held = [np.asarray(x).astype(graph.avals[v].dtype) for x, v in zip(leaves, graph.inputs, strict=True)]
    results, counts, ends = jitted_counted(graph, held)
    assert not any(ends)
    compiled = compile_graph(graph, tiny)
    ran = compiled.run(held)
    for actual, ours, wanted in zip(ran.outputs, results, jax.tree.leaves(fun(*args)), strict=True):
        assert np.asarray(actual).tobytes() == np.asarray(ours).tobytes()
        np.testing.assert_allclose(np.asarray(ours).astype(wanted.dtype), wanted, rtol=1e-6)
    assert ran.trip_counts == tuple(int(n) for n in counts)
    assert ran.cycles == compiled.cycles_taken(ran.trip_counts)
    assert sum(compiled.piece_cycles) == compiled.cycles
    if trip_counts is not None:
        assert ran.trip_counts == trip_counts
    return compiled


@pytest.mark.parametrize("count", [0, 1, 5])
def test_fori_with_a_bound_that_is_an_argument(count):
    check(lambda n, x: lax.fori_loop(0, n, lambda i, x: x * 2 + i, x), np.int32(count), X, trip_counts=(count,))


def test_a_condition_on_the_data():
    compiled = check(double_until, X, trip_counts=(6,))
    before, turn = compiled.piece_cycles
    assert compiled.cycles_taken((6,)) == before + 6 * turn


def test_a_trip_count_that_follows_from_constants_makes_a_scan(on_lpu, lowered):
    def fun(x):
        return lax.while_loop(lambda s: s[0] < s[1], lambda s: (s[0] * 2, s[1], s[2] + 1), (1, 20, x))[2]

    assert [e.op.num_iterations for e in lowered(fun, X).equations if isinstance(e.op, Scan)] == [5]
    np.testing.assert_array_equal(on_lpu(fun, X), X + 5)


def test_a_loop_that_never_starts_is_its_start(lowered):
    graph = lowered(lambda x: lax.while_loop(lambda s: s[0] < 0, lambda s: (s[0] + 1, s[1] * 2), (0, x))[1], X)
    assert not graph.equations


def test_every_element_of_a_batch_has_its_own_end():
    check(jax.vmap(double_until), X, trip_counts=(8,))


def test_loops_in_loops():
    def triangle(n, x):
        return lax.fori_loop(0, n, lambda i, x: lax.fori_loop(0, i, lambda j, x: x + j, x), x)

    check(triangle, np.int32(4), X, trip_counts=(4, 6))


def test_a_loop_in_a_scan_and_a_scan_in_a_loop():
    check(lambda x: lax.scan(lambda c, r: (double_until(c + r), c), X[0], x, reverse=True), X, trip_counts=(2, 6))
    weights = np.random.default_rng(0).normal(size=(3, 3, 3)).astype(np.float32)

    def layers(x, w):
        def turn(s):
            return lax.scan(lambda h, w: (h @ w + 1, None), s, w)[0]

        return lax.while_loop(lambda s: jnp.abs(s).sum() < 1000, turn, x)

    check(layers, X, weights)


def test_only_the_chosen_branch_runs_if_it_might_not_end():
    branches = [lambda x: x, double_until, lambda x: lax.while_loop(lambda s: s.sum() > 0, lambda s: s * 2, x + 1)]

    def fun(i, x):
        return lax.switch(i, branches, x)

    check(fun, np.int32(1), X, trip_counts=(0, 1, 6, 0, 0))
    check(fun, np.int32(-5), X, trip_counts=(1, 0, 0, 0, 0))


@pytest.mark.parametrize("dtype", [np.uint32, np.int8, np.float16, bool])
def test_a_loop_carries_every_dtype(dtype):
    def fun(n, x):
        return lax.fori_loop(0, n, lambda i, s: (s[1], s[0]), (x, x[::-1]))

    check(fun, THREE, X.astype(dtype), trip_counts=(3,))


def test_a_loop_carries_keys(on_lpu):
    def fun(n, seed):
        key = lax.fori_loop(0, n, lambda i, k: jax.random.split(k)[0], jax.random.key(seed))
        return jax.random.bits(key, (3,))

    np.testing.assert_array_equal(on_lpu(fun, THREE, np.int32(7)), fun(THREE, np.int32(7)))


def test_an_endless_loop_is_given_up_with_its_name():
    def fun(x):
        with jax.named_scope("forever"):
            return lax.while_loop(lambda s: s[0, 0] < 1, lambda s: s * 1, x)

    graph = lower_jaxpr(jax.make_jaxpr(fun)(X), max_trip_count=4)
    with pytest.raises(TripCountError, match=r"forever at test_rules_loops.py:\d+ .*made 4 turns"):
        compile_graph(graph, tiny).run([X])
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"forever .*made 4 turns"):
        jax.block_until_ready(execute(graph, [X]))


def test_an_endless_loop_of_known_start_is_given_up_while_lowering():
    def fun(x):
        return lax.while_loop(lambda s: s[0] >= 0, lambda s: (s[0] * 1, s[1] + 1), (0, x))

    with pytest.raises(TripCountError, match="made 9 turns"):
        lower_jaxpr(jax.make_jaxpr(fun)(X), max_trip_count=9)


def test_the_host_computes_what_has_no_lowering():
    check(lambda x: jnp.fft.fft(x + 1).real * 2, X, fallback="host")

    def roots(n, x):
        return lax.fori_loop(0, n, lambda i, s: jnp.linalg.eigh(s @ s.T + jnp.eye(3))[1], x)

    check(roots, THREE, X.T @ X, fallback="host")


def test_only_the_host_holds_complex_numbers():
    def fun(z, x):
        return jnp.abs(z + x), jnp.conj(z)

    z = (X + 1j * X).astype(np.complex64)
    graph = lower_jaxpr(jax.make_jaxpr(fun)(z, X), fallback="host")
    assert all(isinstance(e.op, HostCall) for e in graph.equations)
    ran = compile_graph(graph, tiny).run([z, X])
    for actual, wanted in zip(ran.outputs, fun(z, X), strict=True):
        np.testing.assert_array_equal(actual, wanted)


def test_a_complex_number_goes_round_a_loop():
    def fun(n, x):
        z = lax.fori_loop(0, n, lambda i, s: (s[1] * 1j, s[0] + 1), (x + 0j, 1j * x))
        return z[0].real, z[1].imag

    check(fun, THREE, X, fallback="host", trip_counts=(3,))


def test_callbacks_are_made_in_order():
    seen = []

    def fun(n, x):
        def turn(i, s):
            jax.debug.callback(lambda i: seen.append(int(i)), i)
            return s + jax.pure_callback(lambda s: np.float32(2) * s, jax.ShapeDtypeStruct(s.shape, s.dtype), s)

        return lax.fori_loop(0, n, turn, x)

    graph = lower_jaxpr(jax.make_jaxpr(fun)(THREE, X))
    ran = compile_graph(graph, tiny).run([THREE, X])
    jax.effects_barrier()
    assert seen == [0, 1, 2]
    np.testing.assert_array_equal(ran.outputs[0], 27 * X)


def test_loops_are_printed():
    text = str(lower_jaxpr(jax.make_jaxpr(double_until)(X)))
    assert "While 'while at test_rules_loops.py" in text
    assert isinstance(lower_jaxpr(jax.make_jaxpr(double_until)(X)).equations[-1].op, While)
