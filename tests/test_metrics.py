"""The public metrics: the harness's own numbers, whatever the arrays' precision, and clear refusals."""

import numpy as np
import pytest

from calibtune import metrics
from calibtune.results.measures import further_measures, harness_measures
from harness_ext import calibration
from harness_ext.errors import UserError

OF_PROBS = (metrics.accuracy, metrics.brier, metrics.conf_ece, metrics.cw_ece)
OF_LOG_PROBS = (metrics.nll, metrics.summary, metrics.floors, metrics.refinement)


def answers(rows=200, letters=5, seed=0, ragged=True):
    """Letter log-probabilities of a model that says other things too, and right answers."""
    rng = np.random.default_rng(seed)
    count = rng.integers(2, letters + 1, rows) if ragged else np.full(rows, letters)
    log_probs = np.log(rng.dirichlet(np.ones(letters + 1), rows)[:, :letters])
    log_probs[np.arange(letters) >= count[:, None]] = np.nan
    return log_probs, rng.integers(0, count)


@pytest.mark.parametrize("ragged", [False, True])
def test_the_numbers_are_the_harnesss(ragged):
    log_probs, labels = answers(ragged=ragged)
    probs = metrics.letter_probs(log_probs)
    found = metrics.summary(log_probs, labels)
    assert found == harness_measures(log_probs, labels)
    assert metrics.nll(log_probs, labels) == found["nll"]
    assert metrics.accuracy(probs, labels) == found["acc"]
    assert metrics.brier(probs, labels) == found["brier"]
    assert metrics.conf_ece(probs, labels) == found["conf_ece_10"]
    assert metrics.cw_ece(probs, labels, bins=14) == found["cw_ece_14"]
    assert metrics.conf_ece(probs, labels, 7, edge="right") == calibration.conf_ece(probs, labels, 7, "right")
    options = {"temperature": 1.7, "edge": "right", "bins": (8,)}
    assert metrics.summary(log_probs, labels, **options) == harness_measures(log_probs, labels, **options)
    further = further_measures(log_probs, labels)
    assert metrics.summary(log_probs, labels, further=True) == {**found, **further}


def test_floors_and_refinement_are_those_of_the_summary_with_its_bins_and_edge():
    log_probs, labels = answers(ragged=False, letters=4)
    log_probs[::9] = np.log([0.5, 0.25, 0.125, 0.125])  # on edges of eight bins
    options = {"bins": (8,), "edge": "right"}
    found = metrics.summary(log_probs, labels, **options, further=True)
    floors, refinement = metrics.floors(log_probs, labels, **options), metrics.refinement(log_probs, labels)
    assert len(floors) == 10
    assert floors.items() <= found.items()
    assert refinement.items() <= found.items()
    assert floors != metrics.floors(log_probs, labels, bins=(8,))
    assert found["conf_ece_8_floor"] + found["conf_ece_8_excess"] == pytest.approx(found["conf_ece_8"])
    assert found["nll_refined"] + found["nll_calibration"] == pytest.approx(found["nll"])
    scaled = metrics.floors(log_probs, labels, temperature=2.0), metrics.refinement(log_probs, labels, 2.0)
    whole = metrics.summary(log_probs, labels, temperature=2.0, further=True)
    assert scaled[0].items() <= whole.items()
    assert scaled[1].items() <= whole.items()


