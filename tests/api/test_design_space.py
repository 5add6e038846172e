import dataclasses
import itertools
import unittest.mock

import jax
import jax.numpy as jnp
import joblib
import numpy as np
import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st
from joblib.parallel import ThreadingBackend

import lpu_jax
from lpu_jax.chips import groqchip1, lp30, tiny
from lpu_jax.design_space import RESULTS, changed_chip
from lpu_jax.runtime import progress as runtime_progress

Shape = jax.ShapeDtypeStruct


def layer(w, x):
    return jnp.maximum(x @ w, 0)


def shapes(batch=3, width=24):
    return Shape((40, width), jnp.float32), Shape((batch, 40), jnp.float32)


on_tiny = lpu_jax.lpu(layer, chip=tiny, resident_argnums=0)


def sweep(arguments=None, **options):
    return lpu_jax.sweep(on_tiny, shapes() if arguments is None else arguments, num_jobs=1, **options)


def test_every_row_is_what_compiling_for_that_chip_gives_and_the_machine_agrees():
    rng = np.random.default_rng(0)
    w, x = (rng.standard_normal(s.shape).astype(np.float32) for s in shapes())
    expected = np.asarray(on_tiny.lower(w, x).compile().simulate(w, x)[0]).tobytes()
    frame = sweep(fields={("num_slices", "mxm_accumulate_cycles"): [(16, 28), (24, 5)]})
    assert len(frame) == 2
    for row in frame.itertuples():
        chip = changed_chip(tiny, {name: getattr(row, name) for name in ("num_slices", "mxm_accumulate_cycles")})
        function = lpu_jax.lpu(layer, chip=chip, resident_argnums=0)
        compiled = function.lower(w, x).compile()
        outputs, cycles = compiled.simulate(w, x)
        assert (row.cycles, row.cycles) == (compiled.cycles, cycles)
        assert np.asarray(outputs).tobytes() == expected
        assert row.sram_used_bytes == compiled.memory_analysis().sram_bytes
        assert row.sram_capacity_bytes == chip.usable_sram_bytes
        assert row.resource_bound_cycles == compiled.cost_analysis()["resource_bound_cycles"]
        assert row.microseconds == pytest.approx(compiled.report().microseconds)
        assert row.pcie_microseconds == pytest.approx(
            1e6 * (compiled.report().total_seconds - compiled.report().seconds)
        )
        assert row.total_microseconds == pytest.approx(1e6 * compiled.report().total_seconds)


def test_a_faster_link_to_the_host_changes_the_time_of_a_call_and_no_cycle():
    link = ("pcie_bytes_per_second", "pcie_latency_seconds")
    frame = sweep(fields={link: [(1e9, 8e-6), (2e9, 4e-6), (1e15, 0.0)]})
    assert frame["cycles"].nunique() == frame["microseconds"].nunique() == 1
    sent, returned = 4 * 3 * 40, 4 * 3 * 24  # x and the results; the weights stay
    slow = 16 + (sent + returned) / 1e9 * 1e6
    assert frame["pcie_microseconds"].tolist() == pytest.approx([slow, slow / 2, 0], abs=1e-5)
    pandas.testing.assert_series_equal(
        frame["total_microseconds"], frame["microseconds"] + frame["pcie_microseconds"], check_names=False
    )


def test_rows_come_in_the_order_of_the_product_with_one_column_for_each_axis():
    axes = {"batch": [1, 5], "width": [16, 20]}
    frame = sweep(lambda batch, width: shapes(batch, width), parameters=axes, fields={"mem_read_cycles": [1, 4]})
    assert list(frame.columns) == ["batch", "width", "chip", "mem_read_cycles", *RESULTS]
    keys = list(frame[["batch", "width", "mem_read_cycles"]].itertuples(index=False, name=None))
    assert keys == list(itertools.product([1, 5], [16, 20], [1, 4]))
    assert {name: str(frame[name].dtype) for name in RESULTS} == {
        name: kind if kind != "string" else "string" for name, kind in RESULTS.items()
    }


def test_the_number_of_processes_does_not_change_the_frame():
    fields = {"num_slices": np.arange(16, 25, 4)}
    alone = sweep(fields=fields)
    pandas.testing.assert_frame_equal(alone, lpu_jax.sweep(on_tiny, shapes(), fields=fields, num_jobs=2))


