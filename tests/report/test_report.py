import json
import re

import numpy as np
import pytest
from lm_eval_files import answers, win_lines, write_run
from report_files import BASE, CFT, RCFT, fails, report, two_runs

from calibtune.__main__ import main
from calibtune.report.build import build
from calibtune.results.samples import find_samples, read_samples


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
        "arc: cft was evaluated with 5 few-shot examples, base-7b with 0",
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
    assert "--base nowhere is neither" in fails(capsys, base, cft, "--base", "nowhere", "--output", tmp_path / "out")


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
