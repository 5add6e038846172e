"""What number formats cost in quality, on real weights: measures sections, stores rows, writes docs/numerics.md.

SmolLM2-135M (from the user's cache, see `lpu-jax generate`) and all-MiniLM-L6-v2 (installed package, see
lpu_jax/models/minilm.py) on text of Python's language reference. Every section is stored in benchmarks/quality.json as
soon as it is done; the page is written from what is stored.

Usage: python benchmarks/quality.py [SECTION ...] [--list] [--page]
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from quality_page import write_page

from lpu_jax import Budget, Calibration, Policy, Rule, calibrate, lpu
from lpu_jax.calibration import MODES
from lpu_jax.chips import ChipSpec, groqchip1
from lpu_jax.models.download import default_model_path
from lpu_jax.models.minilm import embed
from lpu_jax.models.smollm2 import Smollm2, decode, score
from lpu_jax.models.tokenizer import Tokenizer
from lpu_jax.precision import PRESETS
from lpu_jax.quality.compensated import compensated
from lpu_jax.quality.language import LENGTH, NUM_CALIBRATION, LanguageBench
from lpu_jax.quality.run import lpu_results
from lpu_jax.quality.sentences import SentenceBench, sqnr_db
from lpu_jax.quality.text import passages
from lpu_jax.runtime.execute import Mode

STORED = Path(__file__).with_name("quality.json")
BITS = (4.5, 5.5, 6.5)
CONTEXT = 2048
NUM_MORE = 23
"""Passages behind those of the test, to weigh rounding errors by."""
UNIFORM_MINILM = ("bfp3", "bfp4", "bfp5", "bfp6", "bfp8", "bfp8x32", "int8", "e4m3", "fp16")
UNIFORM_SMOLLM2 = ("bfp4", "bfp5", "bfp6", "bfp8")
CANDIDATES = ("bfp3", "bfp4x32", "bfp4", "bfp5x32", "bfp5", "bfp6x32", "bfp6", "bfp7x32", "bfp8x32")
"""Blocks of 32 too: the quarter of a bit that they save is worth more than what they cost."""
PRODUCTS = "*dot_general"

Row = dict[str, Any]


@functools.cache
def sentences() -> SentenceBench:
    return SentenceBench.installed()


@functools.cache
def few_sentences() -> SentenceBench:
    """For runs in the LPU's arithmetic, which takes longer."""
    return SentenceBench.installed(num_sentences=96)


@functools.cache
def language() -> LanguageBench:
    return LanguageBench.from_gguf(default_model_path(), num_passages=4)


def weights_in(form: str) -> Policy:
    """One format for the weights of all products."""
    return Policy(f"weights {form}", (Rule("*dot_general@*", rhs=form),))


def row(name: str, quality: Any, **more: Any) -> Row:
    return {"policy": name, **dataclasses.asdict(quality), **more}


# MiniLM --------------------------------------------------------------------------------------------------------------


def minilm_uniform() -> list[Row]:
    bench = sentences()
    rows = [row(form, bench.weights_only(weights_in(form))) for form in UNIFORM_MINILM]
    plain = [row(f"{f}, plain exponents", bench.weights_only(weights_in(f), False)) for f in ("bfp4", "bfp5", "bfp6")]
    return rows + plain


def minilm_mixed() -> list[Row]:
    bench, rows = sentences(), []
    for mode in MODES:
        started = time.process_time()
        found = calibrate(
            embed,
            bench.model,
            bench.calibration,
            budget=Budget(bits_per_weight=BITS[0]),
            formats=CANDIDATES,
            only=PRODUCTS,
            mode=mode,
        )
        seconds = time.process_time() - started
        for bits in BITS:
            mixed = found.for_budget(Budget(bits_per_weight=bits))
            rows.append(row(f"mixed, {mode}", bench.weights_only(mixed.policy), target=bits, cpu_seconds=seconds))
    return rows


def minilm_lpu() -> Iterator[Row]:
    bench = few_sentences()
    yield from (row(name, bench.on_lpu(name)) for name in ("fp16", "truepoint", "int8", "fp8"))


WEIGHT_KINDS = ("query", "key", "value", "output", "up", "down")
PRODUCT_KINDS = ("bqhd,bkhd->bhqk", "bhqk,bkhd->bqhd")
"""Logits and mixed values, whose operands are both activations."""


def activation_policy(name: str, kinds: Iterable[str], form: str) -> Policy:
    """fp16, but `form` for the activations of these kinds of products, in every layer."""
    rules = [
        Rule(f"*{kind}/dot_general", lhs=form, rhs=form) if kind in PRODUCT_KINDS
        else Rule(f"*dot_general@*/{kind}/*", lhs=form) for kind in kinds
    ]  # fmt: skip
    return PRESETS["fp16"].with_rules(*rules, name=name)


