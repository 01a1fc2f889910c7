"""Ranges of metrics where letters are unseen, by brute force over the probabilities that they can have."""

import itertools

import numpy as np
import pytest

from harness_ext.calibration import accuracy, brier, conf_ece, cw_ece, letter_log_softmax, letter_mass, nll
from harness_ext.ranges import conf_ece_range, log_prob_ranges, metric_ranges, nll_range


def questions(rng, count, top, sharpness):
    """Letters of questions of which only the ``top`` likeliest tokens of ten are shown."""
    tokens = np.log(rng.dirichlet(np.full(10, sharpness), count))
    letters, unseen = np.full((count, 4), np.nan), np.zeros((count, 4), dtype=bool)
    for row in range(count):
        shown = np.sort(tokens[row])[::-1][:top]
        own = tokens[row, : rng.integers(2, 5)]
        bound = min(shown[-1], np.log(max(1 - np.exp(shown).sum(), 1e-12)))
        unseen[row, : len(own)] = own < shown[-1]
        letters[row, : len(own)] = np.where(own < shown[-1], bound, own)
    return letters, unseen, rng.integers(0, 2, count)


def numbers(letters, gold, temperature, edge):
    logs = letter_log_softmax(letters, temperature)
    probs = np.exp(logs)
    return {
        "acc": accuracy(probs, gold),
        "nll": nll(logs, gold),
        "brier": brier(probs, gold),
        "letter_mass": letter_mass(letters),
        "conf_ece_5": conf_ece(probs, gold, 5, edge),
        "cw_ece_5": cw_ece(probs, gold, 5, edge),
    }


def admissible(rng, letters, unseen, count):
    """Letters with probabilities of unseen ones drawn from 0 to their bounds, both ends among them."""
    places = np.argwhere(unseen)
    shares = [rng.random(len(places)) for _ in range(count)]
    shares += [rng.integers(0, 2, len(places)) for _ in range(count)]
    shares += [rng.random(len(places)) ** 20 for _ in range(count)]
    for share in shares:
        found = letters.copy()
        with np.errstate(divide="ignore"):
            found[tuple(places.T)] += np.log(np.maximum(share, 1e-250))
        yield found


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("top", [1, 3, 6, 10])
def test_no_admissible_probabilities_leave_a_range(seed, top):
    rng = np.random.default_rng([seed, top])
    letters, unseen, gold = questions(rng, int(rng.integers(1, 30)), top, rng.choice([0.1, 0.5, 3.0]))
    temperature, edge = float(rng.choice([0.5, 1.0, 3.0])), str(rng.choice(["left", "right"]))
    ranges = metric_ranges(letters, unseen, gold, temperature, (5,), edge)
    for found in admissible(rng, letters, unseen, 20):
        for name, value in numbers(found, gold, temperature, edge).items():
            low, high = ranges[name]
            if name == "letter_mass" and value > 1:
                continue  # all letters at their bounds at once, which are no probabilities
            assert low - 1e-9 <= value <= high + 1e-9, name


@pytest.mark.parametrize("seed", range(6))
def test_ranges_of_accuracy_and_nll_are_attained(seed):
    rng = np.random.default_rng(seed)
    letters, unseen, gold = questions(rng, 3, 4, 0.5)
    letters[unseen] -= 0.01  # no ties
    ranges = metric_ranges(letters, unseen, gold)
    places = np.argwhere(unseen)
    found = []
    for share in itertools.product((1e-300, 1.0 - 1e-9), repeat=len(places)):
        some = letters.copy()
        some[tuple(places.T)] += np.log(share)
        found.append(numbers(some, gold, 1.0, "left"))
    for name in ("acc", "nll"):
        low, high = ranges[name]
        values = [each[name] for each in found]
        assert min(values) == pytest.approx(low, abs=1e-6)
        assert max(values) > 200 / len(gold) if high == np.inf else max(values) == pytest.approx(high, abs=1e-6)


def test_a_range_is_one_value_where_every_letter_is_seen():
    rng = np.random.default_rng(3)
    letters, unseen, gold = questions(rng, 200, 10, 1.0)
    assert not unseen.any()
    expected = numbers(letters, gold, 1.7, "left")
    for name, (low, high) in metric_ranges(letters, unseen, gold, 1.7, (5,)).items():
        assert low == pytest.approx(high, abs=1e-12) == pytest.approx(expected[name], abs=1e-12), name


