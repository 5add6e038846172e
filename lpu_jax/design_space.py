"""`sweep`: one function on many chips and for many arguments, a row of a pandas frame for each; `pareto_front` of rows.

A function is traced and lowered once for each set of arguments; only the stages that depend on the chip are done for
every variant, in parallel over processes with joblib, whose engine may also be a cluster.
"""

from __future__ import annotations

import dataclasses
import difflib
import gc
import itertools
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lpu_jax.chips import ChipSpec, chip_by_name
from lpu_jax.runtime.chip_limits import check_field, is_integer
from lpu_jax.runtime.errors import LpuError
from lpu_jax.runtime.progress import VARIABLE as PROGRESS_VARIABLE
from lpu_jax.runtime.progress import progress
from lpu_jax.transform import LpuFunction, lpu

if TYPE_CHECKING:
    import pandas

    from lpu_jax.lowering.ir import Graph

Fields = Mapping[str | tuple[str, ...], Iterable[Any]]

RESULTS = {
    "cycles": "Int64",
    "microseconds": "Float64",
    "resource_bound_cycles": "Int64",
    "dependency_bound_cycles": "Int64",
    "bounded_by": "string",
    "bound_ratio": "Float64",
    "sram_used_bytes": "Int64",
    "sram_capacity_bytes": "Int64",
    "pcie_microseconds": "Float64",
    "total_microseconds": "Float64",
    "instructions": "Int64",
    "error": "string",
    "assumptions": "string",
}
"""Columns of results and their pandas types, which have a place for "no value"."""

_TYPES = {field.name: str(field.type) for field in dataclasses.fields(ChipSpec)}
_NOT_SWEPT = ("name", "assumptions", "vxm_slots")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lowering:
    """A function for one set of arguments, as far as it does not depend on the chip.

    Attributes:
      graph: what the chip runs; None if the function was refused.
      donated: output -> input whose place it takes.
      num_orders: orders of the work that the scheduler tries.
      moved_bytes: what crosses PCIe at a call, in and out.
      error: why the function was refused.
    """

    graph: Graph | None = None
    donated: Mapping[int, int] = dataclasses.field(default_factory=dict)
    num_orders: int = 1
    moved_bytes: tuple[int, int] = (0, 0)
    error: str | None = None


def sweep(
    fun: Callable[..., Any],
    arguments: Sequence[Any] | Callable[..., Sequence[Any]],
    *,
    chips: ChipSpec | str | Iterable[ChipSpec | str] | None = None,
    fields: Fields | None = None,
    parameters: Mapping[str, Iterable[Any]] | None = None,
    num_jobs: int = -1,
) -> pandas.DataFrame:
    """Compiles a function for every combination of chips, fields and parameters: one row for each.

    Args:
      fun: a function or an `LpuFunction`; precision, effort, resident and donated arguments are those of the latter.
      arguments: the arguments, arrays or jax.ShapeDtypeStructs; or a function that makes them from `parameters`.
      chips: where the fields start from; by default the chip of `fun`.
      fields: field of ChipSpec -> its values. A tuple of fields goes with tuples of values, which change together:
        `{("num_planes", "num_mxm_queues_per_hemisphere"): [(2, 6), (4, 12)]}`.
      parameters: keyword argument of `arguments` -> its values.
      num_jobs: processes; -1 is one for each core. Inside `joblib.parallel_config(backend=...)` that engine does the
        work, for example a cluster of Dask.

    Returns:
      A frame with a row for each combination, in the order of `itertools.product(parameters, chips, fields)`; equal
      calls give equal frames, whatever num_jobs is. Columns: one for each parameter, "chip" (the preset), one for each
      field, and

      * cycles, resource_bound_cycles, dependency_bound_cycles, bounded_by, bound_ratio: as in `cost_analysis`, so with
        one turn of every loop that the host starts
      * microseconds: cycles / clock
      * sram_used_bytes, sram_capacity_bytes: the most in use at one time, and what programs may use
      * pcie_microseconds: arguments in and results out, which is no part of the cycles; no other link is modelled
      * total_microseconds: both, one after the other; what the host does in the middle of a run is left out
      * instructions: rows of the program with their repetitions
      * error: why there is no program (it does not fit, the scheduler finds no place), else missing
      * assumptions: what the row rests on: those of the preset, and every field that was changed

    Raises:
      ValueError: an unknown field, or a value that no chip has; names the field, the value and what is allowed.
        Fields that only contradict each other are an error in their row. Also if there is nothing to sweep over.
      ImportError: joblib or pandas is missing.
    """
    joblib, pandas = _libraries()
    function = fun if isinstance(fun, LpuFunction) else lpu(fun)
    combined = _combinations(fields or {})
    bases = _bases(function.options.chip if chips is None else chips)
    calls = list(_named_products(parameters or {}))
    lowerings = [_lowered(function, arguments, call) for call in calls]
    variants = [(call, lowering, base, changes)
                for call, lowering in zip(calls, lowerings, strict=True)
                for base in bases for changes in combined]  # fmt: skip
    if not variants:
        raise ValueError("nothing to sweep: chips, or one of the fields or parameters, has no values")
    tasks = (joblib.delayed(_measure)(lowering, base, changes, os.getpid()) for _, lowering, base, changes in variants)
    results = joblib.Parallel(n_jobs=num_jobs, return_as="generator")(tasks)
    rows = [
        {**call, "chip": base.name, **changes, **result}
        for (call, _, base, changes), result in zip(variants, _with_progress(results, len(variants)), strict=True)
    ]
    return pandas.DataFrame.from_records(rows).astype(RESULTS)


