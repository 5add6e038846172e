"""What the fields of a chip may be: takes a `ChipSpec`, refuses what is no chip or what the compiler cannot target."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limit:
    """Integers from `low` on in steps of `step`, up to `high`; why says what needs them."""

    low: int
    high: int | None = None
    step: int = 1
    why: str = ""

    def holds(self, value: int) -> bool:
        """Whether a value is allowed."""
        return value >= self.low and (self.high is None or value <= self.high) and value % self.step == 0

    def __str__(self) -> str:
        """What is allowed, in words."""
        text = str(self.low) if self.low == self.high else f"integers from {self.low} on"
        if self.high not in (None, self.low):
            text = f"integers from {self.low} to {self.high}"
        steps = f" in steps of {self.step}" if self.step > 1 else ""
        return f"{text}{steps}{f' ({self.why})' if self.why else ''}"


LIMITS: Mapping[str, Limit] = MappingProxyType({
    "num_lanes_per_superlane": Limit(low=16, high=16, why="transposes and lane maps work on blocks of 16 lanes"),
    "num_streams_per_transpose": Limit(low=16, high=16, why="transposes work on blocks of 16 lanes"),
    "num_streams_per_direction": Limit(low=16, why="a transpose takes 16 streams"),
    "num_streams_per_load": Limit(low=4, step=4, why="a row of fp32 weights takes 4 streams"),
    "num_alus": Limit(low=4, why="the longest function outside the published list takes 5 slots, most programs 4"),
    "num_distributors": Limit(low=4, why="a distributed fp32 value takes one for each byte"),
    "num_addresses_per_bank": Limit(low=16, why="values are cut into pieces of a sixteenth of a bank"),
    "vxm_pass_cycles": Limit(low=2, why="streams must cross the VXM"),
    **{
        name: Limit(low=1, why="a result cannot be there in the cycle in which its instruction issues")
        for name in ("mem_read_cycles", "vxm_op_cycles", "mxm_multiply_cycles", "mxm_accumulate_cycles")
    },
    "max_repeat": Limit(low=16, why="every issue takes a cycle of its queue, which reads and writes of a slice share"),
    "barrier_cycles": Limit(low=1, why="the queue that gives the signal goes on a cycle later"),
})  # fmt: skip
"""Fields whose limits do not follow from their names."""

MIN_USABLE_SLICES = 16
"""A transposed block of 16 vectors lies in as many slices of a hemisphere."""

CHIP_ACCUMULATIONS = ("exact", "tile")
"""Modes of accumulation that a chip can have, see runtime/accumulation.py."""


def limit_of(name: str) -> Limit:
    """Allowed values of an integer field: `LIMITS`, else counts and rates from 1 on and delays from 0 on."""
    return LIMITS.get(name) or Limit(low=0 if name.endswith("_cycles") else 1)


def check_field(name: str, value: Any, annotation: str) -> None:
    """Refuses a value that no chip has in a field.

    Args:
      name: a field of ChipSpec.
      value: what it shall be.
      annotation: the type of the field, as text.

    Raises:
      ValueError: names the field, the value and what is allowed.
    """
    allowed = ""
    if name == "accumulation" and value not in CHIP_ACCUMULATIONS:
        raise ValueError(f"ChipSpec.accumulation={value!r} is unknown; chips have {', '.join(CHIP_ACCUMULATIONS)}")
    if annotation == "int":
        limit = limit_of(name)
        allowed = "" if is_integer(value) and limit.holds(value) else str(limit)
    elif annotation == "float":
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        smallest = "0 and more" if name == "pcie_latency_seconds" else "more than 0"
        is_enough = is_number and (value > 0 or (value == 0 and name == "pcie_latency_seconds"))
        allowed = "" if is_enough else f"numbers of {smallest}"
    elif name.startswith("reserved_slices"):
        is_places = isinstance(value, tuple) and all(is_integer(s) and s >= 0 for s in value)
        allowed = "" if is_places else "tuples of slice numbers from 0 on"
    elif name == "vxm_slots":
        is_table = isinstance(value, tuple) and all(map(_is_slot, value))
        allowed = "" if is_table else "tuples of pairs (function, ALUs that it takes, from 1 on)"
    if allowed:
        raise ValueError(f"ChipSpec.{name}={value!r}: allowed are {allowed}")


def check_chip(chip: Any) -> None:
    """Refuses a ChipSpec with a field out of its limits, or with fields that contradict each other.

    Raises:
      ValueError: names the fields, their values and what is allowed.
    """
    for field in dataclasses.fields(chip):
        check_field(field.name, getattr(chip, field.name), str(field.type))
    check_together(chip)


def check_together(chip: Any) -> None:
    """The limits that one field sets for another one; see the invariants of `ChipSpec`."""
    mxm_queues, sxm_queues = 3 * chip.num_planes, 1 + chip.num_transposers + chip.num_distributors
    facts = (
        ("num_mxm_rows", chip.num_lanes, "the lanes: a vector of activations has to fit a plane"),
        ("num_mxm_queues_per_hemisphere", mxm_queues, "three queues for each of num_planes"),
        ("num_sxm_queues_per_hemisphere", sxm_queues, "a queue for each permuter, transposer and distributor"),
        ("num_streams_per_direction", chip.num_streams_per_load, "num_streams_per_load"),
        ("vxm_pass_cycles", chip.vxm_entry_cycles + 1, "the operand register, vxm_entry_cycles inside, is in the VXM"),
    )
    for name, least, why in facts:
        if getattr(chip, name) < least:
            raise ValueError(
                f"ChipSpec.{name}={getattr(chip, name)} of chip {chip.name!r}: at least {least} are needed ({why})"
            )

    if chip.num_lanes % chip.num_streams_per_load:
        raise ValueError(
            f"ChipSpec.num_streams_per_load={chip.num_streams_per_load} of chip {chip.name!r}: allowed are divisors of "
            f"its {chip.num_lanes} lanes (a plane is filled by whole loads)"
        )
    for side in ("west", "east"):
        _check_slices(chip, side)


def _is_slot(pair: Any) -> bool:
    """Whether something is (function, ALUs)."""
    is_pair = isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)
    return bool(is_pair and is_integer(pair[1]) and pair[1] >= 1)


def _check_slices(chip: Any, side: str) -> None:
    """Refuses a hemisphere with too few slices, or none in the column in which address maps of gathers lie."""
    reserved = getattr(chip, f"reserved_slices_{side}")
    usable = [s for s in range(chip.num_slices) if s not in reserved]
    least = max(MIN_USABLE_SLICES, chip.num_streams_per_load)
    fields = f"ChipSpec.num_slices={chip.num_slices} with reserved_slices_{side}={reserved} of chip {chip.name!r}"
    if len(usable) < least:
        raise ValueError(
            f"{fields} leaves {len(usable)} slices: at least {least} are needed (a transposed block lies in "
            f"{MIN_USABLE_SLICES}, a load of weights in num_streams_per_load)"
        )
    columns = {s // chip.num_slices_per_column for s in usable}
    for name, column in (("first", 0), ("last", (chip.num_slices - 1) // chip.num_slices_per_column)):
        if column not in columns:
            raise ValueError(f"{fields} leaves no slice in the {name} column: addresses of scatters lie in the first "
                             "and those of gathers in the last one")  # fmt: skip


def is_integer(value: Any) -> bool:
    """Whether a value is an integer of Python or NumPy and no bool."""
    try:
        operator.index(value)
    except TypeError:
        return False
    return not isinstance(value, bool)
