"""docs/primitives.md from the registry: `python -m lpu_jax.lowering.primitives_page > docs/primitives.md`."""

from __future__ import annotations

import inspect
import sys

from lpu_jax.lowering import lower
from lpu_jax.lowering.registry import Registration, find_rule, supported_primitives

_UNITS = {
    "blocks": "none (weights are unpacked when they are loaded)",
    "control": "none (calls are inlined, loops are program blocks)",
    "convolution": "MXM, VXM",
    "linear_algebra": "VXM, MXM, MEM",
    "loops": "none (the host starts every turn)",
    "indexing": "MEM (gather, scatter), VXM",
    "matmul": "MXM, VXM",
    "moves": "MEM, SXM",
    "reductions": "VXM, SXM, MXM",
    "windows": "VXM, MEM",
    "cumulative": "VXM, MEM",
    "sorting": "VXM, MEM",
    "scattering": "MEM (gather, scatter), VXM",
}
_HEAD = """# Primitives

Generated from the registry of lowering rules; every primitive below becomes instructions with cycles on both executors.
Anything else raises `UnsupportedPrimitiveError`, as do parameter values that a rule does not implement. *Limits* is the
first paragraph of the rule's own description.

| primitive | unit | limits |
|---|---|---|
"""


def page() -> str:
    """The page as Markdown."""
    assert lower  # importing it registers the rules
    rows = [_row(name, registration) for name in supported_primitives() if (registration := find_rule(name))]
    return _HEAD + "".join(row for row in rows if row)


def _row(name: str, registration: Registration) -> str:
    module = registration.rule.__module__
    if ".lowering.rules." not in module:
        return ""  # a user's own rule
    family = module.rpartition(".")[2]
    text = (inspect.getdoc(registration.rule) or "").split("\n\n")[0].replace("\n", " ").replace("|", "\\|")
    return f"| `{name}` | {_UNITS.get(family, 'VXM')} | {text} |\n"


if __name__ == "__main__":
    sys.stdout.write(page())
