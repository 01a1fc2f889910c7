"""The ways that ``fit_speed.py`` measures: calibtune's own, as anyone writes it, TRL's, and the released code's."""

from __future__ import annotations

import dataclasses
import io
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate.utils import gather_object
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast, TrainerCallback

from calibtune.data.tokens import TokenExample
from calibtune.data.training_set import Questions
from calibtune.models.attention import attention_of_any_shape
from calibtune.recipe import Recipe
from calibtune.tuning.trainable import add_adapter
from calibtune.tuning.trainer import CalibrationTrainer, training_arguments

LETTERS = (32, 33, 34, 35)
#: Fewest steps that are measured before a limit of seconds ends a way.
FEWEST = 3


@dataclass
class Bench:
    """What a way is measured on."""

    base: Any
    rows: list[TokenExample]
    recipe: Recipe
    steps: int
    seconds: float
    warm: int
    #: Examples a second of RCFT, ours, by batch size, of all processes.
    rates: dict[int, float]

    @property
    def device(self) -> torch.device:
        return next(self.base.parameters()).device

    @property
    def mean(self) -> float:
        """Prompt tokens a row."""
        return sum(len(row.input_ids) for row in self.rows) / len(self.rows)


@dataclass
class Measured:
    """Steps after the warm-up: examples in each, seconds, and real prompt tokens."""

    batch: int
    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    loss: float = float("nan")
    first: float = float("nan")
    #: Floating-point operations for each parameter and token.
    operations: int = 4
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class Rows:
    """What the trainer asks of a training set, with rows made up."""

    rows: list[TokenExample]
    seed: int = 0
    epoch: int = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> TokenExample:
        return self.rows[index]


class Clock(TrainerCallback):
    """Notes when each step ended, on the accelerator's own clock, and ends the run after its seconds."""

    def __init__(self, bench: Bench) -> None:
        self.warm, self.limit, self.cuda = bench.warm, bench.seconds, bench.device.type == "cuda"
        self.walls: list[float] = []
        self.events: list[Any] = []

    def on_step_begin(self, args, state, control, **kwargs):
        if not self.walls:
            self.mark()

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= self.mark()

    def mark(self) -> bool:
        """Note the end of a step; whether it was the last within the limit."""
        self.walls.append(time.perf_counter())
        if self.cuda:
            self.events.append(torch.cuda.Event(enable_timing=True))
            self.events[-1].record()
        enough = len(self.walls) > self.warm + FEWEST
        return enough and self.walls[-1] - self.walls[0] > self.limit

    def measured(self, batch: int, tokens: list[int], loss: float) -> Measured:
        """The steps after the warm-up; ``tokens`` are those of each step."""
        if self.cuda:
            torch.cuda.synchronize()
            seconds = [a.elapsed_time(b) / 1e3 for a, b in pairwise(self.events)]
        else:
            seconds = [b - a for a, b in pairwise(self.walls)]
        start = min(self.warm, len(seconds) - 1)
        return Measured(batch, seconds[start:], tokens[start : len(seconds)], float(loss), seconds[0])


class Counted:
    """A collator that notes the real prompt tokens of each batch."""

    def __init__(self, collator: Callable[[Any], Any], length: Callable[[Any], int], parts: int = 1) -> None:
        self.collator, self.length, self.parts = collator, length, parts
        self.batches: list[int] = []

    def __call__(self, batch: Sequence[Any]) -> Any:
        self.batches.append(sum(self.length(row) for row in batch))
        return self.collator(batch)

    def tokens(self) -> list[int]:
        """Of each step."""
        return [sum(self.batches[i : i + self.parts]) for i in range(0, len(self.batches), self.parts)]


