"""`lpu`: runs a JAX function in the arithmetic of the LPU, and compiles it to a program of the LPU."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, overload

import jax

from lpu_jax import arguments, dispatch
from lpu_jax.arguments import EFFORTS, CallSignature, FlatCall, Options, aval_keys
from lpu_jax.chips import ChipSpec, chip_by_name, groqchip1
from lpu_jax.lowering.lower import FALLBACKS, MAX_TRIP_COUNT
from lpu_jax.precision import Policy, as_policy
from lpu_jax.tracing import Traced
from lpu_jax.tracing import trace as trace_call

if TYPE_CHECKING:
    from lpu_jax.stages import Lowered


class LpuFunction:
    """A function on the LPU; made by `lpu`.

    Calling it gives the answer of the LPU's arithmetic. It is traced once for every set of shapes, dtypes, structures
    and static arguments; the program itself is only made when `lower(...).compile()` asks for it.
    """

    __wrapped__: Callable[..., Any]

    def __init__(self, fun: Callable[..., Any], options: Options) -> None:
        """Wraps a function; raises ValueError for options that do not fit its signature."""
        functools.update_wrapper(self, fun, updated=())
        self.options = options
        self._signature = CallSignature(fun, options)
        self._cache: dict[Any, Traced] = {}
        self._whole_calls = dispatch.WholeCalls(self._call, options)
        self._resident_calls = dispatch.ResidentCalls()

    def __repr__(self) -> str:
        """Names the function and the chip."""
        return f"lpu({self._signature.fun_name}, chip={self.options.chip.name})"

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        """Binds methods."""
        return self if instance is None else types.MethodType(self, instance)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The function's results in the LPU's arithmetic, bit for bit those of the program."""
        results = self._whole_calls(args, kwargs)
        if results is dispatch.NOT_FOUND:
            results = self._resident_calls(args, kwargs, _trace_context())
        return self._call(*args, **kwargs) if results is dispatch.NOT_FOUND else results

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        """The long way of a call."""
        call = self._signature.flatten(args, kwargs)
        traced = self._trace(call)
        results = self._resident_calls.first(traced, call, _trace_context())
        if results is not dispatch.NOT_FOUND:
            return results
        results = traced.lower().call_flat(call.leaves)
        self._whole_calls.admit(traced)
        return jax.tree.unflatten(traced.out_tree, results)

    def leaves(self, *args: Any, **kwargs: Any) -> list[Any]:
        """The arrays among the arguments, in the order in which a program takes them."""
        return self._signature.flatten(args, kwargs).leaves

    def trace(self, *args: Any, **kwargs: Any) -> Traced:
        """Traces for arrays or jax.ShapeDtypeStructs."""
        return self._trace(self._signature.flatten(args, kwargs))

    def lower(self, *args: Any, **kwargs: Any) -> Lowered:
        """Lowers for arrays or jax.ShapeDtypeStructs.

        Raises:
          UnsupportedPrimitiveError: lists every primitive without a lowering.
          UnsupportedInputError: an argument that no program can take.
        """
        return self.trace(*args, **kwargs).lower()

    def clear_cache(self) -> None:
        """Forgets all traces."""
        self._cache.clear()
        self._whole_calls = dispatch.WholeCalls(self._call, self.options)
        self._resident_calls = dispatch.ResidentCalls()

    def _trace(self, call: FlatCall) -> Traced:
        keys = aval_keys(call, self._signature)
        key = (call.in_tree, keys, call.statics, _trace_context())
        traced = self._cache.get(key)
        if traced is None:
            roles = self._signature.roles(call)
            traced = trace_call(self.__wrapped__, call, roles, keys, self.options)
            if traced.is_cacheable:
                self._cache[key] = traced
        return traced


def _trace_context() -> tuple[Any, ...]:
    """Settings of JAX that change what a function traces to."""
    config: Any = jax.config
    return (
        config.jax_enable_x64,
        config.jax_default_matmul_precision,
        config.jax_numpy_dtype_promotion,
        config.jax_numpy_rank_promotion,
    )


def _tuple(value: Any) -> tuple[Any, ...]:
    return (value,) if isinstance(value, int | str) else tuple(value)


@overload
def lpu(
    fun: Callable[..., Any],
    *,
    chip: ChipSpec | str = ...,
    precision: Policy | str = ...,
    effort: str = ...,
    accumulation: str | None = ...,
    fallback: str | None = ...,
    max_trip_count: int = ...,
    keep_unused: bool = ...,
    resident_argnums: int | Sequence[int] = ...,
    donate_argnums: int | Sequence[int] = ...,
    static_argnums: int | Sequence[int] = ...,
    static_argnames: str | Sequence[str] = ...,
) -> LpuFunction: ...


