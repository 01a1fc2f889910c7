"""What ``calibtune eval`` refuses in one sentence, and what it says of files that were not written."""

import errno
import json
import shlex
from types import SimpleNamespace

import pytest
import torch
from fitting import small_fit
from lm_eval.loggers import evaluation_tracker
from tiny import CHAT_TEMPLATE, build_tokenizer, save_tiny
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from calibtune.__main__ import main
from calibtune.artifacts.card import usage
from calibtune.artifacts.manifest import read_artifact
from calibtune.evaluation import evaluate as evaluation
from calibtune.evaluation.checks import LOOKED_AT
from calibtune.evaluation.hf_letters import LetterLM
from calibtune.results.samples import find_samples, read_samples

pytestmark = pytest.mark.usefixtures("mirror")


def evaluate(output, *more, model=None):
    words = [
        "eval",
        "--tasks",
        "mc_calib_arc",
        "--output",
        output,
        "--device",
        "cpu",
        "--precision",
        "fp32",
        *(["--model", model] if model else []),
        *more,
    ]
    return main([str(word) for word in words])


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Run `eval`, which must end in one sentence with exit code 2 and load nothing; returns the sentence."""

    def run(*more, model=None, output=tmp_path / "out"):
        with monkeypatch.context() as patch:
            patch.setattr(evaluation, "_load", lambda *_: pytest.fail("the model was loaded"))
            assert evaluate(output, *more, model=model) == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert said.startswith("calibtune: error: ")
        assert not (tmp_path / "out").exists()
        return said

    return run


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("file", "file is a file; give a folder"),
        ("file/below", "file is a file; give a folder"),
        ("results.json", "results.json ends in .json, which lm_eval takes for a file; give a folder"),
        ("n" * 300, "cannot be written: File name too long; give another folder"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_anything_is_loaded(model, tmp_path, refused, name, message):
    (tmp_path / "file").write_text("mine")
    assert message in refused(model=model, output=tmp_path / name)
    assert (tmp_path / "file").read_text() == "mine"


def test_an_output_on_a_file_system_that_takes_no_files_is_refused(model, tmp_path, refused, monkeypatch):
    def read_only(_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("calibtune.locks.FileLock.acquire", read_only)
    assert "out cannot be written: Read-only file system" in refused(model=model)


@pytest.mark.parametrize(("full_at", "left"), [("results_", "results_"), ("samples_", "samples_mc_calib_arc_")])
def test_a_disk_that_fills_up_while_lm_eval_writes_fails_the_work(model, tmp_path, monkeypatch, capsys, full_at, left):
    class Full:
        def __init__(self, file):
            self.file, self.room = file, 3

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, text):
            self.room -= 1
            if not self.room:
                self.file.write(text[:50])
                raise OSError(errno.ENOSPC, "No space left on device")
            self.file.write(text)

    def half(path, text, **_):
        path.write_bytes(text.encode()[:50])
        raise OSError(errno.ENOSPC, "No space left on device")

    if full_at == "samples_":
        monkeypatch.setattr(evaluation_tracker, "open", lambda *a, **k: Full(open(*a, **k)), raising=False)  # noqa: SIM115
    else:
        monkeypatch.setattr(evaluation_tracker.Path, "write_text", half)
    assert evaluate(tmp_path / "out", model=model) == 1
    captured = capsys.readouterr()
    assert left in captured.err
    assert "was not written completely; check whether the disk is full" in captured.err
    assert "written to" not in captured.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--limit", "0"], "--limit is 0; give at least 1"),
        (["--limit", "-1"], "--limit is -1; give at least 1"),
        (["--num-fewshot", "-1"], "--num-fewshot is -1; give 0 or more"),
        (["--num-fewshot", "100"], "--num-fewshot 100 is more than the 24 examples of task mc_calib_arc; give at most"),
        (["--batch-size", "foo"], "--batch-size is 'foo'; give a number from 1 up, or auto"),
        (["--batch-size", "0"], "--batch-size is '0'; give a number"),
        (["--batch-size=-4"], "--batch-size is '-4'; give a number"),
        (["--batch-size", "auto:x"], "--batch-size is 'auto:x'; give a number"),
        (["--tasks", ","], "--tasks names no task; give one or more"),
        (["--device", "foo"], "--device foo cannot be used here"),
    ],
)
def test_flags_that_lm_eval_stumbles_over_are_refused(model, refused, words, message):
    assert message in refused(*words, model=model)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_without_a_gpu_is_refused(model, refused):
    assert "--device cuda cannot be used here" in refused("--device", "cuda", model=model)


def other_model(kind, folder):
    """A folder that is no model to ask for letters, or none at all."""
    import transformers

    small = {"vocab_size": 512, "num_attention_heads": 4, "num_hidden_layers": 1}
    if kind == "bert":
        config = transformers.BertConfig(hidden_size=32, intermediate_size=64, **small)
        transformers.BertForMaskedLM(config).save_pretrained(folder)
        build_tokenizer().save_pretrained(folder)
    elif kind == "t5":
        config = transformers.T5Config(vocab_size=512, d_model=32, d_ff=64, num_layers=1, num_heads=4, d_kv=8)
        transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
        build_tokenizer().save_pretrained(folder)
    elif kind != "missing":
        save_tiny(folder)
        if kind == "broken config":
            (folder / "config.json").write_text("{")
        if kind == "no tokenizer":
            for path in folder.glob("*token*"):
                path.unlink()
    return folder


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("bert", "is a BertForMaskedLM, not a causal language model"),
        ("t5", "is a T5ForConditionalGeneration, not a causal language model"),
        ("missing", "does not exist"),
        ("broken config", "cannot be loaded"),
        ("no tokenizer", "cannot be loaded"),
    ],
)
def test_what_is_no_model_with_letters_is_refused(tmp_path, refused, kind, message):
    assert message in refused(model=other_model(kind, tmp_path / "model"))


def test_a_chat_template_that_is_not_there_is_refused(tmp_path, refused):
    plain = save_tiny(tmp_path / "plain", chat_template=None)
    said = refused("--apply-chat-template", model=plain)
    assert f"the tokenizer of {plain} has no chat template; give --no-apply-chat-template" in said


@pytest.mark.parametrize("spoilt", [None, b"no weights at all"])
def test_weights_that_are_missing_or_damaged_are_one_sentence(tmp_path, capsys, spoilt):
    folder = save_tiny(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    if spoilt:
        (folder / "model.safetensors").write_bytes(spoilt)
    assert evaluate(tmp_path / "out", model=folder) == 2
    assert f"calibtune: error: --model {folder} cannot be loaded: " in capsys.readouterr().err


def test_a_base_of_another_shape_than_the_adapters_is_one_sentence(model, tmp_path, capsys):
    small_fit(model, tmp_path / "adapter", "cft", max_steps=1)
    wide = save_tiny(tmp_path / "other" / model.name, hidden=64)
    assert evaluate(tmp_path / "out", "--artifact", tmp_path / "adapter", model=wide) == 2
    assert (
        f"{wide} has other weights than the model that {tmp_path / 'adapter'} was fitted on" in capsys.readouterr().err
    )


@pytest.fixture
def templated(tmp_path):
    """A temperature and the adapter below it, fitted with a chat template that the base's tokenizer has not."""
    base = save_tiny(tmp_path / "plain", chat_template=None)
    (tmp_path / "chat.jinja").write_text(CHAT_TEMPLATE)
    chat = {"apply_chat_template": True, "chat_template": str(tmp_path / "chat.jinja")}
    small_fit(base, tmp_path / "adapter", "cft", max_steps=1, **chat)
    small_fit(base, tmp_path / "t", "temperature", artifact=str(tmp_path / "adapter"), **chat)
    return tmp_path / "t", tmp_path / "adapter"


