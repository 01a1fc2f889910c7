import shutil
import sys
from pathlib import Path

import pytest

import calibtune.demo.parallel as parallel
import calibtune.demo.story as story
from calibtune.__main__ import main
from calibtune.demo import ALIGNED, PRETRAINED
from calibtune.files import write_json
from calibtune.processes import Terminated

IN, OUT = "mc_calib_world", "mc_calib_world_ood"


def write_results(output, tasks=(IN, OUT), scaled=("temperature", "rcft-temperature")):
    """Results as lm_eval writes them; the accuracy tells method, task and pipeline apart."""
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


def test_every_fit_is_evaluated_after_it_is_made_and_the_report_comes_last(tmp_path):
    commands = story.steps(tmp_path, seed=3)
    assert [command[0] for command in commands] == ["eval", "eval", *["fit", "eval"] * 5, "report"]
    models = [command[command.index("--model") + 1] for command in commands[:2]]
    assert models == [str(PRETRAINED), str(ALIGNED)]
    for fit, evaluation in zip(commands[2:12:2], commands[3:12:2], strict=True):
        assert fit[fit.index("--tasks") + 1] == IN
        assert fit[fit.index("--seed") + 1] == "3"
        assert evaluation[evaluation.index("--artifact") + 1] == fit[fit.index("--output") + 1]
        assert evaluation[evaluation.index("--tasks") + 1] == f"{IN},{OUT}"


def test_the_second_temperature_stands_on_the_rcft_adapter_made_before(tmp_path):
    commands = story.steps(tmp_path)
    made = [command[command.index("--output") + 1] for command in commands]
    last = next(command for command in commands if command[0] == "fit" and "--artifact" in command)
    assert last[last.index("--artifact") + 1] in made[: commands.index(last)]
    assert last[last.index("--artifact") + 1].endswith("rcft")


def test_every_command_is_one_that_the_command_line_accepts(tmp_path):
    from calibtune.__main__ import build_parser

    for command in story.steps(tmp_path):
        parsed = build_parser(command[0]).parse_args(command)
        assert parsed.command == command[0]


def test_the_table_takes_the_scaled_pipeline_of_a_temperature_and_the_raw_one_elsewhere(tmp_path):
    write_results(tmp_path)
    numbers = story.numbers(tmp_path)
    assert [round(tasks[IN]["acc"], 6) for tasks in numbers.values()] == [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert round(numbers["temperature"][OUT]["acc"], 6) == 0.21
    lines = story.table(tmp_path).splitlines()
    assert lines[4].split() == ["temperature", *["0.200"] * 4, *["0.210"] * 4]
    assert "acc*" in lines[-2]


def test_a_missing_evaluation_is_named(tmp_path):
    write_results(tmp_path)
    (tmp_path / "evaluations" / "cft" / "model" / "results_2025.json").unlink()
    with pytest.raises(story.WorkFailed, match="cft holds no results"):
        story.numbers(tmp_path)


def test_a_command_that_fails_ends_the_demo_with_its_message_and_the_log(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(parallel, "PRELOAD", [])
    monkeypatch.setattr(story, "steps", lambda output: [["rescore", str(tmp_path / "nothing")]])
    assert main(["demo", "--output", str(tmp_path / "demo")]) == 1
    error = capsys.readouterr().err
    log = tmp_path / "demo" / "logs" / "01-rescore.txt"
    assert "ended with exit code" in error
    assert "nothing" in log.read_text()
    assert str(log) in error


def write_word(command, number):
    """A stand-in for a command: it writes its number into its folder; run in a process of its own."""
    folder = Path(parallel.output_of(command))
    folder.mkdir()
    (folder / "number").write_text(str(number))


def stop(command, number):
    sys.exit(143)


def chain(tmp_path):
    a, b, c = (str(tmp_path / name) for name in "abc")
    return [["eval", "--output", a], ["fit", "--artifact", a, "--output", b], ["report", a, b, "--output", c]]


def test_a_command_waits_for_what_it_reads_and_is_not_run_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "PRELOAD", [])
    commands = chain(tmp_path)
    assert list(parallel.run_all(commands, parallel.Journal(tmp_path), write_word)) == commands
    assert [(tmp_path / name / "number").read_text() for name in "abc"] == ["0", "1", "2"]
    assert list(parallel.run_all(commands, parallel.Journal(tmp_path), write_word)) == []
    shutil.rmtree(tmp_path / "c")
    assert list(parallel.run_all(commands, parallel.Journal(tmp_path), write_word)) == commands[2:]


def test_a_command_that_was_ended_is_not_taken_for_done(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "PRELOAD", [])
    with pytest.raises(Terminated):
        list(parallel.run_all(chain(tmp_path), parallel.Journal(tmp_path), stop))
    assert not parallel.Journal(tmp_path).commands


def test_a_fit_that_was_cut_off_goes_on_and_half_an_evaluation_begins_anew(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    evaluation, fit, _ = chain(tmp_path)
    assert parallel.resumed(fit) == [*fit, "--resume"]
    assert (tmp_path / "b").is_dir()
    assert parallel.resumed(evaluation) == evaluation
    assert not (tmp_path / "a").exists()


def test_everything_that_is_imported_ahead_exists():
    import importlib.util

    from calibtune.demo import preload

    assert all(importlib.util.find_spec(name) for name in (*parallel.PRELOAD, *preload.MODULES))


def test_an_output_in_use_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("x")
    assert main(["demo", "--output", str(tmp_path)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == "x"


def test_without_the_training_libraries_it_says_what_to_install(tmp_path, monkeypatch, capsys):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "peft" else found(name))
    assert main(["demo", "--output", str(tmp_path / "demo")]) == 2
    assert "peft is not installed; pip install 'calibtune[train]'" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


@pytest.mark.real
def test_the_demo_shows_calibration_lost_by_alignment_and_mostly_restored_at_no_accuracy(tmp_path):
    assert main(["demo", "--output", str(tmp_path / "demo")]) == 0
    assert (tmp_path / "demo" / "report" / "report.html").is_file()
    numbers = story.numbers(tmp_path / "demo")
    for task in (IN, OUT):
        aligned = numbers["aligned"][task]
        assert aligned["conf_ece_10_low"] > numbers["pretrained"][task]["conf_ece_10_high"] + 0.1
        for method in story.FITS:
            mended = numbers[method][task]
            assert mended["conf_ece_10"] < aligned["conf_ece_10"] / 2
            assert mended["tce"] < aligned["tce"] * 0.7
            assert mended["nll"] < aligned["nll"] - 1
            assert mended["acc_true"] > aligned["acc_true"] - 0.02
        # One number cannot undo what DPO did to each question; training can.
        assert numbers["cft"][task]["tce"] < numbers["temperature"][task]["tce"] - 0.05
    assert numbers["cft"][IN]["conf_ece_10"] < 0.05
