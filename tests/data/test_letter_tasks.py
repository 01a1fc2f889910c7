"""Any multiple-choice task, asked the way our letter tasks are asked."""

import json

import pytest
from evaluating import metrics, small_evaluation
from fitting import small_fit

from calibtune.__main__ import main
from calibtune.results.measures import harness_measures
from calibtune.results.samples import find_samples, read_samples

pytestmark = pytest.mark.usefixtures("mirror")

DATA = """dataset_path: allenai/ai2_arc
dataset_name: ARC-Challenge
training_split: train
test_split: test
"""
#: A user's own letter task, from outside our folder and without a path to it.
OWN = f"""task: own
class: !function harness_ext.task.LetterTask
{DATA}process_docs: !function harness_ext.documents.arc
"""
#: Letters as a task of the harness asks for them: prompt, target and metrics of its own.
STOCK = f"""task: stock
{DATA}output_type: multiple_choice
doc_to_text: "{{{{question}}}}\\nA. {{{{choices.text[0]}}}}\\nB. {{{{choices.text[1]}}}}\\nAnswer:"
doc_to_choice: "{{{{['A', 'B', 'C', 'D', 'E'][:choices.text|length]}}}}"
doc_to_target: "{{{{choices.label.index(answerKey)}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""


@pytest.fixture
def tasks(tmp_path):
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "own.yaml").write_text(OWN)
    (folder / "stock.yaml").write_text(STOCK)
    (folder / "texts.yaml").write_text(
        STOCK.replace("task: stock", "task: texts").replace(
            "{{['A', 'B', 'C', 'D', 'E'][:choices.text|length]}}", "{{choices.text}}"
        )
    )
    (folder / "both.yaml").write_text("group: both\ntask: [own, stock]\n")
    return folder


def test_a_task_of_ones_own_names_our_class_and_gets_our_numbers(model, tasks, tmp_path):
    own = small_evaluation(tmp_path / "own", ("own",), model=str(model), include_path=str(tasks))
    ours = small_evaluation(tmp_path / "ours", model=str(model))
    assert metrics(own, "own") == pytest.approx(metrics(ours), abs=1e-9)


def test_a_temperature_applies_to_own_and_stock_tasks_and_their_groups(model, tasks, tmp_path):
    t = small_fit(model, tmp_path / "t", "temperature").temperature["temperature"]
    found = small_evaluation(tmp_path / "out", ("both",), artifact=tmp_path / "t", include_path=str(tasks))
    assert found.questions.keys() == {"own_scaled", "stock_scaled"}
    for file in find_samples(tmp_path / "out"):
        rows = read_samples(file)
        for pipeline, temperature in (("none", 1.0), ("scaled", t)):
            expected = harness_measures(rows.log_probs, rows.labels, temperature)
            numbers = metrics(found, rows.task, pipeline)
            assert numbers == pytest.approx({name: expected[name] for name in numbers}, abs=1e-9)


def test_a_stock_task_keeps_its_own_prompt_under_a_temperature(model, tasks, tmp_path):
    small_fit(model, tmp_path / "t", "temperature")
    small_evaluation(tmp_path / "out", ("stock",), artifact=tmp_path / "t", include_path=str(tasks))
    line = find_samples(tmp_path / "out")[0].read_text("utf-8").splitlines()[0]
    sample = json.loads(line)
    assert sample["arguments"]["gen_args_0"]["arg_0"].endswith("\nAnswer:")


def test_a_temperature_on_a_task_of_texts_is_refused_with_what_to_do(model, tasks, tmp_path, capsys):
    small_fit(model, tmp_path / "t", "temperature")
    command = [
        "eval",
        "--artifact",
        tmp_path / "t",
        "--tasks",
        "texts",
        "--include-path",
        tasks,
        "--output",
        tmp_path / "out",
    ]
    assert main(list(map(str, command))) == 2
    assert "--tasks texts does not score the letters A, B, ..." in capsys.readouterr().err
