"""The stages: lowered without weights, compiled, loaded, simulated, reported."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lpu_jax
from lpu_jax import lpu
from lpu_jax.runtime.assembly import from_text
from lpu_jax.runtime.chip import GROQCHIP1


@pytest.fixture
def compiled(mlp):
    predict, params, x = mlp
    return lpu(predict, resident_argnums=0).lower(params, x).compile()


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def test_lower_needs_no_weights(mlp):
    predict, params, x = mlp
    function = lpu(predict, resident_argnums=0)
    lowered = function.lower(abstract(params), abstract(x))
    assert lowered.as_text() == function.lower(params, x).as_text()
    assert lowered.as_text("lpu").startswith("graph(")
    assert "dot_general" in lowered.as_text("jaxpr")
    assert lowered.out_info == abstract(jnp.zeros((3, 4)))
    assert lowered.in_avals == ((abstract(params), abstract(x)), {})
    assert lowered.args_info[0][0]["w"].resident
    assert not lowered.args_info[0][1].resident
    assert lowered.cost_analysis()["flops"] >= 2 * 3 * 8 * 4
    with pytest.raises(ValueError, match="dialect 'hlo' is unknown; use 'lpu' or 'jaxpr'"):
        lowered.as_text("hlo")


def test_nothing_is_scheduled_for_a_plain_call(mlp, monkeypatch):
    import lpu_jax.lowering.pipeline as pipeline

    predict, params, x = mlp
    monkeypatch.setattr(pipeline, "compile_graph", None)
    lpu(predict)(params, x)


def test_the_machine_gives_the_bits_of_the_call_and_the_cycles_of_the_program(compiled, mlp):
    _, params, x = mlp
    outputs, cycles = compiled.simulate(params, x)
    np.testing.assert_array_equal(outputs, compiled(params, x))
    assert cycles == compiled.cycles == compiled.cost_analysis()["cycles"]


def test_compiled_tells_of_itself(compiled):
    assert from_text(compiled.as_text()).to_bytes() == compiled.program.to_bytes()
    assert from_text(compiled.as_text("assembly")).to_bytes() == compiled.program.to_bytes()
    graph = compiled.compiled_graph
    assert compiled.as_text("tiles").count("\n  ") == sum(len(block.ops) for block in graph.tile_graph.blocks)
    assert compiled.as_text("places").count("@ slices") == sum(place is not None for place in graph.allocated.places)
    assert compiled.as_text("schedule").count(" chosen ") == sum(len(block.ops) for block in graph.schedule.blocks)
    with pytest.raises(ValueError, match="dialect 'hlo' is unknown; use 'assembly', 'tiles', 'places' or 'schedule'"):
        compiled.as_text("hlo")
    costs = compiled.cost_analysis()
    assert costs["bounded_by"]
    assert 0 < costs["utilization_mxm"] <= 1
    assert costs["flops"] >= 192
    assert costs["bytes accessed"] > 0
    memory = compiled.memory_analysis()
    assert memory.argument_size_in_bytes == 4 * (8 * 4 + 4 + 3 * 8)
    assert memory.output_size_in_bytes == 4 * 3 * 4
    assert 0 < memory.sram_bytes <= memory.sram_capacity_bytes == GROQCHIP1.usable_sram_bytes
    assert "params['w']" in {row[0] for row in memory.memory_map}


def test_compiled_refuses_other_arguments(compiled, mlp):
    _, params, x = mlp
    with pytest.raises(lpu_jax.ArgumentMismatchError, match=r"argument x is float32\[2,8\], but .* float32\[3,8\]"):
        compiled(params, x[:2])
    with pytest.raises(lpu_jax.ArgumentMismatchError, match="structure"):
        compiled(params)


def test_two_compilations_give_the_same_program(compiled, mlp):
    predict, params, x = mlp
    again = lpu(predict, resident_argnums=0).lower(params, x).compile()
    assert again.program.digest() == compiled.program.digest()


def test_loaded_gives_the_same_bits(compiled, mlp):
    predict, params, x = mlp
    loaded = compiled.load(params)
    expected = lpu(predict)(params, x)
    for found in (loaded(x), jax.jit(loaded)(x), jax.vmap(loaded)(x[None])[0]):
        np.testing.assert_array_equal(found, expected)
    gradient = jax.grad(lambda x: loaded(x).sum())(x)
    # only y is rounded; |d tanh / dy change| < 1 each, summed over 4 columns of |w| < 3
    np.testing.assert_allclose(gradient, jax.grad(lambda x: predict(params, x).sum())(x), atol=8 * 2**-10 * 12)


def test_loaded_int8_weights_are_prepared_once():
    weights = jnp.arange(-32, 32, dtype=jnp.int8).reshape(8, 8)
    x = jnp.linspace(-1, 1, 16, dtype=jnp.float32).reshape(2, 8)

    def project(w, x):
        return jax.lax.dot_general(x, w, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)

    function = lpu(project, resident_argnums=0)
    loaded = function.lower(weights, x).load(weights)
    np.testing.assert_array_equal(loaded(x), function(weights, x))
    assert loaded(x).dtype == jnp.float32


def test_captured_arrays_are_loaded_too():
    table = jnp.ones((300, 300))
    function = lpu(lambda x: x @ table)
    x = jnp.ones((2, 300))
    compiled = function.lower(x).compile()
    np.testing.assert_array_equal(compiled.load()(x), 300)
    np.testing.assert_array_equal(compiled(x), 300)
    outputs, cycles = compiled.simulate(x)
    np.testing.assert_array_equal(outputs, 300)
    assert cycles == compiled.cycles


def test_a_cache_is_updated_in_place():
    def step(weights, x, position, cache):
        row = x * weights
        return row.sum(), jax.lax.dynamic_update_slice(cache, row[None], (position, 0))

    weights, x, cache = jnp.arange(4.0), jnp.ones(4), jnp.zeros((3, 4))
    function = lpu(step, resident_argnums=(0, 3), donate_argnums=3)
    lowered = function.lower(weights, x, jnp.int32(0), cache)
    assert lowered.traced.donated == {1: 3}
    assert lowered.traced.moved_bytes() == (4 * 4 + 4, 4)
    loaded = lowered.load(weights)
    for position in range(3):
        _, cache = loaded(x, position, cache)
    np.testing.assert_array_equal(cache, np.tile(np.arange(4.0), (3, 1)))


def test_a_model_that_does_not_fit_says_what_and_how_much():
    weights = jax.ShapeDtypeStruct((40_000, 8_000), jnp.int8)
    x = jax.ShapeDtypeStruct((1, 40_000), jnp.float32)

    def project(w, x):
        return jax.lax.dot_general(x, w, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)

    with pytest.raises(lpu_jax.SramOverflowError, match=r"(?s)SRAM.*bytes.*chips"):
        lpu(project, resident_argnums=0).lower(weights, x).compile()


def test_profile_and_its_report(mlp):
    predict, params, x = mlp
    function = lpu(predict, resident_argnums=0)
    y, report = lpu_jax.profile(function)(params, x)
    np.testing.assert_array_equal(y, function(params, x))
    chip = GROQCHIP1
    assert report.cycles == function.lower(params, x).compile().cycles
    assert report.microseconds == pytest.approx(report.cycles / (chip.clock_hz / 1e6))
    assert (report.pcie_in_bytes, report.pcie_out_bytes) == (x.nbytes, y.nbytes)
    assert report.pcie_in_seconds == chip.pcie_latency_seconds + x.nbytes / chip.pcie_bytes_per_second
    assert report.total_seconds == pytest.approx(report.seconds + report.pcie_in_seconds + report.pcie_out_seconds)
    assert all(0 <= share <= 1 for share in report.utilization.values())
    parsed = json.loads(report.to_json())
    assert parsed["cycles"] == report.cycles
    text = str(report)
    for expected in (f"{report.cycles:,}", "bounded by", "PCIe", "SRAM", "params['w']"):
        assert expected in text


def test_profile_puts_a_plain_function_on_the_default_chip():
    y, report = lpu_jax.profile(lambda x: x + 1)(jnp.ones(3))
    np.testing.assert_array_equal(y, 2)
    assert report.chip == "groqchip1"
