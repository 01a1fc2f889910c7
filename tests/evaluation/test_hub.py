"""Results on the hub: `eval --hf-hub-log-args` against a stub of it on loopback."""

import importlib
import json
import os
import re
import subprocess

import pytest
import yaml
from commands import offline
from harness import TASKS
from hub_server import HubServer
from quick_python import quick_python

from calibtune.__main__ import main
from calibtune.evaluation import evaluate as evaluation
from calibtune.evaluation.hub import LOAD

pytestmark = pytest.mark.usefixtures("mirror")

BOTH = ["push_results_to_hub=True", "push_samples_to_hub=true"]


@pytest.fixture
def evaluate(model, tmp_path, monkeypatch):
    """Run the command here, with a hub or with none, and return its exit code."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")

    def run(*given, url="http://127.0.0.1:9"):
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        words = ["eval", "--model", model, "--tasks", "mc_calib_arc", "--device", "cpu", "--precision", "fp32"]
        return main([*map(str, [*words, "--limit", 4, "--output", tmp_path / "out"]), "--hf-hub-log-args", *given])

    return run


@pytest.fixture
def refused(evaluate, monkeypatch, capsys):
    """Run the command, which must load nothing and end in one sentence without the token; returns it."""

    def run(*given, code=2, **options):
        monkeypatch.setattr(evaluation, "_load", lambda *_: pytest.fail("the model was loaded"))
        assert evaluate(*given, **options) == code
        told = capsys.readouterr()
        assert "hf_secret" not in told.out + told.err
        return told.err.strip().splitlines()[-1]

    return run


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["token=abc", *BOTH],
            "--hf-hub-log-args takes no token, which others would read in the command; set HF_TOKEN",
        ),
        (["output_path=x", *BOTH], "--hf-hub-log-args takes no output_path; give --output"),
        (
            ["push_result_to_hub=True"],
            "--hf-hub-log-args push_result_to_hub is unknown to lm_eval; give one of hub_",
        ),
        (["push_results_to_hub=yes"], "--hf-hub-log-args push_results_to_hub is 'yes'; give True or False"),
        (
            ["hub_results_org=us"],
            "--hf-hub-log-args pushes nothing; give push_results_to_hub=True, push_samples_to_hub",
        ),
        ([BOTH[0], "gated=True"], "--hf-hub-log-args gated is for the repository of the samples; give push_samples"),
        ([*BOTH, "details_repo_name=a b"], "--hf-hub-log-args details_repo_name is 'a b', no name of a repository ("),
        ([*BOTH, "results_repo_name=us/a"], "is 'us/a'; give the name alone, and its owner as hub_results_org"),
    ],
)
def test_arguments_with_which_nothing_goes_where_it_should_are_refused(refused, given, message):
    assert message in refused(*given)


def test_a_word_that_is_no_argument_is_refused(refused, capsys):
    with pytest.raises(SystemExit) as left:
        refused("push_results_to_hub")
    assert left.value.code == 2
    assert "argument --hf-hub-log-args: 'push_results_to_hub' is not an argument K=V" in capsys.readouterr().err


def test_the_token_is_the_environments_alone(refused, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    assert "error: --hf-hub-log-args needs a token that may write; set HF_TOKEN" in refused(*BOTH)


def test_a_token_that_the_hub_does_not_know_is_refused_before_the_model_is_loaded(refused, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with HubServer() as hub:
        assert "see that HF_TOKEN may write there" in refused(*BOTH, url=hub.url)


def test_a_token_that_may_not_write_is_refused_before_the_model_is_loaded(refused):
    with HubServer(refuse="repos/create") as hub:
        said = refused(*BOTH, "hub_results_org=them", url=hub.url)
    assert re.search(r"error: --hf-hub-log-args: the hub takes no results of .*Bearer \[key\].*may write there", said)


def test_a_model_in_a_folder_above_whose_name_no_repository_takes_is_refused(evaluate, model, capsys, tmp_path):
    above = os.path.relpath(model)
    words = ["eval", "--model", above, "--tasks", "mc_calib_arc", "--output", str(tmp_path / "out")]
    assert main([*words, "--device", "cpu", "--hf-hub-log-args", *BOTH]) == 2
    assert f"the hub takes no results of {above} (Invalid `path_in_repo`" in capsys.readouterr().err


def test_a_hub_that_is_not_there_is_found_before_the_model_is_loaded(refused):
    assert "--hf-hub-log-args: the hub takes no results of" in refused(*BOTH, code=1)


def test_results_that_the_hub_refuses_at_last_fail_the_work_and_stay(evaluate, tmp_path, capsys):
    with HubServer(refuse="/commit/") as hub:
        assert evaluate(BOTH[0], url=hub.url) == 1
    told = capsys.readouterr()
    assert f"the results are in {tmp_path / 'out'}, but not all of them are on the hub (" in told.err
    assert "put them into us/lm-eval-results-private with `hf upload`" in told.err
    assert "hf_secret" not in told.out + told.err
    assert len(list((tmp_path / "out").rglob("results_*.json"))) == 1


def test_lm_eval_still_reads_its_card_from_what_is_replaced():
    module, name = LOAD
    assert hasattr(importlib.import_module(module), name)


def in_process(hub, tmp_path, mirror, *words):
    """Run a command in a process of its own: some addresses of the hub are made when it is imported."""
    environment = offline(tmp_path / "data") | hub.environment(tmp_path / "cache")
    command = [quick_python(), "-m", *map(str, words)]
    return subprocess.run(command, cwd=mirror, env=environment, capture_output=True, text=True, timeout=300)


def undated(repos):
    """Return the files of each repository with the date taken out of their names, and without cards."""
    return {
        repo: {re.sub(r"_2\d{3}-[\dT.-]+\d", "", name) for name in files if name != "README.md"}
        for repo, files in repos.items()
    }


@pytest.mark.slow
def test_results_samples_and_card_go_to_the_hub_as_lm_evals_own(mirror, model, tmp_path):
    where = [*BOTH, "results_repo_name=numbers,details_repo_name=answers"]
    asked = ["--tasks", "mc_calib_arc", "--device", "cpu", "--limit", "4"]
    with HubServer() as hub:
        words = ["--model", model, "--precision", "fp32", *asked, "--output", tmp_path / "ours"]
        run = in_process(hub, tmp_path, mirror, "calibtune", "eval", *words, "--hf-hub-log-args", *where, "gated=true")
    assert run.returncode == 0, run.stderr
    assert "hf_secret" not in run.stdout + run.stderr
    answers = "datasets/us/answers-private"
    assert hub.private == {"datasets/us/numbers-private": True, answers: True}
    assert hub.gated == {answers: "auto"}
    assert f"pushed to {hub.url}/{answers}\n" in run.stdout
    for name, content in hub.repos[answers].items():
        if name != "README.md":
            assert content == (tmp_path / "ours" / name).read_bytes()
    card = hub.repos[answers]["README.md"].decode()
    configs = yaml.safe_load(card.split("---")[1])["configs"]
    assert {split["split"] for split in configs[0]["data_files"]} > {"latest"}
    (numbers,) = (json.loads(data) for data in hub.repos["datasets/us/numbers-private"].values())
    assert f'"conf_ece_10,none": {numbers["results"]["mc_calib_arc"]["conf_ece_10,none"]}' in card

    with HubServer() as theirs:
        named = ["--model", "hf", "--model_args", f"pretrained={model}", "--include_path", TASKS, "--log_samples"]
        words = [*named, *asked, "--output_path", tmp_path / "theirs", "--hf_hub_log_args", *where]
        in_process(theirs, tmp_path, mirror, "lm_eval", "run", *words)
    assert undated(hub.repos) == undated(theirs.repos)
    assert hub.private == theirs.private
