"""The documentation's commands, links and names are true."""

import argparse
import contextlib
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from calibtune.__main__ import build_parser

ROOT = Path(__file__).resolve().parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [
    *DOCS,
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    *(ROOT / folder / "README.md" for folder in ("lm_eval_tasks", "calibtune/recipes", "tests/benchmarks")),
]
#: Options that were taken out; only the lab log and the changelog may name them.
REMOVED = (
    "--compile",
    "--skip-top-bin",
    "--e-step bins",
    "--e-step once",
    "cross-fitted",
    "--artefact",
    "--quantisation",
)
LONGEST = 100
OF_THE_HARNESS = {"--metadata"}


def name_of(page):
    return str(page.relative_to(ROOT))


def read(page):
    return page.read_text(encoding="utf-8")


def prose_of(page):
    """Leave out code."""
    text = re.sub(r"^```.*?^```", "", read(page), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"^    .*$", "", text, flags=re.MULTILINE)


def commands(text):
    """Lines of code that call calibtune, continued lines joined."""
    blocks = re.findall(r"^```(?:sh|bash)\n(.*?)^```|((?:^    [^\n]*\n)+)", text, re.DOTALL | re.MULTILINE)
    for block in (fenced or indented for fenced, indented in blocks):
        for line in re.sub(r"\\\n", " ", block).splitlines():
            for part in re.split(r"&&|;", line):
                if match := re.search(r"-m calibtune(?= |$)(.*)", part):
                    yield match[1].partition(" #")[0].strip()


COMMANDS = [(name_of(page), command) for page in PAGES for command in commands(read(page))]


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=[f"{page}: {command}" for page, command in COMMANDS])
def test_a_command_is_one_that_calibtune_takes(page, command):
    # A shell variable stands for a name or for a number.
    words = shlex.split(re.sub(r"\$\w+", "1", command))
    if words[:1] == ["..."]:
        return
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            build_parser(words[0] if words else None).parse_args(words)
        except SystemExit as end:
            if end.code:
                pytest.fail(errors.getvalue())


def test_the_pages_have_commands():
    assert {"fit", "eval", "report", "rescore", "merge", "bake", "doctor", "demo", "winrate"} <= {
        command.split()[0] for _, command in COMMANDS if command
    }


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_flags_in_the_prose_exist(page):
    if page.name in ("lab-log.md", "CHANGELOG.md"):
        return
    known = {
        flag
        for command in ("fit", "eval", "rescore", "report", "leaderboard", "mend", "push", "merge", "doctor", "demo")
        for flag in flags(command)
    }
    prose = prose_of(page)
    found = {flag for flag in re.findall(r"`(--[a-z][a-z_-]*)", prose) if "_" not in flag}
    assert found - known - OF_THE_HARNESS == set()


def flags(command):
    parser = build_parser(command)
    sub = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return [flag for action in sub.choices[command]._actions for flag in action.option_strings]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_removed_options_are_named_in_the_lab_log_alone(page):
    if page.name not in ("lab-log.md", "CHANGELOG.md"):
        assert [word for word in REMOVED if word in read(page)] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", read(page)):
        if re.match(r"https?://|#", target):
            continue
        path, _, anchor = target.partition("#")
        assert (page.parent / path).exists(), target
        if anchor:
            assert anchor in anchors(page.parent / path), target


def anchors(page):
    headings = re.findall(r"^#+ (.*)$", read(page), re.MULTILINE)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_lines_of_prose_are_short(page):
    text = re.sub(r"^\|.*$|^\*.*\*$", "", prose_of(page), flags=re.MULTILINE)
    assert [line for line in text.splitlines() if len(line) > LONGEST] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_page_cites_what_readers_do_not_have(page):
    assert not re.search(r"paper\.md|findings\.md|design\.md", read(page))


def test_readme_is_short_and_shows_a_figure():
    readme = read(ROOT / "README.md")
    assert len(readme.splitlines()) < 120
    assert 500 <= len(readme.split()) <= 834
    assert "docs/figures/before-after.png" in readme


def test_recipes_are_all_named():
    page = read(ROOT / "docs" / "recipes.md")
    for recipe in (ROOT / "calibtune" / "recipes").rglob("*.yaml"):
        assert recipe.relative_to(ROOT / "calibtune" / "recipes").as_posix() in page


def test_tasks_are_all_named():
    page = read(ROOT / "docs" / "tasks.md")
    for task in (ROOT / "lm_eval_tasks").glob("*.yaml"):
        assert f"`{task.stem}`" in page


def test_defaults_in_the_recipes_page_are_the_codes():
    from calibtune.recipe import FIELDS, flag

    defaults = {flag(name): field.default for name, field in FIELDS.items()}
    rows = dict(re.findall(r"^\| `(--[\w-]+)` \| ([^|]+) \|", read(ROOT / "docs" / "recipes.md"), re.MULTILINE))
    for name in ("--lambda", "--letter-weight", "--learning-rate", "--batch-size", "--lora-dropout"):
        assert float(rows[name]) == float(defaults[name])
    assert rows["--e-step"] == f"`{defaults['--e-step']}`"
    assert rows["--e-step-rows"] == f"`{defaults['--e-step-rows']}`"
    assert rows["--shuffle-options"] == ("on" if defaults["--shuffle-options"] else "off")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_is_python(page):
    for block in re.findall(r"^```python\n(.*?)^```", read(page), re.DOTALL | re.MULTILINE):
        compile(block, name_of(page), "exec")


def test_the_tree_is_the_tree():
    """Every file and folder that CONTRIBUTING shows is there, and every folder of calibtune is shown."""
    folder, shown = "", set()
    for line in re.search(r"## The tree\n\n(.*?)\n\n", read(ROOT / "CONTRIBUTING.md"), re.DOTALL)[1].splitlines():
        indent, name = re.match(r"( +)(\S+)", line).groups()
        folder = name if len(indent) == 4 else folder
        path = folder if len(indent) == 4 else folder + name
        shown.add(path)
        assert (ROOT / path).exists(), path
    folders = {f"calibtune/{path.parent.name}/" for path in (ROOT / "calibtune").glob("*/__init__.py")}
    assert folders <= shown


def test_the_site_builds(tmp_path):
    pytest.importorskip("material")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "site" / "methods" / "index.html").is_file()
