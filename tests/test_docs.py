"""The documentation: its examples run, its reference is complete, its pictures are drawn."""

import importlib.util
import re
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

import lpu_jax
from lpu_jax.lowering.registry import find_rule, unregister_lowering

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WITH_EXAMPLES = [path for path in PAGES if "```python" in path.read_text()]


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_examples_of_a_page_run_from_top_to_bottom(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    document = Sybil([PythonCodeBlockParser(), SkipParser()], path=str(path.parent)).parse(path)
    examples = list(document.examples())
    assert examples
    try:
        for example in examples:
            example.evaluate()
    finally:
        if find_rule("softcap"):  # guide/rules.md registers it
            unregister_lowering("softcap")


def module_of(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_public_name_and_picture_is_in_the_reference():
    source = [(ROOT / "docs" / "reference.md").read_text()]
    module_of(ROOT / "docs" / "conf.py").fill_reference(None, "reference", source)
    assert "{{" not in source[0]
    listed = set(re.findall(r"^\.\. auto\w+:: lpu_jax\.([\w.]+)$", source[0], flags=re.MULTILINE))
    assert set(lpu_jax.__all__) <= listed
    assert {f"pictures.{name}" for name in ("timeline", "sram_map", "roofline", "pareto")} <= listed


def test_every_page_is_in_a_table_of_contents():
    index = (ROOT / "docs" / "index.md").read_text()
    entries = set(re.findall(r"^([\w/]+)$", index, flags=re.MULTILINE))
    assert entries == {str(path.relative_to(ROOT / "docs").with_suffix("")) for path in PAGES[1:]} - {"index"}


def test_readme_begins_with_a_picture_and_the_lines_that_make_it():
    readme, program = PAGES[0].read_text(), (ROOT / "docs" / "first_picture.py").read_text()
    lines = program.split('"""\n\n', 1)[1]
    assert f"```python\n{lines}```" in readme
    assert readme.index("![") < readme.index("```python") < readme.index("docs/first_picture.py") < 2000
    assert sum(bool(line) for line in lines.splitlines()) <= 11


def test_pictures_that_pages_show_are_those_that_the_script_draws(tmp_path):
    draw = module_of(ROOT / "docs" / "draw.py")
    drawn = {path.name for path in draw.write(tmp_path)}
    shown = {name for path in PAGES for name in re.findall(r"drawings/(\w+\.svg)", path.read_text())}
    assert shown == drawn == {path.name for path in (ROOT / "docs" / "drawings").iterdir()}
    assert all("<svg" in (tmp_path / name).read_text() for name in drawn)
