"""Parts of the intervals, each by its definition; what they cover is in test_intervals.py."""

import numpy as np
import pytest

from harness_ext.calibration import BinGaps, classwise_gaps, confidence_gaps
from harness_ext.debiasing import (
    MEANS,
    TABLE,
    debias,
    debiased,
    draw_noise,
    largest_difference,
    resampling_covariance,
    side_by_side,
    standardize,
    unseen_variance,
)


def draw(rows=40, letters=3):
    rng = np.random.default_rng(0)
    return rng.dirichlet(np.ones(letters), rows), rng.integers(letters, size=rows)


@pytest.mark.parametrize("kind", [confidence_gaps, classwise_gaps])
def test_the_covariance_is_the_rows_own_without_their_mean(kind):
    gaps = kind(*draw(), 4)
    rows = np.zeros((40, len(gaps.weight)))
    for row, (cells, values) in enumerate(zip(gaps.cell, gaps.gap, strict=True)):
        np.add.at(rows[row], cells, values)
    found = resampling_covariance(gaps, gaps.sums())
    assert found == pytest.approx(np.cov(rows.T, bias=True) * 40, abs=1e-12)


def test_unseen_variance_by_hand():
    # Five rows of .9, all right: 5 + 6 * .9 + 1 of 5 + 6 + 2 are drawn, and the variance seen is 0. No row: nothing.
    # Four rows of .5, two right: the share drawn is .5 too, and nothing is added.
    gaps = BinGaps(np.zeros((9, 1), int), np.zeros((9, 1)), np.ones(3), np.array([5, 0, 4]), np.array([5, 0, 2]))
    share = 11.4 / 13
    found = unseen_variance(gaps, np.array([0.5, 0.0, 0.0]))
    assert found.tolist() == pytest.approx([5 * share * (1 - share), 0, 0])
    # One of four right at .9: the drawn share (1 + 6 * .9 + 1) / 12 has more variance than a quarter's.
    one = BinGaps(np.zeros((4, 1), int), np.zeros((4, 1)), np.ones(1), np.array([4]), np.array([1]))
    share = 7.4 / 12
    assert unseen_variance(one, np.array([1 - 3.6])) == pytest.approx(4 * (share * (1 - share) - 0.1875))


def test_one_row_alone_has_unseen_variance_too():
    one = BinGaps(np.zeros((1, 1), int), np.zeros((1, 1)), np.ones(1), np.array([1]), np.array([1]))
    share = (1 + 6 * 0.9 + 1) / 9
    assert unseen_variance(one, np.array([0.1])) == pytest.approx(share * (1 - share))


def test_standardizing_keeps_the_cells_that_vary_and_weigh():
    covariance = np.array([[4.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 9.0]])
    cells = standardize(np.array([6.0, -3.0, 5.0, 1.0]), covariance, np.array([0.5, -0.25, 1.0, 0.0]), 50_000, 1)
    assert cells.x.tolist() == [3.0, -3.0]
    assert cells.scale.tolist() == [1.0, -0.25]
    assert np.cov(cells.noise.T) == pytest.approx(np.array([[1, 0.5], [0.5, 1]]), abs=0.02)
    again = standardize(np.array([6.0, -3.0, 5.0, 1.0]), covariance, np.array([0.5, -0.25, 1.0, 0.0]), 50_000, 2)
    assert not np.array_equal(cells.noise, again.noise)


def test_noise_of_a_singular_covariance_moves_together():
    noise = draw_noise(np.array([[4.0, 2.0], [2.0, 1.0]]), 20_000, 0)
    assert noise.shape == (20_000, 2)
    assert noise[:, 0] == pytest.approx(2 * noise[:, 1], abs=1e-6)
    assert noise.mean(axis=0) == pytest.approx([0, 0], abs=0.05)
    assert noise[:, 1].std() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("cells", [0, 1, 3, 40])
