"""A real model behind llama-cpp-python's OpenAI server, beside its weights in transformers."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from evaluating import small_evaluation
from llama_server import llama_cpp_server, python_of_llama_cpp, widened

from calibtune.__main__ import main
from calibtune.results.samples import find_samples, read_samples

pytestmark = pytest.mark.real
TOOL = Path(__file__).resolve().parents[3] / "shared/tools/real_model.py"
#: Both compute in float32 with the same weights; sums in another order differ by so much in a log-probability.
TOLERANCE = 1e-3


@pytest.fixture(scope="session", autouse=True)
def python():
    """Skip before the real model is made."""
    return python_of_llama_cpp()


@pytest.fixture(scope="module")
def url(python, tmp_path_factory):
    if not TOOL.is_file():
        pytest.skip("needs ../shared/tools/real_model.py")
    folder = tmp_path_factory.mktemp("gguf")
    subprocess.run([sys.executable, str(TOOL), "smollm2", str(folder), "--gguf"], check=True)
    model = widened(folder / "model.gguf", folder / "float32.gguf")
    with llama_cpp_server(python, model, folder / "log") as found:
        yield found


@pytest.mark.parametrize("chat", [[], ["--apply-chat-template"]], ids=["completions", "chats"])
def test_letters_of_llama_cpps_server_equal_those_of_transformers(url, smollm2, mirror, tmp_path, chat):
    small_evaluation(tmp_path / "hf", model=str(smollm2), apply_chat_template=bool(chat))
    there = ["--backend", "api", "--base-url", url, "--model", "smollm2", "--tasks", "mc_calib_arc", *chat]
    assert main(["eval", *there, "--output", str(tmp_path / "api")]) == 0
    expected, found = (read_samples(*find_samples(tmp_path / name)) for name in ("hf", "api"))
    shown = ~found.unseen & ~np.isnan(found.log_probs)
    assert shown.sum() > 80
    np.testing.assert_allclose(found.log_probs[shown], expected.log_probs[shown], atol=TOLERANCE)
    assert (expected.log_probs[found.unseen] <= found.log_probs[found.unseen] + TOLERANCE).all()


def test_doctor_finds_what_llama_cpps_server_gives(url, mirror, capsys):
    assert main(["doctor", "--backend", "api", "--base-url", url, "--model", "smollm2", "--apply-chat-template"]) == 0
    found = capsys.readouterr().out
    assert "completions (--no-apply-chat-template): the server shows the 100 most likely tokens" in found
    assert "chats (--apply-chat-template): the server shows the" in found
    assert "32 of 32 letters of 8 questions are shown" in found
