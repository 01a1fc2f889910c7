"""Choose what mends a model, by questions that were neither trained on nor are evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from calibtune.artifacts.manifest import Artifact, read_artifact

#: Names of the candidates, as the user reads them.
NAMES = {
    "base": "the model as it is",
    "temperature": "a temperature",
    "rcft": "an adapter (RCFT)",
    "rcft-temperature": "an adapter (RCFT) with a temperature",
}


@dataclass(frozen=True)
class Candidate:
    """Hold a way to mend a model, with its NLL on the held-out questions."""

    name: str
    #: What fit wrote; None: the model as it is.
    artifact: Path | None
    nll: float


def candidates(folder: Path, compared: str, trained: bool) -> list[Candidate]:
    """Return the candidates of a folder, all measured on the same held-out questions.

    Args:
        folder: The output folder.
        compared: Name of the temperature that was fitted on the same questions as the adapter's.
        trained: Whether there is an adapter.
    """
    temperature = read_artifact(folder / compared)
    found = [
        Candidate("base", None, temperature.before["nll"]),
        # Cross-fitted: a question's T was fitted on others.
        Candidate("temperature", folder / "temperature", temperature.after["nll"]),
    ]
    if trained:
        for name in ("rcft", "rcft-temperature"):
            found.append(Candidate(name, folder / name, read_artifact(folder / name).after["nll"]))
    return found


def best(found: Sequence[Candidate]) -> Candidate:
    """Return the candidate of the lowest NLL; the simpler one where two are equal."""
    return min(found, key=lambda candidate: candidate.nll)


def looks_calibrated(temperature: Artifact) -> bool:
    """Return whether T = 1 lies within the interval of the T that was fitted on held-out questions."""
    fitted = temperature.temperature
    return fitted is not None and fitted["low"] <= 1 <= fitted["high"]


def held_out_count(artifact: Path) -> int:
    """Return the number of an artifact's held-out questions."""
    return len(read_artifact(artifact).documents["held_out"])
