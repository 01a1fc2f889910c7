import json
import shlex

import pytest
import torch
from fitting import small_fit, small_recipe
from tiny import save_tiny

from calibtune.artifacts.card import summary
from calibtune.artifacts.manifest import MANIFEST, read_artifact
from calibtune.errors import UserError
from calibtune.tuning.fit import fit

pytestmark = pytest.mark.usefixtures("mirror")


def test_the_manifest_is_written_last(model, tmp_path, monkeypatch):
    from calibtune.tuning import fit

    monkeypatch.setattr(fit, "write_manifest", lambda *_: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        small_fit(model, tmp_path / "out", "cft", max_steps=1)
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    with pytest.raises(UserError, match="no finished artifact"):
        read_artifact(tmp_path / "out")


def test_an_existing_output_is_kept_unless_told_otherwise(model, tmp_path):
    small_fit(model, tmp_path / "out", "cft", max_steps=1)
    with pytest.raises(UserError, match="is not empty"):
        small_fit(model, tmp_path / "out", "cft", max_steps=1)
    small_fit(model, tmp_path / "out", "label-smoothing", max_steps=1, overwrite=True)
    assert read_artifact(tmp_path / "out").method == "label-smoothing"


def test_manifest_and_card_hold_recipe_hashes_versions_and_numbers(model, tmp_path):
    import yaml

    artifact = small_fit(model, tmp_path / "out", "rcft")
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert manifest["recipe"]["lambda_"] == 1.0
    assert len(manifest["documents"]["train"]) == 18
    assert manifest["versions"]["torch"] == torch.__version__
    card = (tmp_path / "out" / "README.md").read_text()
    data = yaml.safe_load(card.split("---")[1])
    metrics = {m["type"]: m for m in data["model-index"][0]["results"][0]["metrics"]}
    assert metrics["conf_ece_10"]["value"] == pytest.approx(artifact.after["conf_ece_10"], abs=1e-6)
    assert metrics["conf_ece_10"]["args"]["interval_95_high"] == pytest.approx(
        artifact.after["conf_ece_10_high"], abs=1e-6
    )
    assert f"| NLL (nats) | {artifact.before['nll']:.4f} | {artifact.after['nll']:.4f} |" in card
    assert "peft=THIS_FOLDER" in card


def test_the_temperature_of_an_adapter_is_fitted_on_rows_that_it_was_not_trained_on(model, tmp_path):
    small_fit(model, tmp_path / "adapter", "cft", held_out=3)
    artifact = small_fit(model, tmp_path / "t", "temperature", artifact=str(tmp_path / "adapter"), held_out=6)
    trained = set(read_artifact(tmp_path / "adapter").documents["train"])
    assert not trained & set(artifact.documents["held_out"])
    assert set(artifact.documents["train"]) == trained
    assert artifact.after["acc"] == artifact.before["acc"]
    assert artifact.after["nll"] <= artifact.before["nll"] + 1e-9


def test_a_temperature_needs_questions_that_the_adapter_has_not_seen(model, tmp_path):
    small_fit(model, tmp_path / "adapter", "cft", held_out=0)
    with pytest.raises(UserError, match="no question of mc_calib_arc is left to fit T on"):
        small_fit(model, tmp_path / "t", "temperature", artifact=str(tmp_path / "adapter"))


def test_an_adapter_for_another_base_is_refused(model, tmp_path):
    small_fit(model, tmp_path / "adapter", "cft", max_steps=1)
    # By its name, and under the same name by its weights.
    for folder, message in ((tmp_path / "other", "was fitted on"), (tmp_path / model.name, "does not fit the base")):
        other = save_tiny(folder, hidden=48)
        with pytest.raises(UserError, match=message):
            small_fit(other, tmp_path / "t", "temperature", artifact=str(tmp_path / "adapter"))
        assert not (tmp_path / "t").exists()
    with pytest.raises(UserError, match="no finished artifact"):
        fit(small_recipe(other, "temperature", artifact=str(tmp_path)), tmp_path / "t")


def test_the_next_command_can_be_typed_where_paths_have_blanks(model, tmp_path):
    artifact = small_fit(model, tmp_path / "a b", "temperature")
    line = summary(artifact, tmp_path / "a b").splitlines()[-1]
    words = shlex.split(line.removeprefix("next: "))
    assert words[words.index("--artifact") + 1] == str(tmp_path / "a b")
    assert words[words.index("--output") + 1] == f"{tmp_path / 'a b'}-eval"
