"""`profile` and its `Report`: where the cycles of a program go, by unit, over time and by the user's names."""

from lpu_jax.report.costs import Costs as Costs
from lpu_jax.report.costs import measure as measure
from lpu_jax.report.host import pcie_seconds as pcie_seconds
from lpu_jax.report.summary import Report as Report
from lpu_jax.report.summary import make_report as make_report
from lpu_jax.report.summary import profile as profile
from lpu_jax.report.tree import Node as Node
