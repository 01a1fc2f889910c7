"""Fits in subprocesses: killed, interrupted, distributed."""

import json
import signal
import subprocess
import sys
import time

import pytest
from commands import shell
from cpu_fsdp import launched
from fitting import same_weights, words

pytestmark = pytest.mark.usefixtures("mirror")


@pytest.mark.slow
def test_fit_killed_repeatedly_resumes_to_the_same_adapter(model, tmp_path, mirror):
    def arguments(output):
        return ["-m", "calibtune", *words(model, output, "rcft", epochs=12, save_every=2, lora_dropout=0.05)]

    # By the ordinary python, whose sets have another order.
    assert shell(arguments(tmp_path / "whole"), mirror, python=sys.executable).wait(300) == 0
    output = tmp_path / "killed"
    process, kills = None, 0
    for kill_at in (2, 9, 20, 31):
        process = shell([*arguments(output), "--resume"], mirror)
        deadline = time.time() + 200
        while process.poll() is None and time.time() < deadline:
            steps = [int(p.name.split("-")[1]) for p in output.glob("checkpoints/checkpoint-*")]
            if max(steps, default=0) >= kill_at:
                process.send_signal(signal.SIGKILL)
                process.wait(30)
                kills += 1
            time.sleep(0.002)
    assert kills >= 3
    assert shell([*arguments(output), "--resume"], mirror).wait(300) == 0
    assert same_weights(tmp_path / "whole", output)


@pytest.mark.slow
def test_of_two_fits_that_resume_in_one_folder_one_ends_and_the_other_says_who_has_it(model, tmp_path, mirror):
    arguments = ["-m", "calibtune", *words(model, tmp_path / "whole", "rcft", epochs=6, save_every=2)]
    assert shell(arguments, mirror).wait(300) == 0
    arguments = ["-m", "calibtune", *words(model, tmp_path / "out", "rcft", epochs=6, save_every=2), "--resume"]
    pair = [shell(arguments, mirror, stderr=subprocess.PIPE) for _ in range(2)]
    said = [process.communicate(timeout=300)[1] for process in pair]
    first, second = sorted((process.returncode, text) for process, text in zip(pair, said, strict=True))
    assert (first[0], second[0]) == (0, 2)
    assert "is being written by another command (process " in second[1]
    assert same_weights(tmp_path / "whole", tmp_path / "out")


@pytest.mark.slow
def test_two_processes_train_the_same_adapter_as_one(model, tmp_path, mirror):
    one = ["-m", "calibtune", *words(model, tmp_path / "one", "rcft", batch_size=4)]
    two = launched("-m", ["calibtune", *words(model, tmp_path / "two", "rcft", batch_size=2)])
    for arguments in (one, two):
        assert shell(arguments, mirror).wait(300) == 0
    assert same_weights(tmp_path / "one", tmp_path / "two", rtol=1e-3, atol=1e-5)
    first, second = (json.loads((tmp_path / name / "calibtune.json").read_text()) for name in ("one", "two"))
    # Each held-out question is scored once over both processes.
    assert second["before"] == pytest.approx(first["before"], abs=1e-6)
    assert second["after"] == pytest.approx(first["after"], abs=1e-3)


#: The command, with steps split into small parts; each process writes how many it had.
IN_PARTS = """
import os, sys
from calibtune.tuning import trainer
from calibtune.__main__ import main
cut, counts = trainer.parts, []
trainer.most_tokens = lambda rows, batch_size: 2 * sorted(len(row.input_ids) for row in rows)[len(rows) // 2]

def counted(*args, **options):
    counts.append(len(found := cut(*args, **options)))
    return found

trainer.parts = counted
code = main(sys.argv[1:])
with open(f"parts-{os.environ.get('RANK', 0)}", "w") as file:
    print(*counts, file=file)
sys.exit(code)
"""


@pytest.mark.slow
def test_processes_with_uneven_parts_train_the_same_adapter_as_one(model, tmp_path, mirror):
    method, changes = "rcft", {"gradient_accumulation": 2, "epochs": 2, "e_step": "running"}
    script = tmp_path / "script.py"
    script.write_text(IN_PARTS)
    one = ["-m", "calibtune", *words(model, tmp_path / "one", method, batch_size=4, **changes)]
    two = launched(script, words(model, tmp_path / "two", method, batch_size=2, **changes))
    for arguments in (one, two):
        assert shell(arguments, mirror).wait(300) == 0
    first, second = ((mirror / f"parts-{rank}").read_text().split() for rank in (0, 1))
    assert first != second
    assert same_weights(tmp_path / "one", tmp_path / "two", rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_interrupt_exits_with_code_130(model, tmp_path, mirror):
    # Background jobs, as in CI, inherit an ignored SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = shell(["-m", "calibtune", *words(model, tmp_path / "out", epochs=2000)], mirror, **pipes)
    signal.signal(signal.SIGINT, before)
    for line in process.stdout:
        if "before epoch 2" in line:
            process.send_signal(signal.SIGINT)
            break
    assert process.wait(60) == 130
    assert "calibtune: interrupted" in process.stderr.read()
