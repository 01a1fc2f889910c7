"""Adapters that PEFT alone wrote: evaluated, calibrated, merged and reported like ours."""

import json
import shutil

import pytest
import torch
from commands import shell
from fitting import words
from foreign import plain_letters, save_foreign
from tiny import save_tiny

from calibtune.__main__ import main
from calibtune.results.samples import find_samples, read_samples

pytestmark = pytest.mark.usefixtures("mirror")
CPU = ["--device", "cpu", "--precision", "fp32"]
TASK = ["--tasks", "mc_calib_arc"]


def run(*command):
    return main([str(word) for word in command])


def evaluation(output, *more):
    """Log-probabilities of an evaluation as users type it, and its samples."""
    assert run("eval", *TASK, *CPU, "--output", output, *more) == 0
    (file,) = find_samples(output)
    return read_samples(file).log_probs, [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture
def base(tmp_path):
    """A base model whose tokenizer has no chat template."""
    return save_tiny(tmp_path / "base", chat_template=None)


@pytest.fixture
def adapter(base, tmp_path):
    return save_foreign(base, tmp_path / "adapter")


@pytest.mark.parametrize("added", [(), ("<|im_start|>", "<|im_end|>")])
@pytest.mark.parametrize("given", ["--artifact", "--model"])
def test_it_is_evaluated_with_its_own_tokenizer_as_peft_runs_it(base, tmp_path, capsys, given, added):
    adapter = save_foreign(base, tmp_path / "adapter", added=added)
    found, samples = evaluation(tmp_path / "out", given, adapter, "--apply-chat-template")
    said = capsys.readouterr()
    assert f"{adapter} is an adapter (lora) of another program" in said.out
    assert f"{adapter} names the base model {base}" in said.out
    assert "was fitted with" not in said.err
    first = min(samples, key=lambda sample: sample["doc_id"])
    context = first["arguments"]["gen_args_0"]["arg_0"]
    letters = [each["arg_1"] for each in first["arguments"].values()]
    expected = plain_letters(base, adapter, context, letters)
    assert found[0][: len(letters)].tolist() == pytest.approx(expected, abs=1e-4)
    (results,) = (tmp_path / "out").rglob("results_*.json")
    arguments = json.loads(results.read_text())["config"]["model_args"]
    assert (arguments["pretrained"], arguments["peft"]) == (str(base), str(adapter))
    assert arguments["trust_remote_code"] is False


@pytest.mark.slow
@pytest.mark.parametrize("given", ["--artifact", "--model"])
def test_a_temperature_on_it_is_fitted_evaluated_and_reported(base, adapter, tmp_path, capsys, given):
    chat = "--apply-chat-template"
    assert run("fit", "--method", "temperature", given, adapter, *TASK, *CPU, chat, "--output", tmp_path / "t") == 0
    manifest = json.loads((tmp_path / "t" / "calibtune.json").read_text())
    assert (manifest["model"], manifest["recipe"]["artifact"]) == (str(base), str(adapter))
    assert f"tokenizer={adapter}" in (tmp_path / "t" / "README.md").read_text()
    scaled, _ = evaluation(tmp_path / "out" / "t", "--artifact", tmp_path / "t")
    plain, _ = evaluation(tmp_path / "out" / "adapter", "--model", adapter, chat)
    assert scaled[~(scaled != scaled)].tolist() == plain[~(plain != plain)].tolist()
    again, _ = evaluation(tmp_path / "again", "--artifact", tmp_path / "t", "--model", adapter)
    assert again[~(again != again)].tolist() == plain[~(plain != plain)].tolist()
    evaluation(tmp_path / "out" / "base", "--model", base)
    folders = [tmp_path / "out" / name for name in ("base", "adapter", "t")]
    assert run("report", *folders, "--output", tmp_path / "report") == 0
    methods = json.loads((tmp_path / "report" / "results.json").read_text())["methods"]
    assert [method["adapter"] for method in methods][:2] == [None, str(adapter)]
    # Baked, it needs neither.
    assert run("bake", "--artifact", tmp_path / "t", "--output", tmp_path / "baked") == 0
    baked, _ = evaluation(tmp_path / "baked-out", "--model", tmp_path / "baked", chat)
    t = manifest["temperature"]["temperature"]
    assert baked[0][1] - baked[0][0] == pytest.approx((plain[0][1] - plain[0][0]) / t, abs=1e-3)


@pytest.mark.parametrize("added", [(), ("<|im_start|>",)])
def test_training_on_it_names_the_merge_that_makes_it_work(base, tmp_path, capsys, added):
    adapter = save_foreign(base, tmp_path / "adapter", added=added)
    assert main(words(adapter, tmp_path / "out")) == 2
    said = capsys.readouterr().err
    command = f"python -m calibtune merge --artifact {adapter} --output MERGED"
    assert f"--model {adapter} is an adapter; train on the model that it makes: {command}, then fit with" in said
    merged = tmp_path / "merged"
    assert main(command.replace("MERGED", str(merged)).split()[3:]) == 0
    chat = "--apply-chat-template"
    plain, _ = evaluation(tmp_path / "plain", "--model", adapter, chat)
    alike, _ = evaluation(tmp_path / "merged-out", "--model", merged, chat)
    assert abs(plain - alike)[~(plain != plain)].max() < 1e-4
    assert main([*words(merged, tmp_path / "out", max_steps=1), chat]) == 0


def test_doctor_looks_at_the_adapter(base, adapter, capsys):
    run("doctor", "--model", adapter, *CPU, "--apply-chat-template")
    adapted = capsys.readouterr().out
    assert "letters are single tokens of their own" in adapted
    run("doctor", "--artifact", adapter, *CPU, "--apply-chat-template")
    assert capsys.readouterr().out == adapted
    run("doctor", "--model", base, *CPU)
    assert adapted.splitlines()[-2] != capsys.readouterr().out.splitlines()[-2]


def test_a_base_that_has_moved_is_asked_for_and_taken(base, adapter, tmp_path, capsys):
    plain, _ = evaluation(tmp_path / "before", "--artifact", adapter)
    moved = shutil.move(base, tmp_path / "elsewhere")
    assert run("eval", "--model", adapter, *TASK, "--output", tmp_path / "out") == 2
    advice = f"which is not here; give its place with --model BASE --artifact {adapter}"
    assert advice in capsys.readouterr().err
    found, _ = evaluation(tmp_path / "out", "--model", moved, "--artifact", adapter)
    doubt = f"{adapter} names {base} as its base, and {moved} is given; nothing tells whether they are one model"
    assert doubt in capsys.readouterr().err
    assert found[~(found != found)].tolist() == plain[~(plain != plain)].tolist()
    assert run("merge", "--artifact", adapter, "--model", moved, "--output", tmp_path / "merged") == 0


def test_an_artifact_of_another_model_is_not_taken_for_one_on_the_adapter(base, adapter, tmp_path, capsys):
    assert run("fit", "--method", "temperature", "--model", base, *TASK, *CPU, "--output", tmp_path / "t") == 0
    assert run("eval", "--model", adapter, "--artifact", tmp_path / "t", *TASK, "--output", tmp_path / "out") == 2
    said = f"--artifact {tmp_path / 't'} was fitted on a base model, not on the adapter {adapter}; leave out --model"
    assert said in capsys.readouterr().err


def changed(adapter, **values):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "PREFIX_TUNING"}, "is a PREFIX_TUNING adapter, which puts tokens of its own before the task's"),
        ({"task_type": "SEQ_CLS"}, "is an adapter for SEQ_CLS, not for a causal language model"),
        ({"base_model_name_or_path": None}, "--model is missing; give a hub id or a folder"),
    ],
)
def test_an_adapter_of_another_kind_is_one_sentence(adapter, tmp_path, capsys, change, message):
    changed(adapter, **change)
    assert run("eval", "--artifact", adapter, *TASK, "--output", tmp_path / "out") == 2
    assert message in capsys.readouterr().err


