"""Fits on two nodes, which are two groups of processes on this machine that meet over loopback."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from commands import shell
from cpu_fsdp import free_port
from fitting import same_weights, words

pytestmark = [pytest.mark.usefixtures("mirror"), pytest.mark.slow]

SUPPORT = Path(__file__).parents[1] / "support"


def torchrun(node, port):
    """The words before the fit's own, as docs/distributed.md has them."""
    place = ["--nnodes", 2, "--node-rank", node, "--master-addr", "127.0.0.1", "--master-port", port]
    return ["-m", "torch.distributed.run", *place, "--nproc-per-node", 1, "-m", "calibtune"]


def launch(node, port):
    """The same for accelerate, with a script in calibtune's place that has FSDP on CPUs."""
    place = ["--num_machines", 2, "--machine_rank", node, "--main_process_ip", "127.0.0.1", "--main_process_port", port]
    fsdp = ["--use_fsdp", "--fsdp_version", 2, "--num_processes", 2]
    return ["-m", "accelerate.commands.launch", *fsdp, *place, SUPPORT / "cpu_fsdp.py"]


def on_two_nodes(launcher, fits, cwd, python=None):
    """Run one command on each node; return the exit codes and what they wrote to stdout and stderr."""
    port = free_port()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    nodes = [shell([*launcher(node, port), *fit], cwd, python, **pipes) for node, fit in enumerate(fits)]
    said = [node.communicate(timeout=300) for node in nodes]
    return [node.returncode for node in nodes], said


@pytest.mark.parametrize(
    ("launcher", "python"), [(torchrun, sys.executable), (launch, None)], ids=["torchrun", "launch"]
)
def test_two_nodes_train_the_adapter_of_one_process_and_the_first_one_writes_it(
    model, tmp_path, mirror, monkeypatch, launcher, python
):
    assert shell(["-m", "calibtune", *words(model, tmp_path / "one", "rcft", batch_size=4)], mirror).wait(300) == 0
    fits = [words(model, tmp_path / name, "rcft", batch_size=2, save_every=1) for name in ("two", "other-disk")]
    monkeypatch.setenv("FSDP_STATE_DICT_TYPE", "SHARDED_STATE_DICT")
    codes, said = on_two_nodes(launcher, fits, mirror, python)
    assert codes == [0, 0], said
    assert same_weights(tmp_path / "one", tmp_path / "two", rtol=1e-3, atol=1e-5)
    assert "written to" in said[0][0]
    assert said[1][0] == ""
    assert not (tmp_path / "other-disk").exists()


def test_fit_killed_on_two_nodes_resumes_from_the_folder_that_they_share(model, tmp_path, mirror, monkeypatch):
    def fits(name, size):
        return [*words(model, tmp_path / name, "rcft", batch_size=size, save_every=1, epochs=2), "--resume"]

    assert shell(["-m", "calibtune", *fits("one", 4)], mirror).wait(300) == 0
    monkeypatch.setenv("STOP_AFTER", "3")
    codes, _ = on_two_nodes(launch, [fits("two", 2)] * 2, mirror)
    assert all(codes)
    assert (tmp_path / "two" / "checkpoints").is_dir()
    monkeypatch.delenv("STOP_AFTER")
    codes, said = on_two_nodes(launch, [fits("two", 2), fits("other-disk", 2)], mirror)
    assert all(codes)
    assert "give an --output folder that all nodes share" in said[0][1]
    codes, said = on_two_nodes(launch, [fits("two", 2)] * 2, mirror)
    assert codes == [0, 0], said
    assert same_weights(tmp_path / "one", tmp_path / "two", rtol=1e-3, atol=1e-5)
    assert json.loads((tmp_path / "two" / "calibtune.json").read_text())["kind"] == "adapter"
