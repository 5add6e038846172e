"""Which format for which tensor: error against cost, by a greedy knapsack."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from lpu_jax.runtime.errors import BudgetError


@dataclasses.dataclass(frozen=True, slots=True)
class Option:
    """One format of one tensor: what it costs (bytes) and how far it moves the results."""

    cost: int
    error: float


def choose(options: Sequence[Sequence[Option]], budget: int) -> list[int]:
    """The option of every tensor, so that the costs add up to at most `budget`.

    All begin with their cheapest option; then the step with the largest fall of error per additional cost is taken, as
    long as one fits. Errors are taken to add up. Equal inputs give equal choices: ties go to the first tensor.

    Raises:
      BudgetError: even the cheapest options cost more.
    """
    chosen = _cheapest(options)
    total = sum(o[j].cost for o, j in zip(options, chosen, strict=True))
    if total > budget:
        raise BudgetError(f"the cheapest formats take {total:,} bytes, the budget is {budget:,}", total)
    while (step := _best_step(options, chosen, budget - total)) is not None:
        i, j = step
        total += options[i][j].cost - options[i][chosen[i]].cost
        chosen[i] = j
    return chosen


def steps(options: Sequence[Sequence[Option]]) -> list[list[int]]:
    """All choices on the way from the cheapest options to the best ones, one step each."""
    found = [_cheapest(options)]
    while (step := _best_step(options, found[-1], None)) is not None:
        i, j = step
        found.append([*found[-1][:i], j, *found[-1][i + 1 :]])
    return found


def _cheapest(options: Sequence[Sequence[Option]]) -> list[int]:
    return [min(range(len(o)), key=lambda j: (o[j].cost, o[j].error, j)) for o in options]


def _best_step(options: Sequence[Sequence[Option]], chosen: Sequence[int], room: int | None) -> tuple[int, int] | None:
    """(tensor, its new option) with the largest fall of error per cost among those that cost at most `room` more."""
    best, found = 0.0, None
    for i, own in enumerate(options):
        now = own[chosen[i]]
        for j, option in enumerate(own):
            more, less = option.cost - now.cost, now.error - option.error
            if more < 0 or less <= 0 or (room is not None and more > room):
                continue
            gain = less / more if more else math.inf
            if gain > best:
                best, found = gain, (i, j)
    return found
