"""What all pictures share: axes, colours, boxes, legends, and the figures of a program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lpu_jax.report.costs import Costs, measure
from lpu_jax.report.events import IntArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lpu_jax.lowering.pipeline import CompiledGraph
    from lpu_jax.stages import Compiled

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
"""Blue, orange, green, purple, light blue, vermilion, yellow."""

GREY = "#999999"

UNIT_GROUPS = (
    ("MEM read", ("mem read",)),
    ("MEM write", ("mem write",)),
    ("VXM", ("alu",)),
    ("MXM load", ("mxm load", "mxm install")),
    ("MXM multiply", ("mxm multiply", "mxm result")),
    ("SXM", ("permuter", "transposer", "distributor")),
)
"""Units as the pictures show them; the position gives the colour."""


def graph_of(compiled: Compiled | CompiledGraph) -> CompiledGraph:
    """The stages of a program: a Compiled has them, a CompiledGraph is them."""
    graph: Any = getattr(compiled, "compiled_graph", compiled)
    return graph  # type: ignore[no-any-return]


def costs_of(compiled: Any, num_bins: int = 100) -> Costs:
    """The costs of a program, its tensors with the names of arguments where these are known."""
    names = [name for name, *_ in compiled.memory_map()] if hasattr(compiled, "compiled_graph") else None
    return measure(graph_of(compiled), tensor_names=names, num_bins=num_bins)


def axes(ax: Axes | None) -> Axes:
    """The given axes, or those of a new figure, which belongs to no window.

    Raises:
      ImportError: matplotlib is not installed.
    """
    if ax is not None:
        return ax
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'lpu_jax[pictures]'") from error
    made: Axes = Figure(figsize=(10, 5), layout="constrained").add_subplot()
    return made


def rectangles(begin: IntArray, end: IntArray, line: IntArray) -> Any:
    """(left, bottom, width, height) of bars on numbered lines."""
    return np.stack([begin, line - 0.4, end - begin, np.full(len(line), 0.8)], axis=1)


def boxes(ax: Axes, corners: Any, color: str, label: str, **style: Any) -> None:
    """Rectangles [n, 4] of one colour as one artist, which stays fluid for very many."""
    from matplotlib.collections import PolyCollection

    left, bottom, width, height = np.asarray(corners, float).T
    right, top = left + width, bottom + height
    vertices: Any = np.stack([left, bottom, left, top, right, top, right, bottom], axis=1).reshape(-1, 4, 2)
    style = {"edgecolors": "none", **style}
    ax.add_collection(PolyCollection(vertices, facecolors=color, label=label, **style))


def legend(ax: Axes) -> None:
    """Names of colours, to the right of the picture."""
    handles, labels = ax.get_legend_handles_labels()
    if handles:
        ax.legend(handles, labels, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False)


def count_axis(ax: Axes, *names: str) -> None:
    """Whole numbers with separators on the axes "x" or "y"."""
    for name in names:
        axis = getattr(ax, f"{name}axis")
        axis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value == int(value) else "")
