"""Other libraries as oracles. Where one differs at the bins' edges, the test shows both numbers and says why."""

import calibration as uncertainty_calibration
import numpy as np
import pytest
import relplot
import scipy.stats
import sklearn.metrics
import torch
from mapie.metrics.calibration import expected_calibration_error as mapie_ece
from netcal.metrics import ECE, MCE
from torchmetrics.functional.classification import multiclass_calibration_error

from harness_ext import calibration, estimators
from harness_ext.intervals import paired_difference

LETTERS = 4


def draw_answers(probs, rng):
    return (probs.cumsum(axis=1) > rng.random((len(probs), 1))).argmax(axis=1)


def random_rows(rows=600, seed=0):
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.ones(LETTERS), rows)
    return probs**2 / (probs**2).sum(axis=1, keepdims=True), draw_answers(probs, rng)


def tied_rows(rows=600):
    rng = np.random.default_rng(1)
    kinds = np.array([[0.55, 0.25, 0.15, 0.05], [0.25] * 4, [0.85, 0.05, 0.05, 0.05], [0.35, 0.35, 0.15, 0.15]])
    probs = kinds[rng.integers(len(kinds), size=rows)]
    return probs, draw_answers(probs, rng)


def saturated_rows(rows=600):
    probs, gold = random_rows(rows, seed=2)
    # Confidences from .9 to 1 are right and confidence 1 is often wrong, so their gaps cancel in one bin.
    nearly = probs.max(axis=1) >= 0.9
    gold[nearly] = probs[nearly].argmax(axis=1)
    probs[:150] = np.eye(LETTERS)[np.arange(150) % LETTERS]
    return probs, gold


def edge_rows(rows=600):
    """Return confidences on edges, which are too low, and between edges, too high: gaps cancel in one bin."""
    rng = np.random.default_rng(3)
    edges, between = [0.3, 0.4, 0.6, 0.7, 0.9], [0.35, 0.45, 0.55, 0.65, 0.75, 0.95]
    confidence = rng.choice(edges + between, rows)
    right = rng.random(rows) < np.where(np.isin(confidence, edges), np.sqrt(confidence), confidence**2)
    probs = np.column_stack([confidence, np.outer((1 - confidence) / 3, np.ones(3))])
    return probs, np.where(right, 0, 1 + rng.integers(3, size=rows))


def ragged_rows(rows=600):
    probs, gold = random_rows(rows, seed=4)
    short = gold < LETTERS - 1
    short[::2] = False
    probs[short, -1] = np.nan
    probs[short] /= np.nansum(probs[short], axis=1, keepdims=True)
    return probs, gold


SMOOTH_ROWS = [random_rows, tied_rows, saturated_rows, ragged_rows]
ALL_ROWS = [*SMOOTH_ROWS, edge_rows]
all_rows = pytest.mark.parametrize("rows", ALL_ROWS)


def confidence_and_correctness(rows):
    """Return the confidence of each question and whether its prediction is right."""
    probs, gold = rows()
    confidence, predicted = calibration.top(probs)
    return confidence, predicted == gold


def mean_over_letters(rows, oracle):
    """Return a library's binary ECE, averaged over letters; each over the questions that have it."""
    probs, gold = rows()
    errors = []
    for letter in range(probs.shape[1]):
        has = ~np.isnan(probs[:, letter])
        errors.append(oracle(probs[has, letter], (gold[has] == letter).astype(int)))
    return np.mean(errors)


def uncertainty_calibration_ece(scores, labels):
    return uncertainty_calibration.get_ece(scores, labels, num_bins=10)


def mapie(scores, labels):
    # Its num_bins=n makes n edges, so n - 1 intervals, each (a, b].
    return mapie_ece(labels, scores, num_bins=11, split_strategy="uniform")


def netcal(scores, labels):
    return ECE(10).measure(scores, labels)


