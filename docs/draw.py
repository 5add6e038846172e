"""Draws the pictures of the documentation from the chip's own numbers: `python docs/draw.py [FOLDER]`."""

from __future__ import annotations

import contextlib
import runpy
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

import lpu_jax
from lpu_jax.chips import groqchip1 as chip
from lpu_jax.pictures import PALETTE
from lpu_jax.runtime.chip import Direction, Hemisphere

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREEN, PURPLE, SKY, RED, _ = PALETTE
PALE = {"MXM": "#F3D9E6", "SXM": "#FBE3CC", "MEM": "#D6E6F2", "VXM": "#CDEBE0"}


def axes(width: float, height: float) -> Axes:
    """Empty axes without a frame."""
    made: Axes = Figure(figsize=(width, height), layout="constrained").add_subplot()
    made.set_axis_off()
    return made


def box(ax: Axes, left: float, right: float, name: str, text: str, low: float = 0.0, high: float = 1.0) -> None:
    """A unit of the chip between two positions."""
    ax.add_patch(Rectangle((left, low), right - left, high - low, facecolor=PALE[name], edgecolor="#444444"))
    ax.text((left + right) / 2, (low + high) / 2, text, ha="center", va="center", fontsize=8)


def floor_plan() -> Figure:
    """West to east: what lies where, and the two ways that values flow."""
    ax = axes(10, 3.4)
    half = chip.vxm_pass_cycles // 2
    for hemisphere in Hemisphere:
        sign = 1 if hemisphere is Hemisphere.EAST else -1
        edge = chip.num_mem_columns
        for column in range(edge):
            first = column * chip.num_slices_per_column
            left, right = sorted((sign * (half + column), sign * (half + column + 1)))
            box(ax, left, right, "MEM", f"{first}\n-\n{first + chip.num_slices_per_column - 1}")
        near, far = half + edge, half + edge + 3
        box(ax, *sorted((sign * near, sign * far)), "SXM", "SXM\nmove\nlanes")
        for plane in range(chip.num_planes):
            span = sorted((sign * far, sign * (far + 5)))
            text = f"MXM plane\n{chip.num_mxm_rows} x {chip.num_lanes}"
            box(ax, *span, "MXM", text, plane / chip.num_planes, (plane + 1) / chip.num_planes)
        middle = sign * (half + edge / 2)
        name = f"MEM {hemisphere.name.lower()}: {chip.num_slices} slices, {chip.num_slices_per_column} to a hop"
        ax.text(middle, 1.06, name, ha="center", va="bottom", fontsize=9)
    box(ax, -half, half, "VXM", f"VXM\n{chip.num_alus} ALUs\nper lane")
    for height, direction in ((-0.14, 1), (-0.3, -1)):
        ends = ((-22 * direction, height), (22 * direction, height))
        ax.add_patch(FancyArrowPatch(*ends, arrowstyle="-|>", mutation_scale=14, color=BLUE if direction > 0 else RED))
        way = "eastward" if direction > 0 else "westward"
        text = f"{chip.num_streams_per_direction} {way} streams, one hop in every cycle"
        ax.text(0, height + 0.02, text, ha="center", va="bottom", fontsize=8)
    ax.set_xlim(-24, 24)
    ax.set_ylim(-0.35, 1.2)
    return ax.figure  # type: ignore[return-value]


def way_of_a_product() -> Figure:
    """Place and time of one int8 matrix product, as in notebook 02: every value moves on a line of slope one."""
    ax = Figure(figsize=(9, 5.2), layout="constrained").add_subplot()
    east = Hemisphere.EAST
    mxm, result = chip.mxm_operand_position(east), chip.mxm_result_position(east)
    vxm = chip.vxm_operand_position(Direction.WESTWARD)
    out = chip.vxm_result_position(Direction.EASTWARD)
    weights, activations = chip.mem_position(east, 25), chip.mem_position(east, 43)
    load = 13
    start = load - (mxm - weights)
    corners = [(weights, start), (mxm, load), (mxm, load + 20), (weights, start + 20)]
    ax.fill(*zip(*corners, strict=True), color=BLUE, alpha=0.6, label="weights: 20 cycles of 16 rows")
    ax.plot([activations, mxm], [35 - (mxm - activations), 35], color=ORANGE, lw=3, label="one row of activations")
    ax.plot(
        [mxm, result], [35, 48 + chip.mxm_accumulate_cycles], color=PURPLE, lw=3, ls=":", label="multiply and add up"
    )
    ax.plot([result, vxm], [95 - (result - vxm), 95], color=GREEN, lw=3, label="sums on their way to the VXM")
    leaves = 95 + chip.vxm_op_cycles + chip.vxm_operand_cycles + chip.vxm_turn_cycles
    place = chip.mem_position(east, 16)
    ax.plot([vxm, out], [95, leaves], color=PURPLE, lw=3, ls=":")
    ax.plot([out, place], [leaves, leaves + place - out], color=RED, lw=3, label="result on its way to memory")
    assert leaves + place - out == 105, "the last write of notebook 02"
    for position, name in ((vxm, "VXM"), (weights, "MEM 25"), (activations, "MEM 43"), (mxm, "MXM")):
        ax.axvline(position, color="#BBBBBB", lw=1, zorder=0)
        ax.text(position, -2, name, ha="center", va="bottom", fontsize=8)
    ax.set_ylim(112, -4)
    ax.set_xlabel("place on the chip (hops east of its middle)")
    ax.set_ylabel("time (cycles)")
    ax.legend(loc="lower right", fontsize=8, frameon=False)
    return ax.figure  # type: ignore[return-value]


def timeline() -> Figure:
    """The picture of README."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), contextlib.redirect_stdout(None):
        compiled = runpy.run_path(str(Path(__file__).parent.resolve() / "first_picture.py"))["compiled"]
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    lpu_jax.pictures.timeline(compiled, ax=figure.add_subplot())
    return figure


def write(folder: Path) -> list[Path]:
    """Writes all pictures as SVG, equal bytes for equal versions of matplotlib."""
    folder.mkdir(exist_ok=True, parents=True)
    paths = []
    with mpl.rc_context({"svg.hashsalt": "lpu_jax", "svg.fonttype": "none", "font.family": "sans-serif"}):
        for draw in (floor_plan, way_of_a_product, timeline):
            paths.append(folder / f"{draw.__name__}.svg")
            draw().savefig(paths[-1], metadata={"Date": None})
    return paths


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "drawings")
