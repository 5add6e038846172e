"""Exact products with weights that were formatted once, at load, with what certificates need to know of them.

Weights [K, N] for few activation rows are kept transposed, [N, K], which XLA's CPU products with few columns read at
the speed of memory; others as they are. Beside them lie the norm and the lowest bit in use of every column, and the
digit size d: with |digit| <= 2^(d - 1), float32 sums of digits of activations times a column are exact, as

  2^(d - 1) * sum_k |w[k, n]| <= 2^24 * lowest[n].

Few activation rows are cut into 4 digits (or 8) of d bits, all multiplied in one float32 product. Others, and
weights whose columns spread over too many bits, take the certified float64 levels of runtime/certified_dot.py.
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

from lpu_jax.runtime import casts
from lpu_jax.runtime.casts import bits_of
from lpu_jax.runtime.certificate import Statistics, add_panels, repaired, rounded, rounded_sum, short_sums
from lpu_jax.runtime.certified_dot import canonical, lowest_bit, matmul, panels, statistics, to_float64
from lpu_jax.runtime.digits import has_special, widen
from lpu_jax.runtime.formats import NumberFormat, element_dtype
from lpu_jax.runtime.isa import DataFormat
from lpu_jax.runtime.numerics import Array

_MIN_DIGIT_BITS, _MAX_DIGIT_BITS = 4, 9
_MAX_DIGIT_ROWS = 4
_MIN_LOWEST = 2.0**-100
"""Products with fp16 of weights with smaller bits may be subnormal, which float32 arithmetic flushes."""
_PANEL_WIDTH = 1024
_MAX_PANELS = 4  # each is a product of its own; more make fewer results uncertain
_MARGIN = 1 + 2.0**-20


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["panels", "norm", "lowest", "digit_power"],
    meta_fields=["data_format", "has_digits", "is_turned"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class PreparedWeights:
    """A matrix [K, N], or a stack of them along leading axes.

    panels: [..., N, width], or [..., width, N] if not turned, for every panel of K: elements as stored (of blocks bf16;
      16-bit floats as their bits), or float32 or float64 with the same values.
    norm, lowest: float64 [..., panels, N], as in `certificate.Statistics`.
    digit_power: float64 [...], 2^d; 0 if digits do not fit.
    data_format: format of the elements.
    has_digits: whether activations may be cut into digits; if not, K is cut into panels.
    is_turned: whether panels are transposed.
    """

    panels: tuple[Array, ...]
    norm: Array
    lowest: Array
    digit_power: Array
    data_format: DataFormat
    has_digits: bool
    is_turned: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """[..., K, N]."""
        first, sizes = self.panels[0].shape, self.widths
        return (*first[:-2], sum(sizes), first[-2 if self.is_turned else -1])

    @property
    def widths(self) -> list[int]:
        """Terms of every panel."""
        return [panel.shape[-1 if self.is_turned else -2] for panel in self.panels]


def element_format_of(data_format: DataFormat) -> DataFormat:
    """Format of the elements of a matrix of weights: bf16 for blocks."""
    return DataFormat.BF16 if data_format.is_block else data_format


def prepare_weights(
    rhs: np.ndarray, data_format: DataFormat, is_wide: bool = True, num_rows: int = 1
) -> PreparedWeights:
    """Prepares weights [..., K, N], elements in the storage dtype of their format (bf16 for blocks).

    Args:
      rhs: the weights, all finite.
      data_format: their format.
      is_wide: keep them as float32 or float64, ready to multiply; if not, as stored, which is better in a loop over
        stacked weights, where a slice is copied in any case.
      num_rows: activation rows that they are most often multiplied with; more than a few are not cut into digits.
    """
    form = element_format_of(data_format)
    weights, is_turned = np.asarray(rhs), num_rows <= _MAX_DIGIT_ROWS
    batch, (contracting, num_columns) = weights.shape[:-2], weights.shape[-2:]
    flat = weights.reshape(-1, contracting, num_columns)
    with jax.enable_x64(True):
        bits = [_digit_bits(each, form) if is_turned else 0 for each in flat]
        fits = min(bits, default=0) >= _MIN_DIGIT_BITS
        cuts = panels(contracting, contracting if fits else max(_PANEL_WIDTH, -(-contracting // _MAX_PANELS)))
        sides = [_statistics(each, form, cuts) for each in flat]
        stored = [np.swapaxes(weights[..., cut, :], -1, -2) if is_turned else weights[..., cut, :] for cut in cuts]

        def stacked(values: list[Any]) -> Array:
            return jnp.asarray(np.stack(values).reshape((*batch, *np.shape(values[0]))))

        return PreparedWeights(
            panels=tuple(_carried(np.ascontiguousarray(each), form, is_wide, fits) for each in stored),
            norm=stacked([np.asarray(side.norm) for side in sides]),
            lowest=stacked([np.asarray(side.lowest) for side in sides]),
            digit_power=stacked([np.float64(2.0**b if fits else 0.0) for b in bits]),
            data_format=form,
            has_digits=fits,
            is_turned=is_turned,
        )


@functools.partial(jax.jit, static_argnames=("form",))
def _extent(matrix: Array, form: DataFormat) -> tuple[Array, Array]:
    """(sum of magnitudes, lowest bit in use) of every column, float64."""
    wide, kind = widen(jnp, matrix, form)
    values = wide.astype(np.float32) if kind is DataFormat.INT8 else wide
    return jnp.sum(jnp.abs(to_float64(values, kind)), axis=0), jnp.min(lowest_bit(values, kind), axis=0)


def _digit_bits(weights: np.ndarray, form: DataFormat) -> int:
    """The largest d that the columns of [K, N] allow; 0 if some are too small or not finite."""
    total, lowest = (np.asarray(x, np.float64) for x in _extent(weights, form))
    used = total > 0
    if not used.any():
        return _MAX_DIGIT_BITS
    if not np.isfinite(total).all() or lowest[used].min() < _MIN_LOWEST:
        return 0
    room = float((lowest[used] * 2.0**24 / (total[used] * _MARGIN)).min())
    return max(0, min(_MAX_DIGIT_BITS, math.floor(math.log2(room)) + 1)) if room >= 1 else 0


@functools.partial(jax.jit, static_argnames=("form", "bounds"))
def _jitted_statistics(weights: Array, form: DataFormat, bounds: tuple[tuple[int, int], ...]) -> Statistics:
    wide, kind = widen(jnp, weights, form)
    return statistics(wide, kind, 0, [slice(*pair) for pair in bounds], is_tight=True)


def _statistics(weights: np.ndarray, form: DataFormat, cuts: list[slice]) -> Statistics:
    side: Statistics = _jitted_statistics(weights, form, tuple((cut.start, cut.stop) for cut in cuts))
    return side


def _carried(panel: np.ndarray, form: DataFormat, is_wide: bool, has_digits: bool) -> Array:
    if is_wide:
        wide = panel.astype(np.float32)  # exact, subnormals too: NumPy does not flush
        return jnp.asarray(wide if has_digits else wide.astype(np.float64))
    carrier = panel.view(np.uint16) if form in (DataFormat.BF16, DataFormat.FP16) else panel
    carrier = carrier.view(np.uint8) if form in (DataFormat.E4M3, DataFormat.E5M2) else carrier
    return jnp.asarray(carrier)


def _elements(panel: Array, form: DataFormat) -> Array:
    """A carried panel in the dtype of its format, or float32 or float64 as it is."""
    if panel.dtype in (np.uint8, np.uint16):
        return lax.bitcast_convert_type(panel, element_dtype(form.number_format))
    return panel


def _widened(panel: Array, form: DataFormat) -> tuple[Array, DataFormat]:
    """A panel as float16, float32, float64 or int8 with the same values, and their kind."""
    if panel.dtype in (np.float32, np.float64):
        return panel, DataFormat.FP32 if form is DataFormat.BF16 else _KINDS.get(form, form)
    return widen(jnp, _elements(panel, form), form)


_KINDS = {DataFormat.E5M2: DataFormat.FP16}


def values_of(prepared: PreparedWeights) -> Array:
    """The weights [..., K, N] in the dtype of their elements again; inside enable_x64."""
    form = prepared.data_format
    parts = [_elements(panel, form) for panel in prepared.panels]
    parts = [jnp.swapaxes(part, -1, -2) for part in parts] if prepared.is_turned else parts
    joined = jnp.concatenate(parts, axis=-2) if len(parts) > 1 else parts[0]
    if joined.dtype not in (np.float32, np.float64):
        return joined
    if form is DataFormat.INT8:
        return joined.astype(np.int8)
    return casts.encode(jnp, _to_float32(joined), form.number_format)


def exact_dot_prepared(lhs: Array, prepared: PreparedWeights, lhs_format: DataFormat | NumberFormat) -> Array:
    """exact_dot of lhs [M, K] and one prepared matrix, float32 [M, N]; under XLA, inside enable_x64."""
    form = DataFormat[lhs_format.name.upper()] if isinstance(lhs_format, NumberFormat) else lhs_format
    if form is DataFormat.INT8 and prepared.data_format is DataFormat.INT8:
        raise ValueError("int8 x int8 gives int32 and takes its weights as they are")
    left, kind = widen(jnp, lhs, element_format_of(form))
    if kind is DataFormat.INT8:
        left, kind = left.astype(np.float16), DataFormat.FP16

    def certified() -> Array:
        return _certified(left, kind, prepared)

    if not prepared.has_digits or kind is DataFormat.FP32 or lhs.shape[0] > _MAX_DIGIT_ROWS:
        return certified()
    # A conditional would copy the slice of a stack in front of it, so all branches take the float32 columns.
    wide = _widened(prepared.panels[0], prepared.data_format)[0].astype(np.float32)
    prepared = dataclasses.replace(prepared, panels=(wide,))
    units, lowest = _in_units(left, kind)
    largest = jnp.max(jnp.abs(units))
    is_finite = ~has_special(jnp, left)

    def by_digits(count: int) -> Array:
        return _by_digits(units, lowest, prepared, count)

    def fits(count: int) -> Array:
        return is_finite & (largest <= prepared.digit_power**count / 2)

    def longer() -> Array:
        return lax.cond(fits(8), lambda: by_digits(8), certified) if lhs.shape[0] == 1 else certified()

    return lax.cond(fits(4), lambda: by_digits(4), longer)


def _in_units(x: Array, kind: DataFormat) -> tuple[Array, Array]:
    """Rows as float64 integers in units of their lowest bit in use, and that, [M, 1]; exact for float16."""
    lowest = jnp.min(lowest_bit(x, kind), axis=1, keepdims=True).astype(np.float64)
    lowest = jnp.where(lowest < np.inf, lowest, 1.0)
    return x.astype(np.float64) * (1.0 / lowest), lowest


def _by_digits(units: Array, lowest: Array, prepared: PreparedWeights, count: int) -> Array:
    """All digits of all rows in one float32 product, joined exactly and rounded once."""
    base, rows = prepared.digit_power, units.shape[0]
    powers = [jnp.ones_like(base)]
    for _ in range(count - 1):
        powers.append(powers[-1] * base)
    digits, rest = [], units
    for power in reversed(powers):
        digit = jnp.rint(rest * (1.0 / power))
        rest = rest - digit * power
        digits.append(digit.astype(np.float32))
    stacked = jnp.concatenate(digits, axis=0).T  # [K, count * M], highest digit first
    sums = matmul(prepared.panels[0], stacked, np.float32).astype(np.float64)
    parts = [sums[:, i * rows : (i + 1) * rows].T for i in range(count)]
    high = functools.reduce(lambda total, part: total * base + part, parts[:4])  # 24 + 3 d <= 53 bits: exact
    if count == 4:
        return canonical((high * lowest).astype(np.float32))
    low = functools.reduce(lambda total, part: total * base + part, parts[4:])
    scale = lowest * powers[4]
    return canonical(rounded_sum(high * scale, low * lowest))


def _certified(left: Array, kind: DataFormat, prepared: PreparedWeights) -> Array:
    """The product, turned round ([N, K] x [K, M]) if the weights are."""
    ends = np.cumsum(prepared.widths).tolist()
    cuts = [slice(end - width, end) for end, width in zip(ends, prepared.widths, strict=True)]
    wide = [_widened(panel, prepared.data_format) for panel in prepared.panels]
    weight_kind, is_turned = wide[0][1], prepared.is_turned
    weights = [_as_float64(panel, weight_kind) for panel, _ in wide]
    activations = [to_float64(left[:, cut], kind) for cut in cuts]
    pairs = zip(activations, weights, strict=True)
    rows, columns = statistics(left, kind, 1, cuts), Statistics(prepared.norm, prepared.lowest)

    # What follows reads the float64 values alone, so that no others have to be kept.
    def short() -> Array:
        again = _narrowed(_joined(activations), kind)
        sides = statistics(again, kind, 1, cuts, is_tight=True), columns
        return short_sums(hi, *(reversed(sides) if is_turned else sides))

    def rows_of(index: Array) -> Array:
        return _narrowed(_joined([part[index] for part in activations]), kind)

    def columns_of(index: Array) -> Array:
        axis = 0 if is_turned else 1
        parts = [jnp.take(panel, index, axis=axis, mode="clip") for panel in weights]
        return _narrowed(_joined(parts if is_turned else [part.T for part in parts]), weight_kind)

    if is_turned:
        hi, lo = add_panels([matmul(w, x.T, np.float64) for x, w in pairs])
        bits = rounded(hi, lo, columns, rows, cuts[0].stop)
        result = repaired(bits, hi, short, lambda row, column: (columns_of(row), rows_of(column)), (weight_kind, kind))
        return result.T
    hi, lo = add_panels([matmul(x, w, np.float64) for x, w in pairs])
    bits = rounded(hi, lo, rows, columns, cuts[0].stop)
    return repaired(bits, hi, short, lambda row, column: (rows_of(row), columns_of(column)), (kind, weight_kind))


def _joined(parts: list[Array]) -> Array:
    """Panels of rows side by side."""
    return jnp.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]


def _as_float64(x: Array, kind: DataFormat) -> Array:
    if x.dtype == np.float64:
        return x
    return to_float64(x, DataFormat.FP32 if x.dtype == np.float32 else kind)


def _narrowed(x: Array, kind: DataFormat) -> Array:
    """A few columns in the dtype of their kind, for digits."""
    if x.dtype not in (np.float32, np.float64):
        return x
    if kind is DataFormat.FP32:
        return _to_float32(x)
    return x.astype(np.int8 if kind is DataFormat.INT8 else np.float16)


def _to_float32(x: Array) -> Array:
    """float64 values that are float32 ones, subnormals kept."""
    if x.dtype == np.float32:
        return x
    bits = bits_of(jnp, x.astype(np.float32))
    units = (jnp.abs(x) * 2.0**149).astype(np.int32)
    subnormal = units | jnp.where(lax.bitcast_convert_type(x, np.int64) < 0, np.int32(-(2**31)), 0)
    small = jnp.where(jnp.abs(x) < 2.0**-126, subnormal, bits)
    return lax.bitcast_convert_type(small.astype(np.int32), np.float32)
