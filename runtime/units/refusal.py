"""The error of a unit that meets a hazard; the machine adds cycle, queue and operands once."""


class Refusal(Exception):  # noqa: N818
    """What is wrong with the event that is being executed.

    index: which of the events handed over together, 0 if there was one.
    """

    def __init__(self, message: str, index: int = 0) -> None:
        """A message without the place."""
        super().__init__(message)
        self.index = index
