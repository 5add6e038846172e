"""Compact models: values in the free lanes of other rows, packed rotary tables, one table for embedding and head."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpu_jax import lpu
from lpu_jax.models.packed import mix, pack_table, pack_values, packed, packed_row, updated
from lpu_jax.models.smollm2 import Smollm2, decode, prefill
from lpu_jax.models.smollm2_config import SMOLLM2_135M_SIZES, Smollm2Config

SMALL = Smollm2Config(
    num_layers=2,
    d_model=64,
    num_heads=4,
    num_kv_heads=2,
    d_ff=96,
    vocab_size=700,
    context=400,
    is_compact=False,
)
LAYOUTS = [(2048, 3, 64), (1920, 3, 64), (1024, 3, 64), (700, 2, 16), (400, 2, 64), (320, 3, 64), (900, 5, 64)]


@pytest.mark.parametrize("sizes", LAYOUTS)
def test_every_value_has_a_place_of_its_own(sizes):
    context, heads, width = sizes
    layout = pack_values(*sizes)
    places = {(position, head) for position in range(min(context, layout.num_rows)) for head in range(heads)}
    cells = {(row, head * width) for row, head in places}
    for b in layout.blocks:
        assert b.first // 320 == (b.first + b.size - 1) // 320, "a page stays within a tile"
        for offset in range(b.size):
            places.add((b.start + offset, b.head))
            cells.add((b.first + offset, (heads + b.slot) * width))
    assert places == set(itertools.product(range(context), range(heads)))
    assert len(cells) == len(places)
    assert layout.width <= 320
    assert max(row for row, _ in cells) < layout.num_rows or not layout.blocks


def test_smollm2_values_fill_the_lanes():
    layout = pack_values(2048, 3, 64)
    assert (layout.num_rows, layout.width) == (1280, 320)
    assert layout.num_rows * layout.width < 1.05 * 2048 * 192


@pytest.mark.parametrize("sizes", [(700, 2, 64), (400, 2, 64)])
def test_mixing_and_updating_packed_values(sizes):
    context, heads, width = sizes
    layout, rng = pack_values(*sizes), np.random.default_rng(0)
    values = rng.integers(-8, 9, (context, heads * width)).astype(np.float16)
    weights = rng.integers(0, 4, (2 * heads, context)).astype(np.float32)
    cache = packed(layout, jnp.asarray(values))
    for position in {0, layout.num_rows - 1, layout.num_rows, context - 1} & set(range(context)):
        new = rng.integers(-8, 9, (1, heads * width)).astype(np.float16)
        values[position] = new
        cache = updated(layout, cache, jnp.asarray(new), jnp.int32(position))
    np.testing.assert_array_equal(cache, packed(layout, jnp.asarray(values)))
    own = np.arange(heads * width) // width == np.arange(2 * heads)[:, None] % heads
    mixed = np.where(own, mix(layout, jnp.asarray(weights), cache), 0)
    np.testing.assert_array_equal(mixed, np.where(own, weights @ values.astype(np.float32), 0))


def test_rows_of_a_packed_table():
    table = np.random.default_rng(1).standard_normal((23, 32)).astype(np.float32)
    for position in (0, 9, 10, 22):
        row = packed_row(jnp.asarray(pack_table(table)), 32, jnp.int32(position), 4)
        np.testing.assert_array_equal(row, np.tile(table[position], (1, 4)))


@pytest.fixture(scope="module")
def models():
    return Smollm2.random(SMALL, seed=3), Smollm2.random(dataclasses.replace(SMALL, is_compact=True), seed=3)


def test_a_compact_model_is_the_same_function(models):
    tokens = jnp.asarray(np.random.default_rng(2).integers(0, SMALL.vocab_size, 390), jnp.int32)
    results = [jax.jit(prefill)(model, tokens, jnp.int32(380)) for model in models]
    np.testing.assert_allclose(results[0][0], results[1][0], atol=1e-5)
    caches = [result[2:] for result in results]
    for position in (380, 399, 7):
        step = [
            jax.jit(decode)(m, jnp.int32(position), jnp.int32(position), *c)
            for m, c in zip(models, caches, strict=True)
        ]
        np.testing.assert_allclose(step[0][0], step[1][0], atol=1e-4)
        caches = [result[2:] for result in step]


def test_a_compact_decoder_on_the_machine(models):
    """Caches in place, the table held once, and the bits of the fast executor."""
    model = models[1]
    step = lpu(decode, resident_argnums=(0, 3, 4), donate_argnums=(3, 4))
    rng = np.random.default_rng(4)
    caches = [jnp.asarray(rng.standard_normal(c.shape), jnp.float16) for c in model.empty_caches()]
    arguments = (model, jnp.int32(650), jnp.int32(390), *caches)
    compiled = step.lower(*arguments).compile()
    outputs, cycles = compiled.simulate(*arguments)
    assert cycles == compiled.cycles
    for ours, wanted in zip(outputs, compiled(*arguments), strict=True):
        assert np.asarray(ours).tobytes() == np.asarray(wanted).tobytes()
    names = [name for name, *_ in compiled.memory_analysis().memory_map if "head.values" in name]
    assert 0 < len(names) <= 4, "one storage per plane"


def test_long_contexts_are_compact_by_default():
    assert not SMOLLM2_135M_SIZES.is_compact
    assert dataclasses.replace(SMOLLM2_135M_SIZES, context=2048, is_compact=None).is_compact
