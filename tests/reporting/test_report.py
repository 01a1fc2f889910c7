import json
import re
import subprocess
import sys

import numpy as np
import pytest
from lm_eval_files import answers, write_run
from report_files import BASE, CFT, RCFT, fails, report, two_runs

from calibtune.__main__ import main
from calibtune.reporting.build import build
from calibtune.results.samples import find_samples, read_samples


def test_generated_samples_files_are_read_like_lm_evals(tmp_path):
    loglikelihoods, gold = answers(50, 5, ragged=True)
    folder = write_run(tmp_path, {"arc": (loglikelihoods, gold)}, filters={"none": 1.0, "scaled": 2.5})
    rows = read_samples(find_samples(folder)[0])
    assert rows.labels.tolist() == gold
    assert [row[~np.isnan(row)].tolist() for row in rows.log_probs] == loglikelihoods
    assert rows.temperatures == pytest.approx({"none": 1.0, "scaled": 2.5})


def test_report_command_writes_page_figures_tables_and_json(tmp_path, capsys):
    folders = two_runs(tmp_path)
    output = tmp_path / "not" / "there" / "yet"
    assert report(*folders, "--output", output) == 0
    names = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    panels = [f"arc_{kind}_{label}" for kind in ("reliability", "classwise", "options") for label in ("base-7b", "cft")]
    stems = [*panels, "arc_coverage", "arc_plane", "before_base-7b", "after_cft"]
    figures = {f"figures/{stem}.{ending}" for stem in stems for ending in ("svg", "pdf")}
    figures |= {f"figures/{stem}.png" for stem in ("before_base-7b", "after_cft")}
    tables = {f"tables.{ending}" for ending in ("csv", "md", "tex")}
    assert names == {"report.html", "regime.html", "results.json", *tables, *figures}
    page = (output / "report.html").read_text()
    assert set(re.findall('href="([^"]*)" download', page)) == names - {"report.html", "regime.html"}
    told = capsys.readouterr().out
    assert "2 methods on 1 task, base base-7b" in told
    assert f"open {output / 'report.html'}" in told


def test_report_metrics_equal_rescore(tmp_path, capsys):
    folders = two_runs(tmp_path, letters=5, ragged=True)
    report(*folders, "--output", tmp_path / "out")
    capsys.readouterr()
    assert main(["rescore", str(folders[1]), "--json"]) == 0
    (rescored,) = json.loads(capsys.readouterr().out).values()
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    numbers = results["tasks"]["arc"]["methods"]["cft"]["numbers"]
    shared = rescored.keys() - {"task", "questions", "temperature"}
    assert len(shared) > 25
    assert {name: numbers[name] for name in shared} == {name: rescored[name] for name in shared}
    page = (tmp_path / "out" / "report.html").read_text()
    for name in ("acc", "conf_ece_10", "conf_ece_14", "cw_ece_10", "cw_ece_14", "nll", "brier", "letter_mass"):
        assert f"<td>{rescored[name]:.3f}<small>" in page
    for name in ("conf_ece_10", "cw_ece_14"):
        assert f"<small>{rescored[f'{name}_low']:.3f}–{rescored[f'{name}_high']:.3f}</small>" in page


def test_scaled_report_metrics_equal_rescore_at_the_temperature(tmp_path, capsys):
    folder = write_run(tmp_path / "runs", {"arc": answers(150, sharpness=3.0)}, filters={"none": 1.0, "scaled": 2.5})
    results = build([folder])
    capsys.readouterr()
    main(["rescore", str(folder), "--json", "--temperature", "2.5"])
    (rescored,) = json.loads(capsys.readouterr().out).values()
    methods = results["tasks"]["arc"]["methods"]
    assert list(methods) == ["base-7b", "base-7b + temperature T = 2.5"]
    scaled = methods["base-7b + temperature T = 2.5"]
    assert scaled["temperature"] == pytest.approx(2.5)
    for name in ("conf_ece_10", "cw_ece_14", "nll", "brier", "conf_ece_10_high"):
        assert scaled["numbers"][name] == pytest.approx(rescored[name], abs=1e-9)
    assert scaled["unscaled"] == methods["base-7b"]["numbers"]
    assert scaled["numbers"]["acc"] == methods["base-7b"]["numbers"]["acc"]


def test_temperature_json_adds_a_scaled_method(tmp_path):
    folder = write_run(tmp_path / "runs", {"arc": answers(150, sharpness=3.0)})
    (tmp_path / "runs" / "temperature.json").write_text('{"temperature": 3.0}')
    results = build([tmp_path / "runs"])
    plain, scaled = results["tasks"]["arc"]["methods"].values()
    assert scaled["numbers"]["conf_ece_10"] < plain["numbers"]["conf_ece_10"] / 2
    assert results["methods"][1]["temperature_from"] == str(tmp_path / "runs" / "temperature.json")
    assert folder.is_dir()


