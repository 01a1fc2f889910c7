import numpy as np
import pytest
from lm_eval_files import answers

from calibtune.reporting.numbers import clear, entropy, measure
from calibtune.reporting.paired import paired_differences, scored
from calibtune.reporting.questions import Questions, match
from harness_ext import calibration, floor, intervals
from harness_ext.intervals import Interval, ece_difference_interval, paired_difference


def questions(rows=150, letters=4, keys=None, **options):
    loglikelihoods, gold = answers(rows, letters, **options)
    values = np.full((rows, letters), np.nan)
    for row, own in zip(values, loglikelihoods, strict=True):
        row[: len(own)] = own
    names = range(rows) if keys is None else keys
    return Questions(values, np.array(gold), tuple((str(name), 0, 0) for name in names), {"none": 1.0})


@pytest.mark.parametrize("ragged", [False, True])
def test_all_differences_at_once_are_the_harness_extensions_one_by_one(ragged):
    a, b = (questions(90, 5, sharpness=sharpness, ragged=ragged) for sharpness in (3.0, 1.3))
    found = paired_differences(scored(a), scored(b, 2.0), draws=200)
    logs = [calibration.letter_log_softmax(a.loglikelihoods), calibration.letter_log_softmax(b.loglikelihoods, 2.0)]
    probs = [(np.exp(each), a.gold) for each in logs]
    means = {
        "acc": (calibration.accuracy, *probs),
        "brier": (calibration.brier, *probs),
        "nll": (calibration.nll, *((each, a.gold) for each in logs)),
        "letter_mass": (calibration.letter_mass, (a.loglikelihoods,), (b.loglikelihoods,)),
    }
    expected = {name: paired_difference(*arguments, draws=200) for name, arguments in means.items()}
    for name, gaps in (("conf_ece", calibration.confidence_gaps), ("cw_ece", calibration.classwise_gaps)):
        for bins in (10, 14):
            expected[f"{name}_{bins}"] = ece_difference_interval(*(gaps(*each, bins) for each in probs))
    assert found.keys() == expected.keys()
    for name, interval in expected.items():
        assert tuple(found[name]) == pytest.approx(tuple(interval), abs=1e-12), name


def test_questions_with_two_options_among_many_do_not_count_for_absent_letters():
    # The third letter is one question's alone, where both models say the same: only the first two letters differ.
    a = questions(40, 3, ragged=True)
    b = questions(40, 3, ragged=True, sharpness=0.5)
    a.loglikelihoods[1:, 2] = b.loglikelihoods[1:, 2] = np.nan
    a.gold[:] = b.gold[:] = 0
    a.loglikelihoods[0] = b.loglikelihoods[0] = [-1.0, -2.0, -1.5]
    gaps = [scored(each).gaps["cw_ece_10"] for each in (a, b)]
    assert [each.rows.reshape(3, 10).sum(axis=1).tolist() for each in gaps] == [[40, 40, 1]] * 2
    assert [each.right.reshape(3, 10).sum(axis=1).tolist() for each in gaps] == [[40, 0, 0]] * 2
    two = [np.exp(calibration.letter_log_softmax(each.loglikelihoods))[:, :2] for each in (a, b)]
    alone = [calibration.classwise_gaps(probs, a.gold) for probs in two]
    found = paired_differences(scored(a), scored(b), draws=10)["cw_ece_10"]
    # Two letters of three, which leaves the difference two thirds of that over two letters.
    assert found.estimate == pytest.approx((alone[1].ece() - alone[0].ece()) * 2 / 3)
    assert found.low <= found.estimate <= found.high


def test_each_number_lies_in_its_interval():
    numbers = measure(questions(), 1.0, figures=False)["numbers"]
    ends = {name.removesuffix("_low") for name in numbers if name.endswith("_low")}
    assert {"acc", "nll", "brier", "letter_mass", "conf_ece_10", "cw_ece_14"} <= ends
    assert all(numbers[f"{name}_low"] <= numbers[name] <= numbers[f"{name}_high"] for name in ends)


@pytest.mark.slow
def test_intervals_of_means_cover_about_nineteen_times_in_twenty(monkeypatch):
    # What is drawn for floors and intervals of ECEs is not tested here.
    monkeypatch.setattr(floor, "DRAWS", 20)
    monkeypatch.setattr(floor, "FEWEST", 20)
    monkeypatch.setattr(intervals.ece_interval, "__defaults__", (0.95, 20, intervals.SEED))
    rng = np.random.default_rng(0)
    inside = {"nll": 0, "acc": 0}
    truth = questions(20000)
    whole = measure(truth, 1.0, figures=False)["numbers"]
    for _ in range(200):
        rows = rng.integers(20000, size=200)
        part = Questions(truth.loglikelihoods[rows], truth.gold[rows], (), {})
        numbers = measure(part, 1.0, figures=False)["numbers"]
        for name in inside:
            inside[name] += numbers[f"{name}_low"] <= whole[name] <= numbers[f"{name}_high"]
    assert all(180 <= count <= 198 for count in inside.values()), inside


def test_bins_hold_every_question_and_explain_the_ece():
    found = questions()
    entry = measure(found, 1.0, figures=True)
    bins = entry["bins"]
    assert sum(bins["count"]) == 150
    used = [i for i, count in enumerate(bins["count"]) if count]
    ece = sum(bins["count"][i] * abs(bins["accuracy"][i] - bins["confidence"][i]) for i in used) / 150
    assert ece == pytest.approx(entry["numbers"]["conf_ece_10"])
    assert all(bins["low"][i] <= bins["accuracy"][i] <= bins["high"][i] for i in used)
    classes = entry["classes"]
    gaps = [
        sum(
            n * abs(a - c) for n, a, c in zip(*(each[k] for k in ("count", "accuracy", "confidence")), strict=True) if n
        )
        for each in classes.values()
    ]
    assert sum(gaps) / 150 / 4 == pytest.approx(entry["numbers"]["cw_ece_10"])


def test_coverage_ends_at_the_accuracy():
    entry = measure(questions(), 1.0, figures=True)
    assert entry["coverage"]["accuracy"][-1] == pytest.approx(entry["numbers"]["acc"])


@pytest.mark.parametrize(("shares", "bits"), [([1.0, 0.0], 0.0), ([0.25] * 4, 2.0), ([0.5, 0.25, 0.25], 1.5)])
def test_entropy_in_bits(shares, bits):
    assert entropy(np.array(shares)) == bits


def test_matching_keeps_what_both_have_in_the_first_ones_order():
    a, b = questions(4, keys="wxyz"), questions(3, keys="zxq")
    mine, theirs = match(a, b)
    assert [key[0] for key in mine.keys] == [key[0] for key in theirs.keys] == ["x", "z"]
    assert mine.loglikelihoods[0].tolist() == a.loglikelihoods[1].tolist()
    assert theirs.loglikelihoods[0].tolist() == b.loglikelihoods[1].tolist()


def test_rounding_alone_is_no_difference():
    assert not clear(Interval(2e-16, 1e-16, 3e-16))["clear"]
    assert clear(Interval(0.02, 0.01, 0.03))["clear"]
    assert clear(Interval(-0.02, -0.03, -0.01))["clear"]
    assert not clear(Interval(0.02, -0.01, 0.03))["clear"]
