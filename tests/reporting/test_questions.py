import json
import re

from lm_eval_files import answers, write_run
from report_files import BASE, CFT, two_runs

from calibtune.reporting.build import build
from calibtune.results.samples import find_samples


def test_samples_without_document_hashes_are_unpaired(tmp_path):
    folders = two_runs(tmp_path)
    for path in [find_samples(folder)[0] for folder in folders]:
        path.write_text(re.sub('"doc_hash": "[^"]*", ', "", path.read_text()))
    assert build(folders)["tasks"]["arc"]["methods"]["cft"]["difference"] == {"questions": 0}


def test_questions_are_matched_by_document_hash(tmp_path):
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


def test_runs_without_shared_questions_get_a_note(tmp_path):
    folders = two_runs(tmp_path)
    path = find_samples(folders[1])[0]
    path.write_text(path.read_text().replace('"doc_hash": "', '"doc_hash": "other'))
    results = build(folders)
    assert results["tasks"]["arc"]["methods"]["cft"]["difference"] == {"questions": 0}
    assert results["notes"] == ["cft and base-7b share no question of arc"]
