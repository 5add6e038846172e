"""The benchmark of the schedule: its bounds, its rows, and a refusal that is shown and not raised."""

import dataclasses
import json

import pytest
import schedule
from programs import GEMM_COLUMNS, Case, cases, chain, chain_bound, gemm_bound, layer_norm, random_arguments
from rich.console import Console

import lpu_jax


def test_tile_quantised_bounds_are_those_of_the_published_curve():
    expected = (149_760, 149_760, 209_664, 239_616, 299_520, 329_472)
    assert tuple(map(gemm_bound, GEMM_COLUMNS)) == expected
    assert chain_bound(8, 4096, 4096) == 53_248 * 8 // 16


def test_names_are_unique_and_every_target_has_its_bound():
    found = list(cases())
    names = [case.name for case in found]
    assert len(set(names)) == len(names)
    gemms = [case for case in found if case.name.startswith("gemm ")]
    assert len(gemms) == 6 + 16
    assert all(case.bound == gemm_bound(int(case.name.split()[1])) for case in gemms)
    assert all(case.ratio == pytest.approx(1 / 0.98) for case in gemms)


def only(monkeypatch, *attempts, **fields):
    case = Case(name="case", attempts=attempts, **fields)
    monkeypatch.setattr(schedule, "cases", lambda: iter([case]))


def test_a_row_agrees_with_the_machine(monkeypatch):
    only(monkeypatch, ("", lambda: chain(4, 8, 640)), bound=1, ratio=2)
    result = schedule.measure("case", on_machine=True)
    assert result.machine.startswith("same bits and cycles")
    assert result.ratio == result.cycles
    assert result.met is False
    assert result.instructions_per_second > 0
    assert result.peak_gib > 0


def test_another_cycle_count_is_an_error(monkeypatch):
    function, arguments = layer_norm(4, 320)
    compiled = function.lower(*arguments).compile()
    monkeypatch.setattr(type(compiled), "cycles", compiled.cycles + 1)
    with pytest.raises(AssertionError, match="the schedule says"):
        schedule.on_the_machine(compiled, random_arguments(arguments))


def test_what_does_not_fit_falls_back_and_says_why(monkeypatch):
    def on_tiny(rows):
        function, arguments = chain(2, rows, 16)
        return lpu_jax.lpu(function.__wrapped__, chip="tiny"), arguments

    only(monkeypatch, ("large", lambda: on_tiny(30_000)), ("small", lambda: on_tiny(3)))
    result = schedule.measure("case", on_machine=False)
    assert (result.name, result.label) == ("case", "small")
    assert result.cycles is not None
    assert "refused large: SRAM overflow" in result.note
    only(monkeypatch, ("", lambda: on_tiny(30_000)))
    refused = schedule.measure("case", on_machine=False)
    assert refused.cycles is None
    console = Console(width=200, record=True, quiet=False)
    console.print(schedule.to_table([refused, dataclasses.replace(result, note="")]))
    assert "refused" in console.export_text()


def test_a_row_replaces_the_older_one_of_its_program(tmp_path):
    path = tmp_path / "rows.json"
    for name, cycles in (("chain 8", 1), ("gemv int8", 2), ("chain 8", 3)):
        schedule.store(path, schedule.Result(name=name, cycles=cycles))
    rows = json.loads(path.read_text())["rows"]
    assert {name: row["cycles"] for name, row in rows.items()} == {"chain 8": 3, "gemv int8": 2}
