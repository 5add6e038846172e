"""Shared by all tests: helper modules of some test folders and the benchmarks can be imported anywhere."""

import sys
from pathlib import Path

for folder in ("tests/runtime", "tests/calibration", "benchmarks"):
    sys.path.insert(0, str(Path(__file__).parents[1] / folder))
