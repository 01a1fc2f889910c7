"""The strength of an adapter: chosen by held-out NLL, and written so that every program reads it."""

import json

import numpy as np
import pytest
import torch
from evaluating import metrics, small_evaluation
from fitting import adapter_weights, small_fit
from harness import enter_mirror, evaluate
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from tiny import write_arc_mirror
from transformers import AutoModelForCausalLM

from calibtune.__main__ import main
from calibtune.artifacts.manifest import read_artifact
from calibtune.data.tokens import PAD
from calibtune.models.scores import score
from calibtune.recipe import Recipe
from calibtune.tuning.fit import fit
from calibtune.tuning.inputs import read_inputs
from calibtune.tuning.strength import as_fitted, best_strength, held_out_nll
from calibtune.tuning.temperature import fit_temperature


@pytest.fixture(scope="module", autouse=True)
def hub(tmp_path_factory):
    """Run all tests in a made-up ARC whose training questions have the first option right in two of three."""
    folder = write_arc_mirror(tmp_path_factory.mktemp("hub"), rows=80)
    path = folder / "allenai/ai2_arc/ARC-Challenge/train.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for number, line in enumerate(lines):
        line["answerKey"] = line["choices"]["label"][0 if number % 3 else 1]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.MonkeyPatch.context() as patch:
        yield enter_mirror(folder, patch)


@pytest.fixture(scope="module")
def adapter(model, tmp_path_factory, hub):
    """An adapter that was trained at too high a rate, so that less of it is better, and none is worse."""
    folder = tmp_path_factory.mktemp("adapter") / "cft"
    small_fit(model, folder, "cft", epochs=2, shuffle_options=False, held_out=20)
    return folder


@pytest.fixture(scope="module")
def weaker(adapter, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weaker") / "o"
    return small_strength(adapter, folder)


def small_strength(adapter, output, **options):
    return fit(Recipe(method="strength", artifact=str(adapter), device="cpu", batch_size=4, **options), output)


def run(*words):
    return main([str(word) for word in words])


def fit_words(adapter, output, *more):
    return ["fit", "--method", "strength", "--artifact", adapter, "--output", output, "--device", "cpu", *more]


@pytest.fixture(scope="module")
def searched(adapter, model):
    """Scores of the held-out questions at 41 strengths, scaled in PEFT's own way; and the right answers."""
    inputs = read_inputs(as_fitted(Recipe(method="strength", artifact=str(adapter), device="cpu")))
    assert len(inputs.held_out) == 20
    tuned, found = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), adapter), {}
    layers = [layer for layer in tuned.modules() if isinstance(layer, LoraLayer)]
    assert layers
    for strength in np.linspace(0, 1, 41):
        for layer in layers:
            layer.set_scale("default", strength)
        found[strength] = score(tuned, inputs.held_out, PAD, 4)
    return found, inputs.gold


def test_the_best_strength_is_found_by_a_plain_search(weaker, searched):
    losses = {strength: held_out_nll(scores, searched[1], False) for strength, scores in searched[0].items()}
    best = min(losses, key=losses.get)
    assert 0 < best < 1
    assert weaker.strength == pytest.approx(best, abs=0.03)
    assert weaker.before["nll"] == pytest.approx(losses[1.0], abs=1e-5)
    assert weaker.after["nll"] < weaker.before["nll"]


def test_with_a_temperature_each_strength_is_compared_at_its_best_one(adapter, searched, tmp_path):
    artifact, gold = small_strength(adapter, tmp_path / "weaker", with_temperature=True), searched[1]
    losses = {strength: held_out_nll(scores, gold, True) for strength, scores in searched[0].items()}
    for strength, scores in searched[0].items():
        own = fit_temperature(scores, gold).apply(scores)
        assert losses[strength] == pytest.approx(-np.mean(own[np.arange(20), gold]))
    near = min(losses, key=lambda strength: abs(strength - artifact.strength))
    assert losses[near] <= min(losses.values()) + 0.01


