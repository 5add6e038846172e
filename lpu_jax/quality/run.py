"""A function under a policy, in two ways.

lpu_results    the LPU's arithmetic, to the bit: operands, sums and results
rounded        parameters with their values rounded, for plain JAX: weights alone, and fast
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from lpu_jax.precision import Policy, as_policy
from lpu_jax.rounding import num_weight_bytes, round_argument
from lpu_jax.runtime.execute import EXACT, Mode
from lpu_jax.runtime.formats import FP32
from lpu_jax.runtime.stepwise import execute_stepwise
from lpu_jax.transform import lpu


def lpu_results(
    fun: Callable[..., Any], params: Any, samples: Sequence[tuple[Any, ...]], policy: Policy | str, mode: Mode = EXACT
) -> list[Any]:
    """fun(params, *sample) of every sample in the LPU's arithmetic; weights are formatted once.

    Args:
      fun: a function of (params, *sample) with one array as its result.
      params, samples: pytrees; samples of equal shapes.
      policy: the formats.
      mode: how sums are accumulated.
    """
    lowered = lpu(fun, precision=policy, resident_argnums=0).lower(params, *samples[0])
    kept = lowered.run_prologue(*lowered.traced.captured, *jax.tree.leaves(params))
    main = lowered.parts[1]
    return [np.asarray(execute_stepwise(main, [*jax.tree.leaves(sample), *kept], mode)[0]) for sample in samples]


def rounded(
    fun: Callable[..., Any], params: Any, sample: tuple[Any, ...], policy: Policy | str, optimal: bool = True
) -> tuple[Any, float]:
    """(parameters with every weight rounded as the policy has its rhs or table, mean bits of those weights).

    Weights that the policy leaves alone keep their values and are not counted; optimal: as `round_argument`.
    """
    chosen = as_policy(policy)
    lowered = lpu(fun, precision=Policy("sites"), resident_argnums=0).lower(params, *sample)
    leaves, tree = jax.tree.flatten(params)
    index_of = {role.path: i for i, role in enumerate(lowered.traced.roles[: len(leaves)])}
    changed: dict[int, Any] = {}
    num_bytes = num_elements = 0
    for site, _ in lowered.sites:
        form, index = chosen.formats(site).rhs, index_of.get(site.weight)
        if form is None or index is None or index in changed:
            continue
        changed[index] = leaves[index] if form == FP32 else round_argument(leaves[index], site, form, optimal)
        num_bytes += num_weight_bytes(leaves[index], site, form)
        num_elements += int(np.size(leaves[index]))
    leaves = [changed.get(i, leaf) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(tree, leaves), num_bytes * 8 / max(num_elements, 1)
