"""lpu_jax: what would this JAX model do on an LPU, to the cycle and to the bit?

The public names are imported when they are first used, so that `lpu_jax.runtime` can be used without the compiler.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lpu_jax import chips as chips
    from lpu_jax import pictures as pictures
    from lpu_jax.arguments import ArgumentMismatchError as ArgumentMismatchError
    from lpu_jax.arguments import DonatedArgumentError as DonatedArgumentError
    from lpu_jax.arguments import NonFiniteWeightError as NonFiniteWeightError
    from lpu_jax.calibration import Budget as Budget
    from lpu_jax.calibration import Calibration as Calibration
    from lpu_jax.calibration import calibrate as calibrate
    from lpu_jax.design_space import pareto_front as pareto_front
    from lpu_jax.design_space import sweep as sweep
    from lpu_jax.loaded import Loaded as Loaded
    from lpu_jax.lowering.registry import register_lowering as register_lowering
    from lpu_jax.precision import Policy as Policy
    from lpu_jax.precision import Rule as Rule
    from lpu_jax.quantized import QuantizedArray as QuantizedArray
    from lpu_jax.quantized import quantize as quantize
    from lpu_jax.report import Report as Report
    from lpu_jax.report import profile as profile
    from lpu_jax.runtime.errors import BudgetError as BudgetError
    from lpu_jax.runtime.errors import LpuError as LpuError
    from lpu_jax.runtime.errors import ModelFileError as ModelFileError
    from lpu_jax.runtime.errors import NumberFormatError as NumberFormatError
    from lpu_jax.runtime.errors import PolicyError as PolicyError
    from lpu_jax.runtime.errors import ProgramError as ProgramError
    from lpu_jax.runtime.errors import ScheduleError as ScheduleError
    from lpu_jax.runtime.errors import SramOverflowError as SramOverflowError
    from lpu_jax.runtime.errors import TripCountError as TripCountError
    from lpu_jax.runtime.errors import UnsupportedInputError as UnsupportedInputError
    from lpu_jax.runtime.errors import UnsupportedPrimitiveError as UnsupportedPrimitiveError
    from lpu_jax.stages import Compiled as Compiled
    from lpu_jax.stages import Lowered as Lowered
    from lpu_jax.tracing import Traced as Traced
    from lpu_jax.transform import LpuFunction as LpuFunction
    from lpu_jax.transform import lpu as lpu

__version__ = "0.1.0"

_HOME = {
    "ArgumentMismatchError": "arguments",
    "Budget": "calibration",
    "BudgetError": "runtime.errors",
    "Calibration": "calibration",
    "Compiled": "stages",
    "DonatedArgumentError": "arguments",
    "Loaded": "loaded",
    "Lowered": "stages",
    "LpuError": "runtime.errors",
    "LpuFunction": "transform",
    "ModelFileError": "runtime.errors",
    "NonFiniteWeightError": "arguments",
    "NumberFormatError": "runtime.errors",
    "Policy": "precision",
    "PolicyError": "runtime.errors",
    "ProgramError": "runtime.errors",
    "QuantizedArray": "quantized",
    "Report": "report",
    "Rule": "precision",
    "ScheduleError": "runtime.errors",
    "SramOverflowError": "runtime.errors",
    "Traced": "tracing",
    "TripCountError": "runtime.errors",
    "UnsupportedInputError": "runtime.errors",
    "UnsupportedPrimitiveError": "runtime.errors",
    "calibrate": "calibration",
    "lpu": "transform",
    "pareto_front": "design_space",
    "profile": "report",
    "quantize": "quantized",
    "register_lowering": "lowering.registry",
    "sweep": "design_space",
}
"""public name: module that defines it"""

_MODULES = ("chips", "pictures")

__all__ = [*sorted(_HOME), *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"lpu_jax.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'lpu_jax' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"lpu_jax.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
