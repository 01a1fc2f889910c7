"""Tiny random models of the architectures in ``architectures.yaml``, with the suite's tokenizer and chat template."""

from pathlib import Path

import yaml
from tiny import build_tokenizer

#: Architecture -> values of its configuration.
ARCHITECTURES = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
del ARCHITECTURES["parts"]


def save_architecture(name: str, folder: Path) -> Path:
    """Write a tiny model and its tokenizer to ``folder`` and return it.

    Every weight is random, biases and norms too: a bias of 0 or a norm of 1 hides that something leaves it out.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = build_tokenizer()
    tokenizer.model_max_length = 1024
    tokens = {
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    values = dict(ARCHITECTURES[name])
    if text := values.get("text_config"):
        values["text_config"] = {**text, **tokens}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**values, **tokens))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
