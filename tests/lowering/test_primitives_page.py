"""docs/primitives.md says what the registry says."""

from pathlib import Path

from lpu_jax.lowering.primitives_page import page

PAGE = Path(__file__).parents[2] / "docs" / "primitives.md"


def test_the_page_is_that_of_the_registry():
    assert PAGE.read_text() == page(), "run python -m lpu_jax.lowering.primitives_page > docs/primitives.md"


def test_a_limit_is_told():
    assert "| `sort` | VXM, MEM | Several keys, always stable; axes of up to 4096 elements. |" in page()
