import base64

import pytest
from browser import BARE_DRAWINGS, CHROMIUM, CUT_TEXT, FOCUSED, LOW_CONTRAST, browser
from lm_eval_files import answers, win_lines, write_run
from matplotlib.backends import backend_pdf

from calibtune.reporting.build import build
from calibtune.reporting.write import write

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The results and the page; a browser opens no PDF."""
    folder = tmp_path_factory.mktemp("report")
    for name, sharpness in (("base", 3.0), ("cft", 1.0), ("a_run_with_quite_a_long_name_seed_17_lambda_4.0", 1.2)):
        args = {"pretrained": "org/Long-Model-Name-3.1-8B-DPO", **({"peft": f"runs/{name}"} if name != "base" else {})}
        tasks = {
            "mc_calib_arc": answers(300, 5, sharpness, seed=1, ragged=True),
            "ten": answers(200, 10, sharpness, seed=2),
        }
        others = {"ultrafeedback_winrate": win_lines(rate=0.6, seed=len(name))}
        filters = {"none": 1.0, "scaled": 1.7} if name == "base" else None
        write_run(folder / "runs" / name, tasks, args, others=others, filters=filters)
    results = build([folder / "runs"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend_pdf.FigureCanvasPdf, "print_pdf", lambda _, file, **options: file.write(b""))
        write(results, folder / "out")
    return results, folder / "out" / "report.html"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_page_is_complete_legible_and_self_contained(report, chromium, width, dark):
    results, page = report
    chromium.events.clear()
    chromium.open(page, width, dark)
    assert chromium.complaints() == []
    assert {url for url in chromium.requests() if not url.startswith("data:")} == {f"file://{page}"}
    methods, kinds = len(results["methods"]), 3
    assert methods == 4
    assert chromium.evaluate("document.querySelectorAll('figure svg').length") == 2 * (methods * kinds + 3) + 2
    assert chromium.evaluate(BARE_DRAWINGS) == []
    assert chromium.evaluate(CUT_TEXT) == []
    assert chromium.evaluate(LOW_CONTRAST) == []
    assert chromium.evaluate("document.documentElement.scrollWidth") <= width
    background = chromium.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") != dark
    ids = chromium.evaluate("[...document.querySelectorAll('[id]')].map((each) => each.id)")
    assert len(ids) == len(set(ids))


def test_a_phone_shows_accuracy_ece_and_nll_without_scrolling_sideways(report, chromium):
    chromium.open(report[1], 390)
    heads = "[...document.querySelector('#task-1 table').tHead.rows[0].cells].slice(1, 4)"
    assert chromium.evaluate(f"{heads}.map((head) => head.textContent)") == [
        "accuracy",
        "conf-ECE, 10 bins",
        "NLL (nats)",
    ]
    assert chromium.evaluate(f"Math.max(...{heads}.map((head) => head.getBoundingClientRect().right))") <= 390
    assert chromium.evaluate("document.querySelector('#task-1 .scroll').scrollLeft") == 0


def test_nothing_in_a_panels_file_is_cut(report, chromium):
    page = report[1].parent / "panels.html"
    files = sorted((report[1].parent / "figures").glob("*.svg"))
    drawings = [path.read_text().partition("<svg")[2] for path in files]
    figures = [f'<figure id="{path.stem}"><svg {text}</figure>' for path, text in zip(files, drawings, strict=True)]
    page.write_text("".join(figures))
    chromium.open(page, 1280)
    assert chromium.evaluate("document.querySelectorAll('figure svg').length") == len(files) == 32
    assert chromium.evaluate(CUT_TEXT) == []


def test_links_inside_the_page_resolve(report, chromium):
    chromium.open(report[1], 1280)
    links = chromium.evaluate("[...document.querySelectorAll('a')].map((link) => link.getAttribute('href'))")
    beside = [link for link in links if not link.startswith("#")]
    assert "regime.html" in beside
    assert all((report[1].parent / link).is_file() for link in beside)
    links = [link for link in links if link.startswith("#")]
    assert {"#task-1", "#task-2", "#win-rates", "#runs"} <= set(links)
    assert chromium.evaluate(f"{links!r}.filter((link) => !document.querySelector(link))") == []


def test_tab_stops_at_everything_in_the_pages_order_and_shows_where_it_is(report, chromium):
    chromium.open(report[1], 1280)
    stops = chromium.tab_through()
    assert [place for place, *_ in stops] == list(range(len(stops)))
    assert [stop for stop in stops if not stop[1]] == []
    assert {kind for *_, kind in stops} == {"a", "div scroll", "summary", "span badge"}
    last = stops[-1][0]
    chromium.press("Tab", shift=True)
    assert chromium.evaluate(FOCUSED)[0] == last - 1


@pytest.mark.parametrize("key", ["Enter", " "])
def test_the_keyboard_opens_folds_and_says_why_a_badge_is_there(report, chromium, key):
    chromium.open(report[1], 1280)
    chromium.evaluate("document.querySelector('summary').focus()")
    for is_open in (True, False):
        chromium.press(key)
        assert chromium.evaluate("document.querySelector('details').open") == is_open
    why = "document.querySelector('.badge .why').checkVisibility()"
    assert not chromium.evaluate(why)
    chromium.evaluate("document.querySelector('.badge').focus()")
    assert chromium.evaluate(why)


def test_page_prints_black_on_white_in_dark_mode(report, chromium):
    chromium.open(report[1], 1280, dark=True)
    document = base64.b64decode(chromium.call("Page.printToPDF", printBackground=True)["data"])
    assert document.startswith(b"%PDF")
    media = [{"name": "prefers-color-scheme", "value": "dark"}]
    chromium.call("Emulation.setEmulatedMedia", media="print", features=media)
    # The width of A4 between its margins.
    chromium.call("Emulation.setDeviceMetricsOverride", width=718, height=1000, deviceScaleFactor=1, mobile=False)
    assert chromium.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert chromium.evaluate("document.documentElement.scrollWidth") <= 718
    chromium.call("Emulation.setEmulatedMedia", media="")
