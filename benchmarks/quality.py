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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from quality_page import write_page

from lpu_jax import Budget, Calibration, Policy, Rule, calibrate, lpu
from lpu_jax.chips import groqchip1
from lpu_jax.models.download import default_model_path
from lpu_jax.models.minilm import embed
from lpu_jax.models.smollm2 import Smollm2, decode, score
from lpu_jax.precision import PRESETS
from lpu_jax.quality.language import LanguageBench
from lpu_jax.quality.run import lpu_results
from lpu_jax.quality.sentences import SentenceBench, sqnr_db
from lpu_jax.runtime.execute import Mode

STORED = Path(__file__).with_name("quality.json")
BITS = (4.5, 5.5, 6.5)
CONTEXT = 2048
UNIFORM_MINILM = ("bfp3", "bfp4", "bfp5", "bfp6", "bfp8", "bfp8x32", "int8", "e4m3", "fp16")
UNIFORM_SMOLLM2 = ("bfp4", "bfp5", "bfp6", "bfp8")
SMOLLM2_FORMATS = ("bfp4", "bfp5", "bfp6", "bfp7", "bfp8", "bfp9")
PRODUCTS = "*dot_general"

Row = dict[str, Any]


@functools.cache
def sentences() -> SentenceBench:
    return SentenceBench.installed()


@functools.cache
def language() -> LanguageBench:
    return LanguageBench.from_gguf(default_model_path(), num_passages=4)


def weights_in(form: str) -> Policy:
    """One format for the weights of all products."""
    return Policy(f"weights {form}", (Rule("*dot_general@*", rhs=form),))


def row(name: str, quality: Any, **more: Any) -> Row:
    return {"policy": name, **dataclasses.asdict(quality), **more}


# MiniLM --------------------------------------------------------------------------------------------------------------


def minilm_weights() -> list[Row]:
    bench = sentences()
    rows = [row(form, bench.weights_only(weights_in(form))) for form in UNIFORM_MINILM]
    for mode in ("direct", "gradient"):
        started = time.process_time()
        found = calibrate(
            embed, bench.model, bench.calibration, budget=Budget(bits_per_weight=BITS[0]), only=PRODUCTS, mode=mode
        )
        seconds = time.process_time() - started
        for bits in BITS:
            mixed = found.for_budget(Budget(bits_per_weight=bits))
            rows.append(row(f"mixed, {mode}", bench.weights_only(mixed.policy), target=bits, cpu_seconds=seconds))
    return rows


def minilm_lpu() -> list[Row]:
    bench = sentences()
    return [row(name, bench.on_lpu(name)) for name in PRESETS]


def activation_policy(name: str, sites: list[tuple[str, bool]], form: str) -> Policy:
    """fp16, but `form` for the activations of these (path or path@weight, whether both operands are activations)."""
    rules = [Rule(site, lhs=form, rhs=form if both else None) for site, both in sites]
    return PRESETS["fp16"].with_rules(*rules, name=name)


def activation_sites(bench: SentenceBench) -> list[tuple[str, bool]]:
    lowered = lpu(embed, resident_argnums=0).lower(bench.model, *bench.test[0])
    return [(str(site), not site.weight) for site, _ in lowered.sites if not site.is_lookup]


def minilm_activations() -> list[Row]:
    """e4m3 at single sites on one calibration batch gives their order; then shares of them on the test sentences."""
    bench = sentences()
    sample = bench.calibration[:1]
    reference = bench.embeddings(bench.model, sample)
    sites = activation_sites(bench)
    noise = {}
    for site in sites:
        found = lpu_results(embed, bench.model, sample, activation_policy("one", [site], "e4m3"))[0]
        noise[site] = 10 ** (-sqnr_db(reference, found) / 10)
    order = sorted(sites, key=lambda site: noise[site])
    rows = []
    for share in (0.0, 0.5, 0.75, 1.0):
        chosen = order[: round(share * len(order))]
        name = f"e4m3 at {len(chosen)} of {len(order)} sites"
        rows.append(row(name, bench.on_lpu(activation_policy(name, chosen, "e4m3")), share=share))
    rows.append({"policy": "least tolerant sites", "sites": [site for site, _ in order[:-7:-1]]})
    return rows


def minilm_ablations() -> list[Row]:
    bench = sentences()
    logits, feed_forward = "*bhqk/dot_general", "*/mlp/*@*"
    rows = [row("truepoint", bench.on_lpu("truepoint"))]
    for form in ("fp16", "bf16", "e4m3"):
        policy = PRESETS["truepoint"].with_rules(Rule(logits, result=form))
        rows.append(row(f"truepoint, attention logits in {form}", bench.on_lpu(policy)))
    for form in ("bfp8", "bfp6", "bfp4"):
        policy = PRESETS["fp16"].with_rules(Rule(feed_forward, rhs=form))
        rows.append(row(f"fp16, feed-forward weights in {form}", bench.on_lpu(policy)))
    rows += [row(f"fp16, sums {mode}", bench.on_lpu("fp16", Mode(mode))) for mode in ("exact", "tile", "float32")]
    return rows


# SmolLM2 -------------------------------------------------------------------------------------------------------------


@functools.cache
def language_calibration() -> Calibration:
    """Errors of all weights of products, and of the table, on the calibration passages."""
    bench = language()
    samples = [(tokens,) for tokens in bench.calibration]
    return calibrate(
        score, bench.model, samples, budget=Budget(bits_per_weight=8), formats=SMOLLM2_FORMATS, loss="kl", progress=True
    )


