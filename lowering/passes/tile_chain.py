"""Open chains: elementwise equations gathered until somebody needs their results in memory."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from lpu_jax.lowering.emit import NARROW_FLOATS
from lpu_jax.lowering.passes.tile_windows import Windows
from lpu_jax.lowering.tile_ir import InputRef, IntArray, Step, StepOperand, StepRef, storages_of
from lpu_jax.runtime.chip import ChipSpec
from lpu_jax.runtime.isa import DataFormat
from lpu_jax.runtime.ops import Immediate


class Domain(NamedTuple):
    """Iteration space of a chain: rows, last axis (1 for splat chains), and for windows the first lanes of all rows,
    int64 as bytes."""

    rows: int
    last: int
    splat: bool
    offsets: bytes = b""


MAX_INPUTS = 6
"""Chain inputs that fit the streams beside other work: 6 SG4 of the 8 of a direction (Assumption of ours)."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class ProductSource:
    """A matrix product whose vectors enter a chain from the MXM instead of memory.

    lhs: the rows [batch * rows] of K elements; rhs refs [batch * K, n_tiles, 2] or None for a sum over lanes (weights
    of ones); mirrors: more places of rhs, in which some tiles lie at other planes. In block floating point
    rhs has the words of K rows in place of K.
    """

    lhs: Windows
    lhs_format: DataFormat
    rhs: IntArray | None
    rhs_format: DataFormat
    mirrors: tuple[IntArray, ...]
    num_batches: int
    num_rows: int
    contracting: int
    num_column_tiles: int

    @property
    def num_weight_vectors(self) -> int:
        """Vectors of one matrix and column tile of rhs."""
        return self.rhs_format.num_words(self.contracting) // self.rhs_format.num_bytes

    @property
    def weight_format(self) -> DataFormat:
        """Format of these vectors in SRAM: that of rhs, or int8 for words."""
        return DataFormat.INT8 if self.rhs_format.is_block else self.rhs_format


@dataclasses.dataclass(slots=True, eq=False)
class OpenChain:
    """A chain under construction."""

    domain: Domain
    source: str
    name: str
    product: ProductSource | None = None
    inputs: list[tuple[IntArray, DataFormat]] = dataclasses.field(default_factory=list)
    input_index: dict[int, int] = dataclasses.field(default_factory=dict)
    steps: list[Step] = dataclasses.field(default_factory=list)
    values: dict[int, StepOperand] = dataclasses.field(default_factory=dict)
    num_slots: int = 0

    def room_for(self, chip: ChipSpec, function: str, new_inputs: int) -> bool:
        """Whether one more step fits the ALUs and streams (every input may need one ALU to hold it)."""
        inputs = len(self.inputs) + new_inputs + (self.product is not None)
        slots = self.num_slots + chip.alu_slots(function) + inputs + 1  # one to write an operand that no step touched
        most = min(MAX_INPUTS, chip.num_streams_per_direction // 4)
        return slots <= chip.num_alus and inputs <= most

    def storages(self) -> set[int]:
        """Storages that the chain reads."""
        refs = [refs for refs, _ in self.inputs]
        if self.product is not None:
            weights = [place for place in (self.product.rhs, *self.product.mirrors) if place is not None]
            refs += [place.reshape(-1, 2) for place in (*self.product.lhs.refs, *weights)]
        return {s for place in refs for s in storages_of(place)}

    def add_input(self, value: int, refs: IntArray, data_format: DataFormat) -> InputRef:
        """The operand that reads a value from memory (once per chain)."""
        if value not in self.input_index:
            same = [i for i, (r, f) in enumerate(self.inputs) if f is data_format and np.array_equal(r, refs)]
            self.input_index[value] = same[0] if same else len(self.inputs)
            if not same:
                self.inputs.append((refs, data_format))
        return InputRef(self.input_index[value])

    def add_step(self, chip: ChipSpec, function: str, operands: tuple[StepOperand, ...]) -> StepRef:
        """Appends an ALU operation."""
        self.steps.append(Step(function, operands))
        self.num_slots += chip.alu_slots(function)
        return StepRef(len(self.steps) - 1)


_KEEPS_NARROW = frozenset((
    "identity", "neg", "abs", "sign", "max", "min", "floor", "ceil", "round", "mask", "mask_bar", "and", "or", "xor",
    "imax", "imin", "isign",
))  # fmt: skip
"""Functions whose result fits a narrow dtype when their operands are of that dtype."""


def narrow_steps(function: str, operand_dtypes: list[str], dtype: str) -> list[tuple[str, tuple[Immediate, ...]]]:
    """Steps that cut a 32-bit result to its narrow dtype, for those who use it without a trip to memory."""
    comparison = function.removeprefix("i") in ("eq", "ne", "lt", "le", "gt", "ge") or function == "is_finite"
    fits = function in _KEEPS_NARROW and all(d in (dtype, "bool") for d in operand_dtypes)
    if dtype in ("float32", "int32") or comparison or fits or function == NARROW_FLOATS.get(dtype):
        return []
    if dtype in NARROW_FLOATS:
        return [(NARROW_FLOATS[dtype], ())]
    if dtype == "int8":
        by = (Immediate(24, "int32"),)
        return [("shift_left", by), ("shift_right_arithmetic", by)]
    return [("and", (Immediate(255, "int32"),)), ("ine", (Immediate(0, "int32"),))]
