"""The research notebooks: each is executed from top to bottom, in a kernel of its own and without the cache of weights.

The one on TruePoint runs on the weights of the sentence encoder if their package is installed, else on random ones.
"""

import time
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
MAX_SECONDS = 60

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def test_notebooks_are_numbered():
    numbers = [int(path.stem[:2]) for path in NOTEBOOKS]
    assert numbers
    assert len(set(numbers)) == len(numbers)


@each
def test_it_is_saved_without_output_and_begins_with_a_question(path):
    notebook = read(path)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")
    assert "**Question: " in first.source
    assert "## What it means" in notebook.cells[-1].source


@pytest.mark.slow
@each
def test_it_runs_within_a_minute_and_shows_a_picture(path, tmp_path, monkeypatch):
    monkeypatch.setenv("LPU_JAX_CACHE", str(tmp_path))
    monkeypatch.delenv("MPLBACKEND", raising=False)
    notebook = read(path)
    start = time.monotonic()
    NotebookClient(notebook, timeout=MAX_SECONDS, resources={"metadata": {"path": str(tmp_path)}}).execute()
    seconds = time.monotonic() - start
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert [output.text for output in outputs if output.output_type == "stream" and output.name == "stderr"] == []
    assert seconds < MAX_SECONDS
