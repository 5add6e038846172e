"""Fixtures of the rule tests."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from on_lpu import lower, run_on_lpu


@pytest.fixture
def on_lpu() -> Callable[..., Any]:
    """on_lpu(fun, *args, precision=...) -> results as NumPy arrays."""
    return run_on_lpu


@pytest.fixture
def lowered() -> Callable[..., Any]:
    """lowered(fun, *args, precision=...) -> Graph."""
    return lower


@pytest.fixture
def random() -> np.random.Generator:
    """A generator with a fixed seed."""
    return np.random.default_rng(7)
