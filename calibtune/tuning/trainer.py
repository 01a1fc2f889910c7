"""Train a method's loss with transformers' Trainer, for RCFT with an E-step before each epoch."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import recursively_apply
from peft.helpers import disable_input_dtype_casting
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from calibtune.data.tokens import collate, common_width, parts
from calibtune.data.training_set import GroupedOrder, Questions, TrainingSet
from calibtune.errors import UserError, WorkFailed
from calibtune.models.loading import resolved_precision
from calibtune.models.scores import score
from calibtune.models.sharding import is_sharded
from calibtune.recipe import Recipe
from calibtune.results.measures import harness_measures
from calibtune.tuning.checkpoints import last_checkpoint, seal
from calibtune.tuning.checks import on_cpu
from calibtune.tuning.estep import EStep, score_bins
from calibtune.tuning.gradients import average, average_gradients, listed_once, share_weights
from calibtune.tuning.graphs import StepGraphs, graphs_serve, shortest_window
from calibtune.tuning.lora import lora_in_product
from calibtune.tuning.losses import method_loss
from calibtune.tuning.memory import most_tokens
from calibtune.tuning.progress import epoch_table
from calibtune.tuning.steps import Progress

logger = logging.getLogger(__name__)

#: Turn off Liger's own losses, because the method's loss is used.
LIGER = {"cross_entropy": False, "fused_linear_cross_entropy": False}

#: Trainer's arguments that only DistributedDataParallel reads.
WRAPPER = {"ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph"}


@dataclass(frozen=True)
class EndedStep:
    """Hold a step's numbers, which the GPU may still be computing."""

    step: int
    #: Loss and gradient norm, on the CPU once ``computed``.
    numbers: torch.Tensor
    #: None where there is nothing to wait for.
    computed: torch.cuda.Event | None
    #: Training questions of each part.
    rows: list[torch.Tensor]

    @classmethod
    def of(cls, step: int, loss: torch.Tensor, norm: Any, rows: list[torch.Tensor]) -> EndedStep:
        """Begin to copy the numbers to the CPU."""
        if hasattr(norm, "full_tensor"):  # FSDP 2 has a DTensor
            norm = norm.full_tensor()
        numbers = torch.stack([loss, torch.as_tensor(norm, device=loss.device)])
        if not numbers.is_cuda:
            return cls(step, numbers, None, rows)
        stream = torch.cuda.current_stream(numbers.device)
        return cls(step, numbers.to("cpu", non_blocking=True), stream.record_event(), rows)

    def check(self, train: TrainingSet, last_good: Callable[[], Path | None]) -> None:
        """Stop if loss or gradient norm is not finite.

        Args:
            train: The training questions.
            last_good: Returns the newest complete checkpoint.

        Raises:
            WorkFailed: The message names the step, its questions and the last good checkpoint.
        """
        if self.computed is not None:
            self.computed.synchronize()
        loss, norm = self.numbers.tolist()
        if math.isfinite(loss) and math.isfinite(norm):
            return
        rows = sorted(int(row) for part in self.rows for row in part)
        hashes = [train.examples[row].doc_hash[:12] for row in rows]
        raise WorkFailed(
            f"step {self.step}: the loss is {loss} and the gradient norm {norm}, on training questions {rows} "
            f"(hashes {', '.join(hashes)}); the last good checkpoint is {last_good() or 'none'}: lower "
            "--learning-rate, or use --precision fp32"
        )


