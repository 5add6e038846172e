"""The command line: help, chips, mistakes, and a whole answer of a small random model."""

import json
import subprocess
import sys

import pytest

from lpu_jax.cli import main
from lpu_jax.precision import Policy, Rule


def run(capsys, *arguments):
    code = main(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "lpu_jax", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: lpu-jax")
    assert "generate" in done.stdout
    assert "chips" in done.stdout


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["generate", "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    for option in ("--prompt", "--model", "--max-tokens", "--temperature", "--seed", "--context", "--chip", "--json"):
        assert option in out


def test_chips(capsys):
    code, out, _ = run(capsys, "chips")
    assert code == 0
    for text in ("groqchip1", "lp30", "tiny", "900 MHz", "220.00 MiB"):
        assert text in out
    code, out, _ = run(capsys, "chips", "--json")
    assert json.loads(out)["groqchip1"]["sram_bytes"] == 2 * 44 * 8192 * 320


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--chip", "lp99"], "unknown chip 'lp99'; known chips: groqchip1, lp30, tiny"),
        (["--model", "/nowhere/model.gguf"], "/nowhere/model.gguf"),
        (["--prompt", "  "], "the prompt is empty"),
    ],
)
def test_mistakes_give_one_line_and_code_2(capsys, arguments, message):
    code, out, err = run(capsys, "generate", "--prompt", "hello", *arguments)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("lpu-jax generate: ")
    assert message in err


@pytest.mark.parametrize("arguments", [["--max-tokens", "0"], ["--temperature", "-1"], ["--max-tokens", "many"], []])
def test_arguments_that_do_not_parse(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(["generate", *arguments, *(["--prompt", "hello"] if arguments else [])])
    assert caught.value.code == 2
    assert "lpu-jax generate: error:" in capsys.readouterr().err


def test_a_foreign_file(capsys, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"this is no model")
    code, _, err = run(capsys, "generate", "--prompt", "hello", "--model", str(path))
    assert code == 2
    assert err.count("\n") == 1
    assert str(path) in err


def test_a_prompt_that_is_too_long(capsys, small_model_path):
    arguments = ["--model", str(small_model_path), "--context", "64", "--prompt", "too long " * 20]
    code, _, err = run(capsys, "generate", *arguments)
    assert code == 2
    assert "tokens, the context holds 64" in err


@pytest.mark.slow
def test_an_answer_and_its_cost(capsys, small_model_path):
    arguments = ["generate", "--model", str(small_model_path), "--context", "96", "--prompt", "hi", "--max-tokens", "3"]
    code, out, err = run(capsys, *arguments, "--json")
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert len(result["tokens"]) <= 3
    report = result["decode"]["report"]
    assert result["decode"]["cycles_per_token"] == report["cycles"] > 0
    assert result["decode"]["tokens_per_second_of_chip_time"] == pytest.approx(report["clock_hz"] / report["cycles"])
    assert result["prefill"]["cycles"] > 0
    assert report["pcie_in_bytes"] == 4 + 4  # token and position; weights and caches stay
    distance = result["distance_to_fp32"]
    assert distance["positions"] in (len(result["tokens"]), len(result["tokens"]) + 1)
    assert 0 <= distance["kl_mean"] < 0.1
    code, out, err = run(capsys, *arguments)
    assert (code, err) == (0, "")
    assert out.startswith(result["text"])
    for text in ("cycles", "tokens/s of chip time", "SRAM", "bounded by", "PCIe", "KL mean", "top-1 agreement"):
        assert text in out


@pytest.mark.slow
def test_samples_follow_the_seed(capsys, small_model_path):
    arguments = ["generate", "--model", str(small_model_path), "--context", "96", "--prompt", "hi", "--json"]
    arguments += ["--temperature", "1.5", "--max-tokens", "6"]
    answers = [json.loads(run(capsys, *arguments, "--seed", seed)[1])["tokens"] for seed in ("1", "1", "2")]
    assert answers[0] == answers[1] != answers[2]


def test_quality_of_a_policy_file(capsys, small_model_path, tmp_path):
    Policy("mine", (Rule("*dot_general@*", rhs="e4m3"),)).save(tmp_path / "mine.json")
    common = ("quality", "--path", str(small_model_path), "--size", "1", "--weights-only")
    code, out, err = run(capsys, *common, "--policy", str(tmp_path / "mine.json"), "--policy", "fp32", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)["policies"]
    assert found["mine"]["kl"] > found["fp32"]["kl"] == 0
    assert found["mine"]["bits"] == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "low"], "precision='low' is unknown"),
        (["--policy", "nowhere/p.json"], "there is no policy file 'nowhere/p.json'"),
        (["--model", "minilm", "--path", "nowhere"], "the encoder is not in 'nowhere'"),
    ],
)
def test_mistakes_of_quality_give_one_line(capsys, arguments, message):
    code, out, err = run(capsys, "quality", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("lpu-jax quality: ")
    assert message in err
