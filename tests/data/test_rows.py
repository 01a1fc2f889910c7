"""Questions from a file or data set of one's own."""

import csv
import json

import pytest
from evaluating import metrics, small_evaluation

from calibtune.__main__ import main
from calibtune.data.rows import read_questions
from calibtune.data.source import load_questions
from calibtune.errors import UserError
from calibtune.spec import QuestionSpec

COLORS = ["red", "green", "blue", "black", "white"]


def rows(count, **more):
    """Questions with two to four options, whose answers are indexes, letters and texts in turn."""
    made = []
    for number in range(count):
        choices = [f"{color} {number}" for color in COLORS[: 2 + number % 3]]
        gold = number % len(choices)
        answer = (gold, "ABCD"[gold], choices[gold])[number % 3]
        made.append({"question": f"Which color has number {number}?", "choices": choices, "answer": answer, **more})
    return made


def write_jsonl(path, made):
    path.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    return path


def documents(found):
    return sorted((doc["question"], tuple(doc["choices"]), doc["gold"]) for split in found.values() for doc in split)


def test_jsonl_csv_and_parquet_hold_the_same_questions(tmp_path):
    made = rows(12)
    jsonl = write_jsonl(tmp_path / "quiz.jsonl", made)
    with (tmp_path / "quiz.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "A", "B", "C", "D", "answer"])
        for row in made:
            writer.writerow([row["question"], *row["choices"], *[""] * (4 - len(row["choices"])), row["answer"]])
    import datasets

    datasets.Dataset.from_list([{**row, "answer": str(row["answer"])} for row in made]).to_parquet(
        tmp_path / "quiz.parquet"
    )
    expected = [(row["question"], tuple(row["choices"]), i % len(row["choices"])) for i, row in enumerate(made)]
    for file in (jsonl, tmp_path / "quiz.csv", tmp_path / "quiz.parquet"):
        assert documents(read_questions(str(file))) == sorted(expected), file


def test_a_data_set_of_the_hub_keeps_its_splits(mirror):
    found = read_questions("allenai/ai2_arc:ARC-Challenge")
    assert set(found) == {"train", "validation", "test"} & set(found)
    assert {"train", "test"} <= set(found)
    assert set(found["test"].column_names) == {"question", "choices", "gold"}


def test_a_split_column_says_what_is_trained_on(tmp_path):
    made = [*rows(3, split="train"), *rows(5, split="test")]
    found = read_questions(str(write_jsonl(tmp_path / "quiz.jsonl", made)))
    assert {name: len(docs) for name, docs in found.items()} == {"train": 3, "test": 5}


def test_without_splits_a_question_is_always_in_the_same_half(tmp_path):
    first = read_questions(str(write_jsonl(tmp_path / "a.jsonl", rows(40))))
    again = read_questions(str(write_jsonl(tmp_path / "b.jsonl", rows(60)[::-1])))
    for name in ("train", "test"):
        assert set(first[name]["question"]) <= set(again[name]["question"])
    assert not set(again["train"]["question"]) & set(again["test"]["question"])


def test_named_columns_are_read(tmp_path):
    made = [{"q": r["question"], "x": r["choices"][0], "y": r["choices"][1], "right": r["choices"][0]} for r in rows(9)]
    found = read_questions(str(write_jsonl(tmp_path / "quiz.jsonl", made)), "question=q,choices=x,y,answer=right")
    assert documents(found)[0][1:] == (("red 0", "green 0"), 0)


BAD = [
    '{"question": "", "choices": ["a", "b"], "answer": 0}',
    '{"question": "Q1", "choices": ["a"], "answer": 0}',
    '{"question": "Q2", "choices": ["a", "a"], "answer": 0}',
    '{"question": "Q3", "choices": ["a", "b"], "answer": 2}',
    '{"question": "Q4", "choices": ["a", "b"], "answer": "c"}',
    '{"question": "Q5", "choices": ["B", "A"], "answer": "A"}',
    '{"question": "Q6", "choices": "a or b", "answer": 0}',
    '{"question": "Q7", "choices": ["a", "b"]}',
    '{"question": "Q8", "choices": ["a", "b"], "answer": true}',
    '{"question": "Q8", "choices": ["a", "b"], "answer": "' + "1" * 5000 + '"}',
    "[1, 2]",
    '{"question": "Q9", ',
]


def test_all_bad_rows_are_reported_at_once_with_their_lines(tmp_path):
    good = [json.dumps(row) for row in rows(6)]
    (tmp_path / "quiz.jsonl").write_text("\n".join([*good, *BAD]) + "\n", encoding="utf-8")
    with pytest.raises(UserError) as error:
        read_questions(str(tmp_path / "quiz.jsonl"))
    text = str(error.value)
    assert f"{len(BAD)} of {len(BAD) + 6} rows cannot be used; --skip-bad-rows leaves them out" in text
    for number in range(7, 7 + len(BAD)):
        assert f"quiz.jsonl line {number} " in text


def test_a_first_row_that_lacks_a_column_is_one_bad_row(tmp_path):
    lines = ['{"question": "Q", "choices": ["a", "b"]}', *(json.dumps(row) for row in rows(6))]
    (tmp_path / "quiz.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(UserError, match=r"1 of 7 rows cannot be used.*\n  quiz.jsonl line 1: no column for answer"):
        read_questions(str(tmp_path / "quiz.jsonl"))


def test_bad_rows_can_be_left_out_and_are_counted(tmp_path, caplog):
    good = [json.dumps(row) for row in rows(6)]
    (tmp_path / "quiz.jsonl").write_text("\n".join([*BAD, *good]) + "\n", encoding="utf-8")
    found = read_questions(str(tmp_path / "quiz.jsonl"), skip_bad_rows=True)
    assert len(documents(found)) == 6
    assert f"{len(BAD)} of {len(BAD) + 6} rows are left out" in caplog.text


@pytest.mark.parametrize(
    ("name", "text", "columns", "reason"),
    [
        ("quiz.jsonl", '{"a": 1}\n', "", "no column for question and choices and answer among a"),
        ("quiz.jsonl", '{"a": 1}\n', "question=b", "--columns names 'b', which is none of the columns a"),
        ("quiz.jsonl", "", "", "has no question that can be used"),
        ("quiz.txt", "x", "", "ends in none of .jsonl, .csv, .parquet"),
        ("quiz.parquet", "x", "", "is not whole Parquet"),
        ("quiz.csv", "question,A,B,answer\nQ,a,b,A,more\n", "", "more cells than the header"),
        ("quiz.jsonl", "{}", "choices", "--columns is 'choices'"),
        ("quiz.jsonl", "{}", "question=a,b", "--columns is 'question=a,b'"),
    ],
)
def test_data_that_cannot_be_read_end_in_one_sentence(tmp_path, capsys, name, text, columns, reason):
    (tmp_path / name).write_text(text, encoding="utf-8")
    command = [
        "eval",
        "--model",
        tmp_path,
        "--data",
        tmp_path / name,
        "--columns",
        columns,
        "--output",
        tmp_path / "out",
    ]
    with pytest.raises(UserError, match=r".") as error:
        read_questions(str(tmp_path / name), columns)
    assert reason in str(error.value)
    assert main(list(map(str, command))) == 2
    capsys.readouterr()


def test_a_cut_parquet_file_is_one_sentence(tmp_path):
    import datasets

    made = [{**row, "answer": str(row["answer"])} for row in rows(500)]
    datasets.Dataset.from_list(made).to_parquet(tmp_path / "quiz.parquet")
    whole = (tmp_path / "quiz.parquet").read_bytes()
    (tmp_path / "quiz.parquet").write_bytes(whole[:4] + bytes(2000) + whole[2004:])
    with pytest.raises(UserError, match="is not whole Parquet"):
        read_questions(str(tmp_path / "quiz.parquet"))


def test_a_file_with_the_name_of_a_task_is_refused(tmp_path):
    data = write_jsonl(tmp_path / "mc_calib_arc.jsonl", rows(9))
    with pytest.raises(UserError, match="mc_calib_arc is named twice; rename the file of --data"):
        load_questions(QuestionSpec(tasks=("mc_calib_arc",), data=str(data)))


@pytest.mark.usefixtures("mirror")
def test_a_file_gives_the_numbers_of_its_task_yaml(model, tmp_path):
    made = [*rows(4, split="train"), *rows(20, split="test")]
    data = write_jsonl(tmp_path / "quiz.jsonl", made)
    test = [{**r, "gold": i % len(r["choices"])} for i, r in enumerate(rows(20))]
    folder = tmp_path / "tasks"
    folder.mkdir()
    write_jsonl(folder / "test.jsonl", [{k: r[k] for k in ("question", "choices", "gold")} for r in test])
    (folder / "task.yaml").write_text(
        "task: by_yaml\nclass: !function harness_ext.task.LetterTask\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {folder / 'test.jsonl'}}}}}\ntest_split: test\n"
    )
    by_file = small_evaluation(tmp_path / "file", (), model=str(model), data=str(data))
    by_yaml = small_evaluation(tmp_path / "yaml", ("by_yaml",), model=str(model), include_path=str(folder))
    assert metrics(by_file, "quiz") == metrics(by_yaml, "by_yaml")
    assert by_file.questions == {"quiz": 20}


@pytest.mark.usefixtures("mirror")
def test_fit_and_eval_take_a_file_and_the_printed_command_works(model, tmp_path, capsys):
    import shlex

    data = write_jsonl(tmp_path / "my quiz.jsonl", rows(80))
    command = [
        "fit",
        "--method",
        "temperature",
        "--model",
        model,
        "--data",
        data,
        "--precision",
        "fp32",
        "--output",
        tmp_path / "t",
    ]
    assert main(list(map(str, command))) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("next: "))
    words = shlex.split(line.removeprefix("next: python -m calibtune "))
    assert main(words) == 0
    assert "my_quiz_scaled" in capsys.readouterr().out
    assert f"--data '{data}'" in (tmp_path / "t" / "README.md").read_text("utf-8")


@pytest.mark.usefixtures("mirror")
def test_doctor_looks_at_a_files_letters(model, tmp_path, capsys):
    data = write_jsonl(tmp_path / "quiz.jsonl", rows(20))
    main(list(map(str, ["doctor", "--model", model, "--data", data, "--precision", "fp32"])))
    assert "quiz: letters are single tokens of their own" in capsys.readouterr().out
