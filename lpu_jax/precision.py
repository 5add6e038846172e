"""Policies: which number formats the products and tables of a model have, as data.

  Policy("mine", (Rule("*/mlp/*@*", rhs="bfp4"), Rule("*dot_general", lhs="fp16", rhs="fp16")))

Every product and every lookup in a table is a site with a path: the scopes that JAX recorded, the primitive, and after
an @ the resident argument that the rhs or table is, `layer/mlp/gate/dot_general@model/layers/mlp/gate/values`. The
first rule that matches and names a format for an operand decides it. Without a rule float32 operands of products enter
as fp16 with exact power-of-two scales, results are as traced, and tables are as they are given. A product that asks for
`jax.lax.Precision.HIGHEST` has float32 operands whatever the policy says.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lpu_jax.lowering.precision import Formats, Site
from lpu_jax.runtime.errors import PolicyError
from lpu_jax.runtime.formats import NumberFormat, parse_format

VERSION = 1
"""Version of the files that `Policy.save` writes."""

_OPERANDS = ("lhs", "rhs", "result")
_KEYS = ("pattern", *_OPERANDS, "is_optional")
_MAX_LISTED = 12


@dataclasses.dataclass(frozen=True, slots=True)
class Rule:
    """Formats for the sites that a glob matches.

    Attributes:
      pattern: `*` is any text, `?` any character; a pattern with an @ is matched against path@weight (only sites with a
        weight have one), without an @ against the path alone.
      lhs, rhs, result: names as `fp16` or `bfp4x32` (or `NumberFormat`s), None to leave it to later rules.
      is_optional: whether it is no error if the rule matches nothing.
    """

    pattern: str
    lhs: NumberFormat | None = None
    rhs: NumberFormat | None = None
    result: NumberFormat | None = None
    is_optional: bool = False

    def __init__(
        self,
        pattern: str,
        lhs: NumberFormat | str | None = None,
        rhs: NumberFormat | str | None = None,
        result: NumberFormat | str | None = None,
        is_optional: bool = False,
    ) -> None:
        """Reads the names of formats; raises PolicyError for an unknown one or an empty pattern."""
        if not pattern or pattern.count("@") > 1:
            raise PolicyError(
                f"rule pattern {pattern!r}: expected a glob over path or path@weight, such as '*/mlp/*@*'"
            )
        object.__setattr__(self, "pattern", pattern)
        for name, given in zip(_OPERANDS, (lhs, rhs, result), strict=True):
            object.__setattr__(self, name, _format(given, f"rule {pattern!r}, {name}"))
        object.__setattr__(self, "is_optional", is_optional)

    def matches(self, site: Site) -> bool:
        """Whether the glob matches a site."""
        if "@" in self.pattern:
            return bool(site.weight) and _glob(self.pattern).fullmatch(str(site)) is not None
        return _glob(self.pattern).fullmatch(site.path) is not None

    def __str__(self) -> str:
        """One line: pattern and formats."""
        formats = " ".join(f"{name}={getattr(self, name)}" for name in _OPERANDS if getattr(self, name) is not None)
        return f"{self.pattern}: {formats or 'nothing'}{' (if any)' if self.is_optional else ''}"


def _format(given: NumberFormat | str | None, where: str) -> NumberFormat | None:
    try:
        return parse_format(given) if isinstance(given, str) else given
    except ValueError as error:
        raise PolicyError(f"{where}: {error}") from None


@functools.lru_cache(maxsize=4096)
def _glob(pattern: str) -> re.Pattern[str]:
    """Brackets stand for themselves, unlike in fnmatch: they occur in paths."""
    parts = {"*": ".*", "?": "."}
    return re.compile("".join(parts.get(c, re.escape(c)) for c in pattern))


@dataclasses.dataclass(frozen=True, slots=True)
class Policy:
    """Ordered rules; immutable, printable, hashable, and a `Precision` that lowering can ask."""

    name: str
    rules: tuple[Rule, ...] = ()

    def formats(self, site: Site) -> Formats:
        """For every operand the format of the first rule that matches and names one."""
        found: dict[str, NumberFormat | None] = {}
        for rule in self.rules:
            if rule.matches(site):
                found |= {n: f for n in _OPERANDS if n not in found and (f := getattr(rule, n)) is not None}
        return Formats(**found)

    def with_rules(self, *rules: Rule, name: str | None = None) -> Policy:
        """This policy with rules in front, which so come first."""
        return Policy(name or f"{self.name}+", (*rules, *self.rules))

    def with_sensitive(self, *patterns: str) -> Policy:
        """This policy, but fp16 for the weights (or tables) of the sites that a pattern matches."""
        return self.with_rules(*(Rule(pattern, rhs="fp16") for pattern in patterns))

    def check_used(self, sites: Sequence[Site]) -> None:
        """Raises PolicyError for a rule that matches none of the sites and is not optional."""
        unused = [r for r in self.rules if not r.is_optional and not any(r.matches(site) for site in sites)]
        if unused:
            listed = sorted(set(map(str, sites)))
            shown = "\n  ".join(listed[:_MAX_LISTED] or ["none: the function has no product and no lookup"])
            more = f"\n  and {len(listed) - _MAX_LISTED} more" if len(listed) > _MAX_LISTED else ""
            raise PolicyError(
                f"policy {self.name!r}: {len(unused)} of {len(self.rules)} rules match nothing, the first is "
                f"{unused[0].pattern!r}. Correct the pattern, or pass is_optional=True. Sites of this function:\n  "
                f"{shown}{more}\nA weight stands behind an @ only if it is named in resident_argnums."
            )

    def __str__(self) -> str:
        """Name and rules, one a line."""
        return "\n".join([f"policy {self.name}", *(f"  {rule}" for rule in self.rules)])

    def to_json(self) -> str:
        """The policy as JSON, with the version of the form."""
        rules = [
            {"pattern": r.pattern}
            | {n: str(f) for n in _OPERANDS if (f := getattr(r, n)) is not None}
            | ({"is_optional": True} if r.is_optional else {})
            for r in self.rules
        ]
        return json.dumps({"lpu_jax_policy": VERSION, "name": self.name, "rules": rules}, indent=2)

    @classmethod
    def from_json(cls, text: str, where: str = "policy") -> Policy:
        """Reads what `to_json` wrote.

        Raises:
          PolicyError: no JSON, no policy, another version, or a bad rule; the message says which.
        """
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise PolicyError(f"{where}: not JSON: {error}") from error
        if not isinstance(content, dict) or "lpu_jax_policy" not in content:
            raise PolicyError(f'{where}: not a policy; expected {{"lpu_jax_policy": {VERSION}, "name", "rules"}}')
        if content["lpu_jax_policy"] != VERSION:
            raise PolicyError(
                f"{where}: version {content['lpu_jax_policy']!r} of the policy form, this lpu_jax reads {VERSION}. "
                "Write it again with the lpu_jax that is to read it."
            )
        name, rules = content.get("name"), content.get("rules")
        if not isinstance(name, str) or not isinstance(rules, list):
            raise PolicyError(f"{where}: expected a text 'name' and a list 'rules', got {name!r} and {rules!r}")
        return cls(name, tuple(_rule(item, f"{where}, rule {i}") for i, item in enumerate(rules)))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the policy to a file."""
        Path(path).write_text(self.to_json() + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Policy:
        """Reads a policy from a file; raises PolicyError as `from_json`, OSError if there is none."""
        return cls.from_json(Path(path).read_text(encoding="utf-8"), f"policy file '{path}'")


def _rule(item: Any, where: str) -> Rule:
    if not isinstance(item, dict) or not isinstance(item.get("pattern"), str):
        raise PolicyError(f"{where}: expected an object with a text 'pattern', got {item!r}")
    if unknown := sorted(set(item) - set(_KEYS)):
        raise PolicyError(f"{where}: unknown keys {unknown}; known are {list(_KEYS)}")
    formats = {n: item.get(n) for n in _OPERANDS}
    if wrong := [n for n, f in formats.items() if f is not None and not isinstance(f, str)]:
        raise PolicyError(f"{where}: {wrong[0]} is {item[wrong[0]]!r}, expected the name of a format")
    if not isinstance(item.get("is_optional", False), bool):
        raise PolicyError(f"{where}: is_optional is {item['is_optional']!r}, expected true or false")
    try:
        return Rule(item["pattern"], **formats, is_optional=item.get("is_optional", False))
    except PolicyError as error:
        raise PolicyError(f"{where}: {error}") from None


def _uniform(name: str, lhs: str, rhs: str) -> Policy:
    return Policy(name, (Rule("*dot_general", lhs=lhs, rhs=rhs, is_optional=True),))


_TRUEPOINT = (
    Rule("*sensitive*@*", rhs="fp16", is_optional=True),
    Rule("*expert*@*", rhs="bfp6", is_optional=True),
    Rule("*dot_general@*", rhs="bfp8", is_optional=True),
    Rule("*gather@*", rhs="fp16", is_optional=True),
    Rule("*dot_general", lhs="fp16", rhs="fp16", result="fp32", is_optional=True),
)
"""Sums are exact and leave the MXM as fp32, and everything between products is fp32: logits, softmax and norms."""

PRESETS: Mapping[str, Policy] = MappingProxyType({
    "fp32": _uniform("fp32", "fp32", "fp32"),
    "fp16": _uniform("fp16", "fp16", "fp16"),
    "fp8": _uniform("fp8", "e4m3", "e4m3"),
    "int8": _uniform("int8", "int8", "int8"),
    "bfp8": _uniform("bfp8", "fp16", "fp16").with_rules(
        Rule("*dot_general@*", rhs="bfp8", is_optional=True), name="bfp8"
    ),
    "truepoint": Policy("truepoint", _TRUEPOINT),
})  # fmt: skip
"""fp32, fp16, fp8 (e4m3) and int8 have that format for both operands of every product.

bfp8       weights in BFP8, all other operands in fp16
truepoint  weights in BFP8, those whose path or scope holds "expert" in BFP6, with "sensitive" in fp16; tables in
           fp16; all other operands in fp16, every result in fp32
"""

_ALIASES = {"highest": "fp32"}


def as_policy(precision: Policy | str) -> Policy:
    """The policy of a preset's name, or the policy itself.

    Raises:
      ValueError: an unknown name.
      TypeError: neither a name nor a policy.
    """
    if isinstance(precision, Policy):
        return precision
    if not isinstance(precision, str):
        raise TypeError(f"precision={precision!r} is neither a Policy nor the name of a preset ({', '.join(PRESETS)})")
    name = _ALIASES.get(precision, precision)
    if name not in PRESETS:
        raise ValueError(f"precision={precision!r} is unknown; use a Policy or one of {', '.join(PRESETS)}")
    return PRESETS[name]


@dataclasses.dataclass(slots=True)
class Recorder:
    """Asks a policy and keeps every site with the answer."""

    policy: Policy
    sites: list[tuple[Site, Formats]] = dataclasses.field(default_factory=list)

    def formats(self, site: Site) -> Formats:
        """As the policy."""
        formats = self.policy.formats(site)
        self.sites.append((site, formats))
        return formats
