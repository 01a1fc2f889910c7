"""Run the commands that mend a model, choose between what they made, and say what was gained."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibtune.artifacts.manifest import Artifact, read_artifact
from calibtune.errors import WorkFailed
from calibtune.estimate import estimate, inspect
from calibtune.evaluation.guard import guard
from calibtune.files import write_json, write_text
from calibtune.mending import plan
from calibtune.mending.choose import NAMES, Candidate, best, candidates, held_out_count, looks_calibrated
from calibtune.mending.plan import Options
from calibtune.reading import read_json
from calibtune.reporting.numbers import scaled_label
from calibtune.steps import Step, check_plan, run_step

#: Loss of win rate that is tolerated, as `eval --guard winrate` has it.
MARGIN = 0.02

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Mended:
    """Hold what was found for a model, and what is recommended."""

    #: "leave it", "temperature", "rcft" or "rcft-temperature".
    recommendation: str
    #: What was gained, and what is recommended, for a reader who knows nothing of it.
    sentences: list[str]
    #: What fit wrote; None where the model is left as it is.
    artifact: Path | None
    #: NLL of each candidate on the held-out questions.
    held_out: dict[str, float]
    #: Metrics by task, before and after.
    numbers: dict[str, dict[str, dict[str, float]]]
    #: Page of the report.
    report: Path

    def text(self) -> str:
        """Return it as Markdown."""
        rows = [f"| {NAMES[name]} | {nll:.4f} |" for name, nll in self.held_out.items()]
        table = "\n".join(["| candidate | NLL, held-out questions |", "| --- | --- |", *rows])
        return "\n\n".join([*self.sentences, table, f"[Report]({self.report.parent.name}/{self.report.name})"]) + "\n"


def mend(options: Options) -> Mended:
    """Measure a model, fit what may mend it within the budget, choose by held-out NLL, and measure again.

    Every step is a command of its own, which is printed; steps that an earlier run has done are not repeated.

    Raises:
        UserError: The output folder holds another model's run.
        WorkFailed: A command failed.
    """
    base, remarks = plan.evaluation(options, "base"), list[str]()
    if not base.done():
        _check(options, remarks)
    _run(options, base)
    _run(options, plan.fit(options, "temperature", "--method", "temperature"))
    if looks_calibrated(temperature := read_artifact(options.output / "temperature")):
        found = candidates(options.output, "temperature", trained=False)
        return _finish(options, found[0], found, [_calibrated(temperature), *remarks])
    trained = _train(options, remarks)
    found = candidates(options.output, _compared(options, trained), trained)
    chosen = _guarded(options, found, remarks)
    why = (
        "Leave it: nothing that was fitted has a lower NLL on held-out questions."
        if chosen.artifact is None
        else f"Use {NAMES[chosen.name]}: of {len(found)} candidates it has the lowest NLL on held-out questions."
    )
    return _finish(options, chosen, found, [why, *remarks])


def _calibrated(temperature: Artifact) -> str:
    fitted = temperature.temperature
    assert fitted is not None
    return (
        f"Leave it: on {fitted['questions']} held-out questions it cannot be told from calibrated (T "
        f"{fitted['temperature']:.2f}, 95 % interval {fitted['low']:.2f} to {fitted['high']:.2f})."
    )


def _check(options: Options, remarks: list[str]) -> None:
    """Run doctor, whose complaints are no reason to stop: what follows refuses what cannot be measured."""
    try:
        _run(options, plan.doctor(options))
    except WorkFailed:
        remarks.append(f"doctor has found a fault; read what it says: {plan.doctor(options)}")


def _run(options: Options, step: Step) -> None:
    check_plan([step], options.output)
    if step.done():
        logger.info("done before: %s", step.name)
        return
    logger.info("$ %s", step)
    run_step(step)


def _adapter_steps(options: Options) -> list[Step]:
    """Return the fits of an adapter and of a temperature on top of it."""
    adapter = plan.fit(options, "rcft", "--method", "rcft")
    on_top = ("--method", "temperature", "--artifact", str(adapter.output))
    return [adapter, plan.fit(options, "rcft-temperature", *on_top)]


def _train(options: Options, remarks: list[str]) -> bool:
    """Train an adapter if there is time for it, and return whether there is one."""
    steps = _adapter_steps(options)
    if not steps[0].done():
        model = inspect(options.model)
        later = [plan.evaluation(options, "rcft"), plan.pairs(options, "base"), plan.pairs(options, "rcft")]
        minutes = sum(estimate(step, model)[0] for step in [*steps, *later]) / 60
        logger.info("an adapter takes about %.0f minutes on this device; the budget is %g", minutes, options.budget)
        if minutes > options.budget:
            remarks.append(
                f"No adapter was trained: it takes about {minutes:.0f} minutes on this device, and --budget is "
                f"{options.budget:g}."
            )
            return False
    for step in steps:
        _run(options, step)
    return True


def _compared(options: Options, trained: bool) -> str:
    """Return the name of a temperature fitted on the adapter's held-out questions, which is made where it lacks."""
    if not trained or held_out_count(options.output / "temperature") == (
        count := held_out_count(options.output / "rcft")
    ):
        return "temperature"
    name = "temperature-compared"
    _run(options, plan.fit(options, name, "--method", "temperature", "--held-out", str(count)))
    return name


