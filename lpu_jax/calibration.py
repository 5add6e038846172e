"""`calibrate`: a policy that spends a budget where a model's results need it.

The error of every weight in every format is measured on samples, then a greedy knapsack (lpu_jax/knapsack.py) chooses.
The reference is the function as plain JAX runs it. Rounded weights have the values that the LPU multiplies with.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lpu_jax.chips import ChipSpec, chip_by_name, groqchip1
from lpu_jax.knapsack import Option, choose, steps
from lpu_jax.lowering.precision import Site
from lpu_jax.precision import Policy, Rule, as_policy
from lpu_jax.rounding import num_padded_bytes, num_weight_bytes
from lpu_jax.runtime.errors import BudgetError, LpuError, PolicyError
from lpu_jax.runtime.formats import NumberFormat, parse_format
from lpu_jax.sensitivity import DISTANCES, Distance, Model, Tensor, direct_errors, gradient_errors
from lpu_jax.transform import lpu

FORMATS = ("bfp3", "bfp4", "bfp5", "bfp6", "bfp8", "fp16")
TABLE_FORMATS = ("int8", "fp16")
MODES = ("direct", "gradient")
_PLACEABLE = 31 / 32
"""Share of a chip's SRAM that weights and the like can fill: their sizes are coarse beside what a slice holds."""


