"""JAX's own per-primitive harnesses on the LPU: a table of what passes, what is refused and what is wrong.

    python benchmarks/harnesses.py [--per-group N | --all] [--group NAME ...] [--verbose]
                                   [--results FILE] [--report] [--markdown FILE]

With --results every result is appended to a file of JSON lines, and what is in it already does not run again: an
interrupted run goes on where it was, and --report makes the tables of what is there. Harnesses run in an order in which
every part of a run has its share of every group.

Every harness is traced, lowered and executed with precision="highest" and compared with plain JAX on the CPU; what is
refused is run again with fallback="host". Integers
and bools must be equal; a float passes if its error against float64 (where the harness can run there) is no larger than
twice XLA's own worst error plus one unit in the last place, relative to the result's magnitude, else by a tolerance
relative to the largest result. Of approx_top_k, which may choose among equals, the values are compared.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import gc
import json
import pathlib
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax._src.internal_test_util import test_harnesses

from lpu_jax import lpu
from lpu_jax.runtime.errors import UnsupportedInputError, UnsupportedPrimitiveError

OUTCOMES = ("pass", "host", "refused", "wrong", "crash", "skipped")
"""pass: all of it on the LPU; host: passes with fallback="host"; refused: even so; skipped: plain JAX cannot run it."""
_EVERY = 10**6
_CLEARED_EVERY = 25
"""Harnesses after which compiled functions are forgotten, so that memory does not grow."""
_BY_NORM = ("qr",)
"""Groups whose results are as uncertain as their largest element, however small: elements of orthogonal matrices."""
_WIDE = frozenset(("int64", "uint64", "float64", "complex128"))
_EPSILON = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def is_runnable(harness: Any) -> bool:
    """Whether a harness applies to the CPU without 64-bit types."""
    return bool(harness.filter("cpu")) and str(np.dtype(harness.dtype)) not in _WIDE


def is_native(harness: Any) -> bool:
    """Whether a harness is about a dtype that the LPU has."""
    return not np.issubdtype(np.dtype(harness.dtype), np.complexfloating)


def on_lpu(harness: Any, arguments: list[Any], fallback: str | None = None) -> list[Any]:
    """Results of a harness in the LPU's arithmetic."""
    return [
        np.asarray(r) for r in jax.tree.leaves(lpu(_called(harness), precision="highest", fallback=fallback)(arguments))
    ]


def _called(harness: Any) -> Callable[[list[Any]], Any]:
    """A harness as a function of the list of its arguments."""
    return lambda arguments: harness.dyn_fun(*arguments)


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


def explain(actual: np.ndarray, xla: np.ndarray, real: np.ndarray | None, *, is_norm: bool = False) -> str:
    """Empty if a result is right, else what is wrong with it.

    is_norm: errors are measured by the largest element of the result, not each by its own.
    """
    if actual.shape != xla.shape or actual.dtype != xla.dtype:
        return f"{actual.dtype}{actual.shape} instead of {xla.dtype}{xla.shape}"
    if str(xla.dtype) not in _EPSILON:
        count = int((~((actual == xla) | ((actual != actual) & (xla != xla)))).sum())
        return f"{count} of {actual.size} differ" if count else ""
    wide, epsilon = xla.astype(np.float64), _EPSILON[str(xla.dtype)]
    reference = wide if real is None or real.shape != xla.shape or real.dtype != np.float64 else real
    same = (actual == xla) | (np.isnan(actual) & np.isnan(xla))
    is_finite = np.isfinite(reference) & np.isfinite(wide)
    sizes = np.abs(np.where(is_finite, reference, 0))
    if is_norm or reference is wide:
        sizes = np.full_like(sizes, sizes.max(initial=0))
    scale = np.maximum(sizes, 2.0**-126 / epsilon * 2)
    with np.errstate(invalid="ignore"):  # infinities of one sign
        own = np.where(is_finite, np.abs(wide - reference) / scale, 0).max(initial=0)
        error = np.abs(actual.astype(np.float64) - reference) / scale
    allowed = (2 * own if reference is not wide else 64 * epsilon) + epsilon
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
    refusal = ""
    for fallback in (None, "host"):
        try:
            actual = on_lpu(harness, arguments, fallback)
        except (UnsupportedPrimitiveError, UnsupportedInputError) as error:
            refusal = str(error)
            continue
        except Exception as error:
            return "crash", f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-4)}"
        real = in_float64(harness, arguments) or [None] * len(xla)
        if harness.group_name == "approx_top_k":
            actual, xla = actual[:1], xla[:1]
            real = real[:1]
        is_norm = harness.group_name in _BY_NORM
        reasons = [explain(a, x, r, is_norm=is_norm) for a, x, r in zip(actual, xla, real, strict=True)]
        if any(reasons):
            return "wrong", next(filter(None, reasons))
        return ("pass", "") if fallback is None else ("host", refusal)
    return "refused", refusal


