"""Bake a temperature into a model's weights by dividing its final norm by T."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import torch

from calibtune.artifacts.manifest import read_artifact, show_base
from calibtune.artifacts.whole_models import check_model_output, own_or_base_tokenizer, save_model
from calibtune.errors import UserError, WorkFailed
from calibtune.files import refuse_existing
from calibtune.models.adapters import load_adapter
from calibtune.models.fingerprint import check_fingerprint
from calibtune.models.loading import load_base

#: Largest allowed difference of log-probabilities between baked and scaled original model.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.2}


def bake(folder: Path, output: Path, overwrite: bool, trust_remote_code: bool = False) -> None:
    """Write a model that gives temperature-scaled probabilities without any filter.

    Weight and bias of the final norm are divided by T, which divides all logits by T.

    Args:
        folder: Output folder of ``calibtune fit --method temperature``.
        output: Folder of the new model.
        overwrite: Remove existing files in ``output``.
        trust_remote_code: Run code that comes with the base model.

    Raises:
        UserError: The artifact is not a temperature that was fitted on a model.
        WorkFailed: The architecture's logits do not scale with its final norm.
    """
    artifact = read_artifact(folder)
    if artifact.temperature is None or not artifact.model:
        raise UserError(
            f"{folder} is not a temperature that was fitted on a model; give the output folder of "
            "`calibtune fit --method temperature --model`"
        )
    check_model_output(output, overwrite, folder, artifact)
    spec = dataclasses.replace(artifact.spec, quantization="none", trust_remote_code=trust_remote_code)
    show_base(artifact)
    check_fingerprint(spec, artifact.fingerprint, folder)
    model = load_base(spec)
    if artifact.adapter:
        model = load_adapter(model, Path(artifact.adapter)).merge_and_unload(safe_merge=True)
    temperature = float(artifact.temperature["temperature"])
    scale_final_norm(model, temperature)
    tokenizer = own_or_base_tokenizer(Path(artifact.adapter or artifact.model), spec)
    refuse_existing(output, overwrite)
    origin = {"base": artifact.model, "method": artifact.method, "temperature": temperature}
    save_model(model, tokenizer, output, origin, trust_remote_code)


def scale_final_norm(model: Any, temperature: float) -> None:
    """Divide a model's logits by T through its final norm, and check the logits of a few tokens.

    Raises:
        WorkFailed: The final norm is not found, or the logits are not divided by T.
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
            # Gemma models and some others scale by one plus the weight.
            norm.load_state_dict(before)
            norm.weight.add_(1.0).div_(temperature).sub_(1.0)
            distance = _distance(model, ids, expected)
    if distance > TOLERANCE[model.dtype]:
        raise WorkFailed(
            f"the logits of {type(model).__name__} do not scale with its final norm (log-probabilities are off by "
            f"{distance:.3g}); use the artifact's task YAML, or set the temperature T where the model is served"
        )


def _distance(model: Any, ids: torch.Tensor, expected: torch.Tensor) -> float:
    return float((model(ids).logits.float().log_softmax(-1) - expected).abs().max())


def final_norm(model: Any) -> Any:
    """Return the norm before the head, found in the decoder by its name.

    Raises:
        WorkFailed: The decoder has no module of a known name.
    """
    decoder = model.get_decoder()
    for name in ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f"):
        found = getattr(decoder, name, None)
        if found is not None and getattr(found, "weight", None) is not None:
            return found
    raise WorkFailed(f"{type(model).__name__} has no final norm of a known name; use the artifact's task YAML instead")
