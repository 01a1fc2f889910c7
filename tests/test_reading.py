"""Files of every shape, through commands that read them: the right result or one sentence, at once."""

import gzip
import json
import os
import shutil
import signal

import pytest
from lm_eval_files import answers, write_run
from sample_files import sample, write

from calibtune.__main__ import main

RECIPE = "method: cft\nmodel: nowhere/at-all\ntasks: t\n"
DATE = "2026-01-02T03-04-05.678901"


def pipe(path):
    os.mkfifo(path)


def device(path):
    path.symlink_to("/dev/zero")


def link_to_itself(path):
    path.symlink_to(path)


def packed(path):
    path.write_bytes(gzip.compress(b"{}"))


def bytes_of(data):
    return lambda path: path.write_bytes(data)


SHAPES = {
    "a pipe": (pipe, "is a pipe, not a file"),
    "a device": (device, "is a device, not a file"),
    "a folder": (os.mkdir, "is a folder, not a file"),
    "a link to itself": (link_to_itself, "cannot be read: Too many levels of symbolic links"),
    "compressed": (packed, "is compressed; unpack it"),
    "nested": (bytes_of(b"[" * 1500), "is not JSON (recursion limit exceeded|has more than 50 nested"),
    "a number of 5,000 digits": (bytes_of(b'{"a": ' + b"1" * 5000 + b"}"), "number out of range|a number of 5000"),
    "a lone surrogate": (bytes_of(rb'{"a": "\ud800"}'), "is not JSON (unexpected end of hex|is not YAML"),
    "not UTF-8": (bytes_of(b'{"a": "\xff"}'), "is not JSON (invalid unicode|is not UTF-8"),
    "endless": (lambda path: os.truncate(path, 2**33) if path.touch() is None else None, "has more than"),
    "a value": (bytes_of(b"5"), "holds 5, which|holds int|has no task|is 5"),
}


@pytest.fixture(autouse=True)
def at_once():
    """A command that waits for a pipe, or reads without end, is ended."""
    signal.alarm(60)
    yield
    signal.alarm(0)


def places(folder):
    """Commands, and the file that each reads."""
    run = write_run(folder / "runs", {"t": answers(5)}, date=DATE)
    report = ["report", "runs", "--output", "out"]
    return {
        "samples": (["rescore", "runs"], run / f"samples_t_{DATE}.jsonl"),
        "results": (report, run / f"results_{DATE}.json"),
        "results beside samples": (["rescore", "runs"], run / f"results_{DATE}.json"),
        "win rate": (report, run / "winrate_x.json"),
        "recipe": (["fit", "--config", "recipe.yaml", "--output", "out"], folder / "recipe.yaml"),
        "annotations": (["winrate", "alpaca-eval", "--annotations", "a.json", "--output", "out"], folder / "a.json"),
    }


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("place", ["samples", "results", "results beside samples", "win rate", "recipe", "annotations"])
def test_file_of_another_shape_is_one_sentence(place, shape, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words, path = places(tmp_path)[place]
    make, wanted = SHAPES[shape]
    path.unlink(missing_ok=True)
    make(path)
    code, said = main(words), capsys.readouterr().err
    if (place, shape) == ("results", "a value"):
        assert said.count("calibtune: error: ") == 1  # a file that is not lm_eval's is passed over, and samples lack it
    else:
        assert code == 2, said
        assert any(part in said for part in wanted.split("|")), said
    assert said.count("\n") == 1


def test_byte_order_mark_is_no_part_of_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, [sample(0), sample(1)])
    assert main(["rescore", "--json", str(path)]) == 0
    without = capsys.readouterr().out
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert main(["rescore", "--json", str(path)]) == 0
    assert capsys.readouterr().out == without
    (tmp_path / "r.yaml").write_text(RECIPE, encoding="utf-8-sig")
    assert main(["fit", "--config", "r.yaml"]) == 2
    assert capsys.readouterr().err == "calibtune: error: --output is missing\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &a [1]\nb: &b [*a, *a]\nc: [*b, *b]\n", "has an alias"),
        (f"{RECIPE}rank: {'1' * 5000}\n", "has a number of 5000 characters"),
        (f"{RECIPE}rank: 1{':1' * 9000}\n", "has a number of 18001 characters"),
        (f"{RECIPE}chat_template_args: {{day: 2026-01-02}}\noutput: o\n", "--chat-template-args is {'day': datetime"),
        ("- " * 5000, "is nested too deeply"),
        (f"{RECIPE}rank: {{a: 1, a: 2}}\n", "gives 'a' twice"),
        (f"{RECIPE}chat_template: {'x' * 5000}\noutput: o\n", "File name too long"),
    ],
    ids=lambda text: text[:20],
)
def test_hostile_recipe_is_one_sentence(text, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(text)
    assert main(["fit", "--config", "r.yaml"]) in (1, 2)
    err = capsys.readouterr().err
    assert said in err
    assert err.count("calibtune: error: ") == 1


def test_results_file_that_counts_three_billion_questions_is_one_sentence(tmp_path, capsys):
    path = write(tmp_path, [sample(0)])
    counts = {"n-samples": {"mc_calib_arc": {"effective": 3_000_000_000}}}
    (tmp_path / path.name.replace("samples_mc_calib_arc", "results").replace("jsonl", "json")).write_text(
        json.dumps(counts)
    )
    assert main(["rescore", str(path)]) == 2
    assert "counts 3000000000 (missing: [1, 2, 3, 4, 5])" in capsys.readouterr().err


def test_questions_of_too_many_options_are_refused_before_a_table_is_made_of_them(tmp_path, capsys):
    assert main(["rescore", str(write(tmp_path, [sample(0, [-1.0] * 1001)]))]) == 2
    assert "resps is " in capsys.readouterr().err


def test_groups_that_name_each_other_over_and_over_are_pooled_at_once(tmp_path, capsys):
    tasks = {f"t{n}": answers(5) for n in range(7)}
    groups = {f"g{n}": [f"g{n + 1}"] * 2 for n in range(60)} | {"g60": [*tasks, "g1"]}
    write_run(tmp_path / "runs", tasks, groups=groups)
    assert main(["report", str(tmp_path / "runs"), "--output", str(tmp_path / "out")]) == 0
    assert "g0" in (tmp_path / "out" / "tables.md").read_text()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"])
@pytest.mark.parametrize("shape", ["a pipe", "a device", "a folder", "a link to itself"])
def test_models_file_of_another_shape_is_one_sentence(name, shape, model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    copy = shutil.copytree(model, tmp_path / "copy")
    (copy / name).unlink()
    make, wanted = SHAPES[shape]
    make(copy / name)
    assert main(["eval", "--model", str(copy), "--tasks", "mc_calib_world", "--device", "cpu", "--output", "out"]) == 2
    assert f"{name} {wanted}" in capsys.readouterr().err
