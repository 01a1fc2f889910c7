"""Coverage of the 95 % intervals of ECEs and of their paired differences, by simulation.

    OMP_NUM_THREADS=1 python tests/benchmarks/interval_coverage.py run --draws 1000 --seed 0
    python tests/benchmarks/interval_coverage.py table

`run` prints each cell and writes the JSON (20 minutes on one core); `table` writes docs/interval-coverage.md from it. A
draw asks N questions of four options. Right answers are drawn from chances p, and every model shows its probabilities
of the same questions. The true ECE is the population's binned ECE: labels are replaced by their chances, over
POPULATION questions. The earlier intervals stand beside the present ones.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.sparse import csr_matrix

from harness_ext.binning import bin_index
from harness_ext.calibration import BinGaps, classwise_gaps, confidence_gaps, top
from harness_ext.debiasing import draw_noise, resampling_covariance
from harness_ext.intervals import Interval, basic_interval, ece_difference_interval, ece_interval

ROOT = Path(__file__).resolve().parents[2]
JSON = ROOT / "tests/benchmarks/results/interval-coverage.json"
TABLE = ROOT / "docs/interval-coverage.md"
LETTERS, POPULATION = 4, 1_000_000
#: Draws of an interval's noise and resamples of the earlier one; fewer than the defaults, for speed.
NOISE, RESAMPLES = 500, 200
SIZES = (100, 500, 2000)
GAPS = {"conf": confidence_gaps, "cw": classwise_gaps}
METRICS = tuple((kind, bins) for kind in GAPS for bins in (10, 14))
GENERATORS = {
    "dirichlet": "p from a Dirichlet(1, 1, 1, 1)",
    "softmax": "p = softmax(2 z), z four standard normals",
}
#: One temperature: the model shows p^(1/T), normalized. T below 1 is overconfident.
TEMPERATURES = {"calibrated": 1.0, "T .8": 0.8, "T .4": 0.4, "T 1.25": 1.25}
HALF_A, HALF_B, BLIND, MATCHED = "T .5 on one half", "T .5 on the other half", "uniform on one half", "T of equal ECE"
PAIRS = [(a, b) for i, a in enumerate(TEMPERATURES) for b in list(TEMPERATURES)[i + 1 :]]
#: Two models of one population ECE that are not the same.
EQUAL = [("calibrated", BLIND), (HALF_A, HALF_B), ("T .8", MATCHED)]


class Model(NamedTuple):
    """What a model shows, and how often each letter is right given that; both of shape (N, 4)."""

    shown: np.ndarray
    chance: np.ndarray


def chances(rng, rows, generator):
    """Draw the letters' chances of each question, and its half."""
    if generator == "dirichlet":
        chance = rng.dirichlet(np.ones(LETTERS), rows)
    else:
        chance = np.exp(2 * rng.standard_normal((rows, LETTERS)))
        chance /= chance.sum(axis=1, keepdims=True)
    return chance, rng.random(rows) < 0.5


def tempered(chance, temperature):
    shown = chance ** (1 / np.asarray(temperature))
    return shown / shown.sum(axis=1, keepdims=True)


def models(chance, half):
    """Every model but the matched one, whose temperature depends on the ECE."""
    made = {name: Model(tempered(chance, t), chance) for name, t in TEMPERATURES.items()}
    for name, own in ((HALF_A, half), (HALF_B, ~half)):
        made[name] = Model(tempered(chance, np.where(own, 0.5, 1.0)[:, None]), chance)
    # A uniform guess is calibrated: all letters are right equally often.
    blind = np.where(half[:, None], 1 / LETTERS, chance)
    return made | {BLIND: Model(blind, blind)}


def true_ece(model, kind, bins):
    shown, chance = model
    if kind == "conf":
        confidence, predicted = top(shown)
        gap = chance[np.arange(len(chance)), predicted] - confidence
        return float(np.abs(np.bincount(bin_index(confidence, bins), gap, bins)).sum() / len(chance))
    gap = chance - shown
    sums = [np.abs(np.bincount(bin_index(shown[:, j], bins), gap[:, j], bins)).sum() for j in range(LETTERS)]
    return float(np.mean(sums) / len(chance))


