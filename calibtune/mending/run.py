"""Run the commands that mend a model, choose between what they made, and say what was gained."""

from __future__ import annotations

import dataclasses
import logging
import math
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
from calibtune.mending.choose import NAMES, PLACES, Candidate, best, candidates, held_out_count, looks_calibrated
from calibtune.mending.plan import Options
from calibtune.reading import read_json
from calibtune.reporting.sentences import gain
from calibtune.results.measures import calibrated_p
from calibtune.steps import PLAN, Step, check_plan, run_step

#: Loss of win rate that is tolerated, as `eval --guard winrate` has it.
MARGIN = 0.02
#: How many adapters may be averaged, the best first.
COUNTS = (4, 2, 1)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Mended:
    """Hold what was found for a model, and what is recommended."""

    #: "leave it", "temperature", "adapter", "adapter-temperature", "orders" or "adapter-orders".
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
        found = candidates(options.output)
        return _finish(options, found[0], found, [_calibrated(temperature), *remarks])
    fitted, compared = _fitted(options, remarks)
    found = candidates(options.output, compared, fitted)
    left = _guarded(options, found, remarks)
    chosen = best(left)
    return _finish(options, chosen, found, [_why(options, chosen, len(left)), *_warnings(chosen), *remarks])


def _calibrated(temperature: Artifact) -> str:
    fitted = temperature.temperature
    assert fitted is not None
    return (
        f"Leave it: on {fitted['questions']} held-out questions it cannot be told from calibrated (T "
        f"{fitted['temperature']:.2f}, 95 % interval {fitted['low']:.2f} to {fitted['high']:.2f}; p-value of "
        f'"calibrated" {calibrated_p(temperature.before):.2f}).'
    )


def _why(options: Options, chosen: Candidate, count: int) -> str:
    """Say what is recommended, and what it costs where orders of the options were tried."""
    use = "Leave it" if chosen.artifact is None else f"Use {NAMES[chosen.name]}"
    said = f"{use}: of {count} candidates it has the lowest NLL on held-out questions."
    if options.orders == 1:
        return said
    if not chosen.name.endswith("orders"):
        return f"{said} A question then takes one pass of the model."
    most = "" if options.orders == "all" else f", at most {options.orders}"
    return f"{said} A question then takes as many passes of the model as it has options{most}."


def _warnings(chosen: Candidate) -> list[str]:
    """Repeat what a user should know of a temperature that is recommended, such as letters without signal."""
    fitted = None if chosen.artifact is None else read_artifact(chosen.artifact).temperature
    return [f"Mind what its fit warned of: {text}." for text in (fitted["warnings"] if fitted else [])]


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


def _fitted(options: Options, remarks: list[str]) -> tuple[list[str], str]:
    """Fit what is compared to a temperature, for which there is time.

    Returns:
        Names of the candidates, and of a temperature that was fitted on the same held-out questions.
    """
    names, compared, held_out = list[str](), "temperature", tuple[str, ...]()
    adapter = _adapter(options, remarks)
    if adapter is not None:
        _run(options, adapter)
        names += ["adapter", "adapter-temperature"]
        if (count := held_out_count(adapter.output)) != held_out_count(options.output / "temperature"):
            compared, held_out = "temperature-compared", ("--held-out", str(count))
            _run(options, plan.fit(options, compared, "--method", "temperature", *held_out))
    if options.orders != 1:
        for below in (None, *([adapter.output / "adapter"] if adapter else [])):
            _run(options, step := plan.orders(options, below, *held_out))
            names.append(step.output.name)
    return names, compared


def _adapter(options: Options, remarks: list[str]) -> Step | None:
    """Return the fit that was begun, or that of as many adapters as there is time for; None: for none."""
    if begun := read_json(options.output / PLAN).get(plan.adapter(options, 1).name):
        return plan.adapter(options, int(begun[begun.index("--adapters") + 1]))
    model = inspect(options.model)
    tried = options.orders != 1
    later = [plan.evaluation(options, "adapter-orders" if tried else "adapter")]
    later += [plan.pairs(options, "base"), plan.pairs(options, "adapter"), *[plan.orders(options, None)] * 2 * tried]
    for count in COUNTS:
        step = plan.adapter(options, count)
        minutes = sum(estimate(each, model)[0] for each in (step, *later)) / 60
        said = f"the mean of {count} adapters takes" if count > 1 else "an adapter takes"
        # Rounded up, so that what is too long for the budget does not read as if it were not.
        logger.info("%s about %d minutes on this device; the budget is %g", said, math.ceil(minutes), options.budget)
        if minutes <= options.budget:
            return step
    remarks.append(
        f"No adapter was trained: it takes about {math.ceil(minutes)} minutes on this device, and --budget is "
        f"{options.budget:g}."
    )
    return None


def _guarded(options: Options, found: Sequence[Candidate], remarks: list[str]) -> Sequence[Candidate]:
    """Return the candidates, without an adapter's if it is the best and lost the win rate on preference pairs."""
    if not best(found).name.startswith("adapter"):
        return found
    # A temperature changes no win rate: it divides the letters' log-likelihoods alone.
    before, after = plan.pairs(options, "base"), plan.pairs(options, "adapter", options.output / PLACES["adapter"])
    try:
        for step in (before, after):
            _run(options, step)
    except WorkFailed:
        remarks.append("Its win rate on preference pairs could not be measured; do so before you use the adapter.")
        return found
    verdict = guard(before.output, after.output, MARGIN)
    lost = "" if verdict.passed else ", so no adapter is recommended"
    remarks.append(f"On preference pairs: {verdict.sentence()}{lost}.")
    return [each for each in found if verdict.passed or not each.name.startswith("adapter")]


def _finish(options: Options, chosen: Candidate, found: Sequence[Candidate], remarks: Sequence[str]) -> Mended:
    """Measure what was chosen, write the report and the recommendation."""
    evaluated = [options.output / "base-eval"]
    if chosen.artifact is not None:
        step = plan.evaluation(options, chosen.name, chosen.artifact)
        _run(options, step)
        evaluated.append(step.output)
    step = plan.report(options, evaluated)
    _run(options, step)
    numbers = _numbers(read_json(step.output / "results.json"))
    mended = Mended(
        "leave it" if chosen.artifact is None else chosen.name,
        [*_gains(options.model.name, chosen, numbers), *remarks],
        chosen.artifact,
        {candidate.name: candidate.nll for candidate in found},
        numbers,
        step.output / "report.html",
    )
    write_text(options.output / "mend.md", mended.text())
    # Names, not paths: the folder can be moved.
    names = {
        "artifact": mended.artifact and mended.artifact.relative_to(options.output).as_posix(),
        "report": "report/report.html",
    }
    write_json(options.output / "mend.json", dataclasses.asdict(mended) | names)
    return mended


def _numbers(results: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Return each task's metrics before and after, from a report's results, which end with what was chosen."""
    labels = {"before": results["base"], "after": results["methods"][-1]["label"]}
    return {
        task: {when: entry["methods"][label]["numbers"] for when, label in labels.items()}
        for task, entry in results["tasks"].items()
    }


def _gains(model: str, chosen: Candidate, numbers: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """Say for each task how sure the model is and how often it is right, before and after."""
    name, fit = Path(model).name, NAMES[chosen.name]
    return [
        f"{name}: {gain(task, entry['before'], fit, None if chosen.artifact is None else entry['after'])}"
        for task, entry in numbers.items()
    ]
