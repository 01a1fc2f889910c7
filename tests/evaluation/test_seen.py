"""Questions that an artifact was fitted on, however they are written, are not evaluated in silence."""

import json
from pathlib import Path

import lm_eval
import pytest
from fitting import small_fit
from tiny import save_tiny

from calibtune.__main__ import main
from calibtune.artifacts.manifest import MANIFEST, read_artifact
from calibtune.results.samples import find_samples, read_samples

HUB = Path(__file__).resolve().parents[3] / "shared" / "data" / "hub"
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{train: {folder}/train.jsonl, test: {folder}/{name}.jsonl}}}}
training_split: train
test_split: test
output_type: multiple_choice
doc_to_text: '{prompt}'
doc_to_choice: "{{{{ ['A', 'B', 'C', 'D'][:choices|length] }}}}"
doc_to_target: gold
"""
PROMPT = '{{question}} {{choices|join(" / ")}}'
ROWS = [
    {
        "question": f"Which of these {what} is the right one, at 3.{number} °C?",
        "choices": [f"{what} of {place}" for place in ("Rome", "Oslo", "Lima", "Cairo")],
        "gold": number % 4,
    }
    for number, what in enumerate(("towers", "rivers", "songs", "breads", "kings", "bridges", "colors", "winds"))
]
OTHER = [
    {"question": f"Who {verb} it?", "choices": ["nobody", "all of us", "the cook", "my aunt"], "gold": 1}
    for verb in ("ate", "sold", "wrote", "lost", "liked", "heard")
]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory, model):
    """An adapter that was fitted on all of `ROWS`, two of them held out, and the folder of its task."""
    folder = tmp_path_factory.mktemp("seen")
    write_task(folder, "own", OTHER)
    write(folder / "train.jsonl", ROWS)
    small_fit(model, folder / "t", "cft", tasks="own", include_path=str(folder), held_out=2, batch_size=6)
    return folder


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_task(folder, name, rows, prompt=PROMPT):
    (folder / f"{name}.yaml").write_text(TASK.format(name=name, folder=folder, prompt=prompt))
    write(folder / f"{name}.jsonl", rows)


@pytest.fixture
def evaluate(artifact, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def run(rows, *more, prompt=PROMPT, name="copies", folder=artifact):
        write_task(folder, name, rows, prompt)
        words = ["--artifact", folder / "t", "--tasks", name, "--include-path", folder, "--device", "cpu"]
        return main(["eval", "--output", str(tmp_path / "out"), *map(str, words), *more])

    return run


def changed(change):
    return [{**row, **change(row)} for row in ROWS[:4]]


COPIES = {
    "as it was": lambda row: {},
    "another order": lambda row: {"choices": row["choices"][::-1]},
    "case": lambda row: {"question": row["question"].upper(), "choices": [c.lower() for c in row["choices"]]},
    "blanks": lambda row: {"question": f" {row['question']}\n".replace(" ", "  ")},
    "punctuation": lambda row: {"question": f"“{row['question'][:-1]}”:"},
    "zero-width": lambda row: {"question": row["question"].replace("is", "i\u200bs\ufeff")},
    "full-width": lambda row: {"question": row["question"].translate({n: n + 0xFEE0 for n in range(0x21, 0x7F)})},
}


@pytest.mark.parametrize("change", COPIES.values(), ids=COPIES.keys())
def test_copies_of_questions_of_the_fit_are_refused(evaluate, capsys, tmp_path, change):
    assert evaluate([*changed(change), *OTHER]) == 2
    said = capsys.readouterr().err
    assert "task copies: 4 of its 10 evaluated questions were used for this fit, the first" in said
    assert "or leave them out with --drop-seen" in said
    assert not (tmp_path / "out").exists()


def test_another_prompt_of_the_same_questions_is_refused(evaluate, capsys):
    assert evaluate(ROWS[:3], prompt="Please answer: {{question}}") == 2
    assert "task copies: 3 of its 3 evaluated questions were used" in capsys.readouterr().err


def test_questions_without_fields_are_known_by_their_prompt(model, artifact, evaluate, tmp_path, capsys):
    rows, others = (
        [{"asked": row["question"], "choices": [1, 2, 3, 4], "gold": 0} for row in part] for part in (ROWS, OTHER)
    )
    folder = tmp_path / "prompts"
    folder.mkdir()
    write_task(folder, "own", others, "{{asked}}")
    write(folder / "train.jsonl", rows)
    small_fit(model, folder / "t", "temperature", tasks="own", include_path=str(folder), held_out=8)
    upper = [{**row, "asked": row["asked"].upper()} for row in rows]
    assert evaluate(upper, prompt="{{asked}}", folder=folder) == 2
    assert "task copies: 8 of its 8 evaluated questions were used for this fit" in capsys.readouterr().err


def test_seen_questions_are_left_out_and_counted_where_asked(evaluate, capsys, tmp_path):
    assert evaluate([*OTHER[:2], *ROWS[:4], *OTHER[2:]], "--drop-seen") == 0
    said = capsys.readouterr()
    assert "warning: task copies: 4 of its 10 evaluated questions were used for this fit and are left out" in said.err
    assert "copies: 6 questions" in said.out
    (file,) = find_samples(tmp_path / "out")
    samples = [json.loads(line) for line in file.read_text().splitlines()]
    assert [sample["doc_id"] for sample in samples] == [0, 1, 6, 7, 8, 9]
    assert [sample["doc"]["question"] for sample in samples] == [row["question"] for row in OTHER]
    assert len(read_samples(file).labels) == 6


def test_a_limit_counts_the_questions_that_are_left(evaluate, capsys):
    assert evaluate([*ROWS[:4], *OTHER], "--drop-seen", "--limit", "5") == 0
    assert "copies: 5 questions" in capsys.readouterr().out


def test_a_task_of_nothing_but_seen_questions_is_refused_all_the_same(evaluate, capsys):
    assert evaluate(ROWS[:4], "--drop-seen") == 2
    assert "4 of its 4 evaluated questions were used" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change", [lambda row: {"choices": row["choices"][:3]}, lambda row: {"choices": ["a", "b", "c", "d"]}]
)
def test_the_same_questions_with_other_options_are_warned_of(evaluate, capsys, change):
    assert evaluate([*changed(change), *OTHER]) == 0
    said = capsys.readouterr().err
    assert "task copies: 4 of its 10 evaluated questions were used for this fit with other options, such as" in said
    assert repr(ROWS[0]["question"][:60]) in said


def test_near_copies_are_warned_of_with_examples(evaluate, capsys):
    near = changed(lambda row: {"question": row["question"].replace("the right one", "right")})
    assert evaluate([*near, *OTHER]) == 0
    said = capsys.readouterr().err
    assert (
        f"task copies: 4 of its 10 evaluated questions are near copies of this fit's, such as {near[0]['question']!r}"
        in said
    )


def test_other_questions_are_evaluated_without_a_word(evaluate, capsys):
    assert evaluate(OTHER) == 0
    assert "evaluated questions" not in capsys.readouterr().err


def test_the_same_question_about_another_passage_is_another_question(model, tmp_path, evaluate, capsys):
    rows = [
        {**OTHER[0], "passage": f"{name} came into the kitchen at noon, and then the bread was gone."}
        for name in "abcdefghij"
    ]
    prompt = "{{passage}} {{question}}"
    write_task(tmp_path, "own", rows[8:], prompt)
    write(tmp_path / "train.jsonl", rows[:8])
    small_fit(model, tmp_path / "t", "cft", tasks="own", include_path=str(tmp_path), batch_size=6)
    capsys.readouterr()
    assert evaluate(rows[8:], prompt=prompt, folder=tmp_path) == 0
    assert evaluate(rows[7:], prompt=prompt, folder=tmp_path) == 2
    assert "task copies: 1 of its 3 evaluated questions were used for this fit" in capsys.readouterr().err


def test_a_temperature_of_a_samples_file_knows_its_questions(evaluate, artifact, tmp_path, capsys):
    assert evaluate([*OTHER, *ROWS[6:]], "--drop-seen") == 0
    (file,) = find_samples(tmp_path / "out")
    assert main(["fit", "--method", "temperature", "--samples", str(file), "--output", str(tmp_path / "t")]) == 0
    assert len(read_artifact(tmp_path / "t").documents["held_out"]) == 6
    words = ["--artifact", tmp_path / "t", "--tasks", "again", "--include-path", artifact, "--device", "cpu"]
    write_task(artifact, "again", changed(lambda _: {"question": OTHER[0]["question"].upper(), **OTHER[0]}))
    capsys.readouterr()
    base = json.loads((artifact / "t" / MANIFEST).read_text())["model"]
    assert main(["eval", "--model", base, "--output", str(tmp_path / "more"), *map(str, words)]) == 2
    assert "task again: 4 of its 4 evaluated questions were used for this fit" in capsys.readouterr().err


def test_stock_tasks_are_compared_by_their_own_fields(artifact, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    data, labels = tmp_path / "allenai" / "openbookqa", list("ABCD")
    data.mkdir(parents=True)
    rows = [
        {
            "id": str(number),
            "question_stem": row["question"],
            "choices": {"text": row["choices"][::-1], "label": labels},
            "answerKey": "A",
        }
        for number, row in enumerate([*ROWS[:3], *OTHER])
    ]
    for split in ("train", "validation", "test"):
        write(data / f"{split}.jsonl", rows)
    files = "".join(f"  - split: {s}\n    path: {s}.jsonl\n" for s in ("train", "validation", "test"))
    (data / "README.md").write_text(f"---\nconfigs:\n- config_name: main\n  data_files:\n{files}---\n")
    stock = Path(lm_eval.__file__).parent / "tasks" / "openbookqa"
    words = ["--tasks", "openbookqa", "--include-path", stock, "--device", "cpu", "--output", "out"]
    assert main(["eval", "--artifact", str(artifact / "t"), *map(str, words)]) == 2
    assert "task openbookqa: 3 of its 9 evaluated questions were used for this fit" in capsys.readouterr().err


@pytest.mark.real
@pytest.mark.skipif(not HUB.is_dir(), reason="needs the data mirror ../shared/data/hub")
def test_the_pools_questions_are_found_in_the_harness_own_tasks(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(HUB)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    base = save_tiny(tmp_path / "base", context=4096, layers=1, heads=1)
    small_fit(base, tmp_path / "a", "temperature", tasks="mc_calib_indomain", held_out=3000)
    output = ["--output", str(tmp_path / "out"), "--device", "cpu", "--limit", "2"]
    for task, same, other in (("openbookqa", "136 of its 500", "11 of its 500"), ("medmcqa", "81 of its 130", "")):
        assert main(["eval", "--artifact", str(tmp_path / "a"), "--tasks", task, *output]) == 2
        said = capsys.readouterr().err
        assert f"{same} evaluated questions were used for this fit, the first" in said
        assert f"{other} evaluated questions were used for this fit with other options" in said or not other
    assert main(["eval", "--artifact", str(tmp_path / "a"), "--tasks", "mc_calib_indomain", *output]) == 0
    said = capsys.readouterr().err
    # The pool shares no question with its test, but some of its questions differ in a few words alone.
    assert "used for this fit" not in said
    assert "of its 2000 evaluated questions are near copies of this fit's" in said


def test_an_artifact_with_hashes_of_whole_prompts_still_knows_them(evaluate, artifact, tmp_path, capsys):
    from calibtune.data.tasks import document_hash

    old = tmp_path / "old"
    old.mkdir()
    for path in (artifact / "t").iterdir():
        if path.is_file():
            (old / path.name).write_bytes(path.read_bytes())
    manifest = json.loads((old / MANIFEST).read_text())
    del manifest["sketches"]
    prompts = [f"{row['question']} {' / '.join(row['choices'])}" for row in ROWS]
    manifest["documents"] = {"train": [document_hash(prompt) for prompt in prompts], "held_out": []}
    (old / MANIFEST).write_text(json.dumps(manifest))
    assert evaluate([*ROWS[:2], *OTHER], "--artifact", str(old)) == 2
    said = capsys.readouterr().err
    assert "knows its questions by their exact text alone, as calibtune 0.1.0 did" in said
    assert "task copies: 2 of its 8 evaluated questions were used for this fit" in said


@pytest.mark.parametrize("damaged", ["?", "AAAA"])
def test_damaged_sketches_are_one_sentence(evaluate, artifact, tmp_path, capsys, damaged):
    copy = tmp_path / "damaged"
    copy.mkdir()
    for path in (artifact / "t").iterdir():
        if path.is_file():
            (copy / path.name).write_bytes(path.read_bytes())
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["sketches"]["train"] = damaged
    (copy / MANIFEST).write_text(json.dumps(manifest))
    assert evaluate(OTHER, "--artifact", str(copy)) == 2
    assert f"the sketches of {copy} are damaged" in capsys.readouterr().err
