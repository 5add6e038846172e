"""Calibration: bits go where errors are, budgets hold, policies run, and bad input is told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpu_jax import Budget, BudgetError, PolicyError, calibrate, lpu
from lpu_jax.calibration import NonFiniteSampleError
from lpu_jax.knapsack import Option, choose
from lpu_jax.lowering.precision import Site
from lpu_jax.precision import Policy, Rule
from lpu_jax.rounding import round_argument
from lpu_jax.runtime.block_floating_point import quantize_blocks
from lpu_jax.runtime.formats import parse_format
from lpu_jax.runtime.ops import Reshape, Transpose

RNG = np.random.default_rng(0)
FORMATS = ("bfp4", "fp16")


def model(params, x):
    """The second product adds little: its weights tolerate much."""
    with jax.named_scope("main"):
        y = x @ params["main"]
    with jax.named_scope("small"):
        y = y + (x @ params["small"]) * 0.01
    return jax.lax.scan(lambda y, w: (jnp.tanh(y @ w.T), None), y, params["stack"])[0]


PARAMS = {
    "main": (RNG.standard_normal((32, 32)) / 6).astype(np.float32),
    "small": (RNG.standard_normal((32, 32)) / 6).astype(np.float32),
    "stack": (RNG.standard_normal((2, 32, 32)) / 6).astype(np.float32),
}
SAMPLES = [RNG.standard_normal((4, 32)).astype(np.float32) for _ in range(2)]


@pytest.fixture(scope="module")
def direct():
    return calibrate(model, PARAMS, SAMPLES, budget=Budget(bits_per_weight=8), formats=FORMATS)


def formats(calibration):
    return {c.name.split("/")[1]: str(c.chosen.number_format) for c in calibration.choices}


def test_bits_go_where_the_error_is(direct):
    assert formats(direct)["small"] == "bfp4x16"
    assert formats(direct.for_budget(Budget(bits_per_weight=4.5))) == dict.fromkeys(PARAMS, "bfp4x16")
    assert formats(direct.for_budget(Budget(bits_per_weight=16))) == dict.fromkeys(PARAMS, "fp16")
    assert direct.bits_per_weight <= 8
    errors = [direct.for_budget(Budget(bits_per_weight=b)).error for b in (4.5, 8, 16)]
    assert errors == sorted(errors, reverse=True)


def test_the_gradient_mode_agrees_with_the_direct_one(direct):
    found = calibrate(model, PARAMS, SAMPLES, budget=Budget(bits_per_weight=8), formats=FORMATS, mode="gradient")
    assert formats(found) == formats(direct)
    for a, b in zip(found.choices, direct.choices, strict=True):
        assert 0.2 < a.candidates[0].error / b.candidates[0].error < 5


def test_errors_are_the_distances_of_a_run_with_that_weight_rounded(direct):
    rounded = {
        **PARAMS,
        "main": quantize_blocks(PARAMS["main"], parse_format("bfp4"), True).decode().astype(np.float32),
    }
    distances = []
    for x in SAMPLES:
        y = model(PARAMS, x)
        distances.append(float(jnp.sum((model(rounded, x) - y) ** 2) / jnp.sum(y**2)))
    (main,) = [c for c in direct.choices if c.name == "params/main"]
    np.testing.assert_allclose(main.candidates[0].error, np.mean(distances), rtol=1e-4)


def test_rounding_follows_the_moves_to_the_blocks_of_the_product():
    w = RNG.standard_normal((2, 8, 4, 32)).astype(np.float32)
    moves = ((Transpose((1, 2, 0)), (4, 32, 8)), (Reshape(), (1, 128, 8)))
    site = Site(
        path="p", weight="w", lhs_shape=(1, 1, 128), rhs_shape=(1, 128, 8), weight_shape=(8, 4, 32), moves=moves
    )
    found = np.asarray(round_argument(w, site, parse_format("bfp5x32")))
    for turn, own in zip(found, w, strict=True):
        wanted = quantize_blocks(own.transpose(1, 2, 0).reshape(128, 8), parse_format("bfp5x32"), True).decode()
        np.testing.assert_array_equal(turn.transpose(1, 2, 0).reshape(128, 8), wanted.astype(np.float32))


@pytest.mark.parametrize("form", ["e4m3", "int8", "bfp4", "bf16"])
def test_rounded_weights_are_those_that_the_lpu_multiplies(form):
    w = PARAMS["main"] * np.float32(1000)
    policy = Policy("p", (Rule("*", lhs="bf16", rhs=form),))
    lowered = lpu(lambda w, x: x @ w, chip="tiny", precision=policy, resident_argnums=0).lower(w, SAMPLES[0])
    ((site, _),) = lowered.sites
    eye = np.eye(32, dtype=np.float32)
    result, _ = (
        lpu(lambda w, x: x @ w, chip="tiny", precision=policy, resident_argnums=0)
        .lower(w, eye)
        .compile()
        .simulate(w, eye)
    )
    np.testing.assert_array_equal(np.asarray(round_argument(w, site, parse_format(form))), result)


def test_the_policy_runs_on_the_lpu_with_the_bytes_of_the_table(direct):
    lowered = lpu(model, precision=direct.policy, resident_argnums=0).lower(PARAMS, SAMPLES[0])
    kept = {s.weight.split("/")[1]: str(f.rhs) for s, f in lowered.sites}
    assert kept == formats(direct)
    assert direct.num_bytes == sum(c.chosen.num_bytes for c in direct.choices)
    assert direct.choices[0].chosen.num_bytes in (32 * 32 * 4.5 / 8, 32 * 32 * 2)
    assert "params/small" in str(direct)
    assert Policy.from_json(direct.policy.to_json()) == direct.policy


def test_sram_bytes_are_those_of_the_compiled_program():
    params = {"w": RNG.standard_normal((128, 360)).astype(np.float32)}
    x = [np.ones((1, 128), np.float32)]
    found = calibrate(lambda p, x: x @ p["w"], params, x, budget=Budget(bits_per_weight=16), formats=("bfp5", "fp16"))
    for form, scale_bytes in (("bfp5", 0), ("fp16", 4 * 320)):
        policy = Policy("p", (Rule("*", lhs="fp16", rhs=form),))
        compiled = lpu(lambda p, x: x @ p["w"], precision=policy, resident_argnums=0).lower(params, x[0]).compile()
        stored = sum(size for name, _, size, _ in compiled.memory_map() if "'w'" in name)
        (candidate,) = [c for c in found.choices[0].candidates if c.number_format == parse_format(form)]
        assert stored - scale_bytes == candidate.sram_bytes > candidate.num_bytes


def test_equal_inputs_give_equal_policies_and_no_output(direct, capsys):
    again = calibrate(model, PARAMS, SAMPLES, budget=Budget(bits_per_weight=8), formats=FORMATS)
    assert again == direct
    assert capsys.readouterr().err == ""


def test_a_budget_in_cycles_is_met_by_the_compiled_program():
    def fun(params, x):
        return x @ params["main"]

    params, samples = {"main": RNG.standard_normal((128, 48)).astype(np.float32)}, [np.ones((1, 128), np.float32)]

    def cycles(policy):
        return lpu(fun, chip="tiny", precision=policy, resident_argnums=0).lower(params, samples[0]).compile().cycles

    options = {"formats": ("bfp4", "fp16"), "chip": "tiny"}
    narrow, wide = (cycles(Policy("p", (Rule("*", lhs="fp16", rhs=f),))) for f in options["formats"])
    assert narrow < wide
    met = calibrate(fun, params, samples, budget=Budget(cycles=wide - 1), **options)
    assert cycles(met.policy) == narrow
    assert cycles(calibrate(fun, params, samples, budget=Budget(cycles=wide), **options).policy) == wide
    with pytest.raises(BudgetError, match=f"budget of 3 cycles per call cannot be met.*{narrow:,}") as raised:
        calibrate(fun, params, samples, budget=Budget(cycles=3), **options)
    assert raised.value.least == narrow


def test_a_budget_that_cannot_be_met_tells_the_least(direct):
    with pytest.raises(BudgetError, match=r"2 bits per weight cannot be met.*4.500 bits per weight") as raised:
        direct.for_budget(Budget(bits_per_weight=2))
    assert raised.value.least == 4 * 32 * 32 * 4.5 / 8
    least = sum(c.candidates[0].sram_bytes for c in direct.choices)
    with pytest.raises(BudgetError, match="1 chips less"):
        direct.for_budget(Budget(chips=1, reserved_bytes=10**9))
    assert formats(direct.for_budget(Budget(chips=1))) == dict.fromkeys(PARAMS, "fp16")
    assert formats(direct.for_budget(Budget(sram_bytes=least))) == dict.fromkeys(PARAMS, "bfp4x16")
    with pytest.raises(ValueError, match="one positive limit"):
        Budget(bits_per_weight=4, chips=1)


def test_values_that_are_not_finite_are_counted_and_named():
    bad = np.where(np.arange(32) < 3, np.nan, PARAMS["main"]).astype(np.float32)
    with pytest.raises(NonFiniteSampleError, match=r"params\['main'\] float32\[32, 32\] has 96 of 1024 values"):
        calibrate(model, {**PARAMS, "main": bad}, SAMPLES, budget=Budget(bits_per_weight=8))
    infinite = SAMPLES[0].copy()
    infinite[0, 0] = np.inf
    with pytest.raises(NonFiniteSampleError, match=r"samples\[1\]\[0\] float32\[4, 32\] has 1 of 128 values"):
        calibrate(model, PARAMS, [SAMPLES[0], infinite], budget=Budget(bits_per_weight=8))


def test_mistakes_are_told():
    budget = Budget(bits_per_weight=8)
    with pytest.raises(ValueError, match="mode='slow' is unknown"):
        calibrate(model, PARAMS, SAMPLES, budget=budget, mode="slow")
    with pytest.raises(ValueError, match="loss='mse' is unknown"):
        calibrate(model, PARAMS, SAMPLES, budget=budget, loss="mse")
    with pytest.raises(PolicyError, match="unknown number format 'fp7'"):
        calibrate(model, PARAMS, SAMPLES, budget=budget, formats=("fp7",))
    with pytest.raises(PolicyError, match=r"no weight to calibrate at the sites '\*mlp\*'"):
        calibrate(model, PARAMS, SAMPLES, budget=budget, only="*mlp*")
    with pytest.raises(ValueError, match="at least one sample"):
        calibrate(model, PARAMS, [], budget=budget)


def test_weights_that_cannot_be_calibrated_are_listed_with_the_reason():
    def fun(params, x):
        return x @ params["main"] + x @ (params["small"] * 2) + x @ params["stack"][0]

    found = calibrate(fun, PARAMS, SAMPLES, budget=Budget(bits_per_weight=16), formats=("fp16",))
    assert dict(found.skipped) == {
        "params/small": "computed from the argument",
        "params/stack": "computed from the argument",
    }


def test_the_knapsack_takes_the_best_step_first():
    options = [[Option(1, 9.0), Option(3, 1.0)], [Option(1, 5.0), Option(2, 2.0), Option(3, 1.9)]]
    assert choose(options, 2) == [0, 0]
    assert choose(options, 3) == [0, 1]
    assert choose(options, 4) == [1, 0]
    assert choose(options, 5) == [1, 1]
    assert choose(options, 99) == [1, 2]
    with pytest.raises(BudgetError, match="take 2 bytes, the budget is 1"):
        choose(options, 1)
