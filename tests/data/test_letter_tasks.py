"""Any multiple-choice task, asked the way our letter tasks are asked."""

import json
import shlex

import pytest
from evaluating import measured, metrics, small_evaluation
from fitting import small_fit

from calibtune.__main__ import main
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


#: A task of the harness that scores the texts of its options.
TEXTS = f"""task: texts
{DATA}output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{choices.text}}}}"
doc_to_target: "{{{{choices.label.index(answerKey)}}}}"
"""
#: One without options.
FREE = f"""task: free
{DATA}output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answerKey}}}}"
"""


@pytest.fixture
def tasks(tmp_path):
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "own.yaml").write_text(OWN)
    (folder / "stock.yaml").write_text(STOCK)
    (folder / "texts.yaml").write_text(TEXTS)
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
    (results,) = found.folder.glob("results_*.json")
    assert json.loads(results.read_text("utf-8"))["group_subtasks"]["both"] == ["own_scaled", "stock_scaled"]
    for file in find_samples(tmp_path / "out"):
        rows = read_samples(file)
        for pipeline, temperature in (("none", 1.0), ("scaled", t)):
            expected = measured(rows, temperature)
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


def samples(folder):
    (file,) = find_samples(folder)
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def prompt(sample):
    return sample["arguments"]["gen_args_0"]["arg_0"]


@pytest.mark.parametrize("task", ["texts", "stock"])
def test_as_letters_asks_the_same_questions_as_our_own_task(model, tasks, tmp_path, task):
    options = {"model": str(model), "include_path": str(tasks), "as_letters": True}
    found = small_evaluation(tmp_path / "letters", (task,), **options)
    ours = small_evaluation(tmp_path / "ours", model=str(model))
    assert metrics(found, f"{task}_letters") == pytest.approx(metrics(ours), abs=1e-9)
    by_letters, by_ours = samples(tmp_path / "letters"), samples(tmp_path / "ours")
    assert [prompt(sample) for sample in by_letters] == [prompt(sample) for sample in by_ours]


def test_as_letters_fits_on_a_task_of_texts_and_evaluates_it(model, tasks, tmp_path, capsys):
    command = ["fit", "--method", "temperature", "--model", model, "--tasks", "texts", "--include-path", tasks]
    command += ["--as-letters", "--precision", "fp32", "--output", tmp_path / "t"]
    assert main(list(map(str, command))) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("next: "))
    assert main(shlex.split(line.removeprefix("next: python -m calibtune "))) == 0
    assert "texts_letters_scaled" in capsys.readouterr().out


def test_as_letters_refuses_a_task_without_options(model, tasks, tmp_path, capsys):
    (tasks / "free.yaml").write_text(FREE)
    command = ["eval", "--model", model, "--tasks", "free", "--include-path", tasks, "--as-letters"]
    assert main([*map(str, command), "--output", str(tmp_path / "out")]) == 2
    assert "--tasks free is generate_until; --as-letters takes multiple_choice tasks" in capsys.readouterr().err


def test_rows_that_cannot_be_asked_by_letter_are_left_out_and_counted(model, tasks, tmp_path, caplog):
    twice = "{{['same', 'same'] if answerKey == 'A' else choices.text}}"
    (tasks / "some.yaml").write_text(TEXTS.replace("task: texts", "task: some").replace("{{choices.text}}", twice))
    options = {"model": str(model), "include_path": str(tasks), "as_letters": True}
    some = small_evaluation(tmp_path / "some", ("some",), **options).questions["some_letters"]
    everything = small_evaluation(tmp_path / "texts", ("texts",), **options).questions["texts_letters"]
    assert 0 < some < everything
    assert f"some: {everything - some} of {everything} rows cannot be asked by letter and are left out" in caplog.text
