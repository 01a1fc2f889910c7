"""Files that other people made run no code of theirs, whichever command reads them. SECURITY.md names these tests."""

import json
import os
import pickle
import shutil

import pytest
from fitting import SMALL, small_fit, words
from tiny import save_tiny

from calibtune.__main__ import main
from calibtune.artifacts.manifest import MANIFEST

#: Leaves a trace in the working directory when it is run.
EVIL = "import os\nos.makedirs('ran', exist_ok=True)\n"


class Evil:
    """Leaves a trace when it is unpickled."""

    def __reduce__(self):
        return os.makedirs, ("ran",)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A base model, an adapter and a temperature that were fitted on it; no test may write to them."""
    from harness import enter_mirror
    from tiny import write_arc_mirror

    folder = tmp_path_factory.mktemp("fitted")
    with pytest.MonkeyPatch.context() as patch:
        enter_mirror(write_arc_mirror(folder / "hub"), patch)
        base = save_tiny(folder / "base")
        small_fit(base, folder / "adapter", "cft", max_steps=1)
        small_fit(base, folder / "t", "temperature")
    return folder


@pytest.fixture
def mine(fitted, tmp_path, mirror, monkeypatch):
    """Copies of all of them that a test may spoil; the manifests name the copied base."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    for name in ("base", "adapter", "t"):
        shutil.copytree(fitted / name, tmp_path / name)
    for name in ("adapter", "t"):
        change(tmp_path / name / MANIFEST, model=str(tmp_path / "base"))
    return tmp_path


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def refused(capsys, *arguments):
    """The last line of a command that must end with exit code 2 and run nothing."""
    assert main(list(map(str, arguments))) == 2
    assert not os.path.exists("ran")
    return capsys.readouterr().err.strip().splitlines()[-1]


def commands(folder):
    """Every command that loads a model, on the folder's base, adapter and temperature."""
    (folder / "questions.json").write_text(json.dumps([{"instruction": "Why?", "output": "So.", "generator": "x"}]))
    questions = str(folder / "questions.json")
    judged = ["--judge", "j", "--judge-base-url", "http://127.0.0.1:9/v1", "--instructions", questions]
    return {
        "fit": words(folder / "base", folder / "out"),
        "eval": ["eval", "--model", folder / "base", "--tasks", "mc_calib_arc", "--output", folder / "out"],
        "doctor": ["doctor", "--model", folder / "base"],
        "merge": ["merge", "--artifact", folder / "adapter", "--output", folder / "out"],
        "bake": ["bake", "--artifact", folder / "t", "--output", folder / "out"],
        "winrate": [
            *("winrate", "alpaca-eval", "--model", folder / "base", "--output", folder / "out", *judged),
            *("--reference", questions, "--max-new-tokens", "4", "--device", "cpu"),
        ],
    }


@pytest.mark.parametrize("name", ["fit", "eval", "doctor", "merge", "bake", "winrate"])
def test_a_model_with_code_of_its_own_is_refused_without_the_users_flag(mine, capsys, name):
    (mine / "base" / "evil.py").write_text(EVIL)
    change(mine / "base" / "config.json", model_type="evil", auto_map={"AutoConfig": "evil.C", "AutoModel": "evil.M"})
    for folder in ("adapter", "t"):
        manifest = json.loads((mine / folder / MANIFEST).read_text())
        # Trust that an artifact's maker had is not its reader's.
        change(mine / folder / MANIFEST, recipe={**manifest["recipe"], "trust_remote_code": True})
    said = refused(capsys, *commands(mine)[name])
    flag = "--model-args trust_remote_code=True" if name == "winrate" else "--trust-remote-code"
    assert f"{mine / 'base'} brings code of its own; give {flag} to run it" in said


@pytest.mark.parametrize("name", ["merge", "bake"])
def test_a_known_architecture_with_code_beside_it_is_written_without_that_code(mine, name):
    (mine / "base" / "evil.py").write_text(EVIL)
    change(mine / "base" / "config.json", auto_map={"AutoModelForCausalLM": "evil.M", "AutoConfig": "evil.C"})
    assert main(list(map(str, commands(mine)[name]))) == 0
    assert not os.path.exists("ran")


