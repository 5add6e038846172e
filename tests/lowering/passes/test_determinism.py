"""The same graph gives the same bytes: twice in a process, and under any hash seed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from families import FAMILIES, build

from lpu_jax.chips import groqchip1, tiny
from lpu_jax.lowering.pipeline import compile_graph

NAMES = ("scan_of_matmuls", "transpose", "scatter_rows", "lane_max_min", "elementwise_bool")
SCRIPT = f"""
from families import build
from lpu_jax.chips import tiny
from lpu_jax.lowering.pipeline import compile_graph
print(*(compile_graph(build(name, 17)[0], tiny).program.digest() for name in {NAMES!r}))
"""


@pytest.mark.parametrize("name", FAMILIES)
def test_two_compiles_give_equal_bytes(name):
    for chip in (tiny, groqchip1):
        first, second = (compile_graph(build(name, 33)[0], chip).program.to_bytes() for _ in range(2))
        assert first == second


def test_hash_seed_does_not_matter():
    folder = str(Path(__file__).parent.parent)
    expected = [compile_graph(build(name, 17)[0], tiny).program.digest() for name in NAMES]
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": folder, "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == expected


def test_different_programs_have_different_digests():
    digests = {compile_graph(build(name, 17)[0], tiny).program.digest() for name in FAMILIES}
    assert len(digests) == len(FAMILIES)
