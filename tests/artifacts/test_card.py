import re
import shlex

import numpy as np
import pytest
from evaluating import small_evaluation
from fitting import small_fit

from calibtune.artifacts.card import summary
from calibtune.errors import UserError
from calibtune.recipe import Recipe
from calibtune.results.samples import find_samples, read_samples
from calibtune.tuning.auto import fit_auto
from calibtune.tuning.fit import fit

pytestmark = pytest.mark.usefixtures("mirror")


def test_summary_quotes_paths_with_spaces(model, tmp_path):
    artifact = small_fit(model, tmp_path / "a b", "temperature")
    line = summary(artifact, tmp_path / "a b").splitlines()[-1]
    words = shlex.split(line.removeprefix("next: "))
    assert words[words.index("--artifact") + 1] == str(tmp_path / "a b")
    assert words[words.index("--output") + 1] == f"{tmp_path / 'a b'}-eval"


def run_lines(folder, monkeypatch, capsys):
    """Run the Python of a card in its folder, and return what it prints."""
    text = (folder / "README.md").read_text("utf-8").partition("In Python, in this folder")[2]
    lines = [line[4:] for line in text.splitlines() if line.startswith("    ")]
    assert 0 < len(lines) <= 5
    monkeypatch.chdir(folder)
    capsys.readouterr()
    exec("\n".join(lines), {})
    return np.array([float(value) for value in re.findall(r"[\d.]+(?:e-\d+)?", capsys.readouterr().out)])


@pytest.mark.parametrize(
    ("method", "changes"),
    [("temperature", {}), ("cft", {"max_steps": 1}), ("cft", {"max_steps": 1, "tuning": "full"})],
    ids=["temperature", "adapter", "model"],
)
def test_the_python_of_a_card_runs_as_it_stands(model, tmp_path, monkeypatch, capsys, method, changes):
    small_fit(model, tmp_path / "a", method, **changes)
    probabilities = run_lines(tmp_path / "a", monkeypatch, capsys)
    assert probabilities.shape == (3,)
    assert probabilities.sum() == pytest.approx(1, abs=1e-6)


def test_the_python_of_a_card_for_a_temperature_of_samples_runs_too(model, tmp_path, monkeypatch, capsys):
    small_evaluation(tmp_path / "out", model=str(model))
    fit(Recipe(method="temperature", samples=str(find_samples(tmp_path / "out")[0])), tmp_path / "a", False, False)
    assert run_lines(tmp_path / "a", monkeypatch, capsys).sum() == pytest.approx(1, abs=1e-6)


def test_the_python_of_a_mean_of_adapters_runs_where_its_folder_was_moved_to(model, tmp_path, monkeypatch, capsys):
    options = {"adapters": 1, "max_steps": 1, "held_out": 6, "batch_size": 4, "rank": 4, "precision": "fp32"}
    recipe = Recipe(method="auto", model=str(model), tasks=("mc_calib_arc",), device="cpu", **options)
    fit_auto(recipe, tmp_path / "a")
    card = (tmp_path / "a" / "README.md").read_text()
    assert f"pretrained={model},peft=THIS_FOLDER/adapter" in card
    (tmp_path / "a").rename(tmp_path / "b")
    assert run_lines(tmp_path / "b", monkeypatch, capsys).sum() == pytest.approx(1, abs=1e-6)


def test_an_artifact_asks_a_question_as_the_harness_does(model, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    t = small_fit(model, tmp_path / "t", "temperature")
    small_evaluation(tmp_path / "out", model=str(model))
    rows = read_samples(find_samples(tmp_path / "out")[0])
    base, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    for number in range(3):
        doc = rows.documents[number]
        expected = t.probs(rows.log_probs[number : number + 1])[0]
        asked = t.score(base, tokenizer, doc["question"], doc["choices"])
        np.testing.assert_allclose(asked, expected[: len(asked)], atol=1e-5)


def test_a_question_that_cannot_be_asked_by_letter_is_refused(model, tmp_path):
    with pytest.raises(UserError, match=r"question 'Which\?' has 1 options"):
        small_fit(model, tmp_path / "t", "temperature").score(None, None, "Which?", ["only"])
