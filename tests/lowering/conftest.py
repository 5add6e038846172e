"""Helper modules of tests/lowering can be imported from its subfolders."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