def test_nll_takes_log_probabilities_that_are_normalized_or_not():
    log_probs, labels = answers()
    normalized = np.log(metrics.letter_probs(log_probs))
    assert metrics.nll(normalized, labels) == pytest.approx(metrics.nll(log_probs, labels), rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_other_precisions_are_computed_in_double(dtype):
    log_probs, labels = answers()
    low = metrics.letter_probs(log_probs).astype(dtype)
    before = low.copy()
    for metric in OF_PROBS:
        assert metric(low, labels.astype(np.int32)) == metric(low.astype(np.float64), labels)
    logs = log_probs.astype(dtype)
    assert metrics.summary(logs, labels) == metrics.summary(logs.astype(np.float64), labels)
    np.testing.assert_array_equal(low, before)


def test_lists_and_tensors_are_taken():
    torch = pytest.importorskip("torch")
    probs, labels = [[0.8, 0.2], [0.3, 0.7]], [0, 0]
    for metric in OF_PROBS:
        assert metric(torch.tensor(probs, dtype=torch.float64), torch.tensor(labels)) == metric(probs, labels)


def test_a_softmax_in_single_precision_may_exceed_one():
    assert metrics.conf_ece([[1 + 1e-7, 0.0]], [0]) == 0.0


NAN = float("nan")


@pytest.mark.parametrize("metric", OF_PROBS, ids=lambda metric: metric.__name__)
@pytest.mark.parametrize(
    ("probs", "labels", "message"),
    [
        ([0.5, 0.5], [0], r"probs has shape \(2,\); give \(questions, letters\)"),
        ([[0.5, 0.5]], [[0]], "right answers"),
        ([[0.5, 0.5]], [0, 1], "right answers"),
        (np.zeros((0, 2)), [], "at least one question"),
        ([[0.5, 0.5], [1.0]], [0, 0], "probs is no array of numbers .*fill rows of fewer letters up with NaN"),
        ([["a", "b"]], [0], "probs is no array of numbers"),
        ([[0.5, NAN, 0.5]], [0], "row 0 has a NaN among its letters"),
        ([[1.0, NAN]], [0], "row 0 has fewer than two letters"),
        ([[0.5, 0.5], [0.5, 0.6]], [0, 0], "row 1 of probs sums to 1.1, not to 1"),
        ([[-0.7, -0.7]], [0], r"row 0 of probs holds -0.7, which is outside \[0, 1\]; .*letter_probs"),
        ([[0.5, float("inf")]], [0], "row 0 has an infinite score"),
        ([[0.5, 0.5]], [2], "row 0 has a right answer that is not one of its letters"),
        ([[0.5, 0.5, NAN]], [2], "row 0 has a right answer that is not one of its letters"),
        ([[0.5, 0.5]], [-1], "not one of its letters"),
        ([[0.5, 0.5]], [0.0], "row 0 has no right answer"),
        ([[0.5, 0.5]], [True], "row 0 has no right answer"),
    ],
)
def test_what_is_no_probability_or_answer_is_refused(metric, probs, labels, message):
    with pytest.raises(UserError, match=message):
        metric(probs, labels)


@pytest.mark.parametrize("metric", OF_LOG_PROBS, ids=lambda metric: metric.__name__)
@pytest.mark.parametrize(
    ("log_probs", "labels", "message"),
    [
        ([[0.4, 0.6], [1.0, 0.0]], [0, 0], r"log_probs holds probabilities .*np\.log\(probs\)"),
        ([[-1.0, NAN, -1.0]], [0], "log_probs: row 0 has a NaN among its letters"),
        ([[-1.0, -float("inf")]], [0], "log_probs: row 0 has an infinite score"),
        ([[-1.0, -1.0]], [2], "not one of its letters"),
        ([-1.0], [0], "log_probs has shape"),
    ],
)
def test_what_is_no_log_probability_or_answer_is_refused(metric, log_probs, labels, message):
    with pytest.raises(UserError, match=message):
        metric(log_probs, labels)


def test_letter_probs_refuses_too():
    for wrong in ([[0.4, 0.6]], [[-1.0, NAN]], -1.0, [["x"]]):
        with pytest.raises(UserError, match="log_probs"):
            metrics.letter_probs(wrong)
    with pytest.raises(UserError, match="temperature is 0"):
        metrics.letter_probs([[-1.0, -2.0]], temperature=0)


@pytest.mark.parametrize("bins", [0, 201, 2.5, True, "10"])
def test_numbers_of_bins_that_cannot_be_are_refused(bins):
    probs, labels = [[0.5, 0.5]], [0]
    for call in (
        lambda: metrics.conf_ece(probs, labels, bins),
        lambda: metrics.cw_ece(probs, labels, bins=bins),
        lambda: metrics.summary(np.log(probs), labels, bins=(bins,)),
        lambda: metrics.floors(np.log(probs), labels, bins=(bins,)),
    ):
        with pytest.raises(UserError, match="bins"):
            call()
