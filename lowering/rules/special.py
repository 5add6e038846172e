"""Rules of the gamma and Bessel functions: XLA's formulas for float32, in float32, rounded to the dtype once.

What iterates until it converges (incomplete gamma and beta functions) is JAX's own loop, whose turns the host starts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from lpu_jax.lowering import _jax_compat as compat
from lpu_jax.lowering.emit import FLOATS, Operand
from lpu_jax.lowering.registry import RuleContext, register_lowering

# Lanczos' approximation of the gamma function with g = 7
_LANCZOS_G = 7.0
_LANCZOS_BASE = 0.99999999999980993227684700473478
_LANCZOS = (
    676.520368121885098567009190444019, -1259.13921672240287047156078755283, 771.3234287776530788486528258894,
    -176.61502916214059906584551354, 12.507343278686904814458936853, -0.13857109526572011689554707,
    9.984369578019570859563e-6, 1.50563273514931155834e-7,
)  # fmt: skip
# i1e(x) = x C(x / 2 - 2) for |x| <= 8, sign(x) D(32 / |x| - 2) / sqrt(|x|) beyond: Chebyshev series (Cephes)
_I1E_NEAR = (
    9.38153738649577178388e-9, -4.44505912879632808065e-8, 2.00329475355213526229e-7, -8.56872026469545474066e-7,
    3.47025130813767847674e-6, -1.32731636560394358279e-5, 4.78156510755005422638e-5, -1.61760815825896745588e-4,
    5.12285956168575772895e-4, -1.51357245063125314899e-3, 4.15642294431288815669e-3, -1.05640848946261981558e-2,
    2.47264490306265168283e-2, -5.29459812080949914269e-2, 1.02643658689847095384e-1, -1.76416518357834055153e-1,
    2.52587186443633654823e-1,
)  # fmt: skip
_I1E_FAR = (
    -3.83538038596423702205e-9, -2.63146884688951950684e-8, -2.51223623787020892529e-7, -3.88256480887769039346e-6,
    -1.10588938762623716291e-4, -9.76109749136146840777e-3, 7.78576235018280120474e-1,
)  # fmt: skip


def _lanczos(z: Any) -> Any:
    """The series of gamma(z + 1)."""
    total = jnp.full_like(z, _LANCZOS_BASE)
    for index, coefficient in enumerate(_LANCZOS, start=1):
        total = total + coefficient / (z + index)
    return total


def _lgamma(x: Any) -> Any:
    """log gamma(x): Lanczos for x >= 1/2, pi / (|sin(pi x)| gamma(1 - x)) below; infinite at the poles."""
    reflects = x < 0.5
    z = jnp.where(reflects, -x, x - 1.0)
    t = z + (_LANCZOS_G + 0.5)
    log_t = math.log(_LANCZOS_G + 0.5) + lax.log1p(z / (_LANCZOS_G + 0.5))
    log_gamma = math.log(2 * math.pi) / 2 + (z + 0.5 - t / log_t) * log_t + lax.log(_lanczos(z))
    magnitude = lax.abs(x)
    fraction = magnitude - lax.floor(magnitude)
    sine = lax.log(lax.sin(math.pi * jnp.where(fraction > 0.5, 1.0 - fraction, fraction)))
    reflected = jnp.where(lax.is_finite(sine), math.log(math.pi) - sine - log_gamma, -sine)
    return jnp.where(magnitude == jnp.inf, jnp.inf, jnp.where(reflects, reflected, log_gamma))


def _digamma(x: Any) -> Any:
    """d/dx log gamma(x): Lanczos for x >= 1/2, digamma(1 - x) - pi / tan(pi x) below; NaN at the poles."""
    reflects = x < 0.5
    z = jnp.where(reflects, -x, x - 1.0)
    slope = jnp.zeros_like(z)
    for index, coefficient in enumerate(_LANCZOS, start=1):
        slope = slope - coefficient / ((z + index) * (z + index))
    t = z + (_LANCZOS_G + 0.5)
    log_t = math.log(_LANCZOS_G + 0.5) + lax.log1p(z / (_LANCZOS_G + 0.5))
    value = log_t + slope / _lanczos(z) - _LANCZOS_G / t
    turned = math.pi * (x + lax.abs(lax.floor(x + 0.5)))
    reflected = value - math.pi * lax.cos(turned) / lax.sin(turned)
    is_pole = (x <= 0.0) & (x == lax.floor(x))
    return jnp.where(is_pole, jnp.nan, jnp.where(reflects, reflected, value))


def _chebyshev(x: Any, coefficients: Sequence[float]) -> Any:
    """Clenshaw's recurrence, highest order first; half of the last difference."""
    before, last, oldest = jnp.zeros_like(x), jnp.zeros_like(x), jnp.zeros_like(x)
    for coefficient in coefficients:
        oldest, last = last, before
        before = x * last - oldest + coefficient
    return 0.5 * (before - oldest)


def _bessel_i1e(x: Any) -> Any:
    magnitude = lax.abs(x)
    near = magnitude * _chebyshev(0.5 * magnitude - 2.0, _I1E_NEAR)
    far = _chebyshev(32.0 / magnitude - 2.0, _I1E_FAR) / lax.sqrt(magnitude)
    return lax.sign(x) * jnp.where(magnitude <= 8.0, near, far)


FORMULAS: dict[str, Callable[..., Any]] = {"bessel_i1e": _bessel_i1e, "digamma": _digamma, "lgamma": _lgamma}


def _special(ctx: RuleContext, *operands: Operand, **params: Any) -> Sequence[Operand]:
    """A formula in float32; a loop of unknown length where it iterates."""
    formula = FORMULAS.get(ctx.primitive) or compat.decomposition(ctx.primitive)
    dtype = ctx.avals_out[0].dtype
    if formula is None or dtype not in FLOATS:
        raise ctx.unsupported("this version of JAX has no formula for it")

    def fun(*arrays: Any) -> Any:
        wide = [lax.convert_element_type(x, jnp.float32) if str(x.dtype) in FLOATS else x for x in arrays]
        wide = [lax.broadcast_in_dim(x, ctx.avals_out[0].shape, range(x.ndim)) for x in wide]
        return lax.convert_element_type(formula(*wide, **params), dtype)

    return ctx.rewrite(fun, *operands)


_ITERATED = ("igamma", "igamma_grad_a", "igammac", "random_gamma_grad", "regularized_incomplete_beta")
for _name in ("bessel_i0e", *FORMULAS, *_ITERATED):
    register_lowering(_name)(_special)


@register_lowering("random_gamma")
def _random_gamma(ctx: RuleContext, keys: Operand, shapes: Operand, *, log_space: bool) -> Sequence[Operand]:
    """JAX's own sampler by rejection, whose turns the host starts; float32."""
    ctx.require(dtype=(ctx.avals_out[0].dtype, ["float32"]), key_words=(ctx.avals_in[0].shape[-1:], [(2,)]))

    def fun(words: Any, alphas: Any) -> Any:
        return compat.sample_gamma(words, alphas, log_space)

    return ctx.rewrite(fun, keys, shapes)
