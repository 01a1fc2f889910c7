"""The examples run: each job of theirs evaluates its shard, and a report has the whole."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from commands import offline, path_of_python
from tiny import write_arc_mirror

from calibtune.__main__ import build_parser, main

FOLDER = Path(__file__).resolve().parents[2] / "examples"
SKY = yaml.safe_load((FOLDER / "skypilot.yaml").read_text())


@pytest.mark.parametrize("script", sorted(FOLDER.glob("*.sh")), ids=lambda path: path.name)
def test_a_script_is_one_that_bash_takes(script):
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0


def test_skypilot_knows_every_key():
    # https://docs.skypilot.co/en/latest/reference/yaml-spec.html
    assert SKY.keys() <= {"name", "num_nodes", "resources", "envs", "file_mounts", "setup", "run", "workdir"}
    assert SKY["num_nodes"] > 1


@pytest.mark.parametrize("name", ["README.md", "slurm_array.sh", "skypilot.yaml", "vllm_replicas.sh"])
def test_commands_in_comments_are_ones_that_calibtune_takes(name):
    for command in re.findall(r"python -m calibtune (report .*?)(?:  +#|$)", (FOLDER / name).read_text(), re.MULTILINE):
        words = [word for word in shlex.split(command) if word != "`"]
        assert build_parser("report").parse_args(words[: words.index("--output") + 2])


def run(tmp_path, model, words, **environment):
    """Run a job in a folder with a made-up hub, as its scheduler would."""
    if not (tmp_path / "allenai").exists():
        write_arc_mirror(tmp_path)
    given = {"MODEL": str(model), "TASKS": "mc_calib_arc", "OUT": "out", "PATH": path_of_python()}
    extra = {"EXTRA": "--device cpu --precision fp32 --batch-size 1"}
    environment = {**offline("cache"), **given, **extra, **environment}
    done = subprocess.run(words, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0


def questions(tmp_path, capfd):
    capfd.readouterr()
    assert main(["rescore", str(tmp_path / "out"), "--json"]) == 0
    return json.loads(capfd.readouterr().out)


@pytest.mark.slow
def test_jobs_of_a_slurm_array_are_shards_of_a_run(tmp_path, model, capfd):
    for job in (1, 2):
        script = ["bash", str(FOLDER / "slurm_array.sh")]
        run(tmp_path, model, script, SLURM_ARRAY_TASK_ID=str(job), SLURM_ARRAY_TASK_COUNT="2")
    assert "24" in json.dumps(questions(tmp_path, capfd))


@pytest.mark.slow
def test_nodes_of_skypilot_are_shards_of_a_run(tmp_path, model, capfd):
    for rank in (0, 1):
        run(tmp_path, model, ["bash", "-c", SKY["run"]], SKYPILOT_NODE_RANK=str(rank), SKYPILOT_NUM_NODES="2")
    assert "24" in json.dumps(questions(tmp_path, capfd))


@pytest.mark.slow
def test_replicas_are_shards_of_a_run_and_one_that_fails_is_told(tmp_path, model, capfd):
    script = ["bash", str(FOLDER / "vllm_replicas.sh")]
    # hf in place of vLLM, which is not installed here.
    run(tmp_path, model, script, GPUS="4", STEP="2", BACKEND="hf")
    assert "24" in json.dumps(questions(tmp_path, capfd))
    given = {"MODEL": "no/model", "GPUS": "1", "BACKEND": "hf", "PATH": path_of_python()}
    environment = {**offline(tmp_path / "cache"), **given}
    assert subprocess.run(script, cwd=tmp_path, env=environment, check=False).returncode == 1
