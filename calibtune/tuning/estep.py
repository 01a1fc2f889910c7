"""The E-step of Algorithm 1: take bin accuracies under the present model and set each training question's target."""

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
from calibtune.recipe import Recipe
from calibtune.tuning.targets import bin_accuracies, epoch_targets
from harness_ext.binning import BinTable, FloatArray, IntArray, bin_table
from harness_ext.calibration import letter_log_softmax, top


def score_bins(scores: FloatArray, gold: IntArray, bins: int) -> BinTable:
    """Compute count, accuracy and confidence of each bin of scored questions (B_m of paper Eq 19).

    Args:
        scores: Letter log-likelihoods, shape (N, K), NaN where a question has fewer letters.
        gold: Index of the right letter, shape (N,).
        bins: M equal-width bins.
    """
    confidence, predicted = top(np.exp(letter_log_softmax(scores)))
    return bin_table(confidence, predicted == gold, bins)


@dataclass
class EStep:
    """The targets of one epoch; saved with every checkpoint.

    Args:
        recipe: Of an RCFT fit.
    """

    recipe: Recipe
    #: The epoch that the targets are for; -1 before the first E-step.
    epoch: int = -1
    #: q of each training question, float32, shape (N, K), 0 where a letter is absent; None without L_ECE.
    targets: torch.Tensor | None = None
    #: Log-likelihoods that the targets were made of, shape (N, K), in the epoch's order of options.
    scores: FloatArray | None = None
    #: Log-likelihoods of this process's training passes in this epoch, shape (N, K), NaN where there was none.
    passes: torch.Tensor | None = None

    def take(self, epoch: int, table: BinTable, scores: FloatArray) -> None:
        """Set the targets of an epoch.

        Args:
            epoch: From 0.
            table: The bins whose accuracies the targets take.
            scores: Log-likelihoods of the training questions in this epoch's order of options, shape (N, K), NaN where
                a question has fewer.
        """
        self.epoch, self.scores, self.passes = epoch, scores, None
        self.targets = torch.tensor(epoch_targets(scores, bin_accuracies(table), self.recipe.mapping)).float()

    def batch_targets(self, batch: Batch) -> Batch:
        """Return the targets of a batch's questions as its ``target``, shape (B, K); nothing without L_ECE."""
        if self.targets is None:
            return {}
        return {"target": self.targets[batch["row"], : batch["letter_ids"].shape[1]]}

    def note(self, batch: Batch, letters: torch.Tensor) -> None:
        """Keep the log-likelihoods (B, K) of a training pass; the running E-step uses them in the next epoch."""
        if self.scores is None:
            return
        if self.passes is None:
            self.passes = torch.full(self.scores.shape, torch.nan, device=letters.device)
        self.passes[batch["row"], : letters.shape[1]] = letters.float()

    def latest_scores(self) -> FloatArray | None:
        """Return the latest log-likelihoods of each training question, shape (N, K), from all processes' passes.

        All processes call it. None before the first E-step.
        """
        passes = gather_object([] if self.passes is None else [self.passes.cpu().double().numpy()])
        if self.scores is None:
            return None
        scores = self.scores.copy()
        for found in passes:
            scores = np.where(np.isfinite(found), found, scores)
        return scores

    def save(self, folder: Path) -> None:
        """Write the state beside a checkpoint's other files; all processes call it, one writes."""
        latest = self.latest_scores()
        if not PartialState().is_main_process:
            return
        write_text(folder / "estep.json", json.dumps({"epoch": self.epoch}))
        if self.targets is not None:
            with replacing(folder / "estep.npz") as path, path.open("wb") as file:
                np.savez(file, targets=self.targets.numpy(), scores=np.asarray(latest))

    def load(self, folder: Path) -> None:
        """Read what :meth:`save` wrote."""
        self.epoch = json.loads((folder / "estep.json").read_text())["epoch"]
        if (folder / "estep.npz").exists():
            with np.load(folder / "estep.npz") as arrays:
                self.targets, self.scores = torch.tensor(arrays["targets"]), arrays["scores"]
