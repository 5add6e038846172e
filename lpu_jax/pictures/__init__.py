"""Pictures of a compiled program with matplotlib, one call each; every one draws on `ax` or on new axes and returns it.

Colours are those of Okabe and Ito, which people with any colour vision tell apart; nothing rests on colour alone
where a label can say it. Cycles are on the horizontal axis wherever there is time.
"""

from lpu_jax.pictures.chains import binding_chain as binding_chain
from lpu_jax.pictures.chains import dependency_chain as dependency_chain
from lpu_jax.pictures.drawing import PALETTE as PALETTE
from lpu_jax.pictures.modules import cycles_per_module as cycles_per_module
from lpu_jax.pictures.pareto import pareto as pareto
from lpu_jax.pictures.roofline import roofline as roofline
from lpu_jax.pictures.sram import sram_map as sram_map
from lpu_jax.pictures.units import timeline as timeline
from lpu_jax.pictures.units import utilization as utilization
