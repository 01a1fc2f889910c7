"""Fits so small that tests can run the real ones: a random Llama on a made-up ARC."""

import torch

from calibtune.recipe import make_recipe
from calibtune.tuning.fit import fit

#: What every small fit shares; tests change single values.
SMALL = {
    "tasks": "mc_calib_arc",
    "precision": "fp32",
    "batch_size": 4,
    "rank": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "epochs": 1,
    "held_out": 6,
    "device": "cpu",
    "learning_rate": 1e-2,
    "lambda": 1.0,
}
METHODS = ("label-smoothing", "cft", "rcft")


def small_values(model, method, /, **changes):
    """The options of a small fit; those of other methods are left out."""
    values = {**SMALL, "model": str(model), "method": method, **changes}
    if method != "rcft":
        values.pop("lambda", None)
    if method == "temperature":
        kept = ("model", "method", "tasks", "precision", "batch_size", "held_out", "device", *changes)
        values = {key: values[key] for key in kept}
    return values


def small_recipe(model, method, **changes):
    """A recipe of a small fit."""
    return make_recipe(small_values(model, method, **changes), {})


def small_fit(model, output, method, resume=False, overwrite=False, **changes):
    """Run a small fit and return its artifact."""
    return fit(small_recipe(model, method, **changes), output, resume, overwrite)


def adapter_weights(folder):
    """Tensors of a saved adapter by name."""
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def same_weights(first, second, **tolerance):
    """Whether two saved adapters are equal, bit for bit unless a tolerance is given."""
    left, right = adapter_weights(first), adapter_weights(second)
    equal = (lambda a, b: torch.allclose(a, b, **tolerance)) if tolerance else torch.equal
    return left.keys() == right.keys() and all(equal(left[name], right[name]) for name in left)


def words(base, output, method="cft", **changes):
    """The command line of a small fit, as the words after ``python -m calibtune``."""
    values = small_values(base, method, **changes)
    given = [f"--{name.replace('_', '-')}={value}" for name, value in values.items() if value is not None]
    return ["fit", "--output", str(output), *given]


def other_architecture(name, folder):
    """A tiny model of another architecture with the tests' tokenizer; biases and norms are random too."""
    import transformers
    from tiny import build_tokenizer

    tokenizer = build_tokenizer()
    small = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": None,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    made = {
        "Qwen2": lambda: transformers.Qwen2Config(**small),
        "Mistral": lambda: transformers.MistralConfig(sliding_window=64, **small),
        "Gemma2": lambda: transformers.Gemma2Config(head_dim=8, sliding_window=64, **small),
        "Olmo2": lambda: transformers.Olmo2Config(**small),
        "Lfm2": lambda: transformers.Lfm2Config(layer_types=["conv", "full_attention"], **small),
        "GPT2": lambda: transformers.GPT2Config(
            vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=512
        ),
        "Gemma": lambda: transformers.GemmaConfig(head_dim=8, **small),
        "Olmo": lambda: transformers.OlmoConfig(**small),
        "Phi": lambda: transformers.PhiConfig(**small),
        "Nemotron": lambda: transformers.NemotronConfig(**small),
        "RecurrentGemma": lambda: transformers.RecurrentGemmaConfig(
            **{**small, "num_key_value_heads": 1}, lru_width=32, block_types=["recurrent", "attention"]
        ),
        "Llama4": lambda: transformers.Llama4TextConfig(
            intermediate_size_mlp=64, num_local_experts=4, head_dim=8, attention_chunk_size=128, **small
        ),
        "Falcon": lambda: transformers.FalconConfig(
            vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=1, num_attention_heads=4
        ),
        "FalconH1": lambda: transformers.FalconH1Config(
            mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_n_groups=1, mamba_d_state=8, **small
        ),
        "Mamba": lambda: transformers.MambaConfig(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, state_size=4
        ),
    }
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(made[name]())
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(torch.randn_like(weights), alpha=0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
