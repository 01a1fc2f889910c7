"""``--orders`` in eval and fit, and what verbatim ``lm_eval`` makes of the same questions."""

import json
from itertools import chain

import numpy as np
import pytest
from evaluating import metrics, small_evaluation
from fitting import small_fit
from harness import TASKS, evaluate
from transformers import AutoModelForCausalLM, AutoTokenizer

from calibtune.__main__ import main
from calibtune.artifacts import tasks as scaled_tasks
from calibtune.artifacts.card import usage
from calibtune.artifacts.manifest import read_artifact
from calibtune.evaluation.hf_letters import LetterLM
from calibtune.results.samples import find_samples, read_samples
from calibtune.tuning.temperature import fit_temperature

pytestmark = pytest.mark.usefixtures("mirror")
ORDERED = "mc_calib_arc_orders"


def run(*words):
    return main([str(word) for word in words])


def eval_words(model, output, *more):
    small = ("--device", "cpu", "--precision", "fp32", "--batch-size", "4")
    return ["eval", "--model", model, "--tasks", "mc_calib_arc", "--output", output, *small, *more]


@pytest.fixture
def tasks_of_this_checkout(monkeypatch):
    """Have a fit write tasks for those of this checkout, which another version may have installed."""
    found = {path.stem: path for path in TASKS.glob("mc_calib_arc*.yaml")}
    monkeypatch.setattr(scaled_tasks, "installed_tasks", lambda: found)


@pytest.mark.parametrize("orders", ["all", 2])
def test_lm_evals_own_backend_gives_the_same_numbers(model, tmp_path, orders):
    mine = small_evaluation(tmp_path / "out", model=str(model), orders=orders)
    theirs = evaluate([ORDERED], model, metadata={"orders": orders})["results"][ORDERED]
    found = {name: value for name, value in metrics(mine, ORDERED).items() if f"{name},none" in theirs}
    # The ends of an interval are quantiles of draws.
    close = {name: 2e-3 if name.endswith(("_low", "_high")) else 1e-5 for name in found}
    assert len(close) == 16
    assert [name for name in close if abs(found[name] - theirs[f"{name},none"]) > close[name]] == []


def test_the_model_passes_once_for_each_order(model, tmp_path, monkeypatch):
    fed = []
    forward = LetterLM._forward
    monkeypatch.setattr(LetterLM, "_forward", lambda self, ids, **o: fed.append(len(ids)) or forward(self, ids, **o))
    small_evaluation(tmp_path / "out", model=str(model), orders="all", limit=4, backend="hf")
    assert sum(fed) == 4 + 4 + 3 + 5


def test_a_few_orders_and_one_are_evaluated_apart(model, tmp_path, capsys):
    assert run(*eval_words(model, tmp_path / "out", "--orders", "2")) == 0
    assert f"{ORDERED}: 24 questions" in capsys.readouterr().out
    (path,) = find_samples(tmp_path / "out")
    assert read_samples(path).orders == 2
    assert run(*eval_words(model, tmp_path / "out")) == 2
    assert "holds another evaluation of this model (orders 2 -> None)" in capsys.readouterr().err
    assert run(*eval_words(model, tmp_path / "one", "--orders", "1")) == 0
    assert "mc_calib_arc: 24 questions" in capsys.readouterr().out


@pytest.mark.parametrize("orders", ["0", "-1", "some", "1.5", ""])
def test_other_numbers_of_orders_are_refused(model, tmp_path, capsys, orders):
    assert run(*eval_words(model, tmp_path / "out", f"--orders={orders}")) == 2
    assert f"--orders is {orders!r}; give a number from 1 up, or all" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_rows_that_cannot_be_reordered_are_refused_before_the_model_passes(model, tmp_path, monkeypatch, capsys):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "own.yaml").write_text(
        "task: own\nclass: !function harness_ext.task.LetterTask\ndataset_path: allenai/ai2_arc\n"
        "dataset_name: ARC-Challenge\ntest_split: test\ndoc_to_text: '{{question}}'\n"
        "doc_to_choice: \"{{['A', 'B', 'C']}}\"\ndoc_to_target: 0\n"
    )
    words = eval_words(model, tmp_path / "out", "--include-path", tmp_path / "tasks", "--orders", "all")
    words[words.index("mc_calib_arc")] = "own"
    monkeypatch.setattr(LetterLM, "_forward", lambda *_, **__: pytest.fail("the model was asked"))
    assert run(*words) == 2
    said = capsys.readouterr().err
    assert "task own_orders: asking in other orders of the options needs documents with a list `choices`" in said


