"""Short ways from a call to XLA, for calls like earlier ones; all others are taken apart by `LpuFunction`.

1. Without static, resident or donated arguments and for nothing but arrays, the whole call is one `jax.jit`: JAX's own
   cache, keyed by structure, shapes, dtypes and settings, finds the compiled program.
2. Resident arguments are laid out at the first call. As long as the same arrays come again (arrays of JAX do not
   change), only the others are looked at. Where other arrays come at every call, none are laid out any more.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import jax

from lpu_jax import arguments as arguments_of
from lpu_jax.arguments import AvalKey, FlatCall, Options, is_traced
from lpu_jax.held import Held
from lpu_jax.loaded import typed
from lpu_jax.lowering import _jax_compat as compat
from lpu_jax.runtime.errors import LpuError
from lpu_jax.tracing import Traced

NOT_FOUND = object()
"""What a short way gives for a call that it does not know."""
_MAX_KINDS = 2
"""Shapes of calls for which one function keeps resident arguments, each in a form of its own."""


class _ClosedError(Exception):
    """A kind of call turns out to need checks, while it is traced."""


class WholeCalls:
    """Calls of arrays alone, as one jitted function."""

    def __init__(self, call: Callable[..., Any], options: Options) -> None:
        """`call` is the long way; it is traced once for every kind of call."""
        self._call = call
        self._jitted = jax.jit(self._admitted)
        self._is_open = not (
            options.static_argnums or options.static_argnames or options.resident_argnums or options.donate_argnums
        )

    def admit(self, traced: Traced) -> None:
        """Closes this way for a function whose calls need checks, or hold arrays of their own."""
        self._is_open &= not traced.captured and not traced.lower().loops

    def __call__(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Results, or NOT_FOUND."""
        if not self._is_open:
            return NOT_FOUND
        if any(kind is not compat.CONCRETE_ARRAY for kind in {*map(type, jax.tree.leaves((args, kwargs)))}):
            return NOT_FOUND
        try:
            return self._jitted(*args, **kwargs)
        except _ClosedError:
            return NOT_FOUND

    def _admitted(self, *args: Any, **kwargs: Any) -> Any:
        results = self._call(*args, **kwargs)
        if not self._is_open:
            raise _ClosedError
        return results


def _key(leaf: Any) -> AvalKey | None:
    """As `arguments.aval_key`, with the least work for arrays of JAX; None for what the long way may refuse."""
    if compat.is_concrete(leaf):
        return leaf.shape, leaf.dtype, leaf.weak_type
    try:
        return arguments_of.aval_key(leaf)
    except (LpuError, TypeError):
        return None


class ResidentCalls:
    """Calls with resident arguments that are in place, for the latest kinds of calls."""

    def __init__(self) -> None:
        """Nothing is in place."""
        self._latest: list[InPlace] = []
        self._changing: weakref.WeakSet[Traced] = weakref.WeakSet()

    def __call__(self, args: Sequence[Any], kwargs: dict[str, Any], context: Any) -> Any:
        """Results, or NOT_FOUND."""
        if not self._latest:
            return NOT_FOUND
        leaves, tree = jax.tree.flatten((args, kwargs))
        for held in self._latest:
            if (results := held(leaves, tree, context)) is not NOT_FOUND:
                return results
        return NOT_FOUND

    def first(self, traced: Traced, call: FlatCall, context: Any) -> Any:
        """Lays out the resident arguments of a call and gives its results, or NOT_FOUND where that is no use."""
        if traced in self._changing or not _may_hold(traced, call):
            return NOT_FOUND
        if any(held.traced is traced and not held.was_found for held in self._latest):
            self._changing.add(traced)
            self._latest = [held for held in self._latest if held.traced is not traced]
            return NOT_FOUND
        arguments_of.check_not_deleted(call.leaves, traced.roles)
        traced.lower().check_weights(call.leaves)
        held = InPlace(traced, call.leaves, context)
        others = [other for other in self._latest if other.traced is not traced and other.is_in_use]
        self._latest = [held, *others[: _MAX_KINDS - 1]]
        return held(call.leaves, call.in_tree, context, is_first=True)


class InPlace:
    """The resident arguments of one call, laid out until they are no longer in use."""

    def __init__(self, traced: Traced, leaves: Sequence[Any], context: Any) -> None:
        """Lays out the resident ones among the leaves; see `_may_hold`."""
        first = len(traced.captured)
        self.traced, self._context = traced, context
        self._kept = [i - first for i in traced.resident_inputs if i >= first]
        self._moving = [i - first for i in traced.moving_inputs]
        self._references = [weakref.ref(leaves[i], self._forget) for i in self._kept]
        self._keys = [traced.keys[i] for i in self._moving]
        self._roles = [traced.roles[i] for i in self._moving]
        self._held: Held | None = Held(traced.lower(), (*traced.captured, *(leaves[i] for i in self._kept)))
        self.was_found = False

    def _forget(self, _: Any) -> None:
        """Lets go of what was laid out when one of the arrays is gone."""
        self._held = None

    @property
    def is_in_use(self) -> bool:
        """Whether the arrays are still there."""
        return self._held is not None

    def __call__(self, leaves: list[Any], tree: Any, context: Any, is_first: bool = False) -> Any:
        """Results, or NOT_FOUND for other resident arrays or another kind of call."""
        if self._held is None or tree != self.traced.in_tree or context != self._context:
            return NOT_FOUND
        if any(reference() is not leaves[i] for reference, i in zip(self._references, self._kept, strict=True)):
            return NOT_FOUND
        moving = [leaves[i] for i in self._moving]
        if any(_key(leaf) != key for leaf, key in zip(moving, self._keys, strict=True)):
            return NOT_FOUND
        if is_traced(moving):
            return NOT_FOUND
        self.was_found |= not is_first
        if self.traced.donated:
            arguments_of.check_not_deleted(moving, self._roles)
        results = self._held([typed(leaf, key) for leaf, key in zip(moving, self._keys, strict=True)])
        return jax.tree.unflatten(self.traced.out_tree, results)


def _may_hold(traced: Traced, call: FlatCall) -> bool:
    """Whether a call has resident arguments that can be kept: arrays of JAX, and no loop whose turns are counted."""
    first = len(traced.captured)
    resident = [call.leaves[i - first] for i in traced.resident_inputs if i >= first]
    are_arrays = all(compat.is_concrete(leaf) for leaf in resident)
    is_plain = not call.statics and not is_traced(call.leaves) and not is_traced(traced.captured)
    return bool(traced.resident_inputs) and are_arrays and is_plain and not traced.lower().loops
