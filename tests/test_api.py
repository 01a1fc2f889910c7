"""``import calibtune as ct``: what it offers, what it loads, and a notebook's path from fit to report."""

import ast
import dataclasses
import inspect
import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import calibtune as ct
from calibtune import api

ROOT = Path(__file__).resolve().parents[1]
SMALL = {"batch_size": 4, "precision": "fp32", "device": "cpu"}


def modules_after(code):
    """Top-level modules that a new Python has loaded after some code."""
    code += "\nimport sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_importing_calibtune_loads_nothing_else():
    found = modules_after("import calibtune") - modules_after("import importlib, typing, __future__")
    assert found == {"calibtune"}


HEAVY = {"torch", "lm_eval", "transformers", "peft", "datasets", "matplotlib"}


def test_arrays_and_files_need_no_torch(tmp_path):
    code = (
        "import calibtune as ct; t = ct.fit_temperature([[-1.0, -2.0]] * 4, [0, 0, 0, 1]); t.apply([[-1.0, -2.0]])\n"
        "ct.metrics.summary([[-1.0, -2.0]] * 4, [0, 0, 0, 1]); ct.Recipe; ct.Artifact; ct.Samples\n"
        "try: ct.load('nowhere')\n"
        "except ct.UserError: pass"
    )
    assert not modules_after(code) & HEAVY
    assert "scipy" not in modules_after("import calibtune.metrics")


def test_every_public_name_is_there_and_the_same_to_type_checkers():
    tree = ast.parse((ROOT / "calibtune" / "__init__.py").read_text())
    typed = next(node for node in tree.body if isinstance(node, ast.If))
    homes = {alias.name: node.module for node in typed.body for alias in node.names}
    assert homes.pop("metrics") == "calibtune"
    assert homes == ct._HOMES
    assert ct.__all__ == sorted([*homes, "metrics"])
    assert set(ct.__all__) <= set(dir(ct))
    for name in ct.__all__:
        assert inspect.getdoc(getattr(ct, name)), name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ct.nothing


NOTEBOOK = """
import numpy as np
import calibtune as ct

t = ct.fit_temperature(np.zeros((3, 2), np.float32), [0, 1, 0])
reveal_type(t.interval)  # tuple[float, float]
art = ct.fit(ct.Recipe(method="rcft", rank=64), model="M", tasks=["a"], output="runs/rcft")
base, tuned = ct.evaluate(model="M", tasks=["a"]), ct.evaluate(artifact=art, tasks=["a"])
reveal_type(base.results)  # dict[str, dict[str, float]]
reveal_type(ct.report([base, tuned, "out"], "report"))  # pathlib.Path
reveal_type(ct.load_samples("out"))  # list[calibtune.results.samples.Samples]
ct.evaluate(artifact=art, tasks=["a"], batchsize=3)  # error: Unexpected keyword argument "batchsize"
ct.nothing  # error: Module has no attribute "nothing"
"""