class NonFiniteSampleError(LpuError, ValueError):
    """Samples or parameters hold NaN or infinity, or give results that do."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """What the calibrated weights may take; exactly one of the four is given.

    Attributes:
      bits_per_weight: mean over their elements, shared exponents included.
      sram_bytes: what all of them take in SRAM, vectors filled up to all lanes.
      chips: 31/32 of whole chips, as more finds no places as a rule, less `reserved_bytes` for everything else (caches,
        activations, other weights).
      cycles: of one call, as compiled; the program is compiled a few times (log2 of the steps) to meet it.
    """

    bits_per_weight: float | None = None
    sram_bytes: int | None = None
    chips: int | None = None
    cycles: int | None = None
    reserved_bytes: int = 0

    def __post_init__(self) -> None:
        """Checks that there is one limit, and that it is positive."""
        given = {
            n: v for n in ("bits_per_weight", "sram_bytes", "chips", "cycles") if (v := getattr(self, n)) is not None
        }
        if len(given) != 1 or min(given.values()) <= 0:
            raise ValueError(
                f"a budget has one positive limit of bits_per_weight, sram_bytes, chips, cycles; got {given}"
            )

    def __str__(self) -> str:
        """The limit with its unit."""
        if self.bits_per_weight is not None:
            return f"{self.bits_per_weight:g} bits per weight"
        if self.sram_bytes is not None:
            return f"{self.sram_bytes:,} bytes of SRAM"
        if self.chips is not None:
            return f"{self.chips} chips less {self.reserved_bytes:,} bytes"
        return f"{self.cycles:,} cycles per call"


@dataclasses.dataclass(frozen=True, slots=True)
class Candidate:
    """A weight in one format: bytes packed, bytes in SRAM with vectors filled up to all lanes, error on the samples."""

    number_format: NumberFormat
    num_bytes: int
    sram_bytes: int
    error: float

    def option(self, budget: Budget) -> Option:
        """Cost as the budget counts it, and error."""
        return Option(self.num_bytes if budget.bits_per_weight is not None else self.sram_bytes, self.error)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """The format of one weight and why.

    Attributes:
      name: path of the argument; primitives: at which it is used.
      candidates: cheapest first; chosen: one of them.
    """

    name: str
    primitives: tuple[str, ...]
    num_elements: int
    candidates: tuple[Candidate, ...]
    chosen: Candidate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """Formats and where they came from.

    Attributes:
      base: the policy of everything else.
      choices: one per calibrated weight, in the order of the trace.
      skipped: (weight, reason) of the others.
    """

    base: Policy
    budget: Budget
    choices: tuple[Choice, ...]
    skipped: tuple[tuple[str, str], ...]
    loss: str
    mode: str

    def for_budget(self, budget: Budget, chip: ChipSpec | str = groqchip1) -> Calibration:
        """The same errors, chosen anew for another budget (not in cycles); nothing is measured.

        Raises:
          BudgetError: as `calibrate`.
          ValueError: a budget in cycles.
        """
        if budget.cycles is not None:
            raise ValueError("a budget in cycles needs the function: call calibrate")
        spent = chip_by_name(chip) if isinstance(chip, str) else chip
        return dataclasses.replace(self, budget=budget, choices=_fit_bytes(self.choices, budget, spent))

    @property
    def policy(self) -> Policy:
        """The base with a rule for every calibrated weight in front: for `lpu(precision=...)`."""
        rules = (Rule(f"*{p}@{c.name}", rhs=c.chosen.number_format) for c in self.choices for p in c.primitives)
        return self.base.with_rules(*rules, name=f"{self.base.name}, calibrated for {self.budget}")

    @property
    def num_bytes(self) -> int:
        """Bytes at rest of the calibrated weights, packed."""
        return sum(choice.chosen.num_bytes for choice in self.choices)

    @property
    def sram_bytes(self) -> int:
        """Bytes that they take in SRAM, where vectors are filled up to all lanes."""
        return sum(choice.chosen.sram_bytes for choice in self.choices)

    @property
    def bits_per_weight(self) -> float:
        """Mean over the elements of the calibrated weights."""
        return self.num_bytes * 8 / sum(choice.num_elements for choice in self.choices)

    @property
    def error(self) -> float:
        """Sum of the errors of the choices, which predicts the error of them together."""
        return sum(choice.chosen.error for choice in self.choices)

    def table(self) -> Any:
        """A `rich` table: where the bits went, and what a format less would have cost."""
        from rich.table import Table

        spent = f"{self.bits_per_weight:.3f} bits per weight"
        title = f"{self.budget}: {spent}, {self.loss} error {self.error:.3g} ({self.mode})"
        table = Table(title=title, title_justify="left")
        table.add_column("weight", overflow="fold")
        for name in ("elements", "format", "bits", "error", "cheaper", "its error"):
            table.add_column(name, justify="right")
        for c in self.choices:
            own = c.chosen
            cheaper = max(
                (x for x in c.candidates if x.num_bytes < own.num_bytes), key=lambda x: x.num_bytes, default=None
            )
            other = ("-", "-") if cheaper is None else (str(cheaper.number_format), f"{cheaper.error:.3g}")
            cells = f"{c.num_elements:,}", str(own.number_format), f"{own.num_bytes * 8 / c.num_elements:.2f}"
            table.add_row(c.name, *cells, f"{own.error:.3g}", *other)
        for name, reason in self.skipped:
            table.add_row(name, "", "", "", "", reason)
        return table

    def __str__(self) -> str:
        """The table as plain text."""
        from rich.console import Console

        console = Console(width=120, no_color=True)
        with console.capture() as capture:
            console.print(self.table())
        return capture.get()


def calibrate(
    fun: Callable[..., Any],
    params: Any,
    samples: Sequence[Any],
    *,
    budget: Budget,
    formats: Sequence[str] = FORMATS,
    table_formats: Sequence[str] = TABLE_FORMATS,
    loss: str | Distance = "squared",
    mode: str = "direct",
    base: Policy | str = "fp16",
    only: str = "*",
    chip: ChipSpec | str = groqchip1,
    progress: bool | None = None,
    seed: int = 0,
) -> Calibration:
    """Finds a mixed policy for a budget.

    Args:
      fun: a function of (params, *sample) that JAX can trace.
      params: pytree of float32 weights.
      samples: tuples of the other arguments, of equal shapes; an array stands for a tuple of one.
      budget: what the weights may take.
      formats, table_formats: candidates for weights of products, and for tables of lookups.
      loss: "squared" (relative squared error of the results), "kl" (of softmax over the first result), or a function of
        (reference results, results) to a scalar, for mode "direct" only.
      mode: "direct" measures every weight in every format with forward passes; "gradient" estimates them from 8
        backward passes.
      base: the policy for everything that is not calibrated, and for the other operands.
      only: glob over sites, `*mlp*@*`; other weights keep the formats of `base`.
      chip: for `chips` and `cycles` budgets.
      progress: show a progress bar on standard error; None means if that is a terminal.
      seed: of the projections of mode "gradient".

    Returns:
      The policy, with a table of what went where and why. Equal inputs give equal policies.

    Raises:
      BudgetError: the cheapest formats take more than the budget; it tells the least that could.
      NonFiniteSampleError: NaN or infinity in params, samples or results.
      PolicyError: no weight to calibrate, or an unknown format.
      ValueError: an unknown loss or mode.
    """
    if mode not in MODES:
        raise ValueError(f"mode={mode!r} is unknown; use one of {MODES}")
    if isinstance(loss, str) and loss not in DISTANCES:
        raise ValueError(f"loss={loss!r} is unknown; use a function or one of {tuple(DISTANCES)}")
    if mode == "gradient" and not isinstance(loss, str):
        raise ValueError("mode='gradient' knows the curvature of the losses 'squared' and 'kl' only; use mode='direct'")
    policy = as_policy(base)
    model = _model(fun, params, samples)
    tensors, skipped = _tensors(fun, params, model, policy, only, (_parsed(formats), _parsed(table_formats)))
    errors = list(_progress(_errors(model, tensors, loss, mode, seed), len(tensors), progress))
    target = chip_by_name(chip) if isinstance(chip, str) else chip
    choices = tuple(_choice(model, t, row, target) for t, row in zip(tensors, errors, strict=True))
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", "custom")
    found = Calibration(base=policy, budget=budget, choices=choices, skipped=skipped, loss=name, mode=mode)

    def cycles_of(tried: tuple[Choice, ...]) -> int:
        step = lpu(fun, chip=target, precision=dataclasses.replace(found, choices=tried).policy, resident_argnums=0)
        return step.lower(params, *model.samples[0]).compile().cycles

    if budget.cycles is None:
        return found.for_budget(budget, target)
    return dataclasses.replace(found, choices=_fit_cycles(choices, budget, cycles_of))


def _parsed(names: Sequence[str]) -> tuple[NumberFormat, ...]:
    try:
        return tuple(sorted(map(parse_format, names), key=lambda f: f.bits))
    except ValueError as error:
        raise PolicyError(f"calibrate: {error}") from None


def _model(fun: Callable[..., Any], params: Any, samples: Sequence[Any]) -> Model:
    if not len(samples):
        raise ValueError("calibrate needs at least one sample")
    tuples = tuple(s if isinstance(s, tuple) else (s,) for s in samples)
    leaves, tree = jax.tree.flatten(params)
    for what, content in (("params", params), *((f"samples[{i}]", s) for i, s in enumerate(tuples))):
        _check_finite(what, content)
    model = Model(fun, tuple(leaves), tree, tuples)
    _check_finite("the results for samples[0]", jax.jit(model.results)(model.leaves, tuples[0]))
    return model


def _check_finite(what: str, content: Any) -> None:
    for path, leaf in jax.tree_util.tree_flatten_with_path(content)[0]:
        array = np.asarray(leaf)
        if not jnp.issubdtype(array.dtype, jnp.floating):
            continue
        if bad := int(np.count_nonzero(~np.isfinite(array.astype(np.float32)))):
            name = what + jax.tree_util.keystr(path)
            raise NonFiniteSampleError(
                f"{name} {array.dtype}{list(array.shape)} has {bad} of {array.size} values that are not finite. "
                "Check where they came from."
            )


def _tensors(
    fun: Callable[..., Any],
    params: Any,
    model: Model,
    policy: Policy,
    only: str,
    formats: tuple[tuple[NumberFormat, ...], tuple[NumberFormat, ...]],
) -> tuple[list[Tensor], tuple[tuple[str, str], ...]]:
    """Weights whose format is open, and (weight, reason) of the others."""
    lowered = lpu(fun, precision=Policy("sites"), resident_argnums=0).lower(params, *model.samples[0])
    by_name: dict[str, list[Site]] = {}
    for site, _ in lowered.sites:
        if site.weight and Rule(only if "@" in only else f"{only}@*").matches(site):
            by_name.setdefault(site.weight, []).append(site)
    index_of = {role.path: i for i, role in enumerate(lowered.traced.roles[: len(model.leaves)])}
    tensors, skipped = [], []
    for name, sites in by_name.items():
        reason = _obstacle(name, sites, index_of, model)
        if reason:
            skipped.append((name, reason))
            continue
        candidates = formats[1] if any(site.is_lookup for site in sites) else formats[0]
        tensors.append(Tensor(name=name, index=index_of[name], sites=tuple(dict.fromkeys(sites)), formats=candidates))
    if not tensors:
        listed = "; ".join(f"{name}: {reason}" for name, reason in skipped) or "no product has a weight of params"
        raise PolicyError(f"there is no weight to calibrate at the sites {only!r} ({policy.name}): {listed}")
    return tensors, tuple(skipped)


def _obstacle(name: str, sites: Sequence[Site], index_of: dict[str, int], model: Model) -> str:
    """Why the format of a weight cannot be chosen; empty if it can."""
    if name not in index_of:
        return "not a leaf of params"
    leaf = model.leaves[index_of[name]]
    if str(leaf.dtype) != "float32":
        return f"{leaf.dtype} already"
    if any(site.moves is None for site in sites):
        return "computed from the argument"
    if len({(site.moves, site.rhs_shape) for site in sites}) > 1:
        return "used in several layouts"
    shape = sites[0].weight_shape
    return "" if shape in (leaf.shape, leaf.shape[1:]) else "used in parts"


def _errors(
    model: Model, tensors: Sequence[Tensor], loss: str | Distance, mode: str, seed: int
) -> Iterator[list[float]]:
    if mode == "gradient":
        return gradient_errors(model, tensors, str(loss), seed)
    return direct_errors(model, tensors, DISTANCES[loss] if isinstance(loss, str) else loss)


def _progress(rows: Iterator[list[float]], total: int, progress: bool | None) -> Iterator[list[float]]:
    if not (sys.stderr.isatty() if progress is None else progress):
        yield from rows
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(rows, "Measuring weights", total=total, console=Console(stderr=True), transient=True)


def _choice(model: Model, tensor: Tensor, errors: Sequence[float], chip: ChipSpec) -> Choice:
    leaf, site = model.leaves[tensor.index], tensor.sites[0]
    candidates = tuple(
        Candidate(form, num_weight_bytes(leaf, site, form), num_padded_bytes(leaf, site, form, chip), error)
        for form, error in zip(tensor.formats, errors, strict=True)
    )
    return Choice(
        name=tensor.name,
        primitives=tuple(dict.fromkeys(site.path.rpartition("/")[2] for site in tensor.sites)),
        num_elements=int(np.size(leaf)),
        candidates=candidates,
        chosen=candidates[0],
    )


def _picked(choices: Sequence[Choice], picked: Sequence[int]) -> tuple[Choice, ...]:
    return tuple(dataclasses.replace(c, chosen=c.candidates[j]) for c, j in zip(choices, picked, strict=True))


def _fit_bytes(choices: Sequence[Choice], budget: Budget, chip: ChipSpec) -> tuple[Choice, ...]:
    num_elements = sum(c.num_elements for c in choices)
    if budget.bits_per_weight is not None:
        limit = math.floor(budget.bits_per_weight * num_elements / 8)
    elif budget.sram_bytes is not None:
        limit = budget.sram_bytes
    else:
        limit = math.floor((budget.chips or 0) * chip.usable_sram_bytes * _PLACEABLE) - budget.reserved_bytes
    try:
        return _picked(choices, choose([[x.option(budget) for x in c.candidates] for c in choices], limit))
    except BudgetError as error:
        least = error.least
        raise BudgetError(
            f"a budget of {budget} cannot be met: the cheapest candidates take {least:,} bytes "
            f"({least * 8 / num_elements:.3f} bits per weight), the budget is {limit:,} bytes. Allow narrower formats "
            "or more.",
            least,
        ) from None


def _fit_cycles(
    choices: Sequence[Choice], budget: Budget, cycles_of: Callable[[tuple[Choice, ...]], int]
) -> tuple[Choice, ...]:
    """The last choice on the knapsack's path, by bisection, whose program takes at most the budget's cycles."""
    limit = budget.cycles or 0
    found = [_picked(choices, step) for step in steps([[x.option(budget) for x in c.candidates] for c in choices])]
    least = cycles_of(found[0])
    if least > limit:
        raise BudgetError(
            f"a budget of {limit:,} cycles per call cannot be met: with the cheapest candidates the program takes "
            f"{least:,}. Allow narrower formats or more cycles.",
            least,
        )
    return found[bisect.bisect_right(range(1, len(found)), limit, key=lambda i: cycles_of(found[i]))]