def chosen(per_group: int, groups: list[str]) -> dict[str, list[Any]]:
    """Harnesses spread evenly over every group."""
    by_group: dict[str, list[Any]] = collections.defaultdict(list)
    for harness in test_harnesses.all_harnesses:
        if (not groups or harness.group_name in groups) and is_runnable(harness):
            by_group[harness.group_name].append(harness)
    return {g: h[:: max(1, -(-len(h) // per_group))] for g, h in sorted(by_group.items())}


def interleaved(by_group: dict[str, list[Any]]) -> list[Any]:
    """All harnesses in an order whose every beginning holds the same share of every group."""
    places = [((i + 0.5) / len(h), g, i) for g, h in by_group.items() for i in range(len(h))]
    return [by_group[group][i] for _, group, i in sorted(places)]


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of one harness; `reason` is empty for a pass, `seconds` include the compilation by XLA."""

    name: str
    group: str
    is_native: bool
    outcome: str
    reason: str
    seconds: float


def stored(path: str | None) -> dict[str, Result]:
    """The results in a file of JSON lines, by name; the last of each counts."""
    if path is None or not pathlib.Path(path).exists():
        return {}
    found = [Result(**json.loads(line)) for line in pathlib.Path(path).read_text().splitlines()]
    return {r.name: r for r in found}


def measure(harness: Any) -> Result:
    """Runs one harness."""
    start = time.monotonic()
    result, reason = outcome(harness)
    seconds = round(time.monotonic() - start, 3)
    return Result(harness.fullname, harness.group_name, is_native(harness), result, reason, seconds)


def run(harnesses: list[Any], path: str | None, is_verbose: bool) -> list[Result]:
    """Results of harnesses, those in the file without running them again; new ones are appended to it and told."""
    known = stored(path)
    results = []
    for number, harness in enumerate(harnesses):
        result = known.get(harness.fullname)
        if result is None:
            result = measure(harness)
            if path is not None:
                with pathlib.Path(path).open("a") as file:
                    file.write(json.dumps(dataclasses.asdict(result)) + "\n")
            if number % _CLEARED_EVERY == 0:
                jax.clear_caches()
                gc.collect()
        results.append(result)
        if result.outcome in ("wrong", "crash", "refused") or (is_verbose and result.outcome == "host"):
            told = result.reason if result.outcome == "crash" else result.reason.splitlines()[-1][:300]
            print(f"{result.outcome}: {harness.fullname}: {told}", flush=True)
    return results


def counted(results: list[Result]) -> dict[str, collections.Counter[str]]:
    """Outcomes of every group, and of all."""
    rows: dict[str, collections.Counter[str]] = {}
    for result in sorted(results, key=lambda r: r.group):
        rows.setdefault(result.group, collections.Counter()).update([result.outcome])
    rows["all"] = collections.Counter(r.outcome for r in results)
    return rows


def table(rows: dict[str, collections.Counter[str]]) -> str:
    """The counts of every group as Markdown."""
    lines = ["| group | " + " | ".join(OUTCOMES) + " |", "|---" * (1 + len(OUTCOMES)) + "|"]
    for group, counts in rows.items():
        lines.append(f"| {group} | " + " | ".join(f"{counts[o]:,}" for o in OUTCOMES) + " |")
    return "\n".join(lines) + "\n"


_PAGE = """# JAX's harnesses on the LPU

Written by `{command}` with JAX {version}.
*pass*: all of it runs on the LPU and is right: integers and bools exactly, floats with an error of at most twice XLA's
own against float64 plus one unit in the last place, at precision `highest`. *host*: refused without, right with
`fallback="host"`. *refused*: even so. *skipped*: plain JAX cannot run it here. Harnesses of 64-bit dtypes and of other
platforms are left out. Where a
harness cannot run in float64 there is no such reference, and an error of 64 units in the last place of the largest
result is allowed. Of approx_top_k, which may choose among equals, the values are compared. Errors of a QR decomposition
are measured by the largest element of a factor: an element near zero is as uncertain as that one.

{count:,} of {total:,} harnesses ran. Of {ran:,} among them with real dtypes {share:.1%} run on the LPU alone,
every group counted by the number of its harnesses.

"""


def native_share(ran: list[Result]) -> float:
    """Share of passes in results of real dtypes; a group counts with all its harnesses, run or not."""
    groups = chosen(_EVERY, [])
    rows = counted(ran)
    sizes = {g: sum(map(is_native, groups.get(g, []))) for g in rows if g != "all"}
    passed = sum(size * rows[g]["pass"] / sum(rows[g].values()) for g, size in sizes.items())
    return passed / max(1, sum(sizes.values()))


def page(results: list[Result], command: str) -> str:
    """docs/harnesses.md."""
    total = sum(map(len, chosen(_EVERY, []).values()))
    ran = [r for r in results if r.is_native and r.outcome != "skipped"]
    share = native_share(ran)
    head = _PAGE.format(
        command=command, version=jax.__version__, count=len(results), total=total, ran=len(ran), share=share
    )
    return head + table(counted(results))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--per-group", type=int, default=4)
    parser.add_argument("--all", action="store_true", help="every harness of a group")
    parser.add_argument("--group", nargs="*", default=[])
    parser.add_argument("--verbose", action="store_true", help="also say why something is not on the LPU")
    parser.add_argument("--results", help="file of JSON lines that results are appended to and taken from")
    parser.add_argument("--report", action="store_true", help="run nothing, use what --results holds")
    parser.add_argument("--markdown", help="file to write the table to")
    return parser.parse_args()


def main() -> int:
    """Prints the table; 1 if anything is wrong, crashes or is refused with the fallback."""
    args = arguments()
    harnesses = interleaved(chosen(_EVERY if args.all else args.per_group, args.group))
    if args.report:
        known = stored(args.results)
        harnesses = [h for h in harnesses if h.fullname in known]
    results = run(harnesses, args.results, args.verbose)
    rows = counted(results)
    print(f"{'group':32s}" + "".join(f"{o:>9s}" for o in OUTCOMES))
    for group, counts in rows.items():
        print(f"{group:32s}" + "".join(f"{counts[o]:9d}" for o in OUTCOMES))
    if args.markdown:
        command = "python benchmarks/harnesses.py " + ("--all" if args.all else f"--per-group {args.per_group}")
        pathlib.Path(args.markdown).write_text(page(results, command))
    return 1 if any(rows["all"][o] for o in ("wrong", "crash", "refused")) else 0


if __name__ == "__main__":
    sys.exit(main())
