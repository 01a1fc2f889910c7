"""Fit what calibrates best: the mean of adapters that CFT and RCFT trained, with a temperature on top."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

from calibtune.artifacts.card import model_card
from calibtune.artifacts.manifest import MANIFEST, STARTED, Artifact, read_artifact, write_manifest
from calibtune.files import write_text
from calibtune.models.loading import device
from calibtune.processes import is_first_process
from calibtune.recipe import FIELDS, Recipe, recipe_values
from calibtune.tuning.checkpoints import CHECKPOINTS
from calibtune.tuning.checks import on_cpu
from calibtune.tuning.fit import check_output, claim, fit, prepared, refuse_other
from calibtune.tuning.inputs import read_inputs
from calibtune.tuning.mean import write_mean

logger = logging.getLogger(__name__)

#: Folder of the adapter in the artifact's own.
MEAN = "adapter"
#: Methods of the adapters, by turns.
TURNS = ("rcft", "cft")


def members(recipe: Recipe) -> list[Recipe]:
    """Return the recipes of the adapters that are averaged: one held-out draw, and a seed for each pair.

    Example:
        >>> recipe = Recipe(method="auto", model="M", tasks=("mc_calib_arc",), seed=3, adapters=4)
        >>> [(each.method, each.seed, each.split_seed) for each in members(recipe)]
        [('rcft', 3, 3), ('cft', 3, 3), ('rcft', 4, 3), ('cft', 4, 3)]
    """
    return [
        _as(recipe, TURNS[i % 2], seed=recipe.seed + i // 2, split_seed=recipe.draw_seed)
        for i in range(recipe.adapters)
    ]


def _as(recipe: Recipe, method: str, **own: Any) -> Recipe:
    """Return the recipe of another method, with those options that both have."""
    shared = [name for name, item in FIELDS.items() if not item.metadata["only"] or method in item.metadata["only"]]
    return Recipe(**{**{name: getattr(recipe, name) for name in shared}, "method": method, **own})


def fit_auto(recipe: Recipe, output: Path, resume: bool = False, overwrite: bool = False) -> Artifact:
    """Train the adapters one after the other, average them, and fit a temperature on top.

    Args:
        recipe: What to do.
        output: The artifact's folder.
        resume: Go on from the last whole checkpoint there.
        overwrite: Remove what lies there.

    Returns:
        A temperature, whose adapter lies in its folder.

    Raises:
        UserError: See :func:`calibtune.tuning.fit.fit`.
        WorkFailed: See :func:`calibtune.tuning.fit.fit`.
    """
    from accelerate import PartialState

    recipe, state = prepared(recipe), PartialState(cpu=on_cpu(recipe.device))
    mean = output / MEAN
    # The questions that no adapter was trained on.
    top = _as(recipe, "temperature", artifact=str(mean))
    if resume and (mean / MANIFEST).is_file():
        refuse_other(recipe, read_artifact(mean).recipe, output)
    elif not (resume and (output / STARTED).is_file()):
        # Bad input is found before anything is removed or written.
        read_inputs(members(recipe)[0])
        if is_first_process():
            check_output(recipe, output, resume, overwrite)
        claim(top, output, resume, overwrite)
    state.wait_for_everyone()
    if not (mean / MANIFEST).is_file():
        _train(recipe, output)
    state.wait_for_everyone()
    return _whole(fit(top, output, resume=True), read_artifact(mean))


def _train(recipe: Recipe, output: Path) -> None:
    """Train the adapters and write their mean, whose numbers are known once it is measured."""
    fitted = []
    for number, member in enumerate(members(recipe), 1):
        logger.info("adapter %d of %d", number, recipe.adapters)
        fitted.append(fit(member, output / CHECKPOINTS / f"{member.method}-{member.seed}", resume=True))
    if not is_first_process():
        return
    write_mean([Path(each) for each in fitted], output / MEAN, recipe.rank, str(device(recipe.device)))
    first = fitted[0]
    artifact = dataclasses.replace(
        first,
        method=recipe.method,
        recipe=recipe_values(recipe),
        after={},
        reliability={role: bins for role, bins in first.reliability.items() if role == "before"},
        seconds=round(sum(each.seconds for each in fitted), 1),
        peak_memory_gib=max(each.peak_memory_gib or 0 for each in fitted) or None,
        folder=output / MEAN,
    )
    _write(artifact)


def _whole(top: Artifact, adapter: Artifact) -> Artifact:
    """Complete both manifests: the adapter's numbers are the temperature's before, and the whole begins at the base."""
    if top.method == "auto":
        return top
    before, after = top.reliability["before"], top.reliability["after"]
    adapter = dataclasses.replace(adapter, after=top.before, reliability={**adapter.reliability, "after": before})
    whole = dataclasses.replace(
        top,
        method="auto",
        before=adapter.before,
        reliability={**adapter.reliability, "after": after},
        seconds=round(adapter.seconds + top.seconds, 1),
    )
    if is_first_process():
        _write(adapter)
        _write(whole)
    return whole


def _write(artifact: Artifact) -> None:
    folder = Path(artifact)
    write_text(folder / "README.md", model_card(artifact))
    write_manifest(artifact, folder)