def test_what_is_written_is_an_ordinary_adapter_of_scaled_weights(adapter, weaker, model, tmp_path):
    artifact, folder = read_artifact(weaker.folder), weaker.folder
    whole, scaled = adapter_weights(adapter), adapter_weights(folder)
    assert whole.keys() == scaled.keys()
    for name, each in whole.items():
        assert torch.equal(scaled[name], each * (artifact.strength if "lora_B" in name else 1.0))
    assert (folder / "adapter_config.json").read_text() == (adapter / "adapter_config.json").read_text()
    source = read_artifact(adapter)
    assert (artifact.kind, artifact.method, artifact.model) == ("adapter", "strength", source.model)
    assert (artifact.documents, artifact.sketches) == (source.documents, source.sketches)
    assert artifact.fingerprint == source.fingerprint
    assert artifact.adapter is None

    found = metrics(small_evaluation(tmp_path / "out", artifact=folder))
    arguments = f"pretrained={model},peft={folder},dtype=float32,device=cpu"
    theirs = evaluate(["mc_calib_arc"], "hf", model_args=arguments)["results"]["mc_calib_arc"]
    assert {name: found[name] for name in ("acc", "nll", "brier")} == pytest.approx(
        {name: theirs[f"{name},none"] for name in ("acc", "nll", "brier")}, abs=1e-5
    )


@pytest.mark.parametrize("lowest", [0.0, 0.3, 0.58, 0.99, 1.0])
def test_a_smooth_loss_is_minimized_to_two_places(lowest):
    asked = []
    assert best_strength(lambda strength: asked.append(strength) or (strength - lowest) ** 2) == pytest.approx(
        lowest, abs=0.01
    )
    assert len(asked) == len(set(asked)) < 25


def test_a_temperature_goes_on_top(adapter, weaker, tmp_path):
    words = ["--tasks", "mc_calib_arc", "--device", "cpu", "--held-out", "6", "--output", tmp_path / "t"]
    assert run("fit", "--method", "temperature", "--artifact", weaker.folder, *words) == 0
    held_out = set(read_artifact(tmp_path / "t").documents["held_out"])
    assert held_out.isdisjoint(read_artifact(adapter).documents["train"])


def test_nothing_held_out_is_refused(model, tmp_path, capsys):
    small_fit(model, tmp_path / "cft", "cft", max_steps=1, held_out=0)
    assert run(*fit_words(tmp_path / "cft", tmp_path / "o")) == 2
    said = capsys.readouterr().err
    assert "was fitted with no question held out, and questions that it was trained on cannot tell its strength" in said
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "mc_calib_arc"], "--tasks is that of the adapter's own fit in --method strength; leave it out"),
        (["--held-out", "3"], "--held-out is that of the adapter's own fit"),
        (["--orders", "2"], "--orders is for --method temperature, not strength"),
        (["--rank", "2"], "--rank is for --method label-smoothing or cft or rcft or auto, not strength"),
    ],
)
def test_options_of_the_adapters_own_fit_are_refused(adapter, tmp_path, capsys, words, message):
    assert run(*fit_words(adapter, tmp_path / "o", *words)) == 2
    assert message in capsys.readouterr().err


def test_only_a_trained_adapter_has_a_strength(model, tmp_path, capsys):
    small_fit(model, tmp_path / "t", "temperature")
    assert run(*fit_words(tmp_path / "t", tmp_path / "o")) == 2
    assert f"--artifact {tmp_path / 't'} is a temperature; give an adapter that" in capsys.readouterr().err
    assert run("fit", "--method", "strength", "--output", tmp_path / "o") == 2
    assert "--artifact is missing" in capsys.readouterr().err


def test_held_out_questions_that_are_gone_are_named(adapter, tmp_path, mirror, capsys):
    path = mirror / "allenai/ai2_arc/ARC-Challenge/train.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line["question"] += " New?"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run(*fit_words(adapter, tmp_path / "o")) == 2
    assert "none of the 20 questions that" in capsys.readouterr().err
