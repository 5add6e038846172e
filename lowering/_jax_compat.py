"""Everything of JAX that is private or moves between JAX 0.10 and 0.12: one place to look when a release breaks us."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax._src import array
from jax.extend import core as jax_core
from jax.extend import source_info_util

Jaxpr = jax_core.Jaxpr
Literal = jax_core.Literal
Primitive = jax_core.Primitive

CONCRETE_ARRAY: type = getattr(array, "ArrayImpl", jax.Array)
"""The class of arrays with contents, as opposed to tracers."""


def is_concrete(x: Any) -> bool:
    """Whether x is an array of JAX with contents."""
    return type(x) is CONCRETE_ARRAY


def enable_x64() -> Any:
    """Context in which traced code may use 64-bit types."""
    return jax.enable_x64(True)


def open_jaxpr(jaxpr: Any) -> tuple[Any, tuple[Any, ...]]:
    """(jaxpr, consts) of a ClosedJaxpr, of an open Jaxpr, or of the one class they are from JAX 0.11 on."""
    if not hasattr(jaxpr, "consts"):
        return jaxpr, ()
    return getattr(jaxpr, "jaxpr", jaxpr), tuple(jaxpr.consts)


def is_literal(atom: Any) -> bool:
    """Whether an operand of an equation is a literal."""
    return isinstance(atom, Literal)


def is_extended_dtype(dtype: Any) -> bool:
    """Whether a dtype is one of JAX's own (typed random keys)."""
    return bool(jax.numpy.issubdtype(dtype, jax.dtypes.extended))


def is_key(atom: Any) -> bool:
    """Whether an operand or result of an equation is typed random keys."""
    return hasattr(atom.aval, "dtype") and is_extended_dtype(atom.aval.dtype)


def key_shape(dtype: Any) -> tuple[int, ...]:
    """Shape of the words (uint32) of one typed random key."""
    shape: tuple[int, ...] = dtype._impl.key_shape
    return shape


def key_words(keys: Any) -> Any:
    """The words of an array of typed random keys."""
    return jax.random.key_data(keys)


def source_line(eqn: Any) -> str:
    """The user's file, line and function, e.g. `model.py:61 (block)`; empty if unknown."""
    text = str(source_info_util.summarize(eqn.source_info))
    location, _, function = text.partition(" ")
    if ":" not in location:
        return ""
    location = os.path.basename(location)
    file, line = location.split(":")[:2]
    return f"{file}:{line} {function}".rstrip()


def name_stack(eqn: Any) -> str:
    """Named scopes of an equation, e.g. `Model/block_0/norm`."""
    return str(eqn.source_info.name_stack)


def scan_counts(params: Mapping[str, Any], num_operands: int) -> tuple[int, int]:
    """(number of constants, number of carried values) of a scan with this many operands."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].update(range(num_operands)).unpack()
    return len(list(consts)), len(list(carry))


def argument_name(jaxpr: Any, index: int) -> str:
    """The user's name of an argument, e.g. `params['w']`."""
    info = getattr(jaxpr, "debug_info", None)
    names = getattr(info, "arg_names", None) or ()
    if len(names) == len(jaxpr.invars) and names[index]:
        return str(names[index])
    return f"argument {index}"


def evaluate(eqn: Any, operands: Sequence[Any]) -> list[Any]:
    """The results of one equation on concrete operands, computed now even inside another trace."""
    with jax.ensure_compile_time_eval():
        return bind(eqn, operands)


def bind(eqn: Any, operands: Sequence[Any]) -> list[Any]:
    """The results of one equation on other operands."""
    arrays = [jax.numpy.asarray(x) if isinstance(x, np.ndarray | np.generic) else x for x in operands]
    params = eqn.primitive.get_bind_params(eqn.params)
    if isinstance(params, tuple):  # before JAX 0.9.2: (subfunctions, params)
        subfunctions, params = params
        arrays = [*subfunctions, *arrays]
    results = eqn.primitive.bind(*arrays, **params)
    return list(results) if eqn.primitive.multiple_results else [results]


def key_implementation(dtype: Any) -> Any:
    """What jax.random.wrap_key_data needs to make keys of this dtype."""
    return dtype._impl


def is_ordered(effect: Any) -> bool:
    """Whether an effect must keep its place among others of its kind."""
    return type(effect).__name__.startswith("Ordered")


def function_of(jaxpr: Any, consts: Sequence[Any]) -> Any:
    """An open jaxpr and its constants as a function."""
    return jax_core.jaxpr_as_fun(jax_core.ClosedJaxpr(jaxpr, list(consts)))


def decomposition(primitive: str) -> Any:
    """JAX's own formula of a special function in simpler primitives, None if this release has none."""
    from jax._src.lax import special

    formula = getattr(special, f"{primitive}_impl", None)
    if formula is None or "dtype" not in inspect.signature(formula).parameters:
        return formula
    return functools.partial(formula, dtype=np.dtype(np.float32))


def sample_gamma(words: Any, alphas: Any, log_space: bool) -> Any:
    """JAX's sampler of the gamma distribution, for the words of typed random keys and every alpha."""
    from jax._src import random

    keys = jax.random.wrap_key_data(words, impl="threefry2x32")
    return getattr(random, "core", random)._gamma_impl(keys, alphas, log_space=log_space, use_vmap=True)


def used_inputs(jaxpr: Any) -> list[bool]:
    """For every input of a jaxpr, whether a result or an effect needs it; calls are not looked into."""
    inner, _ = open_jaxpr(jaxpr)
    needed = {atom for atom in inner.outvars if not is_literal(atom)}
    for eqn in reversed(inner.eqns):
        if eqn.effects or any(v in needed for v in eqn.outvars):
            needed.update(atom for atom in eqn.invars if not is_literal(atom))
    return [v in needed for v in inner.invars]


def jaxprs_of(eqn: Any) -> list[Any]:
    """The jaxprs in the parameters of an equation."""
    return list(jax_core.jaxprs_in_params(eqn.params))


def has_effects(jaxpr: Any) -> bool:
    """Whether running a jaxpr does more than compute its results."""
    return bool(open_jaxpr(jaxpr)[0].effects)


def is_threefry_partitionable() -> bool:
    """JAX's setting of how random counters are laid out."""
    return bool(getattr(jax.config, "jax_threefry_partitionable", True))