def test_a_temperature_is_fitted_and_applied_in_the_same_orders(model, tmp_path, tasks_of_this_checkout):
    artifact = small_fit(model, tmp_path / "t", "temperature", orders="all", held_out=24)
    # T by hand: the training questions asked by the harness in all orders.
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "rows.yaml").write_text(
        f"include: {TASKS / ORDERED}.yaml\ntask: rows\ntest_split: train\ntraining_split: null\n"
    )
    answers = evaluate(["rows"], model, folders=[tmp_path / "tasks"])["samples"]["rows"]
    logs = np.full((len(answers), 5), np.nan)
    for row, sample in zip(logs, answers, strict=True):
        row[: len(sample["filtered_resps"])] = [letter.loglikelihood for letter in sample["filtered_resps"]]
    expected = fit_temperature(logs, [sample["target"] for sample in answers])
    assert artifact.temperature["questions"] == expected.questions == 24
    assert artifact.temperature["temperature"] == pytest.approx(expected.value, rel=1e-4)
    assert artifact.orders == read_artifact(tmp_path / "t").orders == "all"

    small_evaluation(tmp_path / "out", model=None, artifact=tmp_path / "t")
    (path,) = find_samples(tmp_path / "out")
    rows = read_samples(path)
    assert (rows.task, rows.orders) == (f"{ORDERED}_scaled", "all")
    assert rows.temperatures["scaled"] == pytest.approx(artifact.temperature["temperature"], rel=1e-6)
    assert f"--tasks {ORDERED}_scaled" in usage(artifact)
    # What the card says, as verbatim lm_eval reads it.
    verbatim = evaluate([f"{ORDERED}_scaled"], model, folders=[tmp_path / "t"])["samples"][f"{ORDERED}_scaled"]
    theirs = [[letter[0] for letter in each["filtered_resps"]] for each in verbatim if each["filter"] == "scaled"]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    mine = [[float(letter[0]) for letter in each["filtered_resps"]] for each in lines if each["filter"] == "scaled"]
    assert list(chain(*mine)) == pytest.approx(list(chain(*theirs)), abs=1e-5)

    answer = artifact.score(
        AutoModelForCausalLM.from_pretrained(model),
        AutoTokenizer.from_pretrained(model),
        lines[0]["doc"]["question"],
        lines[0]["doc"]["choices"],
    )
    assert answer == pytest.approx(mine[0], abs=1e-5)


def test_a_fit_on_samples_knows_their_orders(model, tmp_path, capsys):
    small_evaluation(tmp_path / "out", model=str(model), orders=2)
    (path,) = find_samples(tmp_path / "out")
    assert run("fit", "--method", "temperature", "--samples", path, "--output", tmp_path / "t", "--orders", "all") == 2
    assert "--orders is all, but the questions of" in capsys.readouterr().err
    assert run("fit", "--method", "temperature", "--samples", path, "--output", tmp_path / "t") == 0
    assert read_artifact(tmp_path / "t").orders == 2
    rows = read_samples(path)
    expected = fit_temperature(rows.log_probs, rows.labels).value
    assert read_artifact(tmp_path / "t").temperature["temperature"] == pytest.approx(expected)


def test_a_temperature_of_other_orders_is_warned_of(model, tmp_path, capsys):
    small_fit(model, tmp_path / "t", "temperature")
    assert run(*eval_words(model, tmp_path / "a", "--artifact", tmp_path / "t", "--orders", "2")) == 0
    said = "the temperature was fitted on one order of the options and is applied to answers in 2 orders of the options"
    assert f"{ORDERED}_scaled: {said}" in capsys.readouterr().err
    assert run(*eval_words(model, tmp_path / "b", "--artifact", tmp_path / "t")) == 0
    assert "the temperature was fitted on" not in capsys.readouterr().err


def test_what_asks_in_orders_by_its_name_is_not_fitted_on(model, tmp_path, capsys):
    words = ["fit", "--method", "temperature", "--model", model, "--tasks", ORDERED, "--output", tmp_path / "t"]
    assert run(*words, "--include-path", TASKS) == 2
    said = capsys.readouterr().err
    assert f"--tasks {ORDERED} asks in all orders of the options; give the task that asks in one" in said


def test_a_temperature_of_several_orders_is_not_baked(model, tmp_path, capsys):
    small_fit(model, tmp_path / "t", "temperature", orders=2)
    assert run("bake", "--artifact", tmp_path / "t", "--output", tmp_path / "baked") == 2
    assert "was fitted on 2 orders of the options, averaged before the temperature" in capsys.readouterr().err


def test_trained_methods_have_no_orders(model, tmp_path, capsys):
    words = ["fit", "--method", "cft", "--model", model, "--tasks", "mc_calib_arc", "--output", tmp_path / "o"]
    assert run(*words, "--orders", "2") == 2
    assert "--orders is for --method temperature, not cft" in capsys.readouterr().err
