"""General gather and scatter: every form becomes rows of a table at computed row numbers.

Axes of which a window covers all are the row; the others, in front and flattened, number the rows:

    row(batch, offset) = sum over numbered axes d of (start_d(batch) + offset_d) * stride_d
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax


@dataclasses.dataclass(frozen=True)
class Windows:
    """Windows of one operand.

    shape: of the operand; sizes: window sizes per operand axis; index_map: operand axis of every index component;
    batching: operand axis -> axis of the batch; batch_shape: of the indices without their components.
    """

    shape: tuple[int, ...]
    sizes: tuple[int, ...]
    index_map: tuple[int, ...]
    batching: dict[int, int]
    batch_shape: tuple[int, ...]

    @property
    def numbered(self) -> list[int]:
        """Operand axes that number the rows."""
        fixed = {*self.index_map, *self.batching}
        return [d for d, (n, w) in enumerate(zip(self.shape, self.sizes, strict=True)) if n != w or d in fixed]

    @property
    def rows(self) -> list[int]:
        """Operand axes that lie within a row."""
        return [d for d in range(len(self.shape)) if d not in self.numbered]

    @property
    def num_rows(self) -> int:
        """Rows of the table."""
        return math.prod(self.shape[d] for d in self.numbered)

    def table(self, x: Any) -> Any:
        """The operand as [rows, row elements]."""
        width = math.prod(self.shape[d] for d in self.rows)
        return lax.reshape(lax.transpose(x, (*self.numbered, *self.rows)), (self.num_rows, width))

    def operand(self, table: Any) -> Any:
        """The inverse of `table`."""
        order = (*self.numbered, *self.rows)
        spread = lax.reshape(table, [self.shape[d] for d in order])
        return lax.transpose(spread, [int(i) for i in np.argsort(order)])

    def starts(self, indices: Any) -> tuple[dict[int, Any], Any]:
        """Clamped start per numbered axis, and where all starts were inside; arrays of the batch shape."""
        starts, is_inside = {}, jnp.ones(self.batch_shape, bool)
        for component, axis in enumerate(self.index_map):
            given = lax.index_in_dim(indices, component, indices.ndim - 1, keepdims=False)
            if str(given.dtype) == "uint32":
                given = jnp.minimum(given, np.uint32(2**31 - 1))
            given = lax.convert_element_type(given, jnp.int32)
            largest = self.shape[axis] - self.sizes[axis]
            starts[axis] = lax.max(lax.min(given, jnp.full_like(given, largest)), jnp.full_like(given, 0))
            is_inside = is_inside & (given == starts[axis])
        for axis, position in self.batching.items():
            starts[axis] = lax.broadcasted_iota(jnp.int32, self.batch_shape, position)
        return starts, is_inside

    def row_numbers(self, starts: dict[int, Any]) -> Any:
        """int32 [batch..., window sizes of the numbered axes]"""
        numbered = self.numbered
        offsets = np.zeros([self.sizes[d] for d in numbered], np.int32)
        first = jnp.zeros(self.batch_shape, jnp.int32)
        for position, axis in enumerate(numbered):
            stride = math.prod(self.shape[d] for d in numbered[position + 1 :])
            steps = np.arange(self.sizes[axis], dtype=np.int32) * np.int32(stride)
            offsets += steps.reshape([-1 if i == position else 1 for i in range(len(numbered))])
            if axis in starts:
                first = first + starts[axis] * np.int32(stride)
        return lax.expand_dims(first, range(first.ndim, first.ndim + offsets.ndim)) + offsets


def gathered(x: Any, indices: Any, windows: Windows, fill: Any, offset_dims: Sequence[int], dropped: set[int]) -> Any:
    """The windows, with their axes at offset_dims of the result; a window outside holds `fill` unless that is None."""
    starts, is_inside = windows.starts(indices)
    numbers = windows.row_numbers(starts)
    rows = windows.table(x).at[lax.reshape(numbers, (numbers.size,))].get(mode="promise_in_bounds")
    order = [*windows.numbered, *windows.rows]
    result = lax.reshape(rows, (*windows.batch_shape, *(windows.sizes[d] for d in order)))
    if fill is not None:
        inside = lax.broadcast_in_dim(is_inside, result.shape, range(is_inside.ndim))
        result = lax.select(inside, result, jnp.full_like(result, fill))
    rank = len(windows.batch_shape)
    present = [rank + i for i, d in enumerate(order) if d in dropped]
    result = lax.squeeze(result, present)
    kept = [d for d in order if d not in dropped]
    places = iter([rank + kept.index(d) for d in sorted(kept)])
    batch = iter(range(rank))
    return lax.transpose(result, [next(places) if i in offset_dims else next(batch) for i in range(result.ndim)])
