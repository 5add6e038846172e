"""The growth benchmark: distinct layers stay distinct, and the exponent is that of the points."""

import pytest

pytest.importorskip("matplotlib")

import growth


def test_the_exponent_of_a_power_law():
    assert growth.exponent([1e3, 1e4, 1e6], [2 * n**1.5 for n in (1e3, 1e4, 1e6)]) == pytest.approx(1.5)


def test_no_layer_is_scheduled_for_another_one():
    function, arguments = growth.stack(3)
    blocks = function.lower(*arguments).compile().compiled_graph.schedule.blocks
    assert all(block.num_iterations == 1 for block in blocks)


def test_the_figure_is_the_same_for_the_same_points(tmp_path):
    paths = [tmp_path / name for name in ("a.svg", "b.svg")]
    for path in paths:
        growth.draw([10, 100, 1000], [0.1, 1.0, 11.0], 1.02, path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert b"<svg" in paths[0].read_bytes()
