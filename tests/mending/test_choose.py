from types import SimpleNamespace

import pytest

from calibtune.mending.choose import Candidate, best, looks_calibrated


def named(**nlls):
    return [Candidate(name.replace("_", "-"), None, nll) for name, nll in nlls.items()]


def test_the_lowest_held_out_nll_wins_and_the_simpler_of_two_equal_ones():
    assert best(named(base=1.2, temperature=1.1, adapter=1.0, adapter_temperature=1.05)).name == "adapter"
    assert best(named(base=1.1, temperature=1.1, adapter=1.1, orders=1.1)).name == "base"


@pytest.mark.parametrize(
    ("low", "high", "conf_p", "cw_p", "said"),
    [
        (0.9, 1.1, 0.5, 0.5, True),
        (1.0, 2, 0.05, 0.05, True),
        (0.2, 1.0, 1.0, 0.05, True),
        (1.001, 2, 1.0, 1.0, False),
        (0.2, 0.999, 1.0, 1.0, False),
        (0.9, 1.1, 0.0499, 1.0, False),
        (0.9, 1.1, 1.0, 0.0499, False),
    ],
)
def test_a_model_looks_calibrated_where_the_interval_of_t_holds_1_and_no_ece_is_above_its_noise(
    low, high, conf_p, cw_p, said
):
    before = {"conf_ece_10_p": conf_p, "cw_ece_10_p": cw_p}
    assert looks_calibrated(SimpleNamespace(temperature={"low": low, "high": high}, before=before)) is said
