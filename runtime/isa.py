"""The instruction set: queues, opcodes, operand columns and number formats of a `Program`.

A row of a program issues one instruction on one queue at one cycle and repeats it `count` times, `interval` cycles
apart (the ISA's `Repeat n, d`). A repeated instruction runs on its unit's sequencer while its queue goes on
(Assumption), so a queue issues at most one row per cycle, in order.

Streams are numbered 0..S-1 eastward and S..2S-1 westward (S = num_streams_per_direction) and printed E<n>, W<n>.
A value of w bytes lies on w consecutive streams. A reader takes a value off its streams unless it says `keep`.

All cycles below are relative to the cycle of the row (or of its k-th repetition).

MEM (one queue per slice; `address` counts both banks, bank = address // num_addresses_per_bank):
  Read    stream[x] at +mem_read_cycles = sram[address]; x is the slice's column
  Write   sram[address] = stream[x] at +0; done at +mem_write_cycles
  Gather  as Read, with address = displacement + map; superlane u takes its own little-endian 16-bit map entry from
          its first two lanes of map_stream[x] at +0
  Scatter as Write, with the address of Gather
MXM (three queues per plane: weights, activations, results; a tile wider than one byte is issued on plane 0 and
takes both planes of the hemisphere; x = mxm_operand_position):
  LW      buffer rows row .. row + R - 1 = streams[x] at +0, R = 16 / weight bytes rows of all lanes, byte b of row r
          on stream base + r * bytes + b; rows not loaded since the last IW are zero. In block formats rows are
          words (block_words.py), 16 per cycle; the loader unpacks blocks that begin at word 0, those beyond the
          plane's last row are dropped
  IW      plane = buffer, from +mxm_install_tail_cycles on; the buffer is free at once
  ABC     accumulator[i] (+)= activation . plane over rows first_row .. first_row + num_rows - 1 (lane r meets row r),
          activation taken at +0; the plane is busy for cycles_per_vector; `begin` starts a new sum
  ACC     accumulator[i], rounded once, enters the inward stream at mxm_result_position at +mxm_accumulate_cycles;
          at +0 the sum must be complete: its last ABC was issued mxm_multiply_cycles before or earlier
VXM (one queue per ALU):
  an operand is a stream (taken at vxm_operand_position at +0), the result of an ALU (`delay` cycles after it became
  available, 0 <= delay <= vxm_max_delay_cycles) or an immediate. The result is available to ALUs at
  +vxm_op_cycles * slots and leaves the VXM at vxm_result_position at +vxm_op_cycles * slots + vxm_operand_cycles,
  plus vxm_turn_cycles when it leaves against the direction in which its first operand came (a chain inherits it).
  An ALU makes at most one result per cycle, so after a function of several slots a shorter one has to wait.
SXM (x = sxm_position; results leave inward at x):
  Permute     map (uint16 little endian, two streams) taken at +0, data (one stream) at +sxm_permute_map_cycles,
              out[lane] = data[map[lane]], 0 where map[lane] >= num_lanes; leaves at +map +permute +exit cycles (60)
  Transpose   16 streams taken at +0; out_j[superlane u, lane i] = in_i[u, j]; leaves at +crossing +4 +crossing
  Distribute  data and map (one byte per lane, lane of the same superlane; >= 16 gives 0) taken at +0; leaves at
              +crossing +2 +crossing
ICU: Sync parks a queue; Notify at cycle t releases every parked queue at t + barrier_cycles.
"""

from __future__ import annotations

import dataclasses
import enum

from lpu_jax.runtime.chip import ChipSpec, Direction, Hemisphere
from lpu_jax.runtime.formats import BLOCK_FORMATS, SCALAR_FORMATS, NumberFormat


