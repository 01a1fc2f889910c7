"""What the report says in plain words: sentences, badges and the most confident mistakes."""

import json
import math

import pytest
from lm_eval_files import answers, write_run
from report_files import BASE, CFT, report, two_runs

from calibtune.reporting.build import build
from calibtune.reporting.sentences import before_after, sentences

pytestmark = pytest.mark.usefixtures("undrawn")


def guesses(rows):
    """Answers of a model that is hardly sure of two letters, others for each question."""
    return [[-1.4 if letter in (row % 4, (row + 1) % 4) else -1.5 for letter in range(4)] for row in range(rows)]


def test_a_fit_is_said_beside_its_model(tmp_path):
    results = build(two_runs(tmp_path))
    base, cft = (entry["numbers"] for entry in results["tasks"]["arc"]["methods"].values())
    said = [f"{100 * n['mean_confidence']:.0f} % sure, {100 * n['acc']:.0f} % right" for n in (base, cft)]
    texts = [row["text"] for row in sentences(results, "arc")]
    assert texts == [f"{said[0]} on arc.", f"{said[0]} on arc; after cft {said[1]}."]


def test_the_pair_is_the_base_and_a_fit_of_its_model_rather_than_another_model(tmp_path):
    write_run(tmp_path / "a", {"arc": answers(120, sharpness=3.0)}, BASE)
    write_run(tmp_path / "b", {"arc": answers(120, sharpness=1.0)}, {"pretrained": "org/other"})
    write_run(tmp_path / "c", {"arc": answers(120, sharpness=1.6)}, CFT)
    results = build([tmp_path / name for name in "abc"])
    assert before_after(results, "arc") == ["base-7b", "base-7b + cft"]


def test_badges_tell_guessing_calibration_ties_and_cut_tasks(tmp_path):
    rows, gold = answers(300, sharpness=1.0)
    sizes = {"n-samples": {"arc": {"original": 900, "effective": 300}}}
    write_run(tmp_path / "good", {"arc": (rows, gold)}, BASE)
    write_run(tmp_path / "flat", {"arc": (guesses(300), gold)}, CFT, **sizes)
    good, flat = (
        entry["badges"] for entry in build([tmp_path / "good", tmp_path / "flat"])["tasks"]["arc"]["methods"].values()
    )
    assert list(good) == ["cannot be told from calibrated"]
    assert {"at chance", "ties", "cut"} <= set(flat)
    assert flat["cut"] == "300 of 900 questions were asked"


def hide_letters(folder, rows):
    """Have the first rows' least likely letter unseen, as behind a server that shows its top tokens alone."""
    (path,) = folder.glob("samples_*.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines[:rows]:
        min(line["resps"], key=lambda response: float(response[0][0]))[0][1] = "None"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_questions_with_letters_that_a_server_did_not_show_are_counted_in_a_badge(tmp_path):
    folder = write_run(tmp_path / "served", {"arc": answers(60)}, BASE)
    hide_letters(folder, 7)
    whole = write_run(tmp_path / "whole", {"arc": answers(60)}, CFT)
    served, other = (entry["badges"] for entry in build([folder, whole])["tasks"]["arc"]["methods"].values())
    assert served["letters missing"] == "in 7 of 60 questions the server did not show all letters"
    assert "letters missing" not in other
    report(folder, "--output", tmp_path / "out")
    assert "letters missing<span" in (tmp_path / "out" / "report.html").read_text()
    assert "Letters missing: in 7 of 60 questions" in (tmp_path / "out" / "tables.md").read_text()


def test_a_model_that_writes_something_else_than_letters_has_a_badge(tmp_path):
    rows, gold = answers(60)
    write_run(tmp_path / "prose", {"arc": ([[x + math.log(0.3) for x in row] for row in rows], gold)}, BASE)
    (entry,) = build([tmp_path / "prose"])["tasks"]["arc"]["methods"].values()
    assert entry["badges"]["letters missing"] == "the letters hold 29% of the probability"


def test_other_prompts_have_a_badge(tmp_path):
    write_run(tmp_path / "base", {"arc": answers(60)}, BASE)
    write_run(tmp_path / "cft", {"arc": answers(60)}, CFT, **{"n-shot": {"arc": 5}})
    results = build([tmp_path / "base", tmp_path / "cft"])
    assert "5 few-shot examples" in results["tasks"]["arc"]["methods"]["cft"]["badges"]["prompts differ"]


def test_gains_of_a_model_that_guesses_are_not_marked(tmp_path):
    rows, gold = answers(300, sharpness=4.0)
    write_run(tmp_path / "base", {"arc": (rows, gold)}, BASE)
    write_run(tmp_path / "cft", {"arc": (guesses(300), gold)}, CFT)
    report(tmp_path / "base", tmp_path / "cft", "--output", tmp_path / "out")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["tasks"]["arc"]["methods"]["cft"]["difference"]["conf_ece_10"]["clear"]
    assert 'class="better"><' not in (tmp_path / "out" / "report.html").read_text()
    assert 'aria-label="better"' not in (tmp_path / "out" / "report.html").read_text()


def test_the_most_confident_mistakes_are_shown_with_question_and_options(tmp_path):
    write_run(tmp_path / "run", {"arc": answers(200, sharpness=3.0)}, BASE)
    report(tmp_path / "run", "--output", tmp_path / "out")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    rows = results["tasks"]["arc"]["methods"]["base-7b"]["mistakes"]
    confidence = [row["confidence"] for row in rows]
    assert len(rows) == 10
    assert confidence == sorted(confidence, reverse=True)
    said, gold = answers(200, sharpness=3.0)
    for row in rows:
        number = int(row["question"].split()[-1].rstrip("?"))
        assert row["right"] == "ABCD"[gold[number]] != row["chosen"]
        assert row["chosen"] == "ABCD"[said[number].index(max(said[number]))]
        assert row["options"] == [f"option {i}" for i in range(4)]
    assert f"<p>{rows[0]['question']}</p>" in (tmp_path / "out" / "report.html").read_text()


def test_a_base_that_was_evaluated_twice_is_one_method(tmp_path):
    write_run(tmp_path / "a", {"arc": answers(60)}, BASE)
    write_run(tmp_path / "b", {"arc": answers(60)}, {**BASE, "dtype": "auto", "trust_remote_code": False})
    assert list(build([tmp_path / "a", tmp_path / "b"])["tasks"]["arc"]["methods"]) == ["base-7b"]
