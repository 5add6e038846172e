"""`Program`: every instruction of every queue with its cycle, as a struct of arrays."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import numpy.typing as npt

from lpu_jax.runtime.chip import ChipSpec
from lpu_jax.runtime.isa import NUM_OPERANDS

Int32Array = npt.NDArray[np.int32]
_NUM_COLUMNS = 5 + NUM_OPERANDS + 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A run of rows executed `num_iterations` times, `period_cycles` apart, from `start_cycle` on.

    Cycles of its rows count from the start of an iteration; MEM addresses move by `loop_step` per iteration.
    after_host: the chip has stopped before this block, and the host starts it (see host_runs.py).

    Invariants:
      0 <= row_start <= row_stop <= number of rows; num_iterations >= 1
      the next block starts at or after start_cycle + num_iterations * period_cycles
    """

    row_start: int
    row_stop: int
    start_cycle: int
    num_iterations: int
    period_cycles: int
    after_host: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """Instructions as columns; row order inside a block is (cycle, queue).

    Columns (int32, one entry per row): cycle, queue, opcode, count (>= 1), interval (>= 1 when count > 1);
    operands is int32 [rows, NUM_OPERANDS], filled as isa.OPERANDS says, 0 beyond. origin names what a row was made for:
    an index that only its maker understands, -1 for nothing; it has no meaning to the machine and is not serialised.
    """

    chip: ChipSpec
    cycle: Int32Array
    queue: Int32Array
    opcode: Int32Array
    count: Int32Array
    interval: Int32Array
    operands: Int32Array
    blocks: tuple[Block, ...]
    origin: Int32Array

    @property
    def num_rows(self) -> int:
        """Rows, loops not unrolled, repeats not expanded."""
        return len(self.cycle)

    @property
    def num_instructions(self) -> int:
        """Executed instructions: repeats and loop iterations counted one by one."""
        return sum(int(self.count[b.row_start : b.row_stop].sum()) * b.num_iterations for b in self.blocks)

    def to_bytes(self) -> bytes:
        """A stable serialisation: equal programs have equal bytes."""
        columns = (self.cycle, self.queue, self.opcode, self.count, self.interval, self.operands)
        blocks = [dataclasses.astuple(block)[: 6 if block.after_host else 5] for block in self.blocks]
        head = f"{self.chip.name} {blocks}\n".encode()
        return head + b"".join(np.ascontiguousarray(c, dtype="<i4").tobytes() for c in columns)

    def digest(self) -> str:
        """SHA-256 of `to_bytes`."""
        return hashlib.sha256(self.to_bytes()).hexdigest()


class ProgramBuilder:
    """Collects rows in any order and sorts them into a `Program`; the only mutable thing here."""

    def __init__(self, chip: ChipSpec) -> None:
        self.chip = chip
        self._rows: list[tuple[int, ...]] = []
        self._finished: list[np.ndarray] = []
        self._blocks: list[Block] = []

    def add(
        self,
        cycle: int,
        queue: int,
        opcode: int,
        operands: tuple[int, ...],
        count: int = 1,
        interval: int = 1,
        origin: int = -1,
    ) -> None:
        """Adds one row to the open block; `cycle` counts from the start of the block's iteration."""
        pad = (0,) * (NUM_OPERANDS - len(operands))
        self._rows.append((cycle, queue, int(opcode), count, interval, *operands, *pad, origin))

    def close_block(self, *, start_cycle: int, num_iterations: int = 1, period_cycles: int = 0) -> None:
        """Ends the open block: its rows run `num_iterations` times from `start_cycle` on."""
        rows = np.array(self._rows, dtype=np.int64).reshape(len(self._rows), _NUM_COLUMNS)
        rows = np.where(rows > 2**31 - 1, rows - 2**32, rows).astype(np.int32)
        rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
        start = sum(len(part) for part in self._finished)
        self._finished.append(rows)
        self._rows = []
        self._blocks.append(
            Block(
                row_start=start,
                row_stop=start + len(rows),
                start_cycle=start_cycle,
                num_iterations=num_iterations,
                period_cycles=period_cycles,
            )
        )

    def build(self) -> Program:
        """The finished program; every added row belongs to a closed block."""
        assert not self._rows, "rows outside a block"
        rows = np.concatenate(self._finished) if self._finished else np.zeros((0, _NUM_COLUMNS), np.int32)
        return Program(
            chip=self.chip,
            cycle=rows[:, 0],
            queue=rows[:, 1],
            opcode=rows[:, 2],
            count=rows[:, 3],
            interval=rows[:, 4],
            operands=rows[:, 5:-1],
            blocks=tuple(self._blocks),
            origin=rows[:, -1],
        )
