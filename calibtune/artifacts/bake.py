"""Bake a temperature into a model's weights, so that all logits are divided by T."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from calibtune.artifacts.manifest import read_artifact, show_base
from calibtune.artifacts.whole_models import check_model_output, load_plain, own_or_base_tokenizer, save_model
from calibtune.errors import UserError, WorkFailed
from calibtune.files import refuse_existing
from calibtune.models.adapters import load_adapter
from calibtune.models.fingerprint import check_fingerprint
from calibtune.models.loading import load_config
from calibtune.models.quantized import check_plain
from harness_ext.orders import count_of

#: Largest allowed difference of log-probabilities between baked and scaled original model, in float32.
TOLERANCE = 1e-3
#: Where configurations hold a cap on the logits.
CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


def bake(folder: Path, output: Path, overwrite: bool, trust_remote_code: bool = False) -> None:
    """Write a model that gives temperature-scaled probabilities without any filter.

    A temperature that was fitted on 4-bit weights is baked into plain weights with the same values.

    Args:
        folder: Output folder of ``calibtune fit --method temperature``.
        output: Folder of the new model.
        overwrite: Remove existing files in ``output``.
        trust_remote_code: Run code that comes with the base model.

    Raises:
        UserError: The artifact is not a temperature that was fitted on a model, or no plain weights can be made of
            the base's.
        WorkFailed: The architecture's logits cannot be scaled by weights.
    """
    artifact = read_artifact(folder)
    if artifact.temperature is None or not artifact.model:
        raise UserError(
            f"{folder} is not a temperature that was fitted on a model; give the output folder of "
            "`calibtune fit --method temperature --model`"
        )
    if artifact.orders != 1:
        raise UserError(
            f"{folder} was fitted on {count_of(artifact.orders)}, averaged before the temperature, which no weights "
            "hold; fit a temperature without --orders"
        )
    check_model_output(output, overwrite, folder, artifact)
    # T belongs to the weights that it was fitted on, so 4-bit ones stay what they are, in plain form.
    spec = dataclasses.replace(artifact.spec, trust_remote_code=trust_remote_code)
    show_base(artifact)
    check_plain(spec, load_config(spec))
    check_fingerprint(spec, artifact.fingerprint, folder)
    model = load_plain(spec)
    if artifact.adapter:
        model = load_adapter(model, Path(artifact.adapter)).merge_and_unload(safe_merge=True)
    temperature = float(artifact.temperature["temperature"])
    scale_logits(model, temperature)
    tokenizer = own_or_base_tokenizer(Path(artifact.adapter or artifact.model), spec)
    refuse_existing(output, overwrite)
    origin = {"base": artifact.model, "method": artifact.method, "temperature": temperature}
    save_model(model, tokenizer, output, origin, trust_remote_code)


def scale_logits(model: Any, temperature: float) -> None:
    """Divide a model's logits by T, and check the logits of a few tokens in float32.

    T goes into the final norm, or into the output layer where there is no such norm and it has weights of its own; and
    into the output layer's bias and a cap on the logits, where there are any.

    Raises:
        WorkFailed: The logits are not divided by T.
    """
    dtypes = {name: values.dtype for name, values in _tensors(model)}
    model.float()
    ids = torch.arange(16, device=next(model.parameters()).device)[None] % model.config.get_text_config().vocab_size
    apart = math.inf
    with torch.no_grad():
        expected = (_logits(model, ids) / temperature).log_softmax(-1)
        ways = _ways(model, ids)
        _scale_rest(model, temperature)
        for way in ways:
            way.divide(temperature)
            apart = float((_logits(model, ids).log_softmax(-1) - expected).abs().max())
            if apart <= TOLERANCE:
                break
            way.divide(1 / temperature)
    if apart > TOLERANCE:
        raise WorkFailed(
            f"the logits of {type(model).__name__} scale neither with its final norm nor with its output layer (log-"
            f"probabilities are off by {apart:.3g}); use the artifact's task YAML, or set the temperature T where the "
            "model is served"
        )
    for name, values in _tensors(model):
        values.data = values.data.to(dtypes[name])


@dataclass(frozen=True)
class Way:
    """Hold weights that may scale the logits, and what the model adds to each of them."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    offset: float

    def divide(self, number: float) -> None:
        """Divide what the model multiplies by and adds."""
        self.weight.add_(self.offset).div_(number).sub_(self.offset)
        if self.bias is not None:
            self.bias.div_(number)


def _ways(model: Any, ids: torch.Tensor) -> list[Way]:
    norm, head = final_norm(model, ids), model.get_output_embeddings()
    # Gemma models and some others scale by one plus the weight.
    ways = [] if norm is None else [Way(norm.weight, getattr(norm, "bias", None), offset) for offset in (0.0, 1.0)]
    if head is not None and head.weight is not model.get_input_embeddings().weight:
        ways.append(Way(head.weight, None, 0.0))
    return ways


def _scale_rest(model: Any, temperature: float) -> None:
    """Divide by T what comes after the output layer's product: its bias, and a cap on the logits.

    c tanh(x / c) is divided by T where both c and x are.
    """
    bias = getattr(model.get_output_embeddings(), "bias", None)
    if bias is not None:
        bias.div_(temperature)
    config = model.config.get_text_config()
    for name in CAPS:
        if getattr(config, name, None):
            setattr(config, name, getattr(config, name) / temperature)


def _tensors(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    return chain(model.named_parameters(), model.named_buffers())


def _logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = model.eval()(ids, use_cache=False).logits
    return found


def final_norm(model: Any, ids: torch.Tensor) -> Any:
    """Return the last layer before the output layer that has a weight for each dimension of a state, or None.

    Args:
        model: In which it is looked for.
        ids: Token ids of one question, shape (1, T).
    """
    ran: list[Any] = []
    hooks = [
        layer.register_forward_pre_hook(lambda layer, _: ran.append(layer))
        for layer in model.modules()
        if getattr(getattr(layer, "weight", None), "ndim", 0) == 1
    ]
    _logits(model, ids)
    for hook in hooks:
        hook.remove()
    return ran[-1] if ran else None
