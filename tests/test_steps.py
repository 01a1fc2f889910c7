import json

import pytest

from calibtune.steps import Step


def write(folder, lines):
    """Write what lm_eval writes of a group with two tasks, with so many samples of each."""
    folder.mkdir()
    results = {
        "results": {"all": {}, "one": {"acc,none": 1.0}, "two": {"acc,none": 1.0, "acc,scaled": 1.0}},
        "group_subtasks": {"all": ["one", "two"]},
        "n-samples": {"one": {"effective": 3}, "two": {"effective": 2}},
    }
    (folder / "results_X.json").write_text(json.dumps(results))
    for name, count in lines.items():
        (folder / f"samples_{name}_X.jsonl").write_text("{}\n" * count)


def done(folder, task):
    return Step("eval", ("eval",), folder, (task,)).done()


@pytest.mark.parametrize(
    ("lines", "whole"),
    [
        ({"one": 3, "two": 4}, {"one", "two", "all"}),
        ({"one": 3, "two": 2}, {"one"}),
        ({"one": 3}, {"one"}),
        ({}, set()),
    ],
)
def test_an_evaluation_is_done_where_all_samples_of_a_task_or_of_each_task_of_a_group_are_there(tmp_path, lines, whole):
    write(tmp_path / "out", lines)
    assert {task for task in ("one", "two", "all", "three") if done(tmp_path / "out", task)} == whole
