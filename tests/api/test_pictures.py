"""Pictures render without a display, label their axes with units, and draw as much as the program holds."""

import io
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch

import lpu_jax
from lpu_jax import pictures
from lpu_jax.pictures.drawing import UNIT_GROUPS
from lpu_jax.report.events import program_rows

PICTURES = [
    pictures.timeline,
    pictures.sram_map,
    pictures.utilization,
    pictures.roofline,
    pictures.cycles_per_module,
    pictures.binding_chain,
    pictures.dependency_chain,
]


def rendered(ax):
    buffer = io.BytesIO()
    ax.figure.savefig(buffer, format="png")
    return buffer.getvalue()


def num_boxes(ax):
    return sum(len(collection.get_paths()) for collection in ax.collections)


def labels(ax):
    return ax.get_legend_handles_labels()[1]


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.__name__)
def test_every_picture_renders_with_labels(compiled, picture):
    ax = picture(compiled)
    assert rendered(ax).startswith(b"\x89PNG")
    assert ax.get_title()
    assert ax.get_ylabel()
    assert any(unit in ax.get_xlabel() for unit in ("cycles", "slice", "byte"))
    own = Figure().add_subplot()
    assert picture(compiled.compiled_graph, ax=own) is own
    assert own.has_data()


def test_empty_programs_render_too():
    nothing = lpu_jax.lpu(lambda x: x).lower(jnp.ones(3)).compile()
    for picture in PICTURES:
        assert rendered(picture(nothing)).startswith(b"\x89PNG")


def test_the_timeline_has_a_bar_for_every_row_and_port(compiled):
    rows = program_rows(compiled.program)
    wanted = 0
    for block in compiled.program.blocks:
        here = slice(block.row_start, block.row_stop)
        wanted += block.num_iterations * int(rows.num_ports[here][rows.kind[here] >= 0].sum())
    ax = pictures.timeline(compiled)
    assert num_boxes(ax) == wanted
    assert ax.get_xlim() == (0, compiled.cycles)
    assert {"MEM read", "MEM write", "VXM", "MXM load", "MXM multiply"} <= set(labels(ax))
    working = sum(unit.busy_cycles > 0 for unit in compiled.report().costs.units)
    assert ax.get_ylim() == (working - 0.5, -0.5)
    part = pictures.timeline(compiled, start=50, stop=90)
    assert part.get_xlim() == (50, 90)
    assert 0 < num_boxes(part) < wanted


def test_bars_of_the_timeline_last_as_long_as_their_rows_work(compiled):
    rows = program_rows(compiled.program)
    ax = pictures.timeline(compiled)
    multiply = ax.collections[labels(ax).index("VXM")]
    widths = sum(path.vertices[:, 0].max() - path.vertices[:, 0].min() for path in multiply.get_paths())
    wanted = 0
    for block in compiled.program.blocks:
        for row in range(block.row_start, block.row_stop):
            if rows.kind[row] == 2:
                wanted += block.num_iterations * int((rows.last[row] - rows.start[row] + 1) * rows.num_ports[row])
    assert widths == wanted


def test_the_sram_map_has_a_box_for_every_slice_of_a_tensor(compiled):
    tensors = compiled.report().costs.tensors
    ax = pictures.sram_map(compiled)
    assert num_boxes(ax) == sum(len(tensor.slices) for tensor in tensors)
    assert {"w", "x", "temporaries", "kept"} <= {label.split(" ")[0] for label in labels(ax)}
    area = sum(np.prod(np.ptp(path.vertices, axis=0)) for c in ax.collections for path in c.get_paths())
    assert area * compiled.program.chip.num_lanes == sum(tensor.num_bytes for tensor in tensors)
    cycle = compiled.cycles // 2
    live = [tensor for tensor in tensors if tensor.first_cycle <= cycle < tensor.end_cycle]
    assert num_boxes(pictures.sram_map(compiled, cycle=cycle)) == sum(len(tensor.slices) for tensor in live)
    few = labels(pictures.sram_map(compiled, num_names=1))
    assert len(few) == 3
    assert few[1].endswith("smaller ones")


