"""Choose what mends a model, by questions that were neither trained on nor are evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from calibtune.artifacts.manifest import Artifact, read_artifact
from calibtune.results.measures import calibrated_p
from calibtune.results.table import LEVEL

#: Names of the candidates, as the user reads them.
NAMES = {
    "base": "the model as it is",
    "temperature": "a temperature",
    "adapter": "an adapter",
    "adapter-temperature": "an adapter and a temperature",
    "orders": "several orders of the options and a temperature",
    "adapter-orders": "an adapter, several orders of the options and a temperature",
}
#: Where the output folder has what was fitted after the first temperature.
PLACES = {
    "adapter": "auto/adapter",
    "adapter-temperature": "auto",
    "orders": "orders",
    "adapter-orders": "adapter-orders",
}


@dataclass(frozen=True)
class Candidate:
    """Hold a way to mend a model, with its NLL on the held-out questions."""

    name: str
    #: What fit wrote; None: the model as it is.
    artifact: Path | None
    nll: float


def candidates(folder: Path, compared: str = "temperature", others: Sequence[str] = ()) -> list[Candidate]:
    """Return the candidates of a folder, all measured on the same held-out questions.

    Args:
        folder: The output folder.
        compared: Name of the temperature that was fitted on the same questions as the others.
        others: Names of what was fitted beside it, the simpler first.
    """
    temperature = read_artifact(folder / compared)
    # Cross-fitted: a question's T was fitted on others.
    return [
        Candidate("base", None, temperature.before["nll"]),
        Candidate("temperature", folder / "temperature", temperature.after["nll"]),
        *(Candidate(name, folder / PLACES[name], read_artifact(folder / PLACES[name]).after["nll"]) for name in others),
    ]


def best(found: Sequence[Candidate]) -> Candidate:
    """Return the candidate of the lowest NLL; the simpler one where two are equal."""
    return min(found, key=lambda candidate: candidate.nll)


def looks_calibrated(temperature: Artifact) -> bool:
    """Return whether the base of a temperature cannot be told from calibrated on the held-out questions.

    T's interval holds 1, and a calibrated model would show as much ECE: another error than T's may be large.
    """
    fitted = temperature.temperature
    assert fitted is not None
    return fitted["low"] <= 1 <= fitted["high"] and calibrated_p(temperature.before) >= LEVEL


def held_out_count(artifact: Path) -> int:
    """Return the number of an artifact's held-out questions."""
    return len(read_artifact(artifact).documents["held_out"])
