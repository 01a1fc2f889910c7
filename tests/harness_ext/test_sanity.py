"""Values that stand for letters without a score, and ties, in samples files as in the filter."""

import numpy as np
import pytest
from lm_eval_files import answers, write_run
from sample_files import sample, write

from calibtune.__main__ import main
from harness_ext.errors import UserError
from harness_ext.letters import LetterSoftmax
from harness_ext.sanity import check_scored, check_told_apart, count_ties, is_unseen


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


@pytest.mark.parametrize(("temperature", "warnings"), [(1.0, 1), (2.0, 0)])
def test_the_filter_warns_of_ties_where_it_is_raw_and_leaves_it_to_that_one_where_it_is_scaled(
    caplog, temperature, warnings
):
    first, second = {"question": "first"}, {"question": "second"}
    docs = [first, first, second, second]
    LetterSoftmax(temperature).apply([[(v, False)] for v in (-1.0, -1.0, -1.0, -2.0)], docs)
    assert caplog.text.count("1 of 2 questions have letters tied for first place") == warnings


def test_ties_behind_the_first_place_are_not_counted():
    assert count_ties(np.array([[-1.0, -2.0, -2.0], [-1.0, -1.0, np.nan], [-3.0, np.nan, -3.0]])) == 2


def test_whole_responses_may_be_very_unlikely(tmp_path):
    from calibtune.results.samples import read_samples

    responses = [[["-5000.0", "False", "900", "False"]], [["-4000.5", "False", "8", "False"]]]
    rows = [sample(i, resps=responses) for i in (0, 1)]
    assert read_samples(write(tmp_path, rows, "ultrafeedback_winrate")).log_probs.min() == -5000


def test_minus_a_thousand_is_the_lowest_score():
    check_scored(np.array([[-1000.0, -1.0]]))
    with pytest.raises(UserError, match="letter A of question 0"):
        check_scored(np.array([[-1000.5, -1.0]]))


def check_shown(rows):
    """Check letters that a server showed."""
    check_told_apart(rows, np.zeros(np.shape(rows), dtype=bool))


def test_letters_alike_in_every_question_are_refused_and_absent_ones_left_out():
    rows = np.array([[-1.0, -1.0, np.nan], [-2.0, -2.0, -2.0]])
    with pytest.raises(UserError, match=r"all letters of each of the 2 questions .*question 0: -1.0"):
        check_shown(rows)
    rows[0, 1] = -3.0
    check_shown(rows)


def test_two_letters_alike_in_ten_questions_are_refused_and_in_nine_they_are_not():
    rows = np.column_stack([-np.arange(1.0, 11), np.full(10, -3.5), np.full(10, -3.5)])
    check_shown(rows[:9])
    with pytest.raises(UserError, match="letters B and C have the same log-likelihood in all 10 questions"):
        check_shown(rows)
    with pytest.raises(UserError, match="letters A and B have the same log-likelihood in all 10 questions"):
        check_shown(rows[:, [1, 2, 0]])
    # Questions without the second letter do not count.
    with pytest.raises(UserError, match="letters B and C have the same log-likelihood in all 10 questions"):
        check_shown(np.vstack([rows, [[-1.0, -2.0, np.nan]]]))
    check_shown(np.vstack([rows[:9], [[-1.0, -2.0, np.nan]]]))


def test_letters_whose_probabilities_exceed_one_are_warned_of(caplog):
    check_shown(np.log([[0.5, 0.55 - 1e-9], [0.3, 0.2]]))
    assert caplog.text == ""
    check_shown(np.log([[0.3, 0.2], [0.6, 0.5]]))
    assert "question 1: its letters' probabilities sum to 1.100" in caplog.text


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ((-1.0, None), True),
        (["-1.0", "None"], True),
        ((-1.0, False), False),
        (["-1.0"], False),
        ((-1.0, None, 8), False),
    ],
)
def test_a_letter_is_unseen_where_it_is_open_whether_it_is_the_greedy_one(answer, expected):
    assert is_unseen(answer) is expected


def test_two_letters_tell_nothing_where_a_server_showed_neither_and_differ_where_it_showed_one():
    shown, unseen = np.zeros((10, 3), dtype=bool), np.array([[False, True, True]] * 10)
    rows = np.column_stack([-np.arange(1.0, 11), np.full(10, -3.5), np.full(10, -3.5)])
    check_told_apart(rows, unseen)
    with pytest.raises(UserError, match="letters B and C have the same log-likelihood in all 10 questions"):
        check_told_apart(np.vstack([rows, rows]), np.vstack([shown, unseen]))
    check_told_apart(np.vstack([rows[:9], rows]), np.vstack([shown[:9], unseen]))
    check_told_apart(np.vstack([rows, rows[:1]]), np.vstack([shown, [[False, False, True]]]))


def test_bounds_of_unseen_letters_are_no_part_of_the_sum_that_is_warned_of(caplog):
    check_told_apart(np.log([[0.9, 0.3], [0.3, 0.2]]), np.array([[False, True], [False, False]]))
    assert caplog.text == ""
