import pytest
from fitting import small_fit
from harness import TASKS
from merging import save_merging
from openai_server import OpenAIServer
from tiny import build_tokenizer, save_tiny

from calibtune.__main__ import main
from calibtune.evaluation import doctor


def lines(capsys):
    return capsys.readouterr().out.splitlines()


def test_an_installation_without_our_tasks_is_told_the_include_path(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "installed_folder", lambda: tmp_path / "site" / "lm_eval" / "tasks" / "mc_calib")
    assert main(["doctor"]) == 1
    line = next(line for line in lines(capsys) if "does not see" in line)
    assert line.startswith("[NOT OK]")
    assert f"add --include_path {TASKS}" in line


def test_a_task_file_that_the_harness_cannot_read_is_missed(tmp_path, monkeypatch, capsys):
    import shutil

    shutil.copytree(TASKS, tmp_path / "mc_calib")
    (tmp_path / "mc_calib" / "mc_calib_arc.yaml").write_text("task: [broken")
    monkeypatch.setattr(doctor, "installed_folder", lambda: tmp_path / "mc_calib")
    assert main(["doctor"]) == 1
    assert "such as mc_calib_arc;" in "\n".join(lines(capsys))


def test_an_untried_lm_eval_is_said(monkeypatch):
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda name: "0.6.1")
    assert not doctor.check_installation()[0].good
    assert "install lm_eval>=0.4.13,<0.6" in doctor.check_installation()[0].text


def doctor_of(model, *more):
    return main(["doctor", "--model", str(model), "--device", "cpu", "--precision", "fp32", *more])


def test_letters_and_their_mass_are_looked_at(tmp_path, mirror, capsys):
    # A random model gives its letters next to nothing.
    assert doctor_of(save_tiny(tmp_path / "model")) == 1
    text = "\n".join(lines(capsys))
    assert "[ok] mc_calib_arc: letters are single tokens of their own in 24 prompts: ' A'=" in text
    assert "[NOT OK] mc_calib_arc: letter mass 0.0" in text
    assert "try with --apply-chat-template" in text


def test_a_newline_of_the_template_that_the_harness_scores_is_named(tmp_path, mirror, capsys):
    doctor_of(save_tiny(tmp_path / "model"), "--apply-chat-template")
    assert r"[ok] mc_calib_arc: the harness alone scores the prompt's last '\n' with each letter" in "\n".join(
        lines(capsys)
    )


STOCK = (
    "task: stock\ndataset_path: allenai/ai2_arc\ndataset_name: ARC-Challenge\ntest_split: test\n"
    "output_type: multiple_choice\ndoc_to_text: question\ndoc_to_choice: ['A', 'B']\ndoc_to_target: 0\n"
)


@pytest.mark.parametrize(
    ("task", "line"),
    [
        ("mc_calib_arc", "[ok] mc_calib_arc: {}; our tasks have it feed the whole prompt"),
        ("stock", "[NOT OK] stock: {}; evaluate this task with `python -m calibtune eval`, not lm_eval"),
    ],
)
def test_a_newline_that_the_harness_loses_is_named(tmp_path, mirror, capsys, task, line):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "stock.yaml").write_text(STOCK)
    more = ("--apply-chat-template", "--tasks", task, "--include-path", str(tmp_path / "tasks"))
    assert doctor_of(save_merging(tmp_path / "model"), *more) == 1
    lost = r"the harness alone loses '\n' at the prompt's end, whose last tokens are ['|', '>Ċ']"
    assert line.format(lost) in lines(capsys)


def test_a_task_without_letters_is_refused(tmp_path, mirror, capsys):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "open.yaml").write_text(
        "task: open\ndataset_path: allenai/ai2_arc\ndataset_name: ARC-Challenge\ntest_split: test\n"
        "output_type: generate_until\ndoc_to_text: question\ndoc_to_target: id\ngeneration_kwargs: {until: ['.']}\n"
    )
    more = ("--tasks", "open", "--include-path", str(tmp_path / "tasks"))
    assert doctor_of(save_tiny(tmp_path / "model"), *more) == 2
    assert "has no letters" in capsys.readouterr().err