class CalibrationTrainer(Trainer):
    """Train the loss of the recipe's method.

    Args:
        model: The model to train, with its adapter.
        args: See :func:`training_arguments`.
        recipe: Recipe of the fit.
        questions: Training and held-out questions.
        before: Scores of the held-out questions before training; None: they are scored again.
    """

    # The loss is a mean over the batch. With True, Trainer would not divide it by the number of
    # accumulated batches.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        recipe: Recipe,
        questions: Questions,
        before: np.ndarray | None = None,
    ) -> None:
        self.recipe, self.questions, self.before = recipe, questions, before
        #: NLL of the held-out questions before each epoch of this run.
        self.nll_before: dict[int, float] = {}
        self.e_step = EStep(recipe)
        self._losses: list[torch.Tensor] = []
        self._rows: list[torch.Tensor] = []
        self._ended: EndedStep | None = None
        self._graphs: StepGraphs | None = None
        self._order: GroupedOrder
        #: Moments of an adapter's weights, copied for the checkpoint that is being made.
        self._moments: Any = None
        self._writer = ThreadPoolExecutor(1)
        self._written: Future[None] | None = None
        # Sharded models need the same number of forward passes on every process, so none is split.
        self._most_tokens = math.inf if is_sharded() else most_tokens(questions.train.rows, recipe.batch_size)
        super().__init__(
            model=model,
            args=args,
            train_dataset=questions.train,
            data_collator=self._collate,
            callbacks=[Progress(), Epochs(self)],
        )
        for theirs in (ProgressCallback, PrinterCallback):
            self.remove_callback(theirs)
        #: Whether processes hold the whole model each, so that their gradients are averaged here.
        self._averages = self.args.world_size > 1 and not is_sharded()
        if self._averages:
            # Without a wrapper, see calibtune.tuning.gradients.
            self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)
        if recipe.cuda_graphs is None:
            self.recipe = dataclasses.replace(recipe, cuda_graphs=self._takes_graphs())

    def _takes_graphs(self) -> bool:
        """Return whether the fit takes CUDA graphs where the recipe says neither."""
        plain = not is_sharded() and not self.args.torch_compile
        return plain and graphs_serve(self.model, self.recipe) and self._longest() <= shortest_window(self.model)

    def _longest(self) -> int:
        return max(len(row.input_ids) for row in self.questions.train.rows)

    def _collate(self, rows: list[Any]) -> dict[str, Any]:
        """Return a batch in parts (see :func:`.parts`), and whether they have few shapes, as CUDA graphs need."""
        longest = max(self._order.longest.get(row.row, len(row.input_ids)) for row in rows)
        tokens = min(len(rows) * common_width(longest), self._most_tokens)
        few_shapes = bool(self.recipe.cuda_graphs) and (self._graphs is None or self._graphs.may_record(tokens))
        batch = collate(rows, self.questions.pad_id, few_shapes=few_shapes, least=longest if few_shapes else 0)
        batch |= self.e_step.batch_targets(batch)
        return {"parts": parts(batch, self._most_tokens, few_shapes=few_shapes), "few_shapes": few_shapes}

    def _get_train_sampler(self, train_dataset: Any = None) -> GroupedOrder:
        args = self.args
        passes = args.per_device_train_batch_size, args.gradient_accumulation_steps, args.world_size
        order = self._order = GroupedOrder(self.questions.train, *passes)
        if not len(order):
            raise UserError(
                f"a step takes {order.batch_size} questions (batch size x accumulation x processes), but there are "
                f"only {len(self.questions.train)} to train on; lower --batch-size or --gradient-accumulation"
            )
        return order

    def train(self, *args: Any, **options: Any) -> Any:
        """Train without PEFT's casts of inputs, because autocast already casts them to bfloat16.

        DeepSpeed has no autocast, so there the casts stay.
        """
        if self._averages:
            share_weights(self.model.parameters())
        casts = self.args.bf16 and not self.is_deepspeed_enabled
        whole = not is_sharded()
        casts_off = disable_input_dtype_casting(self.model, active=casts)
        with casts_off, lora_in_product(self.model, whole), listed_once(self.model, whole):
            return super().train(*args, **options)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Run Trainer's step, or a CUDA graph, for each part of the batch (see :func:`.parts`)."""
        graph_step = partial(self._graph_step, few_shapes=inputs["few_shapes"])
        run = graph_step if self.recipe.cuda_graphs else super().training_step
        losses = [run(model, part, num_items_in_batch) for part in inputs["parts"]]
        if self._averages and self.accelerator.sync_gradients:
            self._average()
        return torch.stack(losses).sum()

    def _average(self) -> None:
        """Average the gradients over the processes."""
        if self._graphs is None:
            average_gradients(self.model.parameters())
        else:  # which holds all of them in one tensor
            average(self._graphs.gradient)

    def _graph_step(self, model: Any, inputs: dict[str, Any], _: Any, few_shapes: bool) -> torch.Tensor:
        if not model.training:  # train() visits all modules, which takes as long as a graph of a small model
            model.train()
        batch = self._prepare_inputs(inputs)
        if self._graphs is None:
            model.train()  # a new adapter is in training mode, its base is not
            self._graphs = StepGraphs(self.model, lambda batch: self._part(model, batch), self._longest())
        loss, letters = self._graphs.run(batch, few_shapes)
        self._note(loss * self.args.gradient_accumulation_steps, batch, letters)
        return loss

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return 0, because counting would visit every module of the model in each step."""
        return 0

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        """Count each part's tokens where ``include_num_input_tokens_seen`` asks for it."""
        for part in inputs["parts"]:
            super()._track_num_input_tokens(part)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Compute the method's loss of a batch; see :func:`calibtune.tuning.losses.method_loss`."""
        loss, letters = self._loss(model, inputs)
        self._note(loss.detach(), inputs, letters)
        return (loss, {"letters": letters}) if return_outputs else loss

    def _part(self, model: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        """Compute a batch's share of the step's loss, and its letters' log-likelihoods."""
        loss, letters = self._loss(model, batch)
        return loss / self.args.gradient_accumulation_steps, letters

    def _loss(self, model: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        with self.accelerator.autocast():
            loss, letters = method_loss(model, batch, self.recipe)
        return loss * batch.get("share", 1.0), letters

    def _note(self, loss: torch.Tensor, batch: dict[str, Any], letters: torch.Tensor) -> None:
        self._losses.append(loss)
        self._rows.append(batch["row"])
        self.e_step.note(batch, letters)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Return Trainer's gradient norm, and stop if the numbers of the step before are not finite.

        A step's own numbers are read one step later, so that the GPU has work while they are read.

        Raises:
            WorkFailed: See :meth:`EndedStep.check`.
        """
        norm = super()._get_grad_norm(model, grad_norm)
        total = torch.stack(self._losses).sum()
        ended = EndedStep.of(self.state.global_step + 1, total, norm, self._rows)
        self._losses, self._rows = [], []
        self._check_last_step()
        self._ended = ended
        if self._written is not None and self._written.done():
            self.await_checkpoint()  # where it could not be written, no further step is trained in vain
        return norm

    def _check_last_step(self) -> None:
        if self._ended is not None:
            self._ended.check(self.questions.train, self._last_good)
        self._ended = None

    def _last_good(self) -> Path | None:
        self.await_checkpoint()
        return last_checkpoint(Path(self.args.output_dir))

    def _save_checkpoint(self, *args: Any, **options: Any) -> None:
        """Save a checkpoint, but none of weights that are not finite."""
        self._check_last_step()
        self.await_checkpoint()
        super()._save_checkpoint(*args, **options)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Save as Trainer does, but only copy an adapter's moments: they are written while training goes on.

        An 8B's adapter has moments of 3 GB. Those of a whole model may not fit into memory twice.
        """
        # With a limit of 1, Trainer removes the checkpoint before this one as soon as this method has ended.
        if is_sharded() or self.recipe.tuning == "full" or self.args.save_total_limit == 1:
            with _without_checksums():
                super()._save_optimizer_and_scheduler(output_dir)
        elif self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)
            self._moments = recursively_apply(lambda found: found.to("cpu", copy=True), self.optimizer.state_dict())

    def await_checkpoint(self) -> None:
        """Wait until the last checkpoint is complete; an error while it was written is raised here."""
        if self._written is not None:
            try:
                self._written.result()
            finally:
                if self._written.done():  # else Ctrl-C ended the wait
                    self._written = None

    @contextmanager
    def completing(self) -> Iterator[None]:
        """Complete the last checkpoint at the end of a ``with`` block, however it ends."""
        try:
            yield
        except BaseException:
            try:
                self.await_checkpoint()
            except Exception as error:
                logger.warning("the last checkpoint could not be written: %s", error)
            raise
        self.await_checkpoint()

    def begin_epoch(self, epoch: int) -> None:
        """Set the epoch's option order, log held-out metrics, and run the E-step of an RCFT fit."""
        train, recipe = self.questions.train, self.recipe
        train.set_epoch(epoch)
        held_out = self.before if epoch == 0 else None
        if held_out is None and self.questions.held_out:
            held_out = self._score(self.questions.held_out)
        if held_out is not None:
            self.show(epoch, held_out)
        if recipe.method != "rcft" or recipe.lambda_ == 0 or self.e_step.epoch == epoch:
            return
        latest = self.e_step.latest_scores() if recipe.e_step == "running" else None
        scores = self._score(train.rows) if latest is None else train.reordered(latest, self.e_step.epoch)
        counted, rows = (scores, train.rows) if recipe.e_step_rows == "train" else (held_out, self.questions.held_out)
        assert counted is not None
        self.e_step.take(epoch, score_bins(counted, np.array([row.gold for row in rows]), recipe.bins), scores)

    def complete_checkpoint(self) -> None:
        """Add the E-step's state to the latest checkpoint, and have the rest written while training goes on."""
        step = self.state.global_step
        folder = Path(self.args.output_dir) / f"checkpoint-{step}"
        self.e_step.save(folder)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self._written = self._writer.submit(_write_last, folder, step, self._moments)
            self._moments = None

    def end_epoch(self) -> None:
        """Check the last step; after the last epoch, log the held-out questions' numbers for tensorboard or wandb."""
        self._check_last_step()
        if self.recipe.report_to != "none" and self.state.global_step >= self.state.max_steps:
            if not self.questions.held_out:
                return
            gold = np.array([row.gold for row in self.questions.held_out])
            numbers = harness_measures(self._score(self.questions.held_out), gold, bins=(self.recipe.bins,))
            self.log({f"held_out_{name}": value for name, value in numbers.items()})

    def _score(self, examples: Any) -> np.ndarray:
        return score(self.model_wrapped, examples, self.questions.pad_id, self.args.per_device_train_batch_size)

    def show(self, epoch: int, scores: np.ndarray) -> None:
        """Log the metrics of the held-out questions, also to tensorboard or wandb."""
        gold = np.array([row.gold for row in self.questions.held_out])
        numbers = harness_measures(scores, gold, bins=(self.recipe.bins,))
        self.nll_before[epoch] = numbers["nll"]
        if self.recipe.report_to != "none":
            self.log({f"held_out_{name}": value for name, value in numbers.items()})
        if self.is_world_process_zero():
            logger.info(epoch_table(epoch, score_bins(scores, gold, self.recipe.bins), numbers, self.recipe.bins))


@contextmanager
def _without_checksums() -> Iterator[None]:
    """Keep torch.save from computing checksums, because seal() computes those of all files."""
    asked = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(asked)


def _write_last(folder: Path, step: int, moments: Any) -> None:
    """Write an adapter's moments, or nothing where Trainer has saved them, and mark the checkpoint as complete."""
    if moments is not None:
        with _without_checksums():
            torch.save(moments, folder / OPTIMIZER_NAME)
    seal(folder, step)


class Epochs(TrainerCallback):
    """Call the trainer when an epoch begins and after a checkpoint is saved."""

    def __init__(self, trainer: CalibrationTrainer) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Call :meth:`CalibrationTrainer.begin_epoch` unless resumed within an epoch."""
        done = state.epoch or 0.0
        epoch = int(done + 1e-6)
        if done - epoch > 1e-6:
            # Resumed within an epoch: the E-step's state was loaded with the checkpoint.
            self.trainer.questions.train.set_epoch(epoch)
        else:
            self.trainer.begin_epoch(epoch)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See :meth:`CalibrationTrainer.end_epoch`."""
        self.trainer.end_epoch()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Call :meth:`CalibrationTrainer.complete_checkpoint`."""
        self.trainer.complete_checkpoint()


class OneGpu(TrainingArguments):
    """Configure Trainer to use one GPU per process.

    With several visible GPUs, Trainer would use DataParallel, which changes the batch size and does
    not support adapters whose precision differs from the base model's.
    """

    @property
    def n_gpu(self) -> int:
        """Return the number of GPUs that this process uses, at most 1."""
        return min(super().n_gpu, 1)


def training_arguments(recipe: Recipe, folder: Path) -> TrainingArguments:
    """Return the recipe as Trainer's arguments; checkpoints go to ``folder``.

    Raises:
        UserError: The recipe's ``training_arguments`` contain an argument that another option sets,
            or that Trainer does not have.
    """
    ours: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": recipe.batch_size,
        "gradient_accumulation_steps": recipe.gradient_accumulation,
        "num_train_epochs": recipe.epochs,
        "max_steps": recipe.max_steps,
        "learning_rate": recipe.learning_rate,
        "warmup_steps": recipe.warmup_ratio,
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.max_grad_norm,
        "bf16": resolved_precision(recipe.spec) == "bf16",
        "use_cpu": on_cpu(recipe.device),
        "seed": recipe.seed,
        "report_to": recipe.report_to,
        "save_strategy": "steps" if recipe.save_every else "epoch",
        "save_steps": recipe.save_every or 500,
        "use_liger_kernel": bool(recipe.liger_kernel),
        "liger_kernel_config": LIGER,
        "remove_unused_columns": False,
    }
    if recipe.gradient_checkpointing:
        ours |= {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    defaults: dict[str, Any] = {
        "lr_scheduler_type": "cosine",
        "logging_steps": 10,
        "logging_nan_inf_filter": False,
        "save_total_limit": 2,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "accelerator_config": {"non_blocking": torch.cuda.is_available()},
    }
    given = recipe.training_arguments
    known = {item.name for item in dataclasses.fields(TrainingArguments)}
    if taken := sorted(given.keys() & ours.keys()):
        raise UserError(
            f"--training-arguments cannot set {', '.join(taken)}; use calibtune's own options for it, see "
            "`calibtune fit --help`"
        )
    if idle := sorted(name for name in given if name in WRAPPER):
        raise UserError(
            f"--training-arguments: {', '.join(idle)} would do nothing, since gradients are averaged without "
            "DistributedDataParallel; leave it out"
        )
    if unknown := sorted(given.keys() - known):
        raise UserError(
            f"--training-arguments: transformers.TrainingArguments has no {', '.join(unknown)}; leave it out"
        )
    return OneGpu(**(defaults | given | ours))