@pytest.mark.slow
def test_a_type_checker_knows_the_api(tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "notebook.py").write_text(NOTEBOOK)
    command = [sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml", tmp_path / "notebook.py"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    for number, line in enumerate(NOTEBOOK.splitlines(), start=1):
        said = [each.partition(f".py:{number}: ")[2] for each in run.stdout.splitlines() if f".py:{number}: " in each]
        if expected := line.partition("  # ")[2]:
            assert expected.removeprefix("error: ") in said[0], run.stdout
        else:
            assert not said, run.stdout


def test_no_module_takes_the_place_of_a_function():
    modules = {path.stem for path in (ROOT / "calibtune").iterdir()}
    assert not modules & set(ct.__all__) - {"metrics"}


def test_evaluate_has_the_options_of_an_evaluation():
    from calibtune.evaluation.evaluate import EvaluationOptions

    given = {name: each.default for name, each in inspect.signature(ct.evaluate).parameters.items()}
    assert given.pop("tasks") == ()
    assert given.pop("output") is None
    fields = {item.name: item.default for item in dataclasses.fields(EvaluationOptions) if item.name != "tasks"}
    assert given == {name: default for name, default in fields.items() if default is not dataclasses.MISSING}


@pytest.mark.parametrize("function", [api.fit, api.evaluate, api.report, api.load, api.load_samples])
def test_every_argument_is_explained(function):
    text = inspect.getdoc(function)
    for name in inspect.signature(function).parameters:
        assert f"\n    {name}: " in text, name


def test_a_fit_that_lacks_something_is_refused(tmp_path):
    with pytest.raises(ct.UserError, match=r"the recipe lacks model and tasks; give it to fit\(\) or to the recipe"):
        ct.fit(ct.Recipe(method="cft"), tmp_path / "out")
    with pytest.raises(ct.UserError, match="the recipe lacks tasks"):
        ct.fit(ct.Recipe(method="cft", model="m"), tmp_path / "out", tasks=[" "])


def test_other_refusals(tmp_path):
    with pytest.raises(ct.UserError, match=r"has no calibtune\.json"):
        ct.load(tmp_path)
    with pytest.raises(ct.UserError, match="does not exist"):
        ct.load_samples(tmp_path / "no")
    with pytest.raises(ct.UserError, match="there is no evaluation to report"):
        ct.report([], tmp_path / "report")


def test_folders_without_a_model_are_reported_and_read(tmp_path):
    from report_files import two_runs

    folders = two_runs(tmp_path / "runs")
    page = ct.report(folders, tmp_path / "report", base=folders[1], labels=["first", "second"])
    assert page == tmp_path / "report" / "report.html"
    assert page.is_file()
    assert json.loads((page.parent / "results.json").read_text())["base"] == "second"
    with pytest.raises(ct.UserError, match="is not empty"):
        ct.report(str(folders[0]), tmp_path / "report")
    assert ct.report(str(folders[0]), str(tmp_path / "report"), overwrite=True) == page
    samples = ct.load_samples(tmp_path / "runs")
    assert [each.log_probs.shape for each in samples] == [(120, 4)] * 2
    assert len(samples[0].documents) == len(samples[0].labels) == 120


@pytest.fixture(scope="module")
def quiet_runs(model, tmp_path_factory):
    """A temperature and an adapter, fitted from Python; what they printed."""
    import contextlib
    import io

    from harness import enter_mirror
    from tiny import write_arc_mirror

    folder = tmp_path_factory.mktemp("api")
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        enter_mirror(write_arc_mirror(folder / "hub"), patch)
        t = ct.fit(
            ct.Recipe(method="temperature", held_out=10, **SMALL),
            model=model,
            tasks=["mc_calib_arc"],
            output=folder / "t",
        )
        adapter = ct.fit(
            ct.Recipe(method="cft", rank=4, held_out=6, max_steps=2, model=model, tasks=["mc_calib_arc"], **SMALL),
            output=folder / "adapter",
        )
    return t, adapter, printed.getvalue()


def test_fits_print_nothing(quiet_runs):
    assert quiet_runs[2] == ""


def test_an_artifact_knows_its_folder_and_its_manifest_does_not(quiet_runs, tmp_path):
    t, adapter, _ = quiet_runs
    for artifact in (t, adapter):
        assert ct.load(artifact) == artifact
        manifest = json.loads((artifact.folder / "calibtune.json").read_text())
        assert manifest.keys() == {item.name for item in dataclasses.fields(ct.Artifact)} - {"folder"} | {"calibtune"}
        assert manifest["recipe"]["tasks"] == ["mc_calib_arc"]
    with pytest.raises(ct.UserError, match="lies in no folder"):
        Path(dataclasses.replace(t, folder=None))
    moved = tmp_path / "moved"
    shutil.copytree(t, moved)
    assert ct.load(str(moved)).folder == moved


def test_the_keys_of_a_temperature_on_disk_stay(quiet_runs):
    t = quiet_runs[0]
    written = json.loads((t.folder / "temperature.json").read_text())
    assert written.keys() == {"temperature", "low", "high", "objective", "questions", "warnings"}
    assert json.loads((t.folder / "calibtune.json").read_text())["temperature"] == written


def test_an_adapter_gives_no_probabilities_and_says_what_to_do(quiet_runs):
    with pytest.raises(ct.UserError, match=r"is a trained adapter, .*calibtune\.evaluate\(artifact=\.\.\.\)"):
        ct.load(quiet_runs[1]).probs([[-1.0, -2.0]])


@pytest.mark.usefixtures("mirror")
def test_base_and_artifacts_are_evaluated_quietly_into_folders_of_their_own(quiet_runs, model, tmp_path, capsys):
    t, adapter, _ = quiet_runs
    base = ct.evaluate(model=model, tasks="mc_calib_arc", **SMALL)
    scaled = ct.evaluate(artifact=t, tasks=["mc_calib_arc"], batch_size="4")
    tuned = ct.evaluate(artifact=str(adapter.folder), tasks=["mc_calib_arc"], output=tmp_path / "tuned", limit=8)
    page = ct.report([base, tuned], tmp_path / "report")
    assert capsys.readouterr().out == ""
    assert page.is_file()
    assert tuned.folder.parent == tmp_path / "tuned"
    assert tuned.questions == {"mc_calib_arc": 8}
    assert len({each.folder.parent for each in (base, scaled, tuned)}) == 3
    (samples,) = ct.load_samples(base)
    found = ct.metrics.summary(samples.log_probs, samples.labels)
    assert found == pytest.approx({name: base.results["mc_calib_arc"][name] for name in found}, abs=1e-12)
    probs = ct.load(t.folder).probs(samples.log_probs)
    expected = scaled.results["mc_calib_arc_scaled"]["conf_ece_10,scaled"]
    assert ct.metrics.conf_ece(probs, samples.labels) == pytest.approx(expected, abs=1e-12)
    np.testing.assert_array_equal(probs, ct.metrics.letter_probs(samples.log_probs, t.temperature["temperature"]))


def test_a_temperature_goes_on_top_of_an_adapter(quiet_runs):
    assert ct.Recipe(method="temperature", artifact=quiet_runs[1]).artifact == str(quiet_runs[1].folder)


def test_a_temporary_folder_lives_until_python_ends():
    code = "from calibtune.api import _temporary; folder = _temporary(); assert folder.is_dir(); print(folder)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not Path(run.stdout.strip()).exists()


def test_processes_but_the_first_get_no_numbers(monkeypatch, tmp_path):
    from calibtune.evaluation import evaluate as evaluation

    monkeypatch.setattr(evaluation, "evaluate", lambda options: None)
    found = ct.evaluate(model="m", tasks=["t"], output=tmp_path)
    assert (found.results, found.questions, found.folder) == ({}, {}, tmp_path)


def test_the_page_on_the_api_is_true():
    """Blocks on arrays run; every ``ct.`` name and every argument that the others give exists."""
    page = (ROOT / "docs" / "python-api.md").read_text()
    blocks = [part.partition("```")[0] for part in page.split("```python\n")[1:]]
    names = {}
    exec(blocks[0], names)
    exec(blocks[1], names)
    assert names["t"].value > 0
    for call in (node for block in blocks for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)):
        if isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) == "ct":
            function = getattr(ct, call.func.attr)
            inspect.signature(function).bind(*call.args, **{each.arg: each.value for each in call.keywords})


@pytest.mark.slow
def test_the_example_of_the_documentation_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path(str(ROOT / "docs" / "example.py"))
    printed = capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    assert Path(printed.splitlines()[-1]).is_file()
    before, after = (ct.metrics.conf_ece(names[name], names["samples"].labels) for name in ("probs", "scaled"))
    assert after < before / 2
    assert names["base"].results["mc_calib_world"]["conf_ece_10"] == pytest.approx(before, abs=1e-12)
    assert names["t"].interval[0] < names["t"].value < names["t"].interval[1]
