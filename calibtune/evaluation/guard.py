"""Check that tuning does not lower the win rate on human preference pairs by more than a margin."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calibtune.errors import UserError
from calibtune.results.pairs import Key, matching_rows, question_keys
from calibtune.results.records import DATED, is_dated, record_beside
from calibtune.results.samples import find_samples, read_samples
from calibtune.results.shards import together
from harness_ext.binning import FloatArray
from harness_ext.intervals import paired_difference

TASK = "ultrafeedback_winrate"


@dataclass(frozen=True)
class Verdict:
    """Hold the result of the paired comparison; win rates and differences are shares."""

    #: Win rates on the pairs (arXiv 2505.01997, Eq 21, summed log-probabilities), in [0, 1].
    base: float
    tuned: float
    #: ``tuned - base`` and its 95 % paired bootstrap interval.
    difference: float
    low: float
    high: float
    #: Largest accepted loss of win rate.
    margin: float
    #: Number of pairs.
    n: int
    #: False only if the whole interval is below ``-margin``.
    passed: bool

    def sentence(self) -> str:
        """Return the verdict as a sentence, for the terminal and the report."""
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
    """Check the base model's samples and the margin before the tuned artifact is evaluated.

    Args:
        base_samples: As in :func:`guard`.
        margin: As in :func:`guard`.

    Raises:
        UserError: The margin is out of range, or there is not exactly one samples file.
        UserError: The file is missing, damaged or incomplete.
    """
    check_margin(margin)
    _pairs(_files(base_samples))


def check_margin(margin: float) -> None:
    """Check that the margin is in [0, 1).

    Raises:
        UserError: The margin is out of range.
    """
    if not 0 <= margin < 1:
        raise UserError(
            f"--margin {margin:g} is not within [0, 1); give a share such as 0.02, which accepts a loss of 2 points"
        )


def guard(base_samples: Path, tuned_samples: Path, margin: float) -> Verdict:
    """Compare the win rates of base and tuned model on the same preference pairs.

    Args:
        base_samples: ``samples_ultrafeedback_winrate_*.jsonl`` of the base model, or a folder with
            one such file.
        tuned_samples: Samples file or folder of the tuned artifact; pairs are matched by lm_eval's
            document hash.
        margin: Largest accepted loss of win rate, in [0, 1); 0.02 accepts a loss of two points.

    Returns:
        The verdict, which fails only if the whole interval of the loss exceeds the margin.

    Raises:
        UserError: The margin is out of range, a folder does not have exactly one samples file, or
            the models were not evaluated on the same pairs with the same prompts.
        UserError: A file is damaged or incomplete.
    """
    check_margin(margin)
    runs = _files(base_samples), _files(tuned_samples)
    base, tuned = (_pairs(files) for files in runs)
    files = [run[0] for run in runs]
    if set(base.keys) != set(tuned.keys):
        raise UserError(
            f"{files[1]} and {files[0]} differ in {len(set(base.keys) ^ set(tuned.keys))} pairs; evaluate base and "
            "tuned model with the same data and --limit"
        )
    order = matching_rows(base.keys, tuned.keys)[1]
    other = sum(a != b for a, b in zip(base.prompts, (tuned.prompts[row] for row in order), strict=True))
    if other:
        cause = (
            DATED
            if any(is_dated(record_beside(file)) for file in files)
            else "evaluate both with the same chat template"
        )
        raise UserError(
            f"{files[1]} and {files[0]} have different prompts for {other} of {len(base.keys)} pairs; {cause}"
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


def _files(path: Path) -> tuple[Path, ...]:
    """Return the samples file, or those of all shards."""
    files = [file for file in find_samples(path) if path.is_file() or file.name.startswith(f"samples_{TASK}_")]
    runs = together(files)
    if len(runs) != 1:
        found = "no samples" if not runs else f"samples of {len(runs)} runs"
        raise UserError(f"{path} holds {found} of {TASK}; run lm_eval --tasks {TASK} --log_samples or give one file")
    return runs[0]


@dataclass(frozen=True)
class _Pairs:
    """Hold the preference pairs of one samples file."""

    keys: tuple[Key, ...]
    #: Shape (N,): 1.0 if the chosen response is more likely, as in ``win_rate``; a tie is not a win.
    wins: FloatArray
    #: Hash of each prompt, from lm_eval.
    prompts: tuple[str | None, ...]


def _pairs(files: tuple[Path, ...]) -> _Pairs:
    rows = read_samples(*files)
    answers = rows.log_probs.shape[1]
    if answers != 2:
        raise UserError(f"{rows.path} has {answers} answers per row, not two; give a samples file of {TASK}")
    wins = (rows.log_probs[:, 0] > rows.log_probs[:, 1]).astype(np.float64)
    return _Pairs(question_keys(rows), wins, rows.prompt_hashes)
