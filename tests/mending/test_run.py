"""What mend plans and says, without a model."""

import json
from types import SimpleNamespace

import pytest

from calibtune.errors import UserError
from calibtune.evaluation.guard import Verdict
from calibtune.mending import plan, run
from calibtune.mending.choose import Candidate
from calibtune.mending.plan import Options
from calibtune.spec import ModelSpec


@pytest.fixture
def options(tmp_path, monkeypatch):
    """Make options where each adapter takes ten minutes, and each other command one."""
    monkeypatch.setattr(run, "inspect", lambda _: None)
    monkeypatch.setattr(run, "estimate", lambda step, _: (600 * int(step.words[4]) if "auto" in step.words else 60, 1))
    (tmp_path / "plan.json").write_text("{}")
    return lambda **more: Options(ModelSpec("M"), tmp_path, **more)


@pytest.mark.parametrize(
    ("budget", "orders", "count"),
    [(43, 1, 4), (42.9, 1, 2), (23, 1, 2), (22.9, 1, 1), (13, 1, 1), (45, 2, 4), (44.9, 2, 2)],
)
def test_as_many_adapters_are_averaged_as_there_is_time_for_with_what_follows(options, budget, orders, count):
    assert run._adapter(options(budget=budget, orders=orders), []) == plan.adapter(options(), count)


def test_without_time_for_one_adapter_none_is_trained(options, monkeypatch):
    remarks = []
    monkeypatch.setattr(run, "estimate", lambda *_: (184.0, 1))
    assert run._adapter(options(budget=12), remarks) is None
    assert remarks == ["No adapter was trained: it takes about 13 minutes on this device, and --budget is 12."]


def test_a_resumed_mend_keeps_its_number_of_adapters_whatever_the_clock_says(options, tmp_path, monkeypatch):
    (tmp_path / "plan.json").write_text(json.dumps({"fit auto": plan.adapter(options(), 2).words}))
    monkeypatch.setattr(run, "inspect", lambda _: pytest.fail("the clock was asked"))
    for budget in (0, 1e6):
        assert run._adapter(options(budget=budget), []) == plan.adapter(options(), 2)


@pytest.mark.parametrize(
    ("name", "orders", "said"),
    [
        ("temperature", 1, "questions."),
        ("temperature", 4, "questions. A question then takes one pass of the model."),
        ("orders", 2, "A question then takes as many passes of the model as it has options, at most 2."),
        ("adapter-orders", "all", "A question then takes as many passes of the model as it has options."),
    ],
)
def test_the_recommendation_says_how_many_passes_a_question_takes_where_orders_were_tried(options, name, orders, said):
    assert run._why(options(orders=orders), Candidate(name, "folder", 1.0), 3).endswith(said)


def test_warnings_of_a_temperature_are_said_where_it_is_recommended(tmp_path, monkeypatch):
    fitted = {"warnings": ["T says nothing of other questions"]}
    monkeypatch.setattr(run, "read_artifact", lambda _: SimpleNamespace(temperature=fitted))
    said = ["Mind what its fit warned of: T says nothing of other questions."]
    assert run._warnings(Candidate("temperature", tmp_path, 1.0)) == said
    assert run._warnings(Candidate("base", None, 1.0)) == []


@pytest.mark.parametrize("orders", ["0", "some", "-1"])
def test_orders_out_of_range_are_refused_before_anything_runs(tmp_path, orders):
    import calibtune as ct

    with pytest.raises(UserError, match="--orders is"):
        ct.mend("M", tmp_path / "out", orders=orders)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("passed", "left"), [(True, ["base", "adapter", "orders"]), (False, ["base", "orders"])])
def test_an_adapter_that_lost_the_win_rate_is_no_candidate(options, monkeypatch, passed, left):
    monkeypatch.setattr(run, "_run", lambda *_: None)
    monkeypatch.setattr(run, "guard", lambda *_: Verdict(0.5, 0.4, -0.1, -0.2, -0.05, 0.02, 9, passed))
    found, remarks = [Candidate(name, None, nll) for name, nll in (("base", 3), ("adapter", 1), ("orders", 2))], []
    assert [each.name for each in run._guarded(options(), found, remarks)] == left
    assert ("so no adapter is recommended" in remarks[0]) is not passed
