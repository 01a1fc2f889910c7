import json

from lm_eval_files import answers, write_run

from calibtune.reporting.build import build

BASE = {"pretrained": "org/base-7b"}


def run(folder, model_args, task="arc", **options):
    return write_run(folder, {task: answers(5)}, model_args, **options)


def test_newest_evaluation_of_a_task_is_used(tmp_path):
    run(tmp_path, BASE)
    write_run(tmp_path, {"arc": answers(9)}, BASE, date="2026-02-02T00-00-00.5")
    run(tmp_path, BASE, task="other", date="2026-01-01T00-00-00.5")
    tasks = build([tmp_path])["tasks"]
    assert {name: task["questions"] for name, task in tasks.items()} == {"arc": 9, "other": 5}


def test_tasks_of_one_model_in_two_folders_are_one_run(tmp_path):
    run(tmp_path / "one", BASE)
    run(tmp_path / "two", BASE, task="other")
    assert [each["label"] for each in build([tmp_path / "one", tmp_path / "two"])["methods"]] == ["base-7b"]


def test_folder_given_twice_counts_once(tmp_path):
    folder = run(tmp_path, BASE)
    assert len(build([folder, tmp_path])["methods"]) == 1


def test_method_and_seed_come_from_the_manifest(tmp_path):
    adapter = tmp_path / "cft"
    adapter.mkdir()
    (adapter / "calibtune.json").write_text(json.dumps({"method": "cft", "seed": 3}))
    run(tmp_path / "out", {**BASE, "peft": str(adapter)})
    (method,) = build([tmp_path / "out"])["methods"]
    assert (method["method"], method["seed"], method["model"]) == ("cft", 3, "org/base-7b")


def test_temperature_json_beside_several_models_is_ignored(tmp_path):
    run(tmp_path, BASE)
    run(tmp_path, {"pretrained": "org/other"})
    (tmp_path / "temperature.json").write_text('{"temperature": 2.0}')
    assert len(build([tmp_path])["methods"]) == 2