class DataFormat(enum.IntEnum):
    """Number format of a vector on streams and in SRAM.

    BFP<m>X<B> is block floating point, for weights only: vectors are words (runtime/block_words.py), a byte wide.
    """

    FP32 = 0
    INT32 = 1
    FP16 = 2
    INT16 = 3
    INT8 = 4
    UINT8 = 5
    BF16 = 6
    E4M3 = 7
    E5M2 = 8
    BFP3X16 = 9
    BFP3X32 = 10
    BFP4X16 = 11
    BFP4X32 = 12
    BFP5X16 = 13
    BFP5X32 = 14
    BFP6X16 = 15
    BFP6X32 = 16
    BFP7X16 = 17
    BFP7X32 = 18
    BFP8X16 = 19
    BFP8X32 = 20
    BFP9X16 = 21
    BFP9X32 = 22

    @property
    def is_block(self) -> bool:
        """Whether this is block floating point."""
        return self >= DataFormat.BFP3X16

    @property
    def num_bytes(self) -> int:
        """Bytes per element: streams of a vector on the move, MEM slices of a vector at rest; of blocks per word."""
        return 1 if self.is_block else (4, 4, 2, 2, 1, 1, 2, 1, 1)[self]

    @property
    def number_format(self) -> NumberFormat:
        """What the MXM multiplies: fp32, bf16, fp16, e4m3, e5m2, int8 or block floating point."""
        name = self.name.lower()
        return BLOCK_FORMATS[name] if self.is_block else SCALAR_FORMATS[name]

    def num_words(self, num_rows: int) -> int:
        """Byte vectors that hold `num_rows` rows of a weight tile."""
        return self.number_format.num_words(num_rows)

    @property
    def significand_bytes(self) -> int:
        """Bytes of the significand, which set the MXM cost: 3 for fp32, 2 for fp16, 1 for the others."""
        return self.number_format.significand_bytes

    @property
    def is_float(self) -> bool:
        """Whether the VXM works on these elements as float32; else as int32."""
        return self in (DataFormat.FP32, DataFormat.FP16, DataFormat.BF16, DataFormat.E4M3, DataFormat.E5M2)


PRODUCT_FORMATS = tuple(DataFormat[name.upper()] for name in SCALAR_FORMATS)
"""Formats that the MXM multiplies, any with any."""
WEIGHT_FORMATS = (*PRODUCT_FORMATS, *(DataFormat[name.upper()] for name in BLOCK_FORMATS))
"""Formats of its weights."""
VECTOR_FORMATS = tuple(f for f in DataFormat if not f.is_block)
"""Formats of vectors that every unit reads."""


