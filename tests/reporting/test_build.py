import json

import pytest
from lm_eval_files import answers, write_run

from calibtune.reporting.build import build

BASE, CFT = {"pretrained": "org/base-7b"}, {"pretrained": "org/base-7b", "peft": "runs/cft"}


def runs(folder, tuned, change=None):
    """Folders of a base run and of a tuned one, whose samples lines may be changed."""
    write_run(folder / "base", {"arc": answers(40)}, BASE)
    write_run(folder / "tuned", {"arc": tuned}, CFT)
    (file,) = (folder / "tuned").rglob("samples_*.jsonl")
    if change:
        lines = [change(number, json.loads(line)) for number, line in enumerate(file.read_text().splitlines())]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        for results in (folder / "tuned").rglob("results_*.json"):
            results.unlink()  # it has the hash of the lines as they were
    return [folder / "base", folder / "tuned"]


def test_the_same_log_likelihoods_of_two_models_are_noted(tmp_path):
    notes = build(runs(tmp_path, answers(40)))["notes"]
    assert any("have the same log-likelihoods to the last bit" in note and "--use_cache" in note for note in notes)


def test_other_log_likelihoods_are_not_noted(tmp_path):
    assert not any("to the last bit" in note for note in build(runs(tmp_path, answers(40, sharpness=1.1)))["notes"])


@pytest.mark.parametrize(("changed", "noted"), [(0, False), (3, True)])
def test_other_prompts_of_the_same_questions_are_noted_with_a_count(tmp_path, changed, noted):
    def change(number, line):
        return {**line, "prompt_hash": "other"} if number < changed else line

    notes = build(runs(tmp_path, answers(40, sharpness=1.1), change))["notes"]
    assert any(f"{changed} of 40 prompts of" in note for note in notes) == noted
