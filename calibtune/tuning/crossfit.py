"""Bin accuracies from questions that the model scoring them was not trained on, with none kept from training.

A model that has memorized its training questions is right on nearly all of them, so an E-step on them endorses
overconfidence (``findings.md``, point 3). Here the training questions are split into folds; for each fold an adapter is
trained on the others as the fit itself will be, and scores the fold before each epoch. The fit's E-step takes
its bins from all folds' scores before that epoch. It costs a fit for each fold.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from transformers import set_seed

from calibtune.data.tokens import tokenize
from calibtune.data.training_set import Questions, TrainingSet
from calibtune.files import read_json, write_json
from calibtune.models.loading import add_adapter
from calibtune.recipe import Recipe
from calibtune.tuning.estep import score_bins
from calibtune.tuning.trainer import CalibrationTrainer, training_arguments
from harness_ext.binning import BinTable

FOLDS = 2
FILE = "cross-fitted.json"


def cross_fitted_tables(model: Any, questions: Questions, recipe: Recipe, folder: Path) -> list[BinTable]:
    """The E-step's bins for each epoch of a fit.

    Args:
        model: The base model; adapters are put on it and taken off again.
        questions: The fit's.
        recipe: The fit's.
        folder: Where the tables are kept, so that a resumed fit does not train the folds again.

    Returns:
        One table an epoch, over all training questions.
    """
    path = folder / FILE
    if not path.exists():
        # Fold by fold: scores of the fold's questions before each epoch, and their right letters.
        found = [_score_fold(model, questions, recipe, folder, fold) for fold in range(FOLDS)]
        tables = []
        for epoch in range(min(len(history) for history, _ in found)):
            parts = [_padded(history[epoch]) for history, _ in found]
            tables.append(score_bins(np.concatenate(parts), np.concatenate([g for _, g in found]), recipe.bins))
        write_json(path, [[t.count.tolist(), t.accuracy.tolist(), t.confidence.tolist()] for t in tables])
    return [BinTable(np.array(c), np.array(a, float), np.array(p, float)) for c, a, p in read_json(path)]


def _score_fold(
    model: Any, questions: Questions, recipe: Recipe, folder: Path, fold: int
) -> tuple[list[np.ndarray], np.ndarray]:
    data = questions.train
    inside = data.examples[fold::FOLDS]
    outside = [example for i, example in enumerate(data.examples) if i % FOLDS != fold]
    train = TrainingSet(outside, data.encoder, data.max_length, recipe.seed, recipe.shuffle_options)
    held_out = tuple(tokenize(inside, data.encoder, data.max_length))
    recipe = dataclasses.replace(recipe, e_step_rows="held-out", save_every=0, report_to="none")
    arguments = training_arguments(recipe, folder / f"fold-{fold}")
    arguments.save_strategy = "no"
    print(
        f"cross-fitting, fold {fold + 1} of {FOLDS}: {len(outside)} questions train, {len(inside)} are scored",
        flush=True,
    )
    set_seed(recipe.seed)
    tuned = add_adapter(model, recipe)
    trainer = CalibrationTrainer(tuned, arguments, recipe, Questions(train, held_out, questions.pad_id))
    trainer.train()
    trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
    tuned.unload()
    return trainer.history, np.array([row.gold for row in held_out])


def _padded(scores: np.ndarray, letters: int = 26) -> np.ndarray:
    """Scores with a column for every possible letter, so that folds with other numbers of options fit together."""
    return np.pad(scores, ((0, 0), (0, letters - scores.shape[1])), constant_values=np.nan)