def products_only(found: Calibration) -> Calibration:
    return dataclasses.replace(found, choices=tuple(c for c in found.choices if "gather" not in c.primitives))


def smollm2_weights() -> list[Row]:
    bench = language()
    rows = [row(form, bench.weights_only(weights_in(form))) for form in UNIFORM_SMOLLM2]
    mixed = products_only(language_calibration())
    for bits in BITS:
        found = mixed.for_budget(Budget(bits_per_weight=bits))
        formats = {c.name: str(c.number_format) for c in found.choices}
        rows.append(row("mixed, direct", bench.weights_only(found.policy), target=bits, formats=formats))
    return rows


def cache_bytes() -> int:
    """The two caches in fp16, for CONTEXT positions."""
    config = language().model.config
    return 2 * 2 * config.num_layers * config.kv_dim * CONTEXT


def one_chip() -> Calibration:
    """Weights and table, beside the caches and what a token needs for itself (measured: below 4 MiB)."""
    found = dataclasses.replace(language_calibration(), base=PRESETS["truepoint"])
    return found.for_budget(Budget(chips=1, reserved_bytes=cache_bytes() + (4 << 20)))


def smollm2_lpu() -> list[Row]:
    bench = language()
    rows = [row(name, bench.on_lpu(name)) for name in ("fp16", "truepoint")]
    found = one_chip()
    formats = {c.name: str(c.number_format) for c in found.choices}
    quality = bench.on_lpu(found.policy)
    rows.append(row("truepoint for one chip", quality, formats=formats, weight_bytes=found.num_bytes))
    rows[-1]["bits"] = found.bits_per_weight
    found.policy.save(STORED.with_name("smollm2_one_chip.json"))
    return rows


def smollm2_ablations() -> list[Row]:
    bench = language()
    logits, feed_forward, attention = "*attend/dot_general", "*/mlp/*@*", "*/attend/dot_general"
    rows = []
    for form in ("fp16", "bf16"):
        policy = PRESETS["fp16"].with_rules(Rule(logits, result=form))
        rows.append(row(f"fp16, attention products in {form}", bench.on_lpu(policy)))
    for form in ("bfp8", "bfp6", "bfp4"):
        policy = PRESETS["fp16"].with_rules(Rule(feed_forward, rhs=form))
        rows.append(row(f"fp16, feed-forward weights in {form}", bench.on_lpu(policy)))
    everywhere = PRESETS["fp16"].with_rules(Rule("*dot_general", lhs="e4m3"), Rule(attention, rhs="e4m3"))
    rows.append(row("fp16, all activations in e4m3", bench.on_lpu(everywhere)))
    tolerant = PRESETS["fp16"].with_rules(*(Rule(f"*/{s}/dot_general*", lhs="e4m3") for s in ("gate", "up", "output")))
    rows.append(row("fp16, activations of gate, up and output in e4m3", bench.on_lpu(tolerant)))
    rows += [row(f"fp16, sums {mode}", bench.on_lpu("fp16", Mode(mode))) for mode in ("exact", "tile", "float32")]
    return rows


def smollm2_cycles() -> list[Row]:
    """One decoded token, compiled: fp16 weights on a chip with as much SRAM as they need, narrow ones on one chip."""
    model = jax.eval_shape(lambda: Smollm2.from_gguf(default_model_path(), weights="fp32", context=CONTEXT))
    scalar = jax.ShapeDtypeStruct((), jnp.int32)
    config = language().model.config
    k_cache = jax.ShapeDtypeStruct((config.num_layers, config.kv_dim, CONTEXT), jnp.float16)
    v_cache = jax.ShapeDtypeStruct((config.num_layers, CONTEXT, config.kv_dim), jnp.float16)
    larger = dataclasses.replace(groqchip1, num_addresses_per_bank=2 * groqchip1.num_addresses_per_bank)
    table = Rule("*gather@*embedding*", rhs="fp16")
    rows = []
    for name, policy, chip in (
        ("fp16", PRESETS["fp16"].with_rules(table), larger),
        ("truepoint for one chip", Policy.load(STORED.with_name("smollm2_one_chip.json")), groqchip1),
    ):
        step = lpu(decode, chip=chip, precision=policy, resident_argnums=(0, 3, 4), donate_argnums=(3, 4))
        compiled = step.lower(model, scalar, scalar, k_cache, v_cache).compile()
        costs = compiled.cost_analysis()
        bounds = {k.removeprefix("resource_bound_"): v for k, v in costs.items() if k.startswith("resource_bound_")}
        rows.append({
            "policy": name, "cycles": compiled.cycles, "bounded_by": costs["bounded_by"], "bounds": bounds,
            "dependency_bound": costs["dependency_bound_cycles"], "sram_bytes": compiled.memory_analysis().sram_bytes,
            "chips": float(np.ceil(compiled.memory_analysis().sram_bytes / groqchip1.usable_sram_bytes)),
        })  # fmt: skip
    return rows


SECTIONS: dict[str, Callable[[], list[Row]]] = {
    function.__name__: function
    for function in (
        minilm_weights,
        minilm_lpu,
        minilm_activations,
        minilm_ablations,
        smollm2_weights,
        smollm2_lpu,
        smollm2_ablations,
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
        rows = SECTIONS[name]()
        stored = json.loads(STORED.read_text()) if STORED.exists() else {}
        STORED.write_text(json.dumps({**stored, name: rows}, indent=1, sort_keys=True) + "\n")
        for item in rows:
            print(name, item, flush=True)
    write_page(json.loads(STORED.read_text()))


if __name__ == "__main__":
    main()
