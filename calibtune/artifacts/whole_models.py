"""Write whole models with their tokenizers, completely or not at all."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from calibtune.artifacts.manifest import Artifact
from calibtune.data.tokens import TokenExample, collate
from calibtune.errors import UserError, WorkFailed
from calibtune.files import keep_inputs, refuse_existing, write_json
from calibtune.models.heads import answer_logits, letter_log_likelihoods
from calibtune.models.loading import check_spec, load_base, load_tokenizer
from calibtune.models.quantized import four_bit, plain
from calibtune.models.sharding import is_sharded, load_alone
from calibtune.spec import ModelSpec
from harness_ext.binning import FloatArray

#: Log-probabilities closer than this are those of one model: on one device, on an accelerator and the CPU, and where a
#: sharded model computes in bfloat16.
SAME, TRAINED, SHARDED = 1e-3, 0.02, 0.5


def check_model_output(output: Path, overwrite: bool, folder: Path, artifact: Artifact) -> None:
    """Check the output folder before the model is loaded; old files are removed only before writing.

    Raises:
        UserError: The folder has files and ``overwrite`` is off, or it contains a folder that the
            command reads.
    """
    if overwrite:
        keep_inputs(output, Path.cwd(), folder, artifact.model, artifact.adapter)
    else:
        refuse_existing(output, overwrite)


def load_plain(spec: ModelSpec) -> Any:
    """Load a base model; of 4-bit weights, plain ones are made.

    Raises:
        UserError: See :func:`calibtune.models.loading.load_base`; or bitsandbytes is needed and missing.
    """
    check_spec(spec)
    model = load_base(spec)
    return plain(model) if four_bit(model) else model


def own_or_base_tokenizer(folder: Path, spec: ModelSpec) -> Any:
    """Return the tokenizer in a folder if there is one, else the base model's.

    Raises:
        UserError: It cannot be loaded, or brings code that the user has not trusted.
    """
    # The file of a chat template that a manifest names is no file that its reader chose.
    spec = dataclasses.replace(spec, apply_chat_template=False, chat_template=None)
    if (folder / "tokenizer_config.json").is_file():
        spec = dataclasses.replace(spec, name=str(folder), revision=None)
    return load_tokenizer(spec)


def save_model(
    model: Any, tokenizer: Any, output: Path, origin: Mapping[str, Any], trust_remote_code: bool = False
) -> None:
    """Write a model and its tokenizer, load the model again as a check, and at last write ``calibtune-origin.json``.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        output: Folder to write.
        origin: Content of ``calibtune-origin.json``: base model, method and parameters.
        trust_remote_code: Run code that came with the base model.

    Raises:
        WorkFailed: The folder cannot be written, the disk is full, or the written model gives other logits than the
            one in memory; the folder is then removed.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        _save(model, output)
        tokenizer.save_pretrained(output)
        check_written(model, output, trust_remote_code)
    except BaseException as error:
        shutil.rmtree(output, ignore_errors=True)
        if not isinstance(error, (OSError, SafetensorError)):
            raise
        raise WorkFailed(f"{output} cannot be written ({error}); free disk space or give another --output") from error
    write_json(output / "calibtune-origin.json", origin)


def _save(model: Any, output: Path) -> None:
    try:
        model.save_pretrained(output)
    except NotImplementedError:
        # transformers cannot turn back how it loaded 4-bit weights, which are no more; plain ones need nothing turned.
        model.save_pretrained(output, save_original_format=False)


def check_written(model: Any, folder: Path, trust_remote_code: bool = False) -> None:
    """Load a model that was just written and compare its log-probabilities with those of the one in memory.

    transformers writes some architectures under names that it does not read again, and says nothing.

    Raises:
        WorkFailed: They differ, or weights are missing.
    """
    parameter = next(model.parameters())
    spec = ModelSpec(str(folder), device=str(parameter.device), trust_remote_code=trust_remote_code)
    written = _reloaded(spec, parameter.dtype)
    ids = torch.arange(16, device=parameter.device)[None] % model.config.get_text_config().vocab_size
    with torch.no_grad():
        expected, found = (each.eval()(ids).logits.float().log_softmax(-1) for each in (model, written))
    _check_same(written, spec.name, float((found - expected).abs().max()), SAME)


def check_answers(spec: ModelSpec, questions: Sequence[TokenExample], scores: FloatArray, pad_id: int) -> None:
    """Load a model that was just trained and written, and compare its letters' scores with those of the one in memory.

    Args:
        spec: What was written; on the CPU, since the trained model and its optimizer fill the accelerator.
        questions: N questions.
        scores: What the model in memory gave for their letters, shape (N, K), NaN where there is none.
        pad_id: Padding token.

    Raises:
        WorkFailed: They differ, or weights are missing.
    """
    load_alone()
    written = _reloaded(spec, torch.float32)
    batch = collate(questions, pad_id)
    with torch.no_grad():
        found = letter_log_likelihoods(answer_logits(written.eval(), batch), batch["letter_ids"]).numpy()
    apart = float(np.abs(found - scores)[np.isfinite(scores)].max())
    _check_same(written, spec.name, apart, SHARDED if is_sharded() else TRAINED)


def _reloaded(spec: ModelSpec, dtype: torch.dtype) -> Any:
    try:
        return load_base(spec, dtype)
    except UserError as error:
        raise WorkFailed(f"the model written to {spec.name} cannot be loaded again: {error}") from error


def _check_same(model: Any, folder: str, apart: float, limit: float) -> None:
    if not apart <= limit:
        raise WorkFailed(
            f"the {type(model).__name__} written to {folder} gives other answers than the one in memory (log-"
            f"probabilities are {apart:.3g} apart); transformers does not write this architecture whole, so fit an "
            "adapter or a temperature, and serve the base with it"
        )
