import json

import numpy as np
import pytest
from lm_eval_files import answers, true_probabilities, write_run

from calibtune.__main__ import main
from calibtune.reporting.regime.page import family

BASE, CFT = {"pretrained": "org/base-7b"}, {"pretrained": "org/base-7b", "peft": "runs/cft"}


def world(rows=200, sharpness=1.0):
    return (*answers(rows, sharpness=sharpness), true_probabilities(rows))


def regime(folder, *words):
    code = main(["regime", *map(str, words), "--output", str(folder / "page")])
    return code, folder / "page"


@pytest.fixture
def known(tmp_path):
    write_run(tmp_path / "run" / "evaluations" / "aligned", {"world": world(sharpness=4.0)}, BASE)
    write_run(tmp_path / "run" / "evaluations" / "cft", {"world": world()}, CFT)
    return tmp_path


def test_an_output_folder_of_the_demo_or_of_reproduce_stands_for_its_evaluations(known, capsys):
    code, page = regime(known, known / "run")
    assert code == 0
    printed = capsys.readouterr().out
    assert "world, on the frontier: cft" in printed
    assert "base-7b: accuracy" in printed
    assert f"page: {page / 'regime.html'}" in printed
    assert {path.name for path in (page / "figures").glob("*.svg")} == {
        f"world_{kind}.svg" for kind in ("plane", "bounds", "expected", "classes")
    }


def test_known_p_star_gives_tce_and_bounds(known):
    _, page = regime(known, known / "run")
    models = json.loads((page / "regime.json").read_text())["tasks"]["world"]["models"]
    mended, aligned = models["cft"]["theory"], models["base-7b"]["theory"]
    # The model of sharpness 1 is p*, but for letters that hold 95 % of the mass.
    assert mended["tce"]["estimate"] == pytest.approx(0, abs=1e-9)
    assert mended["acc"] == pytest.approx(mended["acc_star"])
    assert aligned["tce"]["estimate"] > 0.3 > aligned["upper"]
    text = (page / "regime.html").read_text()
    assert "Theorem 4.4" in text
    assert "p* is known: acc* is" in text


def test_real_questions_get_no_bounds_but_what_cannot_be_known(tmp_path):
    write_run(tmp_path / "a", {"arc": answers(300, sharpness=4.0)}, BASE)
    write_run(tmp_path / "b", {"arc": answers(300)}, CFT)
    _, page = regime(tmp_path, tmp_path / "a", tmp_path / "b")
    text = (page / "regime.html").read_text()
    assert "cannot be known" in text
    assert "Theorem" not in text
    assert {path.name for path in (page / "figures").glob("*")} == {"arc_plane.svg", "arc_plane.png"}
    models = json.loads((page / "regime.json").read_text())["tasks"]["arc"]["models"]
    assert {model["regime"] for model in models.values()} == {"calibratable"}


@pytest.mark.slow
def test_report_of_several_models_has_the_page_and_a_link_to_it(known):
    assert main(["report", str(known / "run"), "--output", str(known / "report")]) == 0
    assert 'href="regime.html"' in (known / "report" / "report.html").read_text()
    assert "results.json" in (known / "report" / "regime.html").read_text()
    one = known / "run" / "evaluations" / "cft"
    assert main(["report", str(one), "--output", str(known / "single")]) == 0
    assert not (known / "single" / "regime.html").exists()


def test_models_of_one_question_are_drawn(tmp_path):
    scores, gold = answers(1)
    write_run(tmp_path / "a", {"world": (scores, gold, true_probabilities(1))}, BASE)
    write_run(tmp_path / "b", {"world": ([np.log([0.1, 0.2, 0.3, 0.4]).tolist()], gold, true_probabilities(1))}, CFT)
    code, _ = regime(tmp_path, tmp_path / "a", tmp_path / "b")
    assert code == 0


@pytest.mark.parametrize(
    ("method", "text"),
    [
        ({"method": None, "adapter": None, "temperature_from": None}, "not fitted"),
        ({"method": None, "adapter": "runs/x", "temperature_from": None}, "other adapter"),
        ({"method": None, "adapter": None, "temperature_from": "filter scaled"}, "temperature"),
        ({"method": "temperature", "adapter": None, "temperature_from": "t.json"}, "temperature"),
        ({"method": "cft", "adapter": "runs/x", "temperature_from": None}, "CFT"),
    ],
)
def test_a_model_is_named_by_what_made_it(method, text):
    assert family(method) == text
