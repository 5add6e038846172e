"""Assembly text of a `Program` and back; both ways keep every bit.

    .chip groqchip1
    .block start=0 iterations=1 period=0
    35: MEM_W3 Read a=12+1 s=E4 (Repeat 20, 1)
    48: MXM_W0 LW s=E0 row=0+16 format=int8 (Repeat 20, 1)
    60: VXM3 add E4.fp32 ALU2@0 -> E8 format=fp32

A line is `<cycle>: <queue> <instruction>`; `(Repeat n, d)` issues it n times in all, d cycles apart. `x=12+1` starts at
12 and steps by 1 per repetition. A VXM operand is `E4.fp32` (with `.keep` if it stays on its stream), `ALU<n>@<delay>`,
`#<bits>` or `-`. Columns with a value outside their range print as plain integers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from lpu_jax.runtime.chip import ChipSpec, chip_by_name
from lpu_jax.runtime.errors import ProgramError
from lpu_jax.runtime.isa import (
    NUM_OPERANDS,
    OPERANDS,
    VXM_FUNCTION_ID,
    VXM_FUNCTIONS,
    DataFormat,
    Opcode,
    OperandKind,
    queues,
    stream_name,
)
from lpu_jax.runtime.program import Block, Program

_MNEMONIC: dict[Opcode, str] = {
    op: op.name if op.name in ("NOP", "LW", "IW", "ABC", "ACC") else op.name.capitalize()
    for op in Opcode
    if op is not Opcode.VXM
}
_OPCODE = {text: op for op, text in _MNEMONIC.items()}
_KEY = {"address": "a", "loop_step": "loop", "stream": "s", "map_stream": "map", "out_stream": "out"}
_KEY |= {"accumulator": "acc", "first_row": "first", "num_rows": "rows"}
_STREAMS = ("stream", "map_stream", "out_stream")
_FLAGS = ("keep", "keep_map", "begin")


def to_text(program: Program) -> str:
    """Prints a program; `from_text` of it has the same bytes."""
    names = [str(queue) for queue in queues(program.chip)]
    lines = [f".chip {program.chip.name}"]
    for block in program.blocks:
        start = f".block start={block.start_cycle} iterations={block.num_iterations} period={block.period_cycles}"
        lines.append(start + (" after_host" if block.after_host else ""))
        for row in range(block.row_start, block.row_stop):
            queue = int(program.queue[row])
            name = names[queue] if 0 <= queue < len(names) else f"queue({queue})"
            lines.append(f"{program.cycle[row]}: {name} {row_text(program, row)}")
    return "\n".join(lines) + "\n"


def row_text(program: Program, row: int) -> str:
    """The instruction of one row with its operands and Repeat, without cycle and queue."""
    text = _instruction_text(program.chip, int(program.opcode[row]), program.operands[row].tolist())
    count, interval = int(program.count[row]), int(program.interval[row])
    if (count, interval) != (1, 1):
        text += f" (Repeat {count}, {interval})"
    return text


def from_text(text: str) -> Program:
    """Reads a program; raises ProgramError that names the line and the token."""
    return _Reader(text).program()


# Printing -----------------------------------------------------------------------------------------------------------


def _instruction_text(chip: ChipSpec, opcode: int, columns: list[int]) -> str:
    if opcode not in list(Opcode) or any(columns[len(OPERANDS[Opcode(opcode)]) :]):
        return f"Raw opcode={opcode} columns={','.join(map(str, columns))}"
    values = dict(zip(OPERANDS[Opcode(opcode)], columns, strict=False))
    if opcode == Opcode.VXM:
        return _vxm_text(chip, values)
    return " ".join([_MNEMONIC[Opcode(opcode)], *_column_texts(chip, values)])


def _column_texts(chip: ChipSpec, values: dict[str, int]) -> list[str]:
    texts = []
    for name, value in values.items():
        key = _KEY.get(name, name)
        if name == "loop_step":
            if value:
                texts.append(f"{key}={value}")
        elif name.endswith("_step"):
            texts[-1] += f"{value:+d}" if value else ""
        elif name in _FLAGS:
            if value:
                texts.append(key if value == 1 else f"{key}={value}")
        elif name in _STREAMS:
            texts.append(f"{key}={_stream_text(chip, value)}")
        elif name == "format":
            texts.append(f"{key}={_format_text(value)}")
        else:
            texts.append(f"{key}={value}")
    return texts


def _stream_text(chip: ChipSpec, stream: int) -> str:
    return stream_name(chip, stream) if 0 <= stream < 2 * chip.num_streams_per_direction else str(stream)


def _format_text(data_format: int) -> str:
    return DataFormat(data_format).name.lower() if data_format in list(DataFormat) else str(data_format)


def _operand_text(chip: ChipSpec, kind: int, value: int, data_format: int, keep: int) -> str:
    extra = data_format or keep
    if kind == OperandKind.NONE and not value and not extra:
        return "-"
    if kind == OperandKind.STREAM and keep in (0, 1):
        return f"{_stream_text(chip, value)}.{_format_text(data_format)}{'.keep' if keep else ''}"
    if kind == OperandKind.ALU and not keep:
        return f"ALU{value}@{data_format}"
    if kind == OperandKind.IMMEDIATE and not extra:
        return f"#0x{value & 0xFFFFFFFF:08x}"
    return f"?{kind},{value},{data_format},{keep}"


def _vxm_text(chip: ChipSpec, values: dict[str, int]) -> str:
    function = values["function"]
    name = VXM_FUNCTIONS[function] if 0 <= function < len(VXM_FUNCTIONS) else f"function({function})"
    sides = [
        _operand_text(chip, *(values[f"{side}{column}"] for column in ("_kind", "", "_format", "_keep")))
        for side in ("lhs", "rhs")
    ]
    out = ",".join(_stream_text(chip, values[name]) for name in ("stream", "second_stream"))
    return f"{name} {sides[0]} {sides[1]} -> {out} format={_format_text(values['format'])}"


# Reading ------------------------------------------------------------------------------------------------------------

_LINE = re.compile(r"(-?\d+): (\S+) (.*?)(?: \(Repeat (-?\d+), (-?\d+)\))?$")
_BLOCK = re.compile(r"\.block start=(-?\d+) iterations=(\d+) period=(-?\d+)( after_host)?$")
_STEPPED = re.compile(r"(-?\d+)([+-]\d+)?$")


class _Reader:
    """Reads lines one by one; keeps the line number for errors."""

    def __init__(self, text: str) -> None:
        self.lines = text.splitlines()
        self.number = 0
        self.rows: list[list[int]] = []
        self.blocks: list[list[int]] = []

    def fail(self, token: str, wanted: str) -> ProgramError:
        return ProgramError(f"assembly line {self.number}: bad token {token!r}: needs {wanted}")

    def program(self) -> Program:
        head = self.lines[0].split() if self.lines else []
        self.number = 1
        if len(head) != 2 or head[0] != ".chip":
            raise self.fail(self.lines[0] if self.lines else "", "`.chip <name>` first")
        try:
            self.chip = chip_by_name(head[1])
        except ValueError as error:
            raise self.fail(head[1], f"a chip ({error})") from None
        self.queue_id = {str(queue): index for index, queue in enumerate(queues(self.chip))}
        for number, line in enumerate(self.lines[1:], 2):
            self.number = number
            self._line(line.strip())
        bounds = [start for start, *_ in self.blocks] + [len(self.rows)]
        table = np.array(self.rows, np.int64).reshape(len(self.rows), 5 + NUM_OPERANDS).astype(np.int32)
        return Program(
            chip=self.chip,
            cycle=table[:, 0],
            queue=table[:, 1],
            opcode=table[:, 2],
            count=table[:, 3],
            interval=table[:, 4],
            operands=table[:, 5:],
            blocks=tuple(
                Block(
                    row_start=b[0],
                    row_stop=stop,
                    start_cycle=b[1],
                    num_iterations=b[2],
                    period_cycles=b[3],
                    after_host=bool(b[4]),
                )
                for b, stop in zip(self.blocks, bounds[1:], strict=True)
            ),
            origin=np.full(len(table), -1, np.int32),
        )

    def _line(self, line: str) -> None:
        if not line or line.startswith("#"):
            return
        if line.startswith("."):
            match = _BLOCK.match(line)
            if not match:
                raise self.fail(line, "`.block start=<cycle> iterations=<n> period=<cycles> [after_host]`")
            *numbers, after_host = match.groups()
            self.blocks.append([len(self.rows), *map(int, numbers), int(after_host is not None)])
            return
        match = _LINE.match(line)
        if not match:
            raise self.fail(line, "`<cycle>: <queue> <instruction>`")
        if not self.blocks:
            raise self.fail(line, "a `.block` line before the first instruction")
        cycle, queue, instruction, count, interval = match.groups()
        opcode, columns = self._instruction(instruction.split())
        if len(columns) > NUM_OPERANDS:
            raise self.fail(instruction, f"at most {NUM_OPERANDS} columns")
        columns = columns + [0] * (NUM_OPERANDS - len(columns))
        if any(not -(2**31) <= value < 2**31 for value in columns):
            raise self.fail(instruction, "operands of 32 bits")
        self.rows.append([int(cycle), self._queue(queue), opcode, int(count or 1), int(interval or 1), *columns])

    def _queue(self, token: str) -> int:
        raw = re.match(r"queue\((-?\d+)\)$", token)
        if raw:
            return int(raw[1])
        if token not in self.queue_id:
            raise self.fail(token, f"a queue of {self.chip.name}, such as {next(iter(self.queue_id))}")
        return self.queue_id[token]

    def _instruction(self, tokens: Sequence[str]) -> tuple[int, list[int]]:
        name, rest = tokens[0], tokens[1:]
        if name == "Raw" and len(rest) == 2:
            columns = [self._int(part) for part in rest[1].removeprefix("columns=").split(",")]
            return self._int(rest[0].removeprefix("opcode=")), columns
        if name in _OPCODE:
            return int(_OPCODE[name]), self._columns(OPERANDS[_OPCODE[name]], rest)
        function = re.match(r"function\((-?\d+)\)$", name)
        if function or name in VXM_FUNCTION_ID:
            return int(Opcode.VXM), self._vxm(int(function[1]) if function else VXM_FUNCTION_ID[name], rest)
        raise self.fail(name, "an instruction such as Read or a VXM function such as add")

    def _columns(self, names: tuple[str, ...], tokens: Sequence[str]) -> list[int]:
        values = dict.fromkeys(names, 0)
        names_of = {_KEY.get(name, name): name for name in names if name == "loop_step" or not name.endswith("_step")}
        for token in tokens:
            key, _, value = token.partition("=")
            name = names_of.pop(key, None)
            if name is None:
                raise self.fail(token, f"one of {', '.join(names_of)}")
            if name in _STREAMS:
                values[name] = self._stream(value)
            elif name == "format":
                values[name] = self._format(value)
            elif name in _FLAGS:
                values[name] = self._int(value) if value else 1
            elif f"{name}_step" in values:
                stepped = _STEPPED.match(value)
                if not stepped:
                    raise self.fail(token, f"{key}=<start>+<step>")
                values[name], values[f"{name}_step"] = int(stepped[1]), int(stepped[2] or 0)
            else:
                values[name] = self._int(value)
        missing = [key for key, name in names_of.items() if name not in _FLAGS and name != "loop_step"]
        if missing:
            raise self.fail(" ".join(tokens), f"also {missing[0]}=")
        return list(values.values())

    def _vxm(self, function: int, tokens: Sequence[str]) -> list[int]:
        if len(tokens) != 5 or tokens[2] != "->" or "," not in tokens[3]:
            raise self.fail(" ".join(tokens), "`<lhs> <rhs> -> <stream>,<second stream> format=<format>`")
        outs = [self._stream(part) for part in tokens[3].split(",", 1)]
        data_format = self._format(tokens[4].removeprefix("format="))
        return [function, *self._operand(tokens[0]), *self._operand(tokens[1]), *outs, data_format]

    def _operand(self, token: str) -> list[int]:
        if token == "-":
            return [0, 0, 0, 0]
        patterns: list[tuple[str, Callable[[re.Match[str]], list[int]]]] = [
            (r"#0x([0-9a-f]{1,8})$", lambda m: [OperandKind.IMMEDIATE, _signed(int(m[1], 16)), 0, 0]),
            (r"ALU(-?\d+)@(-?\d+)$", lambda m: [OperandKind.ALU, int(m[1]), int(m[2]), 0]),
            (r"\?(-?\d+),(-?\d+),(-?\d+),(-?\d+)$", lambda m: [int(part) for part in m.groups()]),
            (
                r"([^.]+)\.([^.]+)(\.keep)?$",
                lambda m: [OperandKind.STREAM, self._stream(m[1]), self._format(m[2]), int(bool(m[3]))],
            ),
        ]
        for pattern, read in patterns:
            match = re.match(pattern, token)
            if match:
                return read(match)
        raise self.fail(token, "an operand: E4.fp32, ALU3@0, #0x3f800000 or -")

    def _stream(self, token: str) -> int:
        count = self.chip.num_streams_per_direction
        match = re.match(r"([EW])(\d+)$", token)
        if match and int(match[2]) < count:
            return int(match[2]) + (count if match[1] == "W" else 0)
        if match:
            raise self.fail(token, f"a stream below {count}")
        return self._int(token)

    def _format(self, token: str) -> int:
        if token.upper() in DataFormat.__members__:
            return int(DataFormat[token.upper()])
        return self._int(token)

    def _int(self, token: str) -> int:
        try:
            return int(token)
        except ValueError:
            raise self.fail(token, "an integer or a known name") from None


def _signed(bits: int) -> int:
    return bits - 2**32 if bits >= 2**31 else bits
