"""Merge an adapter into its base model's weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from calibtune.artifacts.manifest import base_model, read_artifact, show_base
from calibtune.artifacts.named import named
from calibtune.artifacts.whole_models import check_model_output, load_plain, own_or_base_tokenizer, save_model
from calibtune.errors import UserError
from calibtune.files import refuse_existing
from calibtune.models.adapters import load_adapter
from calibtune.models.fingerprint import check_fingerprint
from calibtune.models.loading import load_config
from calibtune.models.quantized import check_plain, held_as


def merge(
    folder: Path,
    output: Path,
    dequantized: bool,
    overwrite: bool,
    trust_remote_code: bool = False,
    base: str | None = None,
) -> None:
    """Merge an adapter into its base model's weights.

    Args:
        folder: Output folder of ``calibtune fit`` with an adapter, or an adapter of another program, on the hub too.
        output: Folder of the new model, which transformers loads.
        dequantized: Merge into the de-quantized 4-bit weights, on which the adapter was trained,
            instead of the original weights. The sum itself is never quantized again.
        overwrite: Remove existing files in ``output``.
        trust_remote_code: Run code that comes with the base model.
        base: The base model; None: the one that the artifact names.

    Raises:
        UserError: The artifact is not an adapter, or ``dequantized`` is set and the adapter was not
            trained on a 4-bit base, or not set and the base has no other weights.
    """
    folder = named(base, folder)[1] or folder
    artifact = read_artifact(folder)
    if artifact.kind != "adapter":
        raise UserError(
            f"{folder} is a {artifact.kind}, and only adapters can be merged; bake a temperature with `calibtune bake`"
        )
    check_model_output(output, overwrite, folder, artifact)
    spec = dataclasses.replace(
        artifact.spec,
        name=base_model(base, artifact),
        revision=None if base else artifact.revision,
        quantization="none",
        trust_remote_code=trust_remote_code,
    )
    show_base(artifact)
    config = load_config(spec)
    check_plain(spec, config)
    if held_as(config) is None:
        # Another program's adapter does not say on what it was trained.
        if dequantized and artifact.recipe.get("quantization", "nf4") != "nf4":
            raise UserError(f"--dequantized: {folder} was not trained on a 4-bit base; leave it out")
        spec = dataclasses.replace(spec, quantization="nf4" if dequantized else "none")
    elif not dequantized:
        raise UserError(
            f"the base {spec.name} holds its weights in 4 bits, so there are no original ones to merge into; give "
            "--dequantized"
        )
    check_fingerprint(spec, artifact.fingerprint, folder)
    # safe_merge checks the merged weights for NaN.
    merged = load_adapter(load_plain(spec), folder).merge_and_unload(safe_merge=True)
    tokenizer = own_or_base_tokenizer(folder, spec)
    refuse_existing(output, overwrite)
    save_model(
        merged,
        tokenizer,
        output,
        {"base": spec.name, "method": artifact.method, "merged": str(folder), "dequantized": dequantized},
        trust_remote_code,
    )
