"""What a win-rate run leaves: ``winrate_<benchmark>.json``, lm_eval's results file, and the harness's table."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from calibtune.files import write_json
from calibtune.winrate.rates import Rate


@dataclass(frozen=True)
class Result:
    """One model's win rate on one benchmark."""

    #: ``alpaca_eval`` or ``arena_hard``.
    benchmark: str
    model: str
    #: What it was compared with.
    baseline: str
    rate: Rate
    #: What a reader must know: how intervals were taken, what was left out.
    note: str
    #: Further numbers in per cent, and names such as the judge's.
    further: dict[str, Any] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """The keys of ``winrate_<benchmark>.json``; rates in per cent, None where undefined."""
        numbers = {name: _finite(value) for name, value in asdict(self.rate).items()}
        head = {"benchmark": self.benchmark, "model": self.model, "baseline": self.baseline, "unit": "per cent"}
        return {**head, **numbers, "note": self.note, **{k: _finite(v) for k, v in self.further.items()}}

    def harness(self) -> dict[str, Any]:
        """The same as an lm_eval results dictionary, which its table and its readers take."""
        values: dict[str, Any] = {"alias": self.benchmark}
        for name, value in self.summary().items():
            if name in ("standard_error", "n") or isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            values[f"{'win_rate_' * (name in ('low', 'high'))}{name},none"] = float(value)
        values["win_rate_stderr,none"] = _finite(self.rate.standard_error, "N/A")
        count = {"original": self.rate.n, "effective": self.rate.n}
        return {
            "results": {self.benchmark: values},
            "versions": {self.benchmark: 1.0},
            "n-shot": {self.benchmark: 0},
            "higher_is_better": {self.benchmark: {"win_rate": True}},
            "n-samples": {self.benchmark: count},
            "model_name": self.model,
            "config": {"model": self.model, "baseline": self.baseline},
        }


def write(result: Result, output: Path) -> None:
    """Write the result's two files; a summary of an earlier run of this benchmark there is replaced.

    Raises:
        WorkFailed: The folder cannot be written.
    """
    stamp = datetime.now().isoformat().replace(":", "-")
    write_json(output / f"results_{stamp}.json", result.harness())
    write_json(output / f"winrate_{result.benchmark}.json", result.summary())


def table(result: Result) -> str:
    """The harness's own table of the result, and its note."""
    from lm_eval.utils import make_table

    return f"{make_table(result.harness())}\n{result.model} against {result.baseline}: {result.note}"


def _finite(value: Any, otherwise: Any = None) -> Any:
    return otherwise if isinstance(value, float) and not math.isfinite(value) else value
