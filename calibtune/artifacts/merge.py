"""Whole models out of artifacts: an adapter merged into its base, a temperature put into the final norm."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from calibtune.artifacts.manifest import Artifact, read_artifact
from calibtune.errors import UserError, WorkFailed
from calibtune.files import keep_inputs, refuse_existing, write_json
from calibtune.models.adapters import load_adapter
from calibtune.models.loading import load_base, load_tokenizer
from calibtune.recipe import Recipe

#: How far log-probabilities of a baked model may be from the scaled ones of its origin.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.2}


def merge(folder: Path, output: Path, dequantized: bool, overwrite: bool) -> None:
    """Put an adapter into its base model's weights.

    Args:
        folder: What ``calibtune fit`` wrote; an adapter.
        output: Folder of the new model, an ordinary one for transformers.
        dequantized: Merge into the 4-bit base's de-quantized weights, which the adapter was trained on, rather than
            into the original ones; never into 4-bit itself, which would round the sum again.
        overwrite: Remove what lies in ``output``.

    Raises:
        UserError: The artifact is no adapter, or was not trained on a 4-bit base where ``dequantized`` is asked for.
    """
    artifact = read_artifact(folder)
    if artifact.kind != "adapter":
        raise UserError(f"{folder} is a {artifact.kind}, and only adapters can be merged; see `calibtune bake` for T")
    if dequantized and artifact.recipe["quantization"] != "nf4":
        raise UserError(f"--dequantized: {folder} was not trained on a 4-bit base; leave it out")
    check_output(output, overwrite, folder, artifact)
    recipe = serving_recipe(artifact, "nf4" if dequantized else "none")
    model = load_base(recipe)
    if dequantized:
        model = model.dequantize()
    # safe_merge looks for NaN in the sum before it takes the base's place.
    merged = load_adapter(model, folder).merge_and_unload(safe_merge=True)
    tokenizer = its_tokenizer(folder, artifact)
    refuse_existing(output, overwrite)
    save(merged, tokenizer, output, {"base": artifact.model, "method": artifact.method, "merged": str(folder),
                                     "dequantized": dequantized})  # fmt: skip


def bake(folder: Path, output: Path, overwrite: bool) -> None:
    """Make a model whose letters are scaled by the artifact's temperature without any filter.

    The final norm's weight, and bias where there is one, is divided by T, and so are all logits.

    Args:
        folder: What ``calibtune fit --method temperature`` wrote.
        output: Folder of the new model.
        overwrite: Remove what lies in ``output``.

    Raises:
        UserError: The artifact is no temperature of a model.
        WorkFailed: The architecture's logits do not scale with its final norm.
    """
    artifact = read_artifact(folder)
    if artifact.temperature is None or not artifact.model:
        raise UserError(f"{folder} is no temperature fitted on a model; give what --method temperature --model wrote")
    check_output(output, overwrite, folder, artifact)
    model = load_base(serving_recipe(artifact, "none"))
    if artifact.recipe.get("artifact"):
        model = load_adapter(model, Path(artifact.recipe["artifact"])).merge_and_unload(safe_merge=True)
    temperature = float(artifact.temperature["temperature"])
    scale_final_norm(model, temperature)
    tokenizer = its_tokenizer(Path(artifact.recipe.get("artifact") or artifact.model), artifact)
    refuse_existing(output, overwrite)
    save(model, tokenizer, output, {"base": artifact.model, "method": artifact.method, "temperature": temperature})


def scale_final_norm(model: Any, temperature: float) -> None:
    """Divide a model's logits by T through its final norm, and check on a few tokens that this is what happened.

    Raises:
        WorkFailed: The final norm was not found, or the logits are not what they should be.
    """
    ids = torch.arange(8, device=next(model.parameters()).device)[None] % model.config.get_text_config().vocab_size
    norm = final_norm(model)
    with torch.no_grad():
        expected = (model(ids).logits.float() / temperature).log_softmax(-1)
        before = copy.deepcopy(norm.state_dict())
        norm.weight.div_(temperature)
        if getattr(norm, "bias", None) is not None:
            norm.bias.div_(temperature)
        distance = _distance(model, ids, expected)
        if distance > TOLERANCE[model.dtype]:
            # Gemma and its kin scale by one plus the weight.
            norm.load_state_dict(before)
            norm.weight.add_(1.0).div_(temperature).sub_(1.0)
            distance = _distance(model, ids, expected)
    if distance > TOLERANCE[model.dtype]:
        raise WorkFailed(
            f"the logits of {type(model).__name__} do not scale with its final norm (log-probabilities are off by "
            f"{distance:.3g}); use the temperature's task YAML, or divide by T where the model is served"
        )


def _distance(model: Any, ids: torch.Tensor, expected: torch.Tensor) -> float:
    return float((model(ids).logits.float().log_softmax(-1) - expected).abs().max())


def final_norm(model: Any) -> Any:
    """The norm before the head: the last module of the decoder whose name says so.

    Raises:
        WorkFailed: There is none.
    """
    decoder = model.get_decoder()
    for name in ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f"):
        found = getattr(decoder, name, None)
        if found is not None and getattr(found, "weight", None) is not None:
            return found
    raise WorkFailed(f"no final norm is known in {type(model).__name__}; use the temperature's task YAML")


def serving_recipe(artifact: Artifact, quantization: str) -> Recipe:
    """A recipe that loads an artifact's base: original precision, or 4-bit."""
    kept = {name: artifact.recipe[name] for name in ("chat_template", "trust_remote_code", "precision", "device")}
    return Recipe(method="temperature", model=artifact.model, quantization=quantization, **kept)  # type: ignore[arg-type]


def check_output(output: Path, overwrite: bool, folder: Path, artifact: Artifact) -> None:
    """Refuse an output folder before the model is loaded; what lies there is removed when the new one is ready.

    Raises:
        UserError: It holds files and ``overwrite`` is off, or what is read lies in it.
    """
    if overwrite:
        keep_inputs(output, Path.cwd(), folder, artifact.model, artifact.recipe.get("artifact"))
    else:
        refuse_existing(output, overwrite)


def its_tokenizer(folder: Path, artifact: Artifact) -> Any:
    """The tokenizer that lies in a folder, or the base model's."""
    from transformers import AutoTokenizer

    if (folder / "tokenizer_config.json").is_file():
        return AutoTokenizer.from_pretrained(folder)
    return load_tokenizer(serving_recipe(artifact, "none"))


def save(model: Any, tokenizer: Any, output: Path, origin: Mapping[str, Any]) -> None:
    """Write a model with its tokenizer, and last the file that says what it was made of.

    Raises:
        WorkFailed: The folder cannot be written, or the disk is full; nothing is left there.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(output)
        tokenizer.save_pretrained(output)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(output, ignore_errors=True)
        raise WorkFailed(f"{output} cannot be written ({error}); free space there, or give another folder") from error
    write_json(output / "calibtune-origin.json", origin)
