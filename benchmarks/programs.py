"""The programs that our targets are about: each with its shapes, its bound and what it is allowed to take."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import flax_models
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import lpu_jax
from lpu_jax.models.bert import BertConfig, BertLayer
from lpu_jax.models.smollm2 import Smollm2, decode, prefill
from lpu_jax.models.smollm2_config import Smollm2Config
from lpu_jax.runtime.chip import GROQCHIP1
from lpu_jax.transform import LpuFunction

Built = tuple[LpuFunction, tuple[Any, ...]]
Shape = jax.ShapeDtypeStruct

GEMM_COLUMNS = (1376, 1600, 2048, 2560, 3200, 3500)
"""N of the table in machine.md 2.1 (published: at least 80 % of peak for N = 1376..3500)."""
GEMM_ROWS, GEMM_INNER = 2304, 4096
RESNET_CYCLES = {"resnet-50": 44_118, "resnet-101": 62_937, "resnet-152": 84_112}  # images/s at 900 MHz, ABS20, ISCA20
_RESNET = "batch 1, products in int8 with a scale per image that is found while it runs"
BERT_BASE_CYCLES = 117_000  # 130 us at 900 MHz, AF22
BERT_LARGE_CYCLES = 1_225 * 900  # P99 of 1,225 us; the four chips of the pipeline work one after the other (R2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A program and its target: cycles <= ratio * bound.

    Attributes:
      attempts: (label, builder); the first one that fits the chip is measured, and its label is printed.
      bound: cycles; None takes the larger of the program's own resource and dependency bounds.
      ratio: None if the figure is only reported.
      published: cycles of a published run, shown beside ours.
    """

    name: str
    attempts: tuple[tuple[str, Callable[[], Built]], ...]
    bound: int | None = None
    ratio: float | None = None
    published: int | None = None
    note: str = ""


