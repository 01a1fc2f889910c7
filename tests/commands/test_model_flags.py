"""Flags of a model that eval, fit and doctor take alike, and tokenizers that are not quite the model's."""

import json
import shutil

import pytest
from fitting import words
from tiny import CHAT_TEMPLATE, build_model, build_tokenizer, save_tiny

from calibtune.__main__ import main
from calibtune.results.samples import find_samples, read_samples

pytestmark = pytest.mark.usefixtures("mirror")

#: One that writes an argument's value into the prompt, as Qwen3's does for enable_thinking.
THINKING = "{% if enable_thinking is defined and not enable_thinking %}option{% endif %}" + CHAT_TEMPLATE
CPU = ["--device", "cpu", "--precision", "fp32"]


def evaluation(folder, output, *more):
    command = ["eval", "--model", folder, "--tasks", "mc_calib_arc", *CPU, "--output", output, *more]
    assert main([str(word) for word in command]) == 0
    return read_samples(find_samples(output)[0]).log_probs


def fitted(folder, output, *more):
    """Held-out measures of a temperature on a model."""
    base = ["fit", "--method", "temperature", "--model", folder, "--tasks", "mc_calib_arc", "--output", output]
    assert main([str(word) for word in [*base, *CPU, *more]]) == 0
    return json.loads((output / "calibtune.json").read_text())


def doctored(folder, capsys, *more):
    """Letter mass as doctor sees it."""
    capsys.readouterr()
    main([str(word) for word in ["doctor", "--model", folder, *CPU, *more]])
    return next(line for line in capsys.readouterr().out.splitlines() if "letter mass 0." in line)


def save_with_bos(folder):
    """A tiny model whose tokenizer has a token for the beginning of a text and does not put it there by itself."""
    tokenizer = build_tokenizer()
    tokenizer.bos_token = "<|user|>"
    build_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("save", "flags", "about"),
    [
        (save_with_bos, ["--add-bos-token"], {"add_bos_token": True}),
        (
            lambda folder: save_tiny(folder, chat_template=THINKING),
            ["--apply-chat-template", "--chat-template-args", '{"enable_thinking": false}'],
            {"chat_template_args": {"enable_thinking": False}},
        ),
    ],
    ids=["bos", "thinking"],
)
def test_a_flag_changes_prompts_alike_in_eval_fit_and_doctor(tmp_path, capsys, save, flags, about):
    folder = save(tmp_path / "model")
    chat = [flag for flag in flags if flag == "--apply-chat-template"]
    plain, changed = (evaluation(folder, tmp_path / f"out{i}", *given) for i, given in enumerate((chat, flags)))
    assert abs(plain - changed)[~(plain != plain)].max() > 1e-3
    manifests = [fitted(folder, tmp_path / f"t{i}", *given) for i, given in enumerate((chat, flags))]
    assert manifests[0]["before"]["nll"] != pytest.approx(manifests[1]["before"]["nll"], abs=1e-4)
    assert doctored(folder, capsys, *chat) != doctored(folder, capsys, *flags)
    # An artifact is evaluated as it was fitted, and its card says how lm_eval does that.
    again = evaluation(folder, tmp_path / "artifact", "--artifact", tmp_path / "t1")
    assert again[~(again != again)].tolist() == changed[~(changed != changed)].tolist()
    card = (tmp_path / "t1" / "README.md").read_text()
    assert all(name in card for name in about)


def test_a_template_that_lets_the_model_think_is_the_cause_of_a_low_letter_mass(tmp_path, capsys):
    folder = save_tiny(tmp_path / "model", chat_template=THINKING)
    advice = "try with --chat-template-args '{\"enable_thinking\": false}', since its template lets it think"
    assert advice in doctored(folder, capsys, "--apply-chat-template")
    evaluation(folder, tmp_path / "out", "--apply-chat-template")
    assert advice in capsys.readouterr().err
    flag = ("--chat-template-args", '{"enable_thinking": false}')
    assert advice not in doctored(folder, capsys, "--apply-chat-template", *flag)


def test_a_beginning_of_text_token_that_is_not_there_is_refused(model, tmp_path, capsys):
    output = ["--output", str(tmp_path / "out")]
    for command in (
        ["eval", "--model", str(model), "--tasks", "mc_calib_arc", *output],
        words(model, tmp_path / "out"),
        ["doctor", "--model", str(model)],
    ):
        assert main([*command, "--add-bos-token"]) == 2
        assert f"--add-bos-token: the tokenizer of {model} puts no token for" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["eval", "fit", "doctor"])
def test_template_arguments_that_are_no_object_are_one_sentence(model, tmp_path, capsys, command):
    base = ["--model", str(model), "--tasks", "mc_calib_arc", "--chat-template-args", "[1]"]
    if command == "fit":
        assert main([*words(model, tmp_path / "out"), *base]) == 2
        assert "--chat-template-args is '[1]'; give a JSON object" in capsys.readouterr().err
        return
    with pytest.raises(SystemExit) as stop:
        main([command, *base, *(["--output", str(tmp_path / "out")] if command == "eval" else [])])
    assert stop.value.code == 2
    assert "argument --chat-template-args: '[1]' is no JSON object" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["eval", "doctor", "temperature", "rcft"])
def test_a_padding_token_without_an_embedding_is_no_matter(model, tmp_path, capsys, command):
    folder = shutil.copytree(model, tmp_path / "model")
    tokenizer = build_tokenizer()
    tokenizer.model_max_length = 512
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    if command == "doctor":
        assert doctored(folder, capsys) == doctored(model, capsys)
    elif command == "eval":
        found, expected = (evaluation(each, tmp_path / f"out{i}") for i, each in enumerate((folder, model)))
        assert found[~(found != found)].tolist() == expected[~(expected != expected)].tolist()
    elif command == "temperature":
        found, expected = (fitted(each, tmp_path / f"t{i}") for i, each in enumerate((folder, model)))
        assert found["before"] == expected["before"]
    else:
        assert main(words(folder, tmp_path / "rcft", "rcft", max_steps=2)) == 0


CODE = """from transformers import LlamaConfig, LlamaForCausalLM

class OursConfig(LlamaConfig):
    model_type = "ours"

class OursForCausalLM(LlamaForCausalLM):
    config_class = OursConfig
"""


def test_code_of_a_models_own_runs_with_the_flag_alone(model, tmp_path, capsys):
    folder = shutil.copytree(model, tmp_path / "ours")
    (folder / "ours.py").write_text(CODE)
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "ours.OursConfig", "AutoModelForCausalLM": "ours.OursForCausalLM"}
    changed = {"model_type": "ours", "architectures": ["OursForCausalLM"], "auto_map": own}
    (folder / "config.json").write_text(json.dumps({**config, **changed}))
    trust = "--trust-remote-code"
    found, expected = (evaluation(each, tmp_path / each.name, trust) for each in (folder, model))
    assert abs(found - expected)[~(found != found)].max() < 1e-5
    assert fitted(folder, tmp_path / "t", trust)["recipe"]["trust_remote_code"] is True
    assert doctored(folder, capsys, trust) == doctored(model, capsys)
    # An artifact does not bring the trust with it.
    assert main(["eval", "--artifact", str(tmp_path / "t"), "--tasks", "mc_calib_arc", "--output", "again"]) == 2
    assert f"--model {folder} brings code of its own; give --trust-remote-code" in capsys.readouterr().err
