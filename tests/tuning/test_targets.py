import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibtune.errors import WorkFailed
from calibtune.tuning.targets import bin_accuracies, target_probs
from harness_ext.binning import BinTable, bin_index, bin_table


def probabilities(rows, letters, seed=0):
    return np.random.default_rng(seed).dirichlet(np.ones(letters), rows)


def test_simplified_mapping_by_hand():
    # K = 3, p = (.5, .3, .2), acc = .6: gamma = ln 3 / (.3 * .4); alpha = .4 / (T + 2)
    gamma = np.log(3) / 0.12
    squashed = np.tanh(gamma * np.array([0.3, 0.2]))
    alpha = 0.4 / (squashed.sum() + 2)
    expected = [0.6, alpha * (squashed[0] + 1), alpha * (squashed[1] + 1)]
    assert target_probs(np.array([[0.5, 0.3, 0.2]]), np.array([0.6]))[0].tolist() == pytest.approx(expected)


def test_tanh_of_ln_3_is_point_eight():
    # The paper states: tanh(ln 3 / (1 - acc)) >= tanh(ln 3) = .8
    assert np.tanh(np.log(3.0)) == pytest.approx(0.8)


@given(
    st.lists(st.floats(1e-6, 1), min_size=2, max_size=26),
    st.floats(0, 1),
    st.sampled_from(["simplified", "general"]),
)
def test_targets_are_probabilities(weights, accuracy, mapping):
    p = np.array([weights]) / sum(weights)
    q = target_probs(p, np.array([accuracy]), mapping)
    assert q.sum() == pytest.approx(1)
    assert (q >= -1e-12).all()
    assert q[0, p[0].argmax()] == pytest.approx(accuracy)


@given(st.integers(2, 8), st.integers(0, 1000), st.floats(0, 1))
def test_targets_keep_the_order_above_the_accuracy_floor(letters, seed, share):
    p = probabilities(1, letters, seed)
    floor = 2 / (letters + 2)
    accuracy = floor + share * (1 - floor)
    q = target_probs(p, np.array([accuracy]))
    order = p[0].argsort()
    assert (np.diff(q[0][order]) >= -1e-12).all()


def test_top_letter_may_lose_its_rank_below_the_accuracy_floor():
    q = target_probs(np.array([[0.4, 0.39, 0.11, 0.1]]), np.array([0.1]))[0]
    assert q[0] == 0.1
    assert q[1] > q[0]
    assert q.sum() == pytest.approx(1)


def test_accuracy_one_gives_a_one_hot_target():
    assert target_probs(np.array([[0.7, 0.2, 0.1]]), np.array([1.0])).tolist() == [[1.0, 0.0, 0.0]]


def test_targets_of_saturated_probabilities_are_finite():
    p = np.array([[1.0, 1e-310, 0.0], [1.0, 0.0, 0.0]])
    q = target_probs(p, np.array([0.7, 0.7]))
    assert np.isfinite(q).all()
    assert q.sum(1).tolist() == pytest.approx([1, 1])
    assert q[1].tolist() == pytest.approx([0.7, 0.15, 0.15])


def test_absent_letters_have_nan_targets():
    q = target_probs(np.array([[0.6, 0.4, np.nan]]), np.array([0.5]))
    assert np.isnan(q[0, 2])
    assert np.nansum(q) == pytest.approx(1)


def test_mappings_differ_below_the_top_letter():
    p, accuracy = np.array([[0.6, 0.3, 0.1]]), np.array([0.5])
    simplified, general = (target_probs(p, accuracy, mapping)[0] for mapping in ("simplified", "general"))
    assert simplified[0] == general[0] == 0.5
    assert simplified[1] != pytest.approx(general[1])


def test_general_mapping_by_hand():
    # K = 3, p = (.5, .3, .2), acc = .6: alpha is .1, beta what is left of .4 in equal parts.
    squashed = np.tanh(np.log(3) / 0.12 * np.array([0.3, 0.2]))
    beta = (0.4 - 0.1 * squashed.sum()) / 2
    expected = [0.6, *(0.1 * squashed + beta)]
    assert target_probs(np.array([[0.5, 0.3, 0.2]]), np.array([0.6]), "general")[0].tolist() == pytest.approx(expected)


def test_general_mapping_takes_a_smaller_alpha_where_little_is_left():
    # acc = .9 leaves .1 for squashed parts of nearly 1 each: alpha is their share of it, beta 0.
    squashed = np.tanh(np.log(3) / (0.3 * 0.1) * np.array([0.3, 0.2]))
    found = target_probs(np.array([[0.5, 0.3, 0.2]]), np.array([0.9]), "general")[0]
    assert found.tolist() == pytest.approx([0.9, *(0.1 * squashed / squashed.sum())])


def test_empty_bin_takes_the_nearest_bins_accuracy():
    table = bin_table([0.31, 0.32, 0.75], [0, 1, 1], 10)
    assert bin_accuracies(table).tolist() == [0.5] * 6 + [1.0] * 4


def test_empty_bin_table_is_an_error():
    empty = BinTable(np.zeros(3, int), np.full(3, np.nan), np.full(3, np.nan))
    with pytest.raises(WorkFailed, match="raise --held-out"):
        bin_accuracies(empty)


def test_em_with_cross_entropy_never_raises_its_objective():
    """Paper A.5: E-step sets q from bin accuracies, M-step moves p to q; the objective falls at each iteration.

    A two-option toy: questions share a logit by group, so that the M-step is exact (p becomes the group's mean q).
    """
    rng = np.random.default_rng(0)
    groups = rng.integers(6, size=4000)
    right = rng.random(4000) < np.linspace(0.55, 0.95, 6)[groups]
    logit = rng.normal(2, 1, 6)
    previous = np.inf
    for _ in range(15):
        p = 1 / (1 + np.exp(-np.abs(logit)))
        table = bin_table(p[groups], right, 10)
        q = target_probs(np.stack([p, 1 - p], 1)[groups], bin_accuracies(table)[bin_index(p[groups], 10)])[:, 0]

        def objective(p, q=q):
            return -np.mean(q * np.log(p[groups]) + (1 - q) * np.log(1 - p[groups]))

        before = objective(p)
        mean_q = np.array([q[groups == g].mean() for g in range(6)])
        logit = np.log(mean_q / (1 - mean_q))
        after = objective(np.clip(mean_q, 1e-9, 1 - 1e-9))
        assert after <= before + 1e-12
        assert after <= previous + 1e-9
        previous = after
