"""Compare maps of the letters' log-probabilities, fitted on few and on many questions.

    python tests/benchmarks/posthoc.py NAME=IN_SAMPLES,OUT_SAMPLES... --output FILE

Each draw takes 1,000 in-domain questions for the fit, of which 50, 200 or all are used, and measures on the others and
on those out of domain; only questions of four options are used.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.optimize import brentq, minimize
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from calibtune.api import load_samples
from calibtune.tuning.temperature import fit_temperature
from harness_ext.binning import FloatArray, IntArray
from harness_ext.calibration import conf_ece, confidence_gaps, letter_log_softmax, nll
from harness_ext.floor import ece_floors

SIZES, FITTED, DRAWS = (50, 200, 1000), 1000, 10
Map = Callable[[FloatArray], FloatArray]


def nothing(x: FloatArray, gold: IntArray) -> Map:
    """Return the log-probabilities as they are."""
    return lambda z: z


def temperature(x: FloatArray, gold: IntArray) -> Map:
    """Fit T."""
    t = fit_temperature(x, gold).value
    return lambda z: letter_log_softmax(z, t)


def _scaled(x: FloatArray, gold: IntArray, weights: int) -> Map:
    """Fit so many weights of the log-probabilities, and a bias of each letter but the first."""

    def scale(p: FloatArray, z: FloatArray) -> FloatArray:
        return letter_log_softmax(np.exp(p[:weights]) * z + np.r_[0.0, p[weights:]])

    best = minimize(lambda p: nll(scale(p, x), gold), np.zeros(weights + 3), method="BFGS").x
    return lambda z: scale(best, z)


def bias(x: FloatArray, gold: IntArray) -> Map:
    """Fit T and a bias of each letter."""
    return _scaled(x, gold, 1)


def vector(x: FloatArray, gold: IntArray) -> Map:
    """Fit vector scaling: a weight and a bias of each letter."""
    return _scaled(x, gold, 4)


def dirichlet(x: FloatArray, gold: IntArray) -> Map:
    """Fit Dirichlet calibration: a logistic regression on the log-probabilities, with scikit-learn's own penalty."""
    if len(set(gold)) < 4:
        return temperature(x, gold)
    model = LogisticRegression(max_iter=2000).fit(x, gold)
    return lambda z: model.predict_log_proba(z)


def batch(x: FloatArray, gold: IntArray) -> Map:
    """Divide out each letter's mean probability, which needs no answers; then fit T."""
    mean = np.log(np.exp(x).mean(0))
    t = fit_temperature(letter_log_softmax(x - mean), gold).value
    return lambda z: letter_log_softmax(z - mean, t)


def _of_confidence(x: FloatArray, convert: Callable[[FloatArray], FloatArray]) -> FloatArray:
    """Return log-probabilities whose highest one is converted, and the others share the rest as before."""
    p = np.exp(x)
    top = p.max(1)
    new = np.clip(convert(top), 1e-3, 1 - 1e-3)
    first = np.arange(x.shape[1]) == p.argmax(1)[:, None]
    rest = p * ((1 - new) / np.maximum(1 - top, 1e-12))[:, None]
    return np.log(np.maximum(np.where(first, new[:, None], rest), 1e-12))


def isotonic(x: FloatArray, gold: IntArray) -> Map:
    """Fit T, then isotonic regression of being right on confidence."""
    scale = temperature(x, gold)
    z = scale(x)
    model = IsotonicRegression(out_of_bounds="clip").fit(np.exp(z).max(1), z.argmax(1) == gold)
    return lambda z: _of_confidence(scale(z), model.predict)


def platt(x: FloatArray, gold: IntArray) -> Map:
    """Fit T, then a logistic regression of being right on the log-odds of confidence."""

    def odds(c: FloatArray) -> FloatArray:
        return logit(np.clip(c, 1e-9, 1 - 1e-9))[:, None]

    scale = temperature(x, gold)
    z = scale(x)
    model = LogisticRegression(C=np.inf).fit(odds(np.exp(z).max(1)), z.argmax(1) == gold)
    return lambda z: _of_confidence(scale(z), lambda c: model.predict_proba(odds(c))[:, 1])


def shift(x: FloatArray, gold: IntArray) -> Map:
    """Fit T, then a number taken from each highest log-probability, so that mean confidence is the accuracy.

    The options keep their order: the highest one stays above the next.
    """
    scale = temperature(x, gold)
    z = scale(x)
    odds, share = logit(np.clip(np.exp(z).max(1), 1e-9, 1 - 1e-9)), (z.argmax(1) == gold).mean()
    by = brentq(lambda by: expit(odds - by).mean() - np.clip(share, 0.01, 0.99), -20, 20)

    def lower(z: FloatArray) -> FloatArray:
        top, second = np.sort(z)[:, :-3:-1].T
        first = np.arange(z.shape[1]) == z.argmax(1)[:, None]
        return np.where(first, np.maximum(top - by, second + 1e-9)[:, None], z)

    return lambda z: letter_log_softmax(lower(scale(z)))


MAPS = {
    "as it is": nothing,
    "temperature": temperature,
    "T and a bias": bias,
    "vector scaling": vector,
    "Dirichlet": dirichlet,
    "no labels, then T": batch,
    "T, then isotonic": isotonic,
    "T, then Platt": platt,
    "T, then the highest one shifted": shift,
}


def measured(z: FloatArray, gold: IntArray) -> dict[str, float]:
    """Return accuracy, excess of conf-ECE over its floor, and NLL."""
    z = letter_log_softmax(z)
    gaps = confidence_gaps(np.exp(z), gold)
    return {
        "accuracy": 100 * float((z.argmax(1) == gold).mean()),
        "excess": conf_ece(np.exp(z), gold) - ece_floors(np.exp(z), [gaps])[0].mean,
        "nll": nll(z, gold),
    }


def rows(name: str, inside: tuple[FloatArray, IntArray], outside: tuple[FloatArray, IntArray]) -> list[dict]:
    """Return a row for each map, number of questions and task, with mean and standard deviation over the draws."""
    (x, gold), (far, answers) = (_four(*each) for each in (inside, outside))
    found = []
    for label, fit in MAPS.items():
        for size in SIZES if fit is not nothing else SIZES[-1:]:
            draws: dict[str, list[dict[str, float]]] = {"in": [], "out": []}
            for draw in range(DRAWS):
                order = np.random.default_rng(draw).permutation(len(gold))
                fitted, left = order[:size], order[FITTED:]
                convert = fit(x[fitted], gold[fitted])
                draws["in"].append(measured(convert(x[left]), gold[left]))
                draws["out"].append(measured(convert(far), answers))
            for task, each in draws.items():
                mean = {key: float(np.mean([d[key] for d in each])) for key in each[0]}
                spread = {f"{key}_sd": float(np.std([d[key] for d in each], ddof=1)) for key in each[0]}
                found.append({"model": name, "map": label, "fitted": size, "task": task, **mean, **spread})
    return found


def _four(x: FloatArray, gold: IntArray) -> tuple[FloatArray, IntArray]:
    kept = np.isfinite(x[:, :4]).all(1) & ~np.isfinite(x[:, 4:]).any(1)
    return letter_log_softmax(x[kept][:, :4]), gold[kept]


def main() -> None:
    """Measure all models that are given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=IN,OUT")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    found = []
    for each in args.models:
        name, _, paths = each.partition("=")
        tasks = [load_samples(path)[0] for path in paths.split(",")]
        inside, outside = ((task.log_probs, task.labels) for task in tasks)
        found += rows(name, inside, outside)
    args.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
