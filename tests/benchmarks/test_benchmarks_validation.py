"""docs/validation.md: it is what its generator makes, and no calibration target is left out."""

import json
import re

import pytest
import validation
from calibration_programs import geometry_figures, micro_figures


@pytest.fixture(scope="module")
def micro():
    return [*geometry_figures(), *micro_figures()]


def test_the_page_is_what_the_generator_makes(micro):
    assert validation.PAGE.read_text() == validation.page(micro, json.loads(validation.STORED.read_text()))


def test_every_target_is_shown_or_says_why_not(micro):
    text = validation.page(micro, {})
    shown = {int(row) for row in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    listed = {int(row) for row in re.findall(r"^\* row (\d+): \w", text, re.MULTILINE)}
    assert shown | listed == set(range(1, validation.NUM_TARGETS + 1))
    assert not shown & listed
    assert shown == set(range(1, 18))


def test_single_steps_are_exact(micro):
    assert all(figure.ratio is None or round(figure.ratio, 3) == 1 for figure in micro)
    assert {figure.row for figure in micro} == set(range(1, 11))


def test_a_program_without_cycles_shows_its_reason():
    rows = {"bert-base": {"cycles": None, "note": "int8 weights; refused bert-base: SRAM overflow; or less"}}
    figure = next(f for f in validation.bert_figures(rows) if f.row == 14)
    assert figure.ours == "refused bert-base: SRAM overflow"
    assert figure.ratio is None
    rows["bert-base"] = {"cycles": 234_000, "resource_bound": 1, "dependency_bound": 2}
    assert next(f for f in validation.bert_figures(rows) if f.row == 14).ratio == 2


def test_the_share_of_peak_follows_from_the_cycles():
    rows = {"gemm 1600": {"cycles": 149_760}}
    figure = next(f for f in validation.gemm_figures(rows) if "1600" in f.what)
    assert figure.ours.startswith("98.5%")
