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


def orders(count):
    return {"output_type": "multiple_choice", "metadata": {"orders": count}}


def test_orders_of_the_options_are_a_method_of_their_own_on_the_same_task(tmp_path):
    rows = answers(5)
    write_run(tmp_path, {"arc": rows, "arc_orders": rows}, BASE, configs={"arc": {}, "arc_orders": orders("all")})
    write_run(tmp_path / "two", {"arc_orders": answers(5, sharpness=2.0)}, BASE, configs={"arc_orders": orders(2)})
    found = build([tmp_path])
    labels = ["base-7b", "base-7b (2 orders of the options)", "base-7b (all orders of the options)"]
    assert sorted(method["label"] for method in found["methods"]) == labels
    assert list(found["tasks"]) == ["arc"]
    assert sorted(found["tasks"]["arc"]["methods"]) == labels
    assert (
        "base-7b (all orders of the options) was evaluated with all orders of the options, base-7b without"
        in found["notes"]
    )


def test_scaled_tasks_in_orders_bring_their_temperature(tmp_path):
    filters = {"none": 1.0, "scaled": 2.0}
    configs = {"arc_orders_scaled": orders("all")}
    write_run(tmp_path / "t", {"arc_orders_scaled": answers(5)}, BASE, filters=filters, configs=configs)
    write_run(tmp_path / "b", {"arc": answers(5)}, BASE)
    found = build([tmp_path / "b", tmp_path / "t"])
    assert [method["label"] for method in found["methods"]] == [
        "base-7b",
        "base-7b (all orders of the options)",
        "base-7b (all orders of the options) + temperature T = 2",
    ]


def test_files_without_results_are_known_by_their_name(tmp_path):
    write_run(tmp_path, {"arc_orders": answers(5)}, BASE)
    for path in tmp_path.rglob("results_*.json"):
        path.unlink()
    assert list(build([tmp_path])["tasks"]) == ["arc"]


def test_groups_keep_their_tasks_in_orders(tmp_path):
    tasks = {f"t{number}_orders": answers(5) for number in range(7)}
    configs = {name: orders("all") for name in tasks}
    write_run(tmp_path, tasks, BASE, configs=configs, groups={"many_orders": list(tasks)})
    assert next(iter(build([tmp_path])["tasks"])) == "many"
