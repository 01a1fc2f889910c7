"""What the commands say: the cause, and what to do that works."""

import json
import shutil
import signal
import subprocess

import numpy as np
import pytest
from commands import shell
from fitting import small_fit, words
from foreign import save_foreign
from merging import save_merging
from sample_files import sample, write, write_results
from tiny import CHAT_TEMPLATE, save_tiny

from calibtune.__main__ import main
from calibtune.errors import QUOTED

pytestmark = pytest.mark.usefixtures("mirror")


def answers(count, right, letters=4):
    """Letters whose order is random; ``right`` gives the right letter's place in it for each question, 0 at the top."""
    rng = np.random.default_rng(0)
    rows = [np.log(rng.dirichlet(np.ones(letters))) - 0.1 for _ in range(count)]
    return [sample(i, row, str(np.argsort(-row)[right(i)])) for i, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("rows", "warning"),
    [
        (answers(40, lambda i: 0), "the most likely letter is right in all 40 questions, so that any lower T fits"),
        (answers(40, lambda i: 3 - (i % 10 == 0)), "against the right answer (0 of 40 answers are right, by chance it"),
        (
            [sample(i, ((-1.0, -1.0, -2.0), (-2.0, -1.0, -1.0))[i % 2], "1") for i in range(20)],
            "the right letter is tied for first place in 20 of 20 questions and",
        ),
        ([sample(i, (-1.0, -1.001, -1.002), "01"[i == 0]) for i in range(40)], "these questions ask for a lower one"),
        (answers(400, lambda i: i % 4), "they carry no signal on these questions"),
    ],
    ids=["all right", "against", "tied", "almost equal", "no signal"],
)
def test_a_temperature_that_means_little_says_why(tmp_path, capsys, rows, warning):
    samples = write(tmp_path, rows)
    assert main(["fit", "--method", "temperature", "--samples", str(samples), "--output", str(tmp_path / "t")]) == 0
    assert warning in capsys.readouterr().out
    (kept,) = json.loads((tmp_path / "t" / "temperature.json").read_text())["warnings"]
    assert warning in kept


def test_gold_indices_that_are_off_by_one_are_pointed_at(tmp_path, capsys):
    rng = np.random.default_rng(0)
    rows = [np.log(rng.dirichlet(np.ones(4) / 2)) for _ in range(200)]
    right = [sample(i, row, str((rng.choice(4, p=np.exp(row)) + 1) % 4)) for i, row in enumerate(rows)]
    samples = write(tmp_path, right)
    assert main(["fit", "--method", "temperature", "--samples", str(samples), "--output", str(tmp_path / "t")]) == 0
    assert "check the gold indices" in capsys.readouterr().out


def test_json_files_with_a_byte_order_mark_are_read(tmp_path, capsys):
    samples = write(tmp_path, answers(40, lambda i: i % 3))
    write_results(tmp_path, mc_calib_arc=40)
    for path in tmp_path.glob("*.json*"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert main(["rescore", str(samples)]) == 0
    assert main(["report", str(tmp_path), "--output", str(tmp_path / "report")]) == 0
    recipe = tmp_path / "recipe.yaml"
    recipe.write_bytes(b"\xef\xbb\xbfmethod: temperature\n")
    fit = ["fit", "--config", str(recipe), "--samples", str(samples), "--output", str(tmp_path / "t")]
    assert main(fit) == 0


def test_a_chat_template_with_a_byte_order_mark_leaves_none_in_the_prompt(model, tmp_path, monkeypatch):
    (tmp_path / "chat.jinja").write_bytes(b"\xef\xbb\xbf{{ messages[0].content }}")
    from calibtune.models.loading import load_tokenizer
    from calibtune.spec import ModelSpec

    tokenizer = load_tokenizer(ModelSpec(str(model), chat_template=str(tmp_path / "chat.jinja")))
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Q"}], tokenize=False) == "Q"


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "adapter_config.json"])
def test_a_byte_order_mark_in_a_models_files_is_named(model, tmp_path, capsys, name):
    folder = shutil.copytree(model, tmp_path / "model")
    if name.startswith("adapter"):
        folder = save_foreign(model, tmp_path / "adapter")
    path = folder / name
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert evaluation(folder, tmp_path / "out") == 2
    assert f"{path} begins with a byte order mark; save it as UTF-8 without one" in capsys.readouterr().err


OWN = (
    "task: own\ndataset_path: allenai/ai2_arc\ndataset_name: ARC-Challenge\ntest_split: test\ntraining_split: train\n"
    "process_docs: !function harness_ext.documents.arc\n"
)


def evaluation(model, output, *more, tasks="mc_calib_arc"):
    base = ["eval", "--model", str(model), "--tasks", tasks, "--device", "cpu", "--precision", "fp32"]
    return main([*base, "--output", str(output), *map(str, more)])


def test_an_include_that_is_not_there_is_named_with_a_line_that_works(model, tmp_path, capsys):
    (tmp_path / "tasks").mkdir()
    yaml = tmp_path / "tasks" / "own.yaml"
    yaml.write_text("include: _letters\n" + OWN)
    more = ("--include-path", tmp_path / "tasks")
    assert evaluation(model, tmp_path / "out", *more, tasks="own") == 2
    said = capsys.readouterr().err
    assert f"{yaml} includes {tmp_path / 'tasks' / '_letters'}, which does not exist; write `" in said
    yaml.write_text(f"{said.split('`')[1]}\n{OWN}")
    assert evaluation(model, tmp_path / "out", *more, tasks="own") == 0


