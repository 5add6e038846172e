"""How a call is taken apart: static arguments, the leaves of the others, their names, and what is refused."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from lpu_jax.lowering import _jax_compat as compat
from lpu_jax.lowering.emit import TRACED_DTYPES
from lpu_jax.lowering.lower import MAX_TRIP_COUNT
from lpu_jax.lowering.precision import weight_path
from lpu_jax.precision import Policy
from lpu_jax.runtime.accumulation import ACCUMULATIONS
from lpu_jax.runtime.chip import CHIP_ACCUMULATIONS, ChipSpec
from lpu_jax.runtime.errors import LpuError, NumberFormatError, UnsupportedInputError
from lpu_jax.runtime.execute import Mode

_REFUSED = frozenset(("float64", "complex64", "complex128"))
_WAY_OUT = {
    "float64": "Pass float32, for example x.astype(np.float32).",
    "complex64": "Pass real and imaginary parts as two float32 arrays.",
    "complex128": "Pass real and imaginary parts as two float32 arrays.",
}

Aval = jax.ShapeDtypeStruct

EFFORTS: Mapping[str, int] = MappingProxyType({"default": 1, "high": 64})
"""Orders that the scheduler tries for every block of a program, by the name of the effort."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What `lpu` was asked for; argument numbers count the parameters of the user's function.

    Invariant: static_argnums is disjoint from resident_argnums and donate_argnums.
    """

    chip: ChipSpec
    precision: Policy
    effort: str = "default"
    fallback: str | None = None
    max_trip_count: int = MAX_TRIP_COUNT
    keep_unused: bool = False
    accumulation: str = "exact"
    resident_argnums: tuple[int, ...] = ()
    donate_argnums: tuple[int, ...] = ()
    static_argnums: tuple[int, ...] = ()
    static_argnames: tuple[str, ...] = ()

    @property
    def mode(self) -> Mode:
        """How the fast executor accumulates."""
        return Mode(self.accumulation, self.chip.num_mxm_rows)


def accumulating(chip: ChipSpec, accumulation: str | None) -> ChipSpec:
    """The chip in a mode of accumulation; float32 is no mode of a chip and leaves it as it is.

    Raises:
      ValueError: an unknown mode.
    """
    if accumulation not in (None, *ACCUMULATIONS):
        raise ValueError(f"accumulation={accumulation!r} is unknown; use one of {ACCUMULATIONS}")
    return dataclasses.replace(chip, accumulation=accumulation) if accumulation in CHIP_ACCUMULATIONS else chip


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlatCall:
    """The arguments of one call.

    Attributes:
      statics: (position or name, value) of static arguments.
      positions: parameter numbers of the positional arguments that are not static.
      in_tree: structure of (positional arguments, keyword arguments), static ones left out.
      leaves: their arrays, in order.
    """

    statics: tuple[tuple[int | str, Any], ...]
    positions: tuple[int, ...]
    in_tree: Any
    leaves: list[Any]

    def join(self, leaves: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
        """The user's positional and keyword arguments with other leaves in them."""
        dynamic, kwargs = jax.tree.unflatten(self.in_tree, leaves)
        placed: dict[int, Any] = dict(zip(self.positions, dynamic, strict=True))
        placed |= {key: value for key, value in self.statics if isinstance(key, int)}
        named = {key: value for key, value in self.statics if isinstance(key, str)}
        return [placed[i] for i in range(len(placed))], {**kwargs, **named}


