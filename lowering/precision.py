"""Who decides the number formats of matrix products and table lookups: a `Precision`, asked once for every site.

A site is one equation in which operands meet the MXM, or in which rows of a table are looked up. While lowering, sites
come in the order of the trace; what a loop holds is one site, whatever its trip count.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Protocol

from lpu_jax.runtime.formats import NumberFormat
from lpu_jax.runtime.ops import Reshape, Reverse, Transpose

Ordering = Reshape | Transpose | Reverse
"""Moves that neither drop nor repeat elements."""


@dataclasses.dataclass(frozen=True, slots=True)
class Argument:
    """A resident argument; is_whole: not computed from it, but itself, or one turn's slice of it in a loop."""

    name: str
    is_whole: bool = True


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A place where formats are chosen.

    Attributes:
      path: the user's scopes and the primitive, `layer/mlp/gate/dot_general`.
      weight: the resident argument that the rhs or table is made of, `model/layers/mlp/gate/values`; `constant` for
        contents known at compile time; empty if it depends on anything else.
      lhs_shape, rhs_shape: [B, M, K] and [B, K, N] of a product; () and [rows, ...] of a lookup.
      weight_shape: of that argument, or of one turn's slice of it in a loop.
      moves: what leads from there to the rhs, each with the shape of its result; None if it is computed.
      source: the user's line.
    """

    path: str
    weight: str
    lhs_shape: tuple[int, ...]
    rhs_shape: tuple[int, ...]
    weight_shape: tuple[int, ...] = ()
    moves: tuple[tuple[Ordering, tuple[int, ...]], ...] | None = None
    source: str = ""

    @property
    def is_lookup(self) -> bool:
        """Whether rows of a table are looked up."""
        return not self.lhs_shape

    def __str__(self) -> str:
        """`path@weight`, or the path alone."""
        return f"{self.path}@{self.weight}" if self.weight else self.path


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Formats:
    """Formats of a site; None leaves the choice to the compiler.

    Of a product: float32 operands through fp16 with exact power-of-two scales, the result as traced. Of a lookup, whose
    table is `rhs`: as the table is given.
    """

    lhs: NumberFormat | None = None
    rhs: NumberFormat | None = None
    result: NumberFormat | None = None


class Precision(Protocol):
    """What lowering asks."""

    def formats(self, site: Site) -> Formats:
        """The formats of a site."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Unspecified:
    def formats(self, site: Site) -> Formats:
        return Formats()


UNSPECIFIED: Precision = _Unspecified()
"""Leaves every choice to the compiler."""


def weight_path(name: str) -> str:
    """The name of an argument as a path: `params['layers'][0].w` becomes `params/layers/0/w`."""
    return re.sub(r"\[['\"]?([^\]'\"]*)['\"]?\]|\.(?=\w)", lambda match: "/" + (match[1] or ""), name)
