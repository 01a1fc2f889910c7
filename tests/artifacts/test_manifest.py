import json
import shutil

import pytest
import torch
from fitting import small_fit

from calibtune.artifacts.manifest import MANIFEST, base_model, read_artifact
from calibtune.errors import UserError

pytestmark = pytest.mark.usefixtures("mirror")


def test_manifest_is_written_last(model, tmp_path, monkeypatch):
    from calibtune.tuning import fit

    monkeypatch.setattr(fit, "write_manifest", lambda *_: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        small_fit(model, tmp_path / "out", "cft", max_steps=1)
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    with pytest.raises(UserError, match="no finished artifact"):
        read_artifact(tmp_path / "out")


def test_manifest_and_card_hold_recipe_hashes_versions_and_metrics(model, tmp_path):
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


def test_copied_base_is_the_same_base(model, tmp_path):
    small_fit(model, tmp_path / "adapter", "cft", max_steps=1)
    shutil.copytree(model, tmp_path / "copy")
    again = small_fit(tmp_path / "copy", tmp_path / "t", "temperature", artifact=str(tmp_path / "adapter"))
    assert again.fingerprint == read_artifact(tmp_path / "adapter").fingerprint


def test_artifact_without_fingerprint_checks_the_base_name(model, tmp_path):
    small_fit(model, tmp_path / "adapter", "cft", max_steps=1)
    manifest = json.loads((tmp_path / "adapter" / MANIFEST).read_text())
    del manifest["fingerprint"]
    (tmp_path / "adapter" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"was fitted on .*, not on"):
        base_model("other/base", read_artifact(tmp_path / "adapter"))
