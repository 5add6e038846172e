"""Loops of unknown length and calls of the host, as a user meets them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lpu_jax import TripCountError, UnsupportedPrimitiveError, lpu, profile
from lpu_jax.chips import groqchip1

X = np.arange(6, dtype=np.float32).reshape(2, 3)


@lpu(chip="tiny", precision="highest", max_trip_count=50)
def double_until(limit, x):
    with jax.named_scope("doubling"):
        return lax.while_loop(lambda s: s.sum() < limit, lambda s: s * 2 + 1, x)


def test_a_loop_under_and_over_transformations():
    limits = np.array([10, 1000, 100], np.float32)
    wanted = np.stack([double_until.__wrapped__(limit, X) for limit in limits])
    np.testing.assert_array_equal(np.stack([double_until(limit, X) for limit in limits]), wanted)
    np.testing.assert_array_equal(jax.vmap(double_until, in_axes=(0, None))(limits, X), wanted)
    np.testing.assert_array_equal(jax.jit(double_until)(limits[1], X), wanted[1])
    np.testing.assert_array_equal(lax.map(lambda limit: double_until(limit, X), limits), wanted)


def test_profile_counts_turns_cycles_and_pcie():
    limit = np.float32(1000)
    result, report = profile(double_until)(limit, X)
    compiled = double_until.lower(limit, X).compile()
    simulated, cycles = compiled.simulate(limit, X)
    np.testing.assert_array_equal(result, simulated)
    (loop,) = report.host.loops
    assert (loop.trip_count, loop.max_trip_count) == (6, 50)
    assert "doubling" in loop.name
    assert report.cycles_taken == cycles == report.cycles + 5 * loop.cycles_per_turn
    assert report.host.worst_case_cycles == report.cycles + 49 * loop.cycles_per_turn
    assert report.host.pcie_seconds == pytest.approx(7 * (10e-6 + 1 / 24e9) + 6 * 10e-6)
    assert report.tree.wall_cycles == report.cycles
    assert "doubling" in str(report)
    assert report.to_dict()["host"]["cycles_taken"] == cycles


def test_an_endless_loop_stops_with_its_name():
    endless = lpu(lambda x: lax.while_loop(lambda s: s[0, 0] < 1, lambda s: s * 1, x), max_trip_count=3)
    with pytest.raises(TripCountError, match=r"while at test_host.py:\d+ .*made 3 turns .* max_trip_count"):
        endless(X)
    with pytest.raises(jax.errors.JaxRuntimeError, match="made 3 turns"):
        jax.block_until_ready(jax.jit(endless)(X))
    with pytest.raises(TripCountError, match="made 3 turns"):
        profile(endless)(X)


def test_loaded_weights_and_a_loop():
    def fun(w, n, x):
        return lax.fori_loop(0, n, lambda i, s: jnp.tanh(s @ w), x)

    w = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
    function = lpu(fun, chip="tiny", resident_argnums=0)
    lowered = function.lower(w, np.int32(3), X)
    wanted = function(w, np.int32(3), X)
    np.testing.assert_array_equal(lowered.load(w)(np.int32(3), X), wanted)
    np.testing.assert_array_equal(lowered.compile().simulate(w, np.int32(3), X)[0], wanted)
    (loop,) = [e.op for e in lowered.parts[1].equations if hasattr(e.op, "max_trip_count")]
    assert "float16" in {lowered.parts[1].avals[v].dtype for v in lowered.parts[1].inputs}
    assert not any("to_fp16" in str(e.op) and e.operands[0] in loop.body.inputs[:1] for e in loop.body.equations)


def test_the_host_computes_and_pcie_is_counted():
    def fun(x):
        return jnp.fft.rfft(x * 2).real + 1

    with pytest.raises(UnsupportedPrimitiveError, match=r'fft.*\n.*test_host.py:\d+(.|\n)*fallback="host"'):
        lpu(fun)(X)
    result, report = profile(lpu(fun, fallback="host", precision="highest"))(X)
    np.testing.assert_allclose(result, fun(X), rtol=1e-6)
    call, real = report.host.calls
    assert (call.name, call.bytes_out, call.bytes_in, call.num_calls) == ("fft", 24, 0, 1)
    assert (real.name, real.bytes_out, real.bytes_in) == ("real", 0, 16)
    seconds = groqchip1.pcie_latency_seconds * 2 + (24 + 16) / groqchip1.pcie_bytes_per_second
    assert report.host.pcie_seconds == pytest.approx(seconds)
    assert report.total_seconds > report.host.pcie_seconds
    assert "fft" in str(report)


def test_complex_arguments_and_results_stay_with_the_host():
    z = (X + 1j).astype(np.complex64)
    function = lpu(lambda z, x: (z * 1j, jnp.abs(z) + x), fallback="host")
    rotated, length = function(z, X)
    np.testing.assert_array_equal(rotated, z * np.complex64(1j))
    np.testing.assert_allclose(length, np.abs(z) + X, rtol=1e-6)
    compiled = function.lower(z, X).compile()
    assert compiled.traced.moved_bytes() == (24, 24)
    np.testing.assert_array_equal(compiled.simulate(z, X)[0][0], rotated)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, lambda f: lambda x: jax.vmap(f)(x[None])[0]])
def test_prints_and_callbacks(wrap, capfd):
    seen = []

    @lpu
    def fun(x):
        jax.debug.print("sum {s}", s=x.sum())
        jax.debug.callback(lambda x: seen.append(float(x[0, 1])), x)
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(lambda x: np.asarray(x) * 3, shape, x + 1, vmap_method="expand_dims") * 2

    np.testing.assert_array_equal(wrap(fun)(X), (X + 1) * 6)
    jax.effects_barrier()
    assert seen == [1.0]
    assert "sum 15" in capfd.readouterr().out


def test_prints_without_values(capfd):
    @lpu
    def fun(x):
        jax.debug.print("here")
        return x @ x.T

    np.testing.assert_array_equal(fun(X), X @ X.T)
    jax.effects_barrier()
    assert "here" in capfd.readouterr().out


def test_callbacks_are_counted():
    def fun(x):
        jax.debug.print("{x}", x=x[0, 0])
        return x + 1

    _, report = profile(lpu(fun))(X)
    assert [(call.name, call.bytes_out, call.num_calls) for call in report.host.calls] == [("debug_print", 4, 1)]


def test_unknown_fallback_and_trip_count():
    with pytest.raises(ValueError, match=r"fallback='gpu' is unknown; use one of \(None, 'host'\)"):
        lpu(lambda x: x, fallback="gpu")
    with pytest.raises(ValueError, match="max_trip_count=0 allows no turn"):
        lpu(lambda x: x, max_trip_count=0)
