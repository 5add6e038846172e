"""The page of measured quality: targets are judged by their numbers, and the rest of the page stays."""

import quality_page


def quality(policy, kl, bits, **more):
    row = {"policy": policy, "kl": kl, "bits": bits, "top1": 0.9, "perplexity": 20.0, "reference_perplexity": 20.0}
    return row | more


def test_a_target_is_met_or_missed_by_its_numbers(tmp_path, monkeypatch):
    page = tmp_path / "numerics.md"
    page.write_text(f"# Numerics\n\nBefore.\n\n{quality_page.BEGIN}\nstale\n{quality_page.END}\n\nAfter.\n")
    monkeypatch.setattr(quality_page, "PAGE", page)
    mixed = {"target": 4.5, "formats": {"model/w": "bfp4x16"}}
    for kl, verdict in ((0.7, "met"), (0.8, "**missed**")):
        quality_page.write_page({
            "smollm2_uniform": [quality("bfp4", 1.0, 4.5)],
            "smollm2_mixed": [quality("mixed, direct", kl, 4.49, **mixed)],
        })  # fmt: skip
        text = page.read_text()
        assert f"{1 - kl:.1%} lower | {verdict} |" in text
        assert text.startswith("# Numerics\n\nBefore.\n")
        assert text.endswith("\n\nAfter.\n")
        assert "stale" not in text
        assert text.count(quality_page.BEGIN) == 1


def test_the_cheapest_faithful_weights_are_the_narrowest_that_keep_the_answers():
    rows = [
        {"policy": "bfp8", "bits": 8.5, "neighbours": 0.99},
        {"policy": "int8", "bits": 8.0, "neighbours": 0.98},
        {"policy": "e4m3", "bits": 8.0, "neighbours": 0.976},
        {"policy": "bfp6", "bits": 6.5, "neighbours": 0.9},
        {"policy": "not weights alone", "bits": 0.0, "neighbours": 1.0},
    ]
    assert quality_page.cheapest(rows, "neighbours")["policy"] == "int8"
    assert quality_page.cheapest(rows[3:4], "neighbours") is None
