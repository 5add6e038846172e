"""Writes the part of docs/numerics.md that `benchmarks/quality.py` measures, between its two markers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "numerics.md"
BEGIN, END = "<!-- quality -->", "<!-- /quality -->"

Row = dict[str, Any]
Stored = dict[str, list[Row]]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return [*lines, *("| " + " | ".join(cells) + " |" for cells in rows), ""]


def sentence_cells(row: Row) -> list[str]:
    return [f"{row['sqnr_db']:.1f}", f"{row['cosine']:.5f}", f"{row['neighbours']:.1%}"]


def language_cells(row: Row) -> list[str]:
    change = row["perplexity"] / row["reference_perplexity"] - 1
    return [f"{row['kl']:.2e}", f"{row['top1']:.2%}", f"{row['perplexity']:.3f} ({change:+.2%})"]


SENTENCE_HEADER = ("SQNR, dB", "cosine", "same neighbour")
LANGUAGE_HEADER = ("KL to fp32, nats", "same top-1", "perplexity (change)")


def plain(section: str, header: Sequence[str], cells: Any, stored: Stored) -> list[str]:
    """A table of policy and quality."""
    rows = [r for r in stored.get(section, []) if "bits" in r]
    return table(("policy", *header), ([r["policy"], *cells(r)] for r in rows)) if rows else []


def by_bits(section: str, header: Sequence[str], cells: Any, stored: Stored) -> list[str]:
    rows = [r for r in stored.get(section, []) if "bits" in r]
    listed = ([r["policy"], f"{r['bits']:.2f}", *cells(r)] for r in rows)
    return table(("weights", "bits", *header), listed) if rows else []


def uniform_at(rows: list[Row], bits: float, form: str = "bfp") -> Row | None:
    return next((r for r in rows if r["policy"].startswith(form) and abs(r["bits"] - bits) < 0.01), None)


def verdict(is_met: bool) -> str:
    return "met" if is_met else "**missed**"


def minilm_targets(stored: Stored) -> Iterable[list[str]]:
    rows = stored.get("minilm_weights", [])
    for mixed in (r for r in rows if r["policy"] == "mixed, direct"):
        uniform = uniform_at(rows, mixed["target"])
        if uniform is not None:
            gain = mixed["sqnr_db"] - uniform["sqnr_db"]
            found = f"{mixed['sqnr_db']:.1f} dB, {gain:+.1f} dB on {uniform['sqnr_db']:.1f}"
            what = f"MiniLM, mixed weights at {mixed['target']} bits against uniform BFP"
            yield [what, ">= 1.2 dB above", found, verdict(gain >= 1.2)]
    half = next((r for r in stored.get("minilm_activations", []) if r.get("share") == 0.5), None)
    if half is not None:
        what = "MiniLM, e4m3 on the most tolerant half of activation sites"
        yield [what, ">= 34 dB", f"{half['sqnr_db']:.1f} dB", verdict(half["sqnr_db"] >= 34)]


def smollm2_targets(stored: Stored) -> Iterable[list[str]]:
    rows = stored.get("smollm2_weights", [])
    for mixed in (r for r in rows if r["policy"] == "mixed, direct"):
        uniform = uniform_at(rows, mixed["target"])
        if uniform is not None:
            fall = 1 - mixed["kl"] / uniform["kl"]
            found = f"{mixed['kl']:.2e} for {uniform['kl']:.2e}: {fall:.1%} lower"
            what = f"SmolLM2, mixed weights at {mixed['target']} bits against uniform BFP, KL"
            yield [what, ">= 25 % lower", found, verdict(fall >= 0.25)]
    row = next((r for r in stored.get("smollm2_lpu", []) if r["policy"] == "truepoint for one chip"), None)
    row = row or next((r for r in rows if r["policy"] == "mixed, direct" and r["target"] == 5.5), None)
    if row is not None:
        change = abs(row["perplexity"] / row["reference_perplexity"] - 1)
        what = "SmolLM2, truepoint calibrated, which with a 2048-token cache fits one chip"
        yield [f"{what}: KL", "<= 0.002 nats", f"{row['kl']:.2e}", verdict(row["kl"] <= 0.002)]
        yield [f"{what}: top-1", ">= 98 %", f"{row['top1']:.2%}", verdict(row["top1"] >= 0.98)]
        yield [f"{what}: perplexity", "within 0.5 %", f"{change:.2%}", verdict(change <= 0.005)]


FAITHFUL = 0.975
"""Share of sentences with the same nearest other one, or of positions with the same likeliest token."""


def cheapest(rows: Iterable[Row], share: str) -> Row | None:
    """The row of fewest bits that is faithful; the better one of equals."""
    faithful = [row for row in rows if row.get("bits") and row.get(share, 0) >= FAITHFUL]
    return min(faithful, key=lambda row: (row["bits"], -row[share]), default=None)


def faithful(stored: Stored) -> list[str]:
    """A sentence for each model: the narrowest weights that keep nearly all answers."""
    lines = []
    for model, section, share, what in (
        ("MiniLM", "minilm_weights", "neighbours", "nearest other sentences"),
        ("SmolLM2", "smollm2_weights", "top1", "likeliest tokens"),
    ):
        row = cheapest(stored.get(section, []), share)
        if row is not None:
            lines.append(
                f"* {model}: {row['policy']}, {row['bits']:.2f} bits, keeps {row[share]:.1%} of the {what}. "
                "Of what was measured nothing narrower does."
            )
    return [
        f"Faithful is what keeps {FAITHFUL:.1%} of the answers; everything but the weights is fp32 here.",
        "",
        *lines,
        "",
    ]


def exactness(stored: Stored) -> list[str]:
    """What exact sums are worth on MiniLM, in words."""
    found = {r["policy"]: r["sqnr_db"] for r in stored.get("minilm_ablations", []) if "sums" in r["policy"]}
    exact, others = found.get("fp16, sums exact"), {k: v for k, v in found.items() if k != "fp16, sums exact"}
    if exact is None or not others:
        return []
    listed = ", ".join(f"{k.removeprefix('fp16, sums ')} {v:.1f} dB" for k, v in others.items())
    return [
        f"Exact sums change MiniLM's embeddings by nothing that can be seen: {exact:.1f} dB, against {listed}.",
        "The rounding of operands to fp16 is far larger than that of any sum. What exactness buys is the same bits in",
        "every order.",
        "",
    ]


def cycles(stored: Stored) -> list[str]:
    rows = [*stored.get("smollm2_fp16_cycles", []), *stored.get("smollm2_cycles", [])]
    if not rows:
        return []
    lines = table(
        ("weights", "cycles per token", "bounded by", "its bound", "MEM", "MXM", "SRAM, MB", "chips' worth of SRAM"),
        (
            [
                r["policy"],
                f"{r['cycles']:,}",
                r["bounded_by"],
                f"{r['bounds'].get(r['bounded_by'], r['dependency_bound']):,}",
                f"{r['bounds'].get('mem', 0):,}",
                f"{r['bounds'].get('mxm', 0):,}",
                f"{r['sram_bytes'] / 1e6:.1f}",
                f"{r['chips']:.0f}",
            ]
            for r in rows
        ),
    )
    if len(rows) == 2:
        wide, narrow = (r["bounds"]["weight_load"] for r in rows)
        long, short = (r["cycles"] for r in rows)
        lines += [
            "The wide program is compiled for a chip with three times the SRAM; the narrow one fits one groqchip1, as",
            "a compact model: embedding and head are one table, values fill all lanes of their cache.",
            "",
            f"Loads of weights alone fall from {wide:,} to {narrow:,} cycles, {wide / narrow:.2f} times (the caches,",
            f"loaded as weights too, stay fp16). The programs take {long:,} and {short:,} cycles, a ratio of",
            f"{long / short:.2f}: both are far above all bounds, in attention over the cache and waits for results.",
            "",
        ]
    return lines


INTRODUCTION = """## Quality of number formats, measured

