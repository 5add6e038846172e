"""`Stage`: what Lowered, Compiled and Loaded tell of their arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lpu_jax.tracing import Traced


class Stage:
    """What Lowered, Compiled and Loaded tell of their arguments."""

    def __init__(self, traced: Traced) -> None:
        self.traced = traced

    @property
    def in_tree(self) -> Any:
        """Structure of (args, kwargs)."""
        return self.traced.in_tree

    @property
    def out_tree(self) -> Any:
        """Structure of the result."""
        return self.traced.out_tree

    @property
    def in_avals(self) -> Any:
        """Arguments as (args, kwargs) of ShapeDtypeStructs."""
        return self.traced.in_avals

    @property
    def args_info(self) -> Any:
        """Arguments as (args, kwargs) of ArgInfo."""
        return self.traced.args_info

    @property
    def out_info(self) -> Any:
        """Results as a tree of ShapeDtypeStructs."""
        return self.traced.out_info
