"""Assembly text says everything that a program says."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machine_programs import good_programs

from lpu_jax.runtime.assembly import from_text, row_text, to_text
from lpu_jax.runtime.chip import GROQCHIP1, TINY
from lpu_jax.runtime.errors import ProgramError
from lpu_jax.runtime.isa import NUM_OPERANDS, OPERANDS, DataFormat, Opcode, mem_queue, queues
from lpu_jax.runtime.program import ProgramBuilder


@pytest.mark.parametrize("chip", [TINY, GROQCHIP1], ids=lambda chip: chip.name)
@pytest.mark.parametrize("name", good_programs(TINY))
def test_programs_survive_the_round_trip(chip, name):
    program, _ = good_programs(chip)[name]
    assert from_text(to_text(program)).to_bytes() == program.to_bytes()


def test_a_line_is_cycle_queue_instruction():
    builder = ProgramBuilder(TINY)
    builder.add(35, mem_queue(TINY, 0, 3), Opcode.READ, (12, 1, 0, 4), 20, 1)
    builder.close_block(start_cycle=7, num_iterations=3, period_cycles=40)
    assert to_text(builder.build()) == (
        ".chip tiny\n.block start=7 iterations=3 period=40\n35: MEM_W3 Read a=12+1 s=E4 (Repeat 20, 1)\n"
    )


@pytest.mark.parametrize(
    "instruction",
    [
        "NOP",
        "Sync",
        "Notify",
        "Read a=12-3 loop=5 s=W31",
        "Write a=0 s=E0 keep",
        "Gather a=-2+1 s=E0 map=W3 keep_map",
        "Scatter a=9 s=E0 map=W3 keep keep_map",
        "LW s=E0 row=0+16 format=int8",
        "IW",
        "ABC s=E16 format=fp16 acc=3+1 first=16 rows=4 begin keep",
        "ACC s=W4 acc=0-1",
        "Permute s=E0 map=E1 out=W0 keep",
        "Transpose s=E0 out=W0",
        "Distribute s=E0 map=E1 out=W0 keep_map",
        "add E4.fp32 ALU2@7 -> E8,W12 format=fp32",
        "exp W0.fp16.keep - -> -1,-1 format=fp32",
        "iadd #0xffffffff #0x80000000 -> -1,-1 format=int32",
        "function(77) ?9,1,2,3 ?1,4,0,7 -> 99,-5 format=77",
        "Write a=0 s=64 keep=3",
        "Raw opcode=-4 columns=1,2,3,4,5,6,7,8,9,10,11,-12",
        "Raw opcode=0 columns=1,0,0,0,0,0,0,0,0,0,0,0",
    ],
)
def test_every_instruction_has_one_text(instruction):
    text = f".chip tiny\n.block start=0 iterations=1 period=0\n3: VXM2 {instruction} (Repeat 2, 5)\n"
    assert to_text(from_text(text)) == text


INT32 = st.integers(-(2**31), 2**31 - 1)
SMALL = st.integers(-2, 70)


@st.composite
def rows(draw):
    opcode = draw(st.integers(-1, len(Opcode)))
    used = len(OPERANDS[Opcode(opcode)]) if 0 <= opcode < len(Opcode) else NUM_OPERANDS
    used = draw(st.sampled_from([used, NUM_OPERANDS]))
    operands = tuple(draw(st.one_of(SMALL, st.integers(0, 3), INT32)) for _ in range(used))
    return draw(SMALL), draw(st.integers(-1, len(queues(TINY)))), opcode, operands, draw(SMALL), draw(SMALL)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.lists(rows(), max_size=4), max_size=3))
def test_any_columns_survive_the_round_trip(blocks):
    builder = ProgramBuilder(TINY)
    for number, block in enumerate(blocks):
        for row in block:
            builder.add(*row)
        builder.close_block(start_cycle=number, num_iterations=number + 1, period_cycles=number)
    program = builder.build()
    assert from_text(to_text(program)).to_bytes() == program.to_bytes()
    assert all("\n" not in row_text(program, row) for row in range(program.num_rows))


HEAD = ".chip tiny\n.block start=0 iterations=1 period=0\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: bad token '': needs `.chip <name>` first"),
        (".chip huge\n", "line 1: bad token 'huge': needs a chip .*known chips: groqchip1"),
        (".chip tiny\n0: MEM_W0 NOP\n", "line 2: .*a `.block` line before the first instruction"),
        (".chip tiny\n.block start=x\n", "line 2: bad token '.block start=x'"),
        (HEAD + "Read a=1\n", "line 3: bad token 'Read a=1': needs `<cycle>: <queue> <instruction>`"),
        (HEAD + "\n0: MEM_W99 NOP\n", "line 4: bad token 'MEM_W99': needs a queue of tiny, such as MEM_W0"),
        (HEAD + "0: MEM_W0 Reed a=1\n", "line 3: bad token 'Reed'"),
        (HEAD + "0: MEM_W0 Read a=1 s=E32\n", "line 3: bad token 'E32': needs a stream below 32"),
        (HEAD + "0: MEM_W0 Read a=1+ s=E3\n", r"line 3: bad token 'a=1\+': needs a=<start>\+<step>"),
        (HEAD + "0: MEM_W0 Read a=1 t=E3\n", "line 3: bad token 't=E3': needs one of"),
        (HEAD + "0: MEM_W0 Read a=1\n", "line 3: bad token 'a=1': needs also s="),
        (HEAD + "0: MEM_W0 Read a=99999999999 s=E3\n", "line 3: .*operands of 32 bits"),
        (HEAD + "0: MEM_W0 Raw opcode=99 columns=1,2,3,4,5,6,7,8,9,10,11,12,13\n", "line 3: .*at most 12 columns"),
        (HEAD + "0: MXM_W0 LW s=E0 row=0 format=int9\n", "line 3: bad token 'int9': needs an integer or a known name"),
        (HEAD + "0: VXM0 add E0.fp32 -> E0 format=fp32\n", "line 3: bad token .*needs `<lhs> <rhs> -> <stream>"),
        (HEAD + "0: VXM0 add E0.fp32 X -> E0,-1 format=fp32\n", "line 3: bad token 'X': needs an operand"),
    ],
)
def test_bad_text_names_line_and_token(text, message):
    with pytest.raises(ProgramError, match="^assembly " + message):
        from_text(text)


def test_immediates_keep_their_bits():
    builder = ProgramBuilder(TINY)
    bits = int(np.float32(-0.0).view(np.uint32))
    builder.add(0, 2 * TINY.num_slices, Opcode.VXM, (0, 3, bits, 0, 0, 0, 0, 0, 0, -1, -1, DataFormat.FP32))
    builder.close_block(start_cycle=0)
    program = builder.build()
    assert "#0x80000000" in to_text(program)
    assert from_text(to_text(program)).to_bytes() == program.to_bytes()
