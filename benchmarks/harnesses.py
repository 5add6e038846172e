"""JAX's own per-primitive harnesses on the LPU: a table of what passes, what is refused and what is wrong.

    python benchmarks/harnesses.py [--per-group N] [--group NAME ...] [--verbose]

Every harness is traced, lowered and executed with precision="highest" and compared with plain JAX on the CPU. Integers
and bools must be equal; a float passes if its error against float64 (where the harness can run there) is no larger than
twice XLA's own worst error plus one unit in the last place, relative to the result's magnitude, else by tolerance.
"""

from __future__ import annotations

import argparse
import collections
import sys
import traceback
from typing import Any

import jax
import numpy as np
from jax._src.internal_test_util import test_harnesses

from lpu_jax.lowering.lower import lower_jaxpr
from lpu_jax.runtime.errors import UnsupportedInputError, UnsupportedPrimitiveError
from lpu_jax.runtime.execute import execute

OUTCOMES = ("pass", "refused", "wrong", "crash", "skipped")
_EPSILON = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def is_runnable(harness: Any) -> bool:
    """Whether a harness applies to the CPU without 64-bit types."""
    return bool(harness.filter("cpu")) and not any("64" in str(d) for d in [np.dtype(harness.dtype)])


def on_lpu(harness: Any, arguments: list[Any]) -> list[Any]:
    """Results of a harness in the LPU's arithmetic."""
    closed = jax.make_jaxpr(harness.dyn_fun)(*arguments)
    graph = lower_jaxpr(closed, precision="highest")
    leaves = jax.tree.leaves(arguments)
    results = jax.jit(lambda values: execute(graph, values))(leaves)
    return [np.asarray(r).astype(a.dtype) for r, a in zip(results, closed.out_avals, strict=True)]


def on_xla(harness: Any, arguments: list[Any]) -> list[np.ndarray]:
    """Results of plain JAX; a sort without an order among equals is compared with the stable one."""
    fun = harness.dyn_fun
    (eqn, *rest) = jax.make_jaxpr(fun)(*arguments).eqns or [None]
    if harness.group_name == "sort" and not rest and eqn is not None and eqn.primitive.name == "sort":
        params = {**eqn.params, "is_stable": True}
        fun = lambda *xs: jax.lax.sort(xs, **params)  # noqa: E731
    return [np.asarray(r) for r in jax.tree.leaves(jax.jit(fun)(*arguments))]


def in_float64(harness: Any, arguments: list[Any]) -> list[np.ndarray] | None:
    """The real results, None where the harness cannot run on float64."""
    wide = [np.asarray(x).astype(np.float64) if _is_float(x) else x for x in arguments]
    try:
        with jax.enable_x64(True):
            results = jax.tree.leaves(harness.dyn_fun(*wide))
            return [np.asarray(r) for r in results]
    except Exception:
        return None


def _is_float(x: Any) -> bool:
    return str(getattr(x, "dtype", "")) in _EPSILON


def explain(actual: np.ndarray, xla: np.ndarray, real: np.ndarray | None) -> str:
    """Empty if a result is right, else what is wrong with it."""
    if actual.shape != xla.shape or actual.dtype != xla.dtype:
        return f"{actual.dtype}{actual.shape} instead of {xla.dtype}{xla.shape}"
    if str(xla.dtype) not in _EPSILON:
        count = int((actual != xla).sum())
        return f"{count} of {actual.size} differ" if count else ""
    wide, epsilon = xla.astype(np.float64), _EPSILON[str(xla.dtype)]
    reference = wide if real is None or real.shape != xla.shape or real.dtype != np.float64 else real
    same = (actual == xla) | (np.isnan(actual) & np.isnan(xla))
    is_finite = np.isfinite(reference) & np.isfinite(wide)
    scale = np.maximum(np.abs(np.where(is_finite, reference, 0)), 2.0**-126 / epsilon * 2)
    own = np.where(is_finite, np.abs(wide - reference) / scale, 0).max(initial=0)
    allowed = (2 * own if reference is not wide else 64 * epsilon) + epsilon
    with np.errstate(invalid="ignore"):
        error = np.abs(actual.astype(np.float64) - reference) / scale
    bad = ~same & ~(is_finite & (error <= allowed))
    if not bad.any():
        return ""
    where = tuple(np.argwhere(bad)[0])
    return f"{int(bad.sum())} of {actual.size} wrong, at {where}: {actual[where]!r}, XLA {xla[where]!r}"


def outcome(harness: Any) -> tuple[str, str]:
    """(one of OUTCOMES, the reason)"""
    if not is_runnable(harness):
        return "skipped", "needs 64-bit types or another platform"
    try:
        arguments = harness.dyn_args_maker(np.random.RandomState(0))
        xla = on_xla(harness, arguments)
    except Exception as error:
        return "skipped", f"plain JAX: {type(error).__name__}"
    try:
        actual = on_lpu(harness, arguments)
    except (UnsupportedPrimitiveError, UnsupportedInputError) as error:
        return "refused", str(error)
    except Exception as error:
        return "crash", f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-4)}"
    real = in_float64(harness, arguments) or [None] * len(xla)
    reasons = [explain(a, x, r) for a, x, r in zip(actual, xla, real, strict=True)]
    return ("wrong", next(filter(None, reasons))) if any(reasons) else ("pass", "")


def chosen(per_group: int, groups: list[str]) -> dict[str, list[Any]]:
    """Harnesses spread evenly over every group."""
    by_group: dict[str, list[Any]] = collections.defaultdict(list)
    for harness in test_harnesses.all_harnesses:
        if (not groups or harness.group_name in groups) and is_runnable(harness):
            by_group[harness.group_name].append(harness)
    return {g: h[:: max(1, -(-len(h) // per_group))] for g, h in sorted(by_group.items())}


def main() -> int:
    """Prints the table; 1 if anything is wrong or crashes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--per-group", type=int, default=4)
    parser.add_argument("--group", nargs="*", default=[])
    parser.add_argument("--verbose", action="store_true")
    args = parser.parse_args()
    total: collections.Counter[str] = collections.Counter()
    print(f"{'group':32s}" + "".join(f"{o:>9s}" for o in OUTCOMES))
    for group, harnesses in chosen(args.per_group, args.group).items():
        counts: collections.Counter[str] = collections.Counter()
        for harness in harnesses:
            result, reason = outcome(harness)
            counts[result] += 1
            if result in ("wrong", "crash") or (args.verbose and result == "refused"):
                print(
                    f"  {result}: {harness.fullname}: {reason if result == 'crash' else reason.splitlines()[-1][:300]}"
                )
        total.update(counts)
        print(f"{group:32s}" + "".join(f"{counts[o]:9d}" for o in OUTCOMES), flush=True)
        jax.clear_caches()
    print(f"{'all':32s}" + "".join(f"{total[o]:9d}" for o in OUTCOMES))
    return 1 if total["wrong"] or total["crash"] else 0


if __name__ == "__main__":
    sys.exit(main())
