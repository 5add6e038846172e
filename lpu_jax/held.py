"""`Held`: resident arguments as a program finds them in SRAM, laid out once, and the program of the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from lpu_jax.call import GraphCall, lpu_call_p
from lpu_jax.runtime.execute import prepare, prepared_inputs, widen_weights

if TYPE_CHECKING:
    from lpu_jax.stages import Lowered


class Held:
    """The resident inputs of a program in the form that the fast executor multiplies fastest."""

    def __init__(self, lowered: Lowered, weights: Sequence[Any]) -> None:
        """Lays out the weights: the resident inputs of the jaxpr in their order, none of them traced."""
        self._function = lowered.held_function
        main = lowered.parts[1]
        values = main.inputs[len(lowered.traced.moving_inputs) :]
        arrays = dict(zip(values, lowered.run_prologue(*weights), strict=True))
        chosen = {v: np.asarray(arrays[v]) for v in prepared_inputs(main) if v in arrays}
        is_native = lowered.traced.options.accumulation == "float32"
        arrays.update((widen_weights if is_native else prepare)(main, chosen))
        self._prepared = tuple(arrays[v] for v in values)
        self._is_wide = any(leaf.dtype.itemsize == 8 for leaf in jax.tree.leaves(self._prepared))

    def __call__(self, moving: Sequence[Any]) -> list[Any]:
        """Results for the other inputs of the jaxpr, arrays whose dtypes are those of the trace."""
        if not self._is_wide:
            return self._function(self._prepared, *moving)
        with jax.enable_x64(True):
            return self._function(self._prepared, *moving)


def function_of(lowered: Lowered) -> Callable[..., list[Any]]:
    """The jitted program of the prepared weights, as one tuple, and the other inputs."""
    traced = lowered.traced
    main, mode = lowered.parts[1], traced.options.mode
    place = {position: 1 + i for i, position in enumerate(traced.moving_inputs)}

    def run(weights: tuple[Any, ...], *moving: Any) -> list[Any]:
        leaves, tree = jax.tree.flatten((*moving, *weights))
        call = GraphCall(main, traced.call_avals, traced.fun_name, mode, tree)
        results: list[Any] = lpu_call_p.bind(*leaves, call=call)
        return results

    return jax.jit(run, donate_argnums=tuple(sorted(place[i] for i in traced.donated.values())))
