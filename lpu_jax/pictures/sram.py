"""What lies where in SRAM."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lpu_jax.pictures.drawing import GREY, PALETTE, axes, boxes, costs_of, count_axis, graph_of, legend
from lpu_jax.report.memory import Tensor
from lpu_jax.runtime.chip import ChipSpec, Hemisphere

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lpu_jax.lowering.pipeline import CompiledGraph
    from lpu_jax.stages import Compiled


def sram_map(
    compiled: Compiled | CompiledGraph, *, ax: Axes | None = None, cycle: int | None = None, num_names: int = 6
) -> Axes:
    """SRAM by slice and address: a box for every slice of every tensor, coloured by tensor.

    Args:
      compiled: a compiled function, or the stages of a program.
      ax: axes to draw on.
      cycle: shows what is in SRAM at that cycle; by default everything that ever is, the later above the earlier.
      num_names: tensors with a colour of their own, the largest ones; the others are grey.
    """
    graph, ax = graph_of(compiled), axes(ax)
    chip = graph.tile_graph.chip
    shown = [t for t in costs_of(compiled).tensors if cycle is None or t.first_cycle <= cycle < t.end_cycle]
    sizes: dict[str, int] = {}
    for tensor in shown:
        sizes[tensor.name] = sizes.get(tensor.name, 0) + tensor.num_bytes
    named = sorted(sizes, key=lambda name: (-sizes[name], name))[: min(num_names, len(PALETTE))]
    for color, name in [*zip(PALETTE, named, strict=False), (GREY, "")]:
        mine = [t for t in shown if (t.name == name if name else t.name not in named)]
        corners = [box for tensor in mine for box in _tensor_boxes(tensor, chip.num_slices)]
        if corners:
            label = f"{name} ({_size(sizes[name])})" if name else f"{len(sizes) - len(named)} smaller ones"
            boxes(ax, np.array(corners), color, label)
    _reserved(ax, chip)
    _frame(ax, chip)
    used = _size(sum(sizes.values()))
    ax.set_title(f"SRAM, {used} in all" if cycle is None else f"SRAM at cycle {cycle:,}: {used} in use")
    legend(ax)
    return ax


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB" if num_bytes >= 2**20 else f"{num_bytes / 2**10:,.0f} KiB"


def _tensor_boxes(tensor: Tensor, num_slices: int) -> list[tuple[float, float, float, float]]:
    """(left, bottom, width, height) of every slice of a tensor."""
    side = Hemisphere[tensor.hemisphere]
    return [(_place(side, s, num_slices) - 0.5, tensor.base, 1, tensor.num_addresses) for s in tensor.slices]


def _place(side: Hemisphere, mem_slice: int, num_slices: int) -> int:
    """Slices as they lie on the chip: slice 0 of both hemispheres in the middle, at the VXM."""
    return num_slices + mem_slice if side is Hemisphere.EAST else num_slices - 1 - mem_slice


def _reserved(ax: Axes, chip: ChipSpec) -> None:
    """Hatches the slices that programs may not use."""
    label = "kept for the system"
    for side in Hemisphere:
        usable = chip.usable_slices(side)
        for mem_slice in range(chip.num_slices):
            if mem_slice not in usable:
                left = _place(side, mem_slice, chip.num_slices) - 0.5
                ax.axvspan(
                    left, left + 1, facecolor="none", edgecolor="#bbbbbb", hatch="////", linewidth=0, label=label
                )
                label = "_again"


def _frame(ax: Axes, chip: ChipSpec) -> None:
    """Slices as they lie on the chip, addresses upwards, a line between hemispheres and a dotted one between banks."""
    ax.set_xlim(-0.5, 2 * chip.num_slices - 0.5)
    ax.set_ylim(0, chip.num_addresses_per_slice)
    ax.axvline(chip.num_slices - 0.5, color="black", linewidth=1.5)
    for bank in range(1, chip.num_banks):
        ax.axhline(bank * chip.num_addresses_per_bank, color="black", linewidth=0.7, linestyle=":")
    step = max(1, chip.num_slices // 4)
    ticks = [
        (_place(side, s, chip.num_slices), f"{side.name[0]}{s}")
        for side in Hemisphere
        for s in range(step - 1, chip.num_slices, step)
    ]
    ax.set_xticks([position for position, _ in ticks], [text for _, text in ticks])
    count_axis(ax, "y")
    ax.set_xlabel("MEM slice (W west, E east hemisphere, the VXM between them)")
    ax.set_ylabel("address (vector words); banks dotted")