def test_a_faint_unseen_letter_hardly_widens_a_range():
    letters = np.log(np.array([[0.62, 0.31, 0.01, 1e-5]] * 100))
    unseen = np.array([[False, False, False, True]] * 100)
    gold = np.array([0] * 60 + [1] * 40)
    ranges = metric_ranges(letters, unseen, gold, bins=(10,))
    assert all(high - low < 1e-4 for low, high in ranges.values())
    assert nll_range(letters, unseen, gold) == ranges["nll"]
    assert conf_ece_range(letters, unseen, gold) == ranges["conf_ece_10"]


@pytest.mark.parametrize(
    ("name", "shown", "gold"),
    [
        ("nll", [[0.9, 0.8, 0.8]], [0]),
        ("conf_ece_10", [[0.7, 0.3]] * 11, [0] * 7 + [1] * 4),
        ("letter_mass", [[0.7, 0.31]], [0]),
    ],
)
def test_rounding_lifts_no_lower_end_above_the_upper_one(name, shown, gold):
    letters = np.column_stack([np.log(shown), np.full(len(gold), -1e3)])
    low, high = metric_ranges(letters, letters == -1e3, np.array(gold), bins=(10,))[name]
    assert low <= high == pytest.approx(low)


def test_the_nll_has_no_upper_end_where_a_right_letter_is_unseen():
    letters, unseen = np.log(np.array([[0.6, 0.2]])), np.array([[False, True]])
    low, high = metric_ranges(letters, unseen, np.array([1]))["nll"]
    assert (round(low, 4), high) == (round(-np.log(0.25), 4), np.inf)


def test_a_question_none_of_whose_letters_is_seen_can_have_any_answer():
    letters, unseen = np.log(np.full((1, 4), 0.001)), np.ones((1, 4), dtype=bool)
    low, high = log_prob_ranges(letters, unseen)
    assert np.exp(low).tolist() == [[0.0] * 4]
    assert np.exp(high) == pytest.approx(1.0)
    ranges = metric_ranges(letters, unseen, np.array([0]), bins=(10,))
    assert ranges["acc"] == (0.0, 1.0)
    assert ranges["nll"][1] == np.inf


def test_without_arguments_t_is_1_and_bins_are_10():
    letters, unseen, gold = questions(np.random.default_rng(5), 60, 3, 0.5)
    assert unseen.any()
    for found, wanted in zip(log_prob_ranges(letters, unseen), log_prob_ranges(letters, unseen, 1.0), strict=True):
        np.testing.assert_array_equal(found, wanted)
    ranges = metric_ranges(letters, unseen, gold)
    assert ranges == metric_ranges(letters, unseen, gold, 1.0, (10,))
    assert set(ranges) == {"acc", "nll", "brier", "letter_mass", "conf_ece_10", "cw_ece_10"}
    assert conf_ece_range(letters, unseen, gold) == conf_ece_range(letters, unseen, gold, 1.0, 10)
    assert conf_ece_range(letters, unseen, gold) == ranges["conf_ece_10"]
    assert conf_ece_range(letters, unseen, gold) != conf_ece_range(letters, unseen, gold, 2.0)
    letters, unseen, gold = questions(np.random.default_rng(5), 60, 10, 0.5)
    expected = conf_ece(np.exp(letter_log_softmax(letters)), gold)
    assert conf_ece_range(letters, unseen, gold) == pytest.approx((expected, expected))


def test_no_range_goes_beyond_what_its_metric_can_be():
    letters, unseen = np.log([[0.4, 0.4, 0.4, 0.4]] * 3), np.array([[True] * 4] * 3)
    ranges = metric_ranges(letters, unseen, np.zeros(3, dtype=int), bins=(1,))
    assert ranges["letter_mass"] == (0.0, 1.0)
    assert ranges["brier"][1] == 2.0
    assert ranges["conf_ece_1"] == (0.0, 1.0)


def test_the_likeliest_of_k_letters_has_at_least_a_kth():
    # None of the first question's letters is seen: it is right or wrong, with a confidence of .5 to 1. The second is
    # right with .6 and sure to be: .4 too few. Above: .5 and .4 too few; below: 1 too much and .4 too few.
    letters, unseen = np.log([[0.1, 0.1], [0.6, 0.4]]), np.array([[True, True], [False, False]])
    assert conf_ece_range(letters, unseen, np.array([0, 0]), bins=1) == pytest.approx((0.0, 0.45))