@all_rows
@pytest.mark.parametrize("oracle", [uncertainty_calibration_ece, mapie])
def test_conf_ece_with_right_edges_equals_uncertainty_calibration_and_mapie(rows, oracle):
    confidence, correct = confidence_and_correctness(rows)
    ours = calibration.conf_ece(*rows(), edge="right")
    assert ours == pytest.approx(oracle(confidence, correct.astype(int)), abs=1e-12)


@all_rows
def test_cw_ece_with_right_edges_equals_uncertainty_calibration_and_mapie(rows):
    ours = calibration.cw_ece(*rows(), edge="right")
    assert ours == pytest.approx(mean_over_letters(rows, uncertainty_calibration_ece), abs=1e-12)
    assert ours == pytest.approx(mean_over_letters(rows, mapie), abs=1e-12)


@pytest.mark.parametrize("rows", SMOOTH_ROWS)
def test_conf_ece_with_left_edges_equals_netcal(rows):
    confidence, correct = confidence_and_correctness(rows)
    # netcal refuses a matrix whose labels are all 0 or 1, so it gets the confidences.
    assert calibration.conf_ece(*rows()) == pytest.approx(netcal(confidence, correct.astype(int)), abs=1e-12)


@pytest.mark.parametrize("rows", [random_rows, saturated_rows, ragged_rows])
def test_cw_ece_with_left_edges_equals_netcal(rows):
    assert calibration.cw_ece(*rows()) == pytest.approx(mean_over_letters(rows, netcal), abs=1e-12)


def test_netcal_puts_edge_values_into_the_lower_bin():
    edges = np.linspace(0, 1, 11)
    assert edges[[3, 6, 7]].tolist() == [0.30000000000000004, 0.6000000000000001, 0.7000000000000001]
    confidence, correct = confidence_and_correctness(edge_rows)
    theirs = netcal(confidence, correct.astype(int))
    assert calibration.conf_ece(*edge_rows()) == pytest.approx(0.050833, abs=1e-6)
    assert theirs == pytest.approx(0.086167, abs=1e-6)
    assert calibration.conf_ece(*edge_rows(), edges) == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("rows", [random_rows, tied_rows, edge_rows])
def test_conf_ece_equals_torchmetrics_in_float32(rows):
    probs, gold = rows()
    theirs = multiclass_calibration_error(torch.tensor(probs), torch.tensor(gold), LETTERS, 10)
    assert calibration.conf_ece(probs, gold) == pytest.approx(float(theirs), abs=1e-6)


def test_torchmetrics_and_relplot_put_confidence_one_into_an_extra_bin():
    probs, gold = saturated_rows()
    confidence, correct = confidence_and_correctness(saturated_rows)
    torchmetrics = float(multiclass_calibration_error(torch.tensor(probs), torch.tensor(gold), LETTERS, 10))
    eleventh = np.append(np.arange(11) / 10, 1.1)
    assert calibration.conf_ece(probs, gold) == pytest.approx(0.265745, abs=1e-6)
    assert torchmetrics == pytest.approx(0.277902, abs=1e-6)
    assert calibration.conf_ece(probs, gold, eleventh) == pytest.approx(torchmetrics, abs=1e-6)
    assert relplot.metrics.binnedECE(confidence, correct * 1.0, 10) == pytest.approx(torchmetrics, abs=1e-6)


def test_relplot_puts_edge_values_into_the_lower_bin():
    assert int(0.6 / 0.1) == 5
    confidence, correct = confidence_and_correctness(edge_rows)
    assert relplot.metrics.binnedECE(confidence, correct * 1.0, 10) == pytest.approx(0.086167, abs=1e-6)


@pytest.mark.parametrize("rows", SMOOTH_ROWS)
def test_maximum_calibration_error_equals_netcal(rows):
    confidence, correct = confidence_and_correctness(rows)
    theirs = MCE(10).measure(confidence, correct.astype(int))
    assert estimators.maximum_calibration_error(confidence, correct) == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("rows", [random_rows, ragged_rows])
