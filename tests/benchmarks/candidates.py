"""Measure what might train a better calibrated adapter: other losses, other targets, distilled orders.

One process loads the model once. Each run trains a new adapter with calibtune's own trainer, in which the loss or the
targets are replaced, and appends a line to runs.jsonl: accuracy, conf-ECE, floor, excess and NLL in and out of the
domain, as it is and with a temperature fitted on held-out questions. Log-likelihoods are kept beside it. Several
processes with the same --output share the runs. What is done is not done again; after an error, run it again: the run
that failed is tried once more without CUDA graphs, and then left out. Start it in the folder of the data mirror.

    python tests/benchmarks/candidates.py run --model MODEL --output OUT
    python tests/benchmarks/candidates.py rows 1.5B=OUT      # into docs/data; then edit the group's `about`
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import gc
import json
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, lru_cache
from itertools import islice, pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.isotonic import IsotonicRegression
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import set_seed
from transformers.trainer_utils import SaveStrategy

from calibtune.data.examples import Prompts, in_orders
from calibtune.data.source import load_questions
from calibtune.data.tokens import PAD, TokenExample, tokenize
from calibtune.data.training_set import TrainingSet, option_order
from calibtune.models.heads import Batch, forward, head_is_last, letter_log_likelihoods, widen
from calibtune.models.loading import load_base
from calibtune.models.scores import score
from calibtune.recipe import Recipe
from calibtune.results.measures import floor_measures, harness_measures
from calibtune.tuning.estep import EStep
from calibtune.tuning.fit import prepared
from calibtune.tuning.inputs import Inputs, read_inputs
from calibtune.tuning.losses import CHUNK, calibration_loss, cft_loss
from calibtune.tuning.targets import target_probs
from calibtune.tuning.temperature import cross_fitted, fit_temperature
from calibtune.tuning.trainable import add_adapter
from calibtune.tuning.trainer import CalibrationTrainer, training_arguments
from harness_ext.binning import BinTable, FloatArray, IntArray
from harness_ext.calibration import letter_log_softmax, nll, top
from harness_ext.orders import averages
from harness_ext.ragged import ragged

TASKS = {"in": "mc_calib_indomain", "out": "mc_calib_arc_merged"}
RUNS, FAILURES = "runs.jsonl", "failures.jsonl"
DATA = Path(__file__).resolve().parents[2] / "docs" / "data"
#: Group in docs/data/reproduce.json and table in docs/data/tables.json.
GROUP = "trained-candidates"
#: Weights, chosen here: of MMCE, of KL to the untuned model, of the teacher.
MMCE, FORGETTING, TEACHER = 2.0, 0.1, 0.7
FOCAL, SMOOTHING = 2.0, 0.1


def one_hot(letters: torch.Tensor, gold: torch.Tensor) -> torch.Tensor:
    """Return 1 for the right letter and 0 for the others, shape (B, K)."""
    return (torch.arange(letters.shape[1], device=letters.device) == gold[:, None]).float()


def brier_loss(letters: torch.Tensor, gold: torch.Tensor) -> torch.Tensor:
    """Add to CFT the Brier score of the letters' softmax, shape (B,)."""
    return cft_loss(letters, gold) + calibration_loss(letters, one_hot(letters, gold))


def focal_loss(letters: torch.Tensor, gold: torch.Tensor) -> torch.Tensor:
    """Weight CFT by ``(1 - p)^2`` of the right letter's likelihood p (Lin et al. 2017), shape (B,)."""
    loss = cft_loss(letters, gold)
    return (1 - torch.exp(-loss)) ** FOCAL * loss