def population(generator):
    """The true ECEs by metric and model, and by metric the temperature above 1 whose ECE is that of T .8."""
    chance, half = chances(np.random.default_rng(2024), POPULATION, generator)
    made, few = models(chance, half), chance[: POPULATION // 5]
    truth, matched = {}, {}
    for metric in METRICS:
        truth[metric] = {name: true_ece(model, *metric) for name, model in made.items()}
        # The two halves are exchangeable, so that these two differ by the population's own noise alone.
        truth[metric][HALF_B] = truth[metric][HALF_A]
        wanted = true_ece(Model(tempered(few, TEMPERATURES["T .8"]), few), *metric)
        matched[metric] = brentq(lambda t: true_ece(Model(tempered(few, t), few), *metric) - wanted, 1.05, 3)  # noqa: B023
        truth[metric][MATCHED] = true_ece(Model(tempered(chance, matched[metric]), chance), *metric)
    return truth, matched


def earlier_single(gaps: BinGaps) -> Interval:
    """The interval that `ece_interval` gave before: Fang & Santos 2019."""
    sums, estimate, rows = gaps.sums(), gaps.ece(), len(gaps.cell)
    covariance = resampling_covariance(gaps, sums)
    clear = np.abs(sums) > np.sqrt(np.log(rows) * np.diag(covariance))
    noise = draw_noise(covariance, NOISE, 0)
    signed = noise * np.sign(sums)
    down = np.quantile(np.where(clear, signed, np.abs(noise)) @ gaps.weight, 0.975)
    up = np.quantile(signed @ gaps.weight, 0.975)
    return Interval(estimate, max(0.0, estimate - max(0.0, down)), min(1.0, estimate + max(0.0, up)))


def resampled_eces(gaps: BinGaps, counts: np.ndarray) -> np.ndarray:
    """The ECE of each resample; counts have shape (N, resamples)."""
    rows, width = gaps.cell.shape
    place = (gaps.cell.ravel(), np.repeat(np.arange(rows), width))
    return gaps.weight @ np.abs(csr_matrix((gaps.gap.ravel(), place), shape=(len(gaps.weight), rows)) @ counts)


class Tally:
    """How often an interval held the truth, how wide it was and how often it excluded 0."""

    def __init__(self):
        self.seen = []

    def add(self, found, truth):
        self.seen.append((found.low <= truth <= found.high, found.high - found.low, found.low > 0 or found.high < 0))

    def numbers(self):
        return dict(zip(("coverage", "width", "clear"), np.mean(self.seen, axis=0).round(5).tolist(), strict=True))


def simulate(generator, rows, metrics, draws, seed, truth, matched):
    """Yield the numbers of each model and pair."""
    rng = np.random.default_rng([seed, rows, list(GENERATORS).index(generator)])
    tallies = {}
    for _ in range(draws):
        chance, half = chances(rng, rows, generator)
        gold = (chance.cumsum(axis=1) > rng.random((rows, 1))).argmax(axis=1)
        shown = {name: model.shown for name, model in models(chance, half).items()}
        counts = rng.multinomial(rows, np.full(rows, 1 / rows), RESAMPLES).T.astype(float)
        for metric in metrics:
            kind, bins = metric
            every = shown | {MATCHED: tempered(chance, matched[metric])}
            gaps = {name: GAPS[kind](probs, gold, bins) for name, probs in every.items()}
            again = {name: resampled_eces(one, counts) for name, one in gaps.items()}
            true = truth[metric]
            for name, one in gaps.items():
                now, before = tallies.setdefault((metric, name), (Tally(), Tally()))
                now.add(ece_interval(one, draws=NOISE), true[name])
                before.add(earlier_single(one), true[name])
            for a, b in PAIRS + EQUAL:
                now, before = tallies.setdefault((metric, (a, b)), (Tally(), Tally()))
                found = ece_difference_interval(gaps[a], gaps[b], draws=NOISE)
                now.add(found, true[b] - true[a])
                before.add(basic_interval(found.estimate, again[b] - again[a]), true[b] - true[a])
    for ((kind, bins), name), (now, before) in tallies.items():
        single = isinstance(name, str)
        true = truth[kind, bins][name] if single else truth[kind, bins][name[1]] - truth[kind, bins][name[0]]
        cell = {"generator": generator, "rows": rows, "ece": kind, "bins": bins, "of": name if single else list(name)}
        yield cell | {"truth": round(true, 5), **now.numbers(), "before": before.numbers()}


def run(args):
    cells = []
    for generator in GENERATORS:
        truth, matched = population(generator)
        for rows in SIZES:
            for cell in simulate(generator, rows, METRICS, args.draws, args.seed, truth, matched):
                cells.append(cell)
                print(json.dumps(cell), flush=True)
    head = {"draws": args.draws, "seed": args.seed, "letters": LETTERS, "generators": GENERATORS}
    lines = ",\n".join(json.dumps(cell) for cell in cells)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(f'{json.dumps(head)[:-1]}, "cells": [\n{lines}\n]}}\n')


def share(value):
    return f"{value:.3f}".replace("0.", ".", 1)


def lines_of(head, rows):
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]


