"""What the issue calls bad input and other files do not try, through the real TaskManager or the real command line."""

import json
import logging

import pytest
from commands import run_command
from harness import FakeLM, enter_mirror, evaluate
from tiny import save_tiny, write_arc_mirror

from harness_ext.errors import UserError

GOOD = {
    "allenai/openbookqa": {
        "id": "o",
        "question_stem": "Which?",
        "choices": {"text": ["w", "x", "y", "z"], "label": ["A", "B", "C", "D"]},
        "answerKey": "D",
    },
    "openlifescienceai/medmcqa": {
        "id": "m",
        "question": "Which?",
        **{"opa": "w", "opb": "x", "opc": "y", "opd": "z", "cop": 3},
    },
    "cais/mmlu": {"question": "Which?", "subject": "anatomy", "choices": ["w", "x", "y", "z"], "answer": 3},
}
CONFIGURATION = {"allenai/openbookqa": "main", "openlifescienceai/medmcqa": "default", "cais/mmlu": "all"}
TASK = {
    "allenai/openbookqa": "mc_calib_openbookqa",
    "openlifescienceai/medmcqa": "mc_calib_medmcqa",
    "cais/mmlu": "mc_calib_mmlu",
}
SPLITS = ("train", "validation", "test", "dev")


def write_mirror(folder, name, second_row):
    target = folder / name
    target.mkdir(parents=True)
    files = "".join(f"  - split: {split}\n    path: {split}.jsonl\n" for split in SPLITS)
    (target / "README.md").write_text(
        f"---\nconfigs:\n- config_name: {CONFIGURATION[name]}\n  data_files:\n{files}---\n"
    )
    evaluated = "validation" if name == "openlifescienceai/medmcqa" else "test"
    for split in SPLITS:
        rows = [GOOD[name], {**GOOD[name], **second_row} if split == evaluated else GOOD[name]]
        (target / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize(
    ("name", "second_row", "message"),
    [
        ("allenai/openbookqa", {"answerKey": ""}, r"openbookqa test row 1 \(id o\) has no right answer: answerKey ''"),
        ("allenai/openbookqa", {"answerKey": "E"}, "answerKey 'E' is not one of"),
        ("openlifescienceai/medmcqa", {"cop": -1}, r"medmcqa validation row 1 \(id m\) has no right answer: -1"),
        ("openlifescienceai/medmcqa", {"cop": None}, "row 1 .* has no right answer: None"),
        (
            "openlifescienceai/medmcqa",
            {"opc": None},
            r"row 1 .* options that are not texts \(\[.w., .x., None, .z.\]\)",
        ),
        ("cais/mmlu", {"answer": 4}, "mmlu test row 1 has no right answer: 4 is not an index of its 4 options"),
        ("cais/mmlu", {"choices": ["w", " ", "y", "z"]}, "mmlu test row 1 .*empty option B"),
    ],
)
def test_a_row_that_cannot_be_scored_stops_its_task(tmp_path, monkeypatch, name, second_row, message):
    enter_mirror(write_mirror(tmp_path, name, second_row), monkeypatch)
    with pytest.raises(UserError, match=message):
        evaluate([TASK[name]], FakeLM(lambda *_: pytest.fail("the model was asked")))


@pytest.mark.parametrize(
    ("name", "second_row"),
    [("cais/mmlu", {"choices": ["w", "x", "x ", "z"]}), ("openlifescienceai/medmcqa", {"opa": "x"})],
)
def test_repeated_options_of_sets_that_have_them_are_left_out_by_name(tmp_path, monkeypatch, caplog, name, second_row):
    enter_mirror(write_mirror(tmp_path, name, second_row), monkeypatch)
    with caplog.at_level(logging.WARNING):
        run = evaluate([TASK[name]], FakeLM(lambda _, letter: (-float(ord(letter[-1]) - 64), False)))
    assert len(run["samples"][TASK[name]]) == 1
    assert "1 of 2 questions have the same option twice and are left out, rows [1]" in caplog.text


def test_a_tokenizer_that_knows_no_letters_is_refused_before_the_first_forward_pass(tmp_path, monkeypatch):
    import lm_eval.models.huggingface as backend
    from tokenizers import Tokenizer, models, pre_tokenizers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    save_tiny(tmp_path / "model")
    words = {word: i for i, word in enumerate(["[UNK]", "<|end|>", "Answer", "with", "letter", ":"])}
    core = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", eos_token="<|end|>").save_pretrained(
        tmp_path / "model"
    )
    monkeypatch.setattr(backend.HFLM, "_model_call", lambda *_, **__: pytest.fail("the model was asked"))
    enter_mirror(write_arc_mirror(tmp_path / "hub"), monkeypatch)
    with pytest.raises(UserError, match=r"' A'=\[0\], ' B'=\[0\].*not one of their own each.*doctor"):
        evaluate(["mc_calib_arc"], tmp_path / "model")


@pytest.mark.slow
def test_cut_prompts_by_the_command_line_stop_it_unless_accepted(tmp_path):
    mirror, model = write_arc_mirror(tmp_path / "hub"), save_tiny(tmp_path / "short", context=80)
    arguments = ("--model", "hf", "--model_args", f"pretrained={model},dtype=float32", "--tasks", "mc_calib_arc")
    arguments = (*arguments, "--output_path", tmp_path / "out")
    refused = run_command(mirror, tmp_path / "cache", *arguments)
    assert refused.returncode != 0
    assert "of 24 prompts are longer than the model's 80 tokens" in refused.stderr
    assert "--metadata '{\"allow_cut_prompts\": true}'" in refused.stderr
    assert "conf_ece_10" not in refused.stdout
    assert not list(tmp_path.glob("out/**/results_*.json"))
    accepted = run_command(mirror, tmp_path / "cache", *arguments, "--metadata", '{"allow_cut_prompts": true}')
    assert accepted.returncode == 0, accepted.stderr
    assert "of 24 prompts are longer than the model's 80 tokens" in accepted.stderr
    assert "conf_ece_10" in accepted.stdout
