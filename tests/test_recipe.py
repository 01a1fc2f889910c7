"""Recipes from files, flags and Python, checked without torch."""

import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import pytest

from calibtune.__main__ import main
from calibtune.errors import UserError
from calibtune.recipe import Recipe, load_recipe, make_recipe

GIVEN = {"method": "rcft", "model": "m", "tasks": "t"}


def message(config, flags=None):
    with pytest.raises(UserError) as error:
        make_recipe(config, flags or {})
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("seed", -1, "--seed is -1; give a whole number from 0 to 4294967295"),
        ("seed", "99999999999", "--seed is '99999999999'; give"),
        ("seed", 10**400, "seed is 1000"),
        ("rank", 100000000, "--rank is 100000000; give a whole number from 1 to 4096"),
        ("lora_alpha", math.nan, "--lora-alpha is nan; give a number above 0"),
        ("lora_alpha", 0, "--lora-alpha is 0; give"),
        ("lora_alpha", math.inf, "--lora-alpha is inf; give"),
        ("weight_decay", math.nan, "--weight-decay is nan; give a number from 0 up"),
        ("weight_decay", "-0.1", "--weight-decay is '-0.1'; give"),
        ("max_grad_norm", -1, "--max-grad-norm is -1; give a number from 0 up"),
        ("max_grad_norm", math.nan, "--max-grad-norm is nan; give"),
        ("bins", 100000, "--bins is 100000; give a whole number from 1 to 200"),
        ("device", "meta", "--device is 'meta'; give cuda, cpu or mps"),
        ("device", "meta:0", "--device is 'meta:0'; give"),
    ],
)
def test_value_out_of_range_is_refused_with_the_range(name, value, wanted):
    said = message(GIVEN, {name: value})
    assert wanted in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", 2**32 - 1), ("rank", 4096), ("max_grad_norm", 0), ("weight_decay", 0), ("bins", 200), ("device", "cpu")],
)
def test_range_limits_are_allowed(name, value):
    assert getattr(make_recipe(GIVEN, {name: value}), name) == value


@pytest.mark.parametrize(("name", "value"), [("method", "rctf"), ("model", 7), ("tasks", [1])])
def test_invalid_value_is_not_also_called_missing(name, value):
    said = message({**GIVEN, name: value})
    assert f"{name} is {value!r}" in said
    assert "missing" not in said


def test_samples_exclude_an_artifact_but_allow_a_model():
    given = {"method": "temperature", "samples": "samples.jsonl"}
    assert "leave out --samples or --artifact" in message({**given, "artifact": "runs/cft"})
    assert make_recipe({**given, "model": "m"}, {}).model == "m"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (b"lambda: 1\nlambda_: 2\n", "gives 'lambda' twice; keep one of them"),
        (b"epochs: 1\nrank: 4\nepochs: 2\n", "gives 'epochs' twice"),
        (b"learning-rate: 1\nlearning_rate: 2\n", "gives 'learning-rate' twice"),
        ("model: Grüße".encode("latin-1"), "is not UTF-8 text"),
        (b"seed: 2026-13-45\n", "is not YAML: month must be in 1..12"),
    ],
)
def test_invalid_recipe_file_is_refused(tmp_path, text, wanted):
    (tmp_path / "r.yaml").write_bytes(text)
    with pytest.raises(UserError, match=rf"--config .*r\.yaml {wanted}"):
        load_recipe(tmp_path / "r.yaml")


@pytest.mark.parametrize("output", ["7", "[a]", "2026-01-01"])
def test_invalid_output_is_reported_with_the_other_errors(tmp_path, capsys, output):
    (tmp_path / "r.yaml").write_text(f"method: rcft\nmodel: m\ntasks: t\nrank: 0\noutput: {output}\n")
    assert main(["fit", "--config", str(tmp_path / "r.yaml")]) == 2
    said = capsys.readouterr().err
    assert "r.yaml: output is " in said
    assert "give a folder as text" in said
    assert "--rank is 0" in said


def test_recipe_is_checked_without_torch():
    code = "import sys, calibtune.recipe; sys.exit(bool({'torch', 'lm_eval', 'scipy'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_recipe_object_is_validated():
    with pytest.raises(UserError) as error:
        Recipe(method="nonsense", rank=-3)
    assert "--method is 'nonsense'; give temperature or" in str(error.value)
    assert "--rank is -3; give a whole number from 1 to 4096" in str(error.value)
    with pytest.raises(UserError, match="--rank is for --method label-smoothing or cft or rcft or auto, not temp"):
        Recipe(method="temperature", rank=4)


def test_recipe_object_has_the_command_lines_defaults():
    assert Recipe(method="cft").epochs == make_recipe({"method": "cft", "model": "m", "tasks": "t"}, {}).epochs == 2
    assert Recipe(method="rcft", model="m", tasks=["t"]) == make_recipe(GIVEN, {})
    assert dataclasses.replace(Recipe(method="temperature"), model="m").epochs is None


@pytest.mark.parametrize("value", [True, "one", None, [1]])
def test_numeric_option_refuses_booleans_and_text(value):
    assert f"--rank is {value!r}; give a whole number" in message({**GIVEN, "rank": value})


def test_mapping_options_accept_json_and_yaml():
    text = make_recipe(GIVEN, {"training_arguments": '{"optim": "adamw_torch"}'})
    assert text == make_recipe({**GIVEN, "training_arguments": {"optim": "adamw_torch"}}, {})
    assert "give a JSON object" in message({**GIVEN, "training_arguments": "{"})


def test_packaged_recipe_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_recipe(Path("paper/rcft"))["method"] == "rcft"
    with pytest.raises(UserError, match=r"or a packaged recipe: .*paper/rcft"):
        load_recipe(Path("paper/none"))


def test_cuda_graphs_refuse_gradient_checkpointing():
    assert "--cuda-graphs cannot be used with --gradient-checkpointing" in message(
        {**GIVEN, "cuda_graphs": True, "gradient_checkpointing": True}
    )