def test_noise_that_is_kept_for_other_models_is_numpys_of_the_seed(cells):
    for seed in (7, [7, 1]):
        expected = np.random.default_rng(seed).standard_normal((300, cells))
        assert np.abs(draw_noise(np.eye(cells), 300, seed)) == pytest.approx(np.abs(expected), abs=1e-12)


def test_an_absolute_value_is_debiased_by_a_dip_of_three_quarters():
    assert debiased(np.array([0.0, 1.0, -2.0])) == pytest.approx(
        [-0.75, 1 - 0.75 * np.exp(-0.5), 2 - 0.75 * np.exp(-2)]
    )


def test_the_table_at_its_ends_and_its_largest_biases():
    least, most, bias, inflation = TABLE
    assert (len(MEANS), MEANS[0], MEANS[1], MEANS[-1]) == (161, 0.0, 0.05, 8.0)
    # At 0: sqrt(2 / pi) less .75 / sqrt(2). Far away there is no bias, and the noise is the noise.
    assert bias[0] == pytest.approx(np.sqrt(2 / np.pi) - 0.75 / np.sqrt(2), abs=1e-4)
    assert [least[-1], most[-1], bias[-1]] == pytest.approx([0, 0, 0], abs=1e-4)
    assert inflation[-1] == pytest.approx(1, abs=1e-4)
    assert (inflation >= 1).all()
    assert -bias.min() == pytest.approx(bias.max(), abs=0.02)


@pytest.mark.parametrize("x", [20.0, 0.0, 1.2])
def test_the_ends_of_one_cell_by_their_definition(x):
    noise = np.random.default_rng(0).standard_normal((4000, 1))
    place = int(np.argmin(np.abs(MEANS - x)))
    least, most, mean, inflation = (float(column[place]) for column in TABLE)
    half = np.quantile(np.abs(debiased(x + noise) - x - mean), 0.9) * inflation * 3
    middle = float(debiased(np.array(x))) * 3
    for sign in (1, -1):
        ends = debias(standardize(np.array([sign * x]), np.eye(1), np.array([3.0]), 4000, 0)).ends(0.9)
        assert ends == pytest.approx((middle - 3 * most - half, middle - 3 * least + half), rel=0.02)
    # A negative weight turns the interval around.
    ends = debias(standardize(np.array([x]), np.eye(1), np.array([-3.0]), 4000, 0)).ends(0.9)
    assert ends == pytest.approx((-middle + 3 * least - half, -middle + 3 * most + half), rel=0.02)


def test_the_largest_difference_is_the_sum_of_differences_with_its_noise():
    sums, weight = np.array([1.0, -2.0, 4.0, -1.0]), np.array([0.5, 0.25])
    still = largest_difference(sums, np.zeros((4, 4)), weight, 0.95, 100, 0)
    assert still == pytest.approx(0.5 * 3 + 0.25 * 1)
    # Halves that move together leave nothing; independent ones have twice the variance.
    together = np.tile(np.eye(2), (2, 2))
    assert largest_difference(sums, together, weight, 0.95, 100, 0) == pytest.approx(still)
    moved = largest_difference(sums, np.eye(4), np.array([1.0, 0.0]), 0.95, 100_000, 0)
    assert moved == pytest.approx(3 + 1.96 * np.sqrt(2), rel=0.01)


def test_each_of_three_models_has_cells_of_its_own_side_by_side():
    gaps = BinGaps(np.zeros((2, 1), int), np.zeros((2, 1)), np.ones(2), np.array([2, 0]), np.array([1, 0]))
    assert side_by_side([gaps] * 3).cell.tolist() == [[0, 2, 4]] * 2


def test_a_cell_that_weighs_in_one_of_two_sums_is_kept():
    cells = standardize(np.ones(3), np.eye(3), np.array([[1.0, 0.0], [0.0, 0.0], [0.5, 2.0]]), 10, 0)
    assert cells.x.tolist() == [1, 1]
    assert cells.scale.tolist() == [[1.0, 0.0], [0.5, 2.0]]
