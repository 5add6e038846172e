"""Work on resident xs leaves the loop, and what it leaves behind leaves SRAM."""

import jax
import numpy as np

from lpu_jax.lowering.hoist import hoist_resident
from lpu_jax.lowering.lower import lower_jaxpr
from lpu_jax.lowering.prune import split_resident
from lpu_jax.runtime.execute import execute
from lpu_jax.runtime.ops import Scan

RNG = np.random.default_rng(0)
W, X = RNG.standard_normal((2, 16, 16)).astype(np.float32), RNG.standard_normal((1, 16)).astype(np.float32)


def test_the_loop_keeps_the_rounded_weights_and_not_those_they_were_made_of():
    def fun(w, x):
        return jax.lax.scan(lambda x, m: (x @ m, None), x, w)[0]

    graph = lower_jaxpr(jax.make_jaxpr(fun)(W, X), resident=(0,))
    prologue, main = split_resident(hoist_resident(graph, {graph.inputs[0]}), {graph.inputs[0]})
    kept = [main.avals[v] for v in main.inputs if main.avals[v].shape[-2:] == (16, 16)]
    assert [aval.dtype for aval in kept] == ["float16"]
    (scan,) = [e.op for e in main.equations if isinstance(e.op, Scan)]
    used = {v for e in scan.body.equations for v in e.operands}
    assert set(scan.body.inputs) <= used
    results = jax.jit(lambda w, x: execute(main, [x, *execute(prologue, [w])]))(W, X)
    wanted = jax.jit(lambda w, x: execute(graph, [w, x]))(W, X)
    assert np.asarray(results[0]).tobytes() == np.asarray(wanted[0]).tobytes()
