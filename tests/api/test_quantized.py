"""quantize: weights in narrow formats, end to end: bytes, cycles, bits of machine and runtime, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lpu_jax
from lpu_jax.runtime import formats
from lpu_jax.runtime.isa import OPERANDS, Opcode
from lpu_jax.runtime.ops import DecodeBlocks, MatMul

RNG = np.random.default_rng(0)


def matrix(*shape):
    return (RNG.standard_normal(shape) * 0.1).astype(np.float32)


def check(fun, *args, resident=(0,), chip="groqchip1"):
    """Program and machine results of a function, which must agree in bits and cycles with the fast runtime."""
    on_lpu = lpu_jax.lpu(fun, resident_argnums=resident, chip=chip)
    compiled = on_lpu.lower(*args).compile()
    expected = np.asarray(on_lpu(*args))
    result, cycles = compiled.simulate(*args)
    assert cycles == compiled.cycles
    assert np.asarray(result).tobytes() == expected.tobytes()
    if resident:
        loaded = compiled.load(*(args[i] for i in resident))
        moving = [a for i, a in enumerate(args) if i not in resident]
        assert np.asarray(loaded(*moving)).tobytes() == expected.tobytes()
    return compiled, expected


def apply(w, x):
    return x @ w


@pytest.mark.parametrize(
    ("name", "dtype"), [("bfp8", np.float32), ("bfp3x32", np.float16), ("bfp9", np.float16), ("e5m2", np.float16)]
)
def test_machine_and_runtime_multiply_the_stored_values(name, dtype):
    w, x = lpu_jax.quantize(matrix(700, 40), name), matrix(3, 700).astype(dtype)
    _, result = check(apply, w, x)
    expected = x.astype(np.float64) @ np.asarray(w.dequantize(), np.float64)
    assert result.dtype == dtype
    np.testing.assert_allclose(result, expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())
    np.testing.assert_allclose(np.asarray(x @ w), expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())


def test_the_sum_over_block_weights_is_exact():
    """1e4 and -1e4 in different blocks cancel; what is left would vanish in a float32 sum."""
    w = np.zeros((640, 2), np.float32)
    w[0], w[330], w[639] = 2.0**14, -(2.0**14), 2.0**-20
    x = np.ones((1, 640), np.float16)
    _, result = check(lambda w, x: (x.astype(jnp.float32)) @ w, lpu_jax.quantize(w, "bfp4"), x)
    np.testing.assert_array_equal(result, np.full((1, 2), 2.0**-20, np.float32))


def test_bytes_loads_and_cycles_follow_from_the_format():
    """One row against a large matrix is bound by loading weights, so cycles fall with the bits of a weight."""
    x, weights = matrix(1, 1280).astype(np.float16), matrix(1280, 1280)
    cycles, sizes, loads = {}, {}, {}
    for name in ("fp16", "e4m3", "bfp8", "bfp8x32", "bfp6", "bfp4", "bfp3x32"):
        w = lpu_jax.quantize(weights, name)
        compiled = lpu_jax.lpu(apply, resident_argnums=0).lower(w, x).compile()
        cycles[name], program = compiled.cycles, compiled.program
        stored = [size for owner, _, size, _ in compiled.memory_map() if owner == "w.data"]
        sizes[name] = sum(stored)
        number_format = formats.parse_format(name)
        assert w.nbytes == number_format.num_sram_bytes(1280, 1280) == 1280 * 1280 * number_format.bits / 8
        assert w.nbytes <= sizes[name] < 1.02 * w.nbytes  # the last load of a column tile is filled up
        rows = program.opcode == Opcode.LW
        loads[name] = int(program.count[rows].sum())
        formats_used = set(program.operands[rows, OPERANDS[Opcode.LW].index("format")].tolist())
        assert len(formats_used) == 1
        per_tile = -(-number_format.num_words(320) // 16)
        assert loads[name] == 4 * 4 * per_tile
    assert cycles["fp16"] > cycles["bfp8"] > cycles["bfp6"] > cycles["bfp4"] > cycles["bfp3x32"]
    assert cycles["fp16"] > cycles["e4m3"]
    assert cycles["bfp8"] > cycles["bfp8x32"]
    for name in ("e4m3", "bfp8"):
        assert cycles["fp16"] - cycles[name] > 0.3 * loads["fp16"] / 2


def test_many_rows_multiply_at_the_rate_of_one_byte():
    """Two byte products per fp16 activation on one plane: half the plane cycles of fp16 weights."""
    use = {}
    for name in ("fp16", "e4m3", "bfp9"):
        w = lpu_jax.quantize(matrix(640, 640), name)
        compiled = lpu_jax.lpu(apply, resident_argnums=0).lower(w, matrix(256, 640).astype(np.float16)).compile()
        use[name] = compiled.cost_analysis()["resource_bound_mxm"]
    assert use["bfp9"] == use["e4m3"] == use["fp16"] / 2


def test_stacks_loops_and_batches():
    w, g = lpu_jax.quantize(matrix(3, 64, 64), "bfp6x32"), matrix(3, 64)

    def layers(params, x):
        def step(x, layer):
            w, g = layer
            n = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5) * g
            return x + n @ w, None

        return jax.lax.scan(step, x, params)[0]

    x = matrix(2, 64)
    compiled, _ = check(layers, (w, g), x)
    main = compiled.lowered.parts[1]
    (scan,) = [e.op for e in main.equations if hasattr(e.op, "body")]
    assert any(isinstance(e.op, MatMul) and e.op.rhs_format.is_block for e in scan.body.equations)
    assert not any(isinstance(e.op, DecodeBlocks) for e in scan.body.equations)
    stacked = matrix(3, 2, 64)
    _, batched = check(apply, w, stacked)
    _, mapped = check(lambda w, x: jax.vmap(apply)(w, x), w, stacked)
    np.testing.assert_array_equal(batched, mapped)
    gradient = jax.grad(lambda x: jnp.sum(lpu_jax.lpu(layers)((w, g), x)))(x)
    assert np.isfinite(gradient).all()


def test_arguments_that_are_not_resident_constants_and_other_uses():
    w, x = lpu_jax.quantize(matrix(64, 64), "bfp5"), matrix(2, 64)
    _, moved = check(apply, w, x, resident=())
    _, captured = check(lambda x: x @ w, x, resident=())
    np.testing.assert_array_equal(moved, captured)
    compiled, _ = check(lambda w, x: x @ w.dequantize().T, w, x)  # sums along N: unpacked when it is loaded
    assert any(isinstance(e.op, DecodeBlocks) for e in compiled.lowered.parts[0].equations)
    with pytest.raises(lpu_jax.NumberFormatError, match=r"bfp5x16 is packed .* test_quantized.py:\d+ .* resident_argn"):
        check(lambda w, x: x @ w.dequantize().T, w, x, resident=())


def test_small_planes_take_small_blocks():
    w, x = matrix(50, 20), matrix(2, 50).astype(np.float16)
    check(apply, lpu_jax.quantize(w, "bfp5x16"), x, chip="tiny")
    with pytest.raises(lpu_jax.NumberFormatError, match="blocks of 32 rows, but a plane of chip 'tiny' takes 16"):
        check(apply, lpu_jax.quantize(w, "bfp5x32"), x, chip="tiny")


def test_quantising_is_to_nearest_and_says_what_it_cannot_hold():
    w = matrix(64, 5)
    channel, tensor = lpu_jax.quantize(w, "int8"), lpu_jax.quantize(w, "int8", per_tensor=True)
    assert channel.scale.shape == (1, 5)
    assert tensor.scale.shape == (1, 1)
    for array in (channel, tensor):
        error = np.abs(np.asarray(array.dequantize()) - w)
        assert (error <= np.asarray(array.scale) / 2 * (1 + 1e-6)).all()
    assert channel.nbytes == 64 * 5 + 4 * 5
    shapes = jax.eval_shape(lambda w: lpu_jax.quantize(w, "bfp4"), w)
    assert shapes.shape == (64, 5)
    traced = jax.jit(lambda w: lpu_jax.quantize(w, "bfp4", optimal=True))(w)
    np.testing.assert_array_equal(traced.data, lpu_jax.quantize(w, "bfp4", optimal=True).data)
    large = np.full((16, 1), 1e6, np.float32)
    assert np.isnan(np.asarray(lpu_jax.quantize(large, "e4m3").dequantize())).all()
    assert (np.asarray(lpu_jax.quantize(large, "e4m3", saturate=True).dequantize()) == 448).all()
    large[3] = np.inf
    for name in ("int8", "bfp8"):
        with pytest.raises(lpu_jax.NumberFormatError, match="but 1 of 16 weights are not finite"):
            lpu_jax.quantize(large, name)
    with pytest.raises(lpu_jax.NumberFormatError, match="unknown number format 'int3'"):
        lpu_jax.quantize(w, "int3")
    with pytest.raises(lpu_jax.NumberFormatError, match=r"needs a matrix .* not shape \(64,\)"):
        lpu_jax.quantize(w[:, 0], "bfp4")
    with pytest.raises(ValueError, match=r"\(2, 5\) @ \(64, 5\) \(int8\): the last axis of the left side must be 64"):
        matrix(2, 5) @ channel
