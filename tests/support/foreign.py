"""Adapters as other programs leave them: PEFT alone, with the tokenizer of the training."""

import torch
from tiny import CHAT_TEMPLATE, build_tokenizer


def save_foreign(base, folder, tokenizer=True, added=(), **options):
    """Write a LoRA adapter with random weights on a tiny model, by PEFT alone; tokens can be added."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    words = build_tokenizer(CHAT_TEMPLATE)
    words.model_max_length = 512
    if added:
        words.add_tokens(list(added), special_tokens=True)
        model.resize_token_embeddings(len(words))
        options["modules_to_save"] = ["embed_tokens", "lm_head"]
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **options)
    adapted = get_peft_model(model, config)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    adapted.save_pretrained(folder)
    if tokenizer:
        words.save_pretrained(folder)
    return folder


def plain_letters(base, adapter, context, letters=("A", "B", "C")):
    """Log-likelihoods of letters by PEFT and transformers alone, over the whole text's tokens."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(adapter)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.resize_token_embeddings(len(tokenizer))
    model = PeftModel.from_pretrained(model, adapter)
    found = []
    for letter in letters:
        ids = tokenizer(context + letter)["input_ids"]
        with torch.no_grad():
            found.append(model(torch.tensor([ids[:-1]])).logits[0, -1].log_softmax(-1)[ids[-1]].item())
    return found
