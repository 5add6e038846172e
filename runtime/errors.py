"""Typed errors of the project. Every message names the value, the limit, the user's line and the way out."""


class LpuError(Exception):
    """Base class of every error that lpu_jax raises on purpose."""


class UnsupportedPrimitiveError(LpuError, NotImplementedError):
    """A traced function holds primitives (or parameter values) without an LPU lowering."""


class UnsupportedInputError(LpuError, TypeError):
    """An argument has a dtype or shape that the LPU cannot take (float64, complex, dynamic shapes)."""


class PolicyError(LpuError, ValueError):
    """A precision policy is malformed, of another version, or has rules that match nothing."""


class BudgetError(LpuError, ValueError):
    """A budget that no policy can meet; `least` is what could be met, in its unit."""

    def __init__(self, message: str, least: int) -> None:
        """Keeps the least that could be met."""
        super().__init__(message)
        self.least = least


class NumberFormatError(LpuError, ValueError):
    """An operation or a chip cannot take a number format."""


class SramOverflowError(LpuError):
    """The values of a program do not fit into the SRAM of the chip."""


class ChipLimitError(LpuError, ValueError):
    """A chip has too few of something for one operation; names the field of ChipSpec, its value and what is needed."""


class ScheduleError(LpuError):
    """A pass produced an IR that breaks its own invariants (a compiler bug), found by a verifier."""


class ProgramError(LpuError, ValueError):
    """A `Program` breaks a rule of the machine; the message names cycle, queue and operands."""


class ModelFileError(LpuError, ValueError):
    """A model file is missing, truncated or not what it should be."""


class TripCountError(LpuError, RuntimeError):
    """A loop made `max_trip_count` turns and would go on."""


def trip_count_error(name: str, max_trip_count: int) -> TripCountError:
    """The error of a loop that does not end."""
    return TripCountError(
        f"the loop {name} made {max_trip_count} turns and would go on. If it needs more, pass a larger "
        "max_trip_count to lpu_jax.lpu."
    )
