"""A program in the pieces that the host starts one by one, and back.

Between two pieces the chip stands still: the host reads, computes and writes SRAM, and starts the next piece, or an
earlier one again. In the whole program every piece stands once, each where it would start if the host took no time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from lpu_jax.runtime.program import Block, Program
from lpu_jax.runtime.units.timing import completion_cycles

_COLUMNS = ("cycle", "queue", "opcode", "count", "interval", "operands", "origin")


def join(parts: Sequence[Program]) -> Program:
    """The program of pieces that follow each other; its cycles are the sum of theirs."""
    if len(parts) == 1:
        return parts[0]
    blocks: list[Block] = []
    row = start = 0
    for number, part in enumerate(parts):
        for index, block in enumerate(part.blocks):
            moved = dataclasses.replace(
                block,
                row_start=block.row_start + row,
                row_stop=block.row_stop + row,
                start_cycle=block.start_cycle + start,
                after_host=number > 0 and index == 0,
            )
            blocks.append(moved)
        row += part.num_rows
        start += completion_cycles(part)
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS}
    return Program(chip=parts[0].chip, blocks=tuple(blocks), **columns)


def split(program: Program) -> list[Program]:
    """The pieces of a program; inverse of `join`."""
    firsts = [0, *(i for i, block in enumerate(program.blocks) if block.after_host)]
    if len(firsts) == 1:
        return [program]
    return [
        _piece(program, program.blocks[first:last])
        for first, last in zip(firsts, [*firsts[1:], len(program.blocks)], strict=True)
    ]


def _piece(program: Program, blocks: Sequence[Block]) -> Program:
    row, start = blocks[0].row_start, blocks[0].start_cycle
    moved = tuple(
        dataclasses.replace(
            block,
            row_start=block.row_start - row,
            row_stop=block.row_stop - row,
            start_cycle=block.start_cycle - start,
            after_host=False,
        )
        for block in blocks
    )
    rows = slice(row, blocks[-1].row_stop)
    columns = {name: getattr(program, name)[rows] for name in _COLUMNS}
    return Program(chip=program.chip, blocks=moved, **columns)
