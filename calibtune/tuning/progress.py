"""What a fit says of its epochs: the held-out questions' table, and whether it should have ended earlier."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from harness_ext.binning import BinTable

#: Nats by which the held-out NLL must have been lower to be worth a word.
WORSE = 0.02


def epoch_table(epoch: int, table: BinTable, numbers: dict[str, float], bins: int) -> str:
    """The held-out questions before an epoch, as text: one line a bin that has any, and a summary."""
    lines = [f"before epoch {epoch + 1}, held-out questions:", "  bin           count  accuracy  confidence"]
    for m in np.flatnonzero(table.count):
        lines.append(
            f"  [{m / bins:.2f}, {(m + 1) / bins:.2f}{']' if m == bins - 1 else ')'} {table.count[m]:7d}"
            f"  {table.accuracy[m]:8.3f}  {table.confidence[m]:10.3f}"
        )
    lines.append(
        f"  accuracy {numbers['acc']:.3f}, conf-ECE {numbers[f'conf_ece_{bins}']:.4f}, NLL {numbers['nll']:.4f}, "
        f"letter mass {numbers['letter_mass']:.3f}"
    )
    return "\n".join(lines)


def overtrained(nll_before: Mapping[int, float], nll: float) -> str | None:
    """Say when the held-out questions were better off before some epoch than at the end.

    Args:
        nll_before: NLL before each epoch, from 0; after a resume, of the epochs since.
        nll: At the end.

    Returns:
        None where the end is best, or worse by less than ``WORSE``.

    Example:
        >>> overtrained({0: 1.42, 1: 1.22, 2: 1.21}, 1.40)
        'held-out NLL was 1.210 after 2 epochs and is 1.400 now: --epochs 2 or a lower --learning-rate may end better'
        >>> overtrained({0: 1.42, 1: 1.22}, 1.21)
    """
    epoch = min(nll_before, key=lambda epoch: nll_before[epoch], default=None)
    if epoch is None or nll_before[epoch] > nll - WORSE:
        return None
    when = f"after {epoch} epoch{'s' * (epoch > 1)}" if epoch else "before training"
    advice = f"{f'--epochs {epoch} or ' if epoch else ''}a lower --learning-rate may end better"
    return f"held-out NLL was {nll_before[epoch]:.3f} {when} and is {nll:.3f} now: {advice}"
