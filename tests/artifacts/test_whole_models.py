import pytest
import torch
from tiny import build_tokenizer
from transformers import AutoModelForCausalLM

from calibtune.artifacts.whole_models import save_model
from calibtune.errors import WorkFailed


def test_a_model_that_is_written_is_read_again(model, tmp_path):
    save_model(AutoModelForCausalLM.from_pretrained(model), build_tokenizer(), tmp_path / "out", {"base": "m"})
    assert (tmp_path / "out" / "calibtune-origin.json").is_file()


@pytest.mark.parametrize(("kind", "message"), [("other", "gives other answers"), ("missing", "cannot be loaded again")])
def test_a_model_that_is_not_written_whole_is_removed(model, tmp_path, monkeypatch, kind, message):
    loaded = AutoModelForCausalLM.from_pretrained(model)
    write = type(loaded).save_pretrained

    def half(self, folder, **options):
        state = self.state_dict()
        if kind == "missing":
            del state["model.layers.1.mlp.up_proj.weight"]
        else:
            state["model.norm.weight"] = torch.zeros_like(state["model.norm.weight"])
        write(self, folder, state_dict=state, **options)

    monkeypatch.setattr(type(loaded), "save_pretrained", half)
    with pytest.raises(WorkFailed, match=message):
        save_model(loaded, build_tokenizer(), tmp_path / "out", {"base": "m"})
    assert not (tmp_path / "out").exists()
