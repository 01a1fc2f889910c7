import numpy as np
import pytest
from board_files import board, fails, leaderboard, rows_of, write_model
from lm_eval_files import answers, write_run

from calibtune.reporting.leaderboard.entries import read_entries
from calibtune.results.measures import further_measures, harness_measures
from calibtune.results.samples import find_samples, read_samples
from harness_ext.estimators import accuracy_at_coverage
from harness_ext.intervals import ece_difference_interval


def test_numbers_are_those_of_the_report(tmp_path):
    folder = write_model(tmp_path, 2, tasks=("arc",))
    leaderboard(folder, "--output", tmp_path / "out")
    (table,) = board(tmp_path / "out")["tables"]
    (row,) = table["rows"]
    samples = read_samples(find_samples(folder)[0])
    expected = harness_measures(samples.log_probs, samples.labels) | further_measures(samples.log_probs, samples.labels)
    shared = [name for name in expected if name in row["numbers"]]
    assert {"acc", "nll", "conf_ece_10", "conf_ece_10_low", "conf_ece_10_high", "conf_ece_10_floor"} <= set(shared)
    assert {name: row["numbers"][name] for name in shared} == pytest.approx({name: expected[name] for name in shared})
    probs = np.exp(samples.log_probs)
    probs /= probs.sum(axis=1, keepdims=True)
    right = probs.argmax(axis=1) == samples.labels
    for share in (50, 80):
        found = accuracy_at_coverage(probs.max(axis=1), right, share / 100)
        assert row["numbers"][f"acc_at_{share}"] == pytest.approx(found)


def test_ranks_follow_the_numbers_of_each_sort(tmp_path):
    folders = [write_model(tmp_path, number) for number in range(5)]
    leaderboard(*folders, "--output", tmp_path / "out")
    for table in board(tmp_path / "out")["tables"]:
        for sort, name, sign in (("nll", "nll", 1), ("conf_ece", "conf_ece_10", 1), ("acc", "acc", -1)):
            order = sorted(table["rows"], key=lambda row: sign * row["numbers"][name])
            values = [row["numbers"][name] for row in order]
            ranks = [row["ranks"][sort] for row in order]
            assert [found["rank"] for found in ranks] == [1 + values.index(value) for value in values]
            assert all(found["low"] <= found["rank"] <= found["high"] for found in ranks)


def test_rank_intervals_and_groups_follow_from_the_pairs(tmp_path):
    folders = [write_model(tmp_path, number, rows=400) for number in range(6)]
    leaderboard(*folders, "--output", tmp_path / "out")
    clear = 0
    for table in board(tmp_path / "out")["tables"]:
        for sort, pairs in table["pairs"].items():
            apart = {(pair["a"], pair["b"]) for pair in pairs if pair["p_holm"] < 0.05}
            assert apart == {(pair["a"], pair["b"]) for pair in pairs if pair["better"]}
            clear += len(apart)
            for label, row in rows_of(table).items():
                ahead = sum(label in (p["a"], p["b"]) and p["better"] not in (None, label) for p in pairs)
                behind = sum(p["better"] == label for p in pairs)
                assert (row["ranks"][sort]["low"], row["ranks"][sort]["high"]) == (1 + ahead, 6 - behind)
            for group in table["groups"][sort]:
                assert not any(a in group and b in group for a, b in apart)
            assert {label for group in table["groups"][sort] for label in group} == set(rows_of(table))
    assert 10 < clear < 130


def test_a_pair_is_told_apart_by_ece_as_in_the_report(tmp_path):
    from calibtune.reporting.paired import scored
    from calibtune.reporting.questions import read_questions
    from calibtune.reporting.runs import find_runs

    folders = [write_model(tmp_path, number, tasks=("arc",), rows=300) for number in (0, 3)]
    leaderboard(*folders, "--output", tmp_path / "out")
    (pair,) = board(tmp_path / "out")["tables"][0]["pairs"]["conf_ece"]
    questions = [read_questions(find_runs(folder))[0][0]["arc"] for folder in folders]
    interval = ece_difference_interval(*(scored(each).gaps["conf_ece_10"] for each in questions))
    assert pair["difference"] == pytest.approx(interval.estimate)
    assert (pair["p"] < 0.05) == (interval.low > 0)
    assert pair["better"] == "model-0"


def test_the_macro_average_is_the_mean_over_tasks(tmp_path):
    folders = [write_model(tmp_path, number) for number in range(3)]
    leaderboard(*folders, "--output", tmp_path / "out")
    average, *tasks = board(tmp_path / "out")["tables"]
    assert (average["name"], average["tasks"], average["questions"]) == ("macro average", ["arc", "obqa"], 240)
    for label, row in rows_of(average).items():
        each = [rows_of(task)[label]["numbers"] for task in tasks]
        for name in ("nll", "acc", "conf_ece_10", "conf_ece_10_floor", "acc_at_50"):
            assert row["numbers"][name] == pytest.approx(np.mean([found[name] for found in each]))
        for name in ("nll", "acc", "conf_ece_10"):
            low, high = (row["numbers"][f"{name}_{end}"] for end in ("low", "high"))
            assert low <= row["numbers"][name] <= high
        # The error of a mean of two independent means.
        halves = [(found["nll_high"] - found["nll_low"]) / 2 for found in each]
        half = (row["numbers"]["nll_high"] - row["numbers"]["nll_low"]) / 2
        assert half == pytest.approx(np.hypot(*halves) / 2, rel=0.1)


