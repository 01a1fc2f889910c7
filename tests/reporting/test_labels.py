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
def test_labels_are_short_and_unique(tmp_path, model_args, expected):
    for second, each in enumerate(model_args):
        run(tmp_path, each, date=f"2026-01-02T03-04-{second:02}.5")
    assert labels(tmp_path) == expected


def test_chat_template_makes_another_run(tmp_path):
    run(tmp_path, BASE)
    run(tmp_path, BASE, date="2026-01-03T00-00-00.5", chat_template_sha="abc")
    assert labels(tmp_path) == ["base-7b", "base-7b (chat template)"]


def test_few_shot_makes_another_run(tmp_path):
    run(tmp_path, BASE)
    run(tmp_path, BASE, date="2026-01-03T00-00-00.5", **{"n-shot": {"arc": 5}})
    assert labels(tmp_path) == ["base-7b", "base-7b (5-shot)"]


def test_identical_runs_are_labeled_by_folder(tmp_path):
    for name in ("one", "two"):
        run(tmp_path / name, BASE)
    runs = [*find_runs(tmp_path / "one"), *find_runs(tmp_path / "two")]
    set_labels(runs)
    assert [each.label for each in runs] == ["base-7b (one)", "base-7b (two)"]


def test_custom_labels_must_match_the_runs(tmp_path):
    run(tmp_path, BASE)
    run(tmp_path, {**BASE, "peft": "runs/cft"})
    assert [each["label"] for each in build([tmp_path], labels=["before", "after"])["methods"]] == ["before", "after"]
    with pytest.raises(UserError, match=r"1 --label for 2 runs; give one for each of: 1\. .*base-7b, 2\. .*cft"):
        build([tmp_path], labels=["only"])
    with pytest.raises(UserError, match="'x' is given twice"):
        build([tmp_path], labels=["x", "x"])


def test_samples_without_results_file_are_labeled_by_folder(tmp_path):
    folder = run(tmp_path, BASE)
    for path in folder.glob("results_*"):
        path.unlink()
    assert labels(tmp_path) == ["org__base-7b"]
