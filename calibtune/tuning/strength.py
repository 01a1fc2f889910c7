"""Choose how strongly a trained adapter acts: one number in [0, 1] that scales what it adds to the base's weights."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from calibtune.artifacts.manifest import Artifact, base_model, read_artifact
from calibtune.data.tokens import PAD
from calibtune.errors import UserError
from calibtune.files import replacing
from calibtune.models.adapters import WEIGHTS
from calibtune.models.scores import score
from calibtune.recipe import FIELDS, Recipe, flag
from calibtune.tuning.temperature import fit_temperature
from harness_ext.binning import FloatArray, IntArray
from harness_ext.calibration import letter_log_softmax, nll
from harness_ext.refinement import parts

logger = logging.getLogger(__name__)

#: Options of this method; all others are those of the adapter's own fit.
OPTIONS = frozenset(
    {"method", "artifact", "model", "with_temperature", "device", "batch_size", "include_path", "trust_remote_code"}
)
#: Strengths that are tried first, and how finely the best of them is refined.
GRID, STEP = 9, 0.01
#: What of an adapter's tensors is scaled: LoRA adds the product of A and B.
SCALED = ("lora_B", "lora_embedding_B")


@dataclass(frozen=True)
class Strength:
    """Hold a chosen strength, and the held-out questions' log-likelihoods that it was chosen by."""

    value: float
    #: At full strength, shape (N, K).
    before: FloatArray
    #: Each question at a strength that was chosen on others, shape (N, K).
    after: FloatArray


def as_fitted(recipe: Recipe) -> Recipe:
    """Return the recipe with model, prompts and questions of the adapter's own fit.

    Raises:
        UserError: ``--artifact`` is no adapter of a fit that held questions out, or an option is given that the fit
            has fixed.
    """
    folder = str(recipe.artifact)
    artifact = read_artifact(Path(folder))
    if artifact.kind != "adapter" or artifact.foreign:
        what = "an adapter of another program" if artifact.foreign else f"a {artifact.kind}"
        raise UserError(f"--artifact {folder} is {what}; give an adapter that `calibtune fit` trained")
    if not artifact.documents["held_out"]:
        raise UserError(
            f"--artifact {folder} was fitted with no question held out, and questions that it was trained on cannot "
            "tell its strength; fit it again with --held-out"
        )
    own = {
        name: value for name, value in artifact.recipe.items() if name in FIELDS and not FIELDS[name].metadata["only"]
    }
    for name in FIELDS:
        if name not in OPTIONS and getattr(recipe, name) != getattr(Recipe(), name):
            raise UserError(f"{flag(name)} is that of the adapter's own fit in --method strength; leave it out")
    kept = {name: getattr(recipe, name) for name in OPTIONS}
    # A template's file is not needed: the adapter's folder has the tokenizer with it.
    own |= {"chat_template": None, "revision": artifact.revision if not recipe.model else None}
    return Recipe(**{**own, **kept, "model": base_model(recipe.model or None, artifact)})


def find_strength(model: Any, rows: Any, gold: IntArray, recipe: Recipe) -> Strength:
    """Choose the strength with the lowest NLL of held-out questions.

    Args:
        model: Base model with the adapter on it; it is left at the chosen strength.
        rows: Tokenized held-out questions.
        gold: Index of the right letter, shape (N,).
        recipe: ``with_temperature`` compares each strength at its own best temperature.
    """
    weights = {name: each for name, each in model.named_parameters() if any(part in name for part in SCALED)}
    whole = {name: each.detach().clone() for name, each in weights.items()}
    found: dict[float, FloatArray] = {}

    def scores(strength: float) -> FloatArray:
        if strength not in found:
            for name, each in weights.items():
                each.data.copy_(whole[name] * strength)
            found[strength] = score(model, rows, PAD, recipe.batch_size)
        return found[strength]

    def loss(strength: float) -> float:
        return held_out_nll(scores(strength), gold, recipe.with_temperature)

    value = best_strength(loss)
    after = _cross_fitted(found, gold, recipe)
    for name, each in weights.items():
        each.data.copy_(whole[name] * value)
    return Strength(value, scores(1.0), after)


def best_strength(loss: Callable[[float], float]) -> float:
    """Return the strength with the lowest loss, to two places: of a grid, then of the values around its best.

    Example:
        >>> best_strength(lambda strength: (strength - 0.58) ** 2)
        0.58
    """
    seen: dict[float, float] = {}

    def at(strength: float) -> float:
        strength = round(round(strength / STEP) * STEP, 6)
        if strength not in seen:
            seen[strength] = loss(strength)
            logger.info("strength %g: NLL %.4f", strength, seen[strength])
        return seen[strength]

    grid = np.linspace(0, 1, GRID)
    best = float(min(grid, key=at))
    width = 1 / (GRID - 1)
    bounds = max(best - width, 0.0), min(best + width, 1.0)
    minimize_scalar(at, bounds=bounds, method="bounded", options={"xatol": STEP})
    return min(seen, key=lambda strength: seen[strength])


def held_out_nll(scores: FloatArray, gold: IntArray, with_temperature: bool) -> float:
    """Return the NLL of letter log-likelihoods, at their best temperature where asked."""
    temperature = fit_temperature(scores, gold).value if with_temperature else 1.0
    return nll(letter_log_softmax(scores, temperature), gold)


def _cross_fitted(found: dict[float, FloatArray], gold: IntArray, recipe: Recipe) -> FloatArray:
    """Score each part of the questions at the strength that is best for the others."""
    after = next(iter(found.values())).copy()
    for inside in parts(len(gold), recipe.seed):
        others = ~inside if (~inside).any() else inside
        losses = {s: held_out_nll(each[others], gold[others], recipe.with_temperature) for s, each in found.items()}
        after[inside] = found[min(losses, key=lambda strength: losses[strength])][inside]
    return after


def write_scaled(artifact: Artifact, strength: float, folder: Path) -> None:
    """Write an adapter with its weights scaled; its configuration stays as it is, so that every program reads it."""
    import shutil

    from safetensors.torch import load_file, save_file

    source = Path(artifact)
    weights = load_file(source / WEIGHTS)
    scaled = {name: each * strength if any(part in name for part in SCALED) else each for name, each in weights.items()}
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / WEIGHTS) as path:
        save_file(scaled, path, metadata={"format": "pt"})
    shutil.copyfile(source / "adapter_config.json", folder / "adapter_config.json")
