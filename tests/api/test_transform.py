"""`lpu` around, under and inside the transformations of JAX.

Tolerance: operands of products are rounded to float16 (relative error 2^-11 each), so results of a product of K terms
of size 1 differ from float32 by at most about K * 2^-10; K is 8 here, and tanh has slope at most 1.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lpu_jax
from lpu_jax import LpuFunction, lpu

TOLERANCE = 8 * 2**-10


def assert_near(found, expected):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=TOLERANCE), found, expected)


def assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_bare_and_with_options(mlp):
    predict, params, x = mlp
    assert_near(lpu(predict)(params, x), predict(params, x))
    assert_near(lpu(chip="lp30", resident_argnums=0)(predict)(params, x), predict(params, x))

    @lpu
    def double(x):
        """Doubles."""
        return x + x

    assert isinstance(double, LpuFunction)
    assert double.__name__ == "double"
    assert double.__doc__ == "Doubles."
    assert double.__wrapped__(2) == 4
    assert "double" in repr(double)
    assert isinstance(double, jax.stages.Wrapped)


def test_integers_are_exact():
    x = jnp.arange(-6, 6, dtype=jnp.int32).reshape(3, 4)
    assert_equal(lpu(lambda x: x * x - 3)(x), x * x - 3)


def test_under_and_over_jit_the_bits_are_the_same(mlp):
    predict, params, x = mlp
    eager = lpu(predict)(params, x)
    assert_equal(jax.jit(lpu(predict))(params, x), eager)
    assert_equal(lpu(jax.jit(predict))(params, x), eager)


@pytest.mark.parametrize("order", ["vmap of lpu", "lpu of vmap", "vmap of jit of lpu", "vmap of vmap", "jit of vmap"])
def test_vmap(mlp, order):
    predict, params, x = mlp
    batch = jnp.stack([x, x + 1])
    inner = lpu(predict)
    function = {
        "vmap of lpu": jax.vmap(inner, (None, 0)),
        "lpu of vmap": lpu(jax.vmap(predict, (None, 0))),
        "vmap of jit of lpu": jax.vmap(jax.jit(inner), (None, 0)),
        "vmap of vmap": jax.vmap(jax.vmap(inner, (None, 0)), (None, 0)),
        "jit of vmap": jax.jit(jax.vmap(inner, (None, 0))),
    }[order]
    assert_equal(function(params, batch), jnp.stack([inner(params, x), inner(params, x + 1)]))


def test_vmap_over_other_axes_and_weights(mlp):
    predict, params, x = mlp
    stacked = jax.tree.map(lambda w: jnp.stack([w, 2 * w], axis=-1), params)
    found = jax.vmap(lpu(predict), in_axes=(-1, None), out_axes=1)(stacked, x)
    expected = [lpu(predict)(jax.tree.map(lambda w, k=k: k * w, params), x) for k in (1, 2)]
    assert_equal(found, jnp.stack(expected, axis=1))


def test_inside_scan_and_under_vmap_of_scan(mlp):
    predict, params, x = mlp
    step = lpu(predict)

    def run(x):
        return jax.lax.scan(lambda total, row: (total + step(params, row).sum(), step(params, row)), 0.0, x[:, None])

    total, rows = run(x)
    assert_near(rows[:, 0], predict(params, x))
    assert_equal(jax.vmap(run)(jnp.stack([x, -x]))[1][0], rows)
    assert total.shape == ()


def test_a_loop_inside():
    def power(x):
        return jax.lax.scan(lambda c, _: (c * 2, c), x, None, length=5)

    x = jnp.ones((4,), jnp.float32)
    assert_equal(lpu(power)(x), power(x))
    assert_equal(jax.jit(jax.vmap(lpu(power)))(x[None]), jax.vmap(power)(x[None]))


def test_pytrees_none_and_keyword_arguments(mlp):
    predict, params, x = mlp

    def function(params, *, inputs, bias=None):
        y = predict(params, inputs["x"])
        return {"y": y, "bias": bias, "pair": (y + 1, [inputs["n"]])}

    found = lpu(function)(params, inputs={"x": x, "n": jnp.int32(3)})
    assert found["bias"] is None
    assert_near(found["y"], predict(params, x))
    assert found["pair"][1][0] == 3
    assert_near(lpu(predict)(x=x, params=params), predict(params, x))


def test_static_arguments():
    def scale(x, power, *, kind):
        return x * 2**power if kind == "up" else x

    x = jnp.arange(4.0)
    for function in (
        lpu(scale, static_argnums=1, static_argnames="kind"),
        lpu(scale, static_argnums=(-1,), static_argnames=("kind",)),
        lpu(scale, static_argnames=("power", "kind")),
    ):
        assert_equal(function(x, 3, kind="up"), 8 * x)
        assert_equal(function(x, power=2, kind="up"), 4 * x)
        assert_equal(function(x, 3, kind="no"), x)


def test_methods_are_bound():
    class Scaler:
        factor = 3.0

        @functools.partial(lpu, static_argnums=0)
        def __call__(self, x):
            return self.factor * x

        @functools.partial(lpu, static_argnums=0)
        def scale(self, x):
            return self.factor * x

    assert_equal(Scaler().scale(jnp.ones(3)), 3 * jnp.ones(3))


def test_weak_types_and_python_numbers_are_kept():
    def twice(x):
        return x * 2

    for x in (3, 3.0, jnp.float32(3), np.int32(3)):
        assert jax.typeof(lpu(twice)(x)) == jax.typeof(jax.jit(twice)(x))


def test_linen_apply(mlp):
    _, _, x = mlp
    model = nn.Dense(5)
    variables = model.init(jax.random.key(1), x)
    assert_near(lpu(model.apply)(variables, x), model.apply(variables, x))


def test_nnx_module_as_argument_and_as_closure(mlp):
    _, _, x = mlp
    model = nnx.Linear(8, 5, rngs=nnx.Rngs(0))
    assert_near(lpu(lambda m, x: m(x))(model, x), model(x))
    assert_near(lpu(lambda x: model(x))(x), model(x))
    assert_near(nnx.jit(lpu(lambda m, x: m(x)))(model, x), model(x))
    graphdef, state = nnx.split(model)
    assert_near(lpu(lambda s, x: nnx.merge(graphdef, s)(x))(state, x), model(x))


def test_large_closed_over_arrays_become_resident_inputs():
    table = jnp.ones((300, 300))
    function = lpu(lambda x: x @ table)
    x = jnp.ones((2, 300))
    assert_equal(function(x), jnp.full((2, 300), 300.0))
    traced = function.trace(x)
    assert [c.shape for c in traced.captured] == [(300, 300)]
    assert traced.moved_bytes()[0] == x.nbytes


def test_closed_over_tracers(mlp):
    predict, params, x = mlp

    @jax.jit
    def outer(params, x):
        return lpu(lambda x: predict(params, x))(x)

    assert_near(outer(params, x), predict(params, x))
    with jax.checking_leaks():
        assert_near(outer(params, x[:1]), predict(params, x[:1]))


def test_the_derivative_is_that_of_the_function(mlp):
    predict, params, x = mlp
    weights = {"w": params["w"], "b": params["b"]}

    def loss(function):
        return lambda p: (function(p, x) ** 2).sum()

    expected = jax.grad(loss(predict))(weights)
    for function in (lpu(predict), jax.jit(lpu(predict))):
        found = jax.grad(loss(function))(weights)
        # d(y^2) = 2 y dy: only y is rounded, by less than TOLERANCE, over 3 rows of |x| < 3
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2 * TOLERANCE * 9), found, expected)
    per_row = jax.vmap(jax.grad(lambda r: lpu(predict)(params, r[None]).sum()))(x)
    assert_near(per_row, jax.vmap(jax.grad(lambda r: predict(params, r[None]).sum()))(x))


def test_derivative_rules_of_the_user_are_kept():
    @jax.custom_vjp
    def clipped(x):
        return x * 2

    clipped.defvjp(lambda x: (clipped(x), None), lambda _, g: (jnp.zeros_like(g) + 7,))
    assert jax.grad(lambda x: lpu(clipped)(x))(jnp.float32(1)) == 7


def test_the_second_call_traces_nothing(mlp):
    predict, params, x = mlp
    traces = []

    @lpu
    def counted(params, x):
        traces.append(x.shape)
        return predict(params, x)

    counted(params, x)
    counted(params, x + 1)
    counted.lower(params, jax.ShapeDtypeStruct(x.shape, x.dtype))
    assert traces == [(3, 8)]
    with jax.log_compiles(False), pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "make_jaxpr", None)
        counted(params, x)
    counted(params, x[:2])
    assert traces == [(3, 8), (2, 8)]


def test_precision_highest_keeps_float32_operands():
    x = jnp.full((1, 4), 1 + 2.0**-20, jnp.float32)
    eye = jnp.eye(4)
    assert_equal(lpu(lambda x: x @ eye, precision="highest")(x), x)
    assert_equal(lpu(lambda x: x @ eye)(x), jnp.ones((1, 4)))


def test_high_effort_gives_the_same_values_in_no_more_cycles():
    x = jnp.arange(48.0).reshape(3, 16)

    def attend(x):
        return jax.nn.softmax(x @ x.T) @ x

    default, high = (lpu(attend, chip="tiny", effort=effort).lower(x).compile() for effort in ("default", "high"))
    assert_equal(high(x), default(x))
    assert high.cycles <= default.cycles
    outputs, cycles = high.simulate(x)
    assert_equal(outputs, default(x))
    assert cycles == high.cycles


def test_an_unknown_effort_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"effort='extreme' is unknown; use one of .*'default', 'high'"):
        lpu(jnp.sin, effort="extreme")


def test_a_user_can_register_a_lowering():
    from jax.extend.core import Primitive

    from lpu_jax.lowering.registry import unregister_lowering

    triple = Primitive("triple_for_this_test")
    triple.def_impl(lambda x: 3 * x)
    triple.def_abstract_eval(lambda x: x)
    x = jnp.arange(4.0)
    with pytest.raises(lpu_jax.UnsupportedPrimitiveError, match="triple_for_this_test"):
        lpu(triple.bind)(x)

    @lpu_jax.register_lowering(triple)
    def rule(ctx, x):
        return [ctx.elementwise("mul", x, ctx.immediate(3.0))]

    try:
        assert_equal(lpu(lambda x: triple.bind(x))(x), 3 * x)
    finally:
        unregister_lowering(triple)


def test_public_names():
    assert {"lpu", "profile", "chips", "register_lowering"} <= set(dir(lpu_jax))
    assert lpu_jax.chips.groqchip1.name == "groqchip1"
    assert lpu_jax.chips.lp30.name == "lp30"
    assert lpu_jax.chips.tiny.name == "tiny"
    with pytest.raises(AttributeError, match="no attribute 'gpu'"):
        lpu_jax.gpu  # noqa: B018