def measure_variant(lowering: Lowering, base: ChipSpec, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Compiles a lowered function for a chip with some of its fields changed; the columns of `RESULTS`.

    The program has passed the verifiers of every pass and the machine's static rules. Whatever stops the compiler is
    the row's error.
    """
    found = dict.fromkeys(RESULTS) | {"assumptions": "; ".join(_assumptions(base, changes))}
    if lowering.error is not None:
        return found | {"error": lowering.error}
    try:
        chip = changed_chip(base, changes)
        return found | {"sram_capacity_bytes": chip.usable_sram_bytes} | _costs(lowering, chip)
    except Exception as error:  # one variant of many: its row says what happened
        return found | {"error": _error_text(error)}


def changed_chip(base: ChipSpec, changes: Mapping[str, Any]) -> ChipSpec:
    """A chip with other fields, whose name and assumptions say so.

    Raises:
      ValueError: no such chip can be; names the field, its value and what is allowed.
    """
    if not changes:
        return base
    name = f"{base.name} with {', '.join(f'{field}={value}' for field, value in changes.items())}"
    return dataclasses.replace(base, **changes, name=name, assumptions=_assumptions(base, changes))


def pareto_front(frame: pandas.DataFrame, columns: Sequence[str] = ("sram_capacity_bytes", "cycles")) -> pandas.Series:
    """Which rows no other row beats: True where no row is smaller in one of the columns and at most equal in all.

    Args:
      frame: for example what `sweep` returns; rows without a value in one of the columns are not on the front.
      columns: what should be small.

    Raises:
      ValueError: a column that the frame does not have.
    """
    import pandas  # an extra, and there when somebody has a frame

    if missing := [name for name in columns if name not in frame.columns]:
        raise ValueError(f"the frame has no column {missing[0]!r}; it has {', '.join(map(str, frame.columns))}")
    costs = frame[list(columns)].to_numpy(dtype=float, na_value=float("nan"))
    is_beaten = [bool(((costs <= row).all(axis=1) & (costs < row).any(axis=1)).any()) for row in costs]
    is_there = frame[list(columns)].notna().all(axis=1)
    return is_there & ~pandas.Series(is_beaten, index=frame.index, dtype=bool)


# Variants -----------------------------------------------------------------------------------------------------------


def _libraries() -> tuple[Any, Any]:
    """joblib and pandas, which only sweeps need."""
    try:
        import joblib
        import pandas
    except ImportError as error:
        raise ImportError(f"a sweep needs {error.name}: pip install 'lpu_jax[sweep]'") from error
    return joblib, pandas


def _bases(chips: ChipSpec | str | Iterable[ChipSpec | str]) -> list[ChipSpec]:
    """The chips that fields start from."""
    several = [chips] if isinstance(chips, ChipSpec | str) else chips
    return [chip_by_name(chip) if isinstance(chip, str) else chip for chip in several]


def _named_products(axes: Mapping[str, Iterable[Any]]) -> Iterable[dict[str, Any]]:
    """All combinations of named values."""
    return (dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values()))


def _combinations(fields: Fields) -> list[dict[str, Any]]:
    """All combinations of values of fields, every single one checked."""
    axes = []
    for key, values in fields.items():
        names = (key,) if isinstance(key, str) else tuple(key)
        axes.append([_checked(names, (value,) if isinstance(key, str) else value) for value in values])
    combined = []
    for parts in itertools.product(*axes):
        changes: dict[str, Any] = {}
        for part in parts:
            if twice := changes.keys() & part.keys():
                raise ValueError(f"ChipSpec.{min(twice)} is swept twice; give all its values under one key of fields")
            changes |= part
        combined.append(changes)
    return combined


def _checked(names: tuple[str, ...], values: Any) -> dict[str, Any]:
    """Name -> value, NumPy's integers made Python's."""
    for name in names:
        if name not in _TYPES or name in _NOT_SWEPT:
            known = [field for field in _TYPES if field not in _NOT_SWEPT]
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"{name!r} is no field of ChipSpec to sweep over{hint} Fields: {', '.join(known)}")
    values = tuple(values)
    if len(values) != len(names):
        raise ValueError(f"fields {names} need {len(names)} values that change together, got {values}")
    plain = [operator.index(value) if is_integer(value) else value for value in values]
    for name, value in zip(names, plain, strict=True):
        check_field(name, value, _TYPES[name])
    return dict(zip(names, plain, strict=True))


def _assumptions(base: ChipSpec, changes: Mapping[str, Any]) -> tuple[str, ...]:
    """The assumptions of a chip, and one for every field that differs from it."""
    differing = {name: value for name, value in changes.items() if value != getattr(base, name)}
    return (*base.assumptions, *(f"{name} {v} instead of {getattr(base, name)}" for name, v in differing.items()))


# Work ---------------------------------------------------------------------------------------------------------------


def _lowered(function: LpuFunction, arguments: Any, parameters: Mapping[str, Any]) -> Lowering:
    """Traces and lowers; what the LPU refuses becomes an error of the rows, a mistake of the user's code is raised."""
    from lpu_jax.arguments import EFFORTS

    if parameters and not callable(arguments):
        raise ValueError(f"parameters {tuple(parameters)} need a function of them as `arguments`, got {arguments!r}")
    given = arguments(**parameters) if callable(arguments) else arguments
    try:
        lowered = function.lower(*given)
        graph = lowered.edges.graph
    except LpuError as error:
        return Lowering(error=_error_text(error))
    place = {position: i for i, position in enumerate(lowered.traced.moving_inputs)}
    return Lowering(
        graph=graph,
        donated={output: place[position] for output, position in lowered.traced.donated.items()},
        num_orders=EFFORTS[function.options.effort],
        moved_bytes=lowered.traced.moved_bytes(),
    )


def _import_compiler() -> None:
    """Imports what compiling needs, which takes longer than importing this module."""
    import lpu_jax.lowering.pipeline  # noqa: F401


def _measure(lowering: Lowering, base: ChipSpec, changes: Mapping[str, Any], caller: int) -> dict[str, Any]:
    """As `measure_variant`; another process than the caller's is made a quiet and quick one first."""
    if os.getpid() != caller and os.environ.get(PROGRESS_VARIABLE) != "0":
        os.environ[PROGRESS_VARIABLE] = "0"  # bars of several processes would overwrite each other
        _import_compiler()
        gc.freeze()  # modules are not searched for garbage again and again, a sixth of the time
    return measure_variant(lowering, base, changes)


def _costs(lowering: Lowering, chip: ChipSpec) -> dict[str, Any]:
    """The results of a program that was made."""
    from lpu_jax.lowering.pipeline import compile_graph  # takes longer to import than this module
    from lpu_jax.report.host import pcie_seconds
    from lpu_jax.runtime.host_runs import split
    from lpu_jax.runtime.units.decode import Decoder

    assert lowering.graph is not None
    compiled = compile_graph(lowering.graph, chip, donated=lowering.donated, num_orders=lowering.num_orders)
    for piece in split(compiled.program):
        Decoder(piece).decode()
    costs = compiled.cost_analysis(lowering.moved_bytes)
    names = ("cycles", "resource_bound_cycles", "dependency_bound_cycles", "bounded_by", "bound_ratio", "instructions")
    on_chip = compiled.cycles * 1e6 / chip.clock_hz
    moving = sum(pcie_seconds(chip, size) for size in lowering.moved_bytes) * 1e6
    return {name: costs[name] for name in names} | {
        "microseconds": on_chip,
        "sram_used_bytes": compiled.sram_used_bytes,
        "pcie_microseconds": moving,
        "total_microseconds": on_chip + moving,
    }


def _error_text(error: Exception) -> str:
    """Kind and first line of an error."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else 'no message'}"


def _with_progress(results: Iterable[Any], count: int) -> Iterator[Any]:
    """The results one by one, with a bar on a terminal."""
    with progress("Sweeping", total=count) as bar:
        for result in results:
            bar.advance()
            yield result
