"""`trace` and `Traced`: a function as JAX's own trace, for the shapes of one call.

A `Traced` has one meaning that all later stages keep: the values of the LPU's arithmetic, the derivative of the user's
function. Inputs of its jaxpr are first the large arrays that the function closed over, then the arguments' leaves.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.extend import core as jax_core

from lpu_jax.arguments import ArgInfo, Aval, AvalKey, FlatCall, Leaf, Options, check_avals, enters_sram, num_bytes
from lpu_jax.lowering import _jax_compat as compat
from lpu_jax.lowering.lower import lower_jaxpr
from lpu_jax.precision import Recorder

if TYPE_CHECKING:
    from lpu_jax.stages import Lowered

_MAX_EMBEDDED_ELEMENTS = 65_536
"""Closed-over arrays up to this size are constants of the program, larger ones are resident inputs."""


def trace(
    fun: Callable[..., Any], call: FlatCall, roles: tuple[Leaf, ...], keys: tuple[AvalKey, ...], options: Options
) -> Traced:
    """Traces a function for the shapes of a call.

    Raises:
      UnsupportedInputError: an argument that no program can take.
    """
    check_avals(keys, roles, options.fallback)
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
        from lpu_jax.stages import Lowered  # which needs this module

        first = len(self.captured)
        recorder = Recorder(self.options.precision)
        graph = lower_jaxpr(
            self.jaxpr,
            precision=recorder,
            resident=self.resident_inputs,
            names={first + i: role.path for i, role in enumerate(self.roles)},
            fallback=self.options.fallback,
            max_trip_count=self.options.max_trip_count,
        )
        sites = tuple(recorder.sites)
        self.options.precision.check_used([site for site, _ in sites])
        return Lowered(self, graph, sites)

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
        used = compat.used_inputs(self.jaxpr)[first:]
        sent = sum(
            num_bytes(key)
            for key, role, is_used in zip(self.keys, self.roles, used, strict=True)
            if not role.is_resident and enters_sram(key) and (is_used or self.options.keep_unused)
        )
        outputs = [(a.shape, a.dtype, False) for a in self.flat_out_avals]
        return sent, sum(num_bytes(key) for o, key in enumerate(outputs) if o not in staying and enters_sram(key))