def test_an_artifact_is_evaluated_with_the_chat_template_that_it_was_fitted_with(templated, tmp_path):
    prompts = []
    for artifact in templated:
        build_tokenizer().save_pretrained(artifact)
        (tmp_path / "chat.jinja").unlink(missing_ok=True)
        assert evaluate(tmp_path / "out" / artifact.name, "--artifact", artifact) == 0
        (samples,) = find_samples(tmp_path / "out" / artifact.name)
        assert len(read_samples(samples).labels) == 24
        sample = json.loads(samples.read_text().splitlines()[0])
        prompts.append(sample["arguments"]["gen_args_0"]["arg_0"])
        assert ",tokenizer=THIS_FOLDER" in usage(read_artifact(artifact))
    assert prompts[0] == prompts[1]
    assert prompts[0].endswith("<|assistant|>\n")


def test_an_artifact_without_the_tokenizer_that_it_needs_is_to_be_fitted_again(templated, refused):
    for path in templated[0].glob("tokenizer*"):
        path.unlink()
    assert "was fitted with a chat template, but its tokenizer is missing; copy or fit the artifact again" in refused(
        "--artifact", templated[0]
    )


def test_four_bit_artifacts_take_their_own_tokenizer_and_their_files_name_the_backend(templated, tmp_path):
    build_tokenizer().save_pretrained(templated[0])
    (tmp_path / "chat.jinja").unlink()
    assert evaluate(tmp_path / "out", "--artifact", templated[0], "--quantization", "nf4", "--limit", "2") == 0
    (path,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(path.read_text())
    assert (results["config"]["model"], results["model_source"]) == ("hf-prefix", "hf-prefix")
    assert results["chat_template"] == CHAT_TEMPLATE


@pytest.mark.parametrize(
    ("device", "batch_size", "fused", "least"),
    [("cuda", None, 1, evaluation.GPU_TOKENS), ("cuda", "8", 1, 0), ("cpu", None, 0, 0)],
)
def test_a_gpu_gets_fused_norms_and_full_batches_where_nobody_said_how_large(
    device, batch_size, fused, least, monkeypatch
):
    class Loaded(LetterLM):
        def __init__(self):
            self._device, self._model = torch.device(device), LlamaRMSNorm(8)

    monkeypatch.setattr(evaluation, "_load", lambda *_: Loaded())
    options = SimpleNamespace(batch_size=batch_size)
    lm = evaluation._filling(options, {}, None)
    assert ("forward" in vars(lm.model)) == fused
    assert lm.least_tokens == least


def test_the_tokenizer_is_read_once(model, tmp_path, monkeypatch):
    read = []
    inner = AutoTokenizer.from_pretrained
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *a, **o: read.append(a) or inner(*a, **o))
    assert evaluate(tmp_path / "out", "--limit", "2", model=model) == 0
    assert len(read) == 1


