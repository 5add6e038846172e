"""Random keys and bits: the same bits as JAX on the CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from on_lpu import assert_machine_agrees

from lpu_jax.runtime.errors import UnsupportedPrimitiveError

WORDS = np.array([7, 2**32 - 3], np.uint32)
CASES = {
    "seed": lambda w, n: jax.random.key_data(jax.random.key(n)),
    "bits": lambda w, n: jax.random.bits(jax.random.wrap_key_data(w), (3, 5)),
    "8 bits": lambda w, n: jax.random.bits(jax.random.wrap_key_data(w), (7,), jnp.uint8),
    "16 bits": lambda w, n: jax.random.bits(jax.random.wrap_key_data(w), (7,), jnp.uint16),
    "fold in": lambda w, n: jax.random.key_data(jax.random.fold_in(jax.random.wrap_key_data(w), n)),
    "split and unpack": lambda w, n: [
        jax.random.bits(k, (2,)) for k in jax.random.split(jax.random.wrap_key_data(w), 3)
    ],
    "raw keys": lambda w, n: jax.random.split(w, (2, 2)),
    "uniform": lambda w, n: jax.random.uniform(jax.random.wrap_key_data(w), (9,)),
    "randint": lambda w, n: jax.random.randint(jax.random.wrap_key_data(w), (9,), -5, 1000),
    "bernoulli": lambda w, n: jax.random.bernoulli(jax.random.wrap_key_data(w), 0.3, (9,)),
    "vmap": lambda w, n: jax.vmap(lambda k: jax.random.bits(k, (2,)))(jax.random.split(jax.random.wrap_key_data(w), 3)),
    "key of a scan": lambda w, n: lax.scan(
        lambda k, _: (jax.random.split(k)[0], jax.random.bits(k)), jax.random.wrap_key_data(w), None, length=3
    )[1],
}  # fmt: skip


@pytest.mark.parametrize("name", list(CASES))
def test_bits_equal_jax(on_lpu, name):
    n = np.int32(-12345)
    actual, wanted = (jax.tree.leaves(x) for x in (on_lpu(CASES[name], WORDS, n), CASES[name](WORDS, n)))
    for a, b in zip(actual, wanted, strict=True):
        np.testing.assert_array_equal(a, b)


def test_another_generator_is_refused(lowered):
    def fun(n):
        return jax.random.bits(jax.random.key(n, impl="rbg"), (4,))

    with pytest.raises(UnsupportedPrimitiveError, match="key_words"):
        lowered(fun, np.int32(1))


STATES = ([1, 2, 3, 4], [2**32 - 1, 7, 2**32 - 2, 2**32 - 1], [2**32 - 1] * 2 + [2**32 - 3, 2**32 - 1])


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("algorithm", [0, 1, 2])
def test_bits_of_a_generator_equal_xla(on_lpu, algorithm, state):
    def fun(s):
        shapes = ((), (1,), (5, 7), (3, 4), (9,))
        return [lax.rng_bit_generator(s, n, algorithm=lax.RandomAlgorithm(algorithm)) for n in shapes] + [
            lax.rng_bit_generator(s, (6,), d, lax.RandomAlgorithm(algorithm)) for d in (np.uint8, np.uint16)
        ]

    state = np.array(state, np.uint32)
    actual, wanted = (jax.tree.leaves(x) for x in (on_lpu(fun, state), jax.jit(fun)(state)))
    for a, b in zip(actual, wanted, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("algorithm", [1, 2])
def test_machine_equals_runtime_for_a_generator(algorithm):
    state = np.array(STATES[1], np.uint32)
    assert_machine_agrees(lambda s: lax.rng_bit_generator(s, (5,), algorithm=lax.RandomAlgorithm(algorithm)), state)


def test_machine_equals_runtime():
    assert_machine_agrees(lambda w: jax.random.bits(jax.random.wrap_key_data(w), (3,)), WORDS)
