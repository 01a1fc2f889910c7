"""Write a fit's progress: a table of held-out metrics per epoch, and a warning if it overtrained."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from harness_ext.binning import BinTable

#: A rise of the held-out NLL is reported from this many nats.
WORSE = 0.02


def epoch_table(epoch: int, table: BinTable, numbers: dict[str, float], bins: int) -> str:
    """Return the held-out metrics before an epoch as text: a line per non-empty bin, and a summary.

    Args:
        epoch: Number of the epoch, from 0.
        table: Bins of the held-out questions.
        numbers: Metrics of the held-out questions.
        bins: Number of bins.
    """
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
    """Return a warning if the held-out NLL was lower before some epoch than at the end.

    Args:
        nll_before: NLL before each epoch, from 0; after a resume, of the epochs since then.
        nll: NLL at the end.

    Returns:
        The warning, or None if the NLL rose by less than ``WORSE``.

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
