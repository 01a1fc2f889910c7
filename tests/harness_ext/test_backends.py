"""Our tasks by ``lm_eval`` alone: its request caches, and backends that ask a server."""

import importlib.util

import numpy as np
import pytest
from commands import run_command
from completions_server import completions_server
from tiny import NO_SYSTEM_TEMPLATE, add_bos, save_tiny

from calibtune.__main__ import main
from calibtune.results.samples import find_samples, read_samples

pytestmark = pytest.mark.slow
#: What lm_eval's backends that ask a server need.
served = pytest.mark.skipif(importlib.util.find_spec("tenacity") is None, reason="needs lm_eval[api]")


@pytest.fixture
def run(mirror, tmp_path):
    """Run `lm_eval --tasks mc_calib_arc` in a process of its own; return it and the log-likelihoods that it wrote."""

    def evaluate(name, model_args, *more, backend="hf"):
        output = tmp_path / name
        command = ["--model", backend, "--model_args", model_args, "--tasks", "mc_calib_arc", "--output_path", output]
        done = run_command(mirror, tmp_path / "cache", *command, "--log_samples", *more)
        return done, read_samples(find_samples(output)[0]).log_probs if done.returncode == 0 else None

    return evaluate


def test_cached_requests_of_other_rows_are_not_scored(run, model, mirror, tmp_path, monkeypatch):
    monkeypatch.setenv("LM_HARNESS_CACHE_PATH", str(tmp_path / "requests"))
    first, _ = run("first", f"pretrained={model},dtype=float32", "--cache_requests", "true")
    assert first.returncode == 0, first.stderr
    path = mirror / "allenai/ai2_arc/ARC-Challenge/test.jsonl"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    _, cached = run("cached", f"pretrained={model},dtype=float32", "--cache_requests", "true")
    _, plain = run("plain", f"pretrained={model},dtype=float32")
    np.testing.assert_array_equal(cached, plain)


def test_answers_that_another_model_left_in_a_cache_are_warned_of_and_named_by_rescore(run, model, tmp_path, capsys):
    other = save_tiny(tmp_path / "other", seed=5)
    first, mine = run("first", f"pretrained={model},dtype=float32", "--use_cache", tmp_path / "answers")
    second, theirs = run("second", f"pretrained={other},dtype=float32", "--use_cache", tmp_path / "answers")
    assert "without being tokenized" not in first.stderr
    np.testing.assert_array_equal(mine, theirs)
    assert "requests were answered without being tokenized, as --use_cache does, which does not tell" in second.stderr
    assert main(["rescore", str(tmp_path / "first"), str(tmp_path / "second")]) == 0
    assert "have the same log-likelihoods to the last bit" in capsys.readouterr().err


@served
def test_a_completions_server_whose_template_rejects_the_system_role_gives_hfs_numbers(run, tmp_path):
    folder = save_tiny(tmp_path / "gemma", chat_template=NO_SYSTEM_TEMPLATE)
    _, expected = run("hf", f"pretrained={folder},dtype=float32", "--apply_chat_template")
    with completions_server(folder) as (url, bodies):
        args = f"model={folder},base_url={url}/completions,tokenizer_backend=huggingface"
        done, found = run("server", args, "--apply_chat_template", backend="local-completions")
    assert done.returncode == 0, done.stderr
    assert bodies
    np.testing.assert_allclose(found, expected, atol=1e-4)


@served
def test_a_completions_server_is_asked_with_the_beginning_of_text_or_not_at_all(run, tmp_path):
    folder = save_tiny(tmp_path / "bos")
    add_bos(folder)
    _, expected = run("hf", f"pretrained={folder},dtype=float32")
    with completions_server(folder) as (url, bodies):
        args = f"model={folder},base_url={url}/completions,tokenizer_backend=huggingface"
        refused, _ = run("without", args, backend="local-completions")
        assert bodies == []
        done, found = run("with", f"{args},add_bos_token=True", backend="local-completions")
    assert refused.returncode != 0
    assert "the requests begin without <|system|>, which the model's tokenizer puts before every text" in refused.stderr
    assert "give add_bos_token=True in --model_args" in refused.stderr
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(found, expected, atol=1e-4)


@served
def test_a_chat_server_is_refused_before_it_is_asked(run, model):
    with completions_server(model) as (url, bodies):
        args = f"model=m,base_url={url}/chat/completions"
        done, _ = run("chat", args, "--apply_chat_template", backend="local-chat-completions")
    assert done.returncode != 0
    assert "LocalChatCompletion gives no log-likelihoods of letters" in done.stderr
    assert "use --model local-completions, with a server's /v1/completions" in done.stderr
    assert bodies == []