def tolerant_kinds(bench: SentenceBench) -> list[str]:
    """Kinds of products, those first whose activations in e4m3 move the result of the middle layer least.

    On half a calibration batch, with float32 sums to be quick.
    """
    model, (tokens, mask) = bench.model, [x[:8] for x in bench.calibration[0]]
    middle = len(model.layers) // 2
    x = model.norm(model.words[...][tokens] + model.positions[...][None, : tokens.shape[1]])
    for layer in model.layers[:middle]:
        x = layer(x, mask)
    graph, state = nnx.split(model.layers[middle])

    def run(state: Any, x: jax.Array, mask: jax.Array) -> jax.Array:
        result: jax.Array = nnx.merge(graph, state)(x, mask)
        return result

    reference = np.asarray(run(state, x, mask))
    quality = {}
    for kind in (*WEIGHT_KINDS, *PRODUCT_KINDS):
        found = lpu_results(run, state, [(x, mask)], activation_policy("one", [kind], "e4m3"), Mode("float32"))[0]
        quality[kind] = sqnr_db(reference, found)
        print(kind, quality[kind], flush=True)
    return sorted(quality, key=lambda kind: -quality[kind])


def minilm_activations() -> Iterator[Row]:
    """e4m3 for the activations of the most tolerant half of products, then of all."""
    bench = few_sentences()
    order = tolerant_kinds(bench)
    for share in (0.5, 1.0):
        chosen = order[: round(share * len(order))]
        name = f"e4m3 at {', '.join(chosen)}" if share < 1 else "e4m3 at all products"
        yield row(name, bench.on_lpu(activation_policy(name, chosen, "e4m3")), share=share)


def minilm_ablations() -> Iterator[Row]:
    bench = few_sentences()
    logits, feed_forward = "*bhqk/dot_general", "*/mlp/*@*"
    for form in ("bfp8", "bfp6", "bfp4"):
        policy = Policy("feed-forward", (Rule(feed_forward, rhs=form),))
        yield row(f"feed-forward weights in {form}, all else fp32", bench.weights_only(policy))
    for mode in ("exact", "tile", "float32"):
        yield row(f"fp16, sums {mode}", bench.on_lpu("fp16", Mode(mode)))
    for form in ("fp16", "bf16", "e4m3"):
        policy = PRESETS["fp16"].with_rules(Rule(logits, result=form))
        yield row(f"fp16, attention logits in {form}", bench.on_lpu(policy))


# SmolLM2 -------------------------------------------------------------------------------------------------------------


@functools.cache
def language_calibration() -> Calibration:
    """Errors of all weights of products, and of the table, on the calibration passages."""
    bench = language()
    samples = [(tokens,) for tokens in bench.calibration]
    return calibrate(
        score, bench.model, samples, budget=Budget(bits_per_weight=8), formats=CANDIDATES, loss="kl", progress=True
    )


def products_only(found: Calibration) -> Calibration:
    return dataclasses.replace(found, choices=tuple(c for c in found.choices if "gather" not in c.primitives))


def smollm2_uniform() -> list[Row]:
    bench = language()
    return [row(form, bench.weights_only(weights_in(form))) for form in UNIFORM_SMOLLM2]


def smollm2_mixed() -> list[Row]:
    bench, mixed, rows = language(), products_only(language_calibration()), []
    for bits in BITS:
        found = mixed.for_budget(Budget(bits_per_weight=bits))
        formats = {c.name: str(c.chosen.number_format) for c in found.choices}
        rows.append(row("mixed, direct", bench.weights_only(found.policy), target=bits, formats=formats))
        print(rows[-1], flush=True)
    return rows


ONE_CHIP = {
    "attention/first": "bfp8x32",
    "attention/second": "bfp8x32",
    "attention/rest": "bfp9x32",
    "attention/output": "bfp8x32",
    "mlp/gate": "bfp7x32",
    "mlp/up": "bfp8x32",
    "mlp/down": "bfp8x32",
    "head": "bfp8x32",
}
"""Weight -> format; with the caches 199 of the 207 MB of a chip. By the errors that `calibrate` measures: of the large
weights gate gives a bit at the least error, the rest of q, k and v takes one for the largest gain per byte."""


def one_chip_policy() -> Policy:
    """`truepoint` with these formats; the head is the embedding, too, and is looked up in its own."""
    rules = [Rule(f"*dot_general@*{name}/values*", rhs=form) for name, form in ONE_CHIP.items()]
    rules.append(Rule("*dynamic_slice@*head/values*", rhs=ONE_CHIP["head"]))
    return PRESETS["truepoint"].with_rules(*rules, name="one chip")


def calibration_texts() -> list[np.ndarray]:
    """All passages of full length that are not those of the test."""
    tokenizer, bench = Tokenizer.from_gguf(default_model_path()), language()
    first = NUM_CALIBRATION + len(bench.test)
    tokens = [tokenizer.encode(text)[:LENGTH] for text in (*passages(NUM_CALIBRATION), *passages(NUM_MORE, first))]
    return [np.asarray(t, np.int32) for t in tokens if len(t) == LENGTH]


