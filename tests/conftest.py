"""Shared by all tests: helper modules of tests/runtime can be imported from every test folder."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "runtime"))
