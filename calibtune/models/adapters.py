"""Load trained adapters, and unpack the scales of 4-bit layers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from calibtune.errors import UserError, is_out_of_memory, reason
from calibtune.models.loading import check_marks
from calibtune.reading import check_folder, read_json

#: PEFT's file of weights, and how it is made of the pickles of older versions; no code of theirs is run.
WEIGHTS = "adapter_model.safetensors"
CONVERSION = (
    "import torch, safetensors.torch as s; s.save_file(torch.load('adapter_model.bin', weights_only=True), "
    f"'{WEIGHTS}')"
)
#: Ends of the names of layers that hold the vocabulary.
EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "word_embeddings")


def check_adapter(folder: Path) -> None:
    """Refuse an adapter without weights in safetensors, and one that names Python to run.

    Raises:
        UserError: A file is missing, or the adapter's configuration names a module to import.
    """
    if not (folder / "adapter_config.json").is_file():
        raise UserError(
            f"{folder} holds no adapter (adapter_config.json is missing); give an output folder of `calibtune fit`"
        )
    if not (folder / WEIGHTS).is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        cure = f'convert adapter_model.bin, a pickle, there: python -c "{CONVERSION}"' if pickled else "copy it again"
        raise UserError(f"{folder} holds no weights ({WEIGHTS} is missing); {cure}")
    check_folder(folder, "copy or fit the adapter again")
    config = read_json(folder / "adapter_config.json", dict[str, Any], "copy or fit the adapter again")
    # PEFT imports the module of this name, which can lie in the working directory.
    if config.get("megatron_config"):
        raise UserError(
            f"{folder / 'adapter_config.json'} has a megatron_config, with which PEFT imports the module "
            f"{config.get('megatron_core')!r:.80}; remove the two keys, or give another adapter"
        )


def load_adapter(model: Any, folder: Path) -> Any:
    """Return a base model with a trained, frozen adapter on it.

    A base whose vocabulary the adapter has enlarged is enlarged too.

    Raises:
        UserError: The folder has no adapter, its weights are damaged, or it does not fit the model.
    """
    from peft import PeftModel

    check_adapter(folder)
    base = read_json(folder / "adapter_config.json", dict[str, Any]).get("base_model_name_or_path")
    try:
        shapes = _shapes(folder)
        rows = embedding_rows(folder)
        if rows is not None and rows != model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(rows)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Found missing adapter keys")  # which is refused below
            adapted = PeftModel.from_pretrained(model, str(folder))
    except SafetensorError as error:
        raise UserError(f"the weights in {folder} are damaged ({error}); copy or fit the adapter again") from error
    # On values of other types in the configuration, PEFT raises whatever comes.
    except Exception as error:
        if is_out_of_memory(error):
            raise
        check_marks(folder)
        raise UserError(
            f"the adapter {folder} does not fit the base model ({reason(error)}); give the base that "
            f"it was trained on, {base}"
        ) from error
    _check_layers(adapted, shapes, f"the adapter {folder}", base)
    return adapted


def _check_layers(adapted: Any, shapes: Mapping[str, Sequence[int]], name: str, base: str | None) -> None:
    """Refuse an adapter whose layers are not all in the model; PEFT goes on without them.

    Raises:
        UserError: With the first weight that one of the two lacks.
    """
    from peft import get_peft_model_state_dict
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

    have = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    prefix = PEFT_TYPE_TO_PREFIX_MAPPING[adapted.active_peft_config.peft_type]
    other = sorted(weight for weight in have.keys() ^ shapes.keys() if prefix in weight)
    if other:
        lacks = "the model has no layer for" if other[0] in shapes else "it has no"
        raise UserError(
            f"{name} does not fit the base model, a {type(adapted.get_base_model()).__name__} ({len(other)} weights do "
            f"not match: {lacks} {other[0]}); give the base that it was trained on, {base}"
        )


def embedding_rows(folder: Path) -> int | None:
    """Return the size of the vocabulary that an adapter brings, None where it leaves the base's as it is."""
    whole = {name.removesuffix(".weight"): shape for name, shape in _shapes(folder).items()}
    return next((shape[0] for name, shape in whole.items() if name.endswith(EMBEDDINGS)), None)


def _shapes(folder: Path) -> dict[str, Sequence[int]]:
    """Return the shape of each of an adapter's weights."""
    with safe_open(folder / WEIGHTS, framework="pt") as tensors:
        return {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118 (no iterator)


def unpack_scales(layer: Any) -> None:
    """Store a 4-bit layer's block scales in float32, which saves unpacking them in each pass.

    This undoes QLoRA's double quantization. The weights' values do not change, but each weight
    takes .37 bits more memory. Layers without double quantization are not changed.
    """
    state = getattr(getattr(layer, "weight", None), "quant_state", None)
    if state is None or not state.nested:
        return
    from bitsandbytes.functional import dequantize_blockwise

    state.absmax = dequantize_blockwise(state.absmax, state.state2).float() + state.offset
    state.nested, state.state2, state.offset = False, None, None
