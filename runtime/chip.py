"""The chip as numbers: geometry, delays and cost rules of an LPU. Nothing else in the project holds hardware figures.

Every field has its unit in its name (counts start with `num_`) and its tag beside it: `F` found in a public source,
`M` remembered from a paper, `D` derived from tagged figures; `Assumption` where nothing is published (also listed in
docs/assumptions.md). Keys such as ELTE, ISCA20, R1 name the sources listed in docs/assumptions.md.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping
from types import MappingProxyType

from lpu_jax.runtime.chip_limits import CHIP_ACCUMULATIONS as CHIP_ACCUMULATIONS
from lpu_jax.runtime.chip_limits import check_chip


class Hemisphere(enum.IntEnum):
    """Half of the chip. West lies at negative positions, east at positive ones."""

    WEST = 0
    EAST = 1


class Direction(enum.IntEnum):
    """The way a stream flows."""

    EASTWARD = 0
    WESTWARD = 1

    @property
    def sign(self) -> int:
        """+1 for eastward, -1 for westward: the step in position per cycle."""
        return 1 if self is Direction.EASTWARD else -1


def outward(hemisphere: Hemisphere) -> Direction:
    """Direction from the VXM to the edge of a hemisphere."""
    if hemisphere is Hemisphere.EAST:
        return Direction.EASTWARD
    return Direction.WESTWARD


def inward(hemisphere: Hemisphere) -> Direction:
    """Direction from the edge of a hemisphere to the VXM."""
    if hemisphere is Hemisphere.EAST:
        return Direction.WESTWARD
    return Direction.EASTWARD


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChipSpec:
    """Geometry, timing and cost rules of one LPU chip.

    Positions: the east-west axis is counted in hops. MEM column c of a hemisphere lies c hops from the VXM boundary;
    the two boundaries lie `vxm_pass_cycles` hops apart. Eastward values move +1 per cycle.

    Invariants:
      num_lanes == num_superlanes * num_lanes_per_superlane
      num_mem_columns == ceil(num_slices / num_slices_per_column)
      every field is within its limits (`chip_limits.LIMITS`): counts and rates from 1 on, delays from 0 on
      num_mxm_rows >= num_lanes; num_lanes % num_streams_per_load == 0
      num_streams_per_direction >= num_streams_per_load
      vxm_entry_cycles < vxm_pass_cycles
      each hemisphere has max(16, num_streams_per_load) usable slices, some in its first and in its last column
      num_mxm_queues_per_hemisphere >= 3 * num_planes
      num_sxm_queues_per_hemisphere >= 1 + num_transposers + num_distributors
    """

    name: str
    clock_hz: int  # F:ABS20 (groqchip1); see the presets

    # Vector and streams
    num_superlanes: int = 20  # F:TS, H
    num_lanes_per_superlane: int = 16  # F:ELTE, H
    num_streams_per_direction: int = 32  # F:R2, H

    # MEM
    num_slices: int = 44  # per hemisphere; F:R1, H
    num_banks: int = 2  # per slice; F:ELTE, H
    num_addresses_per_bank: int = 4096  # F:ELTE, H
    num_slices_per_column: int = 4  # F:ELTE, M-H
    reserved_slices_west: tuple[int, ...] = (16, 20, 24, 28, 38)  # F:ELTE, M-H
    reserved_slices_east: tuple[int, ...] = (16, 20, 24, 28)  # F:ELTE, M-H
    mem_read_cycles: int = 1  # F:ELTE, M
    mem_write_cycles: int = 2  # F:ELTE, M

    # VXM
    num_alus: int = 16  # F:R2, H
    vxm_pass_cycles: int = 8  # 8 stages per direction; F:ELTE, M
    vxm_entry_cycles: int = 3  # boundary to operand register; F:ELTE ("10 + 3"), M
    vxm_operand_cycles: int = 2  # D: entry 5 = 3 + 2 (ELTE), M
    vxm_op_cycles: int = 3  # F:ELTE, M
    vxm_turn_cycles: int = 1  # D: one-op trip 9 (back) against 5 + 3 (straight on), M
    vxm_max_delay_cycles: int = 64  # Assumption: operand delay line of an ALU
    vxm_slots: tuple[tuple[str, int], ...] = (  # Assumption: chained ALU slots per function; others take 1
        ("div", 2),
        ("sqrt", 2),
        ("log", 2),
        ("log1p", 3),
        ("expm1", 3),
        ("erf", 4),
        ("sin", 4),
        ("cos", 4),
        ("pow", 5),
        ("rem", 4),
        ("idiv", 4),
        ("irem", 4),
    )

    # SXM (one per hemisphere)
    num_transposers: int = 2  # per hemisphere; F:ELTE, M-H
    num_distributors: int = 4  # per hemisphere; F:ELTE, M-H
    sxm_crossing_cycles: int = 4  # "IO crossing", each way; F:ELTE, M
    sxm_transpose_cycles: int = 4  # F:ELTE, M
    sxm_distribute_cycles: int = 2  # F:ELTE, M
    sxm_permute_map_cycles: int = 8  # map arrives before the data; F:ELTE, M
    sxm_permute_cycles: int = 48  # F:ELTE, M
    sxm_permute_exit_cycles: int = 4  # F:ELTE, M
    num_streams_per_transpose: int = 16  # sg16; F:ELTE, H

    # MXM
    num_planes: int = 2  # per hemisphere; F:R1, H
    num_mxm_rows: int = 320  # F:R1, H
    num_streams_per_load: int = 16  # weight streams of one plane; F:ELTE, H
    mxm_entry_cycles: int = 8  # last MEM column to MXM; D: "9" of ELTE with the read's own cycle in it, M
    mxm_install_tail_cycles: int = 3  # F:ELTE, M
    mxm_install_interval_cycles: int = 10  # F:ELTE "max(K/16, 10)", M
    mxm_multiply_cycles: int = 13  # F:ELTE, M
    mxm_accumulate_cycles: int = 28  # D: 34 (ELTE) less the 6 cycles of leaving the SXM, M
    mxm_exit_cycles: int = 6  # MXM to the last MEM column; F:ELTE, M
    num_accumulator_vectors: int = 512  # per plane; Assumption: nothing is published

    # ICU
    num_mxm_queues_per_hemisphere: int = 6  # F:TS, M-H
    num_sxm_queues_per_hemisphere: int = 14  # F:TS, M-H
    barrier_cycles: int = 35  # Notify to Sync retire; M:ISCA20, H
    max_repeat: int = 65_535  # Assumption: as wide as the 16-bit NOP count (M:ISCA20)

    # Host port, PCIe Gen4
    pcie_latency_seconds: float = 10e-6  # F:GF, each way
    pcie_bytes_per_second: float = 24e9  # F:GF, each way

    accumulation: str = "exact"  # or "tile"; Assumption: lossless over all of K, see runtime/accumulation.py
    assumptions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_chip(self)

    # Derived geometry -------------------------------------------------------------------------------------------

    @property
    def num_lanes(self) -> int:
        """Lanes of a vector (bytes per stream and cycle)."""
        return self.num_superlanes * self.num_lanes_per_superlane

    @property
    def num_mem_columns(self) -> int:
        """Stream-register columns of one hemisphere's MEM."""
        return math.ceil(self.num_slices / self.num_slices_per_column)

    @property
    def num_addresses_per_slice(self) -> int:
        """Vector words of one MEM slice, both banks."""
        return self.num_banks * self.num_addresses_per_bank

    @property
    def sram_bytes(self) -> int:
        """SRAM of the chip, reserved slices included."""
        return 2 * self.num_slices * self.num_addresses_per_slice * self.num_lanes

    @property
    def usable_sram_bytes(self) -> int:
        """SRAM of the chip without the slices that the system reserves."""
        slices = sum(len(self.usable_slices(hemisphere)) for hemisphere in Hemisphere)
        return slices * self.num_addresses_per_slice * self.num_lanes

    @property
    def stream_bytes_per_cycle(self) -> int:
        """Bytes that all streams move per cycle and hop."""
        return 2 * self.num_streams_per_direction * self.num_lanes

    @property
    def mem_bytes_per_cycle(self) -> int:
        """Bytes that all MEM banks can move per cycle."""
        return 2 * self.num_slices * self.num_banks * self.num_lanes

    @property
    def macs_per_cycle_int8(self) -> int:
        """int8 multiply-accumulates per cycle of all planes."""
        return 2 * self.num_planes * self.num_mxm_rows * self.num_lanes

    @property
    def skew_cycles(self) -> int:
        """Vertical skew: tile n works n cycles after tile 0; counted once, at the end of a program (M:ISCA20, H)."""
        return self.num_superlanes

    def usable_slices(self, hemisphere: Hemisphere) -> tuple[int, ...]:
        """MEM slices of a hemisphere that programs may use."""
        reserved = self.reserved_slices_west if hemisphere is Hemisphere.WEST else self.reserved_slices_east
        return tuple(s for s in range(self.num_slices) if s not in reserved)

    # Positions on the east-west axis, in hops -----------------------------------------------------------------------

    def position(self, hemisphere: Hemisphere, distance: int) -> int:
        """Position of the point `distance` hops outside the VXM boundary of a hemisphere."""
        sign = 1 if hemisphere is Hemisphere.EAST else -1
        return sign * (self.vxm_pass_cycles // 2 + distance)

    def mem_position(self, hemisphere: Hemisphere, mem_slice: int) -> int:
        """Position of the stream registers of a MEM slice."""
        return self.position(hemisphere, mem_slice // self.num_slices_per_column)

    def vxm_operand_position(self, direction: Direction) -> int:
        """Position at which the VXM takes operands from streams of a direction."""
        boundary = -direction.sign * (self.vxm_pass_cycles // 2)
        return boundary + direction.sign * self.vxm_entry_cycles

    def vxm_result_position(self, direction: Direction) -> int:
        """Position (VXM boundary) at which results leave on streams of a direction."""
        return direction.sign * (self.vxm_pass_cycles // 2)

    def sxm_position(self, hemisphere: Hemisphere) -> int:
        """Position of the SXM's stream registers: one hop outside the last MEM column."""
        return self.position(hemisphere, self.num_mem_columns)

    def mxm_operand_position(self, hemisphere: Hemisphere) -> int:
        """Position at which MXM planes take weights and activations."""
        return self.position(hemisphere, self.num_mem_columns - 1 + self.mxm_entry_cycles)

    def mxm_result_position(self, hemisphere: Hemisphere) -> int:
        """Position at which MXM results enter the inward streams."""
        return self.position(hemisphere, self.num_mem_columns - 1 + self.mxm_exit_cycles)

    @property
    def max_position(self) -> int:
        """The outermost position; a value that moves past it has left the chip."""
        return max(self.mxm_operand_position(Hemisphere.EAST), self.mxm_result_position(Hemisphere.EAST))

    # Cost rules ----------------------------------------------------------------------------------------------------

    def alu_slots(self, function: str) -> int:
        """Chained ALU slots that a VXM function takes (Assumption where not 1)."""
        return dict(self.vxm_slots).get(function, 1)

    def planes_per_tile(self, rhs_bytes: int) -> int:
        """Planes that hold one weight tile: one for weights of one significand byte, else the pair."""
        return 1 if rhs_bytes == 1 else min(2, self.num_planes)

    def cycles_per_vector(self, num_rows: int, lhs_bytes: int, rhs_bytes: int) -> int:
        """Cycles in which the planes of a tile take one activation vector.

        ceil(num_rows * lhs_bytes * rhs_bytes / (num_mxm_rows * planes)); int8 x int8 gives 1, fp16 x fp16 with
        160 rows gives 1 and with 320 rows 2 (the published two-plane mode). The bytes are significand bytes.
        """
        cells = self.num_mxm_rows * self.planes_per_tile(rhs_bytes)
        return max(1, math.ceil(num_rows * lhs_bytes * rhs_bytes / cells))


GROQCHIP1 = ChipSpec(name="groqchip1", clock_hz=900_000_000)  # F:ABS20, F:GF
"""GroqChip 1 (14 nm): 220 MiB of SRAM, 4 planes of 320 x 320."""

LP30 = ChipSpec(
    name="lp30",
    clock_hz=1_460_000_000,  # D, L: 1.2 PFLOPS / (2 x 409,600), a guess
    num_addresses_per_bank=8_877,  # D from 500 MB (F:NVB): 88 x 2 x 8,877 x 320 B = 499.95 MB
    reserved_slices_west=(),
    reserved_slices_east=(),
    assumptions=(
        "clock 1.46 GHz, derived from 1.2 PFLOPS with unchanged planes",
        "layout and delays as groqchip1; 500 MB spread over 88 slices",
        "no slices reserved for instructions",
    ),
)
"""Groq 3 LPU (4 nm), a what-if: layout kept, 500 MB of SRAM."""

TINY = ChipSpec(
    name="tiny",
    clock_hz=900_000_000,
    num_superlanes=1,
    num_slices=24,
    num_addresses_per_bank=256,
    reserved_slices_west=(),
    reserved_slices_east=(),
    num_mxm_rows=16,
    num_accumulator_vectors=16,
    assumptions=("not a real chip: 16 lanes and 24 slices, so that tests read like a drawing",),
)
"""16 lanes, 24 slices per hemisphere: a chip for tests that read like a drawing."""

PRESETS: Mapping[str, ChipSpec] = MappingProxyType({spec.name: spec for spec in (GROQCHIP1, LP30, TINY)})


def chip_by_name(name: str) -> ChipSpec:
    """Looks up a preset; raises ValueError that lists the known names."""
    if name not in PRESETS:
        raise ValueError(f"unknown chip {name!r}; known chips: {', '.join(PRESETS)}")
    return PRESETS[name]
