"""Which primitives of a jaxpr have no lowering: found before anything is lowered, and told all at once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from lpu_jax.lowering import _jax_compat as compat
from lpu_jax.lowering.emit import MAX_FOLDED_ELEMENTS
from lpu_jax.lowering.registry import find_rule
from lpu_jax.runtime.errors import UnsupportedPrimitiveError

JAXPR_PARAMETERS = ("jaxpr", "call_jaxpr", "fun_jaxpr", "cond_jaxpr", "body_jaxpr")
HOST_PRIMITIVES = frozenset(("debug_callback", "debug_print", "io_callback", "pure_callback"))
"""Primitives that are calls of the host by nature."""
_MAX_PRINTED = 20


@dataclasses.dataclass(frozen=True, slots=True)
class Missing:
    """One equation without a rule; `path` leads through the enclosing equations."""

    primitive: str
    avals: str
    source: str
    path: str

    def __str__(self) -> str:
        where = f" at {self.source}" if self.source else ""
        inside = f" inside {self.path}" if self.path else ""
        return f"'{self.primitive}' ({self.avals}){where}{inside}"


def live_equations(jaxpr: Any) -> list[Any]:
    """The equations that a result or an effect needs, in order."""
    needed = {atom for atom in jaxpr.outvars if not compat.is_literal(atom)}
    live = []
    for eqn in reversed(jaxpr.eqns):
        if eqn.effects or any(v in needed for v in eqn.outvars):
            live.append(eqn)
            needed.update(atom for atom in eqn.invars if not compat.is_literal(atom))
    return live[::-1]


def is_foldable_size(eqn: Any) -> bool:
    """Whether the results of an equation are small enough to be computed while lowering."""
    sizes = [math.prod(v.aval.shape) for v in eqn.outvars if hasattr(v.aval, "shape")]
    is_product = eqn.primitive.name == "dot_general" and not any(0 in v.aval.shape for v in eqn.invars)
    is_kept = is_product or eqn.primitive.name == "decode_blocks"
    return not is_kept and max(sizes, default=0) <= MAX_FOLDED_ELEMENTS


def raise_if_missing(closed_jaxpr: Any) -> None:
    """Raises one UnsupportedPrimitiveError that lists every equation without a rule."""
    jaxpr, _ = compat.open_jaxpr(closed_jaxpr)
    found: list[Missing] = []
    _search(jaxpr, [False] * len(jaxpr.invars), "", found)
    if not found:
        return
    lines = list(dict.fromkeys(f"  {missing}" for missing in found))
    if len(lines) > _MAX_PRINTED:
        lines = [*lines[:_MAX_PRINTED], f"  and {len(lines) - _MAX_PRINTED} more"]
    names = list(dict.fromkeys(missing.primitive for missing in found))
    raise UnsupportedPrimitiveError(
        f"no LPU lowering for {len(names)} primitive{'s' if len(names) > 1 else ''} ({', '.join(names)}):\n"
        + "\n".join(lines)
        + f'\nRegister a rule with @lpu_jax.register_lowering({names[0]!r}), or pass fallback="host" to lpu() to have '
        "the host compute them."
    )


def _search(jaxpr: Any, known: Sequence[bool], path: str, found: list[Missing]) -> list[bool]:
    """Appends what is missing; returns which results depend on constants only."""
    constant = {*jaxpr.constvars, *(v for v, k in zip(jaxpr.invars, known, strict=True) if k)}

    def is_known(atom: Any) -> bool:
        return compat.is_literal(atom) or atom in constant

    for eqn in live_equations(jaxpr):
        operands = [is_known(atom) for atom in eqn.invars]
        registration = find_rule(eqn.primitive.name)
        if registration is not None and registration.is_higher_order:
            results = _search_inside(eqn, operands, path, found)
        else:
            is_folded = all(operands) and not eqn.effects and is_foldable_size(eqn)
            results = [is_folded or (all(operands) and eqn.primitive.name == "broadcast_in_dim")] * len(eqn.outvars)
            if registration is None and not is_folded and eqn.primitive.name not in HOST_PRIMITIVES:
                avals = ", ".join(str(v.aval) for v in eqn.invars)
                found.append(Missing(eqn.primitive.name, avals, compat.source_line(eqn), path))
        constant.update(v for v, k in zip(eqn.outvars, results, strict=True) if k)
    return [is_known(atom) for atom in jaxpr.outvars]


def _search_inside(eqn: Any, operands: list[bool], path: str, found: list[Missing]) -> list[bool]:
    """Searches the jaxpr of a call or loop; what a loop carries is never constant."""
    inner_path = f"{path}/{eqn.params.get('name', eqn.primitive.name)}".lstrip("/")
    results = [False] * len(eqn.outvars)
    for branch in eqn.params.get("branches", ()):
        _search(compat.open_jaxpr(branch)[0], operands[1:], inner_path, found)
    if eqn.primitive.name == "custom_linear_solve":
        inner, _ = compat.open_jaxpr(eqn.params["jaxprs"].solve)
        _search(inner, [False] * len(inner.invars), inner_path, found)
    for parameter in JAXPR_PARAMETERS:
        if parameter not in eqn.params:
            continue
        inner, _ = compat.open_jaxpr(eqn.params[parameter])
        if eqn.primitive.name == "while":
            _search(inner, [False] * len(inner.invars), inner_path, found)
            continue
        if eqn.primitive.name == "scan":
            num_consts, _ = compat.scan_counts(eqn.params, len(operands))
            operands = [k and i < num_consts for i, k in enumerate(operands)]
        inner_results = _search(inner, operands, inner_path, found)
        if eqn.primitive.name != "scan":
            results = inner_results
    return results