@pytest.mark.parametrize("name", ["merge", "bake"])
def test_a_tokenizer_with_code_of_its_own_is_refused_without_a_question(mine, capsys, name):
    folder = mine / ("adapter" if name == "merge" else "base")
    (folder / "evil.py").write_text(EVIL)
    change(folder / "tokenizer_config.json", tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.Evil", None]})
    assert "brings code of its own; give --trust-remote-code" in refused(capsys, *commands(mine)[name])


@pytest.mark.parametrize("name", ["merge", "bake", "eval"])
def test_the_base_that_a_manifest_names_is_shown_before_it_is_loaded(mine, capsys, name):
    (mine / "empty").mkdir()
    for folder in ("adapter", "t"):
        change(mine / folder / MANIFEST, model=str(mine / "empty"))
    line = commands(mine)[name]
    if name == "eval":
        line = ["eval", "--artifact", mine / "t", "--tasks", "mc_calib_arc", "--output", mine / "out"]
    assert main(list(map(str, line))) == 2
    captured = capsys.readouterr()
    assert f"names the base model {mine / 'empty'}; loading" in captured.out
    assert f"--model {mine / 'empty'} cannot be loaded" in captured.err


@pytest.mark.parametrize("name", ["fit", "eval", "doctor", "merge", "bake", "winrate"])
def test_weights_in_pickles_are_refused(mine, capsys, name):
    (mine / "base" / "model.safetensors").unlink()
    (mine / "base" / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    for folder in ("adapter", "t"):
        change(mine / folder / MANIFEST, fingerprint=None)
    assert "safetensors" in refused(capsys, *commands(mine)[name])


@pytest.mark.parametrize("name", ["eval", "merge", "winrate"])
@pytest.mark.parametrize("damage", ["pickle", "megatron"])
def test_adapters_in_pickles_or_with_a_module_to_import_are_refused(mine, capsys, name, damage):
    if damage == "pickle":
        (mine / "adapter" / "adapter_model.safetensors").unlink()
        (mine / "adapter" / "adapter_model.bin").write_bytes(pickle.dumps(Evil()))
    else:
        (mine / "evil.py").write_text(EVIL)
        change(mine / "adapter" / "adapter_config.json", megatron_config={"x": 1}, megatron_core="evil")
    line = [*commands(mine)[name], *([] if name == "merge" else ["--artifact", mine / "adapter"])]
    said = refused(capsys, *line)
    assert ("adapter_model.safetensors is missing" if damage == "pickle" else "has a megatron_config") in said


def test_an_artifact_holds_no_pickle(fitted):
    files = [path for name in ("adapter", "t") for path in (fitted / name).rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md", ".yaml", ".jinja"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("include_path: tasks", "include_path is 'tasks', which runs code; if you trust it, give --include-path on"),
        ("trust-remote-code: true", "trust_remote_code is True, which runs code; if you trust it, give"),
        ("training_arguments: {push_to_hub: true}", "training_arguments: push_to_hub uploads; give it on the command"),
        ("output: kept", "--overwrite removes files, so --output is given with it, not by "),
    ],
)
def test_a_recipe_file_asks_for_no_code_and_removes_nothing(model, mirror, capsys, line, said):
    (mirror / "kept").mkdir()
    (mirror / "r.yaml").write_text(line + "\n")
    flags = [word for word in words(model, mirror / "out")[3:] if not word.startswith("--include-path")]
    given = ["--overwrite"] if line.startswith("output") else ["--output", "out"]
    assert said in refused(capsys, "fit", "--config", "r.yaml", *flags, *given)
    assert (mirror / "kept").is_dir()


def test_a_recipe_files_folder_of_tasks_is_taken_from_the_command_line(model, mirror):
    (mirror / "tasks").mkdir()
    (mirror / "r.yaml").write_text(f"include_path: elsewhere\nmodel: {model}\nmethod: temperature\n")
    flags = ["--tasks", SMALL["tasks"], "--include-path", "tasks", "--held-out", "6", "--device", "cpu"]
    assert main(["fit", "--config", "r.yaml", "--output", "out", *flags]) == 0


def test_a_models_name_is_printed_without_its_control_characters(mirror, capsys):
    base = save_tiny(mirror / "m\x1b[31m\x07\nx; touch X #")
    flags = ["--tasks", SMALL["tasks"], "--held-out", "6", "--device", "cpu", "--output", "t"]
    assert main(["fit", "--method", "temperature", "--model", f"./{base.name}", *flags]) == 0
    assert main(["eval", "--artifact", "t", "--tasks", SMALL["tasks"], "--limit", "4", "--output", "out"]) == 0
    printed = capsys.readouterr().out
    assert all(sign.isprintable() for sign in printed.replace("\n", ""))
    assert not [line for line in printed.splitlines() if line.startswith("x; touch")]
    card = (mirror / "t" / "README.md").read_text()
    assert all(sign.isprintable() for sign in card.replace("\n", ""))
    assert "pretrained=./m\\x1b[31m\\x07\\nx; touch X #' --include_path" in card
