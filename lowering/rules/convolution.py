"""Rule of conv_general_dilated: one matrix product over taps and channels of shifted views of the padded input.

    y[n, p, o] = sum over taps t, channels c of  x[n, p * stride + t * dilation, c] * w[t, c, o]

The views are strided slices, joined along the contracted axis: [N P, T C] x [T C, O], so that every sum is exact and
rounded once. Depthwise convolutions multiply and add on the VXM, in float32, tap by tap.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from lpu_jax.lowering.emit import FLOATS, Operand
from lpu_jax.lowering.registry import RuleContext, register_lowering


@register_lowering("conv_general_dilated")
def _conv_general_dilated(
    ctx: RuleContext,
    lhs: Operand,
    rhs: Operand,
    *,
    window_strides: Any,
    padding: Any,
    lhs_dilation: Any,
    rhs_dilation: Any,
    dimension_numbers: Any,
    feature_group_count: int,
    batch_group_count: int,
    precision: Any,
    preferred_element_type: Any,
    out_sharding: Any = None,
) -> Sequence[Operand]:
    """Any number of spatial axes, strides, dilations, groups; products of float and int8."""
    ctx.require(out_sharding=(out_sharding, [None]))
    if 0 in (*ctx.avals_in[0].shape, *ctx.avals_in[1].shape, *ctx.avals_out[0].shape):
        raise ctx.unsupported("a convolution of or into an empty array")
    target = ctx.avals_out[0].dtype

    def fun(x: Any, w: Any) -> Any:
        numbers = dimension_numbers
        x = lax.transpose(x, (numbers.lhs_spec[0], *numbers.lhs_spec[2:], numbers.lhs_spec[1]))
        w = lax.transpose(w, (*numbers.rhs_spec[2:], numbers.rhs_spec[1], numbers.rhs_spec[0]))
        config = [(int(a), int(b), int(d) - 1) for (a, b), d in zip(padding, lhs_dilation, strict=True)]
        x = lax.pad(x, np.zeros((), x.dtype), [(0, 0, 0), *config, (0, 0, 0)])
        views = tap_views(x, w.shape[:-2], window_strides, rhs_dilation)
        if feature_group_count == x.shape[-1] == w.shape[-1] > 1 and target in FLOATS:
            y = _depthwise(views, w, target)
        else:
            y = _product(views, w, feature_group_count, batch_group_count, precision, preferred_element_type or target)
        order = (numbers.out_spec[0], *numbers.out_spec[2:], numbers.out_spec[1])
        return lax.convert_element_type(lax.transpose(y, [int(i) for i in np.argsort(order)]), target)

    return ctx.rewrite(fun, lhs, rhs)


def tap_views(x: Any, kernel: Sequence[int], strides: Sequence[int], dilation: Sequence[int]) -> list[Any]:
    """For every tap the elements of [N, spatial..., C] that it meets, one per output position."""
    spatial = x.shape[1:-1]
    counts = [(n - (k - 1) * d - 1) // s + 1 for n, k, d, s in zip(spatial, kernel, dilation, strides, strict=True)]
    views = []
    for tap in itertools.product(*map(range, kernel)):
        start = [t * d for t, d in zip(tap, dilation, strict=True)]
        limit = [a + (c - 1) * s + 1 for a, c, s in zip(start, counts, strides, strict=True)]
        views.append(lax.slice(x, (0, *start, 0), (x.shape[0], *limit, x.shape[-1]), (1, *strides, 1)))
    return views


def _depthwise(views: Sequence[Any], w: Any, target: str) -> Any:
    """Sum over taps of view * weights [C], in float32."""
    weights = lax.convert_element_type(lax.reshape(w, (len(views), w.shape[-1])), jnp.float32)
    total: Any = None
    for view, row in zip(views, weights, strict=True):
        term = lax.convert_element_type(view, jnp.float32) * row
        total = term if total is None else total + term
    return lax.convert_element_type(total, target)


def _product(
    views: Sequence[Any], w: Any, feature_groups: int, batch_groups: int, precision: Any, preferred: Any
) -> Any:
    """[G, M, T C] x [G, T C, O] with G feature or batch groups, 1 for none."""
    groups, taps = max(feature_groups, batch_groups), len(views)
    batch, *spatial, channels = views[0].shape
    features, depth = w.shape[-1] // groups, w.shape[-2]
    kernel = lax.transpose(lax.reshape(w, (taps, depth, groups, features)), (2, 0, 1, 3))
    kernel = lax.reshape(kernel, (groups, taps * depth, features))
    parts = []
    for view in views:
        rows = math.prod((batch // batch_groups, *spatial))
        if batch_groups > 1:
            parts.append(lax.reshape(view, (groups, rows, channels)))
        else:
            parts.append(lax.transpose(lax.reshape(view, (rows, groups, depth)), (1, 0, 2)))
    patches = lax.concatenate(parts, 2) if taps > 1 else parts[0]
    numbers = (((2,), (1,)), ((0,), (0,)))
    y = lax.dot_general(patches, kernel, numbers, precision=precision, preferred_element_type=preferred)
    y = lax.reshape(y, (groups, batch // batch_groups, *spatial, features))
    y = lax.transpose(y, (*range(1, y.ndim - 1), 0, y.ndim - 1))
    return lax.reshape(y, (batch // batch_groups, *spatial, groups * features))
