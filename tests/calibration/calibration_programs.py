"""Programs that reproduce published cycle counts of GroqChip 1, and the figures that `docs/validation.md` shows.

`early` makes a program wrong by one cycle, which the machine refuses; `micro_figures` measures what the tests hold.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from machine_programs import (
    EAST,
    INT8,
    Scheduler,
    alu,
    barrier,
    filled,
    immediate,
    matmul,
    matmul_sram,
    stream,
    tiles,
)

from lpu_jax.runtime.chip import GROQCHIP1, Hemisphere, inward, outward
from lpu_jax.runtime.errors import ProgramError
from lpu_jax.runtime.isa import MXM_ACTIVATIONS, MXM_RESULTS, MXM_WEIGHTS, Opcode, mxm_queue, stream_id, sxm_queue
from lpu_jax.runtime.machine import run
from lpu_jax.runtime.program import Program
from lpu_jax.runtime.sram import Sram

CHIP = GROQCHIP1
S16 = tuple(s for s in range(25, 43) if s not in (28, 38))
"""The slices of the published S16 weight layout."""


def load_all_planes(slices: tuple[int, ...], early: int = 0) -> tuple[Program, int, int]:
    """Loads and uses all four planes; returns the cycles of the last LW and of the first ABC, from the first Read."""
    plan = Scheduler(CHIP)
    reads = []
    for hemisphere in Hemisphere:
        mxm, out = CHIP.mxm_operand_position(hemisphere), outward(hemisphere)
        load = 1 + abs(mxm - CHIP.mem_position(hemisphere, min(slices)))
        for i, s in enumerate(slices):
            reads.append(plan.read(hemisphere, s, 0, stream_id(CHIP, out, i), mxm, load, 20))
        multiply = load + 20 - 1 + CHIP.mxm_install_tail_cycles
        lhs = stream_id(CHIP, out, 0)
        plan.read(hemisphere, 0, 1, lhs, mxm, multiply)
        for plane in range(2):
            queue = mxm_queue(CHIP, hemisphere, plane, MXM_WEIGHTS)
            plan.builder.add(load - early, queue, Opcode.LW, (stream_id(CHIP, out, 16 * plane), 0, 16, INT8), 20)
            plan.builder.add(load + 19 - early, queue, Opcode.IW, ())
            queue = mxm_queue(CHIP, hemisphere, plane, MXM_ACTIVATIONS)
            plan.builder.add(multiply, queue, Opcode.ABC, (lhs, INT8, 0, 0, 0, 320, 1, int(plane == 0)))
            result = stream_id(CHIP, inward(hemisphere), 4 * plane)
            queue = mxm_queue(CHIP, hemisphere, plane, MXM_RESULTS)
            plan.builder.add(multiply + 13, queue, Opcode.ACC, (result, 0, 0))
            for byte in range(4):
                plan.write(
                    hemisphere,
                    40 + byte if plane else 36 + byte,
                    100,
                    result + byte,
                    CHIP.mxm_result_position(hemisphere),
                    multiply + 41,
                )
    assert min(reads) == 0
    return plan.build(), load + 19, multiply


def round_trip(hemisphere: Hemisphere, mem_slice: int, early: int = 0) -> Program:
    """Read of a slice at cycle 0, one VXM operation, Write to the same slice."""
    plan = Scheduler(CHIP)
    there, back = stream_id(CHIP, inward(hemisphere), 3), stream_id(CHIP, outward(hemisphere), 3)
    arrival = 1 + abs(plan.vxm_in(there) - CHIP.mem_position(hemisphere, mem_slice))
    plan.read(hemisphere, mem_slice, 0, there, plan.vxm_in(there), arrival)
    plan.vxm(arrival, 0, "ineg", stream(there, INT8), out=back, data_format=INT8)
    leaves = arrival + CHIP.vxm_op_cycles + CHIP.vxm_operand_cycles + CHIP.vxm_turn_cycles
    plan.write(hemisphere, mem_slice, 100, back, plan.vxm_out(back), leaves - early)
    return plan.build()


def sxm_chain(hemisphere: Hemisphere, early: int = 0) -> tuple[Program, int, int]:
    """Transposer of one hemisphere -> three VXM operations -> distributor of the other; cycles of their issues."""
    plan = Scheduler(CHIP)
    other = Hemisphere(1 - hemisphere)
    here, there = CHIP.sxm_position(hemisphere), CHIP.sxm_position(other)
    into, flow = stream_id(CHIP, outward(hemisphere), 0), stream_id(CHIP, inward(hemisphere), 0)
    start = 30
    for s in range(16):
        plan.read(hemisphere, s, 0, into + s, here, start)
    plan.builder.add(start, sxm_queue(CHIP, hemisphere, 1), Opcode.TRANSPOSE, (into, flow, 0))
    leaves = start + 2 * CHIP.sxm_crossing_cycles + CHIP.sxm_transpose_cycles
    for s in range(1, 16):
        plan.write(hemisphere, 16 + s, 100, flow + s, here, leaves)
    vxm = leaves + abs(here - plan.vxm_in(flow))
    plan.vxm(vxm, 0, "ineg", stream(flow, INT8))
    plan.vxm(vxm + 3, 1, "iadd", alu(0), immediate(5))
    out = flow + 20
    plan.vxm(vxm + 6, 2, "ineg", alu(1), out=out, data_format=INT8)
    leaves = vxm + 9 + CHIP.vxm_operand_cycles
    distribute = leaves + abs(there - plan.vxm_out(out)) - early
    lane_map = out + 1
    plan.read(hemisphere, 40, 0, lane_map, there, distribute)
    unit = sxm_queue(CHIP, other, 1 + CHIP.num_transposers)
    result = stream_id(CHIP, inward(other), 0)
    plan.builder.add(distribute, unit, Opcode.DISTRIBUTE, (out, lane_map, result, 0, 0))
    plan.write(other, 40, 100, result, there, distribute + 2 * CHIP.sxm_crossing_cycles + CHIP.sxm_distribute_cycles)
    return plan.build(), start, distribute


def permutes(num_vectors: int, early: int = 0) -> Program:
    """Permutes vectors, one a cycle from cycle 20 on, and writes them one hop further in."""
    plan = Scheduler(CHIP)
    sxm = CHIP.sxm_position(EAST)
    east, west = stream_id(CHIP, outward(EAST), 0), stream_id(CHIP, inward(EAST), 0)
    for byte in range(2):
        plan.read(EAST, byte, 0, east + byte, sxm, 20, num_vectors)
    plan.read(EAST, 2, 0, east + 24, sxm, 20 + CHIP.sxm_permute_map_cycles, num_vectors)
    operands = (east + 24, east, west, 0, 0)
    plan.builder.add(20, sxm_queue(CHIP, EAST, 0), Opcode.PERMUTE, operands, num_vectors)
    plan.write(EAST, 43, 100, west, sxm, 20 + 60 - early, num_vectors)
    return plan.build()


# Figures ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """A published figure beside ours.

    Attributes:
      row: number of the calibration target.
      ratio: ours / published; None where the published one is a bound.
      mechanism: what makes the figure, or what explains the difference.
    """

    row: int
    what: str
    published: str
    ours: str
    ratio: float | None
    source: str
    confidence: str
    mechanism: str


def fewest(program: Callable[[int], Program], sram: Callable[[], Sram], tries: range) -> int:
    """The smallest number for which the machine accepts a program."""
    for number in tries:
        try:
            run(program(number), sram())
        except ProgramError:
            continue
        return number
    raise AssertionError(f"the machine accepts none of {tries}")


def _exact(row: int, what: str, published: int, ours: int, source: str, mechanism: str, confidence: str) -> Figure:
    return Figure(
        row=row,
        what=what,
        published=f"{published:,}",
        ours=f"{ours:,}",
        ratio=ours / published,
        source=source,
        confidence=confidence,
        mechanism=mechanism,
    )


def geometry_figures() -> Iterator[Figure]:
    """Rows 1 to 3: peak rates, SRAM and bandwidths follow from the geometry."""
    int8 = 2 * CHIP.macs_per_cycle_int8 * CHIP.clock_hz / 1e12
    pairs = 2 * CHIP.num_planes // CHIP.planes_per_tile(2)
    rows = CHIP.num_mxm_rows // 2
    assert CHIP.cycles_per_vector(rows, 2, 2) == 1
    fp16 = 2 * pairs * rows * CHIP.num_lanes * CHIP.clock_hz / 1e12
    for what, published, ours in (("int8, TOPS", 737.3, int8), ("fp16, TFLOPS", 184.3, fp16)):
        yield Figure(
            row=1,
            what=f"peak {what}",
            published=str(published),
            ours=f"{ours:.1f}",
            ratio=ours / published,
            source="R2, D",
            confidence="H",
            mechanism="4 planes of 320 x 320 at 900 MHz; a fp16 product takes four byte products",
        )
    made_of = "2 hemispheres x 44 slices x 2 banks x 4,096 words of 320 bytes"
    yield _exact(2, "SRAM, bytes", 230_686_720, CHIP.sram_bytes, "R1, D", made_of, "H")
    streams, banks = CHIP.stream_bytes_per_cycle, CHIP.mem_bytes_per_cycle
    yield _exact(3, "streams, bytes/cycle", 20_480, streams, "R1, R2", "64 streams of 320 bytes", "H")
    yield _exact(3, "MEM, bytes/cycle", 56_320, banks, "R1, R2", "176 banks of 320 bytes", "H")


def micro_figures() -> Iterator[Figure]:
    """Rows 4 to 10: every count is measured on the machine."""
    program, _, use = load_all_planes(tuple(range(12, 44)))
    run(program, filled(CHIP, 44, 20))
    yield Figure(
        row=4,
        what="load all four planes, cycles",
        published="< 40",
        ours=str(use),
        ratio=None,
        source="ISCA20",
        confidence="M",
        mechanism="20 cycles of weights and the way of the innermost of the 32 outermost slices",
    )
    waits = fewest(lambda wait: barrier(CHIP, wait), lambda: filled(CHIP), range(28, 42))
    yield _exact(5, "chip barrier, cycles", 35, waits, "ISCA20", "one constant of the chip", "M")
    yield _exact(6, "weights read to result at the VXM, cycles", 76, _weights_to_result(), "ELTE", _PARTS, "M")
    for mem_slice in (0, 43):
        taken = run(round_trip(EAST, mem_slice), filled(CHIP, 44, 1)).finish_cycle
        formula, what = 12 + 2 * (mem_slice // 4), f"MEM slice {mem_slice} to one VXM operation and back, cycles"
        yield _exact(7, what, formula, taken, "ELTE", "12 + 2 (s // 4): read 1, VXM 9, write 2, hops", "M")
    program, transpose, distribute = sxm_chain(EAST)
    run(program, filled(CHIP, 44, 2))
    parts = "4 + 4 + 11 + 5 + 9 + 11 + 4 + 2; nothing turns in the VXM"
    chain = distribute + CHIP.sxm_distribute_cycles - transpose
    yield _exact(8, "transposer to distributor over three VXM operations, cycles", 50, chain, "ELTE", parts, "M")
    hop = 1
    for count in (1, 7):
        taken = run(permutes(count), filled(CHIP)).finish_cycle - hop - CHIP.mem_write_cycles - 20
        what = f"permute of 320 lanes, {count} vector{'s' * (count > 1)}, cycles"
        yield _exact(
            9, what, 60 + count - 1, taken, "ELTE", "8 until the data follows its map, 48, and 4 to leave", "M"
        )
    for rows in (320, 160, 96):
        interval = fewest(
            lambda tries, rows=rows: tiles(CHIP, rows // 16, tries), lambda: filled(CHIP, 24, 60), range(6, 24)
        )
        mechanism = "max(K / 16, 10): 16 rows are loaded per cycle, an install every 10 cycles"
        what = f"interval of weight tiles with K = {rows}, cycles"
        yield _exact(10, what, max(rows // 16, 10), interval, "ELTE", mechanism, "M")


_PARTS = "4 + 9 + 3 + 13 + 34 + 19 - 6: columns, entry, install, multiply, accumulate, the way back"


def _weights_to_result() -> int:
    options = {"hemisphere": EAST, "weight_slices": S16, "activation_slice": 43, "num_vectors": 1}
    made = matmul(CHIP, **options)
    run(made.program, matmul_sram(CHIP, **options)[0])
    return made.vxm_cycle - made.last_weights_read