def test_the_next_command_can_be_pasted_where_the_path_has_blanks(model, tmp_path, capsys):
    output = tmp_path / "my results"
    assert evaluate(output, "--limit", "2", model=model) == 0
    line = capsys.readouterr().out.splitlines()[-1].removeprefix("next: ")
    assert shlex.split(line) == ["python", "-m", "calibtune", "report", str(output), "--output", "report"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--guard-base", "nowhere"], "nowhere does not exist"),
        (["--guard-base", "base"], "base has no samples_*.jsonl"),
        (["--guard-base", "other"], "other holds no samples of ultrafeedback_winrate"),
        (["--guard-base", "good", "--margin", "2"], "--margin 2 is not within [0, 1)"),
    ],
)
def test_a_guard_that_could_not_compare_is_refused_before_the_evaluation(model, mirror, refused, words, message):
    from winrate_samples import wins, write

    (mirror / "base").mkdir()
    for folder, task in (("other", "mc_calib_arc"), ("good", "ultrafeedback_winrate")):
        write(mirror / folder / f"samples_{task}_2026-01-01T00-00-00.000000.jsonl", wins(0.7, count=5))
    said = refused("--tasks", "mc_calib_arc, ultrafeedback_winrate", "--guard", "winrate", *words, model=model)
    assert message in said


def test_processes_that_lm_eval_gives_no_results_say_and_compare_nothing(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluation, "quiet_evaluate", lambda **_: None)
    assert evaluate(tmp_path / "out", model=model) == 0
    assert "written to" not in capsys.readouterr().out


def test_a_low_letter_mass_is_said_before_the_table(model, tmp_path, capfd):
    # On one stream, so that the order shows.
    import contextlib
    import sys

    with contextlib.redirect_stderr(sys.stdout):
        assert evaluate(tmp_path / "out", model=model) == 0
    said = capfd.readouterr().out
    warning = said.index("warning: mc_calib_arc: letter mass 0.0")
    assert "try with --apply-chat-template, if it is a chat model" in said
    assert warning < said.index("mc_calib_arc: 24 questions")