def test_equal_mass_and_debiased_ece_equal_uncertainty_calibration(rows):
    confidence, correct = confidence_and_correctness(rows)
    labels = correct.astype(int)
    theirs = uncertainty_calibration.get_ece_em(confidence, labels, num_bins=10)
    assert estimators.equal_mass_ece(confidence, correct) == pytest.approx(theirs, abs=1e-12)
    theirs = uncertainty_calibration.lower_bound_scaling_ce(confidence, labels, p=2, debias=True, num_bins=10)
    assert estimators.debiased_ece(confidence, correct) == pytest.approx(theirs, abs=1e-12)


def test_debiased_cw_ece_equals_the_marginal_calibration_error_of_uncertainty_calibration():
    probs, gold = random_rows()
    theirs = uncertainty_calibration.lower_bound_scaling_ce(probs, gold, p=2, debias=True, num_bins=10, mode="marginal")
    assert estimators.debiased_cw_ece(probs, gold) == pytest.approx(theirs, abs=1e-12)


def test_uneven_equal_mass_bins_differ_from_uncertainty_calibration():
    rng = np.random.default_rng(5)
    confidence = rng.uniform(0, 1, 593)
    correct = rng.random(593) < confidence
    theirs = uncertainty_calibration.get_ece_em(confidence, correct.astype(int), num_bins=10)
    # It adds the three remaining questions to its first three bins; quantiles spread them.
    assert estimators.equal_mass_ece(confidence, correct) == pytest.approx(0.033276, abs=1e-6)
    assert theirs == pytest.approx(0.031605, abs=1e-6)


@pytest.mark.parametrize("rows", [random_rows, tied_rows, edge_rows, ragged_rows])
def test_smooth_ece_equals_relplot_up_to_its_grid(rows):
    confidence, correct = confidence_and_correctness(rows)
    # Its mesh has 200 points, and its kernel ends half a unit away, too near for sigma 0.5.
    theirs = relplot.smECE(confidence, correct * 1.0)
    assert estimators.smooth_ece(confidence, correct) == pytest.approx(theirs, abs=4e-3)
    for sigma in (0.03, 0.1, 0.15):
        theirs = relplot.metrics.smECE_sigma(confidence, correct * 1.0, sigma)
        assert estimators.smooth_ece_at(confidence, correct, sigma) == pytest.approx(theirs, abs=4e-3)


def smooth_ece_by_integration(confidence, correct, sigma):
    """Compute smooth ECE by its definition: mirrored Gaussians, integrated by Simpson's rule."""
    points = np.linspace(0, 1, 1001)
    images = [confidence + 2 * turn for turn in range(-3, 4)] + [2 * turn - confidence for turn in range(-3, 4)]
    density = sum(scipy.stats.norm.pdf(points[:, None], image, sigma) for image in images)
    return scipy.integrate.simpson(np.abs(density @ (correct - confidence)), x=points) / len(confidence)


@all_rows
@pytest.mark.parametrize("sigma", [0.05, 0.2, 0.9])
def test_smooth_ece_at_equals_numerical_integration(rows, sigma):
    confidence, correct = (array[:400] for array in confidence_and_correctness(rows))
    assert estimators.smooth_ece_at(confidence, correct, sigma) == pytest.approx(
        smooth_ece_by_integration(confidence, correct, sigma), abs=1e-3
    )


