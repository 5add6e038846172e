"""What the figures of one program rest on: of the choices in docs/assumptions.md those that it uses."""

from __future__ import annotations

import numpy as np

from lpu_jax.runtime.chip import ChipSpec
from lpu_jax.runtime.isa import OPERANDS, VXM_FUNCTIONS, DataFormat, Opcode, OperandKind
from lpu_jax.runtime.program import Program

_PUBLISHED_PRODUCTS = ("int8 x int8", "fp16 x fp16")


def assumptions_of(program: Program, products: tuple[str, ...]) -> tuple[str, ...]:
    """One sentence per assumption, those of the chip first.

    Args:
      program: a program.
      products: formats that it multiplies, as "fp16 x int8".
    """
    chip = program.chip
    found = [f"{chip.name}: {text}" for text in chip.assumptions]
    found.append(f"clock {chip.clock_hz / 1e6:,.0f} MHz; reasons for all of these: docs/assumptions.md")
    found.append("resident arguments are in SRAM before the first cycle; loading them is not counted")
    found.append("fetching instructions costs no cycles, no SRAM bandwidth and no SRAM but the reserved slices")
    found.append(f"the vertical skew of {chip.skew_cycles} cycles is counted once, at the end")
    if any(block.num_iterations > 1 for block in program.blocks):
        found.append("the instructions of a loop are delivered again in every trip, as if it were unrolled")
    found += _products(products, bool((program.opcode == Opcode.ABC).any()))
    found += _vxm(program, chip)
    if np.isin(program.opcode, (Opcode.GATHER, Opcode.SCATTER)).any():
        found.append("Gather and Scatter add a displacement to the address from the stream")
    return tuple(found)


def _products(products: tuple[str, ...], has_sums: bool) -> list[str]:
    others = [name for name in products if name not in _PUBLISHED_PRODUCTS]
    found = []
    if others:
        text = "cycles of a product grow with the bytes of both significands; unpublished for"
        found.append(f"{text} {', '.join(others)}")
    if has_sums:
        found.append("accumulators keep the sum over all of K without rounding")
    return found


def _vxm(program: Program, chip: ChipSpec) -> list[str]:
    names = OPERANDS[Opcode.VXM]
    rows = program.operands[program.opcode == Opcode.VXM]
    if not len(rows):
        return []
    used = [VXM_FUNCTIONS[index] for index in np.unique(rows[:, names.index("function")]).tolist()]
    slow = [f"{name} {chip.alu_slots(name)}" for name in used if chip.alu_slots(name) > 1]
    found = [f"ALUs that a function takes: {', '.join(slow)}"] if slow else []
    waits = [
        rows[rows[:, names.index(f"{side}_kind")] == OperandKind.ALU, names.index(f"{side}_format")]
        for side in ("lhs", "rhs")
    ]
    longest = int(np.concatenate(waits).max(initial=0))
    if longest:
        found.append(
            f"an ALU's result may wait for its reader: here {longest}, at most {chip.vxm_max_delay_cycles} cycles"
        )
    narrow = [
        name for name in ("bf16", "e4m3", "e5m2") if (rows[:, names.index("format")] == DataFormat[name.upper()]).any()
    ]
    if narrow:
        found.append(f"casts to {', '.join(narrow)} round to nearest even and do not saturate")
    return found
