import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness_ext.binning import bin_index, bin_table, equal_mass_edges
from harness_ext.calibration import (
    accuracy,
    brier,
    classwise_gaps,
    conf_ece,
    confidence_gaps,
    cw_ece,
    letter_log_softmax,
    nll,
    top,
)
from harness_ext.estimators import (
    accuracy_at_coverage,
    auroc,
    brier_parts,
    debiased_ece,
    equal_mass_ece,
    maximum_calibration_error,
    smooth_ece,
)
from harness_ext.intervals import ece_interval

few = settings(max_examples=60, deadline=None)
bins = st.integers(1, 80)
edges = st.sampled_from(["left", "right"])


@st.composite
def questions(draw, ragged=True):
    """Log-likelihoods and right answers; ties, certainty and edge values are frequent."""
    letters = draw(st.integers(2, 6))
    values = st.one_of(
        st.sampled_from([0.0, -1.0, -1000.0, np.log(0.3), np.log(0.7), np.log(0.1)]),
        st.floats(-30, 0),
    )
    rows, gold = [], []
    for _ in range(draw(st.integers(1, 25))):
        count = draw(st.integers(2, letters)) if ragged else letters
        rows.append(draw(st.lists(values, min_size=count, max_size=count)) + [np.nan] * (letters - count))
        gold.append(draw(st.integers(0, count - 1)))
    return np.array(rows), np.array(gold)


@st.composite
def probabilities(draw, ragged=True):
    loglikelihoods, gold = draw(questions(ragged))
    return np.exp(letter_log_softmax(loglikelihoods)), gold


@st.composite
def confidences(draw):
    probs, gold = draw(probabilities())
    confidence, predicted = top(probs)
    return confidence, predicted == gold


@few
@given(questions(), st.floats(0.05, 20))
def test_probabilities_sum_to_one_at_any_temperature_and_the_order_stays(rows, temperature):
    log_probs = letter_log_softmax(rows[0], temperature)
    assert (np.isnan(log_probs) == np.isnan(rows[0])).all()
    assert np.nansum(np.exp(log_probs), axis=1) == pytest.approx(1, abs=1e-12)
    assert np.nanmax(log_probs) <= 0
    winner = top(np.exp(log_probs))[1]
    assert (rows[0][np.arange(len(winner)), winner] >= np.nanmax(rows[0], axis=1) - 1e-9).all()


@few
@given(questions(), st.floats(-50, 50))
def test_what_is_added_to_all_letters_of_a_question_changes_nothing(rows, shift):
    assert letter_log_softmax(rows[0] + shift) == pytest.approx(letter_log_softmax(rows[0]), abs=1e-9, nan_ok=True)


@few
@given(probabilities(), bins, edges)
def test_every_error_lies_in_zero_to_one(rows, count, edge):
    confidence, predicted = top(rows[0])
    correct = predicted == rows[1]
    for error in (
        conf_ece(*rows, count, edge),
        cw_ece(*rows, count, edge),
        brier(*rows) / 2,
        equal_mass_ece(confidence, correct, count),
        debiased_ece(confidence, correct, count),
        maximum_calibration_error(confidence, correct, count),
        smooth_ece(confidence, correct),
        accuracy_at_coverage(confidence, correct, 0.5),
    ):
        assert 0 <= error <= 1 + 1e-12


@few
@given(questions(), bins, edges, st.randoms(use_true_random=False))
def test_permuting_questions_changes_nothing(rows, count, edge, random):
    order = list(range(len(rows[1])))
    random.shuffle(order)
    for temperature in (1.0, 3.0):
        one, other = ((letter_log_softmax(x, temperature), y) for x, y in (rows, (rows[0][order], rows[1][order])))
        assert nll(*one) == pytest.approx(nll(*other), abs=1e-12)
        one, other = ((np.exp(x), y) for x, y in (one, other))
        for metric in (accuracy, brier):
            assert metric(*one) == pytest.approx(metric(*other), abs=1e-12)
        for metric in (conf_ece, cw_ece):
            assert metric(*one, count, edge) == pytest.approx(metric(*other, count, edge), abs=1e-12)


@few
@given(confidences(), st.randoms(use_true_random=False))
def test_permuting_questions_keeps_the_further_estimators(rows, random):
    order = list(range(len(rows[1])))
    random.shuffle(order)
    shuffled = rows[0][order], rows[1][order]
    for estimator in (equal_mass_ece, debiased_ece, maximum_calibration_error, smooth_ece, auroc):
        # The debiased error is a root: rounding of 1e-16 under it is 1e-8 above zero.
        assert estimator(*shuffled) == pytest.approx(estimator(*rows), abs=1e-7, nan_ok=True)
    for share in (0.25, 0.5, 1):
        assert accuracy_at_coverage(*shuffled, share) == pytest.approx(accuracy_at_coverage(*rows, share), abs=1e-12)