def test_relplot_halves_the_weight_of_confidence_one():
    # Its mirror image leaves the end points out, so what lies on 1.0 exactly is spread at half its weight.
    rows = np.array([1.0, 0.5]), np.array([False, True])
    assert relplot.metrics.smECE_sigma(rows[0], rows[1] * 1.0, 0.05) == pytest.approx((0.5 + 0.5) / 1.5, abs=0.01)
    assert smooth_ece_by_integration(*rows, 0.05) == pytest.approx((1 + 0.5) / 2, abs=1e-6)
    assert estimators.smooth_ece_at(*rows, 0.05) == pytest.approx((1 + 0.5) / 2, abs=1e-6)
    confidence, correct = confidence_and_correctness(saturated_rows)
    assert estimators.smooth_ece(confidence, correct) == pytest.approx(0.265745, abs=1e-6)
    assert relplot.smECE(confidence, correct * 1.0) == pytest.approx(0.207818, abs=1e-6)


@all_rows
def test_nll_brier_and_auroc_equal_scikit_learn(rows):
    probs, gold = rows()
    confidence, correct = confidence_and_correctness(rows)
    absent_is_zero = np.nan_to_num(probs)
    labels = range(LETTERS)
    with np.errstate(divide="ignore"):
        finite = np.isfinite(np.log(absent_is_zero)[np.arange(len(gold)), gold])
        log_probs = np.log(probs)
    # scikit-learn clips a probability of 0; ours is infinite there.
    assert calibration.nll(log_probs[finite], gold[finite]) == pytest.approx(
        sklearn.metrics.log_loss(gold[finite], absent_is_zero[finite], labels=labels), abs=1e-12
    )
    assert calibration.brier(probs, gold) == pytest.approx(
        sklearn.metrics.brier_score_loss(gold, absent_is_zero, labels=labels, scale_by_half=False), abs=1e-12
    )
    assert estimators.auroc(confidence, correct) == pytest.approx(
        sklearn.metrics.roc_auc_score(correct, confidence), abs=1e-12
    )
    assert estimators.brier_parts(confidence, correct).score == pytest.approx(
        sklearn.metrics.brier_score_loss(correct, confidence), abs=1e-12
    )


def test_accuracy_at_coverage_equals_uncertainty_calibration():
    confidence, correct = confidence_and_correctness(random_rows)
    area, at_tenth = uncertainty_calibration.get_selective_stats(confidence, correct)
    # It counts one question more as 10 %.
    assert estimators.accuracy_at_coverage(confidence, correct, 61 / 600) == at_tenth
    shares = np.arange(1, 601) / 600
    ours = [estimators.accuracy_at_coverage(confidence, correct, share) for share in shares]
    assert np.mean(ours) == pytest.approx(area, abs=1e-12)


def test_paired_interval_equals_scipys_basic_bootstrap():
    probs, gold = random_rows()
    sharper = probs**2 / (probs**2).sum(axis=1, keepdims=True)
    ours = paired_difference(calibration.brier, (probs, gold), (sharper, gold), draws=4000)

    def difference(index):
        return calibration.brier(sharper[index], gold[index]) - calibration.brier(probs[index], gold[index])

    theirs = scipy.stats.bootstrap(
        (np.arange(len(gold)),), difference, vectorized=False, method="basic", n_resamples=4000, rng=0
    ).confidence_interval
    assert ours.estimate == pytest.approx(difference(np.arange(len(gold))))
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.06 * (theirs.high - theirs.low))


def test_paired_interval_is_basic_not_percentile_for_a_skewed_statistic():
    rows = np.random.default_rng(0).normal(0.1, 1, 60)
    nothing = np.zeros(60)

    def squared_mean(sample):
        return np.mean(sample) ** 2

    ours = paired_difference(squared_mean, (nothing,), (rows,), draws=4000)
    options = {"vectorized": False, "n_resamples": 4000, "rng": 0}
    basic, percentile = (
        scipy.stats.bootstrap((rows,), squared_mean, method=method, **options).confidence_interval
        for method in ("basic", "percentile")
    )
    assert (ours.low, ours.high) == pytest.approx((basic.low, basic.high), abs=0.06 * (basic.high - basic.low))
    assert abs(basic.low - percentile.low) > 0.2 * (basic.high - basic.low)
