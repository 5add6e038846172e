"""The best rows of a sweep."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lpu_jax.design_space import pareto_front
from lpu_jax.pictures.drawing import PALETTE, axes, legend

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

_MARKERS = "osD^vPX"


def pareto(
    frame: pandas.DataFrame,
    *,
    x: str = "sram_capacity_bytes",
    y: str = "cycles",
    color: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Rows of a sweep as points, small is good on both axes; those that no other row beats are joined by a line.

    Args:
      frame: what `lpu_jax.sweep` returns; rows without a program are left out and counted in the title.
      x, y: columns of numbers.
      color: column whose values are told apart by colour and marker.
      ax: axes to draw on.

    Raises:
      ValueError: a column that the frame does not have.
      ImportError: matplotlib is not installed.
    """
    best = pareto_front(frame, (x, y))
    ax = axes(ax)
    shown = frame[frame[[x, y]].notna().all(axis=1)]
    groups = [("", shown)] if color is None else [(f"{color} = {v}", g) for v, g in shown.groupby(color, sort=False)]
    for index, (label, group) in enumerate(groups):
        points = group[x].astype(float), group[y].astype(float)
        shade, marker = PALETTE[index % len(PALETTE)], _MARKERS[index % len(_MARKERS)]
        ax.scatter(*points, s=28, alpha=0.8, color=shade, marker=marker, label=label or None)
    front = frame[best].sort_values([x, y])
    ax.step(front[x].astype(float), front[y].astype(float), where="post", color="black", linewidth=1, label="best")
    for axis, name in ((ax.xaxis, x), (ax.yaxis, y)):
        axis.set_label_text(name.removesuffix("_bytes").replace("_", " ") + " (MiB)" * name.endswith("_bytes"))
        if name.endswith("_bytes"):
            axis.set_major_formatter(lambda value, _: f"{value / 2**20:,.0f}")
    without = len(frame) - len(shown)
    ax.set_title(f"{len(shown)} variants, {int(best.sum())} on the front" + (f", {without} without" if without else ""))
    legend(ax)
    return ax
