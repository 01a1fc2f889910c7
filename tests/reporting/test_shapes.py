import json

import numpy as np
import pytest
from lm_eval_files import answers, sample_lines, write_run
from report_files import BASE, CFT, report

from calibtune.reporting.build import build


def test_report_of_one_model_has_no_differences(tmp_path, capsys):
    folder = write_run(tmp_path, {"arc": answers(60)})
    assert report(folder, "--output", tmp_path / "out") == 0
    assert "calibtune fit --method temperature --model org/base-7b --tasks arc" in capsys.readouterr().out
    assert "Differences to" not in (tmp_path / "out" / "report.html").read_text()


def test_the_next_command_asks_the_adapter_of_the_run_as_the_run_did(tmp_path, capsys):
    folder = write_run(tmp_path, {"arc": answers(60)}, CFT, chat_template_sha="abc")
    assert report(folder, "--output", tmp_path / "out") == 0
    command = "--model org/base-7b --tasks arc --artifact runs/cft --apply-chat-template --output temperature"
    assert f"calibtune fit --method temperature {command}\n" in capsys.readouterr().out


@pytest.mark.parametrize("rows", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_report_of_one_or_two_questions(tmp_path, rows):
    folder = write_run(tmp_path, {"arc": answers(rows)})
    write_run(tmp_path, {"arc": answers(rows)}, CFT)
    assert report(tmp_path, "--output", tmp_path.parent / f"out{rows}") == 0
    results = json.loads((tmp_path.parent / f"out{rows}" / "results.json").read_text())
    assert results["tasks"]["arc"]["questions"] == rows
    assert folder.is_dir()


def test_ten_options_give_ten_classwise_panels(tmp_path):
    folder = write_run(tmp_path / "run", {"pro": answers(150, 10)})
    report(folder, "--output", tmp_path / "out")
    svg = (tmp_path / "out" / "figures" / "pro_classwise_base-7b.svg").read_text()
    assert all(f">{letter} (N = 150)<" in svg for letter in "ABCDEFGHIJ")
    entry = json.loads((tmp_path / "out" / "results.json").read_text())["tasks"]["pro"]["methods"]["base-7b"]
    assert sum(entry["options"]["chosen"]) == pytest.approx(1)
    assert entry["options"]["entropy_most"] == pytest.approx(np.log2(10))


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_mmlu_subjects_are_pooled_in_figures_and_listed_in_the_table(tmp_path):
    subjects = [f"mmlu_{number:02}" for number in range(57)]
    tasks = {name: answers(12, seed=seed) for seed, name in enumerate(subjects)}
    groups = {"mmlu": ["mmlu_a", "mmlu_b"], "mmlu_a": subjects[:30], "mmlu_b": subjects[30:]}
    write_run(tmp_path / "base", tasks, BASE, groups=groups)
    write_run(tmp_path / "cft", {**tasks, subjects[0]: answers(12, sharpness=0.5)}, CFT, groups=groups)
    report(tmp_path / "base", tmp_path / "cft", "--output", tmp_path / "out")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["tasks"]["mmlu"]["questions"] == 57 * 12
    assert [name for name, task in results["tasks"].items() if task["figures"]] == ["mmlu"]
    assert {path.name.split("_")[0] for path in (tmp_path / "out" / "figures").iterdir()} == {"mmlu", "before", "after"}
    table = (tmp_path / "out" / "report.html").read_text().split('id="all-tasks"')[1]
    assert all(table.count(f'<th scope="row">{name}</th>') == 2 for name in ["mmlu", *subjects])
    whole = [np.concatenate([each[side] for each in tasks.values()]) for side in (0, 1)]
    ours = results["tasks"]["mmlu"]["methods"]["base-7b"]["numbers"]
    from calibtune.results.measures import harness_measures

    assert ours["conf_ece_10"] == harness_measures(*whole)["conf_ece_10"]
    assert results["tasks"]["mmlu"]["methods"]["cft"]["difference"]["questions"] == 57 * 12


@pytest.mark.usefixtures("undrawn")
def test_figures_are_limited_to_the_first_tasks(tmp_path):
    folder = write_run(tmp_path / "run", {f"task{number}": answers(10, seed=number) for number in range(9)})
    tasks = build([folder])["tasks"]
    assert [name for name, task in tasks.items() if task["figures"]] == [f"task{number}" for number in range(6)]
    assert len(tasks) == 9


@pytest.mark.usefixtures("undrawn")
def test_tasks_without_letters_are_left_out_with_a_note(tmp_path):
    text = [{"doc_id": 0, "doc": {}, "target": "#### 4", "resps": [["so 4"]], "filtered_resps": ["4"], "doc_hash": "x"}]
    named = [{**line, "target": "Paris"} for line in sample_lines("capital", *answers(5), filters={"none": None})]
    folder = write_run(
        tmp_path / "run",
        {"arc": answers(40)},
        others={
            "gsm8k": ("generate_until", text, {"exact_match,strict": 1.0}),
            "capital": ("multiple_choice", named, {"acc,none": 0.5}),
        },
    )
    results = build([folder])
    assert list(results["tasks"]) == ["arc"]
    assert len(results["notes"]) == 2
    assert (
        "capital is left out: its right answer is 'Paris', not the index of a choice (base-7b)" in results["notes"][0]
    )
    assert "gsm8k is left out: its output is generate_until, not multiple choice (base-7b)" in results["notes"][1]


def test_task_without_letter_filter_is_reported(tmp_path):
    folder = write_run(tmp_path / "run", {"arc_challenge": answers(40)}, filters={"none": None})
    entry = build([folder])["tasks"]["arc_challenge"]["methods"]["base-7b"]
    assert entry["temperature"] == 1


def test_note_names_results_that_disagree_with_samples(tmp_path):
    folder = write_run(tmp_path / "run", {"arc": answers(40)})
    for path in folder.glob("results_*.json"):
        record = json.loads(path.read_text())
        record["results"]["arc"]["conf_ece_10,none"] = 0.9
        path.write_text(json.dumps(record))
    (note,) = build([folder])["notes"]
    assert "conf-ECE is 0.900000 in the results file" in note