def mmce_loss(letters: torch.Tensor, gold: torch.Tensor) -> torch.Tensor:
    """Add to CFT the batch's weighted MMCE (Kumar et al. 2018, Eq 6; Laplacian kernel of width .4), shape (B,).

    It is 0 where the batch has right answers or wrong ones alone.
    """
    confidence, predicted = letters.softmax(1).max(1)
    right = (predicted == gold).float()
    count, others = right.sum(), (1 - right).sum()
    weight = right * (1 - confidence) / count.clamp(min=1) - (1 - right) * confidence / others.clamp(min=1)
    kernel = torch.exp((confidence[:, None] - confidence).abs() / -0.4)
    square = (weight[:, None] * weight * kernel).sum()
    both = ((count > 0) & (others > 0)).float()
    return cft_loss(letters, gold) + MMCE * both * (square.clamp(min=0) + 1e-10).sqrt()


def cross_entropy(letters: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return ``-sum_j target_j log pi(j | x)``, shape (B,)."""
    return -(target * letters).masked_fill(letters.isinf(), 0.0).sum(1)


def question_kl(untuned: torch.Tensor, states: torch.Tensor, head: Any, answer: torch.Tensor) -> torch.Tensor:
    """Return the mean KL divergence from the untuned model over a question's tokens, shape (B,).

    Args:
        untuned: The untuned model's states at every token, shape (B, T, H).
        states: The same of the model that is trained.
        head: Makes logits of states.
        answer: Place of each prompt's last token; prompts are padded on the right.
    """

    def of_chunk(untuned: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        before, after = (widen(head(each)).log_softmax(-1) for each in (untuned, states))
        return functional.kl_div(after, before, reduction="none", log_target=True).sum(-1)

    chunks = zip(untuned.flatten(0, 1).split(CHUNK), states.flatten(0, 1).split(CHUNK), strict=True)
    values = [checkpoint(of_chunk, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
    # The prompt's last token predicts the letter, which CFT's own loss is for.
    asked = torch.arange(states.shape[1], device=states.device) < answer[:, None]
    return (torch.cat(values).view(asked.shape) * asked).sum(1) / asked.sum(1).clamp(min=1)


@contextmanager
def untuned(model: Any) -> Iterator[None]:
    """Switch a PEFT model's adapter off, without a gradient."""
    model.base_model.disable_adapter_layers()
    try:
        with torch.no_grad():
            yield
    finally:
        model.base_model.enable_adapter_layers()


class OwnLoss(CalibrationTrainer):
    """Train CFT with another loss."""

    #: Given letters and gold, returns the loss of each question.
    letter_loss: Any = staticmethod(cft_loss)

    def batch_loss(self, letters: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the loss of each question of a batch."""
        loss: torch.Tensor = self.letter_loss(letters, batch["gold"])
        return loss

    def _loss(self, model: Any, batch: Batch) -> tuple[torch.Tensor, ...]:
        with self.accelerator.autocast():
            letters = letter_log_likelihoods(forward(model, batch)[0], batch["letter_ids"])
            loss = self.batch_loss(letters, batch).mean()
        return loss * batch.get("share", 1.0), letters.detach()


class Brier(OwnLoss):
    """Train CFT and the letters' Brier score."""

    letter_loss = staticmethod(brier_loss)


class Focal(OwnLoss):
    """Train a focal loss."""

    letter_loss = staticmethod(focal_loss)


class Mmce(OwnLoss):
    """Train CFT and MMCE."""

    letter_loss = staticmethod(mmce_loss)


class Forgetting(OwnLoss):
    """Train CFT and the KL divergence from the untuned model on the question's tokens."""

    def _loss(self, model: Any, batch: Batch) -> tuple[torch.Tensor, ...]:
        inner = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=True)
        with self.accelerator.autocast():
            everywhere = not head_is_last(model, batch)
            with untuned(inner):
                before = forward(model, batch, everywhere=everywhere)[1]
            logits, states, head = forward(model, batch, everywhere=everywhere)
            letters = letter_log_likelihoods(logits, batch["letter_ids"])
            values = cft_loss(letters, batch["gold"]) + FORGETTING * question_kl(before, states, head, batch["answer"])
        return values.mean() * batch.get("share", 1.0), letters.detach()


class Targets(OwnLoss):
    """Train the cross-entropy of letters against targets that are made before each epoch."""

    def batch_loss(self, letters: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the cross-entropy of each question."""
        return cross_entropy(letters, batch["target"])

    def begin_epoch(self, epoch: int) -> None:
        """Make the epoch's targets, after what a fit does there."""
        super().begin_epoch(epoch)
        rows = self.questions.train.rows
        right = ragged([float(i == row.gold) for i in range(len(row.letter_ids))] for row in rows)
        self.e_step.targets = torch.tensor(np.nan_to_num(self.epoch_targets(right))).float()

    def epoch_targets(self, right: FloatArray) -> FloatArray:
        """Return the targets in this epoch's order of options; ``right`` is 1 at the right letter."""
        raise NotImplementedError


class KnownSplit(Targets):
    """Smooth the labels of questions that the untuned model answers rightly.

    The split into known and unknown is that of CogCalib (arXiv 2505.20903), the smoothing a plain one.
    """

    known: np.ndarray | None = None

    def epoch_targets(self, right: FloatArray) -> FloatArray:
        """Return the right letter alone, or smoothed where it was known."""
        if self.known is None:
            # The adapter still adds nothing.
            predicted = top(np.exp(letter_log_softmax(self._score(self.questions.train.rows))))[1]
            self.known = predicted == np.nanargmax(right, axis=1)
        others = SMOOTHING / ((~np.isnan(right)).sum(1, keepdims=True) - 1)
        return np.where(self.known[:, None], np.where(right == 1, 1 - SMOOTHING, others + 0 * right), right)


class RunningMean(Targets):
    """Add the cross-entropy towards the mean of the probabilities that earlier epochs' training passes gave."""

    total: FloatArray | float = 0.0
    seen: FloatArray | float = 0.0

    def begin_epoch(self, epoch: int) -> None:
        """Add the last epoch's passes to the mean, and begin to note those of the next."""
        train = self.questions.train
        if self.e_step.passes is not None:
            passes = self.e_step.passes.cpu().double().numpy()
            noted = np.isfinite(passes).any(1)
            passes = np.where(np.isfinite(passes), passes, np.nan)
            probs = np.zeros(passes.shape)
            probs[noted] = np.nan_to_num(np.exp(letter_log_softmax(passes[noted])))
            self.total = self.total + in_own_order(train, probs, train.epoch)
            self.seen = self.seen + noted[:, None]
        super().begin_epoch(epoch)
        assert self.e_step.targets is not None
        self.e_step.scores, self.e_step.passes = np.full(self.e_step.targets.shape, np.nan), None

    def epoch_targets(self, right: FloatArray) -> FloatArray:
        """Return the right letter, plus the mean where there is one."""
        mean = self.total / np.maximum(self.seen, 1)
        return right if np.isscalar(mean) else right + in_present_order(self.questions.train, np.asarray(mean))


class Distilled(Targets):
    """Train towards a mixture of the label and another adapter's mean over all orders of the options."""

    #: Probabilities of each question's options in their own order, shape (N, K).
    teacher: FloatArray

    def epoch_targets(self, right: FloatArray) -> FloatArray:
        """Return the mixture."""
        return TEACHER * in_present_order(self.questions.train, self.teacher) + (1 - TEACHER) * right


def in_own_order(train: TrainingSet, values: FloatArray, epoch: int) -> FloatArray:
    """Put columns that are in an epoch's order of options into the questions' own order; both 0 where absent."""
    found = np.zeros(values.shape)
    for new, row, example in zip(found, values, train.examples, strict=True):
        order = option_order(train.seed, epoch, example.doc_hash, len(example.letters))
        new[order] = row[: len(order)]
    return found


def in_present_order(train: TrainingSet, values: FloatArray) -> FloatArray:
    """Put columns that are in the questions' own order into the present epoch's."""
    found = np.zeros(values.shape)
    for new, row, example in zip(found, values, train.examples, strict=True):
        order = option_order(train.seed, train.epoch, example.doc_hash, len(example.letters))
        new[: len(order)] = row[order]
    return found


class OwnAccuracy(EStep):
    """Give q_1 of a question by another estimate of accuracy at its confidence than equal-width bins."""

    #: Held-out questions' confidences, and whether each answer was right.
    counted: tuple[FloatArray, FloatArray]

    def take(self, epoch: int, table: BinTable, scores: FloatArray) -> None:
        """Compute the targets of an epoch."""
        super().take(epoch, table, scores)
        probs = np.exp(letter_log_softmax(scores))
        accuracy = self.accuracy(top(probs)[0])
        self.targets = torch.tensor(np.nan_to_num(target_probs(probs, accuracy, self.recipe.mapping))).float()

    def accuracy(self, confidence: FloatArray) -> FloatArray:
        """Estimate the accuracy at confidences."""
        raise NotImplementedError


class EqualMass(OwnAccuracy):
    """Take the accuracy of bins that hold as many held-out questions each."""

    def accuracy(self, confidence: FloatArray) -> FloatArray:
        """Return the accuracy of each confidence's bin."""
        held_out, right = self.counted
        order = np.argsort(held_out, kind="stable")
        bins = np.array_split(order, min(self.recipe.bins, len(order)))
        edges = [(held_out[low[-1]] + held_out[high[0]]) / 2 for low, high in pairwise(bins)]
        return np.array([right[each].mean() for each in bins])[np.searchsorted(edges, confidence, side="right")]


class Isotonic(OwnAccuracy):
    """Take an isotonic regression of being right on confidence."""

    def accuracy(self, confidence: FloatArray) -> FloatArray:
        """Return the regression's value at each confidence."""
        found: FloatArray = IsotonicRegression(out_of_bounds="clip").fit(*self.counted).predict(confidence)
        return found


class OwnEStep(CalibrationTrainer):
    """Train RCFT with another E-step."""

    own: type[OwnAccuracy]

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.e_step: OwnAccuracy = self.own(self.recipe)

    def _score(self, examples: Any) -> FloatArray:
        scores = super()._score(examples)
        if examples is self.questions.held_out:
            confidence, predicted = top(np.exp(letter_log_softmax(scores)))
            right = predicted == np.array([row.gold for row in examples])
            self.e_step.counted = confidence, right.astype(float)
        return scores


class EqualMassRcft(OwnEStep):
    """Train RCFT with equal-mass bins."""

    own = EqualMass


class IsotonicRcft(OwnEStep):
    """Train RCFT with isotonic regression."""

    own = Isotonic


class Variant(NamedTuple):
    """Hold what differs from calibtune's CFT or RCFT."""

    method: str
    trainer: type[CalibrationTrainer] = CalibrationTrainer
    fields: Mapping[str, Any] = MappingProxyType({})


#: By the name that the table shows; each seed's runs in this order, the slow ones first but the distilled one, whose
#: teacher is the run of RCFT.
VARIANTS = {
    "RCFT": Variant("rcft"),
    "CFT": Variant("cft"),
    "CFT, KL to the untuned model": Variant("cft", Forgetting),
    "RCFT, equal-mass bins": Variant("rcft", EqualMassRcft),
    "RCFT, isotonic": Variant("rcft", IsotonicRcft),
    "RCFT, lambda 1.8": Variant("rcft", fields={"lambda_": 1.8}),
    "CFT, running mean over orders": Variant("cft", RunningMean, {"epochs": 3}),
    "CFT, letter Brier": Variant("cft", Brier),
    "CFT, focal": Variant("cft", Focal),
    "CFT, MMCE": Variant("cft", Mmce),
    "CFT, known smoothed": Variant("cft", KnownSplit),
    "RCFT's orders distilled": Variant("cft", Distilled),
}


class Asked(NamedTuple):
    """Hold questions as tokens, and their right answers."""

    rows: list[TokenExample]
    gold: IntArray


class Bench:
    """Load the model and its questions once.

    Args:
        args: See :func:`main`.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.folder = args, Path(args.output)
        self.first = self.inputs(0)
        self.model = load_base(self.first.recipe.spec)

    def recipe(self, method: str, seed: int, **fields: Any) -> Recipe:
        """Return a method's recipe with calibtune's defaults otherwise."""
        given = {"model": self.args.model, "tasks": (TASKS["in"],), "apply_chat_template": True, "seed": seed}
        given |= {"held_out": self.args.held_out, "limit": self.args.questions}
        return prepared(Recipe(method=method, **given, **fields))

    @lru_cache(maxsize=1)  # noqa: B019  (there is one bench)
    def inputs(self, seed: int) -> Inputs:
        """Read the questions of a seed, which are the same for all methods."""
        return read_inputs(self.recipe("rcft", seed))

    @cached_property
    def evaluated(self) -> dict[str, Asked]:
        """Return the test questions."""
        return {key: self._asked(name) for key, name in TASKS.items()}

    def _asked(self, task: str) -> Asked:
        spec = dataclasses.replace(self.first.recipe, tasks=(task,)).questions
        examples = [
            Prompts(each, self.first.encoder, True).example(doc)
            for each in load_questions(spec)[1]
            for doc in islice(each.eval_docs, self.args.limit)
        ]
        rows = tokenize(examples, self.first.encoder, self.first.max_length)
        return Asked(rows, np.array([row.gold for row in rows]))

    def run(self, name: str, seed: int, graphs: bool) -> dict[str, Any]:
        """Train a variant and return its line; the log-likelihoods go to a file."""
        path = self.folder / f"{name.replace(' ', '-')}-{seed}.npz"
        if name == "base":
            scores, trained = self.scores(self.model, self.inputs(seed)), dict[str, Any]()
        else:
            with self.trained(name, seed, graphs) as (model, trained):
                scores = self.scores(model, self.inputs(seed))
                if name == "RCFT":
                    self.teach(model, seed)
        golds = {"held_out": self.inputs(seed).gold, **{key: asked.gold for key, asked in self.evaluated.items()}}
        arrays = {key: value.astype(np.float32) for key, value in scores.items()}
        np.savez(path, **arrays, **{f"{key}_gold": gold for key, gold in golds.items()})
        return {"variant": name, "seed": seed, **trained, **measured(scores, golds)}

    @contextmanager
    def trained(self, name: str, seed: int, graphs: bool) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Yield the model with a trained adapter, and what its training took; the adapter is gone afterwards."""
        variant, inputs = VARIANTS[name], self.inputs(seed)
        teacher = self.teacher(seed) if variant.trainer is Distilled else None
        own = {"liger_kernel": inputs.recipe.liger_kernel} | ({} if graphs else {"cuda_graphs": False})
        recipe = self.recipe(variant.method, seed, **own, **variant.fields)
        inputs.questions.train.set_epoch(0)
        set_seed(seed)
        model = add_adapter(self.model, recipe)
        with tempfile.TemporaryDirectory() as folder:
            arguments = training_arguments(recipe, Path(folder))
            arguments.save_strategy = SaveStrategy.NO
            trainer = variant.trainer(model, arguments, recipe, inputs.questions)
            if isinstance(trainer, Distilled):
                assert teacher is not None
                trainer.teacher = teacher
            started = time.perf_counter()
            loss = trainer.train().training_loss
            seconds = time.perf_counter() - started
        recorded = trainer._graphs is not None and trainer._graphs.records
        moved = float(sum(w.detach().norm() ** 2 for n, w in model.named_parameters() if "lora_B" in n)) ** 0.5
        yield (
            trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False),
            {"seconds": round(seconds, 1), "graphs": recorded, "loss": round(loss, 4), "adapter_norm": round(moved, 4)},
        )
        trainer.accelerator.free_memory()
        self.model = model.unload()
        del trainer, model
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def scores(self, model: Any, inputs: Inputs) -> dict[str, FloatArray]:
        """Return the log-likelihoods of held-out and test questions."""
        size = inputs.recipe.batch_size
        return {
            "held_out": score(model, inputs.held_out, PAD, size),
            **{key: score(model, asked.rows, PAD, size) for key, asked in self.evaluated.items()},
        }

    def teach(self, model: Any, seed: int) -> FloatArray:
        """Write and return the mean probabilities over all orders of the training questions' options."""
        inputs = self.inputs(seed)
        shown = [each for example in inputs.examples.train for each in in_orders(example, "all")]
        rows = score(model, tokenize(shown, inputs.encoder, inputs.max_length), PAD, inputs.recipe.batch_size)
        means = averages(rows, [len(example.letters) for example in inputs.examples.train], "all")
        probs = np.nan_to_num(np.exp(letter_log_softmax(means)))
        np.save(self.folder / f"teacher-{seed}.npy", probs)
        return probs

    def teacher(self, seed: int) -> FloatArray:
        """Return what :meth:`teach` wrote; where RCFT's run was another, train one."""
        path = self.folder / f"teacher-{seed}.npy"
        if path.exists():
            found: FloatArray = np.load(path)
            return found
        with self.trained("RCFT", seed, True) as (model, _):
            return self.teach(model, seed)


def measured(scores: dict[str, FloatArray], golds: dict[str, IntArray]) -> dict[str, Any]:
    """Return the numbers of held-out and test questions, with and without the T of the held-out ones."""
    temperature = fit_temperature(scores["held_out"], golds["held_out"]).value
    fitted = nll(cross_fitted(scores["held_out"], golds["held_out"]), golds["held_out"])
    found: dict[str, Any] = {
        "held_out": {"nll": nll(letter_log_softmax(scores["held_out"]), golds["held_out"])},
        "held_out_T": {"nll": fitted, "temperature": temperature},
    }
    for key in TASKS:
        for suffix, t in (("", 1.0), ("_T", temperature)):
            numbers = harness_measures(scores[key], golds[key], t, (10,))
            numbers |= floor_measures(scores[key], golds[key], t, (10,))
            found[key + suffix] = {
                "n": len(golds[key]),
                "accuracy": 100 * numbers["acc"],
                "conf_ece": numbers["conf_ece_10"],
                "floor": numbers["conf_ece_10_floor"],
                "excess": numbers["conf_ece_10_excess"],
                "nll": numbers["nll"],
                "letter_mass": numbers["letter_mass"],
            }
    return {key: {name: round(value, 6) for name, value in part.items()} for key, part in found.items()}


def lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines, empty where there is none."""
    return [json.loads(line) for line in path.read_text().splitlines() if line] if path.exists() else []


def add_line(path: Path, line: dict[str, Any]) -> None:
    """Append a line in one piece, so that processes do not mix theirs."""
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Yield whether this process alone has the file's lock, which ends with the process at the latest."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def run(args: argparse.Namespace) -> None:
    """Do all runs that no other process does or has done, seed by seed."""
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    names = args.variants.split(";") if args.variants else ["base", *VARIANTS]
    if unknown := set(names) - {"base", *VARIANTS}:
        raise SystemExit(f"no variant {unknown}; there are: {'; '.join(['base', *VARIANTS])}")
    bench: Bench | None = None
    for seed, name in [(int(seed), name) for seed in args.seeds.split(",") for name in names]:
        if time.time() > args.until:
            print("the time is over", flush=True)
            return
        key = {"variant": name, "seed": seed}
        with claimed(folder / f"{name.replace(' ', '-')}-{seed}.lock") as mine:
            failed = sum(key.items() <= line.items() for line in lines(folder / FAILURES))
            done = any(key.items() <= line.items() for line in lines(folder / RUNS))
            if not mine or done or failed > 1:
                continue
            bench = bench or Bench(args)
            try:
                line = bench.run(name, seed, graphs=not failed)
            except Exception:
                add_line(folder / FAILURES, {**key, "error": traceback.format_exc()})
                raise
            add_line(folder / RUNS, line)
        brief = [f"{part} {line[part]['accuracy']:.1f} / {line[part]['nll']:.3f}" for part in ("in", "out", "out_T")]
        print(time.strftime("%H:%M:%S"), f"{name}, seed {seed}: {'; '.join(brief)}", flush=True)


def table_rows(found: list[dict[str, Any]], model: str) -> list[dict[str, Any]]:
    """Return rows as docs/data/reproduce.json holds them, of which build_tables.py makes means and deviations."""
    order = ["base", *VARIANTS]
    found = sorted(found, key=lambda line: (order.index(line["variant"]), line["seed"]))
    return [
        {
            "line": f"{model}: {line['variant']}",
            "seed": line["seed"],
            "task": part.removesuffix("_T"),
            **({"scaled": True} if part.endswith("_T") else {}),
            **line[part],
        }
        for line in found
        for part in ("in", "in_T", "out", "out_T", "held_out", "held_out_T")
    ]


def write_rows(args: argparse.Namespace) -> None:
    """Put all models' rows into docs/data, with the table that shows them; a page then needs its markers."""
    found = [row for each in args.models for row in _rows_of(*each.split("=", 1))]
    about = {"model": "TODO", "questions": "TODO", "device": "TODO", "seeds": "TODO", "date": time.strftime("%Y-%m-%d")}
    rows = ",\n".join(f"      {json.dumps(row, ensure_ascii=False)}" for row in found)
    group = f'{{\n    "about": {json.dumps(about)},\n    "rows": [\n{rows}\n    ]\n  }}'
    for name, text in (("reproduce", group), ("tables", json.dumps(table()))):
        path = DATA / f"{name}.json"
        if GROUP in json.loads(path.read_text()):
            raise SystemExit(f"{path} has {GROUP}; take it out first")
        # The rest of the file keeps the form that it was written in.
        before = path.read_text().rstrip().removesuffix("}").rstrip()
        path.write_text(f'{before},\n  "{GROUP}": {text}\n}}\n')
    print(f"put <!-- table: {GROUP} --> and <!-- end --> into a page, and run python docs/build_tables.py")


def _rows_of(model: str, folder: str) -> list[dict[str, Any]]:
    return table_rows(lines(Path(folder) / RUNS), model)


def table() -> dict[str, Any]:
    """Return what docs/data/tables.json says of the table."""
    numbers = "{%s[accuracy]:.1f} / {%s[excess]:.3f} / {%s[nll]:.3f}"
    titles = {"in": "in", "in_T": "in, with T", "out": "out", "out_T": "out, with T"}
    columns = [["", "{line}"], *[[title, numbers.replace("%s", part)] for part, title in titles.items()]]
    columns += [["held-out NLL with T", "{held_out_T[nll]:.3f}"], ["T", "{held_out_T[temperature]:.2f}"]]
    return {"from": f"reproduce/{GROUP}", "by": "line", "key": "task", "columns": columns}


def main() -> None:
    """Run, or bring the numbers into docs/data."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run")
    runs.add_argument("--model", required=True)
    runs.add_argument("--output", required=True, help="folder")
    runs.add_argument("--variants", default="", help="names, separated by semicolons (default: all)")
    runs.add_argument("--seeds", default="0,1,2")
    runs.add_argument("--until", type=float, default=float("inf"), help="no run begins after this time in seconds")
    runs.add_argument("--limit", type=int, help="test questions of each task")
    runs.add_argument("--held-out", type=int, default=500)
    runs.add_argument("--questions", type=int, help="of the training pool, those held out included (default: all)")
    runs.set_defaults(do=run)
    rows = commands.add_parser("rows")
    rows.add_argument("models", nargs="+", metavar="NAME=OUT", help="each model's name in the table, and its runs")
    rows.set_defaults(do=write_rows)
    args = parser.parse_args()
    args.do(args)


if __name__ == "__main__":
    main()
