import hashlib
import json
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
import yaml
from commands import offline
from evaluating import small_evaluation
from fitting import small_fit
from hub_server import HubServer
from quick_python import quick_python

import calibtune
from calibtune.__main__ import main
from calibtune.publish import staged
from calibtune.recipe import Recipe
from calibtune.results.samples import find_samples
from calibtune.tuning.fit import fit


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return the folder in which ARC lies, with a model, artifacts of each kind, and two temperatures."""
    from harness import enter_mirror
    from tiny import save_tiny, write_arc_mirror

    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        enter_mirror(write_arc_mirror(folder / "hub"), patch)
        model = save_tiny(folder / "hub" / "org" / "tiny")
        small_fit("org/tiny", folder / "t", "temperature")
        small_fit("org/tiny", folder / "a", "cft", max_steps=1, report_to="tensorboard")
        small_fit(model, folder / "m", "cft", max_steps=1, tuning="full")
        auto = {"method": "auto", "adapters": 2, "max_steps": 1, "held_out": 6, "batch_size": 4, "rank": 4}
        calibtune.fit(
            Recipe(**auto, model="org/tiny", device="cpu", precision="fp32"), folder / "w", tasks="mc_calib_arc"
        )
        small_evaluation(folder / "out", model="org/tiny")
        samples = str(find_samples(folder / "out")[0])
        fit(Recipe(method="temperature", samples=samples), folder / "s", False, False)
    return folder


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


def push(made, hub, cache, name, *more, token="hf_secret"):
    """Run the command in a process of its own, where no base lies."""
    cache.mkdir(exist_ok=True)
    words = ["push", "--artifact", str(made / name), "--repo", f"us/{name}", *more]
    command = [quick_python(), "-m", "calibtune", *words]
    environment = {**offline(cache / "data"), **hub.environment(cache, token)}
    if not token:
        environment.pop("HF_TOKEN", None)
    return subprocess.run(command, cwd=cache, env=environment, capture_output=True, text=True, timeout=300)


def card_of(data):
    text = data.decode()
    return yaml.safe_load(text.split("---")[1]), text.split("---", 2)[2]


def test_a_push_makes_a_private_repository_of_the_artifacts_own_files(made, hub, tmp_path):
    (made / "a" / "notes.txt").write_text("mine")
    (made / "a" / ".env").write_text("HF_TOKEN=hf_secret")
    run = push(made, hub, tmp_path, "a", "--private")
    assert run.returncode == 0, run.stderr
    assert "hf_secret" not in run.stdout + run.stderr
    assert f"pushed to {hub.url}/us/a" in run.stdout
    files = hub.repos["us/a"]
    assert hub.private == {"us/a": True}
    assert sorted(files) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "calibtune.json",
        "chat_template.jinja",
        "reliability.png",
        "tokenizer.json",
        "tokenizer_config.json",
        "whole.json",
    ]
    for name in ("adapter_model.safetensors", "calibtune.json"):
        assert files[name] == (made / "a" / name).read_bytes()
    hashes = json.loads(files["whole.json"])["files"]
    assert hashes == {n: hashlib.sha256(data).hexdigest() for n, data in files.items() if n != "whole.json"}
    assert files["reliability.png"].startswith(b"\x89PNG")
    assert {authorization for _, _, authorization in hub.requests if authorization} == {"Bearer hf_secret"}


def test_a_card_on_the_hub_has_metrics_figure_hashes_and_its_own_id(made, hub, tmp_path):
    push(made, hub, tmp_path, "a")
    data, text = card_of(hub.repos["us/a"]["README.md"])
    manifest = json.loads((made / "a" / "calibtune.json").read_text())
    assert data["base_model"] == "org/tiny"
    assert data["library_name"] == "peft"
    metrics = {metric["type"]: metric["value"] for metric in data["model-index"][0]["results"][0]["metrics"]}
    assert metrics["nll"] == pytest.approx(manifest["after"]["nll"], abs=1e-6)
    digest = hashlib.sha256("\n".join(sorted(manifest["documents"]["train"])).encode()).hexdigest()
    assert "Fitted on 4 questions." in text
    assert f"`{digest[:16]}`" in text
    assert "](reliability.png)" in text
    assert "THIS_FOLDER" not in text
    assert "peft=us/a" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a", "m", "t", "s", "w"])
def test_the_python_of_a_pushed_card_runs_as_it_stands(made, hub, tmp_path, name):
    assert push(made, hub, tmp_path / "cache", name).returncode == 0
    _, text = card_of(hub.repos[f"us/{name}"]["README.md"])
    lines = [line[4:] for line in text.partition("In Python")[2].splitlines() if line.startswith("    ")]
    # An adapter in a folder of the repository takes a line of its own.
    assert 0 < len(lines) <= 5 + (name == "w")
    environment = {**offline(tmp_path / "data"), **hub.environment(tmp_path / "other")}
    (tmp_path / "card.py").write_text("\n".join(lines))
    subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--isolated", "--select=F", tmp_path / "card.py"], check=True
    )
    # A forked process has imported modules that the card may have forgotten, but takes a second in place of ten.
    command = [sys.executable if name == "a" else quick_python(), str(tmp_path / "card.py")]
    run = subprocess.run(command, cwd=made / "hub", env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    values = [float(value) for value in re.findall(r"[\d.]+(?:e-\d+)?", run.stdout)]
    assert len(values) == 3
    assert np.sum(values) == pytest.approx(1, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a", "m", "t", "w"])
def test_the_command_of_a_pushed_card_runs_as_it_stands(made, hub, tmp_path, name):
    push(made, hub, tmp_path / "cache", name)
    _, text = card_of(hub.repos[f"us/{name}"]["README.md"])
    (line,) = (line.strip() for line in text.splitlines() if line.startswith(("    lm_eval", "    python")))
    words = shlex.split(line)
    start = ["-m", "lm_eval", "run", "--include_path", "lm_eval_tasks"] if words[0] == "lm_eval" else []
    command = [quick_python(), *start, *words[1:]]
    environment = {**offline(tmp_path / "data"), **hub.environment(tmp_path / "other")}
    if start:
        from harness import TASKS

        command[command.index("lm_eval_tasks")] = str(TASKS)
    run = subprocess.run(command, cwd=made / "hub", env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "conf_ece_10" in run.stdout


def test_a_dry_run_writes_what_would_be_pushed_without_network(made, hub, tmp_path, capsys, monkeypatch):
    import socket

    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a dry run asks the network"))
    monkeypatch.chdir(tmp_path)
    assert main(["push", "--artifact", str(made / "t"), "--repo", "us/t", "--dry-run", str(tmp_path / "look")]) == 0
    assert "nothing was pushed" in capsys.readouterr().out
    monkeypatch.undo()
    push(made, hub, tmp_path, "t")
    written = {path.name: path.read_bytes() for path in (tmp_path / "look").iterdir()}
    assert written == hub.repos["us/t"]
    assert {"temperature.json", "mc_calib_arc_scaled.yaml"} <= written.keys()
    assert main(["push", "--artifact", str(made / "t"), "--repo", "us/t", "--dry-run", str(tmp_path / "look")]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_without_a_token_nothing_is_asked_of_the_hub(made, hub, tmp_path):
    run = push(made, hub, tmp_path, "t", token=None)
    assert run.returncode == 2
    assert "there is no Hugging Face token; set HF_TOKEN or run `hf auth login`" in run.stderr
    assert hub.requests == []


@pytest.mark.slow
def test_a_public_repository_is_not_taken_for_a_private_one(made, hub, tmp_path):
    push(made, hub, tmp_path, "t")
    hub.repos["us/t"].clear()
    run = push(made, hub, tmp_path, "t", "--private")
    assert run.returncode == 2
    assert "is there and public" in run.stderr
    assert hub.repos["us/t"] == {}


def test_a_refusal_is_one_sentence_without_the_token(made, tmp_path):
    with HubServer(refuse="/") as hub:
        run = push(made, hub, tmp_path, "t")
    assert run.returncode == 1
    assert re.search(r"error: us/t was not pushed: .*see that the token may write there", run.stderr)
    assert "hf_secret" not in run.stdout + run.stderr


@pytest.mark.parametrize("repo", ["name", "a/b/c", "../x", "us/na me"])
def test_a_name_that_is_none_is_refused(made, capsys, repo):
    assert main(["push", "--artifact", str(made / "t"), "--repo", repo]) == 2
    assert "give ORG/NAME" in capsys.readouterr().err


def test_links_and_unfinished_artifacts_do_not_travel(made, tmp_path, capsys):
    assert main(["push", "--artifact", str(tmp_path), "--repo", "us/x"]) == 2
    assert "no finished artifact" in capsys.readouterr().err
    folder = tmp_path / "linked"
    folder.mkdir()
    (folder / "calibtune.json").write_bytes((made / "t" / "calibtune.json").read_bytes())
    (tmp_path / "secret").write_text("x")
    (folder / "tokenizer.json").symlink_to(tmp_path / "secret")
    assert main(["push", "--artifact", str(folder), "--repo", "us/x"]) == 2
    assert "tokenizer.json is a link or a folder" in capsys.readouterr().err


def test_a_base_in_a_folder_is_warned_of_and_no_path_stands_in_the_card(made, monkeypatch, caplog):
    monkeypatch.chdir(made)
    data, text = card_of(staged(made / "m", "us/m")["README.md"])
    assert "others do not have" in caplog.text
    assert "base_model" not in data
    assert str(made) not in text


def test_a_temperature_of_samples_has_a_title_and_says_what_stands_for_its_model(made):
    data, text = card_of((made / "s" / "README.md").read_bytes())
    assert data["model-index"][0]["name"] == "temperature of mc_calib_arc"
    assert "base_model" not in data
    assert text.startswith("\n\n# temperature of mc\\_calib\\_arc\n")
    assert "from a samples file, which does not name its model, on" in text
    assert "THIS_FOLDER is the one that holds this card, THE_MODEL is the one that the samples are from:" in text
    assert "pretrained=THE_MODEL " in text
