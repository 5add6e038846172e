"""Every way in which JAX's own functions can be called, with `lpu` around or under it."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lpu_jax import lpu

X = np.arange(12, dtype=np.float32).reshape(3, 4) / 4


def equal(found, wanted):
    found, wanted = jax.tree.flatten(found), jax.tree.flatten(wanted)
    assert found[1] == wanted[1]
    for x, y in zip(found[0], wanted[0], strict=True):
        assert jnp.asarray(x).dtype == jnp.asarray(y).dtype
        np.testing.assert_array_equal(x, y)


def step(x):
    return x * 2 - x[:1]


exact = lpu(step)


def test_in_map_scan_cond_and_remat():
    equal(lax.map(exact, jnp.stack([X, X + 1])), jnp.stack([step(X), step(X + 1)]))
    equal(lax.cond(X[0, 1] > 0, exact, lambda x: x, X), step(X))
    equal(jax.checkpoint(exact)(X), step(X))
    equal(
        lax.while_loop(lambda x: x.sum() < 99, lambda x: exact(x) + 9, X),
        lax.while_loop(lambda x: x.sum() < 99, lambda x: step(x) + 9, X),
    )


def test_around_map_scan_cond_and_remat():
    def fun(x):
        mapped = lax.map(step, jnp.stack([x, x + 1]))
        scanned, _ = lax.scan(lambda c, r: (step(c) + r, None), x, mapped)
        return lax.cond(x[0, 1] > 0, jax.checkpoint(step), lambda x: x, scanned)

    equal(lpu(fun)(X), fun(X))


@pytest.mark.parametrize("axes", [(1, None), ({"a": 1}, 2)])
def test_vmap_over_any_axis_and_nested(axes):
    def fun(p, x):
        return (p["a"] if isinstance(p, dict) else p).sum() + x * 2

    p = np.arange(27, dtype=np.float32).reshape(3, 3, 3)
    p = {"a": p} if isinstance(axes[0], dict) else p
    x = np.arange(27, dtype=np.float32).reshape(3, 3, 3)
    equal(jax.vmap(lpu(fun), axes, out_axes=1)(p, x), jax.vmap(fun, axes, out_axes=1)(p, x))
    equal(lpu(jax.vmap(fun, axes))(p, x), jax.vmap(fun, axes)(p, x))
    twice = jax.vmap(jax.vmap(exact))
    equal(twice(x[None]), jax.vmap(jax.vmap(step))(x[None]))


def test_a_named_axis_is_seen_inside():
    def fun(x):
        return x - lax.pmean(x, "rows")

    equal(lpu(jax.vmap(fun, axis_name="rows"))(X), jax.vmap(fun, axis_name="rows")(X))


def test_the_gradient_passes_straight_through_number_formats():
    """XLA may round a gradient otherwise in another program: a few units in the last place."""
    w = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)

    def loss(w, x):
        return (x @ w.astype(jnp.float16).astype(jnp.float32) * x).sum()

    def near(found, wanted):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6), found, wanted)

    ours = lpu(loss, precision="highest")
    near(jax.grad(ours)(w, X), jax.grad(loss)(w, X))
    near(jax.jit(jax.grad(jax.jit(ours)))(w, X), jax.grad(loss)(w, X))
    value, grads = jax.value_and_grad(ours, argnums=(0, 1))(w, X)
    assert value == ours(w, X)
    near(grads, jax.grad(loss, argnums=(0, 1))(w, X))
    near(jax.vmap(jax.grad(ours), (None, 0))(w, X[:, None]), jax.vmap(jax.grad(loss), (None, 0))(w, X[:, None]))
    near(jax.jvp(ours, (w, X), (w, X))[1], jax.jvp(loss, (w, X), (w, X))[1])


def test_eval_shape_and_export():
    found = jax.eval_shape(exact, jax.ShapeDtypeStruct((3, 4), np.float32))
    assert (found.shape, found.dtype) == ((3, 4), np.float32)
    exported = jax.export.export(jax.jit(exact))(jax.ShapeDtypeStruct((3, 4), np.float32))
    restored = jax.export.deserialize(exported.serialize())
    equal(restored.call(X), step(X))


def test_lowering_from_shapes_alone():
    shapes = {"a": jax.ShapeDtypeStruct((3, 4), np.float32), "n": jax.ShapeDtypeStruct((), np.int32)}
    function = lpu(lambda p: p["a"] * p["n"], chip="tiny")
    compiled = function.lower(shapes).compile()
    equal(compiled({"a": X, "n": np.int32(3)}), X * 3)
    assert jax.tree.leaves(compiled.in_avals) == jax.tree.leaves(((shapes,), {}))


def test_donated_arguments():
    function = lpu(lambda state, x: (state + x, x.sum()), donate_argnums=0)
    state = jnp.asarray(X)
    equal(function(state, X), (X + X, X.sum()))
    assert state.is_deleted()


def test_unused_arguments_cross_no_pcie_unless_they_are_kept():
    def fun(x, unused):
        return x + 1

    big = np.zeros((100, 100), np.float32)
    assert lpu(fun).trace(X, big).moved_bytes() == (48, 48)
    assert lpu(fun, keep_unused=True).trace(X, big).moved_bytes() == (48 + 40_000, 48)
    equal(lpu(fun)(X, big), X + 1)
    equal(lpu(fun, chip="tiny").lower(X, X).compile().simulate(X, X)[0], X + 1)


def test_keywords_defaults_and_static_arguments():
    def fun(x, /, y=2.0, *rest, scale=1.0, mode="add"):
        total = x * scale + sum(rest)
        return total + y if mode == "add" else total * y

    function = lpu(fun, static_argnames="mode")
    for args, kwargs in [
        ((X,), {}),
        ((X, 3.0), {"scale": 2}),
        ((X,), {"y": X, "mode": "mul"}),
        ((X, 1.0, X, X), {"scale": np.float32(3), "mode": "mul"}),
    ]:
        equal(function(*args, **kwargs), fun(*args, **kwargs))
    partial = lpu(functools.partial(fun, y=5.0))
    equal(partial(X), fun(X, y=5.0))


Pair = collections.namedtuple("Pair", "left right")


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
    values: jax.Array
    name: str = dataclasses.field(default="", metadata={"static": True})
    extra: object = None


def test_pytrees_of_every_kind():
    def fun(tree):
        assert tree["state"].name == "s"
        return {**tree, "pair": Pair(tree["pair"].right, None), "state": tree["state"]}, ()

    tree = {
        "pair": Pair(X, np.int8(3)),
        "none": None,
        "empty": [],
        "state": State(jnp.ones(2), "s"),
        "t": (1, 2.5, True),
    }
    equal(lpu(fun)(tree), jax.jit(fun)(tree))
    assert lpu(fun)(tree)[0]["none"] is None


def test_weak_types_are_those_of_jit():
    def fun(a, b):
        return a + b, a, a * 2.5

    for args in [(1, 2.0), (np.float16(1), 2.0), (True, 3), (np.int8(3), 4), (1, np.float32(2))]:
        found, wanted = lpu(fun)(*args), jax.jit(fun)(*args)
        equal(found, wanted)
        assert [x.weak_type for x in found] == [x.weak_type for x in wanted]


@pytest.mark.parametrize("shape", [(), (0,), (4, 0), (1, 1)])
def test_scalars_and_empty_arrays(shape):
    def fun(x):
        return (
            x + 1,
            x.sum(),
            jnp.concatenate([x.reshape(-1), x.reshape(-1)]),
            x.max(initial=-1),
            x.T,
            x @ x.T if x.ndim == 2 else x,
        )

    x = np.ones(shape, np.float32)
    equal(lpu(fun)(x), fun(x))
    compiled = lpu(fun, chip="tiny").lower(x).compile()
    equal(compiled.simulate(x)[0], fun(x))


def test_typed_keys_are_arguments_and_results():
    def fun(key, x):
        first, second = jax.random.split(key)
        keys = jax.random.split(second, 3)
        return first, keys, x + jax.random.uniform(first, x.shape), keys[1]

    key = jax.random.key(7)
    function = lpu(fun, chip="tiny")
    found, wanted = function(key, X), fun(key, X)
    for x, y in zip(found, wanted, strict=True):
        assert x.dtype == y.dtype
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)
    equal(
        jax.vmap(lambda k: function(k, X)[2])(jax.random.split(key)),
        jax.vmap(lambda k: fun(k, X)[2])(jax.random.split(key)),
    )
    simulated, _ = function.lower(key, X).compile().simulate(key, X)
    np.testing.assert_array_equal(simulated[2], wanted[2])
    assert simulated[0] == wanted[0]
    equal(jax.jit(lambda k: jax.random.key_data(function(k, X)[1]))(key), jax.random.key_data(wanted[1]))


def test_with_64_bit_types_enabled():
    with jax.enable_x64(True):
        function = lpu(lambda x, i: x[i] * np.float32(2) + i.astype(np.float32))
        found = function(jnp.asarray(X), jnp.int32(1))
        assert found.dtype == np.float32
        equal(found, jnp.asarray(X[1] * 2 + 1))


def test_named_scopes_name_the_rows_of_the_report():
    def fun(x):
        with jax.named_scope("outer"):
            with jax.named_scope("inner"):
                y = jnp.exp(x)
            return y + 1

    report = lpu(fun, chip="tiny").lower(X).compile().report()
    assert {"outer", "inner"} <= {node.name for _, node in report.tree.walk()}


def test_retraces_when_jit_would():
    counts = collections.Counter()

    def fun(who, x, n, *, flag=True):
        counts[who] += 1
        return x * n if flag else x

    ours = lpu(functools.partial(fun, "lpu"), static_argnames="flag")
    jitted = jax.jit(functools.partial(fun, "jit"), static_argnames="flag")
    calls = [
        ((X, 2), {}), ((X, 3), {}), ((X + 1, 2), {}), ((X, 2.0), {}), ((X, np.float32(2)), {}), ((X[:1], 2), {}),
        ((X, 2), {"flag": False}), ((X, 2), {"flag": True}), ((X, jnp.int32(2)), {}), ((jnp.asarray(X), 2), {}),
        (([X], 2), {"flag": False}), ((X.astype(np.float16), 2), {}), ((X, 2), {}),
    ]  # fmt: skip
    for args, kwargs in calls:
        ours(*args, **kwargs)
        jitted(*args, **kwargs)
        assert counts["lpu"] == counts["jit"], (args, kwargs)
    with jax.default_matmul_precision("highest"):
        ours(X, 2)
        jitted(X, 2)
    assert counts["lpu"] == counts["jit"]


def test_errors_are_those_of_jit():
    def fun(x, y):
        return x @ y

    for args in [(X, X), (X, "text"), (X, object())]:
        with pytest.raises(TypeError):
            jax.jit(fun)(*args)
        with pytest.raises(TypeError):
            lpu(fun)(*args)
    with pytest.raises(jax.errors.TracerBoolConversionError):
        lpu(lambda x: 1 if x > 0 else 2)(np.float32(1))
