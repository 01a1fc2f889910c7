import pytest
from board_files import leaderboard, write_model
from browser import CHROMIUM, LOW_CONTRAST, browser

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium"),
]

#: Rows of the first table, and the names of those that are shown, in their order.
ROWS = "[...document.querySelector('.board').tBodies[0].rows]"
NAMES = f"{ROWS}.filter((row) => !row.hidden).map((row) => row.cells[0].textContent)"
FITS = "[...document.querySelectorAll('.board')].every((each) => each.offsetWidth <= each.parentNode.clientWidth)"
SORTED = "[...document.querySelectorAll('.board th[aria-sort]')].map((head) => head.innerText.trim())"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("board")
    folders = [write_model(folder, number, rows=200) for number in range(11)]
    folders.append(write_model(folder, 11, name="org/Some-Long-Model-Name-3.1-8B-Instruct-DPO-v0.3"))
    assert leaderboard(*folders, "--output", folder / "out") == 0
    return folder / "out" / "leaderboard.html"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


def click(chromium, column):
    chromium.evaluate(f"document.querySelector('.board').tHead.rows[0].cells[{column}].querySelector('button').click()")


def numbers(chromium, column):
    return chromium.evaluate(f"{ROWS}.map((row) => parseFloat(row.cells[{column}].innerText))")


@pytest.mark.parametrize("width", [390, 800, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_page_is_legible_and_self_contained(page, chromium, width, dark):
    chromium.events.clear()
    chromium.open(page, width, dark)
    assert chromium.complaints() == []
    assert {url for url in chromium.requests() if not url.startswith("data:")} == {f"file://{page}"}
    assert chromium.evaluate("document.documentElement.scrollWidth") <= width
    assert chromium.evaluate(LOW_CONTRAST) == []
    # Rank, NLL, ECE and accuracy are seen without scrolling sideways.
    seen = "document.querySelector('.board th[data-ranks=\"acc\"]').getBoundingClientRect().right"
    assert chromium.evaluate(seen) <= width
    if width >= 800:
        assert chromium.evaluate(FITS)


def test_columns_sort_and_ranks_follow(page, chromium):
    chromium.open(page, 1280)
    assert numbers(chromium, 2) == sorted(numbers(chromium, 2))
    click(chromium, 2)
    assert numbers(chromium, 2) == sorted(numbers(chromium, 2), reverse=True)
    click(chromium, 4)
    assert numbers(chromium, 4) == sorted(numbers(chromium, 4), reverse=True)
    assert numbers(chromium, 1) == sorted(numbers(chromium, 1))
    shown = chromium.evaluate("document.querySelector('.board thead').innerText")
    assert "by accuracy" in shown
    # The other tables follow, and the pairs.
    assert chromium.evaluate(SORTED) == ["accuracy"] * 3
    assert chromium.evaluate("document.querySelector('details > div:not([hidden])').dataset.by") == "acc"
    click(chromium, 7)
    assert numbers(chromium, 7) == sorted(numbers(chromium, 7))
    click(chromium, 0)
    names = chromium.evaluate(NAMES)
    assert names == sorted(names, key=str.lower)


def test_the_filter_leaves_the_models_with_all_words(page, chromium):
    chromium.open(page, 800)
    chromium.evaluate("document.querySelector('#filter').focus()")
    chromium.call("Input.insertText", text="Instruct dpo")
    assert chromium.evaluate(NAMES) == ["Some-Long-Model-Name-3.1-8B-Instruct-DPO-v0.3"]
    assert chromium.evaluate("document.querySelector('output').textContent") == "1 of 12 models"
    chromium.evaluate("const f = document.querySelector('#filter'); f.value = ''; f.dispatchEvent(new Event('input'))")
    assert len(chromium.evaluate(NAMES)) == 12


def test_tab_stops_at_everything_in_the_pages_order_and_shows_where_it_is(page, chromium):
    chromium.open(page, 1280)
    stops = chromium.tab_through()
    assert [place for place, *_ in stops] == list(range(len(stops)))
    assert [stop for stop in stops if not stop[1]] == []
    assert len(stops) > 3 * 10


@pytest.mark.parametrize("key", ["Enter", " "])
def test_the_keyboard_sorts_either_way_and_opens_pairs(page, chromium, key):
    chromium.open(page, 1280)
    chromium.evaluate("document.querySelector('.board th[data-ranks=\"conf_ece\"] button').focus()")
    chromium.press(key)
    assert numbers(chromium, 3) == sorted(numbers(chromium, 3))
    chromium.press(key)
    assert numbers(chromium, 3) == sorted(numbers(chromium, 3), reverse=True)
    assert chromium.evaluate("document.activeElement.closest('th').ariaSort") == "descending"
    chromium.evaluate("document.querySelector('summary').focus()")
    chromium.press(key)
    assert chromium.evaluate("document.querySelector('details').open")
    chromium.press(key)
    assert not chromium.evaluate("document.querySelector('details').open")


def test_page_is_a_table_without_scripts(page, chromium):
    chromium.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        chromium.open(page, 1280)
        assert len(chromium.evaluate(NAMES)) == 12
        assert chromium.evaluate("document.querySelectorAll('.board button').length") == 0
        assert not chromium.evaluate("document.querySelector('.controls').offsetHeight")
    finally:
        chromium.call("Emulation.setScriptExecutionDisabled", value=False)


def test_page_prints_all_pairs_in_black_on_white(page, chromium):
    chromium.open(page, 1280, dark=True)
    media = [{"name": "prefers-color-scheme", "value": "dark"}]
    chromium.call("Emulation.setEmulatedMedia", media="print", features=media)
    # The width of A4 across between its margins.
    chromium.call("Emulation.setDeviceMetricsOverride", width=1030, height=700, deviceScaleFactor=1, mobile=False)
    chromium.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert chromium.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert chromium.evaluate("document.documentElement.scrollWidth") <= 1030
    assert chromium.evaluate("[...document.querySelectorAll('details')].every((each) => each.open)")
    assert not chromium.evaluate("document.querySelector('.controls').offsetHeight")
    chromium.call("Emulation.setEmulatedMedia", media="")
