"""Rule of conv_general_dilated: one matrix product over taps and channels of shifted views of the padded input.

    y[n, p, o] = sum over taps t, channels c of  x[n, p * stride + t * dilation, c] * w[t, c, o]

The views are strided slices, joined along the contracted axis: [N P, T C] x [T C, O], so that every sum is exact and
rounded once. The input is narrowed before it is sliced, with one scale per image, so that the views need no work and
the MXM multiplies them where they lie, tap by tap. Depthwise convolutions multiply and add on the VXM, in float32.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from lpu_jax.lowering.emit import FLOATS, Operand
from lpu_jax.lowering.registry import RuleContext, register_lowering
from lpu_jax.lowering.rules.matmul import product_of_patches
from lpu_jax.runtime.chip import GROQCHIP1

_ROWS_PER_LOAD = GROQCHIP1.num_streams_per_load
"""Rows of the MXM that are loaded at a time, of weights of one byte; those of other widths are fewer and divide it."""
_LANES = GROQCHIP1.num_lanes
"""Lanes of a vector, as on most chips; on one with fewer, windows are built by the SXM."""


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
    numbers, target = dimension_numbers, ctx.avals_out[0].dtype
    image_axes = (numbers.lhs_spec[0], *numbers.lhs_spec[2:], numbers.lhs_spec[1])
    tap_axes = (*numbers.rhs_spec[2:], numbers.rhs_spec[1], numbers.rhs_spec[0])
    out_axes = np.argsort((numbers.out_spec[0], *numbers.out_spec[2:], numbers.out_spec[1])).tolist()
    dtypes = [aval.dtype for aval in ctx.avals_in]
    is_product = target in FLOATS and all(dtype in (*FLOATS, "int8") for dtype in dtypes)
    convolution = Convolution(
        images=tuple(ctx.avals_in[0].shape[i] for i in image_axes),
        taps=tuple(ctx.avals_in[1].shape[i] for i in tap_axes),
        strides=tuple(window_strides),
        dilation=tuple(rhs_dilation),
        padding=tuple((int(a), int(b), int(d) - 1) for (a, b), d in zip(padding, lhs_dilation, strict=True)),
        feature_groups=feature_group_count,
        batch_groups=batch_group_count,
        rows_per_load=_ROWS_PER_LOAD if is_product else 1,
    )
    is_product = is_product and not convolution.is_depthwise
    fold = find_fold(convolution) if is_product else None

    def matrices(w: Any) -> Any:
        w = lax.transpose(w, tap_axes)
        return convolution.matrices(w) if fold is None else fold.convolution.matrices(w)

    def results(y: Any) -> Any:
        return lax.transpose(convolution.results(y), out_axes)

    def whole(x: Any, w: Any) -> Any:
        x = lax.transpose(x, image_axes)
        if convolution.is_depthwise and target in FLOATS:
            y = lax.transpose(_depthwise(convolution.views(x), lax.transpose(w, tap_axes), target), out_axes)
        else:
            dtype = preferred_element_type or target
            y = results(_products(convolution.patches(x), matrices(w), precision, dtype))
        return lax.convert_element_type(y, target)

    if not is_product:
        return ctx.rewrite(whole, lhs, rhs)
    (x,) = ctx.rewrite(lambda x: lax.transpose(x, image_axes), lhs, avals=ctx.avals_in[:1])
    (kernel,) = ctx.rewrite(matrices, rhs, avals=ctx.avals_in[1:])
    if fold is not None:
        (x,) = ctx.rewrite(fold.bands, x, avals=[ctx.aval(x)])
        x = ctx.elementwise("identity", x, dtype=dtypes[0])  # in memory, so that windows are views of it
    shape = ctx.aval(x).shape
    flat = ctx.reshape(x, (shape[0], math.prod(shape[1:-1]), shape[-1]))

    def patches(x: int) -> int:
        def fun(x: Any) -> Any:
            x = lax.reshape(x, shape)
            return convolution.patches(x) if fold is None else fold.convolution.patches(fold.windows(x))

        return ctx.rewrite(fun, x, avals=[ctx.aval(x)])[0]  # type: ignore[return-value]

    per_image = math.prod(convolution.counts)
    product = dataclasses.replace(ctx, primitive="dot_general")  # as which policies know it
    y = product_of_patches(product, flat, patches, per_image, kernel, precision, target)  # type: ignore[arg-type]
    return ctx.rewrite(results, y, avals=[ctx.aval(y)])


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Convolution:
    """Shapes of a convolution of images [N, spatial..., C] with taps [spatial..., C / feature groups, O].

    padding: (low, high, interior) of every spatial axis. rows_per_load: channels of a tap are filled up with zeros to
    so many rows of the MXM, or a multiple of them, so that weights are loaded tap by tap.
    """

    images: tuple[int, ...]
    taps: tuple[int, ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int, int], ...]
    feature_groups: int
    batch_groups: int
    rows_per_load: int

    @property
    def num_taps(self) -> int:
        """Positions of the window of taps, in all spatial axes."""
        return math.prod(self.taps[:-2])

    @property
    def is_depthwise(self) -> bool:
        """Whether every channel has taps of its own, and one result."""
        return self.feature_groups == self.images[-1] == self.taps[-1] > 1

    @property
    def num_rows(self) -> int:
        """Rows of the MXM for each tap: channels of a feature group, with zeros up to whole loads of weights."""
        depth = self.taps[-2]
        return -(-depth // self.rows_per_load) * self.rows_per_load if self.num_taps > 1 else depth

    @property
    def counts(self) -> tuple[int, ...]:
        """Output positions of every spatial axis."""
        padded = zip(self.images[1:-1], self.padding, strict=True)
        sizes = [low + high + n + (n - 1) * interior for n, (low, high, interior) in padded]
        return window_counts(sizes, self.taps[:-2], self.strides, self.dilation)

    def views(self, x: Any) -> list[Any]:
        """For every tap the elements [N, counts..., C] that it meets."""
        padded = lax.pad(x, np.zeros((), x.dtype), [(0, 0, 0), *self.padding, (0, 0, 0)])
        return tap_views(padded, self.taps[:-2], self.strides, self.dilation)

    def patches(self, x: Any) -> Any:
        """[G, M, T num_rows] with G feature or batch groups, 1 for none."""
        parts, depth = [], self.taps[-2]
        for view in self.views(x):
            rows = math.prod(view.shape[:-1]) // self.batch_groups
            if self.batch_groups > 1:
                part = lax.reshape(view, (self.batch_groups, rows, depth))
            else:
                part = lax.transpose(lax.reshape(view, (rows, self.feature_groups, depth)), (1, 0, 2))
            zero = np.zeros((), x.dtype)
            parts.append(lax.pad(part, zero, [(0, 0, 0), (0, 0, 0), (0, self.num_rows - depth, 0)]))
        return lax.concatenate(parts, 2) if len(parts) > 1 else parts[0]

    def matrices(self, w: Any) -> Any:
        """[G, T num_rows, O / G]."""
        groups = max(self.feature_groups, self.batch_groups)
        depth, features = self.taps[-2:]
        kernel = lax.transpose(lax.reshape(w, (self.num_taps, depth, groups, features // groups)), (2, 0, 1, 3))
        zero = np.zeros((), w.dtype)
        kernel = lax.pad(kernel, zero, [(0, 0, 0), (0, 0, 0), (0, self.num_rows - depth, 0), (0, 0, 0)])
        return lax.reshape(kernel, (groups, self.num_taps * self.num_rows, features // groups))

    def results(self, y: Any) -> Any:
        """[G, M, O / G] as [N / batch groups, counts..., O]."""
        batch = self.images[0] // self.batch_groups
        y = lax.reshape(y, (y.shape[0], batch, *self.counts, y.shape[-1]))
        y = lax.transpose(y, (*range(1, y.ndim - 1), 0, y.ndim - 1))
        return lax.reshape(y, (batch, *self.counts, self.taps[-1]))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """A convolution of few channels as one without its last spatial axis, of all that a window sees along it.

    `bands` bring pixels with their neighbours into vectors: [N, spatial..., W, C] becomes [N, spatial..., B, L], bands
    of `outputs` windows each, which overlap; `windows` are then neighbouring lanes of one vector each.
    """

    whole: Convolution
    outputs: int
    convolution: Convolution

    @property
    def num_bands(self) -> int:
        """Bands of every row of pixels."""
        return -(-self.whole.counts[-1] // self.outputs)

    def bands(self, x: Any) -> Any:
        """[N, spatial..., W, C] to [N, spatial..., B, L]."""
        *lead, width, channels = x.shape
        low, high, _ = self.whole.padding[-1]
        step = self.outputs * self.whole.strides[-1] * channels
        length = step + (self.whole.taps[-3] - self.whole.strides[-1]) * channels
        more = max(0, (self.num_bands - 1) * step + length - (low + width + high) * channels)
        config = [*[(0, 0, 0)] * len(lead), (low * channels, high * channels + more, 0)]
        x = lax.pad(lax.reshape(x, (*lead, width * channels)), np.zeros((), x.dtype), config)
        parts = [lax.slice_in_dim(x, band * step, band * step + length, axis=-1) for band in range(self.num_bands)]
        return jnp.stack(parts, axis=-2)

    def windows(self, x: Any) -> Any:
        """[N, spatial..., B, L] to [N, spatial..., counts[-1], K C]."""
        channels, size = self.whole.images[-1], self.convolution.images[-1]
        starts = [output * self.whole.strides[-1] * channels for output in range(self.outputs)]
        windows = jnp.stack([lax.slice_in_dim(x, start, start + size, axis=-1) for start in starts], axis=-2)
        windows = lax.reshape(windows, (*x.shape[:-2], self.num_bands * self.outputs, size))
        return lax.slice_in_dim(windows, 0, self.whole.counts[-1], axis=-2)


def find_fold(whole: Convolution) -> Fold | None:
    """The fold of a convolution that has too few channels to multiply tap by tap, None for others."""
    channels, size, stride = whole.images[-1], whole.taps[-3], whole.strides[-1]
    groups = max(whole.feature_groups, whole.batch_groups)
    if groups > 1 or channels >= _ROWS_PER_LOAD or size == 1 or whole.dilation[-1] > 1 or whole.padding[-1][2]:
        return None
    most = (_LANES // channels - size) // stride + 1
    if most < 1:
        return None
    outputs = -(-whole.counts[-1] // -(-whole.counts[-1] // most))  # equally many in every band
    convolution = dataclasses.replace(
        whole,
        images=(*whole.images[:-2], whole.counts[-1], size * channels),
        taps=(*whole.taps[:-3], 1, size * channels, whole.taps[-1]),
        strides=(*whole.strides[:-1], 1),
        padding=(*whole.padding[:-1], (0, 0, 0)),
    )
    return Fold(whole=whole, outputs=outputs, convolution=convolution)


def window_counts(
    sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilation: Sequence[int]
) -> tuple[int, ...]:
    """Positions of a window along every axis."""
    return tuple((n - (k - 1) * d - 1) // s + 1 for n, k, d, s in zip(sizes, kernel, dilation, strides, strict=True))


def tap_views(x: Any, kernel: Sequence[int], strides: Sequence[int], dilation: Sequence[int]) -> list[Any]:
    """For every tap the elements of [N, spatial..., C] that it meets, one per output position."""
    counts = window_counts(x.shape[1:-1], kernel, strides, dilation)
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


def _products(patches: Any, matrices: Any, precision: Any, dtype: Any) -> Any:
    """[G, M, K] x [G, K, O]."""
    numbers = (((2,), (1,)), ((0,), (0,)))
    return lax.dot_general(patches, matrices, numbers, precision=precision, preferred_element_type=dtype)
