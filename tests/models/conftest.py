"""Fixtures of the model tests."""

import pytest

from lpu_jax.models.download import cached_model_path


@pytest.fixture(scope="session")
def real_model_path():
    path = cached_model_path()
    if path is None:
        pytest.skip("the default model is not in the cache")
    return path
