import pytest
import torch
from evaluating import metrics, small_evaluation
from fitting import small_fit

from calibtune.artifacts.bake import bake, scale_final_norm
from calibtune.errors import WorkFailed

pytestmark = pytest.mark.usefixtures("mirror")


def test_baked_model_gives_the_scaled_metrics_without_a_filter(model, tmp_path):
    small_fit(model, tmp_path / "adapter", "cft")
    small_fit(model, tmp_path / "t", "temperature", artifact=str(tmp_path / "adapter"), held_out=6)
    bake(tmp_path / "t", tmp_path / "baked", overwrite=False)
    baked = metrics(small_evaluation(tmp_path / "out", model=str(tmp_path / "baked")))
    scaled = metrics(small_evaluation(tmp_path / "scaled", artifact=tmp_path / "t"), "mc_calib_arc_scaled", "scaled")
    for name in ("acc", "nll", "conf_ece_10", "cw_ece_14", "brier"):
        assert baked[name] == pytest.approx(scaled[name], abs=1e-4), name


@pytest.mark.parametrize("name", ["llama", "gemma", "gpt2", "opt-like"])
def test_scaling_the_final_norm_scales_the_logits(name):
    from transformers import GemmaConfig, GemmaForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    small = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    torch.manual_seed(0)
    models = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**small)),
        "gemma": lambda: GemmaForCausalLM(GemmaConfig(**small, head_dim=8)),
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4)),
    }
    if name == "opt-like":
        made = models["llama"]().eval()
        made.lm_head.bias = torch.nn.Parameter(torch.randn(64))
        with pytest.raises(WorkFailed, match="do not scale with its final norm"):
            scale_final_norm(made, 3.0)
        return
    made = models[name]().eval()
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        before = made(ids).logits
        scale_final_norm(made, 3.0)
        assert torch.allclose(made(ids).logits, before / 3.0, atol=1e-4)
