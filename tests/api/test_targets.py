"""What `lpu-jax profile` may be given: functions, shapes, models of the package; and what it says otherwise."""

import json

import jax
import jax.numpy as jnp
import pytest

from lpu_jax.cli import main
from lpu_jax.cli_profile import MODELS
from lpu_jax.models.shipped import SHIPPED
from lpu_jax.runtime.chip import GROQCHIP1, LP30
from lpu_jax.targets import TargetError, find, parse_shape, resolve

SOURCE = """
import jax
import jax.numpy as jnp
import lpu_jax

def scale(x, factor):
    return x * factor

class Model:
    @staticmethod
    def double(x):
        return x + x

on_chip = lpu_jax.lpu(scale, chip="lp30", resident_argnums=1)

def example():
    return scale, (jax.ShapeDtypeStruct((4, 8), jnp.float32), jnp.float32(3))

def example_with_names():
    return on_chip, [jnp.ones((4, 8))], {"factor": jnp.float32(3)}

def nonsense():
    return 3

constant = 7
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    path = tmp_path / "my_model_file.py"
    path.write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return str(path)


@pytest.mark.parametrize(
    ("text", "shape", "dtype"),
    [
        ("float32[8,128]", (8, 128), jnp.float32),
        ("f32[8, 128]", (8, 128), jnp.float32),
        ("bf16[3]", (3,), jnp.bfloat16),
        ("int32[]", (), jnp.int32),
        ("u8[2,]", (2,), jnp.uint8),
        ("float8_e4m3fn[4]", (4,), jnp.float8_e4m3fn),
        ("bool[1,5]", (1, 5), jnp.bool_),
    ],
)
def test_shapes_are_written_as_jax_prints_them(text, shape, dtype):
    assert parse_shape(text) == jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize(("text", "message"), [("8,128", "is no shape"), ("f99[3]", "unknown dtype 'f99'")])
def test_other_shapes_are_refused(text, message):
    with pytest.raises(TargetError, match=message):
        parse_shape(text)


def test_functions_of_files_and_modules_are_found(file):
    assert find(f"{file}:scale")(2, 3) == 6
    assert find(f"{file}:Model.double")(2) == 4
    assert find("jax.numpy:tanh") is jnp.tanh


def test_shapes_or_an_example_give_the_arguments(file):
    function, args, kwargs = resolve(f"{file}:scale", ["f32[4,8]", "f32[]"], None, resident=[1])
    assert (args[0].shape, kwargs) == ((4, 8), {})
    assert (function.options.chip, function.options.resident_argnums) == (GROQCHIP1, (1,))
    function, args, _ = resolve(f"{file}:example", None, LP30)
    assert (function.options.chip, len(args)) == (LP30, 2)
    function, args, kwargs = resolve(f"{file}:example_with_names", None, None)
    assert (function.options.chip, list(kwargs)) == (LP30, ["factor"])
    moved, *_ = resolve(f"{file}:example_with_names", None, GROQCHIP1)
    assert (moved.options.chip, moved.options.resident_argnums) == (GROQCHIP1, (1,))


@pytest.mark.parametrize(
    ("name", "shapes", "resident", "message"),
    [
        ("scale", None, (), r"takes x, factor: pass --shapes with one shape for each"),
        ("other", None, (), r"has no 'other'; it has .*scale"),
        ("nonsense", None, (), r"returned a int; it must return \(function, arguments\)"),
        ("constant", None, (), r"is a int, not a function"),
        ("on_chip", ["f32[3]", "f32[]"], (1,), "--resident is for plain functions"),
    ],
)
def test_mistakes_name_the_way_out(file, name, shapes, resident, message):
    with pytest.raises(TargetError, match=message):
        resolve(f"{file}:{name}", shapes, None, resident)


def test_modules_that_are_not_there_or_fail():
    with pytest.raises(TargetError, match=r"importing 'no_such_module' failed: ModuleNotFoundError"):
        find("no_such_module:f")
    with pytest.raises(TargetError, match=r"there is no file 'nowhere\.py'"):
        find("nowhere.py:f")
    with pytest.raises(TargetError, match="is neither package"):
        find("scale")


def test_models_of_the_package_have_the_names_of_the_help():
    assert tuple(SHIPPED) == MODELS
    for _, build in SHIPPED.values():
        function, args = build(LP30, 128)
        assert function.options.chip is LP30
        leaves = jax.tree.leaves(args)
        assert leaves
        assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)


def test_the_command_prints_tables_json_and_csv(file, capsys):
    arguments = ["profile", f"{file}:scale", "--shapes", "f32[4,8]", "f32[]"]
    assert main(arguments) == 0
    assert "scale on groqchip1" in capsys.readouterr().out
    assert main([*arguments, "--json", "--chip", "lp30"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["name"], report["chip"]) == ("scale", "lp30")
    assert main([*arguments, "--csv"]) == 0
    assert capsys.readouterr().out.startswith("path,name,depth,")


def test_the_command_writes_page_and_trace(file, capsys, tmp_path):
    page, trace = tmp_path / "report.html", tmp_path / "program.pftrace"
    assert main(["profile", f"{file}:example", "--html", str(page), "--trace", str(trace)]) == 0
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert trace.stat().st_size
    out = capsys.readouterr().out
    assert "scale on groqchip1: " in out
    assert str(page) in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["smollm3"], "'smollm3' is no model of this package (smollm2, smollm2-prefill, bert-layer)"),
        (["smollm2", "--shapes", "f32[1]"], "'smollm2' has its own arguments"),
        (["smollm2", "--context", "0"], "--context 0 is not 1 or more"),
        (
            ["jax.numpy:tanh", "--shapes", "f32[3]", "--html", "/nowhere/report.html"],
            "there is no directory '/nowhere'",
        ),
        (["jax.numpy:tanh", "--shapes", "f32[3]", "--chip", "lp99"], "unknown chip 'lp99'"),
    ],
)
def test_mistakes_give_one_line_and_code_2(capsys, arguments, message):
    assert main(["profile", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert message in err