@few
@given(probabilities(ragged=False), bins, edges, st.randoms(use_true_random=False))
def test_relabeling_classes_keeps_cw_ece_brier_and_conf_ece_without_ties(rows, count, edge, random):
    probs, gold = rows
    order = list(range(probs.shape[1]))
    random.shuffle(order)
    relabeled = probs[:, order], np.argsort(order)[gold]
    assert cw_ece(*relabeled, count, edge) == pytest.approx(cw_ece(probs, gold, count, edge), abs=1e-12)
    assert brier(*relabeled) == pytest.approx(brier(probs, gold), abs=1e-12)
    if not (np.diff(np.sort(probs, axis=1)[:, -2:], axis=1) == 0).any():
        assert conf_ece(*relabeled, count, edge) == conf_ece(probs, gold, count, edge)


@few
@given(probabilities(), bins)
def test_more_bins_never_hide_what_one_bin_shows(rows, count):
    assert conf_ece(*rows, 1) <= conf_ece(*rows, count) + 1e-12
    assert conf_ece(*rows, count) <= maximum_calibration_error(*_said(rows), count) + 1e-12


def _said(rows):
    confidence, predicted = top(rows[0])
    return confidence, predicted == rows[1]


@few
@given(probabilities(), bins, edges)
def test_the_ece_is_what_its_bin_table_says(rows, count, edge):
    table = bin_table(*_said(rows), count, edge)
    share = table.count / table.count.sum()
    expected = np.nansum(share * np.abs(table.accuracy - table.confidence))
    assert conf_ece(*rows, count, edge) == pytest.approx(expected, abs=1e-12)


@few
@given(st.lists(st.floats(0, 1), min_size=1, max_size=50), bins)
def test_a_value_lies_between_the_edges_of_its_bin(values, count):
    borders = np.arange(count + 1) / count
    left, right = bin_index(values, count), bin_index(values, count, "right")
    for value, low, high in zip(values, left, right, strict=True):
        assert borders[low] <= value
        assert value < borders[low + 1] or low == count - 1
        assert value <= borders[high + 1]
        assert borders[high] < value or high == 0


@few
@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), bins)
def test_equal_mass_edges_span_the_unit_interval_and_rise(values, count):
    borders = equal_mass_edges(values, count)
    assert (borders[0], borders[-1]) == (0, 1)
    assert (np.diff(borders) > 0).all()
    assert len(borders) <= count + 1


@few
@given(confidences(), bins)
def test_the_brier_parts_add_up(rows, count):
    parts = brier_parts(*rows, count)
    assert parts.reliability - parts.resolution + parts.uncertainty + parts.within == pytest.approx(
        parts.score, abs=1e-12
    )


@few
@given(probabilities())
def test_an_interval_holds_its_estimate(rows):
    for gaps in (confidence_gaps, classwise_gaps):
        found = ece_interval(gaps(*rows), draws=100)
        assert 0 <= found.low <= found.estimate <= found.high <= 1


def calibrated(rng, rows, letters=4):
    """A model whose probabilities are those that the right answers are drawn from."""
    probs = rng.dirichlet(np.ones(letters), rows)
    return probs, (probs.cumsum(axis=1) > rng.random((rows, 1))).argmax(axis=1)


@pytest.mark.parametrize("letters", [2, 4, 8])
def test_a_calibrated_generators_errors_go_to_zero_with_the_questions(letters):
    rng = np.random.default_rng(letters)
    for error in (conf_ece, cw_ece, lambda *rows: smooth_ece(*_said(rows)), lambda *rows: debiased_ece(*_said(rows))):
        means = [np.mean([error(*calibrated(rng, rows, letters)) for _ in range(8)]) for rows in (100, 10_000)]
        # Noise falls as the root of N: to a tenth.
        assert means[1] < means[0] / 4
        assert means[1] < 0.015


def miscalibrated(probs):
    """An overconfident model's probabilities."""
    return probs**1.5 / (probs**1.5).sum(axis=1, keepdims=True)


def truth(gaps, distort):
    """The binned error of the model itself, without noise: labels replaced by their chances, a million questions."""
    probs = np.random.default_rng(99).dirichlet(np.ones(4), 1_000_000)
    shown = distort(probs)
    if gaps is confidence_gaps:
        confidence, predicted = top(shown)
        gap = probs[np.arange(len(probs)), predicted] - confidence
        index = bin_index(confidence, 10)
        return np.abs(np.bincount(index, gap, 10)).sum() / len(probs)
    sums = [np.abs(np.bincount(bin_index(shown[:, j], 10), probs[:, j] - shown[:, j], 10)).sum() for j in range(4)]
    return np.mean(sums) / len(probs)


@pytest.mark.parametrize(
    ("gaps", "rows", "at_least"),
    [
        (confidence_gaps, 64, 0.93),
        (confidence_gaps, 300, 0.93),
        (confidence_gaps, 2000, 0.93),
        (classwise_gaps, 64, 0.93),
        (classwise_gaps, 300, 0.93),
        (classwise_gaps, 2000, 0.93),
    ],
)
@pytest.mark.parametrize("distort", [lambda probs: probs, miscalibrated])
def test_the_interval_covers(gaps, rows, at_least, distort):
    true, runs = truth(gaps, distort), 200
    rng = np.random.default_rng(rows)
    covered = 0
    for _ in range(runs):
        probs, gold = calibrated(rng, rows)
        found = ece_interval(gaps(distort(probs), gold), draws=500)
        covered += found.low <= true <= found.high
    # Two standard errors of a share that is at_least.
    assert covered / runs >= at_least - 2 * np.sqrt(at_least * (1 - at_least) / runs)
