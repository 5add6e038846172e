"""Every field of a chip, varied: the chip is refused by name, or gives the same bits in the scheduled cycles."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lpu_jax
from lpu_jax.chips import ChipSpec, tiny
from lpu_jax.lowering.pipeline import compile_graph
from lpu_jax.runtime.errors import ChipLimitError, LpuError, SramOverflowError

RNG = np.random.default_rng(0)
FIELDS = {field.name: getattr(tiny, field.name) for field in dataclasses.fields(ChipSpec)}
INTEGERS = [name for name, value in FIELDS.items() if isinstance(value, int)]


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def layer(params, x, index):
    """Attention over itself, an MLP, and a row that is looked up: products, softmax, moves, a gather and a scatter."""
    w, table = params
    q = x @ w
    attended = jax.nn.softmax(q @ x.T, axis=-1) @ x
    hidden = jnp.tanh(attended * table[index] + q[:, ::-1])
    return jax.lax.dynamic_update_slice(hidden, x[:1], (index, 0))


WEIGHTS, ROWS = (normal(20, 20), normal(5, 20)), normal(18, 20)


@functools.cache
def graph_and_inputs(num_rows):
    arguments = (WEIGHTS, ROWS[:num_rows], np.int32(3))
    lowered = lpu_jax.lpu(layer, chip=tiny, resident_argnums=0).lower(*arguments)
    inputs = lowered.edges.enter(lowered.compile()._inputs(jax.tree.leaves(arguments)))
    expected = np.asarray(lowered.compile()(*arguments))
    return lowered.edges.graph, inputs, expected


def is_prime(number):
    return number > 1 and all(number % divisor for divisor in range(2, number))


def varied(name):
    """One and double; half of what is no delay, and the next prime number."""
    value = FIELDS[name]
    if name.endswith("_cycles"):
        return [v for v in (1, 2 * value) if v != value]
    prime = next(number for number in itertools.count(value + 1) if is_prime(number)) if value < 1000 else 65_537
    return [v for v in dict.fromkeys((1, value // 2, 2 * value, prime)) if v != value]


def run(num_rows=4, **changes):
    """Cycles of the layer on a changed chip, with the same bits and the cycles that were scheduled."""
    graph, inputs, expected = graph_and_inputs(num_rows)
    compiled = compile_graph(graph, dataclasses.replace(tiny, **changes))
    (result,), cycles = compiled.simulate(inputs)
    assert cycles == compiled.cycles
    assert result.reshape(expected.shape).tobytes() == expected.tobytes()
    return cycles


PARTNERS = {
    "num_superlanes": "ChipSpec.num_mxm_rows=",
    "num_planes": "ChipSpec.num_mxm_queues_per_hemisphere=",
    "num_transposers": "ChipSpec.num_sxm_queues_per_hemisphere=",
    "num_distributors": "ChipSpec.num_sxm_queues_per_hemisphere=",
    "num_addresses_per_bank": "SRAM overflow",
}
"""Fields that set a limit for another one, which is named in their place."""


@pytest.mark.parametrize("name", INTEGERS)
def test_a_variant_works_or_is_refused_by_name(name):
    for value in varied(name):
        refusal = None
        try:
            run(**{name: value})
        except (ChipLimitError, SramOverflowError) as error:
            refusal = str(error)
        except ValueError as error:
            refusal = f"internal error {error}" if isinstance(error, LpuError) else str(error)
        named = (f"ChipSpec.{name}={value}", PARTNERS.get(name, "nobody"))
        assert refusal is None or (any(text in refusal for text in named) and "internal error" not in refusal), refusal


@pytest.mark.parametrize(
    "changes",
    [
        {"num_superlanes": 2, "num_mxm_rows": 32},
        {"num_superlanes": 3, "num_mxm_rows": 48, "num_streams_per_load": 12},
        {"num_planes": 4, "num_mxm_queues_per_hemisphere": 12},
        {"num_slices": 16},
        {"num_slices": 22, "reserved_slices_west": (3, 7, 20), "reserved_slices_east": (0, 1, 2)},
        {"num_addresses_per_bank": 80},
        {"num_banks": 1, "max_repeat": 16, "num_rows": 18},
        {"max_repeat": 17, "num_streams_per_direction": 17, "num_rows": 18},
        {"vxm_slots": (("exp", 5), ("div", 1))},
        {"num_alus": 4},
    ],
    ids=str,
)
def test_fields_that_fit_each_other_work(changes):
    assert run(**changes) > 0


def test_an_instruction_beyond_the_longest_repetition_is_issued_again():
    graph, _, _ = graph_and_inputs(18)
    whole = compile_graph(graph, tiny).program
    cut = compile_graph(graph, dataclasses.replace(tiny, max_repeat=16)).program
    assert whole.count.max() > 16 == cut.count.max()
    assert len(cut.count) > len(whole.count)


def test_a_function_with_more_alus_than_there_are_is_refused_by_name():
    power = lpu_jax.lpu(lambda x: x**0.3, chip=dataclasses.replace(tiny, num_alus=4))
    with pytest.raises(ChipLimitError, match=r"num_alus=4 .* function pow takes 5 ALUs .*test_chip_variants.py"):
        power.lower(normal(3, 4)).compile()


def test_an_operand_that_waits_too_long_is_refused_by_name():
    wait = lpu_jax.lpu(lambda x: jnp.exp(jnp.sin(x)) + x, chip=dataclasses.replace(tiny, vxm_max_delay_cycles=2))
    with pytest.raises(ChipLimitError, match=r"vxm_max_delay_cycles=2 .* waits \d+ cycles .*test_chip_variants.py"):
        wait.lower(normal(3, 4)).compile()


def test_one_operation_for_which_there_are_too_few_units_is_refused_by_name(monkeypatch):
    monkeypatch.setattr("lpu_jax.runtime.chip_limits.LIMITS", {})
    shifted = lpu_jax.lpu(jax.nn.softmax, chip=dataclasses.replace(tiny, num_distributors=2))
    with pytest.raises(
        ChipLimitError, match=r"'tiny' has too few units for one operation: .*num_distributors=2 \(wanted: 4"
    ):
        shifted.lower(normal(3, 4)).compile()
