"""The files of single panels: what a reader of one alone sees."""

import re

import pytest
from lm_eval_files import answers, write_run
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from processor import at_most
from report_files import report, two_runs

from calibtune.errors import WorkFailed
from calibtune.reporting import style

SHADES = ["0–1 %", "1–3 %", "3–10 %", "10–30 %", "30–100 %"]
MARKS = ["share of the questions in the bin", "gap to mean confidence", "perfect calibration", "95 % interval"]
LINES = ["mean confidence", "accuracy"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    assert report(*two_runs(folder), "--output", folder / "out") == 0
    return folder / "out"


def texts(svg):
    return re.findall(r"<text[^>]*>([^<]+)</text>", svg)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("arc_reliability_cft", [*SHADES, *MARKS, *LINES]),
        ("arc_classwise_cft", [*SHADES, *MARKS]),
        ("before_base-7b", [*SHADES, *MARKS]),
        ("after_cft", [*SHADES, *MARKS]),
        ("arc_options_cft", ["chosen", "right"]),
        ("arc_coverage", ["base-7b", "cft"]),
        ("arc_plane", ["base-7b", "cft"]),
    ],
)
def test_a_panels_file_has_the_key_of_what_is_drawn_in_it(made, name, key):
    shown = texts((made / "figures" / f"{name}.svg").read_text())
    assert [text for text in key if shown.count(text) != 1] == []


def test_the_page_has_the_key_once_and_not_in_each_panel(made):
    page = (made / "report.html").read_text()
    shown = texts(page)
    # The pair for a slide stands before the page's key, and keeps its own.
    assert [shown.count(text) for text in [*SHADES, *MARKS]] == [2] * 9
    assert page.count("bin holds up to 1 %") == 1
    box = r'aria-label="Reliability diagram of cft on arc[^"]*" viewBox="0 0 ([\d.]+) ([\d.]+)"'
    _, (width, height) = re.findall(box, page)
    whole = re.search('viewBox="0 0 ([0-9.]+) ([0-9.]+)"', (made / "figures" / "arc_reliability_cft.svg").read_text())
    assert whole.group(1) == width
    assert float(whole.group(2)) > float(height) + 30


def test_a_pdf_embeds_true_type_fonts_and_ends_as_one(made):
    for path in (made / "figures").glob("*.pdf"):
        data = path.read_bytes()
        assert b"/FontFile2" in data
        assert b"/Type3" not in data
        assert data.endswith(b"%%EOF\n")


def test_signs_that_the_small_font_lacks_are_drawn_from_the_whole_one(tmp_path, recwarn, monkeypatch, capsys):
    monkeypatch.setattr("calibtune.reporting.style.warnings.filterwarnings", lambda *_, **options: None)
    folder = write_run(tmp_path / "run", {"arc": answers(20)}, {"pretrained": "org/Модель-7b"})
    assert report(folder, "--output", tmp_path / "out") == 0
    assert [str(each.message) for each in recwarn if "Glyph" in str(each.message)] == []
    assert "font" not in capsys.readouterr().err


def test_signs_that_no_font_of_ours_has_are_said_once(tmp_path, capsys):
    folder = write_run(tmp_path / "run", {"arc": answers(20)}, {"pretrained": "org/模型模-7b"})
    assert report(folder, "--output", tmp_path / "out") == 0
    errors = capsys.readouterr().err
    warned = [line for line in errors.replace("\r", "\n").splitlines() if "font" in line or "Glyph" in line]
    said = "the figures' font lacks 型模: PDF and PNG show boxes in their place, the page has the reader's own fonts"
    assert warned == [f"warning: {said}"]
    assert "模型模-7b" in (tmp_path / "out" / "report.html").read_text()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of matplotlib, in which nobody looked for a font yet."""
    monkeypatch.setattr(style, "get_cachedir", lambda: str(tmp_path))
    monkeypatch.setattr(fontManager, "ttflist", list(fontManager.ttflist))
    style.font_families.cache_clear()
    yield tmp_path
    style.font_families.cache_clear()


def test_a_damaged_font_in_the_cache_is_made_anew(cache):
    assert style.font_families() == [style.FEW_SIGNS, style.FONT]
    files = {path: path.read_bytes() for path in cache.glob("*.ttf")}
    assert len(files) == 2
    for path in files:
        path.write_bytes(b"")
    style.font_families.cache_clear()
    assert style.font_families() == [style.FEW_SIGNS, style.FONT]
    assert all(len(path.read_bytes()) > 10_000 for path in files)


def test_without_room_for_the_small_font_figures_have_the_whole_one(cache, monkeypatch, recwarn):
    def full(path):
        raise WorkFailed("no space is left")

    monkeypatch.setattr(style, "replacing", full)
    assert style.font_families() == [style.FONT]
    with style.styled():
        figure = Figure()
        figure.text(0.5, 0.5, "模型")
        assert "模型" in style.drawn(figure)
    assert list(recwarn) == []


def test_a_figure_is_drawn_once_for_each_of_its_files_and_places_on_a_page(tmp_path, monkeypatch):
    """Drawing takes most of a report's time, and matplotlib's own way of saving draws twice."""
    drawn, draw = [], Figure.draw
    monkeypatch.setattr(Figure, "draw", lambda self, *args: drawn.append(self) or draw(self, *args))
    out = tmp_path / "out"
    assert report(*two_runs(tmp_path), "--output", out) == 0
    files = list((out / "figures").iterdir())
    shown = (out / "regime.html").read_text().count("<svg")
    assert len(files) > 20
    assert len(drawn) <= len(files) + shown


@pytest.mark.slow
def test_seven_methods_of_2000_questions_on_two_tasks_cost_at_most_five_times_twelve_plain_figures(tmp_path):
    for number in range(7):
        args = {"pretrained": "org/base", **({"peft": f"runs/fit-{number}"} if number else {})}
        tasks = {task: answers(2000, 4, 3 / (1 + number), seed=seed) for seed, task in enumerate(("arc", "obqa"))}
        write_run(tmp_path / "runs" / str(number), tasks, args)
    assert at_most(5, ["-m", "calibtune", "report", "runs", "--output", "OUT"], tmp_path)