def test_a_high_letter_mass_is_not_mentioned(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("calibtune.evaluation.checks.MASS", 0.0)
    assert evaluate(tmp_path / "out", model=model) == 0
    assert "letter mass" not in capsys.readouterr().err


def test_an_artifact_evaluated_without_the_template_of_its_fit_is_warned_of(model, tmp_path, capsys):
    small_fit(model, tmp_path / "chat", "cft", max_steps=1, apply_chat_template=True)
    assert evaluate(tmp_path / "same", "--artifact", tmp_path / "chat") == 0
    assert "was fitted with the chat template" not in capsys.readouterr().err
    assert evaluate(tmp_path / "other", "--artifact", tmp_path / "chat", "--no-apply-chat-template") == 0
    said = capsys.readouterr().err
    line = "the artifact was fitted with the chat template and is evaluated without a chat template; leave out"
    assert f"warning: {line} --no-apply-chat-template to evaluate it as it was fitted" in said


def test_letters_without_tokens_of_their_own_are_refused_before_weights_are_loaded(tmp_path, refused):
    folder = save_tiny(tmp_path / "bytes")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = [m for m in tokenizer["model"]["merges"] if "".join(m) not in ("ĠA", "ĠB")]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "its tokenizer splits some of the letters, and not others, into several tokens" in refused(model=folder)


def test_a_checkpoint_without_all_of_its_weights_is_refused(tmp_path, mirror, capsys):
    from safetensors.torch import load_file, save_file

    folder = save_tiny(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert evaluate(tmp_path / "out", model=folder) == 2
    assert "lacks 1 weights that its config.json requires, such as lm_head.weight" in capsys.readouterr().err


def test_an_artifact_is_only_read_by_an_evaluation(model, tmp_path, mirror):
    small_fit(model, tmp_path / "t", "temperature")
    before = {path: path.read_bytes() for path in (tmp_path / "t").rglob("*") if path.is_file()}
    assert evaluate(tmp_path / "out", "--artifact", tmp_path / "t", "--limit", "4") == 0
    assert {path: path.read_bytes() for path in (tmp_path / "t").rglob("*") if path.is_file()} == before


def test_a_task_that_the_artifact_brings_is_not_evaluated(model, tmp_path, mirror):
    small_fit(model, tmp_path / "t", "temperature")
    (tmp_path / "t" / "evil.py").write_text("def f(doc):\n    open('ran', 'w').close()\n    return 'x'\n")
    (tmp_path / "t" / "a.yaml").write_text(
        "include: mc_calib_arc_scaled.yaml\ntask: mc_calib_arc_scaled\ndoc_to_text: !function evil.f\n"
    )
    assert evaluate(tmp_path / "out", "--artifact", tmp_path / "t", "--limit", "4") == 0
    assert not (mirror / "ran").exists()


def test_a_question_is_rendered_and_tokenized_once(model, tmp_path, monkeypatch):
    """Five times the texts of 2,000 questions would keep a GPU waiting for a tenth of the time that it computes."""
    given = {name: [] for name in ("apply_chat_template", "__call__", "encode")}
    for name, seen in given.items():
        plain = getattr(PreTrainedTokenizerBase, name)

        def noted(self, what, *args, seen=seen, plain=plain, **options):
            seen.append(what)
            return plain(self, what, *args, **options)

        monkeypatch.setattr(PreTrainedTokenizerBase, name, noted)
    assert evaluate(tmp_path / "out", "--apply-chat-template", model=model) == 0
    questions = 24
    assert len(read_samples(*find_samples(tmp_path / "out")).labels) == questions
    assert len(given["apply_chat_template"]) == questions + LOOKED_AT
    # First the questions that are looked at before the weights are loaded.
    looked_at, _, prompts, ends = (texts for texts in given["__call__"] if isinstance(texts, list))
    assert (len(looked_at), len(prompts)) == (LOOKED_AT, questions)
    assert sorted(ends) == ["<|assistant|>\n", *(f"<|assistant|>\n{letter}" for letter in "ABCDE")]
    # One of them is looked at more closely.
    assert len(given["encode"]) <= 10
