"""Policies: rules find their sites, formats reach SRAM, the product and the machine, and bad ones are refused."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from lpu_jax import NonFiniteWeightError, NumberFormatError, Policy, PolicyError, Rule, lpu
from lpu_jax.lowering.precision import Site
from lpu_jax.precision import PRESETS, as_policy

RNG = np.random.default_rng(0)
W = (RNG.standard_normal((24, 40)) / 5).astype(np.float32)
X = RNG.standard_normal((3, 24)).astype(np.float32)
TABLE = RNG.standard_normal((9, 24)).astype(np.float32)


def model(params, x):
    @jax.jit
    def inner(x):
        with jax.named_scope("down"):
            return jnp.tanh(x @ params["up"]) @ params["down"]

    def step(x, w):
        with jax.named_scope("layer"):
            return jnp.tanh(x @ w), None

    with jax.named_scope("block"):
        x = inner(x)
        x, _ = jax.lax.scan(step, x, params["stack"])
    with jax.named_scope("scores"):
        return x @ x.T


PARAMS = {"up": W, "down": W.T.copy(), "stack": (RNG.standard_normal((2, 24, 24)) / 5).astype(np.float32)}


def formats_of(policy, fun, *args, resident=0):
    lowered = lpu(fun, precision=policy, resident_argnums=resident).lower(*args)
    return {str(site): (str(f.lhs), str(f.rhs), str(f.result)) for site, f in lowered.sites}


def same_bits(a, b):
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()


def test_paths_hold_the_scopes_around_calls_and_loops_and_the_weight():
    assert list(formats_of(Policy("none"), model, PARAMS, X)) == [
        "block/down/dot_general@params/up",
        "block/down/dot_general@params/down",
        "block/layer/dot_general@params/stack",
        "scores/dot_general",
    ]


def test_the_first_rule_that_names_a_format_decides():
    policy = Policy(
        "mine", (Rule("*@*up", rhs="e4m3"), Rule("*/down/*", lhs="bf16", rhs="bf16"), Rule("*", rhs="fp32"))
    )
    assert formats_of(policy, model, PARAMS, X) == {
        "block/down/dot_general@params/up": ("bf16", "e4m3", "None"),
        "block/down/dot_general@params/down": ("bf16", "bf16", "None"),
        "block/layer/dot_general@params/stack": ("None", "fp32", "None"),
        "scores/dot_general": ("None", "fp32", "None"),
    }


def test_truepoint_narrows_weights_but_not_those_marked_sensitive():
    def rhs(policy, path, weight="params/w"):
        return str(policy.formats(Site(path=path, weight=weight, lhs_shape=(1, 2, 3), rhs_shape=(1, 3, 4))).rhs)

    truepoint = PRESETS["truepoint"]
    assert rhs(truepoint, "layer/mlp/dot_general") == "bfp8x16"
    assert rhs(truepoint, "layer/experts/dot_general") == "bfp6x16"
    assert rhs(truepoint, "layer/sensitive/experts/dot_general") == "fp16"
    assert rhs(truepoint, "layer/attention/dot_general", "") == "fp16"
    assert rhs(truepoint, "embedding/gather") == "fp16"
    assert rhs(truepoint.with_sensitive("*mlp*"), "layer/mlp/dot_general") == "fp16"


def test_without_a_choice_the_program_is_that_of_fp16():
    def text(**options):
        return lpu(model, **options).lower(PARAMS, X).as_text()

    assert text() == text(precision="fp16") == text(precision=Policy("none"))
    assert text() != text(precision="fp32") == text(precision="highest")


def kept(form, w):
    """What the prologue keeps of weights: (values, scale)."""
    policy = Policy("p", (Rule("*", lhs="bf16", rhs=form),))
    lowered = lpu(lambda w, x: x @ w, precision=policy, resident_argnums=0).lower(w, X)
    found = {str(np.asarray(a).dtype): np.asarray(a) for a in lowered.run_prologue(w)}
    scale = found.pop("float32", None) if len(found) > 1 else None
    (values,) = found.values()
    return values.reshape(w.shape), scale


def test_kept_weights_are_those_of_the_definition():
    w = W * np.float32(1000)
    for form, dtype, target in (("e4m3", ml_dtypes.float8_e4m3fn, 7), ("e5m2", ml_dtypes.float8_e5m2, 14)):
        values, power = kept(form, w)
        assert power == 2.0 ** (np.floor(np.log2(np.abs(w).max())) - target)
        assert same_bits(values, (w / power[0]).astype(dtype))
    assert same_bits(kept("bf16", w)[0], w.astype(ml_dtypes.bfloat16))
    assert same_bits(kept("fp32", w)[0], w)
    values, scale = kept("int8", w)
    np.testing.assert_allclose(scale.reshape(-1), np.abs(w).max(0) / 127, rtol=1e-6)
    assert np.abs(values * scale[0] - w).max() <= scale.max() * 0.5001
    assert (np.abs(values).max(0) == 127).all()


def product(w, x):
    return x @ w


@pytest.mark.parametrize("name", ["fp8", "int8", "bfp8"])
def test_the_machine_has_the_bits_and_fewer_bytes(name):
    narrow, wide = (
        lpu(product, chip="tiny", precision=p, resident_argnums=0).lower(W, X).compile() for p in (name, "fp32")
    )
    result, cycles = narrow.simulate(W, X)
    assert same_bits(result, narrow.load(W)(X))
    assert cycles == narrow.cycles
    assert narrow.memory_analysis().sram_bytes < wide.memory_analysis().sram_bytes


def test_truepoint_weights_of_a_loop_are_formatted_at_load_and_run_on_the_machine():
    def loop(stack, x):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, stack)[0]

    stack = PARAMS["stack"]
    lowered = lpu(loop, chip="tiny", precision="truepoint", resident_argnums=0).lower(stack, X)
    assert "EncodeBlocks" in str(lowered.parts[0])
    assert "EncodeBlocks" not in str(lowered.parts[1])
    result, cycles = lowered.compile().simulate(stack, X)
    assert same_bits(result, lowered.load(stack)(X))
    assert cycles == lowered.compile().cycles


def test_an_arguments_dtype_stays_unless_the_rule_has_fewer_bits():
    half = W.astype(np.float16)

    def fun(w, x):
        return x @ w

    for policy, dtype in ((PRESETS["fp32"], "FP16"), (Policy("p", (Rule("*", rhs="e4m3"),)), "E4M3")):
        text = lpu(fun, precision=policy, resident_argnums=0).lower(half, X.astype(np.float16)).as_text()
        assert f"rhs_format=<DataFormat.{dtype}" in text


@pytest.mark.parametrize("form", ["fp16", "bf16", "e4m3", "int8"])
def test_a_table_is_held_in_its_format_on_the_machine_too(form):
    def fun(table, index):
        return jnp.asarray(table).at[index].get(mode="promise_in_bounds", wrap_negative_indices=False) * 2

    index = np.array([8, 0, 3], np.int32)
    policy = Policy("p", (Rule("*gather@table", rhs=form),))
    compiled = lpu(fun, chip="tiny", precision=policy, resident_argnums=0).lower(TABLE, index).compile()
    result, cycles = compiled.simulate(TABLE, index)
    assert same_bits(result, compiled(TABLE, index))
    assert cycles == compiled.cycles
    np.testing.assert_allclose(result, TABLE[index] * 2, atol=0.3, rtol=2.0**-4)
    assert not same_bits(result, TABLE[index] * 2)


@pytest.mark.parametrize(("form", "dtype"), [("fp16", "float16"), ("bf16", "bfloat16"), ("e4m3", "float8_e4m3fn")])
def test_results_are_rounded_and_fp8_saturates(form, dtype):
    def product(x, w):
        return x @ w

    x, w = np.float32([[1, 2**-9, 3, 2**-4]]), np.float32([[1, 100], [1, 1], [2**-7, 200], [0, 0]])
    policy = Policy("p", (Rule("*", lhs="fp32", rhs="fp32", result=form),))
    y, _ = lpu(product, chip="tiny", precision=policy).lower(x, w).compile().simulate(x, w)
    wanted = np.minimum(x @ w, float(ml_dtypes.finfo(dtype).max)).astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(y, wanted)


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (
            Rule("scores*", rhs="bfp8"),
            r"bfp8x16 cannot be the rhs of scores/dot_general at test_precision.py:\d+ \(model\)",
        ),
        (Rule("*", lhs="bfp4"), "bfp4x16 cannot be the lhs of block/down/dot_general"),
        (Rule("*", result="int8"), "int8 cannot be the result of .*: results are fp32, bf16, fp16, e4m3 or e5m2"),
    ],
)
def test_a_format_that_an_op_cannot_take_is_refused(rule, text):
    with pytest.raises(NumberFormatError, match=text):
        lpu(model, precision=Policy("p", (rule,)), resident_argnums=0).lower(PARAMS, X)


def test_weights_that_are_not_finite_are_named_where_their_format_would_hide_them():
    bad = np.where(np.arange(40) == 3, np.nan, W).astype(np.float32)
    with pytest.raises(NonFiniteWeightError, match=r"resident argument w float32\[24, 40\] has 24 values"):
        lpu(product, precision="bfp8", resident_argnums=0)(bad, X)
    with pytest.raises(NonFiniteWeightError, match="24 values"):
        lpu(product, chip="tiny", precision="int8", resident_argnums=0).lower(bad, X).compile().simulate(bad, X)


def test_a_table_that_changes_is_refused():
    policy = Policy("p", (Rule("*", rhs="int8"),))
    with pytest.raises(NumberFormatError, match=r"int8 cannot be the table of gather.*resident_argnums"):
        lpu(lambda t, i: jnp.asarray(t)[i], precision=policy).lower(TABLE, np.int32([1, 2]))


def test_a_rule_that_matches_nothing_is_an_error_that_lists_the_sites():
    policy = Policy("p", (Rule("*", rhs="fp16"), Rule("*/attention/*", rhs="e4m3")))
    with pytest.raises(PolicyError, match=r"1 of 2 rules match nothing.*'\*/attention/\*'") as raised:
        lpu(model, precision=policy, resident_argnums=0).lower(PARAMS, X)
    assert "block/layer/dot_general@params/stack" in str(raised.value)
    with pytest.raises(PolicyError, match="behind an @ only if it is named in resident_argnums"):
        lpu(model, precision=Policy("p", (Rule("*@*", rhs="e4m3"),))).lower(PARAMS, X)
    lpu(model, precision=Policy("p", (Rule("*@*", rhs="e4m3", is_optional=True),))).lower(PARAMS, X)


def test_policies_are_values():
    policy = Policy("p", (Rule("*/mlp/*@*", rhs="bfp4x32"), Rule("*", lhs="fp16", result="fp32", is_optional=True)))
    again = Policy.from_json(policy.to_json())
    assert again == policy
    assert hash(again) == hash(policy)
    assert str(policy).splitlines() == ["policy p", "  */mlp/*@*: rhs=bfp4x32", "  *: lhs=fp16 result=fp32 (if any)"]
    for preset in PRESETS.values():
        assert Policy.from_json(preset.to_json()) == preset


def test_files(tmp_path):
    path = tmp_path / "policy.json"
    PRESETS["truepoint"].save(path)
    assert Policy.load(path) == PRESETS["truepoint"]


def _json(**changes):
    return json.dumps({"lpu_jax_policy": 1, "name": "p", "rules": []} | changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "policy: not JSON"),
        ("[]", "policy: not a policy"),
        (_json(lpu_jax_policy=2), "policy: version 2 of the policy form, this lpu_jax reads 1"),
        (_json(rules=3), "expected a text 'name' and a list 'rules', got 'p' and 3"),
        (_json(rules=[{"rhs": "fp16"}]), "rule 0: expected an object with a text 'pattern'"),
        (_json(rules=[{"pattern": "*", "weights": "fp16"}]), r"rule 0: unknown keys \['weights'\]"),
        (_json(rules=[{"pattern": "*", "rhs": "fp7"}]), "rule 0: rule '.', rhs: unknown number format 'fp7'"),
        (_json(rules=[{"pattern": "*", "rhs": 8}]), "rule 0: rhs is 8, expected the name of a format"),
        (_json(rules=[{"pattern": "*", "is_optional": 1}]), "rule 0: is_optional is 1"),
        (_json(rules=[{"pattern": "", "rhs": "fp16"}]), "rule 0: rule pattern ''"),
    ],
)
def test_a_bad_file_is_refused_with_its_place(text, message):
    with pytest.raises(PolicyError, match=message):
        Policy.from_json(text)


def test_unknown_presets():
    with pytest.raises(ValueError, match="precision='low' is unknown; use a Policy or one of fp32, fp16, fp8"):
        as_policy("low")
    with pytest.raises(TypeError, match="precision=3 is neither"):
        as_policy(3)
