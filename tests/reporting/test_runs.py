import json

import pytest
from lm_eval_files import answers, write_run

from calibtune.errors import UserError
from calibtune.reporting.build import build
from calibtune.reporting.labels import set_labels
from calibtune.reporting.runs import find_runs, merge_runs

BASE = {"pretrained": "org/base-7b"}


def labels(folder):
    runs = merge_runs(find_runs(folder))
    set_labels(runs)
    return [run.label for run in runs]


def run(folder, model_args, task="arc", **options):
    return write_run(folder, {task: answers(5)}, model_args, **options)


@pytest.mark.parametrize(
    ("model_args", "expected"),
    [
        ([BASE, {**BASE, "peft": "runs/cft"}], ["base-7b", "cft"]),
        ([BASE, {"pretrained": "org/other", "peft": "runs/cft"}], ["base-7b", "other + cft"]),
        ([{"pretrained": "a/m"}, {"pretrained": "b/m"}], ["a/m", "b/m"]),
        ([{**BASE, "peft": "x/final"}, {**BASE, "peft": "y/final"}], ["x/final", "y/final"]),
        ([{**BASE, "peft": "runs/cft"}], ["base-7b + cft"]),
        (["pretrained=org/base-7b,peft=runs/cft,dtype=float32"], ["base-7b + cft"]),
        (
            [{**BASE, "dtype": "float16"}, {**BASE, "dtype": "float32"}],
            ["base-7b (dtype=float16)", "base-7b (dtype=float32)"],
        ),
    ],
)
def test_labels_are_short_and_never_alike(tmp_path, model_args, expected):
    for second, each in enumerate(model_args):
        run(tmp_path, each, date=f"2026-01-02T03-04-{second:02}.5")
    assert labels(tmp_path) == expected


def test_the_same_model_with_and_without_chat_template_is_two_runs(tmp_path):
    run(tmp_path, BASE)
    run(tmp_path, BASE, date="2026-01-03T00-00-00.5", chat_template_sha="abc")
    assert labels(tmp_path) == ["base-7b", "base-7b (chat template)"]


def test_the_same_task_with_examples_is_another_run(tmp_path):
    run(tmp_path, BASE)
    run(tmp_path, BASE, date="2026-01-03T00-00-00.5", **{"n-shot": {"arc": 5}})
    assert labels(tmp_path) == ["base-7b", "base-7b (5-shot)"]


def test_what_cannot_be_told_apart_is_numbered_or_named_by_folder(tmp_path):
    for name in ("one", "two"):
        run(tmp_path / name, BASE)
    runs = [*find_runs(tmp_path / "one"), *find_runs(tmp_path / "two")]
    set_labels(runs)
    assert [each.label for each in runs] == ["base-7b (one)", "base-7b (two)"]


def test_labels_of_the_users_own_need_one_a_run(tmp_path):
    run(tmp_path, BASE)
    run(tmp_path, {**BASE, "peft": "runs/cft"})
    assert [each["label"] for each in build([tmp_path], labels=["before", "after"])["methods"]] == ["before", "after"]
    with pytest.raises(UserError, match=r"1 --label for 2 runs; give one for each of: 1\. .*base-7b, 2\. .*cft"):
        build([tmp_path], labels=["only"])
    with pytest.raises(UserError, match="'x' is given twice"):
        build([tmp_path], labels=["x", "x"])


def test_of_a_task_evaluated_twice_the_newer_files_count(tmp_path):
    run(tmp_path, BASE)
    write_run(tmp_path, {"arc": answers(9)}, BASE, date="2026-02-02T00-00-00.5")
    run(tmp_path, BASE, task="other", date="2026-01-01T00-00-00.5")
    tasks = build([tmp_path])["tasks"]
    assert {name: task["questions"] for name, task in tasks.items()} == {"arc": 9, "other": 5}


def test_one_models_tasks_in_two_folders_are_one_run(tmp_path):
    run(tmp_path / "one", BASE)
    run(tmp_path / "two", BASE, task="other")
    assert [each["label"] for each in build([tmp_path / "one", tmp_path / "two"])["methods"]] == ["base-7b"]


def test_a_folder_given_twice_counts_once(tmp_path):
    folder = run(tmp_path, BASE)
    assert len(build([folder, tmp_path])["methods"]) == 1


def test_samples_without_a_results_file_are_named_by_their_folder(tmp_path):
    folder = run(tmp_path, BASE)
    for path in folder.glob("results_*"):
        path.unlink()
    assert labels(tmp_path) == ["org__base-7b"]


def test_the_manifest_of_an_adapter_says_how_it_was_fitted(tmp_path):
    adapter = tmp_path / "cft"
    adapter.mkdir()
    (adapter / "calibtune.json").write_text(json.dumps({"method": "cft", "seed": 3}))
    run(tmp_path / "out", {**BASE, "peft": str(adapter)})
    (method,) = build([tmp_path / "out"])["methods"]
    assert (method["method"], method["seed"], method["model"]) == ("cft", 3, "org/base-7b")


def test_a_temperature_beside_several_models_belongs_to_none(tmp_path):
    run(tmp_path, BASE)
    run(tmp_path, {"pretrained": "org/other"})
    (tmp_path / "temperature.json").write_text('{"temperature": 2.0}')
    assert len(build([tmp_path])["methods"]) == 2