def summary(cells):
    """Lowest coverage and mean width by ECE and N, now and before."""
    rows = []
    for what, kind in (("one model", str), ("a pair", list)):
        for ece in GAPS:
            for size in SIZES:
                own = [c for c in cells if isinstance(c["of"], kind) and (c["ece"], c["rows"]) == (ece, size)]
                sides = own, [c["before"] for c in own]
                lowest = [share(min(c["coverage"] for c in side)) for side in sides]
                width = [share(np.mean([c["width"] for c in side])) for side in sides]
                rows.append([what, f"{ece}-ECE", f"{size:,}", lowest[0], width[0], lowest[1], width[1]])
    return lines_of(["of", "ECE", "N", "lowest coverage", "mean width", "earlier: lowest", "earlier: width"], rows)


def marked(cells):
    """How often a pair of equal ECE is marked clear, now and before."""
    rows = []
    for a, b in EQUAL:
        for size in SIZES:
            own = [c for c in cells if c["of"] == [a, b] and c["rows"] == size]
            most = [max(c["clear"] for c in side) for side in (own, [c["before"] for c in own])]
            rows.append([f"{b}, against {a}", f"{size:,}", *map(share, most)])
    return lines_of(["pair", "N", "marked clear, at most", "earlier"], rows)


def detail(cells, names):
    """Coverage, mean width and share excluding 0 of each model or pair."""
    rows = []
    for name in names:
        for size in SIZES:
            texts = []
            for ece, bins in METRICS:
                wanted = (name if isinstance(name, str) else list(name), size, ece, bins)
                (c,) = [c for c in cells if (c["of"], c["rows"], c["ece"], c["bins"]) == wanted]
                texts.append(f"{share(c['coverage'])}, {share(c['width'])}, {share(c['clear'])}")
            rows.append([name if isinstance(name, str) else f"{name[1]}, against {name[0]}", f"{size:,}", *texts])
    return lines_of(["of", "N", *(f"{ece}-ECE, {bins} bins" for ece, bins in METRICS)], rows)


def markdown(found):
    """The page of the docs, from the JSON alone."""
    cells, draws = found["cells"], found["draws"]
    noise = 100 * np.sqrt(0.95 * 0.05 / draws)
    text = [
        "# Coverage of the ECE intervals",
        "",
        f"Written by `tests/benchmarks/interval_coverage.py table` from `{JSON.relative_to(ROOT)}`.",
        "",
        f"Nominal coverage is .95. Each cell has {draws:,} draws (seed {found['seed']}), so .95 is measured to within "
        f"{noise:.1f} points (one standard error). "
        f"Each draw asks N questions of {found['letters']} options. Right answers are drawn from chances p, which come "
        "from one of two generators:",
        "",
        *(f"- {name}: {said}" for name, said in found["generators"].items()),
        "",
        "A model with temperature T shows p^(1/T), normalized: T below 1 is overconfident, T above 1 underconfident. "
        "Models of a pair answer the same questions. The truth is the population's binned ECE, with the same bins. "
        "The interval of b - a mirrors that of a - b, so each pair stands for both orders.",
        "",
        "The intervals are conservative: they allow for the largest bias that may be left. For cw-ECE most cells "
        "cover far more than .95.",
        "",
        "## Lowest coverage",
        "",
        "Over models or pairs, generators, and 10 and 14 bins. Earlier intervals: Fang & Santos's bootstrap of one "
        "ECE, the basic bootstrap of a difference.",
        "",
        *summary(cells),
        "",
        "## Pairs of equal ECE",
        "",
        "How often the report marks them clear, the largest of the cells of each N.",
        "",
        *marked(cells),
    ]
    for title, names in (("One model", [*TEMPERATURES, HALF_A, BLIND, MATCHED]), ("Pairs", PAIRS + EQUAL)):
        text += ["", f"## {title}", "", "Coverage, mean width, share of intervals that exclude 0."]
        for generator in found["generators"]:
            own = [c for c in cells if c["generator"] == generator]
            text += ["", f"### {title}: {generator}", "", *detail(own, names)]
    prose = [line if line.startswith(("|", "#")) else textwrap.fill(line, 100) for line in text]
    return "\n".join(prose) + "\n"


def table(args):
    args.output.write_text(markdown(json.loads(args.json.read_text())))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "table"])
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=JSON)
    parser.add_argument("--output", type=Path, default=TABLE, help="where the table goes")
    args = parser.parse_args()
    {"run": run, "table": table}[args.command](args)


if __name__ == "__main__":
    main()
