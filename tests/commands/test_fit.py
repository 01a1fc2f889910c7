"""``python -m calibtune fit`` and ``eval`` as users type them: what they teach, and how they refuse."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch
from fitting import words
from harness import TASKS
from tiny import save_tiny

from calibtune.__main__ import main
from calibtune.artifacts.manifest import read_artifact
from calibtune.models import scores
from calibtune.recipe import FIELDS, RECIPES, flag, load_recipe, make_recipe

pytestmark = pytest.mark.usefixtures("mirror")

HUB = TASKS.parents[1] / "shared" / "data" / "hub"


def refused(capsys, arguments, code=2):
    """Runs a command that must fail, and gives its error line."""
    assert main([str(word) for word in arguments]) == code
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("calibtune: error: ")]
    assert len(errors) == 1
    assert "Traceback" not in captured.err
    return captured.err[captured.err.index("calibtune: error: ") :]


def test_without_arguments_it_teaches(capsys):
    assert main(["fit"]) == 0
    text = capsys.readouterr().out
    for method in ("temperature", "label-smoothing", "cft", "rcft"):
        assert f"--method {method} " in text
    assert "paper/rcft" in text


def test_help_names_every_option_with_its_default(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(flag(name) in text for name in FIELDS)
    assert "(default: 0.0001)" in text


@pytest.mark.slow
def test_a_four_bit_fit_shows_its_own_words_alone(model, tmp_path):
    flags = {"quantization": "nf4", "max_steps": 1}
    command = [sys.executable, "-m", "calibtune", *words(model, tmp_path / "cft", "cft", **flags)]
    fit = subprocess.run(command, capture_output=True, text=True)
    assert fit.returncode == 0
    assert "before epoch 1, held-out questions:" in fit.stdout
    for remark in ("gemm_4bit_forward", "Custom kwargs", "Warning"):
        assert remark not in fit.stdout + fit.stderr


def test_a_fit_and_its_evaluation_by_command(model, tmp_path, capsys):
    assert main(words(model, tmp_path / "rcft", "rcft", epochs=2)) == 0
    text = capsys.readouterr().out
    assert text.count("held-out questions:\n") == 2  # one table before each epoch
    assert "count  accuracy  confidence" in text
    assert f"written to {tmp_path / 'rcft'}" in text
    assert "next: python -m calibtune eval" in text
    assert (
        main(
            [
                "eval",
                "--artifact",
                str(tmp_path / "rcft"),
                "--tasks",
                "mc_calib_arc",
                "--device",
                "cpu",
                "--precision",
                "fp32",
                "--output",
                str(tmp_path / "out"),
            ]
        )
        == 0
    )
    assert "  conf_ece_10  " in capsys.readouterr().out
    (results,) = (tmp_path / "out").rglob("results_*.json")
    assert f"peft={tmp_path / 'rcft'}" in str(json.loads(results.read_text())["config"]["model_args"]).replace(
        "'peft': '", "peft="
    )


def test_a_fit_of_few_steps_scores_no_question_that_no_step_takes(model, tmp_path, monkeypatch, capsys):
    asked = []

    def score(model, rows, *options):
        asked.append(len(rows))
        return scores.score(model, rows, *options)

    monkeypatch.setattr("calibtune.tuning.trainer.score", score)
    assert main(words(model, tmp_path / "rcft", "rcft", max_steps=2)) == 0
    assert "rcft: mc_calib_arc, 8 training and 6 held-out questions" in capsys.readouterr().out
    assert asked == [8]
    assert len(read_artifact(tmp_path / "rcft").documents["train"]) == 8


def test_a_recipe_is_overridden_by_flags_and_all_mistakes_come_at_once(tmp_path, capsys):
    (tmp_path / "r.yaml").write_text(
        "method: rcft\nmodel: m\ntasks: t\nlearning-rate: 1e-4\nepochs: 5\nsmoothing: 0.2\nlamda: 2\nbatch-size: none\n"
    )
    error = refused(capsys, ["fit", "--config", tmp_path / "r.yaml", "--epochs", "-1", "--rank", "x"])
    for part in (
        "lamda",
        "did you mean 'lambda'",
        "--smoothing is for",
        "batch-size is 'none'",
        "rank is 'x'",
        "--epochs is '-1'",
        "--output is missing",
    ):
        assert part in error, part
    recipe = make_recipe(load_recipe(RECIPES / "paper" / "rcft.yaml"), {"model": "m", "tasks": "a,b", "epochs": "1"})
    assert recipe.epochs == 1.0
    assert recipe.tasks == ("a", "b")
    assert recipe.learning_rate == 5e-5
    assert recipe.letter_weight == "sum"


def test_the_papers_rcft_departs_from_the_defaults_where_the_paper_does():
    required = {"method": "rcft", "model": "m", "tasks": "t"}
    paper, default = make_recipe(load_recipe(RECIPES / "paper" / "rcft.yaml"), required), make_recipe(required, {})
    found = {name: (getattr(paper, name), getattr(default, name)) for name in FIELDS}
    assert {name: pair for name, pair in found.items() if pair[0] != pair[1]} == {
        "lambda_": (1, 4),
        "letter_weight": ("sum", 1),
        "e_step": ("epoch", "running"),
        "e_step_rows": ("train", "held-out"),
        "shuffle_options": (False, True),
        "epochs": (5, 3),
        "batch_size": (2, 16),
        "learning_rate": (5e-5, 1e-4),
        "quantization": ("nf4", "none"),
        "precision": ("bf16", "auto"),
        "lora_dropout": (0.05, 0),
        "held_out": (0, 500),
    }


@pytest.mark.parametrize(("method", "epochs"), [("cft", 2), ("label-smoothing", 2), ("rcft", 3)])
def test_epochs_not_given_are_the_methods_own(method, epochs):
    values = {"method": method, "model": "m", "tasks": "t"}
    assert make_recipe(values, {}).epochs == epochs
    assert make_recipe({**values, "method": "rcft"}, {"method": method}).epochs == epochs
    assert make_recipe({**values, "epochs": 5}, {}).epochs == 5


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda path: path.stem)
def test_each_recipe_opens_with_the_command_that_runs_it(path):
    command = path.read_text().splitlines()[0]
    assert command.startswith("# python -m calibtune fit --config calibtune/recipes/")
    parts = command.split()
    flags = {}
    for name, value in zip(parts, [*parts[1:], ""], strict=True):
        if name.startswith("--") and name not in ("--config", "--output"):
            flags[name[2:].replace("-", "_")] = True if value.startswith("--") or not value else value
    assert RECIPES.parents[1] / parts[parts.index("--config") + 1] == path
    assert "--output" in parts
    recipe = make_recipe(load_recipe(path), flags)
    assert recipe.tasks == ("mc_calib_indomain",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(
            {"tasks": "mc_calib_arcc"},
            "the harness knows no task 'mc_calib_arcc'; did you mean mc_calib_arc",
            marks=pytest.mark.slow,  # reads the harness's whole index
        ),
        ({"model": "/nowhere/model"}, "--model /nowhere/model does not exist"),
        ({"apply_chat_template": None, "chat_template": "/no/file"}, "--chat-template /no/file does not exist"),
        ({"letter_weight": "heavy"}, "letter-weight is 'heavy'; give a number from 0 up or token-mean or sum"),
        ({"limit": "0"}, "--limit is '0'; give a whole number from 1 up"),
        ({"quantization": "nf4", "tuning": "full"}, "--quantization nf4 cannot be trained in full"),
        ({"device": "cuda:7"}, "--device cuda:7 cannot be used here"),
        ({"device": "toaster"}, "--device toaster cannot be used here"),
        ({"held_out": "0"}, "the E-step needs held-out questions"),
    ],
)
def test_bad_input_is_one_sentence_before_any_training(model, tmp_path, capsys, changes, message):
    assert message in refused(capsys, words(model, tmp_path / "out", "rcft", **changes))
    assert not list(tmp_path.glob("out/adapter*"))


def test_a_missing_package_is_named_before_anything_is_loaded(model, tmp_path, capsys, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "wandb" else found(n))
    arguments = [*words(model, tmp_path / "out"), "--report-to", "wandb"]
    assert "this command needs wandb, not installed here; pip install wandb" in refused(capsys, arguments)


def test_tasks_that_cannot_be_fitted_on_are_refused(model, tmp_path, capsys, mirror):
    (tmp_path / "tasks").mkdir()
    shared = "dataset_path: allenai/ai2_arc\ndataset_name: ARC-Challenge\ntest_split: test\n"
    letters = "doc_to_choice: ['A', 'B']\ndoc_to_target: 0\ndoc_to_text: question\noutput_type: multiple_choice\n"
    texts = {
        "no_train": shared + letters,
        "generates": shared + "training_split: train\noutput_type: generate_until\ndoc_to_text: question\n"
        "doc_to_target: id\ngeneration_kwargs: {until: ['.']}\n",
        "words": shared + "training_split: train\noutput_type: multiple_choice\ndoc_to_text: question\n"
        "doc_to_choice: ['the whole answer', 'no']\ndoc_to_target: 0\n",
        "same": "training_split: test\n" + shared + letters,
    }
    for name, text in texts.items():
        (tmp_path / "tasks" / f"{name}.yaml").write_text(f"task: {name}\n{text}")
    for name, message in (
        ("no_train", "has no training rows"),
        ("generates", "is generate_until, not multiple_choice"),
        ("words", "not one of their own each"),
        ("same", "all of its 24 training questions are evaluated too"),
    ):
        error = refused(
            capsys, words(model, tmp_path / "out", tasks=name, include_path=tmp_path / "tasks", overwrite=None)
        )
        assert message in error, name
        os.system(f"rm -r {tmp_path / 'out'}")


def test_a_users_own_task_with_letters_can_be_fitted_on(model, tmp_path, mirror):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "own.yaml").write_text(
        "task: own\ndataset_path: allenai/ai2_arc\ndataset_name: ARC-Challenge\ntraining_split: train\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: 'Q: {{question}} {{choices.text}} A:'\n"
        "doc_to_choice: '{{choices.label}}'\ndoc_to_target: '{{choices.label.index(answerKey)}}'\n"
    )
    arguments = words(model, tmp_path / "out", tasks="own", include_path=tmp_path / "tasks")
    assert main([*arguments, "--no-shuffle-options"]) == 0
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_shuffling_options_that_cannot_be_found_is_refused(model, tmp_path, capsys, mirror):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "own.yaml").write_text(
        "task: own\ndataset_path: allenai/ai2_arc\ndataset_name: ARC-Challenge\ntraining_split: train\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: question\n"
        "doc_to_choice: '{{choices.label}}'\ndoc_to_target: '{{choices.label.index(answerKey)}}'\n"
    )
    error = refused(capsys, words(model, tmp_path / "out", tasks="own", include_path=tmp_path / "tasks"))
    assert "use --no-shuffle-options" in error


def test_vicunas_template_lies_beside_its_recipe_and_asks_for_a_letter_after_a_blank(tmp_path):
    from transformers import AutoTokenizer

    from calibtune.data.encoder import Encoder

    recipe = make_recipe(load_recipe(RECIPES / "vicuna-7b.yaml"), {})
    tokenizer = AutoTokenizer.from_pretrained(save_tiny(tmp_path / "model"))
    with open(recipe.chat_template) as file:
        tokenizer.chat_template = file.read()
    encoder = Encoder(tokenizer)
    messages = [{"role": "system", "content": "S."}, {"role": "user", "content": "Q?"}]
    assert encoder.apply_chat_template(messages) == "S. USER: Q? ASSISTANT: "
    assert tokenizer.decode(encoder.encode("S. USER: Q? ASSISTANT: ", "A")[1]) == " A"


def test_models_that_are_not_causal_are_refused(tmp_path, capsys):
    from transformers import BertConfig, T5Config

    for name, config in (
        ("t5", T5Config(architectures=["T5ForConditionalGeneration"])),
        ("bert", BertConfig(architectures=["BertForMaskedLM"])),
    ):
        save_tiny(tmp_path / name)
        config.save_pretrained(tmp_path / name)
        error = refused(capsys, words(tmp_path / name, tmp_path / f"out-{name}"))
        assert "not a causal language model" in error


def test_a_missing_chat_template_is_refused_and_can_be_given(tmp_path, capsys):
    plain = save_tiny(tmp_path / "plain", chat_template=None)
    arguments = [*words(plain, tmp_path / "out", max_steps=1), "--apply-chat-template"]
    assert "has no chat template; give one with --chat-template FILE" in refused(capsys, arguments)
    (tmp_path / "template").write_text("{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}Answer:")
    assert main([*arguments, "--chat-template", str(tmp_path / "template"), "--overwrite"]) == 0
    arguments = [
        "eval",
        "--artifact",
        tmp_path / "out",
        "--tasks",
        "mc_calib_arc",
        "--device",
        "cpu",
        "--output",
        tmp_path / "eval",
        "--precision",
        "fp32",
    ]
    assert main([str(word) for word in arguments]) == 0


def test_letters_that_are_not_single_tokens_are_refused(tmp_path, capsys):
    from transformers import PreTrainedTokenizerFast

    folder = save_tiny(tmp_path / "bytes")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = [m for m in tokenizer["model"]["merges"] if "".join(m) not in ("ĠA", "ĠB")]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert len(PreTrainedTokenizerFast.from_pretrained(folder)(" A")["input_ids"]) == 2
    assert "not one of their own each" in refused(capsys, words(folder, tmp_path / "out"))


def test_eval_refuses_a_folder_without_a_finished_artifact(tmp_path, capsys):
    arguments = ["eval", "--artifact", tmp_path, "--tasks", "mc_calib_arc", "--output", tmp_path / "out"]
    assert "has no calibtune.json" in refused(capsys, arguments)
    arguments = ["eval", "--tasks", "mc_calib_arc", "--output", tmp_path / "out"]
    assert "--model is missing" in refused(capsys, arguments)


@pytest.mark.real
@pytest.mark.skipif(not HUB.is_dir(), reason="needs the data mirror ../shared/data/hub")
def test_a_few_steps_on_a_real_model_and_real_questions(smollm2, tmp_path, monkeypatch):
    monkeypatch.chdir(HUB)
    common = ["--model", str(smollm2), "--apply-chat-template", "--device", "cpu", "--precision", "fp32"]
    fit = ["fit", *common, "--tasks", "mc_calib_openbookqa", "--limit", "60", "--held-out", "12"]
    train = ["--max-steps", "3", "--batch-size", "2", "--rank", "8", "--warmup-ratio", "0", "--learning-rate", "1e-3"]
    assert main([*fit, "--method", "rcft", *train, "--output", str(tmp_path / "rcft")]) == 0
    assert main([*fit, "--method", "temperature", "--output", str(tmp_path / "t")]) == 0
    rcft, t = (json.loads((tmp_path / name / "calibtune.json").read_text()) for name in ("rcft", "t"))
    assert rcft["before"]["nll"] == pytest.approx(t["before"]["nll"], abs=1e-5)
    assert rcft["after"]["nll"] != pytest.approx(rcft["before"]["nll"], abs=1e-3)
    # Twelve questions, each at a T of the others: the NLL may rise, accuracy may not change.
    assert t["after"]["acc"] == t["before"]["acc"]
    assert 0.01 <= t["temperature"]["temperature"] <= 100
    assert (
        main(
            [
                "eval",
                *common,
                "--artifact",
                str(tmp_path / "rcft"),
                "--tasks",
                "mc_calib_arc",
                "--limit",
                "12",
                "--output",
                str(tmp_path / "out"),
            ]
        )
        == 0
    )
    assert list((tmp_path / "out").rglob("samples_mc_calib_arc_*.jsonl"))
    assert torch.isfinite(torch.tensor(list(rcft["after"].values()))).all()
