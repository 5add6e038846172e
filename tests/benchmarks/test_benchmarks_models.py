"""The benchmark of whole models: its rows, for a model that takes no time."""

import jax.numpy as jnp
import models
import pytest

import lpu_jax


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(models, "MODELS", {"tiny": lambda: (lambda w, x: x * w, (jnp.ones(8), jnp.ones((4, 8))))})


def test_runtime_rows_have_both_modes_their_median_and_the_targets(tiny):
    row, median, worst, target = models.runtime(["tiny"], rounds=2)
    assert row[0] == "tiny"
    assert [float(x) for x in row[2:]] == [float(x) for x in median[2:]] == [float(x) for x in worst[2:]]
    assert target[2:] == tuple(models.MODES.values())


def test_compile_rows_are_per_equation(tiny):
    row, median = models.compile_times(["tiny"], resnet50=False)
    graph = lpu_jax.lpu(lambda w, x: x * w).lower(jnp.ones(8), jnp.ones((4, 8))).graph
    assert int(row[1]) == len(graph.equations)
    assert row[3] == median[3]


def test_pages_have_every_table():
    page = models.markdown({"dispatch": [("1 array", "1 us", "2 us", "2.00", "<= 3")]})
    assert "| 1 array | 1 us | 2 us | 2.00 | <= 3 |" in page
    assert page.count("---|") == 5