class CallSignature:
    """The user's parameter names, to know which argument is meant however it is passed."""

    def __init__(self, fun: Callable[..., Any], options: Options) -> None:
        """Reads the signature; raises ValueError for options that do not fit it."""
        try:
            parameters = tuple(inspect.signature(fun).parameters.values())
        except (TypeError, ValueError):
            parameters = ()
        by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        self.names = tuple(p.name for p in parameters if p.kind in by_position)
        self.variadic = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), None)
        is_known = bool(parameters) and self.variadic is None
        self.fallback = options.fallback
        self.fun_name = getattr(fun, "__name__", type(fun).__name__)
        self._static = self._numbers("static_argnums", options.static_argnums, is_known)
        self._static |= {self.names.index(name) for name in options.static_argnames if name in self.names}
        self._resident = self._numbers("resident_argnums", options.resident_argnums, is_known)
        self._donated = self._numbers("donate_argnums", options.donate_argnums, is_known)
        if both := self._static & (self._resident | self._donated):
            raise ValueError(f"argument {min(both)} of {self.fun_name} is static: it cannot be resident or donated too")
        known = {p.name for p in parameters}
        has_kwargs = any(p.kind is p.VAR_KEYWORD for p in parameters)
        if parameters and not has_kwargs and (unknown := set(options.static_argnames) - known):
            raise ValueError(
                f"static_argnames={sorted(unknown)} are not parameters of {self.fun_name}: {sorted(known)}"
            )
        self._static_names = set(options.static_argnames) | {self.names[i] for i in self._static if i < len(self.names)}

    def _numbers(self, option: str, argnums: Sequence[int], is_known: bool) -> set[int]:
        count = len(self.names)
        numbers = {i + count if i < 0 else i for i in argnums}
        if wrong := [i for i in numbers if i < 0 or (is_known and i >= count)]:
            raise ValueError(
                f"{option}={tuple(argnums)}: {self.fun_name} has {count} parameters, not number {wrong[0]}"
            )
        return numbers

    def flatten(self, args: Sequence[Any], kwargs: dict[str, Any]) -> FlatCall:
        """Takes a call apart; raises TypeError for a static argument without a hash."""
        positions = tuple(i for i in range(len(args)) if i not in self._static)
        statics: list[tuple[int | str, Any]] = [(i, args[i]) for i in range(len(args)) if i in self._static]
        statics += [(name, value) for name, value in sorted(kwargs.items()) if name in self._static_names]
        for key, value in statics:
            try:
                hash(value)
            except TypeError as error:
                raise TypeError(f"static argument {key} of {self.fun_name} needs a hash, got {value!r}") from error
        dynamic = {name: value for name, value in kwargs.items() if name not in self._static_names}
        leaves, in_tree = jax.tree.flatten((tuple(args[i] for i in positions), dynamic))
        return FlatCall(statics=tuple(statics), positions=positions, in_tree=in_tree, leaves=leaves)

    def roles(self, call: FlatCall) -> tuple[Leaf, ...]:
        """Name and role of every leaf of a call."""
        marked = jax.tree.unflatten(call.in_tree, range(len(call.leaves)))
        roles = []
        for path, _ in jax.tree_util.tree_flatten_with_path(marked)[0]:
            is_keyword = path[0].idx == 1
            key = path[1].key if is_keyword else call.positions[path[1].idx]
            number = self.names.index(key) if is_keyword and key in self.names else key
            roles.append(
                Leaf(
                    name=self._argument_name(key) + jax.tree_util.keystr(path[2:]),
                    argument=key,
                    is_resident=number in self._resident,
                    is_donated=number in self._donated,
                )
            )
        return tuple(roles)

    def _argument_name(self, key: int | str) -> str:
        if isinstance(key, str):
            return key
        return self.names[key] if key < len(self.names) else f"{self.variadic or 'args'}[{key - len(self.names)}]"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leaf:
    """One array among the arguments: `params['w']`, the argument it belongs to, and where it lives."""

    name: str
    argument: int | str
    is_resident: bool
    is_donated: bool

    @property
    def path(self) -> str:
        """The name as policies know it: `params/w`."""
        return weight_path(self.name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArgInfo:
    """What a compiled function expects of an argument."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    donated: bool
    resident: bool


AvalKey = tuple[tuple[Any, ...], Any, bool]


def num_bytes(key: AvalKey) -> int:
    """Bytes of an array of this shape and dtype; a random key counts as its words."""
    shape, dtype = key[:2]
    if compat.is_extended_dtype(dtype):
        shape, dtype = (*shape, *compat.key_shape(dtype)), np.uint32
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize


def enters_sram(key: AvalKey) -> bool:
    """Whether the chip can hold such an array."""
    return compat.is_extended_dtype(key[1]) or str(key[1]) in TRACED_DTYPES


def aval_key(leaf: Any, fallback: str | None = None) -> AvalKey:
    """(shape, dtype, weak type) of an array, a Python number or a ShapeDtypeStruct.

    Raises:
      UnsupportedInputError: float64 or complex, which only a fallback can take.
      TypeError: no array at all.
    """
    dtype = getattr(leaf, "dtype", None)
    if fallback is None and dtype is not None and str(dtype) in _REFUSED:
        raise _refused(leaf.dtype, leaf.shape)
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return (tuple(leaf.shape), leaf.dtype, bool(leaf.weak_type))
    aval: Any = jax.typeof(leaf)
    return (aval.shape, aval.dtype, bool(getattr(aval, "weak_type", False)))


def aval_keys(call: FlatCall, signature: CallSignature) -> tuple[AvalKey, ...]:
    """Keys of all leaves; errors name the argument."""
    try:
        return tuple(aval_key(leaf, signature.fallback) for leaf in call.leaves)
    except (UnsupportedInputError, TypeError):
        pairs = zip(call.leaves, signature.roles(call), strict=True)
        return tuple(_named_key(leaf, role.name, signature.fallback) for leaf, role in pairs)


def _named_key(leaf: Any, name: str, fallback: str | None) -> AvalKey:
    try:
        return aval_key(leaf, fallback)
    except UnsupportedInputError as error:
        raise UnsupportedInputError(f"argument {name}: {error}") from None
    except TypeError as error:
        raise TypeError(
            f"argument {name} is {leaf!r} of type {type(leaf).__name__}, not an array. "
            "Name it in static_argnums or static_argnames if it is a constant."
        ) from error


def _refused(dtype: Any, shape: Sequence[Any]) -> UnsupportedInputError:
    way_out = _WAY_OUT.get(str(dtype), f"Convert it to one of {', '.join(TRACED_DTYPES)}.")
    size = ",".join(map(str, shape))
    return UnsupportedInputError(f"{dtype}[{size}] is a dtype that the LPU does not have. {way_out}")


def check_avals(keys: Sequence[AvalKey], roles: Sequence[Leaf], fallback: str | None = None) -> None:
    """Raises UnsupportedInputError for an argument that no program can take."""
    for (shape, dtype, weak), role in zip(keys, roles, strict=True):
        if fallback is None and not enters_sram((shape, dtype, weak)):
            raise UnsupportedInputError(f"argument {role.name}: {_refused(dtype, shape)}")
        if not all(isinstance(n, int) for n in shape):
            raise UnsupportedInputError(
                f"argument {role.name} has the dynamic shape {tuple(map(str, shape))}; every size of an LPU program is "
                "known at compile time. Trace it with fixed sizes, one program for each."
            )


def is_traced(arrays: Sequence[Any]) -> bool:
    """Whether any of the arrays stands for one that a transformation around the call will have."""
    return any(isinstance(x, jax.core.Tracer) for x in arrays)


def check_not_deleted(leaves: Sequence[Any], roles: Sequence[Leaf]) -> None:
    """Raises LpuError for an array whose buffer went to an earlier call."""
    for leaf, role in zip(leaves, roles, strict=True):
        if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer) and leaf.is_deleted():
            raise DonatedArgumentError(
                f"argument {role.name} {leaf.dtype}{list(leaf.shape)} was donated to an earlier call and its buffer is "
                "gone. Pass the array that that call returned, or leave the argument out of donate_argnums."
            )


def check_accumulation(options: Options) -> None:
    """Raises NumberFormatError for a mode that only XLA has."""
    if options.accumulation not in CHIP_ACCUMULATIONS:
        raise NumberFormatError(
            f"accumulation={options.accumulation!r} is XLA's own order of summation, which no chip has; simulate with "
            f"one of {CHIP_ACCUMULATIONS}. Cycles are the same in every mode."
        )


class DonatedArgumentError(LpuError, RuntimeError):
    """A call got an array that an earlier call has consumed."""


class NonFiniteWeightError(LpuError, ValueError):
    """A resident argument holds NaN or infinity."""


class ArgumentMismatchError(LpuError, TypeError):
    """A compiled function got other structure, shapes or dtypes than it was compiled for."""


def check_finite(leaves: Sequence[Any], roles: Sequence[Leaf]) -> None:
    """Raises NonFiniteWeightError that names the first resident argument with a NaN or an infinity in it."""
    for leaf, role in zip(leaves, roles, strict=True):
        array = np.asarray(leaf)
        if array.dtype.kind != "f" or np.isfinite(array).all():
            continue
        bad = ~np.isfinite(array)
        first = tuple(int(i) for i in np.unravel_index(int(bad.argmax()), bad.shape))
        raise NonFiniteWeightError(
            f"resident argument {role.name} {array.dtype}{list(array.shape)} has {int(bad.sum())} values that are not "
            f"finite, the first is {array[first]} at {list(first)}. Check where these weights came from."
        )


def describe(key: AvalKey) -> str:
    """float32[2,3] of a key."""
    shape, dtype, _ = key
    return f"{dtype}[{','.join(map(str, shape))}]"


def check_tree(given: Any, expected: Any, fun_name: str) -> None:
    """Raises ArgumentMismatchError if arguments have another structure than those of compilation."""
    if given != expected:
        raise ArgumentMismatchError(
            f"{fun_name} was compiled for arguments of the structure {expected}, got {given}. Compile again for them."
        )


def check_same(given: Sequence[AvalKey], expected: Sequence[AvalKey], roles: Sequence[Leaf]) -> None:
    """Raises ArgumentMismatchError if shapes or dtypes are not those of compilation."""
    for now, then, role in zip(given, expected, roles, strict=True):
        if now[0] != then[0] or now[1] != then[1]:
            kind = "resident argument" if role.is_resident else "argument"
            raise ArgumentMismatchError(
                f"{kind} {role.name} is {describe(now)}, but the program was compiled for {describe(then)}. "
                "Lower and compile again for the new shape."
            )
