"""Weights in narrow formats: `quantize(w, "bfp8")` is a pytree that multiplies like the matrix it stands for.

    params = {"w": lpu_jax.quantize(w, "bfp4x32")}
    y = lpu_jax.lpu(lambda p, x: x @ p["w"], resident_argnums=0)(params, x)

On the LPU the stored bytes are what lies in SRAM and is loaded into the MXM; under plain JAX they are decoded first.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core as jax_core
from jax.extend import source_info_util
from jax.interpreters import batching, mlir

from lpu_jax.runtime import casts
from lpu_jax.runtime.block_words import decode_words, encode_words
from lpu_jax.runtime.errors import NumberFormatError
from lpu_jax.runtime.formats import FP32, INT8, NumberFormat, block_format, element_dtype, parse_format

source_info_util.register_exclusion(__file__)  # errors and reports name the line with x @ w

_INT8_MAX = 127

decode_blocks_p = jax_core.Primitive("decode_blocks")
"""Words of block floating point -> their values, [..., words, N] -> [..., num_rows, N]."""


def _decode(words: Any, *, format: str, num_rows: int, dtype: Any) -> Any:
    return decode_words(jnp, words, parse_format(format), num_rows, dtype)


def _decode_aval(words: Any, *, format: str, num_rows: int, dtype: Any) -> Any:
    return jax.core.ShapedArray((*words.shape[:-2], num_rows, words.shape[-1]), np.dtype(dtype))


def _decode_batch(operands: Any, axes: Any, **params: Any) -> tuple[Any, int]:
    return decode_blocks_p.bind(jnp.moveaxis(operands[0], axes[0], 0), **params), 0


decode_blocks_p.def_impl(jax.jit(_decode, static_argnames=("format", "num_rows", "dtype")))
decode_blocks_p.def_abstract_eval(_decode_aval)
mlir.register_lowering(decode_blocks_p, mlir.lower_fun(_decode, multiple_results=False))
batching.primitive_batchers[decode_blocks_p] = _decode_batch


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["data", "scale"], meta_fields=["number_format", "num_rows"]
)
@dataclasses.dataclass(frozen=True, eq=False)
class QuantizedArray:
    """A matrix [..., K, N], or a stack of them, in a number format; K is the axis that products sum over.

    Attributes:
      data: the stored elements [..., K, N]; of block floating point its words, int8 [..., words, N].
      scale: of int8, float32 [..., 1, N] (per channel) or [..., 1, 1]; value = data * scale. None otherwise.
      number_format: name, bits and block size of the format.
      num_rows: K.
    """

    data: Any
    scale: Any
    number_format: NumberFormat
    num_rows: int

    __array_ufunc__ = None  # NumPy leaves x @ self to __rmatmul__

    @property
    def shape(self) -> tuple[int, ...]:
        """[..., K, N]."""
        return (*self.data.shape[:-2], self.num_rows, self.data.shape[-1])

    @property
    def ndim(self) -> int:
        """Rank of `shape`."""
        return int(self.data.ndim)

    @property
    def nbytes(self) -> int:
        """Bytes at rest: elements, shared exponents and scales."""
        parts = [x for x in (self.data, self.scale) if x is not None]
        return sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in parts)

    def dequantize(self) -> jax.Array:
        """The values as float32 [..., K, N]; exact but for int8, where data * scale is rounded once."""
        values: jax.Array = jnp.asarray(self._factor()).astype(jnp.float32)
        return values if self.scale is None else values * self.scale

    def _factor(self) -> Any:
        """What a product multiplies by."""
        if not self.number_format.block_size:
            return self.data
        name = self.number_format.name
        return decode_blocks_p.bind(
            jnp.asarray(self.data), format=name, num_rows=self.num_rows, dtype=np.dtype(np.float32)
        )

    def __rmatmul__(self, x: Any) -> jax.Array:
        """x @ self in the dtype of x: float [..., M, K] or [K]; a stack of matrices needs a stack of x.

        Raises:
          ValueError: shapes that do not fit.
        """
        x = jnp.asarray(x)
        batch = self.ndim - 2
        if x.ndim <= batch or x.shape[:batch] != self.shape[:batch] or x.shape[-1] != self.num_rows:
            raise ValueError(f"{x.shape} @ {self.shape} ({self.number_format}): the last axis of the left side must be "
                             f"{self.num_rows} and its first ones {self.shape[:batch]}")  # fmt: skip
        axes = tuple(range(batch))
        dimensions = (((x.ndim - 1,), (batch,)), (axes, axes))
        y = lax.dot_general(x, self._factor(), dimensions, preferred_element_type=jnp.float32)
        if self.scale is not None:
            scale = self.scale.reshape(*self.scale.shape[:batch], *(1,) * (y.ndim - batch - 1), -1)
            y = y * scale
        result: jax.Array = y.astype(x.dtype)
        return result


def quantize(
    weights: Any, number_format: NumberFormat | str, *, optimal: bool = False, saturate: bool = False,
    per_tensor: bool = False,
) -> QuantizedArray:  # fmt: skip
    """Stores weights [..., K, N] in a number format, rounded to nearest even; products sum over K.

    Args:
      weights: float array of at least two dimensions.
      number_format: "fp32", "fp16", "bf16", "e4m3", "e5m2", "int8" or "bfp<m>[x<B>]", 3 <= m <= 9, B 16 or 32.
      optimal: block floating point takes the shared exponent with the least squared error.
      saturate: floats that are too large become the largest finite value, not infinity (NaN in e4m3).
      per_tensor: int8 has one scale per matrix, not one per column: max |w| / 127.

    Raises:
      NumberFormatError: the format is unknown, or cannot hold a value of `weights`.
    """
    form = _parsed(number_format)
    if np.ndim(weights) < 2:
        raise NumberFormatError(f"quantize needs a matrix [..., K, N], not shape {np.shape(weights)}")
    if isinstance(weights, jax.core.Tracer):
        with jax.enable_x64(True):
            return _quantized(jnp, weights.astype(np.float32), form, optimal, saturate, per_tensor)
    wide = np.asarray(weights).astype(np.float32)
    bad = int(np.count_nonzero(~np.isfinite(wide)))
    if bad and not form.exponent_bits:
        raise NumberFormatError(f"{form} has no infinity and no NaN, but {bad} of {wide.size} weights are not finite")
    return _quantized(np, wide, form, optimal, saturate, per_tensor)


def _parsed(given: NumberFormat | str) -> NumberFormat:
    try:
        return given if isinstance(given, NumberFormat) else parse_format(given)
    except ValueError as error:
        raise NumberFormatError(str(error)) from None


def _quantized(xp: Any, x: Any, form: NumberFormat, optimal: bool, saturate: bool, per_tensor: bool) -> QuantizedArray:
    scale = None
    if form.block_size:
        data = encode_words(xp, x, form, optimal)
    elif form == INT8:
        largest = xp.max(xp.abs(x), axis=(-2, -1) if per_tensor else -2, keepdims=True)
        scale = xp.where(largest > 0, largest / np.float32(_INT8_MAX), np.float32(1)).astype(np.float32)
        data = xp.clip(xp.rint(x / scale), -_INT8_MAX, _INT8_MAX).astype(element_dtype(INT8))
    else:
        data = x if form == FP32 else casts.encode(xp, x, form, saturate)
    return QuantizedArray(
        jnp.asarray(data), None if scale is None else jnp.asarray(scale), _canonical(form), x.shape[-2]
    )


def _canonical(form: NumberFormat) -> NumberFormat:
    return block_format(form.element_bits, form.block_size) if form.block_size else form
