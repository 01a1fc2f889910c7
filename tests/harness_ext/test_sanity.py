"""Values that stand for letters without a score, and ties, in samples files as in the filter."""

import numpy as np
import pytest
from lm_eval_files import answers, write_run
from sample_files import sample, write

from calibtune.__main__ import main
from harness_ext.errors import UserError
from harness_ext.letters import LetterSoftmax
from harness_ext.sanity import check_scored, count_ties


@pytest.mark.parametrize("value", [-1e10, -9999.0])
def test_a_value_that_stands_for_an_unscored_letter_is_refused(value):
    rows = np.array([[-1.0, -2.0, np.nan], [-1.0, -2.0, value], [value, -1.0, -2.0]])
    with pytest.raises(UserError, match=rf"letter C of question 1 .*{value!r}.* in 2 of 3 questions"):
        check_scored(rows)


def test_letters_that_a_model_finds_very_unlikely_are_no_such_values():
    check_scored(np.array([[-800.0, -0.1], [np.nan, -1.0]]))


@pytest.mark.parametrize("command", ["rescore", "report"])
def test_rescore_and_report_refuse_unscored_letters(tmp_path, capsys, command):
    values, gold = answers(20)
    values[3][1] = -9999.0
    folder = write_run(tmp_path / "run", {"mc_calib_arc": (values, gold)})
    words = [command, str(folder), *(["--output", str(tmp_path / "report")] if command == "report" else [])]
    assert main(words) == 2
    assert "letter B of question 3 the log-likelihood -9999.0" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["rescore", "report"])
def test_rescore_and_report_warn_of_ties_for_first_place(tmp_path, capsys, command):
    values, gold = answers(20)
    for row in (2, 5):
        best = int(np.argmax(values[row]))
        values[row][(best + 1) % 4] = values[row][best]
    folder = write_run(tmp_path / "run", {"mc_calib_arc": (values, gold)})
    words = [command, str(folder), *(["--output", str(tmp_path / "report")] if command == "report" else [])]
    assert main(words) == 0
    said = capsys.readouterr().err
    assert said.count("2 of 20 questions have letters tied for first place") == 1


def test_the_filter_warns_of_ties_once_for_raw_and_scaled(caplog):
    first, second = {"question": "first"}, {"question": "second"}
    docs = [first, first, second, second]
    for temperature in (1.0, 2.0):
        LetterSoftmax(temperature).apply([[(v, False)] for v in (-1.0, -1.0, -1.0, -2.0)], docs)
    assert caplog.text.count("1 of 2 questions have letters tied for first place") == 1


def test_ties_behind_the_first_place_are_not_counted():
    assert count_ties(np.array([[-1.0, -2.0, -2.0], [-1.0, -1.0, np.nan], [-3.0, np.nan, -3.0]])) == 2


def test_whole_responses_may_be_very_unlikely(tmp_path):
    from calibtune.results.samples import read_samples

    responses = [[["-5000.0", "False", "900", "False"]], [["-4000.5", "False", "8", "False"]]]
    rows = [sample(i, resps=responses) for i in (0, 1)]
    assert read_samples(write(tmp_path, rows, "ultrafeedback_winrate")).log_probs.min() == -5000
