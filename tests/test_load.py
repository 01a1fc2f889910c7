"""Many questions and many models: in time, and in a memory that does not grow with what is read but not used."""

import subprocess
import sys

import pytest
from lm_eval_files import answers, write_run

#: Runs a command from a small process: a large one that starts another is counted into its memory.
MEASURE = """
import resource, subprocess, sys, time
started = time.monotonic()
subprocess.run([sys.executable, "-m", "calibtune", *sys.argv[1:]], check=True, stdout=subprocess.DEVNULL)
print(time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
"""


def measured(words, folder):
    """Seconds and peak memory in MB of a command."""
    line = [sys.executable, "-c", MEASURE, *words]
    seconds, megabytes = subprocess.run(line, cwd=folder, check=True, capture_output=True, text=True).stdout.split()
    return float(seconds), float(megabytes)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory in Linux's unit")
def test_a_hundred_thousand_questions_take_less_than_a_fifth_of_what_a_million_may(tmp_path):
    write_run(tmp_path / "runs", {"t": answers(100_000)})
    for words in (["rescore", "runs"], ["report", "runs", "--output", "out"]):
        seconds, megabytes = measured(words, tmp_path)
        assert seconds < 24
        assert megabytes < 240


@pytest.mark.slow
def test_two_hundred_models_are_reported_in_a_minute_the_first_of_them_in_figures(tmp_path):
    for number in range(200):
        write_run(tmp_path / "runs", {"t": answers(300, sharpness=1 + number / 100)}, {"pretrained": f"m-{number:03}"})
    assert measured(["report", "runs", "--output", "out"], tmp_path)[0] < 60
    coverage = (tmp_path / "out" / "figures" / "t_coverage.svg").read_text()
    tables = (tmp_path / "out" / "tables.md").read_text()
    assert ["m-011" in coverage, "m-012" in coverage] == [True, False]
    assert "m-199" in tables
    assert "figures show the first 12 of 200 methods; tables and results.json show all" in tables