def test_a_task_file_that_is_no_yaml_is_named(model, tmp_path, capsys):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "own.yaml").write_text("task: own\n- and a list")
    assert evaluation(model, tmp_path / "out", "--include-path", tmp_path / "tasks", tasks="own") == 2
    assert f"{tmp_path / 'tasks' / 'own.yaml'} cannot be read (ParserError: " in capsys.readouterr().err


def test_an_adapter_that_does_not_fit_says_where(model, tmp_path, capsys):
    assert main([*words(model, tmp_path / "adapter", max_steps=1)]) == 0
    manifest = tmp_path / "adapter" / "calibtune.json"
    values = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**values, "fingerprint": None}))
    wide = save_tiny(tmp_path / "other" / model.name, hidden=64)
    assert evaluation(wide, tmp_path / "out", "--artifact", tmp_path / "adapter") == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "size mismatch for" in said
    assert len(said) < 2 * QUOTED + len(str(tmp_path))


def test_code_of_a_models_own_is_asked_for_by_our_flag(tmp_path, capsys):
    folder = save_tiny(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "ours", "auto_map": own}))
    output = ["--output", str(tmp_path / "out")]
    for command in (
        ["eval", "--model", str(folder), "--tasks", "mc_calib_arc", *output],
        ["fit", "--method", "cft", "--model", str(folder), "--tasks", "mc_calib_arc", *output],
        ["doctor", "--model", str(folder)],
    ):
        assert main(command) == 2
        said = f"--model {folder} brings code of its own; give --trust-remote-code to run it\n"
        assert capsys.readouterr().err.endswith(said)


@pytest.mark.parametrize("command", ["eval", "fit", "doctor"])
def test_xlnets_tokenizer_is_what_stands_in_the_way(tmp_path, capsys, command):
    import transformers

    folder = save_merging(tmp_path / "xlnet", eos="<eos>")
    config = transformers.XLNetConfig(vocab_size=600, d_model=32, n_layer=1, n_head=4, d_inner=64)
    transformers.XLNetLMHeadModel(config).save_pretrained(folder)
    base = ["--model", str(folder), "--tasks", "mc_calib_arc", "--device", "cpu"]
    output = ["--output", str(tmp_path / "out")]
    given = {"eval": ["eval", *base, *output], "fit": words(folder, tmp_path / "out"), "doctor": ["doctor", *base]}
    assert main(given[command]) == 2
    assert "the tokenizer of this xlnet model appends <eos> to every text" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "changes", "said"),
    [
        ("starting", {}, "interrupted; run the same command again"),
        ("before epoch 1", {"epochs": 2000}, "no checkpoint was written yet; the same command with --resume begins"),
        ("before epoch 3", {"epochs": 2000}, "the same command with --resume goes on from the last checkpoint"),
    ],
)
def test_ctrl_c_offers_resume_where_there_is_something_to_resume(model, tmp_path, mirror, line, changes, said):
    # Background jobs, as in CI, inherit an ignored SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = shell(["-m", "calibtune", *words(model, tmp_path / "out", **changes)], mirror, **pipes)
    signal.signal(signal.SIGINT, before)
    next(text for text in process.stdout if line in text)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert said in process.stderr.read()


def test_an_evaluation_into_another_ones_folder_is_refused_before_anything_is_loaded(model, tmp_path, capsys):
    out = tmp_path / "out"
    small_fit(model, tmp_path / "t", "temperature")
    assert evaluation(model, out, "--limit", 8) == 0
    kept = {path: path.read_bytes() for path in out.rglob("*.json*")}
    capsys.readouterr()
    for more, other in (
        (["--limit", "9"], "limit 8 -> 9"),
        (["--limit", "8", "--apply-chat-template"], "apply_chat_template False -> True"),
        (["--limit", "8", "--artifact", tmp_path / "t"], "temperature None -> "),
        (["--limit", "8", "--precision", "bf16"], "dtype 'float32' -> 'bfloat16'"),
    ):
        assert evaluation(model, out, *more) == 2
        assert f"--output {out} holds another evaluation of this model ({other}" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.rglob("*.json*")} == kept
    # The same evaluation again, and further tasks, are the same run.
    assert evaluation(model, out, "--limit", 8) == 0
    assert len(list(out.rglob("results_*.json"))) == 2


@pytest.mark.parametrize("command", ["eval", "fit", "doctor"])
def test_a_device_that_is_none_is_one_sentence_where_no_precision_is_given(model, tmp_path, capsys, command):
    more = {"eval": ["--output", str(tmp_path)], "fit": ["--method", "cft", "--output", str(tmp_path / "fit")]}
    base = ["--model", str(model), "--tasks", "mc_calib_arc", "--device", "foo"]
    assert main([command, *base, *more.get(command, [])]) == 2
    assert "--device foo cannot be used here" in capsys.readouterr().err


@pytest.mark.slow
def test_a_template_with_the_date_is_the_cause_of_other_prompts_in_a_report(tmp_path, capsys):
    # A day that lasts a microsecond.
    folder = save_tiny(tmp_path / "model", chat_template="{{ strftime_now('%f') }}" + CHAT_TEMPLATE)
    runs = [tmp_path / "first", tmp_path / "second"]
    for output in runs:
        assert evaluation(folder, output, "--apply-chat-template", "--limit", 8) == 0
    assert main(["report", *map(str, runs), "--output", str(tmp_path / "report")]) == 0
    notes = json.loads((tmp_path / "report" / "results.json").read_text())["notes"]
    assert any(
        "8 of 8 prompts of" in note and "its chat template writes the date (strftime_now)" in note for note in notes
    )
