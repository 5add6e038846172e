"""The ten lines of README: three layers whose weights stay in SRAM, compiled, counted and drawn."""

import jax.numpy as jnp
import numpy as np

import lpu_jax


@lpu_jax.lpu(resident_argnums=0)  # the weights stay in the chip's SRAM
def mlp(weights, x):
    for w in weights:
        x = jnp.maximum(x @ w, 0)
    return x


compiled = mlp.lower([np.ones((320, 320), np.float16)] * 3, np.ones((16, 320), np.float16)).compile()
print(f"{compiled.cycles} cycles, {compiled.cycles / 0.9e3:.2f} us")
lpu_jax.pictures.timeline(compiled).figure.savefig("timeline.svg")