def gemm_bound(columns: int) -> int:
    """Tile-quantised cycles of [2304, 4096] x [4096, N] in fp16.

    rows * ceil(K / 160) * ceil(N / 320) / 2: a tile of 160 x 320 takes a vector per cycle, two at a time.
    """
    tiles = -(-GEMM_INNER // (GROQCHIP1.num_mxm_rows // 2)) * -(-columns // GROQCHIP1.num_lanes)
    return GEMM_ROWS * tiles // 2


def cases() -> Iterator[Case]:
    """Every program, cheap ones first."""
    yield from _vector_cases()
    yield _case("gemv int8", lambda: _matmul(1, GEMM_INNER, GEMM_INNER, "int8"), bound=820, ratio=1.25)
    yield _case("gemv fp16", lambda: _matmul(1, GEMM_INNER, GEMM_INNER, "float16"), ratio=1.25)
    yield from _model_cases()
    for columns in sorted({*GEMM_COLUMNS, *range(GEMM_COLUMNS[0], GEMM_COLUMNS[-1], 128)}):
        build = _gemm(columns)
        yield _case(f"gemm {columns}", build, bound=gemm_bound(columns), ratio=1 / 0.98)


def _case(name: str, build: Callable[[], Built], **fields: Any) -> Case:
    return Case(name=name, attempts=(("", build),), **fields)


# Vector programs -------------------------------------------------------------------------------------------------


def _vector_cases() -> Iterator[Case]:
    for steps in (8, 2):
        yield _case(f"chain {steps}", _chain_of(steps), bound=chain_bound(steps, 4096, 4096), ratio=1.1)
    yield _case("layernorm", layer_norm, ratio=1.5)
    yield _case("softmax 128x12x128x128", lambda: softmax(128), ratio=1.5)
    yield _case("softmax 16x12x128x128", lambda: softmax(16), ratio=1.5)
    yield _case("softmax 2x12x128x128", lambda: softmax(2), ratio=1.5)


def _chain_of(steps: int) -> Callable[[], Built]:
    return lambda: chain(steps, 4096)


def chain_bound(num_steps: int, rows: int, columns: int) -> int:
    """Cycles in which the ALUs apply num_steps one-slot functions to fp32 [rows, columns], all of them busy."""
    return rows * -(-columns // GROQCHIP1.num_lanes) * num_steps // GROQCHIP1.num_alus


def chain(num_steps: int, rows: int, columns: int = 4096) -> Built:
    """num_steps operations, one ALU each, on fp32 [rows, columns]."""

    def function(x: jax.Array) -> jax.Array:
        for step in range(num_steps // 2):
            x = jnp.maximum(x * 1.5, 0.1 * step)
        return x

    return lpu_jax.lpu(function), (Shape((rows, columns), jnp.float32),)


def layer_norm(rows: int = 128, columns: int = 768) -> Built:
    """LayerNorm over the last axis, with scale and bias."""

    def function(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        centred = x - x.mean(-1, keepdims=True)
        variance = (centred * centred).mean(-1, keepdims=True)
        return centred * jax.lax.rsqrt(variance + 1e-12) * scale + bias

    parameter = Shape((columns,), jnp.float32)
    return lpu_jax.lpu(function), (Shape((rows, columns), jnp.float32), parameter, parameter)


def softmax(batch: int) -> Built:
    """Softmax over the last axis of fp32 [batch, 12, 128, 128]."""
    return lpu_jax.lpu(lambda x: jax.nn.softmax(x, axis=-1)), (Shape((batch, 12, 128, 128), jnp.float32),)


# Matrix products -------------------------------------------------------------------------------------------------


def _gemm(columns: int) -> Callable[[], Built]:
    return lambda: _matmul(GEMM_ROWS, GEMM_INNER, columns, "float16")


def _matmul(rows: int, inner: int, columns: int, dtype: str) -> Built:
    """[rows, inner] x [inner, columns] with a resident right-hand side."""
    accumulated = jnp.int32 if dtype == "int8" else jnp.float32

    def function(weights: jax.Array, x: jax.Array) -> jax.Array:
        product: jax.Array = jax.lax.dot(x, weights, preferred_element_type=accumulated)
        return product

    shapes = Shape((inner, columns), jnp.dtype(dtype)), Shape((rows, inner), jnp.dtype(dtype))
    return lpu_jax.lpu(function, resident_argnums=0), shapes


# Models ----------------------------------------------------------------------------------------------------------


def _model_cases() -> Iterator[Case]:
    for context in (512, 2048):
        yield _case(f"smollm2 decode {context}", _decode_at(context), note="reported")
    prompts = (256, 192, 128, 64, 32)
    attempts = tuple((f"{tokens} tokens", _prefill_of(tokens)) for tokens in prompts)
    yield Case(name="smollm2 prefill", attempts=attempts, note="reported")
    yield _case(
        "bert-base", lambda: bert(12, 768, 12, 3072, 128), published=BERT_BASE_CYCLES, note="seq 128, int8 weights"
    )
    yield _case(
        "bert-large layer",
        lambda: bert(1, 1024, 16, 4096, 384),
        published=BERT_LARGE_CYCLES // 24,
        note="seq 384, int8 weights; published: a 24th of the P99, PCIe and links included",
    )
    yield _case("resnet-50", lambda: resnet((3, 4, 6, 3)), published=RESNET_CYCLES["resnet-50"], note=_RESNET)
    yield _case("resnet-101", lambda: resnet((3, 4, 23, 3)), published=RESNET_CYCLES["resnet-101"], note=_RESNET)


def smollm2_config(num_layers: int, context: int, vocab_size: int = 49152) -> Smollm2Config:
    """SmolLM2-135M with another number of layers or positions, or another vocabulary."""
    return Smollm2Config(
        num_layers=num_layers,
        d_model=576,
        num_heads=9,
        num_kv_heads=3,
        d_ff=1536,
        vocab_size=vocab_size,
        context=context,
        rope_base=100000.0,
        rms_eps=1e-5,
    )


def _decode_at(context: int) -> Callable[[], Built]:
    return lambda: smollm2_decode(30, context)


def smollm2_decode(num_layers: int, context: int, vocab_size: int = 49152) -> Built:
    """One token of SmolLM2-135M with int8 weights; weights and caches stay in SRAM."""
    model = Smollm2.random(smollm2_config(num_layers, context, vocab_size), seed=0, weights="int8")
    function = lpu_jax.lpu(decode, resident_argnums=(0, 3, 4), donate_argnums=(3, 4))
    return function, (model, jnp.int32(5), jnp.int32(3), *model.empty_caches())


def _prefill_of(tokens: int) -> Callable[[], Built]:
    def build() -> Built:
        model = Smollm2.random(smollm2_config(30, 512), seed=0, weights="int8")
        function = lpu_jax.lpu(prefill, resident_argnums=0)
        return function, (model, Shape((tokens,), jnp.int32), Shape((), jnp.int32))

    return build


def resnet(blocks: tuple[int, ...]) -> Built:
    """A ResNet of bottlenecks on one image of 224 x 224, products in int8."""
    model, image = flax_models.ResNet(blocks), Shape((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    return lpu_jax.lpu(model.apply, resident_argnums=0, precision="int8"), (variables, image)


class QuantizedLinear(nnx.Module):  # type: ignore[misc]
    """y = x @ values * scale + bias, values int8 [K, N]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self.values = nnx.Param(jnp.zeros((inputs, outputs), jnp.int8))
        self.scale = nnx.Param(jnp.ones((outputs,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        product = jax.lax.dot_general(x, self.values[...], (((2,), (0,)), ((), ())), preferred_element_type=jnp.float32)
        scaled: jax.Array = product * self.scale[...] + self.bias[...]
        return scaled


def bert(num_layers: int, d_model: int, num_heads: int, d_ff: int, length: int) -> Built:
    """A BERT encoder of batch 1 with int8 weights, its layers in a scan; embeddings are left to the host."""
    layer = BertLayer(BertConfig(d_model=d_model, num_heads=num_heads, d_ff=d_ff), rngs=nnx.Rngs(0))
    for name in ("query", "key", "value", "output"):
        setattr(layer, name, QuantizedLinear(d_model, d_model))
    layer.up, layer.down = QuantizedLinear(d_model, d_ff), QuantizedLinear(d_ff, d_model)
    graph, state = nnx.split(layer)

    def encode(states: Any, x: jax.Array, mask: jax.Array) -> jax.Array:
        def step(x: jax.Array, layer_state: Any) -> tuple[jax.Array, None]:
            return nnx.merge(graph, layer_state)(x, mask), None

        return jax.lax.scan(step, x, states)[0]

    stacked = jax.tree.map(lambda leaf: Shape((num_layers, *leaf.shape), leaf.dtype), state)
    inputs = Shape((1, length, d_model), jnp.float32), Shape((1, length), jnp.bool_)
    return lpu_jax.lpu(encode, resident_argnums=0), (stacked, *inputs)


def random_arguments(arguments: tuple[Any, ...], seed: int = 0) -> tuple[Any, ...]:
    """Arrays in place of shapes: normal floats, all of int8, small other integers."""
    rng = np.random.default_rng(seed)

    def draw(leaf: Any) -> Any:
        if not isinstance(leaf, Shape):
            return leaf
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype)
        low, high = (-127, 128) if leaf.dtype == jnp.int8 else (0, 2)
        return jnp.asarray(rng.integers(low, high, leaf.shape), leaf.dtype)

    return jax.tree.map(draw, arguments, is_leaf=lambda leaf: isinstance(leaf, Shape))
