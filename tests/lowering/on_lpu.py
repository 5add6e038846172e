"""Runs a function in the LPU's arithmetic: traced, lowered and executed."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from helpers import assert_agrees, jitted

from lpu_jax.lowering.emit import CARRIED
from lpu_jax.lowering.ir import Graph
from lpu_jax.lowering.lower import lower_jaxpr
from lpu_jax.precision import as_policy
from lpu_jax.runtime.chip import TINY as tiny
from lpu_jax.runtime.execute import execute


def run_on_lpu(fun: Callable[..., Any], *args: Any, precision: str = "fp16") -> Any:
    """Results of fun as NumPy arrays, in its own structure."""
    leaves, structure = jax.tree.flatten(args)
    traced = jax.make_jaxpr(lambda *flat: fun(*jax.tree.unflatten(structure, flat)), return_shape=True)
    jaxpr, shapes = traced(*leaves)
    graph = lower_jaxpr(jaxpr, precision=as_policy(precision))
    results = [np.asarray(r) for r in execute(graph, leaves)]
    for result, value in zip(results, graph.outputs, strict=True):
        assert (result.shape, str(result.dtype)) == (graph.avals[value].shape, graph.avals[value].dtype)
    dtypes = [aval.dtype for aval in jaxpr.out_avals]
    results = [r.astype(d) if str(d) in CARRIED else r for r, d in zip(results, dtypes, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(shapes), results)


def lower(fun: Callable[..., Any], *args: Any, precision: str = "fp16") -> Graph:
    """The graph of fun."""
    return lower_jaxpr(jax.make_jaxpr(fun)(*args), precision=as_policy(precision))


def assert_machine_agrees(fun: Callable[..., Any], *args: Any, precision: str = "highest") -> None:
    """The machine gives the executor's bits in the predicted cycles, on the smallest chip."""
    graph = lower(fun, *args, precision=precision)
    held = [np.asarray(x).astype(graph.avals[v].dtype) for x, v in zip(args, graph.inputs, strict=True)]
    assert_agrees(graph, tiny, held, model=jitted)
