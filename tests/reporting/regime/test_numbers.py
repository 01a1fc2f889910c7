import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibtune.reporting.regime.numbers import frontier, most_accurate_calibrated, spread, theory, verdicts

shares = st.integers(0, 20).map(lambda number: number / 20)


def entry(acc, ece, floor_high=0.03, **more):
    return {"numbers": {"acc": acc, "conf_ece_10": ece, "conf_ece_10_floor_95": floor_high}, **more}


@given(st.lists(st.tuples(shares, shares), min_size=1, max_size=8))
def test_frontier_is_of_models_that_none_beats_in_both(points):
    entries = {str(number): entry(*point) for number, point in enumerate(points)}
    found = [points[int(label)] for label in frontier(entries)]
    unbeaten = {
        (acc, ece) for acc, ece in points if not any(a >= acc and e <= ece and (a, e) != (acc, ece) for a, e in points)
    }
    assert found == sorted(unbeaten)


def test_on_real_questions_models_up_to_the_most_accurate_calibrated_one_are_calibratable():
    entries = {"a": entry(0.5, 0.3), "b": entry(0.6, 0.02), "c": entry(0.55, 0.01), "d": entry(0.7, 0.04)}
    assert most_accurate_calibrated(entries) == "b"
    assert verdicts(entries) == {
        "a": "calibratable",
        "b": "calibratable",
        "c": "calibratable",
        "d": "cannot be known",
    }


def test_without_a_calibrated_model_nothing_is_known():
    entries = {"a": entry(0.5, 0.3), "b": entry(0.0, 0.2)}
    assert most_accurate_calibrated(entries) is None
    assert set(verdicts(entries).values()) == {"cannot be known"}


def test_of_equally_accurate_models_the_better_calibrated_one_is_named():
    assert most_accurate_calibrated({"a": entry(0.6, 0.02), "b": entry(0.6, 0.01)}) == "b"


@pytest.mark.parametrize(
    ("low", "high", "regime"),
    [(0.01, 0.2, "not calibratable"), (-0.2, -0.01, "calibratable"), (-0.1, 0.1, "calibratable, at acc*")],
)
def test_where_p_star_is_known_the_regime_is_by_its_own_accuracy_on_the_same_answers(low, high, regime):
    entries = {"a": entry(0.5, 0.3, theory={"above": {"low": low, "high": high}})}
    assert verdicts(entries) == {"a": regime}


def test_spread_tells_collapse_from_doubt():
    doubt = spread(np.full((10, 4), 0.25))
    assert doubt["shares"][5] == 1
    assert (doubt["top"], doubt["sure"], doubt["entropy"]) == (0.25, 0, 2)
    sure = spread(np.array([[1.0, 0.0, np.nan], [0.0, 0.0, 1.0]]))
    assert sure["shares"][0] == pytest.approx(0.6)
    assert sure["shares"][-1] == pytest.approx(0.4)
    assert (sure["top"], sure["sure"], sure["entropy"]) == (1, 1, 0)


def test_theory_holds_both_bounds_and_the_spread_of_p_star():
    p_star = np.array([[0.6, 0.4], [0.6, 0.4]])
    found = theory(np.array([[0.6, 0.4], [0.3, 0.7]]), p_star, np.array([0, 0]))
    assert found["tce"]["estimate"] == pytest.approx(0.3)
    assert found["above"]["estimate"] == -0.5
    assert (found["c"], found["lower"], found["upper"]) == pytest.approx((0.6, 0.3, 1.0))
    assert found["spread"]["top"] == 0.6
    assert found["letters"] == 2
