"""``eval --shard``: the shards of a run are the whole run, question by question and number by number."""

import json

import numpy as np
import pytest
from fitting import small_fit
from harness import enter_mirror
from tiny import write_paper_mirror

import calibtune as ct
from calibtune.__main__ import main
from calibtune.results.samples import find_samples

QUESTIONS = [
    {"question": f"Who {verb} it?", "choices": ["nobody", "all of us", "the cook"], "gold": number % 3}
    for number, verb in enumerate(("ate", "sold", "wrote", "lost", "liked", "heard", "made", "hid", "saw", "drew"))
]
#: As stock tasks are: examples of its own test split, drawn anew for each question.
DRAWN = """\
task: drawn
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/quiz.jsonl}}}}
test_split: test
fewshot_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}} {{{{choices|join(' / ')}}}}"
doc_to_choice: "{{{{ ['A', 'B', 'C'] }}}}"
doc_to_target: gold
"""
SHARDS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A made-up hub, a task and a file of one's own."""
    folder = tmp_path_factory.mktemp("shards")
    write_paper_mirror(folder)
    (folder / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    (folder / "drawn.yaml").write_text(DRAWN.format(folder=folder))
    return folder


def evaluate(model, output, *more, shards=SHARDS):
    """Evaluate whole and in shards, one question at a time: in larger batches the last bits depend on the others."""
    words = ["eval", "--model", model, "--device", "cpu", "--precision", "fp32", "--backend", "hf", *more]
    for name, shard in {"whole": [], **{k: ["--shard", f"{k}/{shards}"] for k in range(1, shards + 1)}}.items():
        place = output / "whole" if name == "whole" else output / "parts" / f"any {name}"
        assert main([*map(str, words), "--batch-size", "1", "--output", str(place), *shard]) == 0
    return output / "whole", output / "parts"


@pytest.fixture(scope="module")
def runs(folder, model, tmp_path_factory):
    """The whole run and the shards of tasks of all kinds, with few-shot examples."""
    with pytest.MonkeyPatch.context() as patch:
        enter_mirror(folder, patch)
        more = ["--data", folder / "quiz.jsonl", "--include-path", folder, "--num-fewshot", 2, "--limit", 7]
        tasks = "mc_calib_arc,mc_calib_arc_orders,drawn,ultrafeedback_winrate"
        return evaluate(model, tmp_path_factory.mktemp("runs"), "--tasks", tasks, *more)


def rows_of(place):
    """Return what the files say of each question, by task and number."""
    found = {}
    for file in find_samples(place):
        for line in file.read_text().splitlines():
            row = json.loads(line)
            key = file.name.rpartition("_")[0], row["doc_id"], row["filter"]
            assert key not in found
            found[key] = row
    return found


def test_shards_ask_the_whole_runs_questions_with_its_examples(runs):
    whole, parts = map(rows_of, runs)
    assert whole == parts
    assert len({row["arguments"]["gen_args_0"]["arg_0"] for row in whole.values()}) > 20


def test_shards_are_equal_parts_by_the_documents_hashes(runs):
    for task in ("mc_calib_arc", "drawn", "ultrafeedback_winrate"):
        parts = [
            [row["doc_hash"] for (name, *_), row in rows_of(place).items() if name == f"samples_{task}"]
            for place in sorted(runs[1].iterdir())
        ]
        assert [len(part) for part in parts] == [2, 2, 3]
        assert max(parts[0]) < min(parts[1])
        assert max(parts[1]) < min(parts[2])


def test_rescore_and_load_samples_put_shards_together(runs, capsys):
    numbers = []
    for place in runs:
        assert main(["rescore", "--json", str(place)]) == 0
        numbers.append(sorted(json.loads(capsys.readouterr().out).values(), key=str))
    assert numbers[0] == numbers[1]
    whole = {samples.task: samples for samples in ct.load_samples(runs[0])}
    for samples in ct.load_samples(sorted(runs[1].iterdir(), reverse=True)):
        np.testing.assert_array_equal(samples.log_probs, whole[samples.task].log_probs)
        assert samples.documents == whole[samples.task].documents
        assert str(samples.where).endswith("and 2 more shards")


def report(output, *folders):
    assert main(["report", *map(str, folders), "--output", str(output)]) == 0
    found = json.loads((output / "results.json").read_text())
    for method in found["methods"]:
        del method["folder"], method["date"]
    return found, (output / "tables.md").read_text().partition("## Runs")[0]


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_report_shows_shards_as_the_whole_run(runs, tmp_path):
    whole, parts = report(tmp_path / "a", runs[0]), report(tmp_path / "b", *runs[1].iterdir())
    assert whole == parts
    assert whole[0]["win_rates"]
    assert report(tmp_path / "c", runs[1]) == parts


def test_missing_and_doubled_shards_are_named(runs, tmp_path, capsys):
    first, second, third = sorted(runs[1].iterdir())
    for command in ("rescore", "report"):
        more = ["--output", str(tmp_path / "report")] if command == "report" else []
        assert main([command, str(first), str(third), *more]) == 2
        assert "and --shard 2/3 is missing; evaluate them, or give" in capsys.readouterr().err
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in second.rglob("*_2*"):
        (copy / file.name).write_bytes(file.read_bytes())
    assert main(["rescore", str(runs[1]), str(copy)]) == 2
    assert "shard 2/3 of drawn is in both" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_shards_of_a_temperature_leave_out_what_the_whole_run_does(folder, model, tmp_path, monkeypatch, capsys):
    enter_mirror(folder, monkeypatch)
    fitted = [{**row, "split": "train" if number else "test"} for number, row in enumerate(QUESTIONS)]
    others = [{**row, "question": f"{row['question']} And why, of all that could be asked?"} for row in QUESTIONS]
    for name, rows in {"fitted": fitted, "own": QUESTIONS[6:] + others}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"split": "test"} | row) + "\n" for row in rows))
    small_fit(model, tmp_path / "t", "temperature", tasks="", data=str(tmp_path / "fitted.jsonl"), held_out=10)
    capsys.readouterr()
    more = ["--artifact", tmp_path / "t", "--data", tmp_path / "own.jsonl", "--drop-seen"]
    whole, parts = evaluate(model, tmp_path, *more, shards=2)
    assert "4 of its 14 evaluated questions were used for this fit and are left out" in capsys.readouterr().err
    assert rows_of(whole) == rows_of(parts)
    assert {name for _, _, name in rows_of(parts)} == {"none", "scaled"}
    assert {row["doc_id"] for row in rows_of(parts).values()} == set(range(4, 14))
    assert report(tmp_path / "a", whole) == report(tmp_path / "b", parts)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shard", "0/3"], "--shard is '0/3'; give which of how many, such as 3/8 for the third eighth"),
        (["--shard", "4/3"], "--shard is '4/3'; give which"),
        (["--shard", "3"], "--shard is '3'; give which"),
        (
            ["--shard", "1/17"],
            "leaves nothing in some shard of ultrafeedback_winrate, of which 16 questions are asked; make at most 16",
        ),
        (
            ["--shard", "1/2", "--guard", "winrate", "--guard-base", "x"],
            "--guard winrate compares all pairs; leave out --shard",
        ),
    ],
)
def test_shards_that_cannot_be_are_refused(folder, model, tmp_path, monkeypatch, capsys, words, message):
    enter_mirror(folder, monkeypatch)
    tasks = "mc_calib_arc,ultrafeedback_winrate"
    command = ["eval", "--model", str(model), "--tasks", tasks, "--device", "cpu", "--output", str(tmp_path / "out")]
    assert main([*command, *words]) == 2
    assert message in capsys.readouterr().err


def test_another_shard_into_the_same_folder_is_refused(runs, folder, model, monkeypatch, capsys):
    enter_mirror(folder, monkeypatch)
    more = [
        "--data",
        folder / "quiz.jsonl",
        "--include-path",
        folder,
        "--num-fewshot",
        2,
        "--limit",
        7,
        "--shard",
        "2/3",
    ]
    words = ["eval", "--model", model, "--tasks", "drawn", "--device", "cpu", "--precision", "fp32", *more]
    assert main([*map(str, words), "--output", str(runs[1] / "any 1")]) == 2
    assert "shard '1/3' -> '2/3'" in capsys.readouterr().err