@contextmanager
def adapted(bench: Bench, attach: Callable[[Any, Recipe], Any]) -> Iterator[Any]:
    """The base model with a new adapter, the same in each way, taken off again afterwards."""
    torch.manual_seed(bench.recipe.seed)
    hooks = bench.base.get_input_embeddings()._forward_hooks
    before = dict(hooks)
    with torch.device(bench.device):
        model = attach(bench.base, bench.recipe)
    try:
        yield model.train()
    finally:
        bench.base.gradient_checkpointing_disable()
        hooks.clear()  # each of PEFT and Trainer adds one for checkpointing
        hooks.update(before)
        if hasattr(model, "unload"):
            model.unload()
        for name in ("forward", "peft_config", "_hf_peft_config_loaded"):
            bench.base.__dict__.pop(name, None)  # what TRL and PEFT leave behind
        bench.base.requires_grad_(False)


def usual_adapter(base: Any, recipe: Recipe) -> Any:
    """PEFT's adapter as PEFT makes it: float32 weights."""
    from peft import LoraConfig, get_peft_model

    options = {name: getattr(recipe, name) for name in ("lora_alpha", "lora_dropout")}
    return get_peft_model(
        base, LoraConfig(r=recipe.rank, target_modules="all-linear", task_type="CAUSAL_LM", **options)
    )


def run_trainer(trainer: Any, clock: Clock, length: Callable[[Any], int]) -> Measured:
    """Train with any Trainer, its messages left out."""
    counted = Counted(trainer.data_collator, length, trainer.args.gradient_accumulation_steps)
    trainer.data_collator = counted
    trainer.add_callback(clock)
    with redirect_stdout(io.StringIO()):
        trainer.train()
    losses = [entry[name] for entry in trainer.state.log_history for name in ("loss", "train_loss") if name in entry]
    batch = trainer.args.per_device_train_batch_size * counted.parts
    # The last entry is the whole run's mean.
    measured = clock.measured(batch, counted.tokens(), losses[:-1][-1] if len(losses) > 1 else losses[0])
    return dataclasses.replace(measured, extra={"losses": losses})


@attention_of_any_shape()
def ours(bench: Bench) -> Measured:
    """calibtune's own trainer, with the recipe's defaults."""
    recipe = bench.recipe
    with adapted(bench, add_adapter) as model, TemporaryDirectory() as folder:
        arguments = training_arguments(recipe, Path(folder))
        arguments.save_strategy, arguments.disable_tqdm = "no", True
        held_out = tuple(bench.rows[: 2 * recipe.batch_size * arguments.world_size])
        trainer = CalibrationTrainer(model, arguments, recipe, Questions(Rows(bench.rows), held_out, 0))
        measured = run_trainer(trainer, Clock(bench), lambda row: len(row.input_ids))
    if recipe.method == "rcft":
        tokens = sum(gather_object([sum(measured.tokens)]))
        bench.rates[recipe.batch_size] = tokens / sum(measured.seconds) / bench.mean
    return measured


def padded(rows: Sequence[TokenExample], device: torch.device) -> dict[str, torch.Tensor]:
    """A batch as anyone makes it, padded to its longest row."""
    ids = pad_sequence([torch.tensor(row.input_ids) for row in rows], batch_first=True)
    last = torch.tensor([len(row.input_ids) - 1 for row in rows])
    mask = (torch.arange(ids.shape[1]) <= last[:, None]).long()
    gold = torch.tensor([row.gold for row in rows])
    batch = {"input_ids": ids, "attention_mask": mask, "last": last, "gold": gold}
    return {name: value.to(device) for name, value in batch.items()}


def plain_loss(model: Any, batch: dict[str, torch.Tensor], recipe: Recipe, q: torch.Tensor) -> torch.Tensor:
    """CFT's or RCFT's loss from all logits, with the recipe's default terms."""
    ids, mask, last = batch["input_ids"], batch["attention_mask"], batch["last"]
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    at_answer = logits[torch.arange(len(ids), device=ids.device), last].float()
    letters = at_answer.log_softmax(-1)[:, list(LETTERS)]
    loss = -letters.gather(1, batch["gold"][:, None]).mean()
    if recipe.method == "cft":
        return loss
    labels = ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
    values = functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), labels.flatten(), reduction="none")
    question = (values.view(labels.shape).sum(1) / last).mean()
    return question + loss + recipe.lambda_ * (letters.softmax(1) - q).square().sum(1).mean()