def test_an_adapter_on_an_adapter_names_the_merge(adapter, tmp_path, capsys):
    first = shutil.copytree(adapter, tmp_path / "first; touch x")
    second = shutil.copytree(adapter, tmp_path / "second")
    changed(second, base_model_name_or_path=str(first))
    assert run("eval", "--model", second, *TASK, "--output", tmp_path / "out") == 2
    assert f"merge that one first: python -m calibtune merge --artifact '{first}' --output" in capsys.readouterr().err


@pytest.mark.parametrize("layers", [1, 3])
def test_an_adapter_for_other_layers_is_refused(adapter, tmp_path, capsys, layers):
    other = save_tiny(tmp_path / "other", layers=layers)
    assert run("eval", "--model", other, "--artifact", adapter, *TASK, *CPU, "--output", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "does not fit the base model, a LlamaForCausalLM (" in said
    assert "weights do not match" in said


def test_pickled_weights_are_not_read_and_the_command_converts_them(base, adapter, tmp_path, capsys, monkeypatch):
    from safetensors.torch import load_file

    plain, _ = evaluation(tmp_path / "before", "--artifact", adapter)
    file = adapter / "adapter_model.safetensors"
    torch.save(load_file(file), adapter / "adapter_model.bin")
    file.unlink()
    again = ("eval", "--artifact", adapter, *TASK, *CPU, "--output", tmp_path / "out")
    assert run(*again) == 2
    command = capsys.readouterr().err.partition(': python -c "')[2].strip().removesuffix('"')
    with monkeypatch.context() as patch:
        patch.chdir(adapter)
        exec(command)
    found, _ = evaluation(tmp_path / "out", "--artifact", adapter)
    assert found[~(found != found)].tolist() == plain[~(plain != plain)].tolist()


@pytest.mark.slow
def test_an_adapter_on_the_hub_is_taken_by_its_id(adapter, tmp_path, mirror, monkeypatch):
    # The hub's local cache, as a download leaves it.
    cache = tmp_path / "hub-cache" / "models--org--chat-lora"
    shutil.copytree(adapter, cache / "snapshots" / ("0" * 40))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0" * 40)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    output = tmp_path / "out"
    for given in ("--model", "--artifact"):
        command = ["-m", "calibtune", "eval", given, "org/chat-lora", *TASK, *CPU, "--output", output / given]
        assert shell(command, mirror).wait(120) == 0
    merge = ["-m", "calibtune", "merge", "--artifact", "org/chat-lora", "--output", tmp_path / "merged"]
    assert shell(merge, mirror).wait(120) == 0
    plain, _ = evaluation(tmp_path / "plain", "--model", adapter)
    merged, _ = evaluation(tmp_path / "merged-out", "--model", tmp_path / "merged")
    for found in (merged, *(read_samples(file).log_probs for file in find_samples(output))):
        assert abs(plain - found)[~(plain != plain)].max() < 1e-4
