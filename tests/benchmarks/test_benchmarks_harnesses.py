"""A sample of JAX's own harnesses: a small one of many primitives by default, more with LPU_JAX_ALL=1."""

import os

import pytest

harnesses = pytest.importorskip("harnesses")

GROUPS = (
    "add", "and", "approx_top_k", "argmin", "broadcast_in_dim", "clamp", "complex", "concatenate", "cumsum", "div",
    "dot_general", "dynamic_slice", "eigh", "eq", "exp", "fft", "gather", "integer_pow", "is_finite", "lgamma", "max",
    "pad", "population_count", "random_uniform", "reduce", "reduce_sum", "rem", "rev", "scatter_add", "select_n",
    "shift_left", "sort", "transpose",
)  # fmt: skip
ON_HOST = {"complex", "eigh", "fft"}


def test_a_sample_passes():
    is_large = bool(os.environ.get("LPU_JAX_ALL"))
    found = harnesses.chosen(20 if is_large else 1, [] if is_large else list(GROUPS))
    for group, group_harnesses in found.items():
        for harness in group_harnesses:
            result, reason = harnesses.outcome(harness)
            assert result in ("pass", "host", "skipped"), f"{harness.fullname}: {result}: {reason}"
            if group in GROUPS and not is_large:
                assert result == ("host" if group in ON_HOST else "pass"), harness.fullname


def test_wrong_results_are_told():
    real = harnesses.np.arange(4.0)
    xla = real.astype("float32")
    assert harnesses.explain(xla, xla, real) == ""
    off = xla.copy()
    off[2] += 1e-5
    assert "1 of 4 wrong" in harnesses.explain(off, xla, real)
    small = xla + harnesses.np.float32(1e-8)
    assert harnesses.explain(small, xla, real)
    assert harnesses.explain(small, xla, real, is_norm=True) == ""
    assert harnesses.explain(xla.astype("int32"), xla, real) == "int32(4,) instead of float32(4,)"
    assert "2 of 4 differ" in harnesses.explain(
        (xla * [1, 1, 2, 2]).astype("int32"), xla.astype("int32"), xla.astype("int32")
    )


def test_an_interrupted_run_goes_on_where_it_was(tmp_path, monkeypatch):
    path = str(tmp_path / "results.jsonl")
    ran = []

    def outcome(harness):
        ran.append(harness.fullname)
        return ("pass", "") if len(ran) > 1 else ("host", "no rule")

    monkeypatch.setattr(harnesses, "outcome", outcome)
    chosen = harnesses.interleaved(harnesses.chosen(2, ["add", "lu"]))
    first = harnesses.run(chosen[:3], path, is_verbose=False)
    both = harnesses.run(chosen, path, is_verbose=False)
    assert both[:3] == first
    assert ran == [h.fullname for h in chosen]
    assert harnesses.stored(path) == {r.name: r for r in both}
    assert harnesses.counted(both)["all"] == {"pass": len(chosen) - 1, "host": 1}
    assert f"{len(chosen)} of " in harnesses.page(both, "command")


def test_a_group_counts_with_all_its_harnesses():
    large, small = ("scatter_add", "pass"), ("svd", "host")
    results = [harnesses.Result("", group, True, outcome, "", 0.0) for group, outcome in (large, small, small)]
    assert 0.9 < harnesses.native_share(results) < 1


def test_every_beginning_of_a_run_has_its_share_of_every_group():
    order = harnesses.interleaved({"many": list(range(8)), "few": [8, 9]})
    assert sorted(order) == list(range(10))
    assert [sum(x > 7 for x in order[: 5 * i]) for i in (1, 2)] == [1, 2]
