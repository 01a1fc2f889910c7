"""Write a win rate as ``winrate_<benchmark>.json``, as lm_eval's results file and as a table."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from calibtune.files import write_json
from calibtune.results.table import for_json
from calibtune.text import visible
from calibtune.winrate.rates import Rate


@dataclass(frozen=True)
class LengthControlled:
    """Hold the length-controlled win rate, or the reason why there is none."""

    win_rate: float | None
    standard_error: float | None
    #: Text for the result's note.
    said: str


@dataclass(frozen=True)
class Result:
    """Hold a model's win rate on a benchmark."""

    #: ``alpaca_eval`` or ``arena_hard``.
    benchmark: str
    model: str
    #: Name of the model that it was compared with.
    baseline: str
    rate: Rate
    #: Notes for readers: how the interval was computed, and how many pairs were left out.
    note: str
    #: Additional shares, counts and names, such as the judge's.
    further: dict[str, Any] = field(default_factory=dict)
    #: lm_eval's ``model_args``, if answers were generated.
    model_args: dict[str, Any] | None = None

    def summary(self) -> dict[str, Any]:
        """Return the content of ``winrate_<benchmark>.json``: shares, and the same in ``per_cent``.

        Undefined numbers are None.
        """
        numbers = for_json(asdict(self.rate))
        further = for_json(self.further)
        head = {"benchmark": self.benchmark, "model": self.model, "baseline": self.baseline}
        per_cent = {k: 100 * v for k, v in (numbers | further).items() if isinstance(v, float)}
        return {**head, **numbers, "note": self.note, **further, "per_cent": per_cent}

    def harness(self) -> dict[str, Any]:
        """Return the result as lm_eval's results dictionary."""
        values: dict[str, Any] = {"alias": self.benchmark}
        for name, value in self.summary().items():
            if name == "standard_error" or not isinstance(value, float):
                continue
            values[f"{'win_rate_' * (name in ('low', 'high'))}{name},none"] = value
        values["win_rate_stderr,none"] = error if math.isfinite(error := self.rate.standard_error) else "N/A"
        count = {"original": self.rate.n, "effective": self.rate.n}
        return {
            "results": {self.benchmark: values},
            "versions": {self.benchmark: 1.0},
            "n-shot": {self.benchmark: 0},
            "higher_is_better": {self.benchmark: {"win_rate": True}},
            "n-samples": {self.benchmark: count},
            "model_name": self.model,
            "config": {"model": "hf", "model_args": self.model_args or {"pretrained": self.model}},
        }


def write(result: Result, output: Path) -> None:
    """Write the results file, and replace the benchmark's ``winrate_<benchmark>.json``.

    Raises:
        WorkFailed: The folder cannot be written.
    """
    stamp = datetime.now().isoformat().replace(":", "-")
    write_json(output / f"results_{stamp}.json", result.harness())
    write_json(output / f"winrate_{result.benchmark}.json", result.summary())


def table(result: Result) -> str:
    """Return the harness's table of the result, and a sentence in per cent."""
    from lm_eval.utils import make_table

    numbers = result.summary()["per_cent"]
    error = f" (standard error {numbers['standard_error']:.2f})" if "standard_error" in numbers else ""
    return (
        f"{make_table(result.harness())}\n"
        f"{visible(result.model)} against {visible(result.baseline)}: {numbers['win_rate']:.2f} %{error}, "
        f"95 % interval [{numbers['low']:.2f}, {numbers['high']:.2f}], n = {result.rate.n}; {result.note}"
    )
