"""The mean of several adapters with a temperature on top, from one command."""

import json
import shutil

import pytest
import torch
from evaluating import metrics, small_evaluation
from fitting import SMALL, adapter_weights
from harness import enter_mirror
from safetensors.torch import load_file
from tiny import write_arc_mirror

from calibtune.__main__ import main
from calibtune.artifacts.manifest import read_artifact
from calibtune.tuning.checkpoints import CHECKPOINTS


@pytest.fixture(scope="module", autouse=True)
def hub(tmp_path_factory):
    folder = write_arc_mirror(tmp_path_factory.mktemp("hub"), rows=80)
    with pytest.MonkeyPatch.context() as patch:
        yield enter_mirror(folder, patch)


def words(model, output, *more):
    kept = {name: value for name, value in SMALL.items() if name not in ("lambda", "lora_dropout")}
    given = [f"--{name.replace('_', '-')}={value}" for name, value in kept.items()]
    return ["fit", "--method", "auto", "--adapters", "2", "--model", model, "--output", output, *given, *more]


def run(*words):
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def made(model, tmp_path_factory, hub):
    folder = tmp_path_factory.mktemp("auto") / "o"
    assert run(*words(model, folder)) == 0
    return folder


def test_the_whole_is_a_temperature_on_an_adapter_in_its_own_folder(made, model):
    whole, adapter = read_artifact(made), read_artifact(made / "adapter")
    assert (whole.kind, whole.method, adapter.kind, adapter.method) == ("temperature", "auto", "adapter", "auto")
    assert whole.adapter == str(made / "adapter")
    assert set(whole.documents["held_out"]) == set(adapter.documents["held_out"])
    assert set(whole.documents["held_out"]).isdisjoint(adapter.documents["train"])
    assert whole.before == adapter.before
    assert whole.before["nll"] != adapter.after["nll"]
    assert not (made / CHECKPOINTS).exists()
    assert json.loads((made / "adapter" / "adapter_config.json").read_text())["r"] == SMALL["rank"]


def test_the_adapter_is_the_mean_of_what_its_members_commands_give(made, model, tmp_path):
    members = []
    for method in ("rcft", "cft"):
        one = [*words(model, tmp_path / method), "--method", method]
        at = one.index("--adapters")
        assert run(*one[:at], *one[at + 2 :]) == 0
        members.append(adapter_weights(tmp_path / method))
    mean = adapter_weights(made / "adapter")
    for name in filter(lambda name: "lora_A" in name, mean):
        other = name.replace("lora_A", "lora_B")
        wanted = sum(each[other] @ each[name] for each in members) / 2
        u, values, v = torch.linalg.svd(wanted)
        rank = SMALL["rank"]
        near = (u[:, :rank] * values[:rank]) @ v[:rank]
        assert torch.allclose(mean[other] @ mean[name], near, atol=1e-5)
        assert values[rank] < values[0]


def test_it_is_evaluated_from_another_place_with_its_adapter_and_temperature(made, model, tmp_path):
    shutil.copytree(made, tmp_path / "moved")
    kept = made.rename(made.with_name("away"))
    try:
        found = small_evaluation(tmp_path / "out", artifact=tmp_path / "moved")
        apart = metrics(small_evaluation(tmp_path / "apart", artifact=tmp_path / "moved" / "adapter"))
    finally:
        kept.rename(made)
    scaled, plain = (metrics(found, "mc_calib_arc_scaled", pipeline) for pipeline in ("scaled", "none"))
    assert plain["nll"] == pytest.approx(apart["nll"], abs=1e-5)
    assert scaled["acc"] == apart["acc"]
    assert scaled["nll"] != pytest.approx(apart["nll"], abs=1e-3)


def test_a_fit_that_was_stopped_goes_on_with_the_adapters_that_are_done(made, model, tmp_path, monkeypatch, capfd):
    from calibtune.tuning import auto

    whole = auto.fit

    def stops(recipe, output, resume=False):
        if recipe.method == "cft":
            raise KeyboardInterrupt
        return whole(recipe, output, resume)

    monkeypatch.setattr(auto, "fit", stops)
    assert run(*words(model, tmp_path / "o")) == 130
    assert "--resume" in capfd.readouterr().err
    monkeypatch.setattr(auto, "fit", whole)
    done = tmp_path / "o" / CHECKPOINTS / "rcft-0" / "adapter_model.safetensors"
    before = done.stat().st_mtime_ns
    assert run(*words(model, tmp_path / "o"), "--max-steps", "1", "--resume") == 2
    assert "max_steps" in capfd.readouterr().err
    assert done.stat().st_mtime_ns == before
    assert run(*words(model, tmp_path / "o"), "--resume") == 0
    assert torch.equal(*(load_file(f / "adapter" / "adapter_model.safetensors")[NAME] for f in (made, tmp_path / "o")))
    assert run(*words(model, tmp_path / "o"), "--resume") == 0
    assert run(*words(model, tmp_path / "o"), "--rank", "2", "--resume") == 2


#: One weight of the tiny model's adapter.
NAME = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--tuning", "full"], "--tuning full: --method auto averages adapters; leave it out"),
        (["--adapters", "0"], "--adapters is '0'; give a whole number from 1 to 64"),
        (["--held-out", "0"], "--held-out is 0; a temperature needs held-out questions"),
        (["--lambda", "2"], "--lambda is for --method rcft, not auto"),
    ],
)
def test_misuse_is_refused_and_writes_nothing(model, tmp_path, capsys, more, told):
    assert run(*words(model, tmp_path / "o"), *more) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_what_is_read_is_not_overwritten(model, tmp_path, capsys):
    quiz = tmp_path / "o" / "quiz.jsonl"
    quiz.parent.mkdir()
    quiz.write_text(
        "".join(json.dumps({"question": f"{i}?", "choices": ["x", "y"], "answer": 0}) + "\n" for i in range(40))
    )
    assert run(*words(model, tmp_path / "o"), "--data", quiz, "--overwrite") == 2
    assert str(quiz) in capsys.readouterr().err
    assert quiz.exists()


def test_adapters_are_for_auto_alone(model, tmp_path, capsys):
    assert (
        run(
            "fit",
            "--method",
            "cft",
            "--model",
            model,
            "--tasks",
            "mc_calib_arc",
            "--adapters",
            "2",
            "--output",
            tmp_path / "o",
        )
        == 2
    )
    assert "--adapters is for --method auto, not cft" in capsys.readouterr().err
