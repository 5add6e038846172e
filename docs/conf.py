"""Sphinx: `sphinx-build -W -b html docs PATH`. With -W, a link to a page or heading that is not there is an error.

The page `reference.md` has a line `{{ KIND }}` for each kind of public name; it is filled in here, so that none is
forgotten.
"""

import inspect
import re
import types
from typing import Any

import lpu_jax

project = "lpu_jax"
author = "the lpu_jax contributors"
copyright = author
release = lpu_jax.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"lpu_jax {release}"

myst_heading_anchors = 3
default_role = "code"  # `x` in a docstring is code, as in the pages

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_default_options = {"show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Invariants", "Layout", "Source", "Assumption"]


def kind_of(value: Any) -> str:
    """What a public name of the package is: errors, classes, functions or modules."""
    if isinstance(value, types.ModuleType):
        return "modules"
    if inspect.isclass(value):
        return "errors" if issubclass(value, Exception) else "classes"
    return "functions"


def directives() -> dict[str, list[str]]:
    """Kind -> directives of autodoc for all public names, and for the pictures."""
    found: dict[str, list[str]] = {"functions": [], "classes": [], "errors": [], "modules": [], "pictures": []}
    ways = {"functions": "autofunction", "classes": "autoclass", "errors": "autoexception", "modules": "automodule"}
    for name in lpu_jax.__all__:
        kind = kind_of(getattr(lpu_jax, name))
        lines = [f".. {ways[kind]}:: lpu_jax.{name}"]
        if kind == "classes":
            lines += ["   :members:", "   :inherited-members:", "   :special-members: __call__"]
        found[kind] += lines
    for name, value in sorted(vars(lpu_jax.pictures).items()):
        is_ours = inspect.isfunction(value) and value.__module__.startswith("lpu_jax.")
        if is_ours and not name.startswith("_") and "Axes" in str(inspect.signature(value).return_annotation):
            found["pictures"].append(f".. autofunction:: lpu_jax.pictures.{name}")
    return found


def fill_reference(app: Any, name: str, source: list[str]) -> None:
    """Puts the directives into the page of the reference."""
    if name == "reference":
        for kind, lines in directives().items():
            source[0] = source[0].replace("{{ " + kind + " }}", "\n".join(lines))


def keep_text(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """|x| in a docstring is the magnitude of x and no substitution, *x no emphasis, and `x`s is code with an s."""
    for number, line in enumerate(lines):
        bullet = re.match(r"\s*\* ", line)
        start = bullet.end() if bullet else 0
        parts = re.split(r"(`[^`]*`)", line[start:])
        texts = [re.sub(r"([*|])", r"\\\1", text) for text in parts[::2]]
        texts[1:] = [f"\\ {text}" if text[:1].isalnum() else text for text in texts[1:]]
        parts[::2] = texts
        lines[number] = line[:start] + "".join(parts)


def setup(app: Any) -> None:
    """Connects the reference."""
    app.connect("source-read", fill_reference)
    app.connect("autodoc-process-docstring", keep_text, priority=400)  # before napoleon, which writes such marks