def own_loop(bench: Bench, model: Any, batches: list[Any], loss_of: Callable[[Any], torch.Tensor]) -> Measured:
    """Train on lists of rows without any Trainer."""
    clock = Clock(bench)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=bench.recipe.learning_rate, fused=True)
    clock.mark()
    for rows in batches:
        with torch.autocast(bench.device.type, torch.bfloat16):
            loss = loss_of(padded(rows, bench.device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, bench.recipe.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        if clock.mark():
            break
    return clock.measured(len(rows), [sum(len(row.input_ids) for row in rows) for rows in batches], loss.detach())


def plain(bench: Bench) -> Measured:
    """Transformers and PEFT as anyone writes it: random batches, all logits, a float32 adapter under autocast."""
    size = bench.recipe.batch_size
    q = torch.full((size, len(LETTERS)), 1 / len(LETTERS), device=bench.device)
    batches = [bench.rows[i : i + size] for i in range(0, bench.steps * size, size)]  # rows are in random order
    with adapted(bench, usual_adapter) as model:
        return own_loop(bench, model, batches, lambda batch: plain_loss(model, batch, bench.recipe, q))


def authors(bench: Bench) -> Measured:
    """The released code: batch 2, padded to 2,048, logits at all places, two forward passes, checkpointing."""

    def loss_of(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        ids = functional.pad(batch["input_ids"], (0, 2048 - batch["input_ids"].shape[1]))
        first = model(input_ids=ids, use_cache=False).logits.float()
        second = model(input_ids=ids, use_cache=False).logits.float()
        places = torch.arange(len(ids), device=ids.device)
        letters = torch.tensor(LETTERS, device=ids.device)[batch["gold"]]
        loss = functional.cross_entropy(first[places, batch["last"]], letters)
        return loss + second[places, batch["last"]][:, list(LETTERS)].softmax(-1).pow(2).sum(1).mean()

    with adapted(bench, usual_adapter) as model:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
        batches = [bench.rows[i : i + 2] for i in range(0, 8, 2)]
        measured = own_loop(dataclasses.replace(bench, warm=1), model, batches, loss_of)
        # Padded to 2,048 tokens, each prompt costs as much as one of average length.
        return dataclasses.replace(measured, tokens=[round(2 * bench.mean)] * len(measured.seconds))


def trl(bench: Bench) -> Measured:
    """TRL's SFTTrainer, the letter as the completion: grouped by length, no packing, no checkpointing."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from trl import SFTConfig, SFTTrainer

    words = Tokenizer(models.WordLevel({"<unk>": 0, "<pad>": 1, "<eos>": 2}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
    ids = [[*row.input_ids, row.letter_ids[row.gold]] for row in bench.rows]
    data = Dataset.from_dict({"input_ids": ids, "completion_mask": [[0] * (len(row) - 1) + [1] for row in ids]})
    with adapted(bench, usual_adapter) as model, TemporaryDirectory() as folder:
        arguments = SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=bench.recipe.batch_size,
            max_steps=bench.steps,
            learning_rate=bench.recipe.learning_rate,
            bf16=True,
            use_cpu=bench.device.type == "cpu",
            gradient_checkpointing=False,
            train_sampling_strategy="group_by_length",
            max_length=None,
            completion_only_loss=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = SFTTrainer(model=model, args=arguments, train_dataset=data, processing_class=tokenizer)
        return run_trainer(trainer, Clock(bench), lambda row: len(row["input_ids"]) - 1)


TRAINING = {"plain": plain, "ours": ours, "authors": authors, "trl": trl}