@pytest.mark.parametrize(("mass", "good"), [(0.9, True), (0.2, False)])
def test_a_low_letter_mass_is_not_ok(mass, good):
    finding = doctor.check_mass("t", mass, 5, "without --apply-chat-template")
    assert finding.good == good
    assert f"letter mass {mass:.3f} on 5 questions" in finding.text
    assert ("without --apply-chat-template" in finding.text) != good


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--device", "foo"], "--device foo cannot be used here"), (["--tasks", ","], "--tasks names no task")],
)
def test_a_device_or_tasks_that_are_none_are_refused(model, capsys, words, message):
    assert main(["doctor", "--model", str(model), *words]) == 2
    assert message in capsys.readouterr().err


def test_json_holds_each_check_and_nothing_else_is_printed(model, mirror, capsys):
    import json

    code = doctor_of(model, "--json")
    found = json.loads(capsys.readouterr().out)
    assert code == int(not found["good"])
    assert {"good", "text"} == set(found["checks"][0])
    assert any("letter mass" in check["text"] for check in found["checks"])


def test_an_artifact_is_looked_at_as_it_was_fitted(model, tmp_path, mirror, capsys):
    small_fit(model, tmp_path / "adapter", "cft", epochs=4, apply_chat_template=True)
    small_fit(model, tmp_path / "t", "temperature", artifact=str(tmp_path / "adapter"), apply_chat_template=True)
    small_fit(model, tmp_path / "full", "cft", max_steps=1, tuning="full")
    said = []
    for name in ("adapter", "t", "full"):
        assert main(["doctor", "--artifact", str(tmp_path / name), "--device", "cpu"]) in (0, 1)
        said.append([line for line in lines(capsys) if line.startswith("[")])
    assert said[0] == said[1] != said[2]
    assert any("ends '|user|>" in line or "<|assistant|>" in line for line in said[0])


def test_a_beginning_of_text_token_that_is_not_used_is_pointed_at(tmp_path, mirror, capsys):
    folder = save_tiny(tmp_path / "model")
    tokenizer = build_tokenizer()
    tokenizer.bos_token = "<|user|>"
    tokenizer.save_pretrained(folder)
    doctor_of(folder)
    note = (
        "[ok] mc_calib_arc: prompts begin without '<|user|>', as the tokenizer does it; --add-bos-token puts it there"
    )
    assert note in lines(capsys)
    doctor_of(folder, "--add-bos-token")
    assert note not in lines(capsys)


def served_lines(capsys, server, *more):
    code = main(["doctor", "--backend", "api", "--base-url", server.url, "--model", "tiny", *more])
    return code, capsys.readouterr().out


def test_a_server_is_asked_for_log_probabilities_bos_and_letters(model, mirror, capsys):
    with OpenAIServer(model, most=100) as server:
        code, found = served_lines(capsys, server)
        assert "completions (--no-apply-chat-template): the server shows the 100 most likely tokens" in found
        assert "chats (--apply-chat-template): the server shows the 100 most likely tokens" in found
        assert "the server puts no beginning-of-text token (BOS) before a text" in found
        assert "letters of 8 questions are shown; the others have a probability below" in found
        assert "letter mass 0.0" in found
        assert code == 1
        server.bos = 2
        assert "the server puts 1 token before a text" in served_lines(capsys, server)[1]
        assert "the system message stands in its own place" in served_lines(capsys, server, "--apply-chat-template")[1]


def test_a_server_without_log_probabilities_fails_the_check(model, mirror, capsys):
    with OpenAIServer(model, logprobs=False) as server:
        code, found = served_lines(capsys, server)
    assert code == 1
    assert "[NOT OK] completions (--no-apply-chat-template)" in found
    assert "gives no log-probabilities" in found
