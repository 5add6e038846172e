"""Columns of matrices that products multiply by: looked up by number, and held once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lpu_jax import Policy, Rule, lpu
from lpu_jax.chips import groqchip1
from lpu_jax.models.layers import SharedTable
from lpu_jax.rounding import round_operand
from lpu_jax.runtime.formats import parse_format

TILES, ROWS, WIDTH = 6, 48, 320


def column_and_product(w, tile, lane, x):
    column = lax.dynamic_slice(w, (tile, 0, lane), (1, ROWS, 1))[0, :, 0]
    return column, lax.dot_general(x, w, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)


def matrices(dtype=np.float32):
    rng = np.random.default_rng(0)
    if dtype == np.int8:
        return rng.integers(-127, 128, (TILES, ROWS, WIDTH)).astype(np.int8)
    return (rng.standard_normal((TILES, ROWS, WIDTH)) * np.exp2(rng.integers(-9, 9, (TILES, 1, WIDTH)))).astype(dtype)


def held_once(form):
    """A policy with one format for products and lookups."""
    return Policy("held once", (Rule("*dot_general@*", rhs=form), Rule("*dynamic_slice@*", rhs=form)))


def compiled_for(w, policy):
    step = lpu(column_and_product, precision=policy, resident_argnums=0)
    return step.lower(w, jnp.int32(0), jnp.int32(0), jnp.ones((1, ROWS), jnp.float32)).compile()


@pytest.mark.parametrize("form", ["bfp9", "int8", "fp16"])
def test_a_column_is_what_the_product_multiplies_by(form):
    w = matrices()
    compiled = compiled_for(w, held_once(form))
    with jax.enable_x64(True):
        held = np.asarray(round_operand(jnp.asarray(w), parse_format(form)))
    for tile, lane in [(0, 0), (5, 319), (3, 17)]:
        arguments = w, jnp.int32(tile), jnp.int32(lane), jnp.ones((1, ROWS), jnp.float32)
        column = np.asarray(compiled(*arguments)[0])
        if form == "fp16":  # enters the MXM with a power of two that is chosen by the matrix
            np.testing.assert_allclose(column, held[tile, :, lane], rtol=2**-10)
        else:
            np.testing.assert_array_equal(column, held[tile, :, lane])
    sizes = [size for name, _, size, _ in compiled.memory_analysis().memory_map if name == "w"]
    assert sum(sizes) < 1.5 * TILES * WIDTH * parse_format(form).num_words(ROWS) + 20_000


@pytest.mark.parametrize("form", ["bfp9x32", None])
def test_the_machine_has_the_bits_of_the_executor(form):
    w = matrices(np.float32 if form else np.int8)
    compiled = compiled_for(w, held_once(form) if form else Policy("none"))
    rng = np.random.default_rng(1)
    arguments = w, jnp.int32(4), jnp.int32(200), jnp.asarray(rng.standard_normal((1, ROWS)), jnp.float32)
    outputs, cycles = compiled.simulate(*arguments)
    assert cycles == compiled.cycles
    for ours, wanted in zip(outputs, compiled(*arguments), strict=True):
        assert np.asarray(ours).tobytes() == np.asarray(wanted).tobytes()


@pytest.mark.parametrize("policy", ["fp16", "bfp8", "truepoint", Policy("none")], ids=str)
def test_columns_are_exact_unless_a_policy_names_the_lookup(policy):
    """What products round their weights to is no business of a slice."""
    w = matrices()
    column, _ = compiled_for(w, policy)(w, jnp.int32(2), jnp.int32(9), jnp.ones((1, ROWS), jnp.float32))
    np.testing.assert_array_equal(column, w[2, :, 9])


def test_a_shared_table_is_embedding_and_head():
    rng = np.random.default_rng(2)
    table = rng.standard_normal((700, 32)).astype(np.float32)
    shared = SharedTable(table, "fp32")
    np.testing.assert_array_equal(shared.lookup(jnp.asarray([0, 699, 320])), table[[0, 699, 320]])
    x = rng.standard_normal((2, 32)).astype(np.float32)
    np.testing.assert_allclose(shared(jnp.asarray(x)), x @ table.T, rtol=1e-4, atol=1e-4)


def test_nearly_all_of_a_chip_can_be_weights():
    """Weights that the slice sets of the planes do not hold lie in the other slices, too."""
    chip = dataclasses.replace(groqchip1, num_addresses_per_bank=64)
    in_sets = 4 * 16 * chip.num_addresses_per_slice * WIDTH
    num_matrices = in_sets // (160 * WIDTH) + 2
    rng = np.random.default_rng(3)
    w = rng.integers(-127, 128, (num_matrices, 160, WIDTH)).astype(np.int8)
    x = rng.standard_normal((1, 160)).astype(np.float32)

    def product(w, x):
        return lax.dot_general(x, w, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)

    compiled = lpu(product, chip=chip, resident_argnums=0).lower(w, x).compile()
    assert in_sets < compiled.memory_analysis().sram_bytes <= chip.usable_sram_bytes
    outputs, cycles = compiled.simulate(w, x)
    assert cycles == compiled.cycles
    assert np.asarray(outputs).tobytes() == np.asarray(compiled(w, x)).tobytes()
    assert any(place is not None and place.bases for place in compiled.compiled_graph.allocated.places)
