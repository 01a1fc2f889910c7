import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from calibtune.errors import UserError
from calibtune.models.fingerprint import check_fingerprint, fingerprint
from calibtune.spec import ModelSpec


def test_a_copy_in_several_files_has_the_same_fingerprint(model, tmp_path):
    AutoModelForCausalLM.from_pretrained(model).save_pretrained(tmp_path / "cut", max_shard_size="50KB")
    assert len(list((tmp_path / "cut").glob("*.safetensors"))) > 1
    assert fingerprint(ModelSpec(str(tmp_path / "cut"))) == fingerprint(ModelSpec(str(model)))


@pytest.mark.parametrize("change", ["value", "shape", "type"])
def test_other_weights_have_another_fingerprint(model, tmp_path, change):
    shutil.copytree(model, tmp_path / "other")
    file = tmp_path / "other" / "model.safetensors"
    weights = load_file(file)
    name = "model.layers.0.mlp.up_proj.weight"
    if change == "value":
        weights[name][-1] += 1e-3
    elif change == "shape":
        weights[name] = weights[name][:-1].contiguous()
    else:
        weights[name] = weights[name].to(torch.bfloat16)
    save_file(weights, file, {"format": "pt"})
    expected = fingerprint(ModelSpec(str(model)))
    assert fingerprint(ModelSpec(str(tmp_path / "other"))) != expected
    with pytest.raises(UserError, match="has other weights than the model that runs/cft was fitted on"):
        check_fingerprint(ModelSpec(str(tmp_path / "other")), expected, "runs/cft")


def test_weights_that_are_one_number_are_told_apart(tmp_path):
    """Apertus has such weights in its activations."""
    found = []
    for value in (0.5, 0.6, 0.5):
        save_file({"alpha": torch.tensor(value)}, tmp_path / "model.safetensors", {"format": "pt"})
        found.append(fingerprint(ModelSpec(str(tmp_path))))
    assert found[0] == found[2] != found[1]


def test_a_model_that_is_not_at_hand_is_not_refused(model):
    check_fingerprint(ModelSpec("nobody/nothing"), fingerprint(ModelSpec(str(model))), "runs/cft")
