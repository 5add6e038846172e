"""Operations and bytes of a graph, before anything is scheduled."""

from __future__ import annotations

import numpy as np

from lpu_jax.arguments import num_bytes
from lpu_jax.runtime.ops import Elementwise, GraphLike, HostCall, LaneReduce, MatMul, Scan, While


def work(graph: GraphLike) -> tuple[int, int]:
    """(operations, bytes of operands and results) of a graph; a multiply-accumulate is two operations.

    A loop of unknown length makes one turn, and what the host computes is left out.
    """
    flops = size = 0
    for equation in graph.equations:
        operands = [graph.avals[x] for x in equation.operands if isinstance(x, int)]
        results = [graph.avals[x] for x in equation.results]
        op = equation.op
        if isinstance(op, HostCall):
            continue
        if isinstance(op, While):
            op = op.one_turn()
        if isinstance(op, Scan):
            body_flops, body_size = work(op.body)
            flops += op.num_iterations * body_flops
            size += op.num_iterations * body_size
            continue
        size += sum(num_bytes((a.shape, a.dtype, False)) for a in (*operands, *results))
        if isinstance(op, MatMul):
            flops += 2 * int(np.prod(results[0].shape, dtype=np.int64)) * operands[0].shape[-1]
        elif isinstance(op, Elementwise | LaneReduce):
            flops += int(np.prod((operands or results)[0].shape, dtype=np.int64))
    return flops, size
