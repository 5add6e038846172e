"""tile: Graph -> TileGraph. Whole-tensor ops become vectors of at most 320 lanes, each done by one unit.

Before  %4:f32[1,1536] = MatMul(FP16, INT8) %2 %3          After  chain x1: mxm W0 (2 K tiles) -> mul -> write, 5 times
        %6:f32[1,1536] = Elementwise(mul) %4 %5

Elementwise equations are fused greedily into chains over one iteration space, matrix products feed the chain that
follows them, moves become views where vectors stay whole. Cost: O(vectors) plus O(E log E) for moves that touch lanes.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from lpu_jax.lowering.host_plan import HostPlan, Run, Stage
from lpu_jax.lowering.passes.tile_chain import Domain, OpenChain, narrow_steps
from lpu_jax.lowering.passes.tile_cuts import find_cuts
from lpu_jax.lowering.passes.tile_demand import demands
from lpu_jax.lowering.passes.tile_indexing import tile_scatter
from lpu_jax.lowering.passes.tile_inputs import bind_inputs
from lpu_jax.lowering.passes.tile_lazy import default_splat, materialise, tile_move
from lpu_jax.lowering.passes.tile_matmul import tile_matmul, tile_reduction
from lpu_jax.lowering.passes.tile_moves import view_codes
from lpu_jax.lowering.passes.tile_product import close_chain
from lpu_jax.lowering.passes.tile_shared import tile_lookup
from lpu_jax.lowering.passes.tile_storage import FORMATS, SPREADS, Demand, Spread, StorageBuilder
from lpu_jax.lowering.passes.tile_windows import Windows, find_windows
from lpu_jax.lowering.tile_ir import (
    Binding,
    IntArray,
    StepOperand,
    TileBlock,
    TileGraph,
    TileOp,
    View,
    num_rows,
)
from lpu_jax.runtime.chip import ChipSpec
from lpu_jax.runtime.errors import NumberFormatError
from lpu_jax.runtime.ops import (
    DecodeBlocks,
    Elementwise,
    EncodeBlocks,
    Equation,
    GatherRows,
    GraphLike,
    HostCall,
    Immediate,
    LaneReduce,
    MatMul,
    Scan,
    ScatterRows,
    While,
)


def tile(
    graph: GraphLike, chip: ChipSpec, donated: dict[int, int] | None = None, *, spread: Spread = SPREADS[0]
) -> TileGraph:
    """Splits a graph into tile ops.

    Args:
      graph: a verified Graph.
      chip: the target.
      donated: output position -> input position whose storage the output may reuse.
      spread: how generously SRAM is used.
    """
    builder = StorageBuilder(chip, spread)
    tiler = Tiler(builder, graph)
    bind_inputs(tiler, donated or {})
    tiler.run()
    outputs = tuple(
        Binding(v, tiler.view(v), 1, graph.avals[v].dtype) for v in graph.outputs if not graph.avals[v].is_on_host
    )
    tiler.end_run()
    return TileGraph(
        chip=chip,
        storages=tuple(builder.storages),
        blocks=tuple(tiler.blocks),
        inputs=tuple(tiler.bindings),
        constants=tuple(builder.constants),
        outputs=outputs,
        plan=tiler.host_plan(),
    )


class Tiler:
    """Walks the equations of one graph and collects tile ops; views[v] are the places of value v."""

    def __init__(self, builder: StorageBuilder, graph: GraphLike) -> None:
        self.builder, self.graph, self.chip = builder, graph, builder.chip
        self.demand, self.cuts = demands(graph), find_cuts(graph)
        self.views: dict[int, tuple[View, ...]] = {}
        self.pending: dict[int, IntArray] = {}
        self.windows: dict[int, Windows | None] = {}  # of pending values, as far as somebody asked
        self.uniform: set[int] = set()  # values whose vectors hold one element in all lanes
        self.targets: dict[int, tuple[View, ...]] = {}
        self.constants = dict(graph.constants)
        self.chains: dict[Domain, OpenChain] = {}
        self.chain_of: dict[int, OpenChain] = {}
        self.ops: list[TileOp] = []
        self.blocks: list[TileBlock] = []
        self.bindings: list[Binding] = []
        self.plan: list[Stage] = []
        self.run_start = 0  # first block since the host last started the chip
        self.slots: dict[int, int] = {}  # values that only the host holds
        self.donated_xs: dict[int, int] = {}
        self.overwriting: dict[int, int] = {}  # equations that replace a value in place: its readers are emitted before
        self.ready: set[int] = set()
        self.demand_of_none = Demand()
        self.table_demand = Demand(table=True)
        self.label = ("", "")
        self.uses = Counter(v for e in graph.equations for v in e.operands if isinstance(v, int))
        self.uses.update(graph.outputs)

    # Views ------------------------------------------------------------------------------------------------------

    def place(self, value: int, splat: bool) -> tuple[View, ...]:
        """Views that a new result is written to: those asked for by a loop, or new storages."""
        wanted = self.targets.get(value)
        if wanted is not None and wanted[0].splat == splat:
            return wanted
        demand, cuts = self.demand.get(value, Demand()), self.cuts.get(value, ())
        return self.builder.allocate(self.graph.avals[value], splat, demand, cuts=cuts, name=f"%{value}")

    def all_views(self, value: int) -> tuple[View, ...]:
        """The places of a value in memory, written now if it is still in an open chain."""
        if value in self.chain_of:
            self.close(self.chain_of[value])
        if value in self.pending:
            self.views[value] = materialise(self, value, self.pending.pop(value), default_splat(self.shape(value)))
        if value not in self.views and value in self.constants:
            array = self.constants[value]
            self.views[value] = self.builder.constant(
                array, default_splat(array.shape), self.demand.get(value, Demand())
            )
        return self.views[value]

    def shape(self, value: int) -> tuple[int, ...]:
        """Shape of a value."""
        return self.graph.avals[value].shape

    def view(self, value: int) -> View:
        """The first place of a value."""
        return self.all_views(value)[0]

    def lanes_views(self, value: int) -> tuple[View, ...]:
        """Views with the last axis on lanes; moves elements there if the value is splat."""
        views = self.all_views(value)
        if not views[0].splat or default_splat(views[0].shape):
            return tuple(View(v.shape, False, v.refs) for v in views)
        self.views[value] = materialise(self, value, view_codes(views[0], self.chip.num_lanes), False)
        return self.views[value]

    def splat_refs(self, value: int) -> IntArray:
        """One vector per element, which holds it in all lanes."""
        view = self.all_views(value)[0]
        if view.splat:
            return view.refs
        return materialise(self, value, view_codes(view, self.chip.num_lanes), True)[0].refs

    def rename_in_chain(self, value: int, result: int) -> bool:
        """A reshape over the same iteration space is another name for a value of an open chain."""
        chain = self.chain_of.get(value)
        if chain is not None and not chain.domain.splat and not self.shape(result):
            return False  # a scalar lies in all lanes
        if chain is None or self._domain(result, chain.domain.splat, chain.domain.offsets) != chain.domain:
            return False
        chain.values[result] = chain.values[value]
        self.chain_of[result] = chain
        return True

    def may_overwrite(self, old: int, new: int, view: View) -> bool:
        """Whether an update may be done in place: a loop wants the result where the old value is, which nobody else
        reads. (Elsewhere other values may be views of the old one.)"""
        wanted = self.targets.get(new)
        if wanted is None or self.uses[old] > 1:
            return False
        return len(wanted) == 1 and np.array_equal(wanted[0].refs, view.refs)

    # Chains -----------------------------------------------------------------------------------------------------

    def close(self, chain: OpenChain) -> None:
        """Emits an open chain; results still needed elsewhere are written to memory."""
        self.chains = {d: c for d, c in self.chains.items() if c is not chain}
        needed = [v for v in chain.values if self.uses[v] > 0]
        results = []
        same: dict[StepOperand, int] = {}
        for value in needed:
            first = same.setdefault(chain.values[value], value)
            if first != value and value not in self.targets and self.demand.get(value) == self.demand.get(first):
                self._share_places(value, first)
                continue
            places = self._result_places(value, chain.domain)
            results.append((chain.values[value], places, FORMATS[self.graph.avals[value].dtype]))
        for value in chain.values:
            self.chain_of.pop(value, None)
        self.ops += close_chain(self.builder, chain, results)

    def _result_places(self, value: int, domain: Domain) -> tuple[View, ...]:
        """Views of a chain result; windows are pending until somebody wants their rows at lane 0."""
        if not domain.offsets:
            self.views[value] = self.place(value, domain.splat)
            return self.views[value]
        aval = self.graph.avals[value]
        places = self.builder.allocate(aval, False, self.demand.get(value, Demand()), name=f"%{value}")
        refs = tuple(view.refs[:, None] for view in places)
        offsets, size = np.frombuffer(domain.offsets, np.int64)[:, None], aval.shape[-1]
        windows = Windows(refs, offsets, (0, size), (size,))
        self.windows[value], self.pending[value] = windows, windows.codes(aval.shape)
        return places

    def _share_places(self, value: int, first: int) -> None:
        """A result of a chain that is the same as another one."""
        shape = self.graph.avals[value].shape
        if first in self.pending:
            self.windows[value], self.pending[value] = self.windows[first], self.pending[first].reshape(shape)
        else:
            self.views[value] = tuple(view.with_shape(shape) for view in self.views[first])

    def close_windows(self, value: int) -> None:
        """Emits the open chain of a value whose rows are windows; it is pending then."""
        if value in self.chain_of and self.chain_of[value].domain.offsets:
            self.close(self.chain_of[value])

    def windows_of(self, value: int) -> Windows | None:
        """The rows of a pending value as windows, None if it has a view or its rows are none."""
        self.close_windows(value)
        if value not in self.pending:
            return None
        if value not in self.windows:
            self.windows[value] = self._find_windows(value, 1, False)
        return self.windows[value]

    def segments_of(self, value: int, max_segments: int, skips_padding: bool) -> Windows | None:
        """The rows of a pending value in a few segments each, None if it has a view or its rows are none."""
        windows = self.windows_of(value)
        if windows is not None or value not in self.pending:
            return windows
        return self._find_windows(value, max_segments, skips_padding)

    def _find_windows(self, value: int, max_segments: int, skips_padding: bool) -> Windows | None:
        zero = self.builder.zero(self.graph.avals[value].dtype)
        found = find_windows(self.pending[value], self.chip.num_lanes, zero, max_segments, skips_padding)
        return found and found.mirrored(self.builder)

    def close_all(self) -> None:
        """Emits every open chain, oldest first."""
        for chain in list(self.chains.values()):
            if chain in self.chains.values():
                self.close(chain)

    def _close_readers(self, value: int) -> None:
        """Emits the open chains that read storages of a value, oldest first."""
        storages = {int(s) for view in self.all_views(value) for s in view.refs[:, 0]}
        for chain in list(self.chains.values()):
            if storages & chain.storages() and chain in self.chains.values():
                self.close(chain)

    def end_block(self) -> None:
        """Ends a run of tile ops that execute once."""
        self.close_all()
        if self.ops:
            self.blocks.append(TileBlock(tuple(self.ops), 1, frozenset()))
            self.ops = []

    def end_run(self) -> None:
        """Ends a run of blocks: the host has something to do before the next one."""
        self.end_block()
        if len(self.blocks) > self.run_start:
            self.plan.append(Run(self.run_start, len(self.blocks)))
        self.run_start = len(self.blocks)

    def new_slot(self, value: int) -> int:
        """Gives a value a place on the host."""
        self.slots[value] = self.builder.num_slots
        self.builder.num_slots += 1
        return self.slots[value]

    def slot(self, value: int) -> int:
        """Where the host holds a value."""
        if value not in self.slots:
            self.builder.slot_constants[self.new_slot(value)] = self.constants[value]
        return self.slots[value]

    def host_plan(self) -> HostPlan:
        """What the host does, and which arguments and results it keeps for itself."""
        inputs, outputs = (
            tuple((i, self.slot(v)) for i, v in enumerate(values) if self.graph.avals[v].is_on_host)
            for values in (self.graph.inputs, self.graph.outputs)
        )
        return HostPlan(tuple(self.plan), inputs, outputs, tuple(self.builder.slot_constants.items()))

    def used(self, equation: Equation) -> None:
        """Counts down the uses of an equation's operands."""
        self.uses.subtract(v for v in equation.operands if isinstance(v, int))

    # Equations --------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Tiles every equation in order."""
        for index, equation in enumerate(self.graph.equations):
            self.label = (equation.source, equation.name)
            op = equation.op
            if index in self.overwriting:
                self._close_readers(self.overwriting[index])
            if equation.results[0] in self.ready:
                continue
            if isinstance(op, Elementwise):
                self._elementwise(equation, op)
            elif isinstance(op, MatMul):
                tile_matmul(self, equation, op)
            elif isinstance(op, LaneReduce):
                tile_reduction(self, equation, op)
            elif isinstance(op, GatherRows):
                self.set_views(equation, tile_lookup(self, equation))
            elif isinstance(op, EncodeBlocks | DecodeBlocks):
                raise NumberFormatError(
                    f"{op.format.name.lower()} is packed and unpacked by the host and the loader of the MXM, not while "
                    f"a program runs {equation.source}: use it as the right-hand side of a product that sums over its "
                    "blocks, or name the argument in resident_argnums"
                )
            elif isinstance(op, ScatterRows):
                self.set_views(equation, tile_scatter(self, equation))
            elif isinstance(op, Scan | While | HostCall):
                self._with_blocks(equation, op)
                self.used(equation)
            else:
                tile_move(self, equation, op)

    def _with_blocks(self, equation: Equation, op: Scan | While | HostCall) -> None:
        """Ops that end the block: loops, and calls of the host."""
        from lpu_jax.lowering.passes.tile_host import tile_host_call, tile_while
        from lpu_jax.lowering.passes.tile_scan import tile_scan

        self.close_all()
        for value in [v for v in self.pending if self.uses[v] > 0]:
            self.all_views(value)  # the loop may overwrite what it was given
        if isinstance(op, Scan):
            tile_scan(self, equation, op)
        elif isinstance(op, While):
            tile_while(self, equation, op)
        else:
            tile_host_call(self, equation, op)

    def set_views(self, equation: Equation, views: tuple[View, ...]) -> None:
        """The result of an equation lies in these views."""
        self.used(equation)
        self.views[equation.results[0]] = views

    def _domain(self, value: int, splat: bool, offsets: bytes = b"") -> Domain:
        shape = self.graph.avals[value].shape
        if splat:
            return Domain(int(np.prod(shape, dtype=np.int64)), 1, True)
        return Domain(num_rows(shape), shape[-1], False, offsets)

    def _is_splat(self, value: int) -> bool:
        if value in self.chain_of:
            return self.chain_of[value].domain.splat
        if value in self.pending:
            return default_splat(self.shape(value))
        return self.all_views(value)[0].splat

    def _common_offsets(self, operands: list[int]) -> bytes:
        """First lanes of the rows of all operands (some may hold one element per row in all lanes), b"" for lane 0."""
        found: set[bytes] = set()
        for value in dict.fromkeys(operands):
            if value in self.chain_of:
                found.add(self.chain_of[value].domain.offsets)
            elif value not in self.uniform:
                windows = self.windows_of(value)
                found.add(windows.offsets.tobytes() if windows is not None else b"")
        return next(iter(found)) if len(found) == 1 else b""

    def _chain_refs(self, value: int, domain: Domain) -> IntArray:
        """Vectors of a chain input, one per vector of the domain."""
        if domain.offsets and value not in self.uniform:
            windows = self.windows_of(value)
            assert windows is not None, "_common_offsets looked at it"
            return windows.refs[0][:, 0]
        return (self.all_views(value) if domain.splat else self.lanes_views(value))[0].refs

    def _elementwise(self, equation: Equation, op: Elementwise) -> None:
        result = equation.results[0]
        operands = [v for v in equation.operands if isinstance(v, int)]
        splat = all(self._is_splat(v) for v in operands)
        domain = self._domain(result, splat, b"" if splat else self._common_offsets(operands))
        outside = {v for v in operands if v not in self.chain_of or self.chain_of[v].domain != domain}
        refs = {value: self._chain_refs(value, domain) for value in outside}
        dtypes = [self.graph.avals[v].dtype for v in operands]
        narrowing = narrow_steps(op.function, dtypes, self.graph.avals[result].dtype)
        chain = self.chains.get(domain)
        missing = len(outside if chain is None else outside - chain.input_index.keys())
        if chain is None or not chain.room_for(self.chip, op.function, missing + len(narrowing)):
            if chain is not None:
                self.close(chain)
                outside = set(operands)
                refs = {v: self._chain_refs(v, domain) for v in operands}
            chain = self.chains[domain] = OpenChain(domain, equation.source, equation.name)
        step_operands: list[StepOperand] = []
        for operand in equation.operands:
            if isinstance(operand, Immediate):
                step_operands.append(operand)
            elif operand in chain.values:
                step_operands.append(chain.values[operand])
            else:
                step_operands.append(chain.add_input(operand, refs[operand], FORMATS[self.graph.avals[operand].dtype]))
        step = chain.add_step(self.chip, op.function, tuple(step_operands))
        for function, immediate in narrowing:
            step = chain.add_step(self.chip, function, (step, *immediate))
        chain.values[result] = step
        self.chain_of[result] = chain
        self.used(equation)
