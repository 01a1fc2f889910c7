import math

import numpy as np
import pytest

from harness_ext import calibration, metrics
from harness_ext.errors import UserError
from harness_ext.intervals import ece_interval
from harness_ext.letters import Letter

DOC = {"question": "Q?", "choices": ["x", "y"], "gold": 1}


def letters(*probabilities):
    return [Letter(p, math.log(p), math.log(p) - 0.5) for p in probabilities]


def test_process_results_by_hand():
    items = metrics.process_results(DOC, letters(0.3, 0.7))
    assert items["acc"] == 1.0
    assert items["nll"] == pytest.approx(-math.log(0.7))
    assert items["brier"] == pytest.approx(0.3**2 + 0.3**2)
    assert items["letter_mass"] == pytest.approx(math.exp(-0.5))
    assert items["conf_ece_10"] == items["cw_ece_14_high"] == ([0.3, 0.7], 1)


def test_the_first_letter_can_be_the_right_one():
    assert metrics.process_results({**DOC, "gold": 0}, letters(0.3, 0.7))["acc"] == 0.0


def test_tie_goes_to_the_first_letter():
    assert metrics.process_results(DOC, letters(0.5, 0.5))["acc"] == 0.0


def test_aggregations_return_ece_and_interval_of_ragged_questions():
    rng = np.random.default_rng(0)
    rows = [rng.dirichlet(np.ones(k)).tolist() for k in rng.integers(3, 6, size=200)]
    items = [(row, int(rng.integers(len(row)))) for row in rows]
    probs, gold = metrics.as_arrays(items)
    assert np.isnan(probs).sum() == 1000 - sum(map(len, rows))
    for name, gaps in (("conf_ece", calibration.confidence_gaps), ("cw_ece", calibration.classwise_gaps)):
        for bins in (10, 14):
            interval = ece_interval(gaps(probs, gold, bins))
            found = [getattr(metrics, f"{name}_{bins}{end}")(items) for end in ("", "_low", "_high")]
            assert found == [interval.estimate, interval.low, interval.high]
            assert found[1] <= found[0] <= found[2]


def test_interval_is_computed_once_for_both_ends(monkeypatch):
    items = [([0.2, 0.8], 1), ([0.6, 0.4], 0), ([0.9, 0.1], 1)]
    intervals = []
    monkeypatch.setattr(metrics, "ece_interval", lambda gaps: intervals.append(ece_interval(gaps)) or intervals[-1])
    ends = metrics.conf_ece_10_low(items), metrics.conf_ece_10_high(list(items))
    assert [(interval.low, interval.high) for interval in intervals] == [ends]


@pytest.mark.parametrize("gold", [None, -1, 2, True, "1"])
def test_invalid_answer_is_refused(gold):
    with pytest.raises(UserError, match=f"question 'Q.' has no right answer: {gold!r}"):
        metrics.process_results({**DOC, "gold": gold}, letters(0.3, 0.7))


def test_unfiltered_scores_are_refused():
    for scores in ([(-1.0, False), (-2.0, True)], [*letters(0.3), (-2.0, True)]):
        with pytest.raises(UserError, match="filter letter_softmax"):
            metrics.process_results(DOC, scores)


def test_missing_letter_is_refused():
    with pytest.raises(UserError, match="2 options"):
        metrics.process_results(DOC, letters(0.3))


def test_each_metric_has_the_bins_of_its_name():
    rng = np.random.default_rng(3)
    items = [(row.tolist(), int(rng.integers(3))) for row in rng.dirichlet(np.ones(3), size=60)]
    probs, gold = metrics.as_arrays(items)
    for bins in (10, 14):
        for name in ("conf_ece", "cw_ece"):
            assert getattr(metrics, f"{name}_{bins}")(items) == getattr(calibration, name)(probs, gold, bins)
