"""Load a model that FSDP 2 splits so that each process reads its own share of every weight alone.

transformers reads the shares, with its renamings and fused experts, into a model that it has split itself. Adapters
have to be added before a model is split. So they go onto a second model of the same kind without weights; accelerate
splits that one as it is configured, and it is given the first one's shares.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import torch
from accelerate import PartialState
from accelerate.utils import fsdp2_prepare_model, parse_flag_from_env
from transformers import AutoModelForCausalLM, PreTrainedModel

from calibtune.models.quantized import held_as
from calibtune.models.sharding import launched_with, own_class
from calibtune.processes import is_first_process
from calibtune.spec import ModelSpec

logger = logging.getLogger(__name__)

Make = Callable[[str, torch.nn.Parameter], torch.Tensor]


def share_options(spec: ModelSpec, config: Any) -> dict[str, Any]:
    """Return options of from_pretrained with which each process reads its share of the weights alone.

    Args:
        spec: The model.
        config: Its configuration.

    Returns:
        Nothing where FSDP does not split the model, or where it has to be loaded whole first; a warning says why.
    """
    if not launched_with("FSDP") or PartialState().num_processes == 1:
        return {}
    if why := _whole_because(spec, config):
        if is_first_process():
            logger.warning("each process holds all of %s before FSDP splits it, because %s", spec.name, why)
        return {}
    from transformers.distributed import DistributedConfig

    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    plan = {f"{name}.*": "free_full_weight" for name in _layers(empty)}
    return {"distributed_config": DistributedConfig(fsdp_size=PartialState().num_processes, fsdp_plan=plan)}


def _whole_because(spec: ModelSpec, config: Any) -> str:
    """Say why a model cannot be read in shares; empty where it can."""
    if spec.quantization != "none" or held_as(config) is not None:
        return "its weights are quantized"
    if spec.trust_remote_code and getattr(config, "auto_map", None):
        return "its code is not transformers' own"
    for flag in ("FSDP_OFFLOAD_PARAMS", "FSDP_ACTIVATION_CHECKPOINTING", "ACCELERATE_USE_PARALLELISM_CONFIG"):
        if parse_flag_from_env(flag):
            return f"accelerate is configured with {flag.removeprefix('ACCELERATE_USE_').lower()}"
    try:
        from transformers.distributed import DistributedConfig

        able = "fsdp_plan" in {field.name for field in dataclasses.fields(DistributedConfig)}
    except ImportError:
        able = False
    return "" if able else "this version of transformers cannot read shares; pip install -U transformers"


def _layers(model: Any) -> dict[str, torch.nn.ModuleList]:
    """Return the lists of a model's layers by name."""
    depth = model.config.get_text_config().num_hidden_layers
    lists = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.ModuleList)}
    # A list within a layer, such as one of experts, is not used by every process in every pass.
    return {name: found for name, found in lists.items() if len(found) == depth and not re.search(r"\.\d+\.", name)}


@contextlib.contextmanager
def reading_shares() -> Iterator[None]:
    """Let transformers 5.23 know its own classes behind those that FSDP puts before them.

    It would take them for code from elsewhere, and leave buffers unset that a model's top module computes for its
    layers, as in Falcon-H1.
    """
    own = classmethod(lambda kind: kind.is_remote_code())
    with mock.patch.object(PreTrainedModel, "is_custom_code", own):
        yield


def without_weights(model: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """Return a model like one that was read in shares but without weights, and the shares by name.

    Its weights have shape and type and take no memory. They lie on the CPU, because PEFT puts an adapter where the
    weight is.
    """
    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()
    config = copy.deepcopy(model.config)
    del config.distributed_config
    with torch.device("meta"):
        empty = own_class(model)(config)
    shares = dict(model.named_parameters(remove_duplicate=False))
    for name, buffer in model.named_buffers(remove_duplicate=False):
        _put(empty, name, buffer)
    _remake(empty, shares, lambda name, old: torch.zeros((), dtype=shares[name].dtype).expand(old.shape))
    if model.can_generate():
        empty.generation_config = model.generation_config
    # Layers draw random numbers while they train, and an adapter's first weights come from the same generator.
    return empty.eval(), shares


def split(trainer: Any, shares: dict[str, torch.Tensor]) -> None:
    """Split a trainer's model, made by :func:`without_weights`, as accelerate is configured, and give it its shares.

    All processes must call it.

    Args:
        trainer: Trainer before training.
        shares: The shares by name; emptied.
    """
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
    from torch.distributed.tensor import DTensor

    model, plugin = trainer.model, trainer.accelerator.state.fsdp_plugin
    _remake(model, shares, lambda _, old: torch.empty_like(old, device="meta"))
    plugin.cpu_ram_efficient_loading = False
    # Without a policy, each pass would gather the whole model at once.
    plugin.auto_wrap_policy = plugin.auto_wrap_policy or transformer_auto_wrap_policy
    lists = _layers(model.get_base_model() if hasattr(model, "get_base_model") else model).values()
    # accelerate would look for layers of images and sound, too, which the model may lack.
    plugin.transformer_cls_names_to_wrap = plugin.transformer_cls_names_to_wrap or sorted(
        {type(layer).__name__ for layers in lists for layer in layers}
    )
    # A checkpoint of the other type gathers the whole model in the first process.
    plugin.set_state_dict_type("SHARDED_STATE_DICT")
    fsdp2_prepare_model(trainer.accelerator, model)

    def placed(name: str, place: Any) -> torch.Tensor:
        share: Any = shares.pop(name)
        mesh, kind = place.device_mesh, place.placements
        return DTensor.from_local(
            share.to_local(), mesh, kind, run_check=False, shape=place.shape, stride=place.stride()
        )

    _remake(model, shares, placed)
    shares.clear()  # tied weights have one share under two names


def _remake(model: Any, shares: Mapping[str, Any], make: Make) -> None:
    """Replace the base's parameters; ``make`` is given the base's name and the present one."""
    tied = {}
    for name, old in list(model.named_parameters(remove_duplicate=False)):
        # As PEFT names the weights below its layers.
        if (base := re.sub(r"^base_model\.model\.|\.base_layer(?=\.)", "", name)) in shares:
            if id(old) not in tied:
                tied[id(old)] = torch.nn.Parameter(make(base, old).detach(), requires_grad=old.requires_grad)
            _put(model, name, tied[id(old)])


def _put(model: Any, name: str, tensor: torch.Tensor) -> None:
    place, _, key = name.rpartition(".")
    setattr(model.get_submodule(place), key, tensor)
