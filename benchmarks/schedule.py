"""How close schedules are to their bounds: one table, a row per program, each compiled in a process of its own.

Every program passes the verifiers while it is compiled. A program that is refused or does not fit shows why in its row.

Usage: python benchmarks/schedule.py [--only NAME ...] [--json PATH] [--machine]

--only takes the programs whose names start with a NAME; --machine also runs those of at most 40,000 cycles on the
machine and compares cycles and bits with the fast executor.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import jax
import numpy as np
from programs import Case, cases, random_arguments
from rich.console import Console
from rich.progress import track
from rich.table import Table

from lpu_jax.runtime.errors import LpuError
from lpu_jax.stages import Compiled

MACHINE_CYCLES = 40_000


@dataclasses.dataclass(kw_only=True)
class Result:
    """What came of one program; cycles is None if it was refused."""

    name: str
    label: str = ""
    cycles: int | None = None
    resource_bound: int = 0
    dependency_bound: int = 0
    ratio: float | None = None
    target: str = ""
    met: bool | None = None
    published: int | None = None
    compile_seconds: float = 0.0
    peak_gib: float = 0.0
    instructions: int = 0
    machine: str = ""
    note: str = ""

    @property
    def instructions_per_second(self) -> float:
        """Scheduled instructions, rows expanded and each loop body counted once, per second of compilation."""
        return self.instructions / self.compile_seconds if self.compile_seconds else 0.0


def measure(name: str, on_machine: bool) -> Result:
    """Compiles the first attempt of a case that fits."""
    case = next(case for case in cases() if case.name == name)
    result = Result(name=name, published=case.published, note=case.note)
    refusals = []
    for label, build in case.attempts:
        function, arguments = build()
        start = time.perf_counter()
        try:
            compiled = function.lower(*arguments).compile()
        except (LpuError, NotImplementedError) as error:
            refusals.append(f"{label or name}: {str(error).splitlines()[0]}")
            continue
        result.compile_seconds = time.perf_counter() - start
        result.label = label
        fill(result, case, compiled)
        if on_machine:
            result.machine = on_the_machine(compiled, random_arguments(arguments))
        break
    result.note = "; ".join(filter(None, [result.note, *(f"refused {text}" for text in refusals)]))
    result.peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return result


def fill(result: Result, case: Case, compiled: Compiled) -> None:
    """Cycles, bounds and whether the target is met."""
    cost = compiled.cost_analysis()
    result.cycles = compiled.cycles
    result.resource_bound, result.dependency_bound = cost["resource_bound_cycles"], cost["dependency_bound_cycles"]
    result.instructions = int(compiled.program.count.sum())
    bound = case.bound or max(result.resource_bound, result.dependency_bound)
    result.ratio = result.cycles / bound
    if case.ratio is not None:
        result.target = f"<= {case.ratio:.3g} x {bound:,}"
        result.met = result.cycles <= case.ratio * bound


def on_the_machine(compiled: Compiled, arguments: tuple[Any, ...]) -> str:
    """Runs a program that is short enough on the machine: the same cycles and bits, or an error."""
    if compiled.cycles > MACHINE_CYCLES:
        return "too long"
    expected = jax.tree.leaves(compiled(*arguments))
    start = time.perf_counter()
    outputs, cycles = compiled.simulate(*arguments)
    seconds = time.perf_counter() - start
    if cycles != compiled.cycles:
        raise AssertionError(f"the machine takes {cycles} cycles, the schedule says {compiled.cycles}")
    for ours, wanted in zip(jax.tree.leaves(outputs), expected, strict=True):
        if np.asarray(ours).tobytes() != np.asarray(wanted).tobytes():
            raise AssertionError("the machine and the fast executor differ in their bits")
    return f"same bits and cycles, {seconds:.0f} s"


def run(names: list[str], on_machine: bool, path: Path | None) -> list[Result]:
    """Measures programs one after the other, each in a fresh process; every row is written as it comes."""
    results: list[Result] = []
    context = multiprocessing.get_context("spawn")
    for name in track(names, "compiling", console=Console(stderr=True)):
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            try:
                results.append(pool.submit(measure, name, on_machine).result())
            except BrokenProcessPool:
                results.append(Result(name=name, note="the process was killed, most likely for its memory"))
        if path is not None:
            store(path, results[-1])
    return results


def store(path: Path, result: Result) -> None:
    """Puts a row into a JSON file, in place of an older one of the same program."""
    rows = json.loads(path.read_text())["rows"] if path.exists() else {}
    rows[result.name] = {
        **dataclasses.asdict(result),
        "instructions_per_second": round(result.instructions_per_second),
    }
    rows = {name: rows[name] for name in (case.name for case in cases()) if name in rows}
    command = "python benchmarks/schedule.py --json benchmarks/schedule.json"
    path.write_text(json.dumps({"command": command, "rows": rows}, indent=1) + "\n")


def to_table(results: list[Result]) -> Table:
    """The rows as a rich table; notes are printed below it, by number."""
    columns = ("program", "cycles", "resource bound", "dependency bound", "ratio", "target", "met", "published")
    table = Table(*columns, "compile s", "GiB", "instructions/s", "machine", title="groqchip1")
    notes = [result for result in results if result.note]
    for result in results:
        number = f"({notes.index(result) + 1})" if result in notes else ""
        name = " ".join(filter(None, (result.name, result.label, number)))
        if result.cycles is None:
            table.add_row(name, "refused", *["-"] * 10)
            continue
        bounds = (f"{result.cycles:,}", f"{result.resource_bound:,}", f"{result.dependency_bound:,}")
        target = (f"{result.ratio:.3f}", result.target or "-", {True: "yes", False: "NO", None: "-"}[result.met])
        published = f"{result.published:,}" if result.published else "-"
        speed = (f"{result.compile_seconds:.1f}", f"{result.peak_gib:.2f}", f"{result.instructions_per_second:,.0f}")
        table.add_row(name, *bounds, *target, published, *speed, result.machine or "-")
    return table


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[""], metavar="NAME", help="programs whose names start so")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the rows to a file; its other rows stay")
    parser.add_argument("--machine", action="store_true", help="run short programs on the machine")
    options = parser.parse_args()
    names = [case.name for case in cases() if case.name.startswith(tuple(options.only))]
    if not names:
        parser.error(f"no program is called {options.only}; there are {', '.join(c.name for c in cases())}")
    results = run(names, options.machine, options.json)
    console = Console(width=None if Console().is_terminal else 180)
    console.print(to_table(results))
    for number, result in enumerate((result for result in results if result.note), 1):
        console.print(f"({number}) {result.note}", highlight=False)


if __name__ == "__main__":
    main()
