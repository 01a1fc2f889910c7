"""The E-step of Algorithm 1: score the questions with the present model, take bin accuracies, set the targets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm

from calibtune.data.tokens import TokenExample, collate, even_batches
from calibtune.errors import UserError
from calibtune.files import replacing, write_text
from calibtune.models.prefix import SHORTEST_PREFIX, common, prefix_cache, repeated
from calibtune.recipe import Recipe
from calibtune.tuning.losses import Batch, answer_logits, letter_log_likelihoods
from calibtune.tuning.targets import bin_of, bins_tensor, target_probs
from harness_ext.binning import BinTable, FloatArray, IntArray, bin_table
from harness_ext.calibration import letter_log_softmax, top

#: Scoring keeps no activations, so it takes so many times larger batches than training does.
LARGER = 8
#: Share of all tokens from which what prompts begin with is computed once.
LEAST_SHARE = 0.2


# Compiled layers would be compiled anew for each one's place in the prefix's cache.
@torch.compiler.set_stance("force_eager")
def score(model: Any, examples: Sequence[TokenExample], pad_id: int, batch_size: int) -> FloatArray:
    """Letter log-likelihoods of some questions under the present model, each scored once over all processes.

    Args:
        model: Causal language model, wrapped or not; left in evaluation mode.
        examples: N questions.
        pad_id: Token to pad with.
        batch_size: In training; a forward pass takes the tokens of ``LARGER`` times so many average questions.

    Returns:
        Shape (N, K), float64, NaN where a question has fewer letters; the same on every process.
    """
    state = PartialState()
    device = next(model.parameters()).device
    model.eval()
    # By whole prompts: what they begin with is kept for each, however short the rest is.
    lengths = [len(example.input_ids) for example in examples]
    batches = even_batches(lengths, LARGER * batch_size * sum(lengths) / len(lengths))
    shared = examples[0].input_ids[: _shared(examples)]
    cache = prefix_cache(model, shared, device) if shared else None
    if cache is not None:
        examples = [replace(example, input_ids=example.input_ids[len(shared) :]) for example in examples]
    # Sharded models need as many forward passes on every process; what is scored twice is written twice.
    batches += batches[-1:] * (-len(batches) % state.num_processes)
    mine = batches[state.process_index :: state.num_processes]
    found: list[tuple[int, list[float]]] = []
    with torch.no_grad():
        for rows in tqdm(mine, desc="scoring", leave=False, delay=2, disable=not state.is_main_process):
            batch = {k: v.to(device) for k, v in collate([examples[i] for i in rows], pad_id).items()}
            past = None if cache is None else repeated(cache, len(rows))
            values = letter_log_likelihoods(answer_logits(model, batch, past), batch["letter_ids"]).tolist()
            found += [(i, v[: len(examples[i].letter_ids)]) for i, v in zip(rows, values, strict=True)]
    width = max(len(example.letter_ids) for example in examples)
    scores = np.full((len(examples), width), np.nan)
    for row, values in gather_object(found):
        scores[row, : len(values)] = values
    return scores


def _shared(examples: Sequence[TokenExample]) -> int:
    """Tokens that all prompts begin with, such as a chat template's system prompt; 0 where they are not worth it.

    Their keys and values are kept for each prompt of a batch, which takes memory, so they must be a part of the work.
    """
    prompts = [example.input_ids for example in examples]
    # What the first and the last in order have in common, all between them have.
    length = common(min(prompts), max(prompts), 0)
    length = min(length, min(map(len, prompts)) - 1)
    worth = length * len(prompts) >= LEAST_SHARE * sum(map(len, prompts))
    return length if length >= SHORTEST_PREFIX and len(prompts) > 1 and worth else 0


def score_bins(scores: FloatArray, gold: IntArray, bins: int) -> BinTable:
    """Count, accuracy and confidence of each bin of scored questions (paper Eq 19's B_m)."""
    confidence, predicted = top(np.exp(letter_log_softmax(scores)))
    return bin_table(confidence, predicted == gold, bins)


@dataclass
class EStep:
    """What the E-step leaves to the M-step; saved with every checkpoint.

    Args:
        recipe: Of an RCFT fit.
    """

    recipe: Recipe
    #: The epoch that table and targets are for; -1 before the first E-step.
    epoch: int = -1
    table: BinTable | None = None
    #: q of each training question, shape (N, K): 0 where a letter is absent, NaN where L_ECE is off.
    targets: torch.Tensor | None = None
    #: ``--e-step running``: log-likelihoods that the targets were made of, shape (N, K), in the epoch's order of
    #: options; of a resumed epoch, with those of its passes so far.
    scores: FloatArray | None = None
    #: ``--e-step running``: those of this process's passes in this epoch, NaN where there was none.
    passes: torch.Tensor | None = None

    def due(self, epoch: int) -> bool:
        """Whether an epoch needs an E-step that is not there yet."""
        return self.epoch != epoch and (self.epoch < 0 or self.recipe.e_step != "once")

    def take(self, epoch: int, table: BinTable, scores: FloatArray | None) -> None:
        """Set an epoch's bins, and the targets of all training questions from their scores.

        Args:
            epoch: From 0.
            table: The bins that accuracies are taken from.
            scores: Log-likelihoods of the training questions in this epoch's order of options, shape (N, K), NaN where
                a question has fewer; None where each question's own forward pass gives them (``--e-step bins`` and
                ``once``).
        """
        self.epoch, self.table = epoch, table
        self.scores = scores if self.recipe.e_step == "running" else None
        self.targets = self.passes = None
        if scores is not None:
            letters = torch.tensor(scores)
            self.targets = self._targets(letters.masked_fill(letters.isnan(), -torch.inf), bins_tensor(table))

    def note(self, batch: Batch, letters: torch.Tensor) -> None:
        """Keep the letters' log-likelihoods (B, K) of a pass, which ``--e-step running`` takes for the next epoch's."""
        if self.scores is None:
            return
        if self.passes is None:
            self.passes = torch.full(self.scores.shape, torch.nan, device=letters.device)
        self.passes[batch["row"], : letters.shape[1]] = letters.float()

    def known(self) -> FloatArray | None:
        """The latest log-likelihoods of each training question, of all processes' passes; all processes call it.

        None where the E-step is not a running one, or has not been taken yet.
        """
        passes = gather_object([] if self.passes is None else [self.passes.cpu().double().numpy()])
        if self.scores is None:
            return None
        scores = self.scores.copy()
        for found in passes:
            scores = np.where(np.isfinite(found), found, scores)
        return scores

    def given(self, batch: Batch) -> Batch:
        """A batch with what its targets come from: ``target`` where the E-step has set them, else its ``bins``.

        Kept apart from :meth:`target` because a recorded pass reads the places that it was recorded with, epoch after
        epoch.
        """
        device = batch["letter_ids"].device
        if self.targets is None:
            assert self.table is not None
            bins = bins_tensor(self.table)
            return batch | {"bins": bins if device.type == "mps" else bins.to(device)}  # MPS has no float64
        self.targets = self.targets.to(device)
        return batch | {"target": self.targets[batch["row"], : batch["letter_ids"].shape[1]]}

    def target(self, batch: Batch, letters: torch.Tensor) -> torch.Tensor:
        """Target q of the questions of a batch of :meth:`given`, shape (B, K)."""
        if "target" in batch:
            return batch["target"]
        return self._targets(letters.to(batch["bins"].device), batch["bins"]).to(letters.device)

    def _targets(self, letters: torch.Tensor, bins: torch.Tensor) -> torch.Tensor:
        """Of log-likelihoods, minus infinity where a letter is absent."""
        probs = letters.double().softmax(1)
        index = bin_of(probs.amax(1), bins)
        q = target_probs(probs.masked_fill(letters.isinf(), torch.nan), bins[1][index], self.recipe.mapping)
        q = q.nan_to_num(0.0)
        if self.recipe.skip_top_bin:
            q = q.masked_fill((index == self.recipe.bins - 1)[:, None], torch.nan)
        return q.float()

    def save(self, folder: Path) -> None:
        """Write the state beside a checkpoint's other files; all processes call it, one writes."""
        table, known = self.table, self.known()
        if not PartialState().is_main_process:
            return
        bins = None if table is None else [table.count.tolist(), table.accuracy.tolist(), table.confidence.tolist()]
        write_text(folder / "estep.json", json.dumps({"epoch": self.epoch, "bins": bins}))
        tensors = {"targets": self.targets, "scores": None if known is None else torch.tensor(known)}
        for name, tensor in tensors.items():
            if tensor is not None:
                with replacing(folder / f"estep_{name}.pt") as path:
                    torch.save(tensor.cpu(), path)

    def load(self, folder: Path) -> None:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: An earlier version wrote it, whose running E-step was another method.
        """
        state = json.loads((folder / "estep.json").read_text())
        if self.recipe.e_step == "running" and "seen" in state:
            raise UserError(
                f"--resume: {folder} is an earlier version's, whose --e-step running was another method; begin anew "
                "with --overwrite"
            )
        self.epoch = state["epoch"]
        if state["bins"] is not None:
            count, accuracy, confidence = state["bins"]
            self.table = BinTable(np.array(count), np.array(accuracy, float), np.array(confidence, float))
        if (folder / "estep_targets.pt").exists():
            self.targets = torch.load(folder / "estep_targets.pt", weights_only=True)
        if (folder / "estep_scores.pt").exists():
            self.scores = torch.load(folder / "estep_scores.pt", weights_only=True).numpy()
