"""`Loaded`: a program with its resident arguments in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from lpu_jax import arguments as arguments_of
from lpu_jax.arguments import AvalKey, check_tree, is_traced
from lpu_jax.held import Held
from lpu_jax.stage import Stage

if TYPE_CHECKING:
    from lpu_jax.stages import Lowered


class Loaded(Stage):
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
        check_tree(tree, jax.tree.structure(tuple(loaded_args)), f"the resident part of {traced.fun_name}")
        order = jax.tree.leaves(tuple(loaded_args))
        roles = [traced.roles[i] for i in order]
        arguments_of.check_same([arguments_of.aval_key(w) for w in weights], [traced.keys[i] for i in order], roles)
        arguments_of.check_not_deleted(weights, roles)
        if not is_traced(weights):
            arguments_of.check_finite([*weights], roles)
        self._weight_of = dict(zip(order, weights, strict=True))
        self._weights = (*traced.captured, *(self._weight_of[i] for i in sorted(order)))
        self._held = None if is_traced(self._weights) else Held(lowered, self._weights)
        moving_slots = (
            tuple(a for a in slots[0] if not self._slot_is_loaded(a)),
            {k: a for k, a in slots[1].items() if not self._slot_is_loaded(a)},
        )
        self._moving_order, self._moving_tree = jax.tree.flatten(moving_slots)
        self._moving_roles = [traced.roles[i] for i in self._moving_order]
        self._moving_keys = [traced.keys[i] for i in self._moving_order]

    def _slot_is_loaded(self, slot: Any) -> bool:
        leaves = jax.tree.leaves(slot)
        return bool(leaves) and all(self._is_loaded[i] for i in leaves)

    def _check_count(self, given: int, expected: int) -> None:
        if given != expected:
            raise arguments_of.ArgumentMismatchError(
                f"{self.traced.fun_name} has {expected} resident arguments to load, got {given}. "
                "Name them in resident_argnums and pass them in that order, without the donated ones."
            )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Results by the vectorised executor; resident arguments that were loaded are left out.

        Raises:
          ArgumentMismatchError: other structure, shapes or dtypes than those of compilation.
          DonatedArgumentError: an array that an earlier call consumed.
        """
        leaves, tree = jax.tree.flatten((args, kwargs))
        check_tree(tree, self._moving_tree, self.traced.fun_name)
        arguments_of.check_same([arguments_of.aval_key(leaf) for leaf in leaves], self._moving_keys, self._moving_roles)
        arguments_of.check_not_deleted(leaves, self._moving_roles)
        if self._held is None or is_traced(leaves):
            by_leaf = {**self._weight_of, **dict(zip(self._moving_order, leaves, strict=True))}
            results = self.lowered.call_flat([by_leaf[i] for i in range(len(by_leaf))])
        else:
            results = self._held([typed(leaf, key) for leaf, key in zip(leaves, self._moving_keys, strict=True)])
        return jax.tree.unflatten(self.out_tree, results)


def typed(leaf: Any, key: AvalKey) -> Any:
    """A Python number as an array, before 64-bit types are allowed."""
    return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf, key[1])
