"""`python -m lpu_jax` is the command `lpu-jax`."""

import sys

from lpu_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
