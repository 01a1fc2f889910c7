import subprocess
import sys

import pytest

import calibtune.demo.parallel as parallel
import calibtune.demo.story as story
from calibtune.__main__ import main
from calibtune.demo import ALIGNED, PRETRAINED
from calibtune.files import write_json

IN_DOMAIN, OUT_OF_DOMAIN = "mc_calib_world", "mc_calib_world_ood"


def write_results(output, tasks=(IN_DOMAIN, OUT_OF_DOMAIN), scaled=("temperature", "rcft-temperature")):
    """Write results as lm_eval does; the accuracy identifies method, task and pipeline."""
    for number, name in enumerate(["pretrained", "aligned", *story.FITS]):
        results = {}
        for place, task in enumerate(tasks):
            value = number / 10 + place / 100
            metrics = dict.fromkeys(("acc", "conf_ece_10", "nll", "tce", "acc_star"), value)
            results[task + "_scaled" * (name in scaled)] = {"alias": task} | {
                f"{metric},{pipeline}": number + extra
                for metric, number in metrics.items()
                for pipeline, extra in ((("none", 0.5), ("scaled", 0)) if name in scaled else (("none", 0),))
            }
        write_json(output / "evaluations" / name / "model" / "results_2025.json", {"results": results})


def test_steps_evaluate_each_fit_and_end_with_the_report(tmp_path):
    commands = story.steps(tmp_path, seed=3)
    assert [command[0] for command in commands] == ["eval", "eval", *["fit", "eval"] * 5, "report"]
    models = [command[command.index("--model") + 1] for command in commands[:2]]
    assert models == [str(PRETRAINED), str(ALIGNED)]
    for fit, evaluation in zip(commands[2:12:2], commands[3:12:2], strict=True):
        assert fit[fit.index("--tasks") + 1] == IN_DOMAIN
        assert fit[fit.index("--seed") + 1] == "3"
        assert evaluation[evaluation.index("--artifact") + 1] == fit[fit.index("--output") + 1]
        assert evaluation[evaluation.index("--tasks") + 1] == f"{IN_DOMAIN},{OUT_OF_DOMAIN}"


def test_second_temperature_is_fitted_on_the_rcft_adapter(tmp_path):
    commands = story.steps(tmp_path)
    made = [command[command.index("--output") + 1] for command in commands]
    last = next(command for command in commands if command[0] == "fit" and "--artifact" in command)
    assert last[last.index("--artifact") + 1] in made[: commands.index(last)]
    assert last[last.index("--artifact") + 1].endswith("rcft")


def test_steps_are_valid_commands(tmp_path):
    from calibtune.__main__ import build_parser

    for command in story.steps(tmp_path):
        parsed = build_parser(command[0]).parse_args(command)
        assert parsed.command == command[0]


def test_table_uses_scaled_metrics_for_temperatures_only(tmp_path):
    write_results(tmp_path)
    numbers = story.numbers(tmp_path)
    assert [round(tasks[IN_DOMAIN]["acc"], 6) for tasks in numbers.values()] == [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert round(numbers["temperature"][OUT_OF_DOMAIN]["acc"], 6) == 0.21
    lines = story.table(tmp_path).splitlines()
    assert lines[4].split() == ["temperature", *["0.200"] * 4, *["0.210"] * 4]
    assert "acc*" in lines[-2]


def test_missing_evaluation_is_refused(tmp_path):
    write_results(tmp_path)
    (tmp_path / "evaluations" / "cft" / "model" / "results_2025.json").unlink()
    with pytest.raises(story.WorkFailed, match="cft holds no results"):
        story.numbers(tmp_path)


def test_failed_command_ends_the_demo_and_names_the_log(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(parallel, "PRELOAD", [])
    monkeypatch.setattr(story, "steps", lambda output: [["rescore", str(tmp_path / "nothing")]])
    assert main(["demo", "--output", str(tmp_path / "demo")]) == 1
    error = capsys.readouterr().err
    log = tmp_path / "demo" / "logs" / "01-rescore.txt"
    assert "ended with exit code" in error
    assert "nothing" in log.read_text()
    assert str(log) in error


def test_existing_output_is_kept(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("x")
    assert main(["demo", "--output", str(tmp_path)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == "x"


def test_missing_training_libraries_say_what_to_install(tmp_path, monkeypatch, capsys):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "peft" else found(name))
    assert main(["demo", "--output", str(tmp_path / "demo")]) == 2
    assert "peft is not installed; pip install 'calibtune[train]'" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """Run the demo and return the harness's numbers by method, task and metric."""
    output = tmp_path_factory.mktemp("demo") / "demo"
    # Another test may have begun this process's forkserver, without the modules that the demo has it import.
    subprocess.run([sys.executable, "-m", "calibtune", "demo", "--output", str(output)], check=True)
    assert (output / "report" / "report.html").is_file()
    return story.numbers(output)


@pytest.mark.real
@pytest.mark.parametrize("task", [IN_DOMAIN, OUT_OF_DOMAIN])
def test_pretrained_model_is_calibrated_and_near_acc_star(numbers, task):
    found = numbers["pretrained"][task]
    assert found["conf_ece_10"] < 0.04
    assert found["acc_true"] > found["acc_star"] - 0.04
    assert found["tce"] < 0.25
    assert found["letter_mass"] > 0.99


@pytest.mark.real
@pytest.mark.parametrize("task", [IN_DOMAIN, OUT_OF_DOMAIN])
def test_aligned_model_keeps_accuracy_and_loses_calibration(numbers, task):
    before, after = numbers["pretrained"][task], numbers["aligned"][task]
    assert after["acc_true"] > before["acc_true"] - 0.04
    assert after["conf_ece_10_low"] > before["conf_ece_10_high"] + 0.1
    assert after["conf_ece_10"] > 0.2
    assert after["nll"] > before["nll"] + 0.2
    assert after["tce"] > 2 * before["tce"]


@pytest.mark.real
@pytest.mark.parametrize("task", [IN_DOMAIN, OUT_OF_DOMAIN])
def test_demo_restores_calibration_lost_by_alignment(numbers, task):
    aligned = numbers["aligned"][task]
    for method in story.FITS:
        mended = numbers[method][task]
        assert mended["conf_ece_10"] < aligned["conf_ece_10"] / 2
        assert mended["tce"] < aligned["tce"] * 0.7
        assert mended["nll"] < aligned["nll"] - 1
        assert mended["acc_true"] > aligned["acc_true"] - 0.02
    # One temperature cannot undo what DPO did to each question; training can.
    assert numbers["cft"][task]["tce"] < numbers["temperature"][task]["tce"] - 0.05
    assert task == OUT_OF_DOMAIN or numbers["cft"][task]["conf_ece_10"] < 0.05
