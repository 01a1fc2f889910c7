"""The report's tables of noise and refinement, which the page, Markdown and LaTeX show."""

import json
import re

import numpy as np
import pytest
from lm_eval_files import answers, write_run
from report_files import report
from sample_files import sample, write

from calibtune.reporting import tables
from calibtune.results.table import calibrated

pytestmark = pytest.mark.usefixtures("undrawn")

NAMES = {f"{ece}_{bins}": f"{ece[:-4]}-ECE, {bins} bins" for bins in (10, 14) for ece in ("conf_ece", "cw_ece")}


def task_of(numbers):
    return {"methods": {"model": {"numbers": numbers}}}


def test_the_page_and_the_tables_show_each_eces_noise_and_what_calibration_costs(tmp_path):
    folder = write_run(tmp_path / "run", {"arc": answers(300, sharpness=3.0)})
    report(folder, "--output", tmp_path / "out")
    numbers = json.loads((tmp_path / "out" / "results.json").read_text())["tasks"]["arc"]["methods"]["base-7b"][
        "numbers"
    ]
    markdown = (tmp_path / "out" / "tables.md").read_text().replace("\\", "")
    for name, title in NAMES.items():
        low, high, floor, below, excess, debiased = (
            f"{numbers[f'{name}_{more}']:.3f}" for more in ("low", "high", "floor", "floor_95", "excess", "debiased")
        )
        value, answer = f"{numbers[name]:.3f} ({low}–{high})", calibrated(numbers[f"{name}_p"])
        # A method's name stands in its first row alone.
        cells = [
            "base-7b" if name.startswith("conf") else "",
            title,
            value,
            f"{floor} (95% to {below})",
            f"+{excess}",
            debiased,
            answer,
        ]
        assert f"| {' | '.join(cells)} |" in markdown
    assert numbers["nll_calibration"] > 0.1
    refined, cost = (f"{numbers[f'nll_{part}']:.3f}" for part in ("refined", "calibration"))
    assert f" | {refined} | +{cost} | {numbers['brier']:.3f} (" in markdown
    page = (tmp_path / "out" / "report.html").read_text()
    for name in NAMES:
        assert f"<td>{numbers[f'{name}_floor']:.3f}<small>95% to {numbers[f'{name}_floor_95']:.3f}</small>" in page
    assert re.search(rf"<td>{refined}\s*</td>\s*<td>\+{cost}", page)
    assert "no, p &lt; .001" in page
    # One for 10 bins, one for 14.
    assert page.count('<th scope="row" rowspan="2">base-7b</th>') == 2


def test_a_refinement_that_few_right_answers_leave_unknown_is_a_dash(tmp_path):
    rows = [sample(number, np.log([0.6, 0.3, 0.1]), "0") for number in range(12)]
    write(tmp_path, rows)
    report(tmp_path, "--output", tmp_path / "out")
    text = (tmp_path / "out" / "results.json").read_text()
    ((_, method),) = json.loads(text, parse_constant=pytest.fail)["tasks"]["mc_calib_arc"]["methods"].items()
    assert method["numbers"]["nll_refined"] is None
    (row,) = tables.refinement({"methods": {"model": method}}).rows
    assert [cell.value for cell in row] == ["model", "0.511", "–", "–", "0.260", "–", "–"]


def test_an_excess_below_zero_has_its_sign():
    numbers = {f"conf_ece_10{end}": 0.02 for end in ("", "_low", "_high", "_floor", "_floor_95", "_debiased", "_p")}
    (row,) = tables.noise(task_of(numbers | {"conf_ece_10_excess": -0.0034})).rows
    assert row[4].value == "-0.003"
