"""The chips that programs can be made for: `lpu_jax.chips.groqchip1`, `lp30` and `tiny`."""

from lpu_jax.runtime.chip import GROQCHIP1 as groqchip1  # noqa: N811 (a public name of the package)
from lpu_jax.runtime.chip import LP30 as lp30  # noqa: N811
from lpu_jax.runtime.chip import TINY as tiny  # noqa: N811
from lpu_jax.runtime.chip import ChipSpec, chip_by_name

__all__ = ["ChipSpec", "chip_by_name", "groqchip1", "lp30", "tiny"]