By `benchmarks/quality.py`, on SmolLM2-135M-Instruct (whose file holds 4-bit weights with an 8-bit table; the reference
is that file in fp32) and all-MiniLM-L6-v2. Text: the topics of Python's language reference (`pydoc_data.topics` of the
standard library), English prose with some code; passages of 128 tokens for SmolLM2, sentences of at most 48 tokens for
MiniLM, not those that the calibration saw. The text is small, so the last digits are not to be trusted. Block floating
point takes the shared exponents of least squared error, in uniform policies too.
"""


ONE_CHIP_NOTE = """Weights of *truepoint for one chip* are rounded row by row, and the errors of earlier rows are made
up for by later ones (`lpu_jax/compensation.py`), weighed by the inputs of products on 25 passages that are not those
of the test. The largest KL of a position is {kl_max:.2e}; with 512 positions the standard error of the top-1 share is
0.6 %.
"""


def joined(stored: Stored, *sections: str) -> list[Row]:
    return [row for section in sections for row in stored.get(section, [])]


def write_page(measured: Stored) -> None:
    """Replaces what is between the markers, or appends it."""
    stored = {
        **measured,
        "minilm_weights": joined(measured, "minilm_uniform", "minilm_mixed"),
        "smollm2_weights": joined(measured, "smollm2_uniform", "smollm2_mixed"),
        "smollm2_ablations": joined(measured, "smollm2_ablations", "smollm2_feed_forward"),
        "smollm2_lpu": joined(measured, "smollm2_fp16", "smollm2_truepoint", "smollm2_one_chip"),
    }
    lines = [BEGIN, INTRODUCTION, "### Targets\n"]
    lines += table(("what", "target", "measured", ""), [*minilm_targets(stored), *smollm2_targets(stored)])
    parts = [
        ("Cheapest faithful weights", faithful(stored)),
        ("MiniLM: weights alone, all else fp32", by_bits("minilm_weights", SENTENCE_HEADER, sentence_cells, stored)),
        ("MiniLM in the LPU's arithmetic", plain("minilm_lpu", SENTENCE_HEADER, sentence_cells, stored)),
        (
            "MiniLM: e4m3 activations by kind of product, weights fp16",
            plain("minilm_activations", SENTENCE_HEADER, sentence_cells, stored),
        ),
        (
            "MiniLM: ablations",
            [*plain("minilm_ablations", SENTENCE_HEADER, sentence_cells, stored), *exactness(stored)],
        ),
        ("SmolLM2: weights alone, all else fp32", by_bits("smollm2_weights", LANGUAGE_HEADER, language_cells, stored)),
        ("SmolLM2 in the LPU's arithmetic", plain("smollm2_lpu", LANGUAGE_HEADER, language_cells, stored)),
        ("SmolLM2: ablations", plain("smollm2_ablations", LANGUAGE_HEADER, language_cells, stored)),
        ("SmolLM2: cycles of one decoded token, context 2048", cycles(stored)),
    ]
    for title, body in parts:
        if body:
            lines += [f"### {title}\n", *body]
    for row in stored.get("smollm2_one_chip", []):
        lines.append(ONE_CHIP_NOTE.format(kl_max=row["kl_max"]))
    for section, name in (("smollm2_weights", "mixed, direct"), ("smollm2_lpu", "truepoint for one chip")):
        for row in (r for r in stored.get(section, []) if r["policy"] == name):
            formats = ", ".join(f"{k.removeprefix('model/')} {v}" for k, v in row["formats"].items())
            at = f" at {row['target']} bits" if "target" in row else ""
            lines.append(f"Formats of *{name}*{at}: {formats}.\n")
    lines.append(END)
    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else "# Numerics\n\n"
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2] if rest else "\n"
    PAGE.write_text(before + "\n".join(lines) + after, encoding="utf-8")