def test_a_function_is_traced_once_for_each_set_of_arguments():
    traces = []

    def counted(w, x):
        traces.append(x.shape)
        return layer(w, x)

    fields = {"num_slices": [16, 20]}
    function = lpu_jax.lpu(counted, chip=tiny)
    lpu_jax.sweep(function, shapes, parameters={"batch": [1, 2]}, fields=fields, num_jobs=1)
    assert traces == [(1, 40), (2, 40)]


def test_a_variant_that_does_not_fit_is_a_row():
    frame = sweep(shapes(width=800), fields={"num_addresses_per_bank": [16, 256]})
    assert frame["error"][0].startswith("SramOverflowError: SRAM overflow")
    assert frame["cycles"].isna().tolist() == [True, False]
    assert frame["sram_used_bytes"].isna().tolist() == [True, False]


def test_fields_that_contradict_each_other_are_a_row():
    frame = sweep(fields={"num_planes": [2, 3]})
    assert frame["error"].isna().tolist() == [True, False]
    assert "num_mxm_queues_per_hemisphere=6" in frame["error"][1]
    assert "at least 9 are needed" in frame["error"][1]


def test_a_program_that_the_machine_would_refuse_is_a_row(monkeypatch):
    def decode(decoder):
        decoder.refuse(0, f"{decoder.chip.num_slices} slices") if decoder.chip.num_slices == 16 else None

    monkeypatch.setattr("lpu_jax.runtime.units.decode.Decoder.decode", decode)
    frame = sweep(fields={"num_slices": [16, 24]})
    assert frame["error"].isna().tolist() == [False, True]
    assert frame["error"][0].startswith("ProgramError: cycle")
    assert frame["error"][0].endswith("16 slices")


def test_arguments_that_the_lpu_refuses_are_rows():
    frame = lpu_jax.sweep(
        lpu_jax.lpu(lambda x: x + 1, chip=tiny),
        lambda dtype: (Shape((4,), dtype),),
        parameters={"dtype": [np.dtype("float32"), np.dtype("float64")]},
        num_jobs=1,
    )
    assert frame["error"].isna().tolist() == [True, False]
    assert frame["error"][1].startswith("UnsupportedInputError")


def test_a_mistake_of_the_function_is_raised():
    with pytest.raises(TypeError, match="dot_general requires contracting dimensions"):
        sweep((Shape((41, 3), jnp.float32), Shape((2, 40), jnp.float32)))


def test_presets_keep_their_assumptions_and_changed_fields_are_named():
    frame = lpu_jax.sweep(on_tiny, shapes(), chips=["groqchip1", lp30], fields={"num_slices": [44, 60]}, num_jobs=1)
    assert frame["chip"].tolist() == ["groqchip1", "groqchip1", "lp30", "lp30"]
    assert frame["assumptions"][0] == ""
    assert frame["assumptions"][1] == "num_slices 60 instead of 44"
    assert frame["assumptions"][2] == "; ".join(lp30.assumptions)
    assert frame["assumptions"][3] == "; ".join((*lp30.assumptions, "num_slices 60 instead of 44"))


