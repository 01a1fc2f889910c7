"""Run each architecture through every command, beside a plain pass of transformers over the whole prompt.

    PYTHONPATH=.:tests/support python tests/benchmarks/model_matrix.py > docs/data/models.json
    PYTHONPATH=.:tests/support python tests/benchmarks/model_matrix.py Llama Mamba    # these alone, to read

Models are tiny and random (`tests/support/architectures.py`), in float32 on the CPU, with a chat template. A cell of
the table is "equal" if all letters' log-probabilities are within ``CLOSE`` of the plain pass, "refused" if the command
ended in a sentence, and "none" if there is nothing to run it on. Anything else is a fault, and the slow test
`tests/test_model_matrix.py` fails on it.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from architectures import ARCHITECTURES, save_architecture
from peft import PeftModel
from tiny import write_arc_mirror
from transformers import AutoModelForCausalLM, AutoTokenizer

from calibtune.__main__ import main as calibtune
from calibtune.evaluation import hf_prefix
from calibtune.results.samples import find_samples
from calibtune.tuning import fit as fitting

#: Largest difference of log-probabilities that counts as none, and the least that counts as one.
CLOSE, APART = 1e-4, 1e-3
#: Of the bake; a random model's own would be at the end of the range.
TEMPERATURE = 1.7
#: Columns, in the order in which they are run: commands and what they are given.
CELLS = ("hf", "hf-prefix", "few-shot", "temperature", "bake", "lora", "merge", "nf4", "full")

COMMON = ["--tasks", "mc_calib_arc", "--device", "cpu", "--precision", "fp32"]
EVAL = ["eval", *COMMON, "--limit", "3", "--batch-size", "4"]
FIT = ["fit", *COMMON, "--apply-chat-template", "--limit", "8", "--held-out", "4", "--batch-size", "4"]
TRAIN = [*FIT, "--max-steps", "3", "--learning-rate", "1e-2"]
LORA = [*TRAIN, "--method", "rcft", "--lambda", "1", "--rank", "4", "--lora-alpha", "8", "--lora-dropout", "0"]
FULL = [*TRAIN, "--method", "cft", "--tuning", "full"]


class Refused(Exception):
    """A command ended in a sentence."""


class Wrong(Exception):
    """A command gave other numbers than the plain pass."""


def command(*words: Any) -> None:
    """Run a command line of calibtune.

    Raises:
        Refused: With its sentence.
    """
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = calibtune([str(word) for word in words])
    if code:
        sentence = said.getvalue().strip().splitlines()[-1].removeprefix("calibtune: error: ")
        raise Refused(sentence)


def plain(model: Any, ids: list[int], letters: list[int], temperature: float = 1.0) -> list[float]:
    """Compute letters' log-probabilities after a prompt by one pass of transformers, alone and without a cache."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
    return (logits / temperature).log_softmax(-1)[letters].tolist()


def distance(first: list[list[float]], second: list[list[float]]) -> float:
    """Return the largest difference between the letters of the same questions."""
    return max(abs(a - b) for rows in zip(first, second, strict=True) for a, b in zip(*rows, strict=True))


def compare(what: str, found: list[list[float]], expected: list[list[float]]) -> None:
    """Compare the letters of some questions.

    Raises:
        Wrong: They differ, or the questions do not, which would hide what is left out of a prompt.
    """
    if not (apart := distance(found, expected)) <= CLOSE:
        raise Wrong(f"{what}: off by {apart:.3g}")
    if max(abs(a - b) for a, b in zip(*expected[:2], strict=False)) < APART:
        raise Wrong(f"{what}: two questions have the same answers")


def evaluated(model: Any, tokenizer: Any, *words: Any) -> list[tuple[list[int], list[int]]]:
    """Run ``calibtune eval``, compare its samples with the plain passes of a model, and return prompts and letters."""
    output = tempfile.mkdtemp(dir=".")
    command(*EVAL, "--output", output, *words)
    (path,) = find_samples(Path(output))
    found, asked = [], []
    for sample in map(json.loads, path.read_text().splitlines()):
        found.append([float(response[0][0]) for response in sample["resps"]])
        texts = [pair["arg_0"] + pair["arg_1"] for pair in sample["arguments"].values()]
        ids = tokenizer(texts)["input_ids"]
        if not sample["arguments"]["gen_args_0"]["arg_0"].endswith("<|assistant|>\n"):
            raise Wrong("the prompt is not whole")
        asked.append((ids[0][:-1], [each[-1] for each in ids]))
    compare("eval", found, [plain(model, *each) for each in asked])
    return asked


def fitted(base: Any, after: Callable[[], Any], *words: Any) -> Any:
    """Run ``calibtune fit`` and compare what it measured of held-out questions before and after.

    Args:
        base: Model before the fit.
        after: Loads what the fit wrote.
        words: Of the command line.

    Returns:
        The model that the fit wrote.
    """
    measured: list[tuple[Any, Any]] = []
    score = fitting.score

    def noted(model: Any, examples: Any, *more: Any) -> Any:
        measured.append((examples, score(model, examples, *more)))
        return measured[-1][1]

    with mock.patch.object(fitting, "score", noted):
        command(*words)
    models = [base, after()]
    answers = []
    for model, (examples, scores) in zip(models, measured, strict=False):
        answers.append([plain(model, list(e.input_ids), list(e.letter_ids)) for e in examples])
        found = [row[: len(letters)].tolist() for row, letters in zip(scores, answers[-1], strict=True)]
        compare("fit", found, answers[-1])
    if len(answers) == 2 and distance(*answers) < APART:
        raise Wrong("fit: the model did not change")
    return models[-1]