def smollm2_one_chip() -> list[Row]:
    """The compact model, its rounding errors compensated, in the LPU's arithmetic."""
    bench = language()
    model = Smollm2.from_gguf(default_model_path(), weights="fp32", context=LENGTH, is_compact=True)
    rounded_model = compensated(model, calibration_texts(), ONE_CHIP)
    found = lpu_results(score, rounded_model, bench.test, one_chip_policy())
    return [row("truepoint for one chip", bench.compare(found), formats=ONE_CHIP)]


def smollm2_fp16() -> list[Row]:
    return [row("fp16", language().on_lpu("fp16"))]


def smollm2_truepoint() -> list[Row]:
    return [row("truepoint", language().on_lpu("truepoint"))]


def smollm2_ablations() -> Iterator[Row]:
    bench, fp16 = language(), PRESETS["fp16"]
    attention = "*/attend/dot_general"
    logits = fp16.with_rules(Rule(attention, result="fp16"))
    yield row("fp16, attention products (logits and mixed values) in fp16", bench.on_lpu(logits))
    everywhere = fp16.with_rules(Rule("*dot_general", lhs="e4m3"), Rule(attention, rhs="e4m3"))
    yield row("fp16, all activations in e4m3", bench.on_lpu(everywhere))
    yield row("fp16, sums per tile", bench.on_lpu("fp16", Mode("tile")))
    tolerant = fp16.with_rules(*(Rule(f"*/{s}/dot_general*", lhs="e4m3") for s in ("gate", "up", "output")))
    yield row("fp16, activations of gate, up and output in e4m3", bench.on_lpu(tolerant))
    yield row("fp16, sums in float32 as XLA orders them", bench.on_lpu("fp16", Mode("float32")))


def smollm2_feed_forward() -> Iterator[Row]:
    bench = language()
    for form in ("bfp4", "bfp6", "bfp8"):
        policy = Policy("feed-forward", (Rule("*/mlp/*@*", rhs=form),))
        yield row(f"feed-forward weights in {form}, all else fp32", bench.weights_only(policy))


def token_cycles(name: str, policy: Policy, chip: ChipSpec, is_compact: bool) -> Row:
    """One decoded token, compiled."""
    model = Smollm2.from_gguf(default_model_path(), weights="fp32", context=CONTEXT, is_compact=is_compact)
    scalar = jax.ShapeDtypeStruct((), jnp.int32)
    caches = jax.eval_shape(model.empty_caches)
    step = lpu(decode, chip=chip, precision=policy, resident_argnums=(0, 3, 4), donate_argnums=(3, 4))
    compiled = step.lower(model, scalar, scalar, *caches).compile()
    costs, sram = compiled.cost_analysis(), compiled.memory_analysis().sram_bytes
    bounds = {k.removeprefix("resource_bound_"): v for k, v in costs.items() if k.startswith("resource_bound_")}
    return {
        "policy": name,
        "cycles": compiled.cycles,
        "bounded_by": costs["bounded_by"],
        "bounds": bounds,
        "dependency_bound": costs["dependency_bound_cycles"],
        "sram_bytes": sram,
        "chips": float(np.ceil(sram / groqchip1.usable_sram_bytes)),
    }


def larger_chip() -> ChipSpec:
    """As much SRAM as fp16 weights need."""
    return dataclasses.replace(groqchip1, num_addresses_per_bank=3 * groqchip1.num_addresses_per_bank)


def smollm2_fp16_cycles() -> list[Row]:
    """fp16 weights and table, in the layout that is not compact."""
    policy = PRESETS["fp16"].with_rules(Rule("*gather@*embedding*", rhs="fp16"))
    return [token_cycles("fp16", policy, larger_chip(), is_compact=False)]


def smollm2_cycles() -> list[Row]:
    """The policy for one chip, on one chip."""
    return [token_cycles("truepoint for one chip", one_chip_policy(), groqchip1, is_compact=True)]


SECTIONS: dict[str, Callable[[], Iterable[Row]]] = {
    function.__name__: function
    for function in (
        minilm_uniform,
        minilm_mixed,
        minilm_lpu,
        minilm_activations,
        minilm_ablations,
        smollm2_uniform,
        smollm2_mixed,
        smollm2_fp16,
        smollm2_truepoint,
        smollm2_one_chip,
        smollm2_ablations,
        smollm2_feed_forward,
        smollm2_fp16_cycles,
        smollm2_cycles,
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--page", action="store_true", help="only write the page from what is stored")
    arguments = parser.parse_args()
    chosen = arguments.sections or ([] if arguments.page else list(SECTIONS))
    if unknown := [name for name in chosen if name not in SECTIONS]:
        parser.error(f"unknown sections {unknown}")
    for name in chosen:
        rows: list[Row] = []
        for item in SECTIONS[name]():
            rows.append(item)
            stored = json.loads(STORED.read_text()) if STORED.exists() else {}
            STORED.write_text(json.dumps({**stored, name: rows}, indent=1, sort_keys=True) + "\n")
            print(name, item, flush=True)
    write_page(json.loads(STORED.read_text()))


if __name__ == "__main__":
    main()
