"""Average several LoRA adapters of one base model into one adapter of the same rank."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from calibtune.files import replacing, write_json
from calibtune.models.adapters import WEIGHTS
from calibtune.reading import read_json

logger = logging.getLogger(__name__)

#: PEFT's names of the first and the second factor of what LoRA adds to a weight.
FIRST, SECOND = re.compile(r"lora_(embedding_)?A\b"), r"lora_\1B"


def write_mean(adapters: Sequence[Path], folder: Path, rank: int, device: str = "cpu") -> float:
    """Write the mean of adapters as one adapter that every program reads, with the tokenizer of the first.

    LoRA adds B A to a weight. The mean of several such products has as many times their rank; the product of the same
    rank that is nearest to it (in the Frobenius norm) is written.

    Args:
        adapters: Folders of adapters that were trained with the same configuration.
        folder: Folder to write.
        rank: Of each adapter, and of their mean.
        device: Where to compute.

    Returns:
        The share of the mean's squared norm that is kept, in (0, 1].
    """
    from safetensors.torch import load_file, save_file

    config = read_json(adapters[0] / "adapter_config.json", dict[str, Any])
    each = [load_file(adapter / WEIGHTS, device=device) for adapter in adapters]
    written, whole, kept = dict[str, torch.Tensor](), 0.0, 0.0
    for first in filter(FIRST.search, each[0]):
        second = FIRST.sub(SECOND, first)
        pairs = [(weights[first], weights[second]) for weights in each]
        written[first], written[second], norms = mean_product(pairs, rank)
        whole, kept = whole + norms[0], kept + norms[1]
    folder.mkdir(parents=True, exist_ok=True)
    for path in adapters[0].iterdir():
        if "token" in path.name or path.name in ("chat_template.jinja", "vocab.json", "vocab.txt", "merges.txt"):
            shutil.copyfile(path, folder / path.name)
    with replacing(folder / WEIGHTS) as path:
        save_file({name: weight.cpu() for name, weight in written.items()}, path, metadata={"format": "pt"})
    write_json(folder / "adapter_config.json", config)
    share = kept / whole if whole else 1.0
    logger.info("the mean of %d adapters, at rank %d: %.2f %% of its squared norm", len(each), rank, 100 * share)
    return share


def mean_product(
    pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], rank: int
) -> tuple[torch.Tensor, torch.Tensor, tuple[float, float]]:
    """Return the product of a rank that is nearest to the mean of products B A, and both squared norms.

    Args:
        pairs: A of shape (E x rank, in) and B of shape (out, rank x E) of each adapter; E is the number of a mixture's
            experts in PEFT's layout of fused weights, else 1.
        rank: Of each adapter, and of the result.

    Returns:
        A and B as they were given, and the squared norms of the mean and of the result.

    Example:
        >>> one = torch.ones(1, 2), torch.ones(3, 1)
        >>> a, b, _ = mean_product([one, (one[0], 3 * one[1])], 1)
        >>> (b @ a).round(decimals=4).tolist()
        [[2.0, 2.0], [2.0, 2.0], [2.0, 2.0]]
    """
    experts = pairs[0][0].shape[0] // rank
    a = torch.cat([a.float().reshape(experts, rank, -1) for a, _ in pairs], 1)
    b = torch.cat([b.float().reshape(len(b), rank, experts).permute(2, 0, 1) for _, b in pairs], 2) / len(pairs)
    # B A = Qb (Rb Ra^T) Qa^T, whose singular values are those of the small matrix between.
    (qb, rb), (qa, ra) = torch.linalg.qr(b), torch.linalg.qr(a.mT)
    u, values, v = torch.linalg.svd(rb @ ra.mT, full_matrices=False)
    root = values[:, :rank].sqrt()
    near_a = root[:, :, None] * (v[:, :rank] @ qa.mT)
    near_b = (qb @ u[:, :, :rank]) * root[:, None, :]
    like = pairs[0][0].dtype
    return (
        _filled(near_a, rank, 1).reshape(experts * rank, -1).to(like).contiguous(),
        _filled(near_b, rank, 2).permute(1, 2, 0).reshape(b.shape[1], -1).to(like).contiguous(),
        (float(values.square().sum()), float(values[:, :rank].square().sum())),
    )


def _filled(factor: torch.Tensor, rank: int, dim: int) -> torch.Tensor:
    """Add zeros up to the rank, where the weight itself has a lower one."""
    lacking = rank - factor.shape[dim]
    size = [lacking if i == dim else n for i, n in enumerate(factor.shape)]
    return torch.cat([factor, factor.new_zeros(size)], dim) if lacking else factor
