import shutil

import pytest
import torch
from evaluating import metrics, small_evaluation
from fitting import small_fit
from tiny import save_tiny

from calibtune.artifacts import whole_models
from calibtune.artifacts.bake import bake
from calibtune.artifacts.merge import merge
from calibtune.errors import UserError, WorkFailed

pytestmark = pytest.mark.usefixtures("mirror")


def test_merged_model_equals_base_and_adapter(model, tmp_path):
    small_fit(model, tmp_path / "adapter", "cft", epochs=3)
    merge(tmp_path / "adapter", tmp_path / "merged", dequantized=False, overwrite=False)
    merged = metrics(small_evaluation(tmp_path / "out", model=str(tmp_path / "merged")))
    apart = metrics(small_evaluation(tmp_path / "apart", artifact=tmp_path / "adapter"))
    assert merged == pytest.approx(apart, abs=1e-4)


def test_4_bit_fit_is_closest_to_the_dequantized_merge(tmp_path):
    base = save_tiny(tmp_path / "wide", hidden=64)
    small_fit(base, tmp_path / "adapter", "cft", quantization="nf4")
    merge(tmp_path / "adapter", tmp_path / "dequantized", dequantized=True, overwrite=False)
    merge(tmp_path / "adapter", tmp_path / "original", dequantized=False, overwrite=False)
    nll = {
        "4-bit": metrics(small_evaluation(tmp_path / "a", artifact=tmp_path / "adapter"))["nll"],
        "dequantized": metrics(small_evaluation(tmp_path / "b", model=str(tmp_path / "dequantized")))["nll"],
        "original": metrics(small_evaluation(tmp_path / "c", model=str(tmp_path / "original")))["nll"],
    }
    assert nll["dequantized"] == pytest.approx(nll["4-bit"], abs=1e-3)
    assert abs(nll["original"] - nll["4-bit"]) > abs(nll["dequantized"] - nll["4-bit"])


def test_merge_and_bake_refuse_the_wrong_kind_of_artifact(model, tmp_path):
    small_fit(model, tmp_path / "adapter", "cft", max_steps=1)
    small_fit(model, tmp_path / "t", "temperature")
    with pytest.raises(UserError, match="only adapters can be merged"):
        merge(tmp_path / "t", tmp_path / "out", False, False)
    with pytest.raises(UserError, match=r"--dequantized: .* was not trained on a 4-bit base"):
        merge(tmp_path / "adapter", tmp_path / "out", True, False)
    with pytest.raises(UserError, match="is not a temperature"):
        bake(tmp_path / "adapter", tmp_path / "out", False)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def model_copy(model, tmp_path):
    return shutil.copytree(model, tmp_path / "base")


def test_failed_merge_keeps_the_existing_output(model_copy, tmp_path):
    small_fit(model_copy, tmp_path / "adapter", "cft", max_steps=1)
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "precious").write_text("kept")
    shutil.rmtree(model_copy)
    with pytest.raises(UserError, match="which is not here; give its place with --model BASE"):
        merge(tmp_path / "adapter", tmp_path / "merged", dequantized=False, overwrite=True)
    assert (tmp_path / "merged" / "precious").read_text() == "kept"


def test_merge_to_a_full_disk_fails_and_leaves_no_output(model_copy, tmp_path, monkeypatch):
    small_fit(model_copy, tmp_path / "adapter", "cft", max_steps=1)

    def full(self, folder, **options):
        (folder / "config.json").write_text("{}")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    with pytest.raises(WorkFailed, match=r"merged cannot be written \(.*No space left on device\)"):
        merge(tmp_path / "adapter", tmp_path / "merged", dequantized=False, overwrite=False)
    assert not (tmp_path / "merged").exists()
    (tmp_path / "file").touch()
    with pytest.raises(WorkFailed, match="cannot be written"):
        whole_models.save_model(torch.nn.Linear(1, 1), None, tmp_path / "file" / "below", {})
