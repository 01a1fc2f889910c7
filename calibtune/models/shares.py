"""Load a model that FSDP 2 splits so that each process reads its own share of every weight alone.

transformers reads the shares, with its renamings and fused experts, into a model that it has split itself, whose passes
would hold several copies of a layer and all of the embeddings. So the shares go to a second model of the same kind, in
which each large weight is gathered for its own call alone. Adapters have to be added before a model is split: for
training there is a third one, of which accelerate splits the rest as it is configured.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import fsdp2_prepare_model, parse_flag_from_env
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from calibtune.models.quantized import held_as, passed_by
from calibtune.models.sharding import launched_with, own_class
from calibtune.processes import is_first_process
from calibtune.spec import ModelSpec

logger = logging.getLogger(__name__)

#: Layers with a weight that they alone read.
LARGE = (torch.nn.Linear, torch.nn.Embedding, Conv1D)

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


class Shares(NamedTuple):
    """Hold a process's shares of a model's weights by name, and the model's layers that FSDP gathers alone."""

    weights: dict[str, torch.Tensor]
    alone: list[Any]


def without_weights(model: Any) -> tuple[Any, Shares]:
    """Return a model like one that was read in shares but without weights, and the shares.

    Its weights have shape and type and take no memory. They lie on the CPU, because PEFT puts an adapter where the
    weight is.
    """
    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()
    config = copy.deepcopy(model.config)
    vars(config).pop("distributed_config", None)
    with torch.device("meta"):
        empty = own_class(model)(config)
    weights = dict(model.named_parameters(remove_duplicate=False))
    for name, buffer in model.named_buffers(remove_duplicate=False):
        _put(empty, name, buffer)
    _remake(empty, weights, lambda name, old: torch.zeros((), dtype=weights[name].dtype).expand(old.shape))
    if model.can_generate():
        empty.generation_config = model.generation_config
    # Layers draw random numbers while they train, and an adapter's first weights come from the same generator.
    return empty.eval(), Shares(weights, gathered_alone(empty))


def gathered_alone(model: Any) -> list[Any]:
    """Return the linear layers and embeddings of a model, of which FSDP is to gather one at a time.

    Without those that a pass may use without a call, or only in some processes: FSDP gathers them with their layer.
    """
    passed = passed_by(model)
    return [
        module
        for name, module in model.named_modules()
        # A list within a layer is one of experts, of which each process calls those that its questions need.
        if isinstance(module, LARGE) and name not in passed and len(re.findall(r"\.\d+(?=\.|$)", name)) < 2
    ]


def split_alike(model: Any) -> Any:
    """Return a model that was read in shares, split so that a pass gathers one weight at a time."""
    from torch.distributed.fsdp import fully_shard

    model, shares = without_weights(model)
    layers = [layer for layers in _layers(model).values() for layer in layers]
    _split(model.requires_grad_(False), shares, lambda: [fully_shard(module) for module in (*layers, model)])
    return model


def split(trainer: Any, shares: Shares) -> None:
    """Split a trainer's model, made by :func:`without_weights`, as accelerate is configured, and give it its shares.

    All processes must call it.

    Args:
        trainer: Trainer before training.
        shares: The shares; emptied.
    """
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

    model, plugin = trainer.model, trainer.accelerator.state.fsdp_plugin
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
    _split(model, shares, lambda: fsdp2_prepare_model(trainer.accelerator, model), plugin.mixed_precision_policy)


