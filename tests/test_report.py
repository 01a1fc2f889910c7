import json
import re
import subprocess
import sys

import numpy as np
import pytest
from lm_eval_files import answers, sample_lines, win_lines, write_run

from calibtune.__main__ import main
from calibtune.report.build import build
from calibtune.samples import find_samples, read_samples

BASE = {"pretrained": "org/base-7b"}
CFT = {"pretrained": "org/base-7b", "peft": "runs/cft"}
RCFT = {"pretrained": "org/base-7b", "peft": "runs/rcft"}


def report(*arguments):
    return main(["report", *map(str, arguments)])


def two_runs(folder, rows=120, **options):
    write_run(folder / "base", {"arc": answers(rows, sharpness=3.0, **options)}, BASE)
    write_run(folder / "cft", {"arc": answers(rows, sharpness=1.0, **options)}, CFT)
    return folder / "base", folder / "cft"


def fails(capsys, *arguments):
    """The one sentence that the command ends with."""
    assert report(*arguments) == 2
    return capsys.readouterr().err


def test_the_files_made_here_are_read_like_lm_evals(tmp_path):
    loglikelihoods, gold = answers(50, 5, ragged=True)
    folder = write_run(tmp_path, {"arc": (loglikelihoods, gold)}, filters={"none": 1.0, "scaled": 2.5})
    rows = read_samples(find_samples(folder)[0])
    assert rows.gold.tolist() == gold
    assert [row[~np.isnan(row)].tolist() for row in rows.loglikelihoods] == loglikelihoods
    assert rows.temperatures == pytest.approx({"none": 1.0, "scaled": 2.5})


def test_one_command_writes_page_figures_tables_and_numbers(tmp_path, capsys):
    folders = two_runs(tmp_path)
    output = tmp_path / "not" / "there" / "yet"
    assert report(*folders, "--output", output) == 0
    names = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    figures = {
        f"figures/arc_{kind}.{ending}"
        for kind in ("reliability", "classwise", "options", "coverage", "plane")
        for ending in ("png", "svg")
    }
    assert names == {"report.html", "tables.md", "tables.tex", "results.json", *figures}
    told = capsys.readouterr().out
    assert "2 methods on 1 task, base base-7b" in told
    assert f"open {output / 'report.html'}" in told


