"""What other harnesses find: entry points, and our metrics by name in a task of any class."""

import importlib.util
import pkgutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tomllib
from lm_eval.api.registry import get_aggregation, metric_registry
from lm_eval.tasks import TaskManager

from harness_ext.letters import LetterSoftmax
from harness_ext.metrics import process_results
from harness_ext.registry import METRICS

GROUPS = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())["project"]["entry-points"]


def test_every_entry_point_is_what_its_group_takes():
    for group in ("lm_eval.models", "lm_eval.filters", "lm_eval.metrics", "lm_eval.aggregations"):
        for name, value in GROUPS[group].items():
            if name != "vllm-letters" or importlib.util.find_spec("vllm"):
                assert callable(pkgutil.resolve_name(value)), name
    # A package of YAML files, as #4015 of the harness resolves it.
    (place,) = importlib.util.find_spec(GROUPS["lm_eval.tasks"]["mc_calib"]).submodule_search_locations
    assert "mc_calib_arc" in TaskManager(include_path=place, include_defaults=False).all_tasks


def test_every_metric_has_its_entry_points():
    eces = {f"{name}{end}" for name in METRICS if "_ece_" in name for end in ("", "_low", "_high")}
    assert GROUPS["lm_eval.aggregations"].keys() == eces
    assert GROUPS["lm_eval.metrics"].keys() == eces | METRICS.keys() - {"acc"}


@pytest.mark.parametrize("name", GROUPS["lm_eval.metrics"])
def test_a_metric_by_name_is_that_of_a_letter_task(name):
    lls, gold = [-1.0, -2.5, -0.3], 1
    doc = {"question": "Which?", "choices": ["a", "b", "c"], "gold": gold}
    letters = LetterSoftmax().apply([[(ll, False)] for ll in lls], [doc] * 3)
    found = metric_registry.get(name)
    of_question = getattr(found, "fn", found)  # lm_eval 0.5 wraps it
    assert of_question(gold, SimpleNamespace(lls=np.array(lls), ctx="Which?")) == process_results(doc, letters)[name]
    if name in GROUPS["lm_eval.aggregations"]:
        assert get_aggregation(name) is pkgutil.resolve_name(GROUPS["lm_eval.aggregations"][name])
