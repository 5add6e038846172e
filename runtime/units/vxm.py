"""VXM: one ALU operation, its operands and the results on their way to other ALUs."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from lpu_jax.runtime import vxm
from lpu_jax.runtime.chip import ChipSpec, Direction
from lpu_jax.runtime.isa import OPERANDS, VXM_FUNCTIONS, DataFormat, Opcode, OperandKind, stream_direction
from lpu_jax.runtime.units.refusal import Refusal

Uint8Array = npt.NDArray[np.uint8]
Int32Array = npt.NDArray[np.int32]

INTEGER_FUNCTIONS = frozenset((
    "identity", "iadd", "isub", "imul", "imax", "imin", "ineg", "iabs", "isign", "ieq", "ine", "ilt", "ile",
    "igt", "ige", "and", "or", "xor", "not", "shift_left", "shift_right_arithmetic", "shift_right_logical",
    "mask", "mask_bar", "to_float", "idiv", "irem",
))  # fmt: skip
"""Functions whose operands are int32, or any 32 bits; the others read float32."""


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """32-bit patterns that an ALU made, and the direction in which its first operand came (None: immediates only)."""

    bits: Int32Array
    flow: Direction | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Operand:
    """One operand of a VXM row; the fields as in isa.OPERANDS."""

    kind: OperandKind
    value: int
    data_format: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """A decoded VXM row."""

    alu: int
    function: str
    latency_cycles: int
    operands: tuple[Operand, ...]
    streams: tuple[int, ...]
    data_format: DataFormat


def operation(chip: ChipSpec, alu: int, columns: list[int]) -> Operation:
    """Reads the operand columns of a checked VXM row."""
    values = dict(zip(OPERANDS[Opcode.VXM], columns, strict=False))
    function = VXM_FUNCTIONS[values["function"]]
    sides = [
        Operand(kind=OperandKind(values[f"{side}_kind"]), value=values[side], data_format=values[f"{side}_format"])
        for side in ("lhs", "rhs")
    ]
    return Operation(
        alu=alu,
        function=function,
        latency_cycles=chip.vxm_op_cycles * chip.alu_slots(function),
        operands=tuple(side for side in sides if side.kind != OperandKind.NONE),
        streams=tuple(values[name] for name in ("stream", "second_stream") if values[name] >= 0),
        data_format=DataFormat(values["format"]),
    )


def from_bytes(data: Uint8Array, data_format: DataFormat) -> npt.NDArray[np.generic]:
    """Stored elements of a vector that lies byte by byte on streams: uint8 [..., bytes, lanes] -> [..., lanes]."""
    if data_format.num_bytes == 1:
        plain: npt.NDArray[np.generic] = data[..., 0, :].view(vxm.storage_dtype(data_format))
        return plain
    packed = np.ascontiguousarray(np.moveaxis(data, -2, -1))
    stored: npt.NDArray[np.generic] = packed.view(vxm.storage_dtype(data_format))[..., 0]
    return stored


def to_bytes(stored: npt.NDArray[np.generic]) -> Uint8Array:
    """The inverse of `from_bytes`: [..., lanes] -> uint8 [..., bytes, lanes]."""
    packed = np.ascontiguousarray(stored).view(np.uint8).reshape(*stored.shape, stored.dtype.itemsize)
    return np.ascontiguousarray(np.moveaxis(packed, -1, -2))


class Alus:
    """Recent results of all ALUs."""

    def __init__(self, chip: ChipSpec) -> None:
        """ALUs without results."""
        self.chip = chip
        self.results: list[dict[int, Result]] = [{} for _ in range(chip.num_alus)]

    def execute(self, op: Operation, taken: Uint8Array, cycle: int) -> tuple[Result, Uint8Array | None]:
        """Runs one operation.

        Args:
          op: the decoded row.
          taken: uint8 [n, lanes], the bytes of its stream operands in order.
          cycle: issue cycle.

        Returns:
          The result, and its bytes [bytes, lanes] when it leaves on streams.

        Raises:
          Refusal: an ALU had no result in the wanted cycle.
        """
        values: list[Int32Array] = []
        flows: list[Direction | None] = []
        position = 0
        for operand in op.operands:
            if operand.kind == OperandKind.STREAM:
                data_format = DataFormat(operand.data_format)
                stored = from_bytes(taken[position : position + data_format.num_bytes], data_format)
                position += data_format.num_bytes
                values.append(vxm.from_format(np, stored, data_format).view(np.int32))
                flows.append(stream_direction(self.chip, operand.value))
            elif operand.kind == OperandKind.ALU:
                found = self.results[operand.value].get(cycle - operand.data_format)
                if found is None:
                    wanted = cycle - operand.data_format
                    raise Refusal(f"operand is not there: ALU{operand.value} has no result of cycle {wanted}")
                values.append(found.bits)
                flows.append(found.flow)
            else:
                values.append(np.full(self.chip.num_lanes, operand.value, np.int32))
                flows.append(None)
        dtype = np.int32 if op.function in INTEGER_FUNCTIONS else np.float32
        computed = vxm.apply(np, op.function, *(value.view(dtype) for value in values))
        flow = next((flow for flow in flows if flow is not None), None)
        result = Result(np.ascontiguousarray(computed).view(np.int32), flow)
        if cycle + op.latency_cycles in self.results[op.alu]:
            raise Refusal(f"unit double-booked: ALU{op.alu} makes two results in cycle {cycle + op.latency_cycles}")
        self.results[op.alu][cycle + op.latency_cycles] = result
        if not op.streams:
            return result, None
        working = result.bits.view(np.float32 if op.data_format.is_float else np.int32)
        return result, to_bytes(vxm.to_format(np, working, op.data_format))

    def leave_cycle(self, op: Operation, result: Result, stream: int, cycle: int) -> int:
        """Cycle in which the result of an operation issued at `cycle` enters a stream at the VXM boundary."""
        leave = cycle + op.latency_cycles + self.chip.vxm_operand_cycles
        turns = result.flow is not None and result.flow != stream_direction(self.chip, stream)
        return leave + self.chip.vxm_turn_cycles * turns

    def forget(self, cycle: int) -> None:
        """Drops results that no operand can ask for any more."""
        oldest = cycle - self.chip.vxm_max_delay_cycles
        self.results = [{c: r for c, r in alu.items() if c >= oldest} for alu in self.results]
