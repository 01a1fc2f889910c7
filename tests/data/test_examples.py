"""Tasks whose YAML, code or data cannot be used: one sentence with the task, and the row where there is one."""

import pytest
from harness import TASKS
from tiny import build_tokenizer

from calibtune.data.encoder import Encoder
from calibtune.data.examples import load_examples
from calibtune.data.tasks import load_tasks, question_text, task_manager
from calibtune.errors import UserError

OWN = {
    "task": "own",
    "dataset_path": "allenai/ai2_arc",
    "dataset_name": "ARC-Challenge",
    "training_split": "train",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "'{{question}}'",
    "doc_to_choice": "['A', 'B', 'C', 'D', 'E']",
    "doc_to_target": "0",
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tasks").mkdir()
    return tmp_path / "tasks"


def load(folder, **changes):
    (folder / "own.yaml").write_text("".join(f"{key}: {value}\n" for key, value in {**OWN, **changes}.items()))
    return load_tasks(["own"], str(folder))


def examples(tasks, chat=False, template=None):
    tokenizer = build_tokenizer(template) if template else build_tokenizer()
    return load_examples(tasks, Encoder(tokenizer), chat, held_out=2, seed=0, limit=8)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dataset_name": "ARC-Challange"}, "ValueError: BuilderConfig 'ARC-Challange' not found"),
        ({"dataset_path": "/no/such/set"}, "/no/such/set"),
        ({"test_split": "tset"}, "KeyError: 'tset'"),
        ({"training_split": "trian"}, "KeyError: 'trian'"),
        ({"doc_to_text": "'{{ 1 / 0 }}'"}, "ZeroDivisionError"),
        ({"doc_to_text": "'{{ question'"}, "TemplateSyntaxError"),
        ({"process_docs": "!function nosuchmod.fn"}, "ImportError: Cannot import module 'nosuchmod'"),
        ({"output_type": "multiple_choise"}, "multiple_choise"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_task_that_cannot_be_loaded_is_named_with_the_reason(mirror, folder, changes, reason):
    with pytest.raises(
        UserError, match=r"^task own cannot be used \(.*; mend its YAML, or make its data set readable from here$"
    ) as error:
        load(folder, **changes)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_a_damaged_data_file_is_named_with_what_is_wrong_in_it(mirror):
    file = mirror / "allenai/ai2_arc/ARC-Challenge/test.jsonl"
    file.write_text(file.read_text() + '{"id": "x", "question"\n')
    with pytest.raises(UserError, match=r"^task mc_calib_arc cannot be used \(.*, from ") as error:
        load_tasks(["mc_calib_arc"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"doc_to_text": "'{{ 1 / (0 if \"train\" in question else 1) }}'"}, "ZeroDivisionError"),
        ({"doc_to_text": '\'{{ "" if "test" in question else nothing.more }}\''}, "UndefinedError"),
        ({"doc_to_target": '\'{{ choices.label.index("Z" if "train" in question else answerKey) }}\''}, "ValueError"),
    ],
    ids=str,
)
def test_a_template_that_fails_is_named_with_task_and_row(mirror, folder, changes, reason):
    tasks = load(folder, **changes)
    with pytest.raises(UserError, match=rf"task own, row \"\{{'id': .*, cannot be used \({reason}.*; mend the row or"):
        examples(tasks)


def test_a_chat_template_that_fails_is_said(mirror):
    tasks = load_tasks(["mc_calib_arc"])
    with pytest.raises(UserError, match=r"task mc_calib_arc, row .* cannot be used \(.*never"):
        examples(tasks, chat=True, template="{{ raise_exception('never') }}")


def test_an_evaluated_row_that_cannot_be_rendered_is_said(mirror, folder):
    (task,) = load(folder, doc_to_text="'{{ 1 / (0 if \"test 1\" in question else 1) }}'")
    with pytest.raises(UserError, match=r"task own, row .*ZeroDivisionError"):
        [question_text(task, doc) for doc in task.eval_docs]


@pytest.mark.parametrize("name", ["nowhere", "file.yaml"])
def test_an_include_path_that_is_no_folder_is_refused(tmp_path, name):
    (tmp_path / "file.yaml").write_text("task: own\n")
    with pytest.raises(UserError, match=rf"--include-path .*{name} is no folder; give one"):
        task_manager(["mc_calib_arc"], str(tmp_path / name))


def test_a_group_and_one_of_its_tasks_are_refused(mirror, folder):
    (folder / "both.yaml").write_text("group: both\ntask: [mc_calib_arc]\n")
    (folder / "arc.yaml").write_text(f"include: {TASKS / 'mc_calib_arc.yaml'}\n")
    with pytest.raises(UserError, match=r"task both, mc_calib_arc cannot be used .*Duplicate task"):
        load_tasks(["both", "mc_calib_arc"], str(folder))