def buffer_lines(chip: ChipSpec, data_format: DataFormat) -> int:
    """Lines of a plane's weight buffer that LW addresses: rows, or words for block formats (whole loads of them)."""
    if not data_format.is_block:
        return chip.num_mxm_rows
    loads = -(-data_format.num_words(chip.num_mxm_rows) // chip.num_streams_per_load)
    return loads * chip.num_streams_per_load


class Opcode(enum.IntEnum):
    """Instructions with the published names (ISCA 2020, Table I)."""

    NOP = 0
    SYNC = 1
    NOTIFY = 2
    READ = 3
    WRITE = 4
    GATHER = 5
    SCATTER = 6
    LW = 7
    IW = 8
    ABC = 9
    ACC = 10
    VXM = 11
    PERMUTE = 12
    TRANSPOSE = 13
    DISTRIBUTE = 14


OPERANDS: dict[Opcode, tuple[str, ...]] = {
    Opcode.NOP: (),
    Opcode.SYNC: (),
    Opcode.NOTIFY: (),
    Opcode.READ: ("address", "address_step", "loop_step", "stream"),
    Opcode.WRITE: ("address", "address_step", "loop_step", "stream", "keep"),
    Opcode.GATHER: ("address", "address_step", "loop_step", "stream", "map_stream", "keep_map"),
    Opcode.SCATTER: ("address", "address_step", "loop_step", "stream", "map_stream", "keep", "keep_map"),
    Opcode.LW: ("stream", "row", "row_step", "format"),
    Opcode.IW: (),
    Opcode.ABC: ("stream", "format", "accumulator", "accumulator_step", "first_row", "num_rows", "begin", "keep"),
    Opcode.ACC: ("stream", "accumulator", "accumulator_step"),
    Opcode.VXM: (
        "function",
        "lhs_kind",
        "lhs",
        "lhs_format",
        "lhs_keep",
        "rhs_kind",
        "rhs",
        "rhs_format",
        "rhs_keep",
        "stream",
        "second_stream",
        "format",
    ),
    Opcode.PERMUTE: ("stream", "map_stream", "out_stream", "keep", "keep_map"),
    Opcode.TRANSPOSE: ("stream", "out_stream", "keep"),
    Opcode.DISTRIBUTE: ("stream", "map_stream", "out_stream", "keep", "keep_map"),
}
"""Operand columns of every opcode, in order. For MEM, `address` of Gather and Scatter is the displacement, and
`loop_step` is added to the address in each iteration of the enclosing `Block`. In VXM rows, `lhs_kind` and `rhs_kind`
are an `OperandKind`; `lhs`/`rhs` hold the first stream, the ALU or the immediate's 32 bits; `lhs_format` is a
`DataFormat` for streams and the delay for ALUs; `stream`/`second_stream` are -1 when the result stays in the VXM."""

NUM_OPERANDS = max(len(names) for names in OPERANDS.values())


class OperandKind(enum.IntEnum):
    """Where a VXM operand comes from."""

    NONE = 0
    STREAM = 1
    ALU = 2
    IMMEDIATE = 3


VXM_FUNCTIONS: tuple[str, ...] = (
    "identity", "add", "sub", "mul", "div", "max", "min", "neg", "abs", "sign", "exp", "log", "tanh", "rsqrt", "sqrt",
    "erf", "sin", "cos", "floor", "ceil", "round", "eq", "ne", "lt", "le", "gt", "ge",
    "iadd", "isub", "imul", "imax", "imin", "ineg", "iabs", "isign", "ieq", "ine", "ilt", "ile", "igt", "ige",
    "and", "or", "xor", "not", "shift_left", "shift_right_arithmetic", "shift_right_logical",
    "mask", "mask_bar", "to_int", "to_float", "to_fp16", "is_finite", "log1p", "expm1", "pow", "rem", "idiv", "irem",
    "to_bf16", "to_e4m3", "to_e5m2",
)  # fmt: skip
"""VXM functions; a row stores the index. Those that start with `i` and the logic ones work on int32, the others on
fp32; comparisons give int32 0 or 1. mask(x, m) = x where m != 0 else 0 (any bits), mask_bar the opposite.
`to_int` rounds towards zero and saturates, `to_float` rounds to nearest even, `to_fp16`, `to_bf16`, `to_e4m3` and
`to_e5m2` round an fp32 value to the grid of that format (still held as fp32). runtime/vxm.py gives each one its
meaning."""

VXM_FUNCTION_ID = {name: index for index, name in enumerate(VXM_FUNCTIONS)}


class QueueKind(enum.IntEnum):
    """Functional slice a queue belongs to."""

    MEM = 0
    VXM = 1
    MXM = 2
    SXM = 3


MXM_WEIGHTS, MXM_ACTIVATIONS, MXM_RESULTS = range(3)
"""The three queues of a plane, in order."""


@dataclasses.dataclass(frozen=True)
class Queue:
    """One in-order instruction queue.

    index: slice for MEM, ALU for VXM, 3 * plane + (weights, activations, results) for MXM; for SXM 0 is the permuter,
    then come the transposers, then the distributors, then queues without a unit here.
    """

    kind: QueueKind
    hemisphere: Hemisphere
    index: int

    def __str__(self) -> str:
        if self.kind is QueueKind.VXM:
            return f"VXM{self.index}"
        return f"{self.kind.name}_{self.hemisphere.name[0]}{self.index}"


def queues(chip: ChipSpec) -> tuple[Queue, ...]:
    """All queues of a chip; the position in the tuple is the queue id of a program row (144 on groqchip1)."""
    west_east = (Hemisphere.WEST, Hemisphere.EAST)
    mem = [Queue(QueueKind.MEM, h, i) for h in west_east for i in range(chip.num_slices)]
    vxm = [Queue(QueueKind.VXM, Hemisphere.WEST, i) for i in range(chip.num_alus)]
    mxm = [Queue(QueueKind.MXM, h, i) for h in west_east for i in range(chip.num_mxm_queues_per_hemisphere)]
    sxm = [Queue(QueueKind.SXM, h, i) for h in west_east for i in range(chip.num_sxm_queues_per_hemisphere)]
    return tuple(mem + vxm + mxm + sxm)


def mem_queue(chip: ChipSpec, hemisphere: Hemisphere, mem_slice: int) -> int:
    """Queue id of a MEM slice."""
    return hemisphere * chip.num_slices + mem_slice


def vxm_queue(chip: ChipSpec, alu: int) -> int:
    """Queue id of an ALU."""
    return 2 * chip.num_slices + alu


def mxm_queue(chip: ChipSpec, hemisphere: Hemisphere, plane: int, part: int) -> int:
    """Queue id of one of the three queues of a plane (MXM_WEIGHTS, MXM_ACTIVATIONS, MXM_RESULTS)."""
    base = 2 * chip.num_slices + chip.num_alus
    return base + hemisphere * chip.num_mxm_queues_per_hemisphere + 3 * plane + part


def sxm_queue(chip: ChipSpec, hemisphere: Hemisphere, index: int) -> int:
    """Queue id of an SXM unit: 0 the permuter, then transposers, then distributors."""
    base = 2 * chip.num_slices + chip.num_alus + 2 * chip.num_mxm_queues_per_hemisphere
    return base + hemisphere * chip.num_sxm_queues_per_hemisphere + index


def stream_id(chip: ChipSpec, direction: Direction, index: int) -> int:
    """Stream number of a program row: 0..S-1 eastward, S..2S-1 westward."""
    return direction * chip.num_streams_per_direction + index


def stream_direction(chip: ChipSpec, stream: int) -> Direction:
    """Direction in which a stream flows."""
    return Direction(stream // chip.num_streams_per_direction)


def stream_name(chip: ChipSpec, stream: int) -> str:
    """E<n> or W<n>."""
    return f"{stream_direction(chip, stream).name[0]}{stream % chip.num_streams_per_direction}"
