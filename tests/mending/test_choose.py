from types import SimpleNamespace

import pytest

from calibtune.mending.choose import Candidate, best, looks_calibrated


def named(**nlls):
    return [Candidate(name.replace("_", "-"), None, nll) for name, nll in nlls.items()]


def test_the_lowest_held_out_nll_wins_and_the_simpler_of_two_equal_ones():
    assert best(named(base=1.2, temperature=1.1, rcft=1.0, rcft_temperature=1.05)).name == "rcft"
    assert best(named(base=1.1, temperature=1.1, rcft=1.1)).name == "base"


@pytest.mark.parametrize(
    ("low", "high", "said"), [(0.9, 1.1, True), (1.0, 2, True), (1.1, 2, False), (0.2, 0.9, False)]
)
def test_a_model_looks_calibrated_where_the_interval_of_t_holds_1(low, high, said):
    assert looks_calibrated(SimpleNamespace(temperature={"low": low, "high": high})) is said
