"""Letters of an adapter, beside a plain pass of PEFT."""

import json

import pytest
import torch
from fitting import words
from peft import PeftModel
from tiny import build_model, build_tokenizer
from transformers import AutoModelForCausalLM

from calibtune.__main__ import main
from calibtune.results.samples import find_samples


@pytest.mark.parametrize("more", [64, -1])
def test_an_adapter_is_evaluated_with_the_whole_vocabulary(tmp_path, mirror, more):
    """Qwen2's vocabulary has 271 tokens more than its tokenizer; others have fewer, of which no prompt makes use."""
    tokenizer = build_tokenizer()
    if more < 0:
        tokenizer.add_tokens(["<|unused|>"])
    model = build_model(tokenizer)
    model.resize_token_embeddings(len(tokenizer) + more, mean_resizing=False)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    assert main(words(tmp_path / "model", tmp_path / "adapter", max_steps=2)) == 0
    asked = ["eval", "--artifact", tmp_path / "adapter", "--tasks", "mc_calib_arc", "--output", tmp_path / "out"]
    assert main([*map(str, asked), "--device", "cpu", "--limit", "2"]) == 0
    (path,) = find_samples(tmp_path / "out")
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "model"), tmp_path / "adapter")
    for sample in map(json.loads, path.read_text().splitlines()):
        texts = [pair["arg_0"] + pair["arg_1"] for pair in sample["arguments"].values()]
        ids = tokenizer(texts)["input_ids"]
        with torch.no_grad():
            expected = plain.eval()(torch.tensor([ids[0][:-1]])).logits[0, -1].log_softmax(-1)
        found = torch.tensor([float(response[0][0]) for response in sample["resps"]])
        torch.testing.assert_close(found, expected[[each[-1] for each in ids]], rtol=0, atol=1e-5)
