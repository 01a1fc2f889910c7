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
