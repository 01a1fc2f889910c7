import os
import shutil

import pytest
from lm_eval.models.huggingface import HFLM
from tiny import build_tokenizer, save_tiny

from calibtune.errors import UserError
from calibtune.winrate.answers import Model, Settings, generate


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("models") / "base")


def test_answers_continue_after_a_blank_line(tmp_path, model, monkeypatch):
    decode = HFLM.tok_decode
    monkeypatch.setattr(
        HFLM,
        "tok_decode",
        lambda self, tokens, **more: "one\n\ntwo" if isinstance(tokens, list) else decode(self, tokens, **more),
    )
    answers = generate(Model(str(model)), ["Options:"], tmp_path, Settings(max_new_tokens=4, device="cpu"))
    assert answers.outputs == ("one\n\ntwo",)


def test_truncated_prompts_are_counted(tmp_path, model):
    questions = ["Options: " * 300, "Options:"]
    answers = generate(Model(str(model)), questions, tmp_path, Settings(max_new_tokens=4, device="cpu"))
    assert answers.cut == 1
    assert len(answers.outputs) == 2


def test_fingerprint_changes_with_weights_adapter_and_arguments(tmp_path, model):
    adapter = tmp_path / "tuned"
    adapter.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (adapter / name).write_bytes(b"{}")
    before = Model(str(model), adapter).fingerprint()
    assert before == Model(str(model), adapter).fingerprint()
    assert before != Model(str(model)).fingerprint()
    assert before != Model(str(model), adapter, (("dtype", "float32"),)).fingerprint()
    os.utime(adapter / "adapter_model.safetensors", ns=(1, 1))
    assert before != Model(str(model), adapter).fingerprint()


def test_model_name_has_base_and_adapter(tmp_path):
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_text("{}")
    assert Model("org/base-7b").name == "base-7b"
    assert Model("org/base-7b", tmp_path).name == f"base-7b+{tmp_path.name}"


def test_temperature_artifact_is_refused(tmp_path):
    (tmp_path / "temperature.json").write_text('{"temperature": 2.0}')
    with pytest.raises(UserError, match="a temperature does not change greedy answers"):
        Model("base", tmp_path)


def test_answers_do_not_depend_on_batch_size(tmp_path, model):
    questions = ["Options:", "Which of these is the right one?", "Answer with only a single letter: A. option a"]
    found = [
        generate(Model(str(model)), questions, tmp_path / str(size), Settings(6, size, "cpu")).outputs
        for size in (1, 3)
    ]
    assert found[0] == found[1]


def test_a_padding_token_without_an_embedding_is_no_matter(tmp_path, model):
    folder = shutil.copytree(model, tmp_path / "padded")
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.model_max_length = 512
    tokenizer.save_pretrained(folder)
    questions = ["Options:", "Which of these is the right one?"]
    found = [generate(Model(str(each)), questions, tmp_path, Settings(6, 2, "cpu")).outputs for each in (folder, model)]
    assert found[0] == found[1]


def test_interrupted_generation_resumes(tmp_path, model, monkeypatch):
    real, batches = HFLM._model_generate, []

    def counted(self, context, *args, **more):
        batches.append(len(context))
        if len(batches) == 3:
            raise KeyboardInterrupt
        return real(self, context, *args, **more)

    monkeypatch.setattr(HFLM, "_model_generate", counted)
    questions = [f"Question {i}? Options:" for i in range(8)]
    with pytest.raises(KeyboardInterrupt):
        generate(Model(str(model)), questions, tmp_path, Settings(4, 2, "cpu"))
    resumed = generate(Model(str(model)), questions, tmp_path, Settings(4, 2, "cpu"))
    # Two batches of two before the stop, and only the other two after it.
    assert batches == [2, 2, 2, 2, 2]
    assert resumed == generate(Model(str(model)), questions, tmp_path / "anew", Settings(4, 2, "cpu"))


def test_an_old_cache_of_pickles_is_not_read(tmp_path, model):
    """lm_eval's own cache at the place where version 0.1.0 kept it, with a pickle that leaves a trace."""
    import pickle
    import sqlite3

    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    where = tmp_path / f"requests-{Model(str(model)).fingerprint()[:16]}_rank0.db"
    with sqlite3.connect(where) as database:
        database.execute('CREATE TABLE "unnamed" (key TEXT PRIMARY KEY, value BLOB)')
        database.execute('INSERT INTO "unnamed" VALUES (?, ?)', ("x", pickle.dumps(Evil())))
    generate(Model(str(model)), ["Options:"], tmp_path, Settings(4, 1, "cpu"))
    assert not (tmp_path / "ran").exists()
    assert {path.suffix for path in tmp_path.iterdir()} == {".db", ".json", ".jsonl"}
