"""The release gate: does a tuned artifact still prefer what people preferred, as often as its base did?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calibtune.errors import UserError
from calibtune.results.pairs import Key, matching_rows, question_keys
from calibtune.results.samples import find_samples, read_samples
from harness_ext.binning import FloatArray
from harness_ext.intervals import paired_difference

TASK = "ultrafeedback_winrate"


@dataclass(frozen=True)
class Verdict:
    """What the paired comparison says; win rates and differences as shares, within [-1, 1]."""

    #: Win rates (paper Eq 21, summed log-probabilities) on the shared pairs.
    base: float
    tuned: float
    #: ``tuned - base`` and its 95 % paired bootstrap interval.
    difference: float
    low: float
    high: float
    #: Largest loss that is let pass.
    margin: float
    #: Pairs compared.
    n: int
    #: False only if the whole interval lies below ``-margin``.
    passed: bool

    def sentence(self) -> str:
        """The verdict in words, for the terminal and the report."""
        numbers = (
            f"win rate {self.base:.4f} before and {self.tuned:.4f} after tuning, difference {self.difference:+.4f} "
            f"[{self.low:+.4f}, {self.high:+.4f}] on {self.n} pairs"
        )
        if not self.passed:
            return f"{numbers}: worse by more than the margin {self.margin:g}"
        if self.low < -self.margin:
            return f"{numbers}: not shown to be worse by more than the margin {self.margin:g}, nor shown not to be"
        return f"{numbers}: not worse by more than the margin {self.margin:g}"


def check_base(base_samples: Path, margin: float) -> None:
    """Refuse what :func:`guard` could not compare with, before the tuned artifact is evaluated; arguments as there.

    Raises:
        UserError: The margin is out of range, or there are no or several such files.
        UserError: The file is missing, damaged or incomplete.
    """
    check_margin(margin)
    _pairs(_file(base_samples))


def check_margin(margin: float) -> None:
    """Refuse a margin that is no share of pairs.

    Raises:
        UserError: With the margin.
    """
    if not 0 <= margin < 1:
        raise UserError(f"--margin {margin:g} is not within [0, 1); 0.02 lets a loss of two points pass")


def guard(base_samples: Path, tuned_samples: Path, margin: float) -> Verdict:
    """Compare base and tuned model on the same preference pairs.

    Args:
        base_samples: ``samples_ultrafeedback_winrate_*.jsonl`` of the base model, or a folder that holds one.
        tuned_samples: The same of the tuned artifact; pairs are matched by lm_eval's document hash.
        margin: Loss of win rate that is let pass, within [0, 1): 0.02 lets two points pass.

    Returns:
        The verdict; it fails only when the interval says that the loss exceeds the margin.

    Raises:
        UserError: The margin is out of range, a folder holds no or several such files, or the two were not evaluated on
            the same pairs with the same prompts.
        UserError: A file is damaged or incomplete.
    """
    check_margin(margin)
    files = _file(base_samples), _file(tuned_samples)
    base, tuned = (_pairs(file) for file in files)
    if set(base.keys) != set(tuned.keys):
        raise UserError(
            f"{files[1]} and {files[0]} differ in {len(set(base.keys) ^ set(tuned.keys))} pairs; evaluate base and "
            "tuned model with the same data and --limit"
        )
    order = matching_rows(base.keys, tuned.keys)[1]
    other = sum(a != b for a, b in zip(base.prompts, (tuned.prompts[row] for row in order), strict=True))
    if other:
        raise UserError(
            f"{files[1]} and {files[0]} gave {other} of {len(base.keys)} pairs another prompt; evaluate both with the "
            "same chat template"
        )
    wins = base.wins, tuned.wins[order]
    interval = paired_difference(lambda values: float(np.mean(values)), (wins[0],), (wins[1],))
    return Verdict(
        base=float(wins[0].mean()),
        tuned=float(wins[1].mean()),
        difference=interval.estimate,
        low=interval.low,
        high=interval.high,
        margin=margin,
        n=len(base.keys),
        passed=interval.high >= -margin,
    )


def _file(path: Path) -> Path:
    files = [file for file in find_samples(path) if path.is_file() or file.name.startswith(f"samples_{TASK}_")]
    if len(files) != 1:
        found = "no samples" if not files else f"samples of {len(files)} runs"
        raise UserError(f"{path} holds {found} of {TASK}; run lm_eval --tasks {TASK} --log_samples or give one file")
    return files[0]


@dataclass(frozen=True)
class _Pairs:
    """The preference pairs of one samples file."""

    keys: tuple[Key, ...]
    #: 1.0 where the chosen response is likelier, as the task's ``win_rate``; a tie is no win. Shape (N,).
    wins: FloatArray
    #: lm_eval's hash of each prompt.
    prompts: tuple[str | None, ...]


def _pairs(path: Path) -> _Pairs:
    rows = read_samples(path)
    answers = rows.log_probs.shape[1]
    if answers != 2:
        raise UserError(f"{rows.path} holds {answers} answers a row, not two; give {TASK}'s samples")
    wins = (rows.log_probs[:, 0] > rows.log_probs[:, 1]).astype(np.float64)
    return _Pairs(question_keys(rows), wins, rows.prompt_hashes)