def test_the_chip_of_the_function_is_where_fields_start_from():
    assert sweep()["chip"].tolist() == ["tiny"]
    assert lpu_jax.sweep(layer, shapes(), num_jobs=1)["chip"].tolist() == ["groqchip1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fields": {"num_slice": [1]}}, "'num_slice' is no field of ChipSpec.*did you mean 'num_slices'"),
        ({"fields": {"name": ["x"]}}, "'name' is no field of ChipSpec to sweep over"),
        ({"fields": {"num_planes": [2, 0]}}, "ChipSpec.num_planes=0: allowed are integers from 1 on"),
        ({"fields": {"num_slices": [44.0]}}, "ChipSpec.num_slices=44.0: allowed are integers"),
        ({"fields": {("num_slices", "num_planes"): [(44,)]}}, r"need 2 values that change together, got \(44,\)"),
        ({"fields": {"num_slices": [44], ("num_slices",): [(3,)]}}, "ChipSpec.num_slices is swept twice"),
        ({"fields": {"num_slices": []}}, "nothing to sweep"),
        ({"chips": []}, "nothing to sweep"),
        ({"parameters": {"batch": [1]}}, r"parameters \('batch',\) need a function of them"),
        ({"chips": "groqchip2"}, "unknown chip 'groqchip2'"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_anything_is_compiled(options, message, monkeypatch):
    monkeypatch.setattr("lpu_jax.design_space.measure_variant", lambda *_: pytest.fail("compiled"))
    with pytest.raises(ValueError, match=message):
        sweep(**options)


def test_another_engine_of_joblib_does_the_work():
    used = []

    class Recording(ThreadingBackend):
        def submit(self, func, callback=None):
            used.append(func)
            return super().submit(func, callback)

    joblib.register_parallel_backend("recording", Recording)
    with joblib.parallel_config(backend="recording"):
        frame = lpu_jax.sweep(on_tiny, shapes(), fields={"num_slices": [16, 20]}, num_jobs=2)
    assert used
    pandas.testing.assert_frame_equal(frame, sweep(fields={"num_slices": [16, 20]}))


def test_a_bar_counts_the_rows_above_the_bars_of_the_compiler(monkeypatch):
    monkeypatch.setattr(runtime_progress, "is_shown", lambda: True)
    monkeypatch.setattr(runtime_progress, "DELAY_SECONDS", 0)
    counts = []
    monkeypatch.setattr(runtime_progress._Screen, "update", lambda _, bar: counts.append((bar.what, bar.done)))
    monkeypatch.setattr(runtime_progress.Bar, "task", property(lambda _: 0, lambda *_: None), raising=False)
    monkeypatch.setattr(runtime_progress, "_display", unittest.mock.MagicMock())
    sweep(fields={"num_slices": [16, 20, 24]})
    assert [done for what, done in counts if what == "Sweeping"] == [1, 2, 3]


# The front ----------------------------------------------------------------------------------------------------------

points = st.lists(st.tuples(st.integers(0, 4) | st.none(), st.integers(0, 4) | st.none()), max_size=12)


@given(points)
def test_a_row_is_on_the_front_when_no_other_row_beats_it(pairs):
    frame = pandas.DataFrame({"a": pandas.array([a for a, _ in pairs], "Int64"), "b": [b for _, b in pairs]})
    frame["b"] = frame["b"].astype("Float64")
    front = lpu_jax.pareto_front(frame, ("a", "b")).tolist()

    def beats(one, other):
        return None not in one and one != other and all(p <= q for p, q in zip(one, other, strict=True))

    assert front == [None not in pair and not any(beats(other, pair) for other in pairs) for pair in pairs]


def test_the_front_names_a_missing_column():
    with pytest.raises(ValueError, match="no column 'cycle'; it has cycles"):
        lpu_jax.pareto_front(pandas.DataFrame({"cycles": [1]}), ("cycle",))


def test_the_picture_shows_every_program_and_joins_the_front(tmp_path):
    frame = sweep(shapes(width=800), fields={"num_addresses_per_bank": [16, 64, 256], "mem_read_cycles": [1, 9]})
    ax = lpu_jax.pictures.pareto(frame, color="mem_read_cycles")
    drawn = {tuple(point) for artist in ax.collections for point in artist.get_offsets().tolist()}
    fits = frame[frame["error"].isna()]
    assert drawn == set(zip(fits["sram_capacity_bytes"].astype(float), fits["cycles"].astype(float), strict=True))
    front = frame[lpu_jax.pareto_front(frame)]
    assert sorted(ax.lines[0].get_ydata()) == sorted(front["cycles"])
    assert "2 without" in ax.get_title()
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("sram capacity (MiB)", "cycles")
    assert [text.get_text() for text in ax.get_legend().get_texts()][:2] == [
        "mem_read_cycles = 1",
        "mem_read_cycles = 9",
    ]
    ax.figure.savefig(tmp_path / "front.png")


def test_a_changed_chip_says_so_in_its_report():
    chip = changed_chip(groqchip1, {"num_slices": 60})
    assert chip == dataclasses.replace(groqchip1, num_slices=60, name=chip.name, assumptions=chip.assumptions)
    report = lpu_jax.lpu(layer, chip=chip).lower(*shapes()).compile().report()
    assert any("num_slices 60 instead of 44" in text for text in report.assumptions)