def test_a_model_that_lacks_a_task_is_ranked_on_the_others_and_named(tmp_path):
    folders = [write_model(tmp_path, number) for number in range(2)]
    folders.append(write_model(tmp_path, 2, tasks=("arc",)))
    leaderboard(*folders, "--output", tmp_path / "out")
    found = board(tmp_path / "out")
    assert [len(table["rows"]) for table in found["tables"]] == [2, 3, 2]
    assert found["notes"] == ["not in the macro average: model-2 lacks obqa"]


def test_a_task_of_few_models_is_not_in_the_macro_average(tmp_path):
    folders = [write_model(tmp_path, number) for number in range(2)]
    folders.append(write_model(tmp_path, 2, tasks=("arc", "obqa", "own")))
    leaderboard(*folders, "--output", tmp_path / "out")
    found = board(tmp_path / "out")
    assert found["tables"][0]["tasks"] == ["arc", "obqa"]
    assert found["notes"] == ["not in the macro average, since less than half of the models have it: own"]


def test_models_are_compared_on_the_questions_that_all_answered(tmp_path):
    whole = write_model(tmp_path, 0, tasks=("arc",), rows=100)
    loglikelihoods, gold = answers(100, 4, 2.0)
    write_run(tmp_path / "half", {"arc": (loglikelihoods[:40], gold[:40])}, {"pretrained": "org/half"})
    assert leaderboard(whole, tmp_path / "half", "--output", tmp_path / "out") == 0
    found = board(tmp_path / "out")
    assert found["tables"][0]["questions"] == 40
    expected = -np.mean(
        [row[right] - np.log(np.exp(row).sum()) for row, right in zip(*answers(100, 4, 1.0), strict=True)][:40]
    )
    assert rows_of(found["tables"][0])["model-0"]["numbers"]["nll"] == pytest.approx(expected)
    assert found["notes"] == [
        "arc: models are compared on the 40 questions that all answered; half answered 40, others up to 100"
    ]


def test_models_without_a_common_question_are_refused(tmp_path, capsys):
    one, other = write_model(tmp_path, 0, tasks=("arc",)), write_model(tmp_path, 1, tasks=("arc",), seed=7)
    for path in other.rglob("samples_*"):
        path.write_text(path.read_text().replace('"doc_hash": "', '"doc_hash": "other'))
    error = fails(capsys, one, other, "--output", tmp_path / "out")
    assert "shares no question of arc with" in error
    assert not (tmp_path / "out").exists()


def test_what_confounds_a_comparison_is_noted(tmp_path):
    folders = [
        write_model(tmp_path, 0, tasks=("arc",)),
        write_model(tmp_path, 1, tasks=("arc",), **{"n-shot": {"arc": 5}}),
    ]
    folders.append(write_model(tmp_path, 6, tasks=("arc",), sharpness=1.0))
    copy = write_model(tmp_path, 7, tasks=("arc",))
    write_run(tmp_path / "copy", {"arc": answers(120, 4, 1.0)}, {"pretrained": "org/copy"})
    for path in copy.rglob("samples_*"):
        path.write_text(path.read_text().replace('"prompt_hash": "0"', '"prompt_hash": "1"'))
    leaderboard(folders[0], folders[1], tmp_path / "copy", "--output", tmp_path / "out")
    assert board(tmp_path / "out")["notes"] == [
        "arc: few-shot examples differ: 0 in model-0, copy; 5 in model-1",
        "arc: model-0 and copy have the same log-likelihoods to the last bit, which two models do not; was one "
        "--use_cache file used?",
    ]
    leaderboard(folders[0], copy, "--output", tmp_path / "prompts")
    assert board(tmp_path / "prompts")["notes"] == ["arc: prompts differ: model-0 / model-7"]


def test_a_temperature_and_a_large_group_are_lines_and_tasks_as_in_the_report(tmp_path):
    tasks = {f"mmlu_{number}": answers(20, 4, 2.0, seed=number) for number in range(8)}
    args = {"pretrained": "org/base"}
    write_run(tmp_path / "run", tasks, args, filters={"none": 1.0, "scaled": 2.0}, groups={"mmlu": list(tasks)})
    entries, notes = read_entries([tmp_path / "run"], lambda _: None)
    assert notes == []
    assert [(entry.label, list(entry.tasks)) for entry in entries] == [
        ("base", ["mmlu"]),
        ("base + temperature T = 2", ["mmlu"]),
    ]
    assert len(entries[0].tasks["mmlu"].keys) == 160
    assert [entry.tasks["mmlu"].temperature for entry in entries] == pytest.approx([1.0, 2.0])