def test_utilization_has_a_band_per_kind(compiled):
    costs = compiled.report().costs
    ax = pictures.utilization(compiled, num_bins=10)
    bands = {patch.get_label(): patch.get_data() for patch in ax.patches if isinstance(patch, StepPatch)}
    values, edges, floor = bands["VXM"]
    assert len(values) == 10
    assert floor == 3
    share = (values - floor) / 0.9
    assert (share * np.diff(edges)).sum() * costs.num_units["alu"] == pytest.approx(costs.busy_cycles["alu"])
    names = [text.get_text() for text in ax.get_yticklabels()]
    use = costs.busy_cycles["alu"] / (costs.num_units["alu"] * costs.cycles)
    assert f"VXM\n{use:.1%}" in names
    assert [name.split("\n")[0] for name in names] == list(bands)


def test_many_units_are_named_by_group(compiled):
    ax = pictures.timeline(compiled)
    names = [text.get_text() for text in ax.get_yticklabels()]
    working = sum(unit.busy_cycles > 0 for unit in compiled.report().costs.units)
    assert working > 40
    assert sum(int(name.split("(")[1].rstrip(")")) for name in names) == working
    assert {name.split(" (")[0] for name in names} >= {"MEM west read", "MEM east read", "VXM"}
    assert len(ax.lines) == len(names) - 1
    part = pictures.timeline(compiled, start=0, stop=45)
    units = {unit.name for unit in compiled.report().costs.units}
    assert {text.get_text() for text in part.get_yticklabels()} <= units


def test_the_roofline_stays_below_its_roofs(compiled):
    ax = pictures.roofline(compiled)
    chip = compiled.program.chip
    roof, *points = ax.lines
    assert roof.get_ydata().max() == chip.macs_per_cycle_int8
    fp16, *points = points
    assert fp16.get_ydata()[0] == chip.macs_per_cycle_int8 // 4
    assert [line.get_label().split(":")[0] for line in points] == ["layer/up", "whole program"]
    for line in points:
        (x,), (y,) = line.get_data()
        assert 0 < y <= min(chip.macs_per_cycle_int8, x * 2 * chip.num_slices * chip.num_lanes)
    (_,), (speed,) = points[-1].get_data()
    assert speed == pytest.approx(sum(compiled.report().costs.macs.values()) / compiled.cycles)


def test_bars_of_modules_are_their_wall_cycles(compiled):
    tree = compiled.report().tree
    ax = pictures.cycles_per_module(compiled)
    bars = dict(zip([t.get_text().strip() for t in ax.get_yticklabels()], ax.patches, strict=True))
    assert bars["layer"].get_width() == tree.find("layer").wall_cycles
    assert bars["up"].get_width() == tree.find("layer", "up").wall_cycles
    top = [bars[child.name].get_width() for child in tree.children if child.wall_cycles]
    assert sum(top) == compiled.cycles
    shallow = pictures.cycles_per_module(compiled, depth=1)
    assert len(shallow.patches) == len(top)


def test_the_chain_is_drawn_link_by_link(compiled):
    costs = compiled.report().costs
    for number, block in enumerate(costs.blocks):
        ax = pictures.binding_chain(compiled, block=number)
        links = [link for link in costs.chain if link.block == number]
        assert num_boxes(ax) == len(links)
        assert ax.get_xlim() == (0, block.cycles_per_iteration)
        widths = sum(np.ptp(path.vertices[:, 0]) for c in ax.collections for path in c.get_paths())
        assert widths == block.cycles_per_iteration


def test_the_dependency_chain_is_drawn_link_by_link(compiled):
    bound = compiled.compiled_graph.dependency_bound
    ax = pictures.dependency_chain(compiled)
    assert num_boxes(ax) == len(bound.chain)
    assert ax.get_xlim() == (0, bound.cycles)
    widths = sum(np.ptp(path.vertices[:, 0]) for c in ax.collections for path in c.get_paths())
    assert widths == bound.cycles
    names = {text.get_text().split("  ")[0] for text in ax.get_yticklabels()}
    assert names >= {link.name for link in bound.chain if link.name}
    assert names >= {"barrier", "skew"}
    assert any(label.startswith("product (") for label in labels(ax))
    part = pictures.dependency_chain(compiled, start=50, stop=90)
    assert part.get_xlim() == (50, 90)
    assert 0 < num_boxes(part) < len(bound.chain)


def test_colours_are_apart_and_enough_for_all_units():
    assert len(set(pictures.PALETTE)) == len(pictures.PALETTE) >= len(UNIT_GROUPS)


def test_without_matplotlib_the_error_says_how_to_get_it(compiled, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pictures need matplotlib: pip install 'lpu_jax\[pictures\]'"):
        pictures.timeline(compiled)
