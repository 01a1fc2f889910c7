"""Running the real harness in tests: our task folder alone, any model, no download."""

from pathlib import Path

import datasets.config
from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager

TASKS = Path(__file__).resolve().parents[2] / "lm_eval_tasks"


def enter_mirror(folder: Path, monkeypatch) -> Path:
    """Run in a local mirror of data sets, with a cache of its own: `datasets` keys its cache by the relative path."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
    return folder


def manager(*folders, **metadata) -> TaskManager:
    """A TaskManager of our task folder (and others) without the harness's own thousands."""
    return TaskManager(include_path=[str(TASKS), *map(str, folders)], include_defaults=False, metadata=metadata or None)


def evaluate(tasks, model, folders=(), metadata=None, **options):
    """``simple_evaluate`` with samples; ``model`` is a folder of a Hugging Face model or an ``LM``."""
    if isinstance(model, Path):
        options.setdefault("model_args", f"pretrained={model},dtype=float32,device=cpu")
        model = "hf"
    return simple_evaluate(
        model=model,
        tasks=list(tasks),
        task_manager=manager(*folders, **(metadata or {})),
        log_samples=True,
        bootstrap_iters=0,
        **options,
    )


class FakeLM(LM):
    """A backend that answers each request with ``answer(context, continuation)``."""

    tokenizer_name = "fake"

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def loglikelihood(self, requests, disable_tqdm=False):
        return [self.answer(*request.args) for request in requests]

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        raise NotImplementedError

    def generate_until(self, requests, disable_tqdm=False):
        raise NotImplementedError


def save(run, folder: Path) -> Path:
    """Write a run's results and samples with lm_eval's own writer, as its command line does; returns their folder."""
    tracker = EvaluationTracker(output_path=str(folder))
    results = {key: value for key, value in run.items() if key != "samples"}
    tracker.save_results_aggregated(results=results, samples=run["samples"])
    for task, samples in run["samples"].items():
        tracker.save_results_samples(task_name=task, samples=samples)
    (results_file,) = folder.rglob("results_*.json")
    return results_file.parent