def load(folder: Path) -> Any:
    """Load a model as transformers does."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def cells(name: str, work: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield the columns with what runs them, one after another, in a folder of their own."""
    folder = save_architecture(name, work / "base")
    base, tokenizer = load(folder), AutoTokenizer.from_pretrained(folder)
    model, chat = ["--model", folder], ["--apply-chat-template"]
    adapter, whole, t = work / "adapter", work / "full", work / "t"
    tuned: list[Any] = []
    asked: list[tuple[list[int], list[int]]] = []

    def temperature() -> None:
        fitted(base, lambda: None, *FIT, *model, "--method", "temperature", "--output", t)

    def bake() -> None:
        manifest = t / "calibtune.json"
        values = json.loads(manifest.read_text())
        values["temperature"]["temperature"] = TEMPERATURE
        manifest.write_text(json.dumps(values))
        command("bake", "--artifact", t, "--output", work / "baked")
        alike("bake", load(work / "baked"), base, TEMPERATURE)

    def alike(what: str, written: Any, expected: Any, temperature: float = 1.0) -> None:
        """Compare plain passes of a model that a command wrote, which transformers loads by itself."""
        found = [plain(written, *each) for each in asked]
        compare(what, found, [plain(expected, *each, temperature) for each in asked])

    def lora() -> None:
        def adapted() -> Any:
            return PeftModel.from_pretrained(load(folder), adapter).eval()

        tuned.append(fitted(base, adapted, *LORA, *model, "--output", adapter))
        evaluated(tuned[0], tokenizer, "--artifact", adapter)

    def merge() -> None:
        command("merge", "--artifact", adapter, "--output", work / "merged")
        alike("merge", load(work / "merged"), tuned[0])

    def nf4() -> None:
        # Plain weights with the same answers, which transformers loads by itself, are what 4 bits are compared with.
        command(*LORA, *model, "--quantization", "nf4", "--output", work / "nf4")
        command("merge", "--artifact", work / "nf4", "--dequantized", "--output", work / "dequantized")
        evaluated(load(work / "dequantized"), tokenizer, "--artifact", work / "nf4")

    def full() -> None:
        evaluated(fitted(base, lambda: load(whole), *FULL, *model, "--output", whole), tokenizer, "--artifact", whole)

    yield "hf", lambda: asked.extend(evaluated(base, tokenizer, *model, *chat, "--backend", "hf"))
    yield "hf-prefix", lambda: evaluated(base, tokenizer, *model, *chat, "--backend", "hf-prefix")
    shots = ["--backend", "hf-prefix", "--num-fewshot", "2"]
    yield "few-shot", lambda: evaluated(base, tokenizer, *model, *chat, *shots)
    yield "temperature", temperature
    if (t / "calibtune.json").is_file():
        yield "bake", bake
    yield "lora", lora
    if (adapter / "calibtune.json").is_file():
        yield "merge", merge
    yield "nf4", nf4
    yield "full", full


def outcomes(name: str, work: Path) -> dict[str, str]:
    """Run an architecture through every command.

    Args:
        name: One of ``ARCHITECTURES``.
        work: Folder for models and results.

    Returns:
        Its row of the table.
    """
    row = {"model": name, **dict.fromkeys(CELLS, "none"), "says": ""}
    for cell, run in cells(name, work):
        try:
            run()
            row[cell] = "equal"
        except Refused as refusal:
            row[cell] = "refused"
            said = f"{cell}: {refusal}".replace(f"{work}/", "")
            row["says"] = "; ".join(filter(None, (row["says"], said)))
        except Exception as error:  # a crash is an outcome here, and a fault
            row[cell] = f"{type(error).__name__}: {error}"
    return row


@contextlib.contextmanager
def mirror() -> Iterator[Path]:
    """Run in a folder with a made-up ARC in the hub's layout, and a cache of its own."""
    import datasets

    before = Path.cwd()
    # So small a model's prompts would share nothing.
    shares = mock.patch.multiple(hf_prefix, CPU_LEAST=0, LAUNCHED=0)
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(datasets.config, "HF_DATASETS_CACHE", folder),
        # Each of a hundred commands would read the same questions again.
        mock.patch.object(datasets, "load_dataset", functools.cache(datasets.load_dataset)),
        shares,
    ):
        os.chdir(write_arc_mirror(Path(folder) / "hub", rows=8))
        try:
            yield Path(folder)
        finally:
            os.chdir(before)


def main(names: list[str]) -> None:
    """Print the outcomes as `docs/data/models.json` holds them."""
    with mirror() as folder:
        rows = [outcomes(name, folder / name) for name in names or ARCHITECTURES]
    about = {
        "model": "tiny random models, float32, CPU",
        "device": ", ".join(f"{name} {version(name)}" for name in ("transformers", "peft", "torch", "lm_eval")),
        "date": datetime.date.today().isoformat(),
        "command": "python tests/benchmarks/model_matrix.py > docs/data/models.json",
    }
    lines = ",\n".join(f"      {json.dumps(row)}" for row in rows)
    print(f'{{\n  "matrix": {{\n    "about": {json.dumps(about)},\n    "rows": [\n{lines}\n    ]\n  }}\n}}')


if __name__ == "__main__":
    main(sys.argv[1:])
