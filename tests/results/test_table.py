"""The text that rescore and eval print."""

import pytest

from calibtune.results.table import numbers_table

ECE = {
    "conf_ece_10": 0.0582,
    "conf_ece_10_low": 0.0401,
    "conf_ece_10_high": 0.0751,
    "conf_ece_10_floor": 0.0211,
    "conf_ece_10_floor_95": 0.0312,
    "conf_ece_10_excess": 0.0371,
    "conf_ece_10_p": 1 / 1001,
    "conf_ece_10_debiased": 0.0423,
}


@pytest.mark.parametrize("pipeline", ["", ",scaled"])
def test_an_ece_stands_beside_its_floor(pipeline):
    numbers = {name + pipeline: value for name, value in {"acc": 0.5, **ECE, "nll_calibration": -0.001}.items()}
    lines = numbers_table("t: 64 questions", numbers).splitlines()
    blank = " " * len(pipeline)
    assert lines == [
        "t: 64 questions",
        f"  acc{pipeline}                0.5000",
        f"  nll_calibration{pipeline}   -0.0010",
        f"               {blank} value  95% interval       floor  to 95%   excess  debiased  calibrated?",
        f"  conf_ece_10{pipeline}  0.0582  [0.0401, 0.0751]  0.0211  0.0312  +0.0371    0.0423  no, p < .001",
    ]


def test_a_model_that_cannot_be_told_from_calibrated_may_be():
    assert numbers_table("t", ECE | {"conf_ece_10_p": 0.312}).endswith("  maybe, p = .312")


def test_a_range_of_unseen_letters_stands_below_its_ece():
    lines = numbers_table("t", ECE | {"conf_ece_10_least": 0.05, "conf_ece_10_most": 0.07}).splitlines()
    assert lines[-1] == "               0.0500 to 0.0700 by unseen letters"


def test_names_that_end_like_columns_are_metrics_of_their_own():
    assert numbers_table("t", {"my_low": 0.25, "p": 1.0}).splitlines() == [
        "t",
        "  my_low    0.2500",
        "  p         1.0000",
    ]
