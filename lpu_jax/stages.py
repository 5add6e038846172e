"""The stages of a function, named and shaped as in jax.stages: Traced -> Lowered -> Compiled -> Loaded."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jax_core

from lpu_jax import arguments as arguments_of
from lpu_jax.arguments import check_tree, is_traced
from lpu_jax.call import GraphCall, as_traced, with_derivative, word_dtype, words_of
from lpu_jax.held import function_of
from lpu_jax.loaded import Loaded
from lpu_jax.lowering.edges import Edges, split_edges
from lpu_jax.lowering.hoist import hoist_resident
from lpu_jax.lowering.ir import Graph, as_text
from lpu_jax.lowering.precision import Formats, Site
from lpu_jax.lowering.prune import split_resident
from lpu_jax.memory_stats import MemoryStats, memory_map, memory_stats
from lpu_jax.runtime.assembly import to_text
from lpu_jax.runtime.errors import trip_count_error
from lpu_jax.runtime.execute import execute
from lpu_jax.runtime.ops import loops_of
from lpu_jax.runtime.program import Program
from lpu_jax.runtime.widths import SumWidth, sum_widths
from lpu_jax.stage import Stage
from lpu_jax.tracing import Traced
from lpu_jax.work import work

if TYPE_CHECKING:
    from lpu_jax.lowering.pipeline import CompiledGraph
    from lpu_jax.report import Report


class Lowered(Stage):
    """A function as a `Graph`: whole-tensor operations of the LPU, numerics settled.

    sites: every product and table in the order of the trace, with the formats that the policy gave it.
    """

    def __init__(self, traced: Traced, graph: Graph, sites: tuple[tuple[Site, Formats], ...] = ()) -> None:
        """Keeps the trace, its graph and its sites."""
        super().__init__(traced)
        self.graph, self.sites = graph, sites

    def as_text(self, dialect: str | None = None) -> str:
        """The graph ("lpu", the default) or the trace it came from ("jaxpr") as text."""
        if dialect in (None, "lpu"):
            return as_text(self.graph)
        if dialect == "jaxpr":
            return str(self.traced.jaxpr)
        raise ValueError(f"dialect {dialect!r} is unknown; use 'lpu' or 'jaxpr'")

    def cost_analysis(self) -> dict[str, float]:
        """Floating-point operations and bytes of operands and results, before anything is scheduled."""
        flops, size = work(self.graph)
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
        mode = self.traced.options.mode
        return jax.jit(lambda *weights: execute(self.parts[0], [words_of(w) for w in weights], mode))

    @functools.cached_property
    def held_function(self) -> Callable[..., list[Any]]:
        """The program behind `Held`, whatever its weights are."""
        return function_of(self)

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
        call = GraphCall(self.graph, self.traced.call_avals, self.traced.fun_name, self.traced.options.mode)
        return with_derivative(call, jax_core.jaxpr_as_fun(self.traced.jaxpr))

    @functools.cached_property
    def _jitted(self) -> Callable[..., list[Any]]:
        return jax.jit(self._function)

    @functools.cached_property
    def _jitted_and_donating(self) -> Callable[..., list[Any]]:
        return jax.jit(self._function, donate_argnums=tuple(sorted(self.traced.donated.values())))

    @functools.cached_property
    def _counting(self) -> Callable[..., Any]:
        call = GraphCall(self.graph, self.traced.call_avals, self.traced.fun_name, self.traced.options.mode)
        return jax.jit(call.counted, donate_argnums=tuple(sorted(self.traced.donated.values())))

    def run_counted(self, leaves: Sequence[Any]) -> tuple[Any, tuple[int, ...]]:
        """(results, turns that each loop of unknown length made), a loop before those inside it.

        Raises:
          TripCountError: a loop would have gone on.
        """
        if not self.loops:
            return jax.tree.unflatten(self.out_tree, self.call_flat(leaves)), ()
        results, counts = self._count(leaves)
        return jax.tree.unflatten(self.out_tree, results), tuple(int(n) for n in counts)

    @functools.cached_property
    def loops(self) -> list[tuple[str, int]]:
        """(name, most turns) of every loop of unknown length."""
        return loops_of(self.graph)

    def _count(self, leaves: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        arguments_of.check_not_deleted(leaves, self.traced.roles)
        results, counts, ends = self._counting(*self.traced.captured, *leaves)
        for goes_on, (name, limit) in zip(jax.device_get(ends), self.loops, strict=True):
            if goes_on:
                raise trip_count_error(name, limit)
        return results, counts

    def check_weights(self, leaves: Sequence[Any]) -> None:
        """Raises NonFiniteWeightError for a resident argument with NaN or infinity that its format would hide."""
        if self._has_finite_formats and not is_traced(leaves):
            chosen = [
                (x, role)
                for x, role in zip(leaves, self.traced.roles, strict=True)
                if role.is_resident and not role.is_donated
            ]
            arguments_of.check_finite([x for x, _ in chosen], [role for _, role in chosen])

    @functools.cached_property
    def _has_finite_formats(self) -> bool:
        """Whether a weight is held in integers or blocks, which have no NaN."""
        return any(f.rhs is not None and not f.rhs.exponent_bits and site.weight for site, f in self.sites)

    def call_flat(self, leaves: Sequence[Any]) -> list[Any]:
        """Results for the leaves of the arguments, by the vectorised executor."""
        inputs = (*self.traced.captured, *leaves)
        self.check_weights(leaves)
        if self.loops and not is_traced(inputs):
            return self._count(leaves)[0]
        if not self.traced.donated or is_traced(inputs):
            return self._jitted(*inputs)
        arguments_of.check_not_deleted(leaves, self.traced.roles)
        return self._jitted_and_donating(*inputs)


class Compiled(Stage):
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
        return memory_stats(self)

    def memory_map(self) -> tuple[tuple[str, str, int, tuple[int, ...]], ...]:
        """(name, hemisphere, bytes, slices) of every storage, named by the argument that it holds."""
        return memory_map(self)

    def report(self, trip_counts: Sequence[int] | None = None) -> Report:
        """Cycles, bounds, utilisation, SRAM and PCIe of one run; trip_counts: as `Lowered.run_counted` gives them."""
        from lpu_jax.report import make_report

        return make_report(self, trip_counts)

    def write_trace(self, path: str | os.PathLike[str]) -> None:
        """Writes the program as a Perfetto trace: every instruction on its queue, see `lpu_jax.trace`.

        Raises:
          ImportError: the package `perfetto` is not installed.
        """
        from lpu_jax.trace import write_trace

        write_trace(self, path)

    def write_html(self, path: str | os.PathLike[str]) -> None:
        """Writes the program as one page for a browser: timeline, floor plan, SRAM, modules, assembly."""
        from lpu_jax.page import write_html

        write_html(self, path)

    def _leaves(self, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
        leaves, tree = jax.tree.flatten((args, kwargs))
        traced = self.traced
        check_tree(tree, traced.in_tree, traced.fun_name)
        keys = [arguments_of.aval_key(leaf, traced.options.fallback) for leaf in leaves]
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
        """Runs the program on the machine: (results, cycles). Slow: thousands of cycles a second.

        Raises:
          NumberFormatError: accumulation="float32", which is XLA's and no chip's.
        """
        traced = self.traced
        arguments_of.check_accumulation(traced.options)
        leaves = self._leaves(args, kwargs)
        self.lowered.check_weights(leaves)
        inputs = self._inputs([*traced.captured, *leaves])
        edges = self.lowered.edges
        outputs, cycles = self.compiled_graph.simulate(edges.enter(inputs))
        results = [
            as_traced(jnp.asarray(x), aval) for x, aval in zip(edges.leave(outputs), traced.flat_out_avals, strict=True)
        ]
        return jax.tree.unflatten(self.out_tree, results), cycles

    def _inputs(self, inputs: Sequence[Any]) -> list[np.ndarray]:
        """What lies in SRAM before a run, for all inputs of the jaxpr."""
        traced = self.traced
        dtypes = [v.aval.dtype for v in traced.jaxpr.jaxpr.invars]
        words = [np.asarray(words_of(x)).astype(word_dtype(dtype)) for x, dtype in zip(inputs, dtypes, strict=True)]
        prepared = self.lowered.run_prologue(*(words[i] for i in traced.resident_inputs))
        return [*(words[i] for i in traced.moving_inputs), *map(np.asarray, prepared)]

    def sum_widths(self, leaves: Sequence[Any]) -> tuple[SumWidth, ...]:
        """Bits that lossless sums need, by product, for the leaves of some arguments; none while they are traced."""
        inputs = [*self.traced.captured, *leaves]
        if is_traced(inputs):
            return ()
        return sum_widths(self.lowered.parts[1], self._inputs(inputs), self.traced.options.mode)

    def load(self, *resident: Any) -> Loaded:
        """As `Lowered.load`."""
        return self.lowered.load(*resident)