def test_temperature_of_zero_is_refused(tmp_path, capsys):
    write_run(tmp_path / "runs", {"arc": answers(20)})
    (tmp_path / "runs" / "temperature.json").write_text('{"temperature": 0}')
    assert "temperature is 0" in fails(capsys, tmp_path / "runs", "--output", tmp_path / "out")


def test_scaled_task_is_grouped_with_the_original(tmp_path):
    arc = answers(80, sharpness=3.0)
    write_run(tmp_path / "base", {"arc": arc}, BASE)
    write_run(tmp_path / "scaled", {"arc_scaled": arc}, BASE, filters={"none": 1.0, "scaled": 3.0})
    write_run(tmp_path / "cft", {"arc": answers(80)}, CFT)
    results = build([tmp_path / "base", tmp_path / "scaled", tmp_path / "cft"])
    assert list(results["tasks"]) == ["arc"]
    assert list(results["tasks"]["arc"]["methods"]) == ["base-7b", "base-7b + temperature T = 3", "cft"]


def test_different_tasks_on_the_same_documents_stay_separate(tmp_path):
    (loglikelihoods, gold) = answers(30)
    folders = [write_run(tmp_path / "a", {"mmlu": (loglikelihoods, gold)}, BASE)]
    folders.append(write_run(tmp_path / "b", {"mmlu": (loglikelihoods, gold)}, CFT))
    for path in folders[1].iterdir():
        path.write_text(path.read_text().replace('"mmlu"', '"mmlu_continuation"'))
        path.rename(path.with_name(path.name.replace("_mmlu_", "_mmlu_continuation_")))
    assert list(build(folders)["tasks"]) == ["mmlu", "mmlu_continuation"]


def test_note_names_runs_with_other_prompts_than_the_base(tmp_path):
    write_run(tmp_path / "base", {"arc": answers(30)}, BASE)
    tuned = {"arc": answers(30, sharpness=1.1)}
    write_run(tmp_path / "cft", tuned, CFT, chat_template_sha="abc", **{"n-shot": {"arc": 5}})
    assert build([tmp_path / "base", tmp_path / "cft"])["notes"] == [
        "cft was evaluated with chat template, base-7b without",
        "arc: cft was evaluated with 5 few-shot examples, base-7b with 0",
    ]


def test_clear_differences_are_marked(tmp_path):
    folders = two_runs(tmp_path, rows=800)
    write_run(tmp_path / "same", {"arc": answers(800, sharpness=3.0)}, RCFT)
    report(*folders, "--output", tmp_path / "out")
    methods = build([*folders, tmp_path / "same"])["tasks"]["arc"]["methods"]
    assert "difference" not in methods["base-7b"]
    better, same = methods["cft"]["difference"], methods["rcft"]["difference"]
    assert better["conf_ece_10"]["high"] < 0
    assert better["conf_ece_10"]["clear"]
    assert same["conf_ece_10"] == {"estimate": 0, "low": 0, "high": 0, "clear": False}
    page = (tmp_path / "out" / "report.html").read_text()
    assert f'<td class="better">{better["conf_ece_10"]["estimate"]:+.3f} <span aria-label="better">▲</span>' in page


def test_base_is_the_first_or_named_run(tmp_path, capsys):
    base, cft = two_runs(tmp_path)
    assert build([cft, base])["base"] == "cft"
    assert build([cft, base], base=str(base))["base"] == "base-7b"
    assert build([cft, base], base="base-7b")["base"] == "base-7b"
    write_run(tmp_path / "later", {"other": answers(20)}, BASE)
    assert build([cft, base, tmp_path / "later"], base=str(tmp_path / "later"))["base"] == "base-7b"
    assert "--base nowhere is neither" in fails(capsys, base, cft, "--base", "nowhere", "--output", tmp_path / "out")


def test_report_loads_neither_torch_nor_lm_eval(tmp_path):
    folder = write_run(tmp_path / "run", {"arc": answers(10)})
    code = (
        "import sys; from calibtune.__main__ import main\n"
        f"assert main(['report', {str(folder)!r}, '--output', {str(tmp_path / 'out')!r}]) == 0\n"
        "assert not {'torch', 'lm_eval', 'datasets', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.slow
def test_report_is_reproducible(tmp_path):
    folders = two_runs(tmp_path)
    for name in ("one", "two"):
        report(*folders, "--output", tmp_path / name)
    for file in ("report.html", "results.json", "figures/arc_plane.svg", "figures/arc_plane.pdf"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
