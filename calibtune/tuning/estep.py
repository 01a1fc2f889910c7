"""Run the E-step: compute bin accuracies under the present model and the questions' targets.

It is the E-step of Algorithm 1 in arXiv 2505.01997; see docs/methods.md.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from calibtune.files import replacing, write_text
from calibtune.models.heads import Batch
from calibtune.reading import read_json
from calibtune.recipe import Recipe
from calibtune.tuning.targets import bin_accuracies, epoch_targets
from harness_ext.binning import BinTable, FloatArray, IntArray, bin_table
from harness_ext.calibration import letter_log_softmax, top


def score_bins(scores: FloatArray, gold: IntArray, bins: int) -> BinTable:
    """Compute count, accuracy and mean confidence of each bin (B_m in arXiv 2505.01997, Eq 19).

    Args:
        scores: Letter log-likelihoods, shape (N, K), NaN where the letter is absent.
        gold: Index of the right letter, shape (N,).
        bins: Number of equal-width bins, M.
    """
    confidence, predicted = top(np.exp(letter_log_softmax(scores)))
    return bin_table(confidence, predicted == gold, bins)


@dataclass
class EStep:
    """Hold the E-step's targets of one epoch; every checkpoint includes them.

    Args:
        recipe: Recipe of the fit.
    """

    recipe: Recipe
    #: Epoch of the targets; -1 before the first E-step.
    epoch: int = -1
    #: q of each training question, float32, shape (N, K), 0 where the letter is absent; None without
    #: L_ECE.
    targets: torch.Tensor | None = None
    #: Log-likelihoods that gave the targets, shape (N, K), in the epoch's option order.
    scores: FloatArray | None = None
    #: Log-likelihoods from this process's training passes in this epoch, shape (N, K), NaN for
    #: questions that it has not trained on.
    passes: torch.Tensor | None = None

    def take(self, epoch: int, table: BinTable, scores: FloatArray) -> None:
        """Compute the targets of an epoch.

        Args:
            epoch: Number of the epoch, from 0.
            table: Bins that give the accuracies.
            scores: Log-likelihoods of the training questions in this epoch's option order, shape
                (N, K), NaN where the letter is absent.
        """
        self.epoch, self.scores, self.passes = epoch, scores, None
        self.targets = torch.tensor(epoch_targets(scores, bin_accuracies(table), self.recipe.mapping)).float()

    def batch_targets(self, batch: Batch) -> Batch:
        """Return ``target``, shape (B, K), for a batch, or an empty dict without L_ECE."""
        if self.targets is None:
            return {}
        return {"target": self.targets[batch["row"], : batch["letter_ids"].shape[1]]}

    def note(self, batch: Batch, letters: torch.Tensor) -> None:
        """Store the log-likelihoods (B, K) of a training pass for the running E-step."""
        if self.scores is None:
            return
        if self.passes is None:
            self.passes = torch.full(self.scores.shape, torch.nan, device=letters.device)
        self.passes[batch["row"], : letters.shape[1]] = letters.float()

    def latest_scores(self) -> FloatArray | None:
        """Return each training question's latest log-likelihoods, shape (N, K), over all processes.

        All processes must call it. Returns None before the first E-step.
        """
        passes = gather_object([] if self.passes is None else [self.passes.cpu().double().numpy()])
        if self.scores is None:
            return None
        scores = self.scores.copy()
        for found in passes:
            scores = np.where(np.isfinite(found), found, scores)
        return scores

    def save(self, folder: Path) -> None:
        """Write the state into a checkpoint; all processes must call it."""
        latest = self.latest_scores()
        if not PartialState().is_main_process:
            return
        write_text(folder / "estep.json", json.dumps({"epoch": self.epoch}))
        if self.targets is not None:
            with replacing(folder / "estep.npz") as path, path.open("wb") as file:
                np.savez(file, targets=self.targets.numpy(), scores=np.asarray(latest))

    def load(self, folder: Path) -> None:
        """Read the state that :meth:`save` wrote."""
        self.epoch = read_json(folder / "estep.json", dict[str, int])["epoch"]
        if (folder / "estep.npz").exists():
            with np.load(folder / "estep.npz") as arrays:
                self.targets, self.scores = torch.tensor(arrays["targets"]), arrays["scores"]
