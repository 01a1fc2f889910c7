import pytest
from browser import BARE_DRAWINGS, CHROMIUM, CUT_TEXT, LOW_CONTRAST, browser
from lm_eval_files import answers, true_probabilities, write_run
from reproduced import reproduced

from calibtune.api import regime

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    for name, sharpness in (("base", 4.0), ("cft", 1.0), ("a_run_with_quite_a_long_name_seed_17_lambda_4.0", 1.2)):
        args = {"pretrained": "org/Long-Model-Name-3.1-8B-DPO", **({"peft": f"runs/{name}"} if name != "base" else {})}
        known = (*answers(300, sharpness=sharpness), true_probabilities(300))
        write_run(folder / "runs" / name, {"world": known, "arc": answers(300, 5, sharpness, ragged=True)}, args)
    made, *_ = reproduced(folder / "reproduced")
    return {"regime": regime(folder / "runs", folder / "out"), "reproduction": made}


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.mark.parametrize("page", ["regime", "reproduction"])
@pytest.mark.parametrize(("width", "dark"), [(390, False), (390, True), (800, False), (1280, False), (1280, True)])
def test_page_is_complete_legible_and_self_contained(pages, chromium, page, width, dark):
    chromium.events.clear()
    chromium.open(pages[page], width, dark)
    assert chromium.complaints() == []
    assert {url for url in chromium.requests() if not url.startswith("data:")} == {f"file://{pages[page]}"}
    # Regime: four figures and one, and two for each of three models on both tasks. Reproduction: five methods, two
    # tasks, three kinds.
    assert (
        chromium.evaluate("document.querySelectorAll('figure svg').length") == {"regime": 17, "reproduction": 30}[page]
    )
    assert chromium.evaluate(BARE_DRAWINGS) == []
    assert chromium.evaluate(CUT_TEXT) == []
    assert chromium.evaluate(LOW_CONTRAST) == []
    assert chromium.evaluate("document.documentElement.scrollWidth") <= width
    ids = chromium.evaluate("[...document.querySelectorAll('[id]')].map((each) => each.id)")
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("page", ["regime", "reproduction"])
def test_links_lead_somewhere(pages, chromium, page):
    chromium.open(pages[page], 1280)
    links = chromium.evaluate("[...document.querySelectorAll('a')].map((link) => link.getAttribute('href'))")
    assert links
    for link in links:
        inside = link.startswith("#") and chromium.evaluate(f"!!document.querySelector({link!r})")
        assert inside or (pages[page].parent / link).is_file(), link