def _split(model: Any, shares: Shares, rest: Callable[[], Any], policy: Any = None) -> None:
    """Split a model's frozen weights one by one, the rest as ``rest`` does, and give it its shares."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    from torch.distributed.tensor import DTensor

    _remake(model, shares.weights, lambda _, old: torch.empty_like(old, device="meta"))
    mesh = next(iter(shares.weights.values())).device_mesh  # type: ignore[attr-defined]
    for layer in shares.alone:
        if not layer.weight.requires_grad:
            fully_shard(layer, mesh=mesh, mp_policy=policy or MixedPrecisionPolicy())
            _free_at_once(layer)
            if isinstance(layer, torch.nn.Embedding) or layer is model.get_output_embeddings():
                _gather_in_place(layer)
    rest()

    def placed(name: str, place: Any) -> torch.Tensor:
        share: Any = shares.weights.pop(name)
        mesh, kind = place.device_mesh, place.placements
        return DTensor.from_local(
            share.to_local(), mesh, kind, run_check=False, shape=place.shape, stride=place.stride()
        )

    _remake(model, shares.weights, placed)
    shares.weights.clear()  # trained tied weights have one share under two names


def _free_at_once(layer: Any) -> None:
    """Free a layer's gathered weight after each of its calls.

    FSDP does so in a forward pass. With gradient checkpointing, a backward pass calls layers once more, and FSDP would
    hold their weights until their own turn comes.
    """
    there = False

    def before(layer: Any, _: Any) -> None:
        nonlocal there
        # In a layer's own turn its weight stays.
        there = not hasattr(layer.weight, "placements")

    def after(layer: Any, *_: Any) -> None:
        if not there:
            layer.reshard()

    layer.register_forward_pre_hook(before, prepend=True)
    layer.register_forward_hook(after)


class InPlace:
    """Gather a layer's only weight where the layer reads it; FSDP would gather it elsewhere and then copy it.

    Embeddings and the output layer can be larger than two layers of the model, so two copies would be too many.

    Args:
        weight: FSDP's record of the weight.
    """

    def __init__(self, weight: Any) -> None:
        self.weight = weight

    def allocate(self, size: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Return the memory of the gathered weight, into which FSDP puts this process's share."""
        self.weight.init_all_gather_outputs([math.prod(size)], [dtype], 1, device)
        self.weight.alloc_all_gather_outputs()
        # autograd counts changes of the tensor itself, and has the weight saved for the backward pass.
        whole: torch.Tensor = self.weight.all_gather_outputs[0].data
        return whole

    def __call__(
        self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: Any, async_op: bool = False
    ) -> Any:
        """Gather the shares of all processes."""
        if output_tensor.device.type != "cpu":
            return dist.all_gather_into_tensor(output_tensor, input_tensor, group=group, async_op=async_op)
        # gloo would gather into memory of its own.
        for rank, share in enumerate(output_tensor.chunk(group.size())):
            dist.broadcast(share, group=group, group_src=rank)
        return None


def _gather_in_place(layer: Any) -> None:
    from torch.distributed.fsdp import fully_shard

    # torch before 2.9 has no gathering but its own.
    if len(list(layer.parameters())) == 1 and hasattr(layer, "set_custom_all_gather"):
        layer.set_custom_all_gather(InPlace(*fully_shard.state(layer)._fsdp_param_group.fsdp_params))
        # In the stream that computes: in another, the memory could be taken while the layer still reads it.
        layer._set_unshard_async_op(True)


def _remake(model: Any, shares: Mapping[str, Any], make: Make) -> None:
    """Replace the base's parameters; ``make`` is given the base's name and the present one."""
    tied = {}
    for name, old in list(model.named_parameters(remove_duplicate=False)):
        # As PEFT names the weights below its layers.
        if (base := re.sub(r"^base_model\.model\.|\.base_layer(?=\.)", "", name)) in shares:
            # Frozen tied weights are two, of one share: otherwise FSDP holds them from the first use to the last.
            key = id(old) if old.requires_grad else name
            if key not in tied:
                tied[key] = torch.nn.Parameter(make(base, old).detach(), requires_grad=old.requires_grad)
            _put(model, name, tied[key])


def _put(model: Any, name: str, tensor: torch.Tensor) -> None:
    place, _, key = name.rpartition(".")
    setattr(model.get_submodule(place), key, tensor)
