"""The command `lpu-jax quality`: what policies cost in quality on a real model, as a table."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

_MODELS = ("smollm2", "minilm")


def add_parser(commands: Any) -> None:
    """Adds the command to the others."""
    parser = commands.add_parser(
        "quality",
        help="measure what number formats cost on a real model",
        description="Runs a real model in the LPU's arithmetic under precision policies and compares it with plain "
        "fp32 on text of Python's language reference: SmolLM2-135M by KL, likeliest token and perplexity; "
        "all-MiniLM-L6-v2 by SQNR, cosine and nearest neighbours of its embeddings.",
    )
    parser.add_argument("--model", choices=_MODELS, default="smollm2", help="which model (default: smollm2)")
    parser.add_argument(
        "--policy",
        action="append",
        metavar="NAME|FILE",
        help="a preset or a policy file; may be given several times (default: fp16 and truepoint)",
    )
    parser.add_argument(
        "--weights-only",
        action="store_true",
        help="round weights and run everything else in plain fp32: faster, and it tells the bits per weight",
    )
    parser.add_argument(
        "--size",
        type=_positive,
        metavar="N",
        help="passages of 128 tokens (default: 4), or batches of 16 sentences (12)",
    )
    parser.add_argument(
        "--path", type=Path, metavar="PATH", help="GGUF file or encoder directory (default: cache, installed package)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.set_defaults(run=run)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value


def run(arguments: argparse.Namespace) -> int:
    """Measures and prints; returns 0.

    Raises:
      ModelFileError: no model.
      PolicyError, ValueError: an unknown preset or a bad file.
    """
    from rich.console import Console

    policies = [_policy(text) for text in arguments.policy or ("fp16", "truepoint")]
    with _status("reading the model"):
        bench = _bench(arguments)
    rows = {}
    for policy in policies:
        with _status(f"measuring {policy.name}"):
            quality = bench.weights_only(policy) if arguments.weights_only else bench.on_lpu(policy)
        rows[policy.name] = dataclasses.asdict(quality)
    if arguments.json:
        print(
            json.dumps({"model": arguments.model, "weights_only": arguments.weights_only, "policies": rows}, indent=2)
        )
    else:
        width = None if sys.stdout.isatty() else 120
        Console(width=width).print(table(arguments.model, rows, arguments.weights_only))
    return 0


def _status(text: str) -> contextlib.AbstractContextManager[Any]:
    """A spinner on standard error if that is a terminal."""
    from rich.console import Console

    return Console(stderr=True).status(text) if sys.stderr.isatty() else contextlib.nullcontext()


def _policy(text: str) -> Any:
    from lpu_jax.precision import PRESETS, Policy, as_policy

    is_file = text not in PRESETS and (text.endswith(".json") or os.path.sep in text)
    if is_file and not os.path.isfile(text):
        raise ValueError(f"there is no policy file '{text}'")
    return Policy.load(text) if is_file else as_policy(text)


def _bench(arguments: argparse.Namespace) -> Any:
    if arguments.model == "minilm":
        from lpu_jax.quality.sentences import BATCH, SentenceBench

        return SentenceBench.installed(arguments.path, num_sentences=BATCH * (arguments.size or 12))
    from lpu_jax.models.download import default_model_path
    from lpu_jax.quality.language import LanguageBench

    return LanguageBench.from_gguf(arguments.path or default_model_path(), num_passages=arguments.size or 4)


_FORMATS = {
    "kl": ("KL, nats", "{:.2e}"),
    "kl_max": ("largest", "{:.2e}"),
    "top1": ("same top-1", "{:.2%}"),
    "perplexity": ("perplexity", "{:.3f}"),
    "reference_perplexity": ("of fp32", "{:.3f}"),
    "sqnr_db": ("SQNR, dB", "{:.1f}"),
    "cosine": ("cosine", "{:.5f}"),
    "neighbours": ("same neighbour", "{:.2%}"),
    "positions": ("positions", "{:,}"),
    "sentences": ("sentences", "{:,}"),
    "bits": ("bits/weight", "{:.2f}"),
}


def table(model: str, rows: dict[str, dict[str, Any]], weights_only: bool) -> Any:
    """A `rich` table of one row per policy."""
    from rich.table import Table

    how = "weights rounded, all else fp32" if weights_only else "in the LPU's arithmetic"
    found = Table(title=f"{model}, {how}", title_justify="left")
    found.add_column("policy")
    names = [n for n in next(iter(rows.values())) if n != "bits" or weights_only]
    for name in names:
        found.add_column(_FORMATS[name][0], justify="right")
    for policy, row in rows.items():
        found.add_row(policy, *(_FORMATS[name][1].format(row[name]) for name in names))
    return found