def test_the_page_refers_to_nothing_outside_itself(tmp_path):
    report(*two_runs(tmp_path), "--output", tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    references = re.findall(r'(?:src|href|data|action|poster)="([^"]*)"', page)
    assert references
    assert all(reference.startswith(("#", "data:")) for reference in references)
    assert "@import" not in page
    assert re.findall(r"url\((?!#)", page) == []


def test_numbers_on_the_page_are_rescores(tmp_path, capsys):
    folders = two_runs(tmp_path, letters=5, ragged=True)
    report(*folders, "--output", tmp_path / "out")
    capsys.readouterr()
    assert main(["rescore", str(folders[1]), "--json"]) == 0
    (rescored,) = json.loads(capsys.readouterr().out).values()
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    numbers = results["tasks"]["arc"]["methods"]["cft"]["numbers"]
    shared = rescored.keys() - {"task", "questions"}
    assert len(shared) > 25
    assert {name: numbers[name] for name in shared} == {name: rescored[name] for name in shared}
    page = (tmp_path / "out" / "report.html").read_text()
    for name in ("acc", "conf_ece_10", "conf_ece_14", "cw_ece_10", "cw_ece_14", "nll", "brier", "letter_mass"):
        assert f"<td>{rescored[name]:.4f}<small>" in page
    for name in ("conf_ece_10", "cw_ece_14"):
        assert f"<small>{rescored[f'{name}_low']:.4f}–{rescored[f'{name}_high']:.4f}</small>" in page


def test_numbers_at_a_temperature_are_rescores_at_that_temperature(tmp_path, capsys):
    folder = write_run(tmp_path / "runs", {"arc": answers(150, sharpness=3.0)}, filters={"none": 1.0, "scaled": 2.5})
    results = build([folder])
    capsys.readouterr()
    main(["rescore", str(folder), "--json", "--temperature", "2.5"])
    (rescored,) = json.loads(capsys.readouterr().out).values()
    methods = results["tasks"]["arc"]["methods"]
    assert list(methods) == ["base-7b", "base-7b + scaled"]
    scaled = methods["base-7b + scaled"]
    assert scaled["temperature"] == pytest.approx(2.5)
    for name in ("conf_ece_10", "cw_ece_14", "nll", "brier", "conf_ece_10_high"):
        assert scaled["numbers"][name] == pytest.approx(rescored[name], abs=1e-9)
    assert scaled["unscaled"] == methods["base-7b"]["numbers"]
    assert scaled["numbers"]["acc"] == methods["base-7b"]["numbers"]["acc"]


def test_a_temperature_json_beside_the_runs_adds_the_scaled_numbers(tmp_path):
    folder = write_run(tmp_path / "runs", {"arc": answers(150, sharpness=3.0)})
    (tmp_path / "runs" / "temperature.json").write_text('{"temperature": 3.0}')
    results = build([tmp_path / "runs"])
    plain, scaled = results["tasks"]["arc"]["methods"].values()
    assert scaled["numbers"]["conf_ece_10"] < plain["numbers"]["conf_ece_10"] / 2
    assert results["methods"][1]["temperature_from"] == str(tmp_path / "runs" / "temperature.json")
    assert folder.is_dir()


def test_a_temperature_that_is_none_is_refused(tmp_path, capsys):
    write_run(tmp_path / "runs", {"arc": answers(20)})
    (tmp_path / "runs" / "temperature.json").write_text('{"temperature": 0}')
    assert "temperature is 0" in fails(capsys, tmp_path / "runs", "--output", tmp_path / "out")


def test_the_generated_tasks_of_a_temperature_stand_beside_the_original(tmp_path):
    arc = answers(80, sharpness=3.0)
    write_run(tmp_path / "base", {"arc": arc}, BASE)
    write_run(tmp_path / "scaled", {"arc_scaled": arc}, BASE, filters={"none": 1.0, "scaled": 3.0})
    write_run(tmp_path / "cft", {"arc": answers(80)}, CFT)
    results = build([tmp_path / "base", tmp_path / "scaled", tmp_path / "cft"])
    assert list(results["tasks"]) == ["arc"]
    assert list(results["tasks"]["arc"]["methods"]) == ["base-7b", "base-7b + scaled", "cft"]


def test_other_tasks_on_the_same_documents_stay_apart(tmp_path):
    (loglikelihoods, gold) = answers(30)
    folders = [write_run(tmp_path / "a", {"mmlu": (loglikelihoods, gold)}, BASE)]
    folders.append(write_run(tmp_path / "b", {"mmlu": (loglikelihoods, gold)}, CFT))
    for path in folders[1].iterdir():
        path.write_text(path.read_text().replace('"mmlu"', '"mmlu_continuation"'))
        path.rename(path.with_name(path.name.replace("_mmlu_", "_mmlu_continuation_")))
    assert list(build(folders)["tasks"]) == ["mmlu", "mmlu_continuation"]


def test_samples_without_document_hashes_are_not_paired(tmp_path):
    folders = two_runs(tmp_path)
    for path in [find_samples(folder)[0] for folder in folders]:
        path.write_text(re.sub('"doc_hash": "[^"]*", ', "", path.read_text()))
    assert build(folders)["tasks"]["arc"]["methods"]["cft"]["difference"] == {"questions": 0}


def test_runs_with_other_prompts_than_the_base_are_noted(tmp_path):
    write_run(tmp_path / "base", {"arc": answers(30)}, BASE)
    write_run(tmp_path / "cft", {"arc": answers(30)}, CFT, chat_template_sha="abc", **{"n-shot": {"arc": 5}})
    assert build([tmp_path / "base", tmp_path / "cft"])["notes"] == [
        "cft was evaluated with chat template, base-7b with neither chat template nor system instruction",
        "arc: cft saw 5 examples, base-7b 0",
    ]


def test_differences_are_marked_where_the_interval_excludes_zero(tmp_path):
    folders = two_runs(tmp_path, rows=800)
    write_run(tmp_path / "same", {"arc": answers(800, sharpness=3.0)}, RCFT)
    report(*folders, tmp_path / "same", "--output", tmp_path / "out")
    methods = json.loads((tmp_path / "out" / "results.json").read_text())["tasks"]["arc"]["methods"]
    assert "difference" not in methods["base-7b"]
    better, same = methods["cft"]["difference"], methods["rcft"]["difference"]
    assert better["conf_ece_10"]["high"] < 0
    assert better["conf_ece_10"]["clear"]
    assert same["conf_ece_10"] == {"estimate": 0, "low": 0, "high": 0, "clear": False}
    page = (tmp_path / "out" / "report.html").read_text()
    assert f'<td class="better">{better["conf_ece_10"]["estimate"]:+.4f} <span aria-label="better">▲</span>' in page


def test_questions_are_matched_by_their_documents_not_their_place(tmp_path):
    loglikelihoods, gold = answers(60, sharpness=2.0)
    write_run(tmp_path / "base", {"arc": (loglikelihoods, gold)}, BASE)
    folder = write_run(tmp_path / "cft", {"arc": (loglikelihoods, gold)}, CFT)
    path = find_samples(folder)[0]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [{**line, "doc_id": 59 - line["doc_id"]} for line in lines if line["doc_id"] >= 20]
    for results in folder.glob("results_*.json"):
        results.write_text(results.read_text().replace('"effective": 60', '"effective": 40'))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    entry = build([tmp_path / "base", tmp_path / "cft"])["tasks"]["arc"]["methods"]["cft"]
    assert entry["questions"] == 40
    assert entry["difference"]["questions"] == 40
    assert entry["difference"]["nll"] == {"estimate": 0, "low": 0, "high": 0, "clear": False}


def test_runs_without_a_shared_question_get_no_difference_but_a_note(tmp_path):
    folders = two_runs(tmp_path)
    path = find_samples(folders[1])[0]
    path.write_text(path.read_text().replace('"doc_hash": "', '"doc_hash": "other'))
    results = build(folders)
    assert results["tasks"]["arc"]["methods"]["cft"]["difference"] == {"questions": 0}
    assert results["notes"] == ["cft and base-7b share no question of arc"]


def test_base_is_the_first_folder_or_the_one_named(tmp_path, capsys):
    base, cft = two_runs(tmp_path)
    assert build([cft, base])["base"] == "cft"
    assert build([cft, base], base=str(base))["base"] == "base-7b"
    assert build([cft, base], base="base-7b")["base"] == "base-7b"
    write_run(tmp_path / "later", {"other": answers(20)}, BASE)
    assert build([cft, base, tmp_path / "later"], base=str(tmp_path / "later"))["base"] == "base-7b"
    assert "--base nowhere is none of" in fails(capsys, base, cft, "--base", "nowhere", "--output", tmp_path / "out")


def test_one_model_makes_a_page_without_differences(tmp_path, capsys):
    folder = write_run(tmp_path, {"arc": answers(60)})
    assert report(folder, "--output", tmp_path / "out") == 0
    assert "calibtune fit --method temperature --model org/base-7b --tasks arc" in capsys.readouterr().out
    assert "Differences to" not in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("rows", [1, 2])
def test_a_question_or_two_make_a_page(tmp_path, rows):
    folder = write_run(tmp_path, {"arc": answers(rows)})
    write_run(tmp_path, {"arc": answers(rows)}, CFT)
    assert report(tmp_path, "--output", tmp_path.parent / f"out{rows}") == 0
    results = json.loads((tmp_path.parent / f"out{rows}" / "results.json").read_text())
    assert results["tasks"]["arc"]["questions"] == rows
    assert folder.is_dir()


def test_ten_options_make_ten_panels(tmp_path):
    folder = write_run(tmp_path / "run", {"pro": answers(150, 10)})
    report(folder, "--output", tmp_path / "out")
    svg = (tmp_path / "out" / "figures" / "pro_classwise.svg").read_text()
    assert all(f">{letter} (N = 150)<" in svg for letter in "ABCDEFGHIJ")
    entry = json.loads((tmp_path / "out" / "results.json").read_text())["tasks"]["pro"]["methods"]["base-7b"]
    assert sum(entry["options"]["chosen"]) == pytest.approx(1)
    assert entry["options"]["entropy_most"] == pytest.approx(np.log2(10))


def test_57_subjects_are_pooled_for_the_figures_and_all_in_the_table(tmp_path):
    subjects = [f"mmlu_{number:02}" for number in range(57)]
    tasks = {name: answers(12, seed=seed) for seed, name in enumerate(subjects)}
    groups = {"mmlu": ["mmlu_a", "mmlu_b"], "mmlu_a": subjects[:30], "mmlu_b": subjects[30:]}
    write_run(tmp_path / "base", tasks, BASE, groups=groups)
    write_run(tmp_path / "cft", {**tasks, subjects[0]: answers(12, sharpness=0.5)}, CFT, groups=groups)
    report(tmp_path / "base", tmp_path / "cft", "--output", tmp_path / "out")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["tasks"]["mmlu"]["questions"] == 57 * 12
    assert [name for name, task in results["tasks"].items() if task["figures"]] == ["mmlu"]
    assert {path.name.split("_")[0] for path in (tmp_path / "out" / "figures").iterdir()} == {"mmlu"}
    assert len(list((tmp_path / "out" / "figures").iterdir())) == 10
    table = (tmp_path / "out" / "report.html").read_text().split('id="all-tasks"')[1]
    assert all(table.count(f'<th scope="row">{name}</th>') == 2 for name in ["mmlu", *subjects])
    whole = [np.concatenate([each[side] for each in tasks.values()]) for side in (0, 1)]
    ours = results["tasks"]["mmlu"]["methods"]["base-7b"]["numbers"]
    from calibtune.measures import harness_measures

    assert ours["conf_ece_10"] == harness_measures(*whole)["conf_ece_10"]
    assert results["tasks"]["mmlu"]["methods"]["cft"]["difference"]["questions"] == 57 * 12


def test_many_tasks_without_a_group_get_figures_for_the_first(tmp_path):
    folder = write_run(tmp_path / "run", {f"task{number}": answers(10, seed=number) for number in range(9)})
    tasks = build([folder])["tasks"]
    assert [name for name, task in tasks.items() if task["figures"]] == [f"task{number}" for number in range(6)]
    assert len(tasks) == 9


def test_mixed_tasks_leave_out_what_has_no_letters_and_say_so(tmp_path):
    text = [{"doc_id": 0, "doc": {}, "target": "#### 4", "resps": [["so 4"]], "filtered_resps": ["4"], "doc_hash": "x"}]
    named = [{**line, "target": "Paris"} for line in sample_lines("capital", *answers(5), {"none": None})]
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


def test_a_stock_task_without_our_filter_is_reported(tmp_path):
    folder = write_run(tmp_path / "run", {"arc_challenge": answers(40)}, filters={"none": None})
    entry = build([folder])["tasks"]["arc_challenge"]["methods"]["base-7b"]
    assert entry["temperature"] == 1


def test_a_results_file_that_disagrees_with_its_samples_is_said(tmp_path):
    folder = write_run(tmp_path / "run", {"arc": answers(40)})
    for path in folder.glob("results_*.json"):
        record = json.loads(path.read_text())
        record["results"]["arc"]["conf_ece_10,none"] = 0.9
        path.write_text(json.dumps(record))
    (note,) = build([folder])["notes"]
    assert "results file says conf-ECE 0.900000" in note


def test_win_rates_stand_in_a_table_with_their_difference(tmp_path):
    arc = answers(40)
    write_run(tmp_path / "base", {"arc": arc}, BASE, others={"ultrafeedback_winrate": win_lines(rate=0.5)})
    write_run(tmp_path / "cft", {"arc": arc}, CFT, others={"ultrafeedback_winrate": win_lines(rate=0.9)})
    judged = {"benchmark": "alpaca_eval", "model": "runs/cft", "baseline": "gpt4", "win_rate": 0.2992, "n": 805}
    (tmp_path / "judged").mkdir()
    (tmp_path / "judged" / "winrate_alpaca_eval.json").write_text(json.dumps({**judged, "low": 0.27, "high": 0.33}))
    folders = [tmp_path / "base", tmp_path / "cft", tmp_path / "judged"]
    assert report(*folders, "--output", tmp_path / "out") == 0
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["win_rates"]
    assert [(row["label"], row["baseline"]) for row in rows] == [
        *(2 * [("base-7b", "the rejected response"), ("cft", "the rejected response")]),
        ("cft", "gpt4"),
    ]
    assert rows[1]["difference"]["clear"]
    assert rows[1]["difference"]["questions"] == 200
    assert "<td>0.2992<small>0.2700–0.3300</small></td>" in (tmp_path / "out" / "report.html").read_text()
    table = (tmp_path / "out" / "tables.md").read_text().split("## Win rates")[1]
    assert "| model | win rate | difference to base | benchmark | against | N | note |" in table
    assert "| cft | 0.2992 (0.2700–0.3300) | – | alpaca\\_eval | gpt4 | 805 |  |" in table
    runs = table.split("## Runs")[1]
    assert "| method | model | adapter | folder |" in runs
    assert f"| cft | org/base-7b | runs/cft | {tmp_path}/cft/runs__cft |".replace("_", "\\_") in runs


def test_win_rates_alone_make_a_page(tmp_path):
    (tmp_path / "in").mkdir()
    record = {"benchmark": "arena_hard", "model": "m", "baseline": "gpt4", "win_rate": 0.4, "note": "made up"}
    (tmp_path / "in" / "winrate_arena_hard.json").write_text(json.dumps(record))
    assert report(tmp_path / "in", "--output", tmp_path / "out") == 0
    assert "arena\\_hard" in (tmp_path / "out" / "tables.md").read_text()


def test_a_win_rate_in_per_cent_is_refused(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "winrate_x.json").write_text('{"benchmark": "x", "win_rate": 29.92}')
    assert "win_rate is 29.92" in fails(capsys, tmp_path / "in", "--output", tmp_path / "out")


def test_results_without_samples_name_the_missing_flag(tmp_path, capsys):
    folder = write_run(tmp_path / "run", {"arc": answers(10)}, samples=False)
    message = fails(capsys, folder, "--output", tmp_path / "out")
    assert "--log_samples" in message
    assert str(folder) in message
    assert not (tmp_path / "out").exists()


def test_a_missing_folder_is_named(tmp_path, capsys):
    assert f"{tmp_path / 'no'} does not exist" in fails(capsys, tmp_path / "no", "--output", tmp_path / "out")


def test_a_damaged_samples_file_stops_the_report(tmp_path, capsys):
    folder = write_run(tmp_path / "run", {"arc": answers(10)})
    path = find_samples(folder)[0]
    path.write_text(path.read_text()[:-30])
    assert "line 10: not a whole JSON object" in fails(capsys, folder, "--output", tmp_path / "out")


def test_an_existing_report_is_kept_unless_overwritten(tmp_path, capsys):
    folder = write_run(tmp_path / "run", {"arc": answers(10)})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    assert "--overwrite" in fails(capsys, folder, "--output", tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").read_text() == "precious"
    assert report(folder, "--output", tmp_path / "out", "--overwrite") == 0
    assert not (tmp_path / "out" / "mine.txt").exists()


def test_what_is_there_stays_when_the_runs_cannot_be_read(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.html").write_text("old")
    fails(capsys, tmp_path / "no", "--output", tmp_path / "out", "--overwrite")
    assert (tmp_path / "out" / "report.html").read_text() == "old"


def test_the_report_never_overwrites_its_own_runs(tmp_path, capsys):
    folder = write_run(tmp_path / "run", {"arc": answers(10)})
    for output in (folder, tmp_path / "run", tmp_path):
        assert "give a folder of its own" in fails(capsys, folder, "--output", output, "--overwrite")
    assert find_samples(folder)


def test_the_report_needs_no_torch_and_no_harness(tmp_path):
    folder = write_run(tmp_path / "run", {"arc": answers(10)})
    code = (
        "import sys; from calibtune.__main__ import main\n"
        f"assert main(['report', {str(folder)!r}, '--output', {str(tmp_path / 'out')!r}]) == 0\n"
        "assert not {'torch', 'lm_eval', 'datasets', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_tables_escape_what_latex_and_markdown_would_read(tmp_path):
    folder = write_run(tmp_path / "run", {"mc_calib_arc": answers(10)}, {"pretrained": "org/100%_a&b|c"})
    report(folder, "--output", tmp_path / "out")
    latex = (tmp_path / "out" / "tables.tex").read_text()
    assert r"100\%\_a\&b\textbar{}c" in latex
    assert latex.count(r"\toprule") == latex.count(r"\bottomrule") == latex.count(r"\begin{table}") == 3
    for table in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", latex, re.DOTALL):
        rows = [line for line in table[1].splitlines() if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {len(table[0])}
    markdown = (tmp_path / "out" / "tables.md").read_text()
    assert r"100%\_a&b\|c" in markdown


def test_names_cannot_break_out_of_the_page(tmp_path):
    folder = write_run(tmp_path / "run", {"arc": answers(10)}, {"pretrained": 'x<script>alert("1")</script>&$a_b$'})
    report(folder, "--output", tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page


def test_the_same_runs_give_the_same_page(tmp_path):
    folders = two_runs(tmp_path)
    for name in ("one", "two"):
        report(*folders, "--output", tmp_path / name)
    for file in ("report.html", "results.json", "figures/arc_plane.svg", "figures/arc_plane.png"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
