"""Resource bounds: the cycles that each kind of unit needs at least, from the graph and the chip only.

They hold for every program that does the equations of the graph on the units that its ops name, whatever the layout,
order, fusion and number of copies: a MatMul is done on the MXM with its rhs installed and one row of its lhs in an
activation vector (Assumption; the other orientation, or several rows side by side, is another graph). What is known
before the program runs, equal equations, and repeated elements cost nothing more; what does not change in a loop is
done once.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from lpu_jax.lowering.analysis.products import FREE_FUNCTIONS, SIGNIFICAND_BYTES, is_dense, passes_per_row
from lpu_jax.runtime.chip import ChipSpec, Hemisphere
from lpu_jax.runtime.ops import (
    Aval,
    Broadcast,
    Concatenate,
    Elementwise,
    Equation,
    GatherRows,
    GraphLike,
    HostCall,
    LaneReduce,
    MatMul,
    Pad,
    Scan,
    ScatterRows,
    Slice,
    While,
)

ON_CHIP = ("mxm", "weight_load", "alu", "sxm", "stream", "mem")
"""Kinds of bounds that hold for the cycles of a program; "pcie" comes before and after them."""


@dataclasses.dataclass(frozen=True, slots=True)
class Content:
    """What is known of a value: a number that equal values share; elements that are surely different; whether it is
    known at compile time, changes from turn to turn of the loop, and has no filler or repeated element (full);
    bases: the arguments and computed values that its elements are moved from."""

    number: int
    count: int
    is_known: bool
    varies: bool
    is_full: bool
    bases: frozenset[int]


def resource_bounds(graph: GraphLike, chip: ChipSpec, moved_bytes: tuple[int, int] | None = None) -> dict[str, int]:
    """Lower bounds in cycles by kind of unit, all units of a kind at work all the time.

    mxm: sum over lhs of rows * passes_per_row * ceil(N of its products / lanes) * planes_per_tile / planes;
    weight_load: sum over weights of ceil(K * N / lanes) * bytes * planes_per_tile / (streams per load * planes);
    alu: sum over functions of slots * ceil(elements / lanes) / ALUs; sxm: 0, as every move of lanes can be avoided by
    a layout; stream: byte vectors to the MXM, or from it, / (2 * streams of a direction); mem: byte vectors of
    arguments that are used, or of results that are computed, / usable slices; pcie: clock * time of arguments and
    results (bytes in and out, by default all of the graph's) on the host port.
    """
    walk = _Walk(chip)
    arguments = [walk.argument(graph.avals[v]) for v in graph.inputs]
    outputs = walk.graph(graph, arguments, 1, frozenset(range(len(graph.outputs))))
    use, planes = walk.use, 2 * chip.num_planes
    written = {
        c.number: c.count * _bytes(graph.avals[v])
        for v, c in zip(graph.outputs, outputs, strict=True)
        if c.is_full and not c.is_known and not c.bases & walk.arguments
    }
    slices = sum(len(chip.usable_slices(side)) for side in Hemisphere)
    alu = sum(chip.alu_slots(f) * -(-n // chip.num_lanes) for f, n in walk.elements.items())
    across = max(-(-use["outward"] // chip.num_planes), use["inward"])
    moved = moved_bytes or (_total(graph, graph.inputs), _total(graph, graph.outputs))
    return {
        "mxm": -(-use["mxm"] // planes),
        "weight_load": -(-use["weights"] // (chip.num_streams_per_load * planes)),
        "alu": -(-alu // chip.num_alus),
        "sxm": 0,
        "stream": -(-across // (2 * chip.num_streams_per_direction)),
        "mem": -(-max(walk.bytes_read(), sum(written.values())) // (chip.num_lanes * slices)),
        "pcie": math.ceil(sum(_pcie_seconds(chip, size) for size in moved) * chip.clock_hz),
    }


def _pcie_seconds(chip: ChipSpec, num_bytes: int) -> float:
    return chip.pcie_latency_seconds + num_bytes / chip.pcie_bytes_per_second if num_bytes else 0.0


def _bytes(aval: Aval) -> int:
    return np.dtype(aval.dtype).itemsize


def _total(graph: GraphLike, values: Sequence[int]) -> int:
    return sum(math.prod(graph.avals[v].shape) * _bytes(graph.avals[v]) for v in values)


class _Walk:
    """Adds up the work of live equations; `turns` is how often the body at hand runs."""

    def __init__(self, chip: ChipSpec) -> None:
        self.chip = chip
        self.use: Counter[str] = Counter()
        self.elements: Counter[str] = Counter()
        self.read: dict[frozenset[int], int] = {}
        self.arguments: set[int] = set()
        self.installed: set[int] = set()
        self.memo: dict[Hashable, Content] = {}
        self.columns: Counter[Hashable] = Counter()
        self.size = 0

    def _new(self, count: int, *, known: bool = False, varies: bool = False, full: bool = True) -> Content:
        self.size += 1
        return Content(self.size, count, known, varies, full, frozenset((self.size,)))

    def argument(self, aval: Aval) -> Content:
        """An argument of the program."""
        content = self._new(math.prod(aval.shape))
        self.arguments.add(content.number)
        return content

    def bytes_read(self) -> int:
        """Bytes of arguments that are read at least once; parts that may overlap count once."""
        total, seen = 0, set[int]()
        for bases, size in sorted(self.read.items(), key=lambda item: (-item[1], sorted(item[0]))):
            if not bases & seen:
                total += size
                seen |= bases
        return total

    def graph(
        self, graph: GraphLike, arguments: Sequence[Content], turns: int, wanted: frozenset[int]
    ) -> list[Content]:
        """Contents of the outputs; only the wanted ones are computed."""
        env = dict(zip(graph.inputs, arguments, strict=True))
        for value, array in graph.constants:
            distinct = len(np.unique(array)) if array.size <= 1 << 16 else 1
            dense = is_dense(array)
            env[value] = self._new(array.size if dense else distinct, known=True, full=dense)
        needed = {v for i, v in enumerate(graph.outputs) if i in wanted}
        live = []
        for equation in reversed(graph.equations):
            if needed.intersection(equation.results):
                live.append((equation, needed.intersection(equation.results)))
                needed.update(v for v in equation.operands if isinstance(v, int))
        for equation, results in reversed(live):
            operands = [env[v] for v in equation.operands if isinstance(v, int)]
            shapes = [graph.avals[v] for v in equation.operands if isinstance(v, int)]
            avals = [graph.avals[v] for v in equation.results]
            places = frozenset(i for i, v in enumerate(equation.results) if v in results)
            found = self._equation(equation, operands, shapes, avals, turns, places)
            env.update(zip(equation.results, found, strict=True))
        nothing = self._new(1, known=True, full=False)
        return [env.get(v, nothing) for v in graph.outputs]

    def _equation(
        self,
        equation: Equation,
        operands: list[Content],
        shapes: list[Aval],
        avals: list[Aval],
        turns: int,
        wanted: frozenset[int],
    ) -> list[Content]:
        op = equation.op.one_turn() if isinstance(equation.op, While) else equation.op  # cycles are those of one turn
        if isinstance(op, HostCall):
            return [self._new(1, full=False) for _ in avals]
        if all(c.is_known for c in operands) or any(0 in a.shape for a in (*shapes, *avals)):
            return [self._new(1, known=True, full=False) for _ in avals]
        if isinstance(op, Scan):
            return self._scan(op, operands, avals, turns, wanted)
        aval = avals[0]
        immediates = tuple(v for v in equation.operands if not isinstance(v, int))
        key = (op, tuple(c.number for c in operands), immediates, aval, tuple(shapes))
        if key not in self.memo:
            varies = any(c.varies for c in operands)
            self.memo[key] = self._result(op, operands, shapes, aval, turns if varies else 1, varies)
        return [self.memo[key]]

    def _result(
        self, op: object, operands: list[Content], shapes: list[Aval], aval: Aval, times: int, varies: bool
    ) -> Content:
        size, first = math.prod(aval.shape), operands[0]
        if isinstance(op, Elementwise):
            if op.function in FREE_FUNCTIONS:
                return first
            full = any(c.is_full and not c.is_known for c in operands)
            count = size if full else max(c.count for c in operands)
            self.elements[op.function] += times * count
            self._reads(operands, shapes, times)
            return self._new(count, varies=varies, full=full)
        if isinstance(op, MatMul):
            self._matmul(op, operands, shapes, times)
            self._reads(operands, shapes, times)
            full = all(c.is_full for c in operands)
            return self._new(size if full else 1, varies=varies, full=full)
        if isinstance(op, LaneReduce):
            return self._lane_reduce(op, first, shapes[0], times, varies)
        if isinstance(op, GatherRows | ScatterRows):
            return self._indexed(op, operands, shapes, size, varies)
        return self._move(op, operands, shapes, aval, varies)

    def _reads(self, operands: list[Content], shapes: list[Aval], times: int) -> None:
        """Arguments that a unit takes must be read once."""
        for content, aval in zip(operands, shapes, strict=True):
            if content.bases <= self.arguments:
                size = content.count * _bytes(aval) * (times if content.varies else 1)
                self.read[content.bases] = max(self.read.get(content.bases, 0), size)

    def _matmul(self, op: MatMul, operands: list[Content], shapes: list[Aval], times: int) -> None:
        chip, (lhs, rhs) = self.chip, operands
        batches, rows, contracting = shapes[0].shape
        key = (lhs.number, op, shapes[0])  # products of one lhs may share a column tile
        before, rhs_bytes = self.columns[key], op.rhs_format.significand_bytes
        self.columns[key] += shapes[1].shape[-1]
        tiles = -(-self.columns[key] // chip.num_lanes) - -(-before // chip.num_lanes)
        planes = chip.planes_per_tile(rhs_bytes)
        vectors = batches * rows * tiles if lhs.is_full and rhs.is_full else min(1, tiles)
        per_row = passes_per_row(chip, contracting, op.lhs_format.significand_bytes, rhs_bytes)
        activations = -(-contracting // min(chip.num_lanes, chip.num_mxm_rows))
        if not (lhs.is_full and rhs.is_full):
            per_row = activations = 1
        self.use["mxm"] += times * vectors * per_row * planes
        self.use["inward"] += times * vectors * 4
        self.use["outward"] += times * vectors * activations * op.lhs_format.num_bytes * planes
        if rhs.number not in self.installed:
            self.installed.add(rhs.number)
            size = -(-rhs.count // chip.num_lanes) * op.rhs_format.num_bytes * (times if rhs.varies else 1)
            self.use["weights"] += size * planes
            self.use["outward"] += size * chip.num_planes

    def _lane_reduce(self, op: LaneReduce, operand: Content, aval: Aval, times: int, varies: bool) -> Content:
        """K - 1 functions of two operands per row; sums on the MXM with the rows as activations or as weights."""
        chip, contracting = self.chip, aval.shape[-1]
        rows = math.prod(aval.shape[:-1])
        if contracting == 1:
            return operand
        self._reads([operand], [aval], times)
        if op.function != "sum" or contracting == 2:
            function = "add" if op.function == "sum" else op.function
            self.elements[function] += times * max(0, operand.count - rows)
        elif operand.is_full:
            width = SIGNIFICAND_BYTES[aval.dtype]
            streamed = rows * passes_per_row(chip, contracting, width, 1)
            tiles = -(-rows // chip.num_lanes)
            installed = tiles * passes_per_row(chip, contracting, 1, width) * chip.planes_per_tile(width)
            self.use["mxm"] += times * min(streamed, installed)
        return self._new(rows if operand.is_full else 1, varies=varies, full=operand.is_full)

    def _move(self, op: object, operands: list[Content], shapes: list[Aval], aval: Aval, varies: bool) -> Content:
        first, size = operands[0], math.prod(aval.shape)
        bases = frozenset(base for c in operands for base in c.bases)
        count, full = first.count, first.is_full
        if isinstance(op, Slice):
            count = size if full else max(1, count - math.prod(shapes[0].shape) + size)
        elif isinstance(op, Broadcast | Pad):
            full = False
        elif isinstance(op, Concatenate):
            apart = len(bases) == sum(len(c.bases) for c in operands)
            full = apart and all(c.is_full and not c.is_known for c in operands)
            count = size if full else max(c.count for c in operands)
        return dataclasses.replace(self._new(count, varies=varies, full=full), bases=bases)

    def _indexed(
        self, op: GatherRows | ScatterRows, operands: list[Content], shapes: list[Aval], size: int, varies: bool
    ) -> Content:
        """Rows at run-time indices may all be different ones; nothing is claimed of how they are fetched."""
        full = all(c.is_full and not c.is_known for c in operands)
        if isinstance(op, GatherRows):
            full = full and shapes[1].shape[0] <= shapes[0].shape[0]
        moved = self._new(size if full else 1, varies=varies, full=full)
        return dataclasses.replace(moved, bases=moved.bases.union(*(c.bases for c in operands)))

    def _scan(
        self, op: Scan, operands: list[Content], avals: list[Aval], turns: int, wanted: frozenset[int]
    ) -> list[Content]:
        """The body once, its work as often as it runs. A carry that starts from a known value may stay known; one is
        full if it starts so and stays so, whatever the others do."""
        inside = self._body_inputs(op, operands)
        first, stop = op.num_consts, op.num_consts + op.num_carry
        outputs = frozenset(i for i in range(len(op.body.outputs)) if i < op.num_carry or i in wanted)
        for _ in range(op.num_carry + 1):
            trial = _Walk(self.chip)
            trial.size = self.size
            left = trial.graph(op.body, inside, 1, outputs)[: op.num_carry]
            kept = [c.is_full and r.is_full for c, r in zip(inside[first:stop], left, strict=True)]
            carry = [
                c if keeps else dataclasses.replace(c, is_full=False, count=1)
                for c, keeps in zip(inside[first:stop], kept, strict=True)
            ]
            if carry == inside[first:stop]:
                break
            inside[first:stop] = carry
        results = self.graph(op.body, inside, turns * op.num_iterations, outputs)
        given = frozenset(base for c in inside for base in c.bases)
        found = []
        for position, (result, aval) in enumerate(zip(results, avals, strict=True)):
            full = result.is_full and not result.bases & given and (position < op.num_carry or result.varies)
            found.append(self._new(math.prod(aval.shape) if full else 1, varies=turns > 1, full=full))
        return found

    def _body_inputs(self, op: Scan, operands: list[Content]) -> list[Content]:
        """Contents of the body's inputs in any turn."""
        inside = []
        for position, (value, c) in enumerate(zip(op.body.inputs, operands, strict=True)):
            if position < op.num_consts:
                inside.append(dataclasses.replace(c, varies=False))
                continue
            is_carry = position < op.num_consts + op.num_carry
            count = math.prod(op.body.avals[value].shape) if c.is_full else 1
            part = self._new(count, known=c.is_known, varies=is_carry or c.is_full, full=c.is_full and not c.is_known)
            inside.append(part if is_carry else dataclasses.replace(part, bases=c.bases))
        return inside
