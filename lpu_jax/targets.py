"""What the command line profiles: `package.module:function` or `file.py:function`, and its arguments."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from lpu_jax.chips import groqchip1
from lpu_jax.runtime.chip import ChipSpec
from lpu_jax.runtime.errors import LpuError
from lpu_jax.transform import LpuFunction, lpu

_SHAPE = re.compile(r"(?P<dtype>[a-z][a-z0-9_]*)\[(?P<sizes>[\d\s,]*)\]")
_SHORT = {"f": "float", "bf": "bfloat", "i": "int", "u": "uint"}


class TargetError(LpuError, ValueError):
    """A function that the command line named and that cannot be found or called."""


def parse_shape(text: str) -> jax.ShapeDtypeStruct:
    """A shape as JAX prints it: "float32[8,128]", "f32[8,128]", "int32[]".

    Raises:
      TargetError: anything else, or a dtype that JAX does not know.
    """
    found = _SHAPE.fullmatch(text.strip())
    if found is None:
        raise TargetError(f"{text!r} is no shape; write it as float32[8,128], and int32[] for a scalar")
    name = re.sub(r"^(f|bf|i|u)(\d+)$", lambda short: _SHORT[short[1]] + short[2], found["dtype"])
    try:
        dtype = jnp.dtype(name)
    except TypeError as error:
        raise TargetError(f"{text!r}: unknown dtype {found['dtype']!r}; for example float32, bfloat16, int8") from error
    sizes = [size for size in found["sizes"].replace(" ", "").split(",") if size]
    return jax.ShapeDtypeStruct(tuple(map(int, sizes)), dtype)


def find(target: str) -> Any:
    """The object that `package.module:name` or `file.py:name` names; the name may have dots.

    Raises:
      TargetError: there is no such module, file or name, or importing it fails.
    """
    home, colon, name = target.rpartition(":")
    if not colon or not home or not name:
        raise TargetError(f"{target!r} is neither package.module:function nor file.py:function")
    try:
        found = _module(home)
    except TargetError:
        raise
    except Exception as error:
        raise TargetError(f"importing {home!r} failed: {type(error).__name__}: {error}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            known = sorted(key for key, value in vars(found).items() if callable(value) and not key.startswith("_"))
            raise TargetError(
                f"{home!r} has no {name!r}; it has {', '.join(known[:20]) or 'nothing that can be called'}"
            )
        found = getattr(found, part)
    return found


def _module(home: str) -> Any:
    path = Path(home)
    if not home.endswith(".py"):
        if "" not in sys.path and str(Path.cwd()) not in sys.path:  # an installed script does not look here
            sys.path.insert(0, str(Path.cwd()))
        return importlib.import_module(home)
    if not path.is_file():
        raise TargetError(f"there is no file {home!r}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    sys.path.insert(0, str(path.resolve().parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def resolve(
    target: str, shapes: Sequence[str] | None, chip: ChipSpec | None, resident: Sequence[int] = ()
) -> tuple[LpuFunction, tuple[Any, ...], dict[str, Any]]:
    """(function on a chip, arguments, keyword arguments) of what a target names.

    Args:
      target: see `find`. With shapes it is the function. Without, it is a function without parameters that is called
        and returns (function, arguments) or (function, arguments, keyword arguments); arguments may be shapes.
      shapes: one per positional argument, see `parse_shape`; None for none.
      chip: the chip; None takes that of an `lpu` function, and the default one for others.
      resident: arguments that stay in SRAM, for a function that is not an `lpu` function yet.

    Raises:
      TargetError: it cannot be found, or it is not of this form.
    """
    found = find(target)
    if not callable(found):
        raise TargetError(f"{target!r} is a {type(found).__name__}, not a function")
    if shapes is not None:
        return _on_chip(found, chip, resident), tuple(parse_shape(text) for text in shapes), {}
    needed = _needed_parameters(found)
    if needed:
        raise TargetError(
            f"{target!r} takes {', '.join(needed)}: pass --shapes with one shape for each, such as float32[8,128], or "
            "name a function without parameters that returns (function, arguments)"
        )
    made = found() if not isinstance(found, LpuFunction) else None
    if made is None:
        return _on_chip(found, chip, resident), (), {}
    is_pair = (
        isinstance(made, tuple) and len(made) in (2, 3) and callable(made[0]) and isinstance(made[1], tuple | list)
    )
    if not is_pair or (len(made) == 3 and not isinstance(made[2], dict)):
        raise TargetError(
            f"{target!r} returned a {type(made).__name__}; it must return (function, arguments) with a tuple of "
            "arguments, or (function, arguments, keyword arguments)"
        )
    return _on_chip(made[0], chip, resident), tuple(made[1]), dict(made[2]) if len(made) == 3 else {}


def _needed_parameters(function: Callable[..., Any]) -> list[str]:
    inner = function.__wrapped__ if isinstance(function, LpuFunction) else function
    parameters = inspect.signature(inner).parameters.values()
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is inspect.Parameter.empty and p.kind not in optional]


def _on_chip(function: Any, chip: ChipSpec | None, resident: Sequence[int]) -> LpuFunction:
    if isinstance(function, LpuFunction):
        if resident:
            raise TargetError("--resident is for plain functions; this one has its own resident_argnums")
        return function if chip is None else LpuFunction(function.__wrapped__, replace(function.options, chip=chip))
    made: LpuFunction = lpu(function, resident_argnums=tuple(resident), chip=groqchip1 if chip is None else chip)
    return made
