"""`lpu_call`: the primitive that stands for a graph in other JAX traces.

A graph runs on 64-bit types inside, which exist only in a context that the transformations around it know nothing of.
So jit, vmap and scan see one primitive, and its inside is always traced in that context, batched or not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core as jax_core
from jax.interpreters import batching, mlir

from lpu_jax.lowering import _jax_compat as compat
from lpu_jax.runtime.execute import EXACT, Mode, execute, execute_counted
from lpu_jax.runtime.ops import GraphLike, effects_of


def words_of(array: Any) -> Any:
    """An array; the words of typed random keys."""
    dtype = getattr(array, "dtype", None)
    return compat.key_words(array) if dtype is not None and compat.is_extended_dtype(dtype) else array


def word_dtype(dtype: Any) -> Any:
    """The dtype of `words_of` an array of this dtype."""
    return np.dtype(np.uint32) if compat.is_extended_dtype(dtype) else dtype


def as_traced(array: Any, aval: Any) -> Any:
    """A value of a graph in the dtype that the user's function has there."""
    if compat.is_extended_dtype(aval.dtype):
        words = jax.lax.convert_element_type(array, np.uint32)
        return jax.random.wrap_key_data(words, impl=compat.key_implementation(aval.dtype))
    return jax.lax.convert_element_type(array, aval.dtype)


@dataclasses.dataclass(frozen=True)
class GraphCall:
    """results = execute(graph, inputs, mode); `out_avals` as in a jaxpr."""

    graph: GraphLike
    out_avals: tuple[Any, ...]
    name: str
    mode: Mode = EXACT
    in_tree: Any = None  # structure of the inputs, if some are prepared weights

    @property
    def effects(self) -> frozenset[Any]:
        """JAX's effects of the host's calls."""
        return effects_of(self.graph)

    def __call__(self, *inputs: Any) -> list[Any]:
        """Evaluates the graph."""
        results = execute(self.graph, self._held(inputs), self.mode)
        return [as_traced(x, a) for x, a in zip(results, self.out_avals, strict=True)]

    def counted(self, *inputs: Any) -> tuple[list[Any], list[Any], list[Any]]:
        """Results, turns of every loop of unknown length, and whether it would have gone on."""
        results, counts, ends = execute_counted(self.graph, self._held(inputs), self.mode)
        return [as_traced(x, a) for x, a in zip(results, self.out_avals, strict=True)], counts, ends

    def _held(self, inputs: Sequence[Any]) -> list[Any]:
        """The inputs as the graph takes them; weights may be prepared."""
        given = inputs if self.in_tree is None else jax.tree.unflatten(self.in_tree, inputs)
        return [words_of(x) for x in given]

    def __repr__(self) -> str:
        """The user's name of the function."""
        return self.name


@dataclasses.dataclass(frozen=True)
class BatchedCall:
    """vmap of a call: axis in_axes[i] of input i is mapped (None: the same for all), results along axis 0."""

    inner: GraphCall | BatchedCall
    in_axes: tuple[int | None, ...]
    axis_size: int

    @property
    def effects(self) -> frozenset[Any]:
        """JAX's effects of the host's calls."""
        return self.inner.effects

    @property
    def out_avals(self) -> tuple[Any, ...]:
        """Avals of the results."""
        avals = self.inner.out_avals
        return tuple(type(a)((self.axis_size, *a.shape), a.dtype, weak_type=a.weak_type) for a in avals)

    def __call__(self, *inputs: Any) -> list[Any]:
        """Evaluates the graph for every element of the batch at once."""
        with jax.enable_x64(True):
            mapped = jax.vmap(self.inner, in_axes=self.in_axes, axis_size=self.axis_size)
            results: list[Any] = mapped(*inputs)
            return results

    def __repr__(self) -> str:
        """The inner name and the batch."""
        return f"{self.inner!r} x {self.axis_size}"


lpu_call_p = jax_core.Primitive("lpu_call")
lpu_call_p.multiple_results = True


def _lower(ctx: Any, *inputs: Any, call: Callable[..., list[Any]]) -> Any:
    with jax.enable_x64(True):
        return mlir.lower_fun(call, multiple_results=True)(ctx, *inputs)


def _batch(inputs: Sequence[Any], axes: Sequence[Any], *, call: GraphCall | BatchedCall) -> tuple[list[Any], list[int]]:
    in_axes = tuple(None if axis is None else int(axis) for axis in axes)
    size = next(x.shape[axis] for x, axis in zip(inputs, in_axes, strict=True) if axis is not None)
    results = lpu_call_p.bind(*inputs, call=BatchedCall(call, in_axes, size))
    return results, [0] * len(results)


lpu_call_p.def_impl(lambda *inputs, call: call(*inputs))
lpu_call_p.def_effectful_abstract_eval(lambda *avals, call: (list(call.out_avals), set(call.effects)))
mlir.register_lowering(lpu_call_p, _lower)
batching.primitive_batchers[lpu_call_p] = _batch


def with_derivative(call: GraphCall, reference: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    """The call with the derivative of `reference`, a function of the same inputs.

    The executor rounds through integers, whose derivative is zero: rounding is passed straight through.
    """

    @jax.custom_jvp
    def run(*inputs: Any) -> list[Any]:
        results: list[Any] = lpu_call_p.bind(*inputs, call=call)
        return results

    @run.defjvp
    def run_jvp(primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        _, derivative = jax.jvp(reference, tuple(primals), tuple(tangents))
        return run(*primals), derivative

    return run
