import yaml
from harness import TASKS

from calibtune.results.measures import harness_measures
from harness_ext import metrics
from harness_ext.registry import METRICS


def test_the_tasks_the_harness_and_rescore_have_the_registered_metrics():
    listed = yaml.safe_load((TASKS / "_letters").read_text().replace("!function ", ""))["metric_list"]
    ends = ("_low", "_high")
    names = [item["metric"] for item in listed if not item["metric"].endswith(ends)]
    assert names == list(METRICS)
    assert {i["metric"]: i["higher_is_better"] for i in listed if i["metric"] in METRICS} == {
        name: metric.higher_is_better for name, metric in METRICS.items()
    }
    functions = [i["aggregation"] for i in listed if i["aggregation"] != "mean"]
    assert all(hasattr(metrics, function.rsplit(".", 1)[1]) for function in functions)
    assert {item["metric"] for item in listed} == set(harness_measures([[0.0, -1.0]], [0]))
