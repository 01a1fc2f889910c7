"""``calibtune eval --guard winrate``, as a release's gate would call it."""

import json
import shutil

import pytest
from fitting import small_fit
from harness import enter_mirror
from tiny import CHAT_TEMPLATE, save_tiny, write_arc_mirror

from calibtune.__main__ import main
from calibtune.results.samples import find_samples

TASK = "ultrafeedback_winrate"


def evaluation(output, *more):
    words = ["eval", "--tasks", TASK, "--device", "cpu", "--precision", "fp32", "--output", output, *more]
    return main([str(word) for word in words])


def write_pairs(hub, pairs):
    folder = hub / "argilla" / "ultrafeedback-binarized-preferences"
    folder.mkdir(parents=True, exist_ok=True)
    names = ("instruction", "chosen_response", "rejected_response")
    (folder / "train.jsonl").write_text("".join(json.dumps(dict(zip(names, p, strict=True))) + "\n" for p in pairs))


@pytest.fixture
def base(tmp_path, monkeypatch):
    """A model, its evaluation on pairs that it always gets right, and the mirror."""
    hub = enter_mirror(write_arc_mirror(tmp_path / "hub"), monkeypatch)
    model = save_tiny(tmp_path / "model")
    pairs = [(f"Which of these, {i}?", f"option {i} a", f"letter {7 * i} b") for i in range(40)]
    write_pairs(hub, pairs)
    assert evaluation(tmp_path / "first", "--model", model) == 0
    samples = [json.loads(line) for line in find_samples(tmp_path / "first")[0].read_text().splitlines()]
    preferred = []
    for sample, (question, one, other) in zip(sorted(samples, key=lambda s: s["doc_id"]), pairs, strict=True):
        first, second = (float(resp[0][0]) for resp in sample["resps"])
        preferred.append((question, one, other) if first > second else (question, other, one))
    write_pairs(hub, preferred)
    assert evaluation(tmp_path / "base", "--model", model) == 0
    return model


def test_an_artifact_that_lost_its_preferences_fails_with_exit_code_one(base, tmp_path, capsys):
    small_fit(base, tmp_path / "broken", "cft", learning_rate=0.3, epochs=6, max_grad_norm=0.0)
    guarded = ("--artifact", tmp_path / "broken", "--guard", "winrate", "--guard-base", tmp_path / "base")
    assert evaluation(tmp_path / "out", *guarded) == 1
    error = capsys.readouterr().err
    assert "calibtune: error: --guard winrate: win rate 1.0000 before and 0." in error
    assert "worse by more than the margin 0.02" in error
    # A margin wide enough lets the same artifact pass.
    assert evaluation(tmp_path / "again", *guarded, "--margin", "0.99") == 0


def test_an_artifact_that_kept_them_passes(base, tmp_path, capsys):
    small_fit(base, tmp_path / "same", "cft", learning_rate=1e-9)
    guarded = ("--artifact", tmp_path / "same", "--guard", "winrate", "--guard-base", tmp_path / "base")
    assert evaluation(tmp_path / "out", *guarded) == 0
    assert "not worse by more than the margin" in capsys.readouterr().out


def test_other_models_runs_in_the_output_folder_are_not_compared(base, tmp_path, capsys):
    small_fit(base, tmp_path / "same", "cft", learning_rate=1e-9)
    guarded = ("--artifact", tmp_path / "same", "--guard", "winrate", "--guard-base", tmp_path / "base")
    other = find_samples(tmp_path / "first")[0]
    folder = tmp_path / "out" / "another__model"
    shutil.copytree(other.parent, folder)
    assert evaluation(tmp_path / "out", *guarded) == 0
    assert "win rate 1.0000 before and 1.0000 after" in capsys.readouterr().out
    assert len(find_samples(tmp_path / "out")) == 2


def test_a_guard_without_a_base_is_refused_before_anything_runs(base, tmp_path, capsys):
    assert evaluation(tmp_path / "out", "--model", base, "--guard", "winrate") == 2
    assert "give --guard-base DIR" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_prompts_that_differ_by_their_date_are_said_to(tmp_path, monkeypatch, capsys):
    hub = enter_mirror(write_arc_mirror(tmp_path / "hub"), monkeypatch)
    # A day that lasts a microsecond.
    model = save_tiny(tmp_path / "model", chat_template="{{ strftime_now('%f') }}" + CHAT_TEMPLATE)
    write_pairs(hub, [(f"Which of these, {i}?", f"option {i} a", f"letter {7 * i} b") for i in range(4)])
    chat = ("--model", model, "--apply-chat-template")
    assert evaluation(tmp_path / "base", *chat) == 0
    guarded = ("--guard", "winrate", "--guard-base", tmp_path / "base")
    assert evaluation(tmp_path / "out", *chat, *guarded) == 2
    error = capsys.readouterr().err
    assert "different prompts for 4 of 4 pairs; its chat template writes the date (strftime_now)" in error
