"""What is refused at the door, and how it is said."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import lpu_jax
from lpu_jax import lpu


def identity(x):
    return x + 1


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (np.zeros((2, 3)), r"argument x: float64\[2,3\] .* Pass float32"),
        (np.zeros(3, np.complex64), r"argument x: complex64\[3\] .* real and imaginary parts"),
        (1j, r"argument x: complex64\[\] .* real and imaginary parts"),
        (jnp.zeros(3, jnp.int4), r"argument x: int4\[3\] .* Convert it to one of"),
    ],
)
def test_dtypes_that_the_lpu_does_not_have(argument, message):
    with pytest.raises(lpu_jax.UnsupportedInputError, match=message):
        lpu(identity)(argument)


def test_the_argument_is_named_by_its_path():
    with pytest.raises(lpu_jax.UnsupportedInputError, match=r"argument params\['layers'\]\[1\]: float64"):
        lpu(lambda params: 1)({"layers": [np.zeros(2, np.float32), np.zeros(2)]})


def test_float64_with_x64_enabled():
    with jax.enable_x64(True), pytest.raises(lpu_jax.UnsupportedInputError, match="float64"):
        lpu(identity)(jnp.zeros(3))


def test_what_is_no_array_is_named():
    with pytest.raises(TypeError, match=r"argument x is 'text' of type str, not an array\. Name it in static_argnums"):
        lpu(identity)("text")


def test_dynamic_shapes():
    batch = jax.export.symbolic_shape("batch, 4")
    with pytest.raises(lpu_jax.UnsupportedInputError, match=r"argument x has the dynamic shape \('batch', '4'\)"):
        jax.export.export(jax.jit(lpu(identity)))(jax.ShapeDtypeStruct(batch, jnp.float32))


def test_all_unsupported_primitives_are_listed_with_their_lines():
    def model(x):
        return jnp.linalg.eigh(jnp.cumsum(x, 0))[1] + jax.lax.fft(x, "RFFT", (4,)).real.sum()

    with pytest.raises(NotImplementedError, match="no LPU lowering") as caught:
        lpu(model)(jnp.ones((4, 4)))
    assert isinstance(caught.value, lpu_jax.UnsupportedPrimitiveError)
    for text in ("'eigh'", "'fft'", "test_arguments.py", "register_lowering"):
        assert text in str(caught.value)


def test_unknown_chip_and_precision():
    with pytest.raises(ValueError, match="unknown chip 'lp99'; known chips: groqchip1, lp30, tiny"):
        lpu(identity, chip="lp99")
    with pytest.raises(ValueError, match="precision='low' is unknown"):
        lpu(identity, precision="low")


def test_argument_numbers_that_do_not_fit():
    with pytest.raises(ValueError, match=r"resident_argnums=.* identity has 1 parameters, not number 3"):
        lpu(identity, resident_argnums=3)
    with pytest.raises(ValueError, match="argument 0 of identity is static"):
        lpu(identity, resident_argnums=0, static_argnums=0)
    with pytest.raises(ValueError, match=r"static_argnames=\['y'\]"):
        lpu(identity, static_argnames="y")
    with pytest.raises(TypeError, match="static argument 0 of identity needs a hash"):
        lpu(identity, static_argnums=0)([1])
    with pytest.raises(TypeError, match="lpu needs a function, got 3"):
        lpu(3)


def test_donated_arrays_are_gone():
    update = lpu(lambda cache, x: cache + x, donate_argnums=0)
    cache = jnp.ones(4)
    kept = update(cache, jnp.ones(4))
    assert cache.is_deleted()
    np.testing.assert_array_equal(update(kept, jnp.ones(4)), 3)
    with pytest.raises(
        lpu_jax.DonatedArgumentError, match=r"argument cache float32\[4\] was donated to an earlier call"
    ):
        update(cache, jnp.ones(4))


def test_donated_arrays_without_a_place_are_kept():
    summed = lpu(lambda cache: cache.sum(), donate_argnums=0)
    cache = jnp.ones(4)
    assert summed(cache) == 4
    assert not cache.is_deleted()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named_at_load(mlp, bad):
    predict, params, x = mlp
    params = {**params, "w": params["w"].at[2, 1].set(bad)}
    lowered = lpu(predict, resident_argnums=0).lower(params, x)
    with pytest.raises(
        lpu_jax.NonFiniteWeightError, match=r"resident argument params\['w'\] .* 1 values .* at \[2, 1\]"
    ):
        lowered.load(params)


def test_resident_arguments_of_another_shape(mlp):
    predict, params, x = mlp
    lowered = lpu(predict, resident_argnums=0).lower(params, x)
    with pytest.raises(
        lpu_jax.ArgumentMismatchError,
        match=r"resident argument params\['w'\] is float32\[8,5\], but the program was compiled for float32\[8,4\]",
    ):
        lowered.load({**params, "w": jnp.ones((8, 5))})
    with pytest.raises(lpu_jax.ArgumentMismatchError, match=r"params\['b'\] is int32\[4\]"):
        lowered.load({**params, "b": jnp.ones(4, jnp.int32)})
    with pytest.raises(lpu_jax.ArgumentMismatchError, match="structure"):
        lowered.load({"w": params["w"]})
    with pytest.raises(lpu_jax.ArgumentMismatchError, match="1 resident arguments to load, got 2"):
        lowered.load(params, x)


def test_a_resident_state_of_another_shape():
    step = lpu(lambda weights, cache: cache + weights, resident_argnums=(0, 1), donate_argnums=1)
    loaded = step.lower(jnp.ones(4), jnp.ones(4)).load(jnp.ones(4))
    with pytest.raises(lpu_jax.ArgumentMismatchError, match=r"resident argument cache is float32\[5\]"):
        loaded(jnp.ones(5))
    cache = jnp.zeros(4)
    np.testing.assert_array_equal(loaded(cache), 1)
    with pytest.raises(lpu_jax.DonatedArgumentError, match="argument cache"):
        loaded(cache)
