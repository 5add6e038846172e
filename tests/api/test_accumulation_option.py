"""accumulation= of lpu: machine and runtime agree in every mode of a chip; exact sums depend on values alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lpu_jax

RNG = np.random.default_rng(0)


def apply(w, x):
    return x @ w, jnp.sum(x.astype(jnp.float32) * 1.37, axis=1)


def both(w, x, **options):
    """Bits of the fast runtime, which the machine must have as well."""
    on_lpu = lpu_jax.lpu(apply, resident_argnums=0, **options)
    results, cycles = on_lpu.lower(w, x).compile().simulate(w, x)
    expected = on_lpu(w, x)
    for result, wanted in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result, wanted)
    return np.asarray(expected[0]), np.asarray(expected[1]), cycles


@pytest.mark.parametrize("name", ["fp32", "bfp4x32"])
def test_machine_and_runtime_agree_in_both_modes_of_a_chip(name):
    w = lpu_jax.quantize(RNG.standard_normal((700, 8)).astype(np.float32), name)
    x = RNG.standard_normal((2, 700)).astype(np.float32)
    exact = both(w, x)
    tile = both(w, x, accumulation="tile")
    assert exact[2] == tile[2]
    assert (exact[0] != tile[0]).any()
    np.testing.assert_allclose(tile[0], exact[0], rtol=1e-5, atol=1e-4)


def test_the_mode_of_the_chip_is_the_default_and_the_option_wins():
    w, x = RNG.standard_normal((700, 8)).astype(np.float32), RNG.standard_normal((2, 700)).astype(np.float32)
    chip = dataclasses.replace(lpu_jax.chips.groqchip1, accumulation="tile")
    modes = [
        lpu_jax.lpu(lambda w, x: x @ w, chip=chip),
        lpu_jax.lpu(lambda w, x: x @ w, accumulation="tile"),
        lpu_jax.lpu(lambda w, x: x @ w, chip=chip, accumulation="exact"),
    ]
    tile, also_tile, exact = (np.asarray(f(w, x)) for f in modes)
    np.testing.assert_array_equal(tile, also_tile)
    assert (tile != exact).any()
    assert [f.options.chip.accumulation for f in modes] == ["tile", "tile", "exact"]
    report = modes[0].lower(w, x).compile().report()
    assert "within a pass of the MXM" in report.accumulators


def test_float32_is_the_order_of_xla():
    w = RNG.standard_normal((700, 8)).astype(np.float32).astype(np.float16)
    x = RNG.standard_normal((2, 700)).astype(np.float32).astype(np.float16)

    def product(w, x):
        return jnp.matmul(x, w, preferred_element_type=jnp.float32)

    on_lpu = lpu_jax.lpu(product, accumulation="float32")
    plain = jax.jit(product, static_argnames=())(w.astype(np.float32), x.astype(np.float32))
    np.testing.assert_array_equal(on_lpu(w, x), plain)
    compiled = on_lpu.lower(w, x).compile()
    assert compiled.cycles == lpu_jax.lpu(product).lower(w, x).compile().cycles
    with pytest.raises(lpu_jax.NumberFormatError, match="accumulation='float32' is XLA's own order"):
        compiled.simulate(w, x)


def test_unknown_modes_are_refused():
    with pytest.raises(ValueError, match=r"accumulation='fast' is unknown; use one of \('exact', 'tile', 'float32'\)"):
        lpu_jax.lpu(apply, accumulation="fast")
    with pytest.raises(ValueError, match="chips have exact, tile"):
        dataclasses.replace(lpu_jax.chips.groqchip1, accumulation="float32")


@pytest.mark.parametrize("name", ["fp16", "bfp5"])
def test_an_exact_result_depends_on_no_batch_slice_order_or_tiling(name):
    """A row alone, a batch, some columns, K in another order, twice the K with zeros, and on a smaller chip."""
    weights = (RNG.standard_normal((320, 6)) * np.exp2(RNG.integers(-8, 8, (320, 6)))).astype(np.float32)
    x = (RNG.standard_normal((4, 320)) * np.exp2(RNG.integers(-6, 6, (4, 320)))).astype(np.float16)
    w = lpu_jax.quantize(weights, name)

    def product(w, x, **options):
        return np.asarray(lpu_jax.lpu(lambda w, x: x.astype(jnp.float32) @ w, **options)(w, x))

    whole = product(w, x)
    np.testing.assert_array_equal(product(w, x[2:3]), whole[2:3])
    np.testing.assert_array_equal(jax.vmap(lambda row: product_row(w, row))(x), whole)
    columns = lpu_jax.quantize(weights[:, 1:3], name)
    np.testing.assert_array_equal(product(columns, x), whole[:, 1:3])
    order = RNG.permutation(20)  # whole blocks, so that the stored values stay the same
    index = (order[:, None] * 16 + np.arange(16)).reshape(-1)
    np.testing.assert_array_equal(product(lpu_jax.quantize(weights[index], name), x[:, index]), whole)
    padded = lpu_jax.quantize(np.concatenate([np.zeros_like(weights), weights]), name)
    np.testing.assert_array_equal(product(padded, np.concatenate([np.ones_like(x), x], axis=1)), whole)
    np.testing.assert_array_equal(product(w, x, chip="tiny"), whole)
    for chip in ("tiny", "groqchip1"):
        compiled = lpu_jax.lpu(lambda w, x: x.astype(jnp.float32) @ w, chip=chip).lower(w, x).compile()
        np.testing.assert_array_equal(compiled.simulate(w, x)[0], whole)


def product_row(w, row):
    return lpu_jax.lpu(lambda w, x: x.astype(jnp.float32) @ w)(w, row)
