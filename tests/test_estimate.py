from pathlib import Path

import pytest

from calibtune.estimate import START, Model, estimate
from calibtune.steps import Step

MODEL = Model(parameters=1e8, layers=12, hidden=500, vocabulary=50_000, rate=1e12)


def seconds(command, *flags, tasks=("mc_calib_arc",)):
    """Return the seconds of a command's work, and its memory."""
    found, memory = estimate(Step("it", (command, "--model", "M", *flags), Path("out"), tasks), MODEL)
    return found - START, memory


def test_the_mean_of_adapters_takes_as_long_as_its_members_and_the_temperature_and_as_much_memory_as_the_largest():
    members = [seconds("fit", "--method", method) for method in ("rcft", "cft", "temperature")]
    time, memory = seconds("fit", "--method", "auto", "--adapters", "2")
    assert time == pytest.approx(sum(each for each, _ in members))
    assert memory == max(each for _, each in members)
    one = seconds("fit", "--method", "auto", "--adapters", "1")[0]
    assert one == pytest.approx(members[0][0] + members[2][0])


@pytest.mark.parametrize(("orders", "times"), [("1", 1), ("2", 2), ("all", 4), ("9", 4)])
def test_orders_take_as_many_passes_as_a_question_of_four_options_has(orders, times):
    for words in (("fit", "--method", "temperature"), ("eval",)):
        assert seconds(*words, "--orders", orders)[0] == pytest.approx(times * seconds(*words)[0])


def test_a_limit_shortens_an_evaluation_of_letters():
    assert seconds("eval", "--limit", "500")[0] == pytest.approx(seconds("eval")[0] / 4)
    assert seconds("eval", "--limit", "9000") == seconds("eval")