@overload
def lpu(
    fun: None = None,
    *,
    chip: ChipSpec | str = ...,
    precision: Policy | str = ...,
    effort: str = ...,
    accumulation: str | None = ...,
    fallback: str | None = ...,
    max_trip_count: int = ...,
    keep_unused: bool = ...,
    resident_argnums: int | Sequence[int] = ...,
    donate_argnums: int | Sequence[int] = ...,
    static_argnums: int | Sequence[int] = ...,
    static_argnames: str | Sequence[str] = ...,
) -> Callable[[Callable[..., Any]], LpuFunction]: ...


def lpu(
    fun: Callable[..., Any] | None = None,
    *,
    chip: ChipSpec | str = groqchip1,
    precision: Policy | str = "fp16",
    effort: str = "default",
    accumulation: str | None = None,
    fallback: str | None = None,
    max_trip_count: int = MAX_TRIP_COUNT,
    keep_unused: bool = False,
    resident_argnums: int | Sequence[int] = (),
    donate_argnums: int | Sequence[int] = (),
    static_argnums: int | Sequence[int] = (),
    static_argnames: str | Sequence[str] = (),
) -> LpuFunction | Callable[[Callable[..., Any]], LpuFunction]:
    """Puts a function on the LPU; works bare (`@lpu`) and with options (`@lpu(chip=...)`).

    Args:
      fun: a function of pytrees of arrays that JAX can trace.
      chip: the chip, or its name.
      precision: the number formats of products and tables, as a `Policy` or the name of a preset: fp32 (or "highest"),
        fp16, fp8, int8, bfp8 or truepoint, see `lpu_jax.precision`. The default multiplies float32 operands through
        float16 with exact sums and narrows no weight further.
      effort: "default" schedules in seconds; "high" tries 64 orders of the work and keeps the program with the fewest
        cycles, which takes minutes. The values do not depend on it.
      accumulation: how products and sums are accumulated: "exact" over all of K with one rounding; "tile" with one
        rounding per pass of the MXM (160 rows, 320 for byte operands), the partial sums added in order; "float32"
        leaves products, sums and functions of float32 to XLA, in the fast executor alone, for speed and comparison;
        operands enter products in the formats of the policy. None takes the chip's own, which is "exact".
      fallback: "host" has the host compute what the LPU has no lowering for, and adds the time of PCIe to the report;
        None refuses it.
      max_trip_count: turns after which a loop with an unknown trip count is given up with a TripCountError.
      keep_unused: arguments that no result needs cross PCIe all the same.
      resident_argnums: arguments that live in SRAM between calls (weights, and a KV cache if donated as well).
      donate_argnums: arguments whose memory the results may take over; they cannot be used again.
      static_argnums, static_argnames: arguments that are constants of the program; they need a hash.

    Returns:
      An `LpuFunction`. It can be called, jitted, vmapped, scanned and differentiated (with the derivative of `fun`);
      `lower(...).compile()` gives its program.

    Raises:
      ValueError: an unknown chip, precision, effort, accumulation or fallback, a trip count below 1, or argument
        numbers that `fun` does not have.
    """
    if effort not in EFFORTS:
        raise ValueError(f"effort={effort!r} is unknown; use one of {tuple(EFFORTS)}")
    if fallback not in FALLBACKS:
        raise ValueError(f"fallback={fallback!r} is unknown; use one of {FALLBACKS}")
    if max_trip_count < 1:
        raise ValueError(f"max_trip_count={max_trip_count!r} allows no turn; use 1 or more")
    target = chip_by_name(chip) if isinstance(chip, str) else chip
    options = Options(
        chip=arguments.accumulating(target, accumulation),
        accumulation=accumulation or target.accumulation,
        precision=as_policy(precision),
        effort=effort,
        fallback=fallback,
        max_trip_count=max_trip_count,
        keep_unused=keep_unused,
        resident_argnums=_tuple(resident_argnums),
        donate_argnums=_tuple(donate_argnums),
        static_argnums=_tuple(static_argnums),
        static_argnames=_tuple(static_argnames),
    )
    if fun is None:
        return lambda wrapped: LpuFunction(wrapped, options)
    if not callable(fun):
        raise TypeError(f"lpu needs a function, got {fun!r}")
    return LpuFunction(fun, options)
