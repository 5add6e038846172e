"""The stages of a function, named and shaped as in jax.stages: Traced -> Lowered -> Compiled -> Loaded.

A `Traced` has one meaning that all later stages keep: the values of the LPU's arithmetic, the derivative of the user's
function. Inputs of its jaxpr are first the large arrays that the function closed over, then the arguments' leaves.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jax_core

from lpu_jax import arguments as arguments_of
from lpu_jax.arguments import ArgInfo, Aval, AvalKey, FlatCall, Leaf, Options
from lpu_jax.call import GraphCall, lpu_call_p, with_derivative
from lpu_jax.lowering.edges import Edges, split_edges
from lpu_jax.lowering.hoist import hoist_resident
from lpu_jax.lowering.ir import Graph, as_text
from lpu_jax.lowering.lower import lower_jaxpr
from lpu_jax.lowering.prune import split_resident
from lpu_jax.runtime.assembly import to_text
from lpu_jax.runtime.execute import execute, prepare, prepared_inputs
from lpu_jax.runtime.ops import Elementwise, GraphLike, LaneReduce, MatMul, Scan
from lpu_jax.runtime.program import Program

if TYPE_CHECKING:
    from lpu_jax.lowering.pipeline import CompiledGraph
    from lpu_jax.report import Report

_MAX_EMBEDDED_ELEMENTS = 65_536
"""Closed-over arrays up to this size are constants of the program, larger ones are resident inputs."""


def trace(
    fun: Callable[..., Any], call: FlatCall, roles: tuple[Leaf, ...], keys: tuple[AvalKey, ...], options: Options
) -> Traced:
    """Traces a function for the shapes of a call.

    Raises:
      UnsupportedInputError: an argument that no program can take.
    """
    arguments_of.check_avals(keys, roles)
    out_tree = None

    def flat_fun(*leaves: Any) -> list[Any]:
        nonlocal out_tree
        args, kwargs = call.join(leaves)
        results, out_tree = jax.tree.flatten(fun(*args, **kwargs))
        return results

    avals = [Aval(shape, dtype, weak_type=weak) for shape, dtype, weak in keys]
    closed = jax.make_jaxpr(flat_fun)(*avals)
    closed, captured = _lift_captured(closed)
    return Traced(
        jaxpr=closed,
        fun_name=getattr(fun, "__name__", type(fun).__name__),
        options=options,
        captured=captured,
        roles=roles,
        keys=keys,
        in_tree=call.in_tree,
        out_tree=out_tree,
    )


def _lift_captured(closed: Any) -> tuple[Any, tuple[Any, ...]]:
    """Turns closed-over tracers and large arrays into leading inputs; small arrays stay constants."""
    jaxpr, consts = closed.jaxpr, closed.consts
    lifted = [isinstance(c, jax.core.Tracer) or np.size(c) > _MAX_EMBEDDED_ELEMENTS for c in consts]
    if not any(lifted):
        return closed, ()
    moved = [v for v, flag in zip(jaxpr.constvars, lifted, strict=True) if flag]
    info = jaxpr.debug_info
    if info.arg_names is not None:
        info = info._replace(arg_names=(*(f"closed-over array {i}" for i in range(len(moved))), *info.arg_names))
    opened = jaxpr.replace(
        constvars=[v for v, flag in zip(jaxpr.constvars, lifted, strict=True) if not flag],
        invars=[*moved, *jaxpr.invars],
        debug_info=info,
    )
    kept = [c for c, flag in zip(consts, lifted, strict=True) if not flag]
    return jax_core.ClosedJaxpr(opened, kept), tuple(c for c, flag in zip(consts, lifted, strict=True) if flag)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Traced:
    """A function traced for one set of shapes.

    Attributes:
      jaxpr: the ClosedJaxpr; inputs are `captured`, then the leaves of the arguments.
      captured: large arrays that the function closed over; they are resident.
      roles, keys: name, role, shape and dtype of every leaf.
    """

    jaxpr: Any
    fun_name: str
    options: Options
    captured: tuple[Any, ...]
    roles: tuple[Leaf, ...]
    keys: tuple[AvalKey, ...]
    in_tree: Any
    out_tree: Any

    @property
    def is_cacheable(self) -> bool:
        """Whether the trace stays valid when the transformation around it ends."""
        return not any(isinstance(c, jax.core.Tracer) for c in self.captured)

    @property
    def in_avals(self) -> Any:
        """Arguments as (args, kwargs) of ShapeDtypeStructs."""
        return jax.tree.unflatten(self.in_tree, [Aval(s, d, weak_type=w) for s, d, w in self.keys])

    @property
    def args_info(self) -> Any:
        """Arguments as (args, kwargs) of ArgInfo."""
        infos = [
            ArgInfo(shape=shape, dtype=dtype, donated=role.is_donated, resident=role.is_resident)
            for (shape, dtype, _), role in zip(self.keys, self.roles, strict=True)
        ]
        return jax.tree.unflatten(self.in_tree, infos)

    @property
    def flat_out_avals(self) -> list[Any]:
        """Results of the jaxpr as ShapeDtypeStructs."""
        return [Aval(a.shape, a.dtype, weak_type=bool(a.weak_type)) for a in self.jaxpr.out_avals]

    @property
    def call_avals(self) -> tuple[Any, ...]:
        """Results of the jaxpr as its own avals, without the devices of the trace."""
        return tuple(type(a)(a.shape, a.dtype, weak_type=a.weak_type) for a in self.jaxpr.out_avals)

    @property
    def out_info(self) -> Any:
        """Results as a tree of ShapeDtypeStructs."""
        return jax.tree.unflatten(self.out_tree, self.flat_out_avals)

    out_avals = out_info

    def lower(self) -> Lowered:
        """The function as whole-tensor operations of the LPU."""
        return self._lowered

    @functools.cached_property
    def _lowered(self) -> Lowered:
        return Lowered(self, lower_jaxpr(self.jaxpr, precision=self.options.precision, resident=self.resident_inputs))

    # Places of inputs and outputs --------------------------------------------------------------------------------

    @functools.cached_property
    def resident_inputs(self) -> tuple[int, ...]:
        """Inputs of the jaxpr that are laid out once: resident and not donated."""
        first = len(self.captured)
        leaves = (first + i for i, r in enumerate(self.roles) if r.is_resident and not r.is_donated)
        return (*range(first), *leaves)

    @functools.cached_property
    def moving_inputs(self) -> tuple[int, ...]:
        """All other inputs of the jaxpr."""
        return tuple(i for i in range(len(self.captured) + len(self.roles)) if i not in set(self.resident_inputs))

    @functools.cached_property
    def donated(self) -> dict[int, int]:
        """Output -> input whose place it takes: for every donated input the first free output of its aval."""
        pairs: dict[int, int] = {}
        outputs = [(a.shape, a.dtype) for a in self.flat_out_avals]
        for i, (role, key) in enumerate(zip(self.roles, self.keys, strict=True)):
            free = (o for o, aval in enumerate(outputs) if role.is_donated and o not in pairs and aval == key[:2])
            if (output := next(free, None)) is not None:
                pairs[output] = len(self.captured) + i
        return pairs

    def moved_bytes(self) -> tuple[int, int]:
        """(bytes in, bytes out) across PCIe at every call: all but resident arguments and results in their place."""
        first = len(self.captured)
        staying = {o for o, i in self.donated.items() if self.roles[i - first].is_resident}
        sent = sum(_num_bytes(key) for key, role in zip(self.keys, self.roles, strict=True) if not role.is_resident)
        outputs = [(a.shape, a.dtype, False) for a in self.flat_out_avals]
        return sent, sum(_num_bytes(key) for o, key in enumerate(outputs) if o not in staying)


def _num_bytes(key: AvalKey) -> int:
    return int(np.prod(key[0], dtype=np.int64)) * np.dtype(key[1]).itemsize


def _is_traced(arrays: Sequence[Any]) -> bool:
    return any(isinstance(x, jax.core.Tracer) for x in arrays)


class _Stage:
    """What Lowered, Compiled and Loaded tell of their arguments."""

    def __init__(self, traced: Traced) -> None:
        self.traced = traced

    @property
    def in_tree(self) -> Any:
        """Structure of (args, kwargs)."""
        return self.traced.in_tree

    @property
    def out_tree(self) -> Any:
        """Structure of the result."""
        return self.traced.out_tree

    @property
    def in_avals(self) -> Any:
        """Arguments as (args, kwargs) of ShapeDtypeStructs."""
        return self.traced.in_avals

    @property
    def args_info(self) -> Any:
        """Arguments as (args, kwargs) of ArgInfo."""
        return self.traced.args_info

    @property
    def out_info(self) -> Any:
        """Results as a tree of ShapeDtypeStructs."""
        return self.traced.out_info


class Lowered(_Stage):
    """A function as a `Graph`: whole-tensor operations of the LPU, numerics settled."""

    def __init__(self, traced: Traced, graph: Graph) -> None:
        """Keeps the trace and its graph."""
        super().__init__(traced)
        self.graph = graph

    def as_text(self, dialect: str | None = None) -> str:
        """The graph ("lpu", the default) or the trace it came from ("jaxpr") as text."""
        if dialect in (None, "lpu"):
            return as_text(self.graph)
        if dialect == "jaxpr":
            return str(self.traced.jaxpr)
        raise ValueError(f"dialect {dialect!r} is unknown; use 'lpu' or 'jaxpr'")

    def cost_analysis(self) -> dict[str, float]:
        """Floating-point operations and bytes of operands and results, before anything is scheduled."""
        flops, size = _work(self.graph)
        return {"flops": float(flops), "bytes accessed": float(size)}

    def compile(self) -> Compiled:
        """Schedules every instruction.

        Raises:
          SramOverflowError: the values do not fit into the chip.
        """
        return self._compiled

    @functools.cached_property
    def parts(self) -> tuple[Graph, Graph]:
        """(resident arguments -> what SRAM keeps of them; the other arguments and that -> results)."""
        positions = self.traced.resident_inputs
        hoisted = hoist_resident(self.graph, frozenset(self.graph.inputs[i] for i in positions))
        return split_resident(hoisted, frozenset(hoisted.inputs[i] for i in positions))

    @functools.cached_property
    def _donated(self) -> dict[int, int]:
        """Output -> input of the second part whose place it takes."""
        place = {position: i for i, position in enumerate(self.traced.moving_inputs)}
        return {output: place[i] for output, i in self.traced.donated.items()}

    @functools.cached_property
    def edges(self) -> Edges:
        """The second part as the chip runs it, and how the host lays out what goes in and comes out."""
        return split_edges(self.parts[1], frozenset(self._donated.values()), frozenset(self._donated))

    @functools.cached_property
    def run_prologue(self) -> Callable[..., list[Any]]:
        """Resident inputs, large closed-over arrays first -> what is kept of them in SRAM."""
        return jax.jit(lambda *weights: execute(self.parts[0], weights))

    def load(self, *resident: Any) -> Loaded:
        """Lays out the resident arguments once, in the order of resident_argnums; donated ones are passed per call.

        Raises:
          ArgumentMismatchError: other structure, shapes or dtypes than those of lowering.
          NonFiniteWeightError: a weight is NaN or infinite.
        """
        return Loaded(self, resident)

    @functools.cached_property
    def _compiled(self) -> Compiled:
        from lpu_jax.lowering.pipeline import compile_graph  # takes longer to import than a plain call to run

        options = self.traced.options
        num_orders = arguments_of.EFFORTS[options.effort]
        compiled = compile_graph(self.edges.graph, options.chip, donated=self._donated, num_orders=num_orders)
        return Compiled(self, compiled)

    @functools.cached_property
    def _function(self) -> Callable[..., list[Any]]:
        call = GraphCall(self.graph, self.traced.call_avals, self.traced.fun_name)
        return with_derivative(call, jax_core.jaxpr_as_fun(self.traced.jaxpr))

    @functools.cached_property
    def _jitted(self) -> Callable[..., list[Any]]:
        return jax.jit(self._function)

    @functools.cached_property
    def _jitted_and_donating(self) -> Callable[..., list[Any]]:
        return jax.jit(self._function, donate_argnums=tuple(sorted(self.traced.donated.values())))

    def call_flat(self, leaves: Sequence[Any]) -> list[Any]:
        """Results for the leaves of the arguments, by the vectorised executor."""
        inputs = (*self.traced.captured, *leaves)
        if not self.traced.donated or _is_traced(inputs):
            return self._jitted(*inputs)
        arguments_of.check_not_deleted(leaves, self.traced.roles)
        return self._jitted_and_donating(*inputs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryStats:
    """Bytes that a program needs, under the names of jax.stages, and its SRAM.

    Attributes:
      sram_bytes: most SRAM in use at one time.
      sram_capacity_bytes: SRAM that programs may use.
      sram_fragmentation: share of words without a value between the first and the last one in use of every bank, when
        most SRAM is in use.
      memory_map: (name, hemisphere, bytes, slices) of every storage.
    """

    argument_size_in_bytes: int
    output_size_in_bytes: int
    alias_size_in_bytes: int
    temp_size_in_bytes: int
    generated_code_size_in_bytes: int
    peak_memory_in_bytes: int
    sram_bytes: int
    sram_capacity_bytes: int
    sram_fragmentation: float
    memory_map: tuple[tuple[str, str, int, tuple[int, ...]], ...]


class Compiled(_Stage):
    """A function as a `Program`; calling it runs the vectorised executor, `simulate` runs the machine."""

    def __init__(self, lowered: Lowered, compiled_graph: CompiledGraph) -> None:
        """Keeps the stages before."""
        super().__init__(lowered.traced)
        self.lowered = lowered
        self.compiled_graph = compiled_graph

    @property
    def program(self) -> Program:
        """Every instruction with its cycle."""
        return self.compiled_graph.program

    @property
    def cycles(self) -> int:
        """Cycles of one run."""
        return self.compiled_graph.cycles

    def as_text(self, dialect: str | None = None) -> str:
        """The program as assembly text, or an earlier stage: "tiles", "places" or "schedule"."""
        from lpu_jax.lowering import printing  # as heavy as the compiler, see `Lowered._compiled`

        if dialect in (None, "assembly"):
            return to_text(self.program)
        if dialect == "tiles":
            return printing.tiles_text(self.compiled_graph.tile_graph)
        if dialect == "places":
            return printing.allocated_text(self.compiled_graph.allocated)
        if dialect == "schedule":
            return printing.schedule_text(self.compiled_graph.schedule)
        raise ValueError(f"dialect {dialect!r} is unknown; use 'assembly', 'tiles', 'places' or 'schedule'")

    def cost_analysis(self) -> dict[str, Any]:
        """One flat dict: cycles, bounds (`resource_bound_<unit>`), `utilization_<unit>`, JAX's "flops" and the like."""
        costs = dict(self.compiled_graph.cost_analysis(self.traced.moved_bytes()))
        utilization: Any = costs.pop("utilization", {})
        bounds: Any = costs.pop("resource_bounds", {})
        costs |= {f"resource_bound_{unit}": cycles for unit, cycles in bounds.items()}
        costs |= {f"utilization_{unit.lower()}": float(share) for unit, share in utilization.items()}
        return {**costs, **self.lowered.cost_analysis()}

    def memory_analysis(self) -> MemoryStats:
        """Bytes of arguments, results, code and SRAM."""
        traced, program = self.traced, self.program
        captured = [(np.shape(c), c.dtype, False) for c in traced.captured]
        aliased = [traced.keys[i - len(traced.captured)] for i in traced.donated.values()]
        results = [(a.shape, a.dtype, False) for a in traced.flat_out_avals]
        sizes = [sum(map(_num_bytes, group)) for group in ([*captured, *traced.keys], results, aliased)]
        sram = self.compiled_graph.sram_used_bytes
        fragmentation = self.compiled_graph.memory_use.fragmentation
        columns = (program.cycle, program.queue, program.opcode, program.count, program.interval, program.operands)
        return MemoryStats(
            argument_size_in_bytes=sizes[0],
            output_size_in_bytes=sizes[1],
            alias_size_in_bytes=sizes[2],
            temp_size_in_bytes=max(0, sram - sizes[0] - sizes[1] + sizes[2]),
            generated_code_size_in_bytes=sum(column.nbytes for column in columns),
            peak_memory_in_bytes=sram,
            sram_bytes=sram,
            sram_capacity_bytes=traced.options.chip.usable_sram_bytes,
            sram_fragmentation=fragmentation,
            memory_map=self.memory_map(),
        )

    def memory_map(self) -> tuple[tuple[str, str, int, tuple[int, ...]], ...]:
        """(name, hemisphere, bytes, slices) of every storage, named by the argument that it holds."""
        names = _input_labels(self.lowered)
        labels = {f"%{v}": name for v, name in zip(self.compiled_graph.graph.inputs, names, strict=True)}
        placed = self.compiled_graph.allocated.places
        used = (
            s for s, place in zip(self.compiled_graph.tile_graph.storages, placed, strict=True) if place is not None
        )
        return tuple(
            (labels.get(name, name) if storage.resident else "temporaries", side, size, slices)
            for storage, (name, side, size, slices) in zip(used, self.compiled_graph.memory_map(), strict=True)
        )

    def report(self) -> Report:
        """Cycles, bounds, utilisation, SRAM and PCIe of one run."""
        from lpu_jax.report import make_report

        return make_report(self)

    def write_trace(self, path: str | os.PathLike[str]) -> None:
        """Writes the program as a Perfetto trace: every instruction on its queue, see `lpu_jax.trace`.

        Raises:
          ImportError: the package `perfetto` is not installed.
        """
        from lpu_jax.trace import write_trace

        write_trace(self, path)

    def _leaves(self, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
        leaves, tree = jax.tree.flatten((args, kwargs))
        traced = self.traced
        _check_tree(tree, traced.in_tree, traced.fun_name)
        keys = [arguments_of.aval_key(leaf) for leaf in leaves]
        arguments_of.check_same(keys, traced.keys, traced.roles)
        arguments_of.check_not_deleted(leaves, traced.roles)
        return leaves

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Results by the vectorised executor; static arguments are left out, as in jax.stages.Compiled.

        Raises:
          ArgumentMismatchError: other structure, shapes or dtypes than those of compilation.
        """
        return jax.tree.unflatten(self.out_tree, self.lowered.call_flat(self._leaves(args, kwargs)))

    call = __call__

    def simulate(self, *args: Any, **kwargs: Any) -> tuple[Any, int]:
        """Runs the program on the machine: (results, cycles). Slow: thousands of cycles a second."""
        traced = self.traced
        inputs = [*traced.captured, *self._leaves(args, kwargs)]
        dtypes = [v.aval.dtype for v in traced.jaxpr.jaxpr.invars]
        prepared = self.lowered.run_prologue(*(inputs[i] for i in traced.resident_inputs))
        arguments = [np.asarray(inputs[i]).astype(dtypes[i]) for i in traced.moving_inputs]
        edges = self.lowered.edges
        outputs, cycles = self.compiled_graph.simulate(edges.enter([*arguments, *map(np.asarray, prepared)]))
        results = [
            jnp.asarray(x, aval.dtype) for x, aval in zip(edges.leave(outputs), traced.flat_out_avals, strict=True)
        ]
        return jax.tree.unflatten(self.out_tree, results), cycles

    def load(self, *resident: Any) -> Loaded:
        """As `Lowered.load`."""
        return self.lowered.load(*resident)


def _input_labels(lowered: Lowered) -> list[str]:
    """For every input of the program's graph the argument that it is or was made of."""
    traced, prologue = lowered.traced, lowered.parts[0]
    names = [f"closed-over array {i}" for i in range(len(traced.captured))] + [role.name for role in traced.roles]
    made_of = {v: names[i] for v, i in zip(prologue.inputs, traced.resident_inputs, strict=True)}
    for equation in prologue.equations:
        sources = [made_of[x] for x in equation.operands if isinstance(x, int) and x in made_of]
        made_of |= dict.fromkeys(equation.results, sources[0] if sources else "constant")
    moving = [names[i] for i in traced.moving_inputs]
    return [*moving, *(made_of.get(v, "constant") for v in prologue.outputs)]


def _check_tree(given: Any, expected: Any, fun_name: str) -> None:
    if given != expected:
        raise arguments_of.ArgumentMismatchError(
            f"{fun_name} was compiled for arguments of the structure {expected}, got {given}. Compile again for them."
        )


class Loaded(_Stage):
    """A program with its resident arguments in place; call it with the others."""

    def __init__(self, lowered: Lowered, resident: Sequence[Any]) -> None:
        """Checks and lays out the resident arguments."""
        super().__init__(lowered.traced)
        self.lowered = lowered
        traced = self.traced
        slots = jax.tree.unflatten(traced.in_tree, range(len(traced.roles)))
        self._is_loaded = [r.is_resident and not r.is_donated for r in traced.roles]
        loaded_args = [a for a in slots[0] if self._slot_is_loaded(a)] + [
            slots[1][k] for k in sorted(slots[1]) if self._slot_is_loaded(slots[1][k])
        ]
        self._check_count(len(resident), len(loaded_args))
        weights, tree = jax.tree.flatten(tuple(resident))
        _check_tree(tree, jax.tree.structure(tuple(loaded_args)), f"the resident part of {traced.fun_name}")
        order = jax.tree.leaves(tuple(loaded_args))
        roles = [traced.roles[i] for i in order]
        arguments_of.check_same([arguments_of.aval_key(w) for w in weights], [traced.keys[i] for i in order], roles)
        arguments_of.check_not_deleted(weights, roles)
        if not _is_traced(weights):
            arguments_of.check_finite([*weights], roles)
        self._weight_of = dict(zip(order, weights, strict=True))
        self._weights = (*traced.captured, *(self._weight_of[i] for i in sorted(order)))
        self._prepared = () if _is_traced(self._weights) else self._prepare()
        moving_slots = (
            tuple(a for a in slots[0] if not self._slot_is_loaded(a)),
            {k: a for k, a in slots[1].items() if not self._slot_is_loaded(a)},
        )
        self._moving_order, self._moving_tree = jax.tree.flatten(moving_slots)
        self._moving_roles = [traced.roles[i] for i in self._moving_order]
        self._moving_keys = [traced.keys[i] for i in self._moving_order]

    def _prepare(self) -> tuple[Any, ...]:
        """What the program finds in SRAM, in the form that the executor multiplies fastest."""
        main = self.lowered.parts[1]
        values = main.inputs[len(self.traced.moving_inputs) :]
        arrays = dict(zip(values, self.lowered.run_prologue(*self._weights), strict=True))
        chosen = {v: np.asarray(arrays[v]) for v in prepared_inputs(main) if v in arrays}
        arrays.update(prepare(main, chosen))
        return tuple(arrays[v] for v in values)

    def _slot_is_loaded(self, slot: Any) -> bool:
        leaves = jax.tree.leaves(slot)
        return bool(leaves) and all(self._is_loaded[i] for i in leaves)

    def _check_count(self, given: int, expected: int) -> None:
        if given != expected:
            raise arguments_of.ArgumentMismatchError(
                f"{self.traced.fun_name} has {expected} resident arguments to load, got {given}. "
                "Name them in resident_argnums and pass them in that order, without the donated ones."
            )

    @functools.cached_property
    def _jitted(self) -> Callable[..., list[Any]]:
        """Inputs: the prepared weights as one tuple, then the other arguments."""
        traced = self.traced
        call = GraphCall(self.lowered.parts[1], traced.call_avals, traced.fun_name)
        place = {position: 1 + i for i, position in enumerate(traced.moving_inputs)}
        return jax.jit(
            lambda weights, *moving: lpu_call_p.bind(*moving, *weights, call=call),
            donate_argnums=tuple(sorted(place[i] for i in traced.donated.values())),
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Results by the vectorised executor; resident arguments that were loaded are left out.

        Raises:
          ArgumentMismatchError: other structure, shapes or dtypes than those of compilation.
          DonatedArgumentError: an array that an earlier call consumed.
        """
        leaves, tree = jax.tree.flatten((args, kwargs))
        _check_tree(tree, self._moving_tree, self.traced.fun_name)
        arguments_of.check_same([arguments_of.aval_key(leaf) for leaf in leaves], self._moving_keys, self._moving_roles)
        arguments_of.check_not_deleted(leaves, self._moving_roles)
        if _is_traced(leaves) or _is_traced(self._weights):
            by_leaf = {**self._weight_of, **dict(zip(self._moving_order, leaves, strict=True))}
            results = self.lowered.call_flat([by_leaf[i] for i in range(len(by_leaf))])
        else:
            typed = [_typed(leaf, key) for leaf, key in zip(leaves, self._moving_keys, strict=True)]
            with jax.enable_x64(True):  # prepared weights may be float64
                results = self._jitted(self._prepared, *typed)
        return jax.tree.unflatten(self.out_tree, results)


def _typed(leaf: Any, key: AvalKey) -> Any:
    """A Python number as an array, before 64-bit types are allowed."""
    return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf, key[1])


def _work(graph: GraphLike) -> tuple[int, int]:
    """(operations, bytes of operands and results) of a graph; a multiply-accumulate is two operations."""
    flops = size = 0
    for equation in graph.equations:
        operands = [graph.avals[x] for x in equation.operands if isinstance(x, int)]
        results = [graph.avals[x] for x in equation.results]
        op = equation.op
        if isinstance(op, Scan):
            body_flops, body_size = _work(op.body)
            flops += op.num_iterations * body_flops
            size += op.num_iterations * body_size
            continue
        size += sum(_num_bytes((a.shape, a.dtype, False)) for a in (*operands, *results))
        if isinstance(op, MatMul):
            flops += 2 * int(np.prod(results[0].shape, dtype=np.int64)) * operands[0].shape[-1]
        elif isinstance(op, Elementwise | LaneReduce):
            flops += int(np.prod((operands or results)[0].shape, dtype=np.int64))
    return flops, size