def _guarded(options: Options, found: Sequence[Candidate], remarks: list[str]) -> Candidate:
    """Return the best candidate, an adapter only if it did not lose the win rate on preference pairs."""
    chosen = best(found)
    if not chosen.name.startswith("rcft"):
        return chosen
    # A temperature changes no win rate: it divides the letters' log-likelihoods alone.
    before, after = plan.pairs(options, "base"), plan.pairs(options, "rcft", options.output / "rcft")
    try:
        for step in (before, after):
            _run(options, step)
    except WorkFailed:
        remarks.append("Its win rate on preference pairs could not be measured; do so before you use the adapter.")
        return chosen
    verdict = guard(before.output, after.output, MARGIN)
    remarks.append(f"On preference pairs: {verdict.sentence()}.")
    if verdict.passed:
        return chosen
    return best([candidate for candidate in found if not candidate.name.startswith("rcft")])


def _finish(options: Options, chosen: Candidate, found: Sequence[Candidate], remarks: Sequence[str]) -> Mended:
    """Measure what was chosen, write the report and the recommendation."""
    runs = {"base": options.output / "base-eval"}
    if chosen.artifact is not None:
        step = plan.evaluation(options, chosen.name, chosen.artifact)
        _run(options, step)
        runs[chosen.name] = step.output
    step = plan.report(options, runs)
    _run(options, step)
    numbers = _numbers(read_json(step.output / "results.json"), chosen.name)
    mended = Mended(
        "leave it" if chosen.artifact is None else chosen.name,
        [*_gains(options.model.name, chosen, numbers), *remarks],
        chosen.artifact,
        {candidate.name: candidate.nll for candidate in found},
        numbers,
        step.output / "report.html",
    )
    write_text(options.output / "mend.md", mended.text())
    write_json(options.output / "mend.json", _record(mended))
    return mended


def _numbers(results: dict[str, Any], label: str) -> dict[str, dict[str, dict[str, float]]]:
    """Return each task's metrics before and after, from a report's results."""
    found = {}
    for task, entry in results["tasks"].items():
        methods = entry["methods"]
        after = methods[scaled_label(methods, label)]
        found[task] = {"before": methods["base"]["numbers"], "after": after["numbers"]}
    return found


def _gains(model: str, chosen: Candidate, numbers: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """Say for each task how sure the model is and how often it is right, before and after."""
    sentences = []
    for task, entry in numbers.items():
        sure, after = (f"{100 * n['mean_confidence']:.0f} % sure" for n in (entry["before"], entry["after"]))
        right, now = (f"{100 * n['acc']:.0f} % right" for n in (entry["before"], entry["after"]))
        mended = "" if chosen.artifact is None else f"; with {NAMES[chosen.name]} {after} and {now}"
        sentences.append(f"{Path(model).name} is {sure} and {right} on {task}{mended}.")
    return sentences


def _record(mended: Mended) -> dict[str, Any]:
    values = dataclasses.asdict(mended)
    # Names, not paths: the folder can be moved.
    return {**values, "artifact": mended.artifact and mended.artifact.name, "report": "report/report.html"}
