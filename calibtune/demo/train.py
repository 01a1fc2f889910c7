"""Train the two shipped checkpoints from a seed: pre-training, then alignment by DPO."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from calibtune.demo.prompts import PromptBank
from calibtune.demo.tokenizer import CONTEXT

if TYPE_CHECKING:
    from collections.abc import Sized

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """Configure a training stage: AdamW, cosine schedule, new questions in every step."""

    steps: int
    #: Questions with options per step; pre-training adds the same number without options.
    questions: int
    learning_rate: float
    #: Seed of the questions and of the Trainer; it differs between stages.
    seed: int
    warmup_steps: int = 0


PRETRAINING = Stage(steps=3000, questions=64, learning_rate=2e-3, seed=1, warmup_steps=100)
ALIGNMENT = Stage(steps=150, questions=128, learning_rate=2e-4, seed=2)
#: Beta of DPO, the weight of the distance to the reference model.
BETA = 0.1
#: The number of threads changes the order of sums and thus the weights; two are no faster than one.
THREADS = 1


def new_model(bank: PromptBank, seed: int = 0) -> LlamaForCausalLM:
    """Return an untrained Llama of about half a million parameters for the world's tokenizer."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(bank.tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=bank.tokenizer.eos_token_id,
        pad_token_id=bank.tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


class Steps(torch.utils.data.Dataset):
    """Draw the questions of each training step, which depend only on seed and step."""

    def __init__(self, bank: PromptBank, stage: Stage) -> None:
        self.bank, self.stage = bank, stage

    def __len__(self) -> int:
        return self.stage.steps

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        rng = np.random.RandomState([self.stage.seed, step])
        batches = {
            "": self.bank.draw(self.stage.questions, rng),
            "open_": self.bank.draw_open(self.stage.questions, rng),
        }
        return {
            prefix + name: torch.from_numpy(values)
            for prefix, batch in batches.items()
            for name, values in vars(batch).items()
        }


def at_answer(logits: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the log-probabilities of the token after each prompt, shape (B, V)."""
    rows = torch.arange(len(logits))
    return functional.log_softmax(logits[rows, inputs["lengths"] - 1].float(), dim=-1)


def pretraining_loss(logits: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Compute the cross-entropy of the answer plus the mean cross-entropy of the prompt, in nats.

    The answer is weighted separately: as one of about thirty tokens it would be learned last.

    Args:
        logits: Shape (B, T, V).
        inputs: A :class:`~calibtune.demo.prompts.Batch` as tensors.
    """
    answer = functional.nll_loss(at_answer(logits, inputs), inputs["answer"])
    ids = inputs["input_ids"]
    real = torch.arange(1, ids.shape[1]) < inputs["lengths"][:, None]
    return answer + functional.cross_entropy(logits[:, :-1][real].float(), ids[:, 1:][real])


def dpo_loss(
    policy: torch.Tensor, reference: torch.Tensor, chosen: torch.Tensor, rejected: torch.Tensor, beta: float
) -> torch.Tensor:
    """Compute the DPO loss (Rafailov et al. 2023, Eq 7) for responses of one token.

    Args:
        policy: Log-probabilities under the trained model, shape (B, V).
        reference: Log-probabilities under the reference model, shape (B, V).
        chosen: Token ids of the chosen responses, shape (B,).
        rejected: Token ids of the rejected responses, shape (B,).
        beta: Weight of the distance to the reference, above 0.

    Returns:
        The mean loss in nats; ln 2 if the policy equals the reference.
    """
    moved = policy - reference
    margin = moved.gather(1, chosen[:, None]) - moved.gather(1, rejected[:, None])
    return -functional.logsigmoid(beta * margin).mean()


class StepTrainer(Trainer):
    """Train on a dataset whose items are the whole batches of each step.

    Args:
        reference: Reference model of DPO; None means pre-training.
        **kwargs: Arguments of ``transformers.Trainer``.
    """

    def __init__(self, reference: LlamaForCausalLM | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.reference = reference

    def compute_loss(
        self, model: Any, inputs: dict[str, torch.Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Compute the stage's loss; right-padded prompts need no mask under causal attention."""
        logits = model(input_ids=inputs["input_ids"]).logits
        if self.reference is None:
            # Questions without options teach the facts; with letters alone, the loss stays near
            # ln 4 for much longer.
            asked = {name.removeprefix("open_"): value for name, value in inputs.items() if name.startswith("open_")}
            open_logits = model(input_ids=asked["input_ids"]).logits
            return pretraining_loss(logits, inputs) + pretraining_loss(open_logits, asked)
        with torch.no_grad():
            before = at_answer(self.reference(input_ids=inputs["input_ids"]).logits, inputs)
        return dpo_loss(at_answer(logits, inputs), before, inputs["answer"], inputs["other"], BETA)


def train(
    model: LlamaForCausalLM, bank: PromptBank, stage: Stage, reference: LlamaForCausalLM | None = None
) -> LlamaForCausalLM:
    """Run a training stage on the CPU, in float32.

    Args:
        model: The model, trained in place.
        bank: The world's prompts.
        stage: Steps, batch size, learning rate and seed.
        reference: Reference model of DPO; None means pre-training.

    Returns:
        The model, in evaluation mode.
    """
    dataset: Sized = Steps(bank, stage)
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                max_steps=stage.steps,
                per_device_train_batch_size=1,
                learning_rate=stage.learning_rate,
                lr_scheduler_type="cosine",
                warmup_steps=stage.warmup_steps,
                weight_decay=0.0,
                max_grad_norm=1.0,
                logging_steps=50,
                save_strategy="no",
                report_to="none",
                remove_unused_columns=False,
                use_cpu=True,
                disable_tqdm=True,
                seed=stage.seed,
            )
            StepTrainer(
                reference, model=model, args=arguments, train_dataset=dataset, data_collator=lambda items: items[0]
            ).train()
    finally:
        torch.set_num_threads(threads)
    return model.eval()


def save(model: LlamaForCausalLM, bank: PromptBank, folder: Path) -> LlamaForCausalLM:
    """Write a checkpoint with float16 weights, whose config says to load them as float32.

    Args:
        model: The model to write; its weights are not changed.
        bank: Holder of the tokenizer.
        folder: Folder of the checkpoint.

    Returns:
        The model loaded from the checkpoint, so that the next stage starts from its rounded weights.
    """
    weights = {name: value.to(torch.float16) for name, value in model.state_dict().items()}
    model.config.dtype, model.config.use_cache = torch.float32, True
    model.save_pretrained(folder, state_dict=weights)
    bank.tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def rebuild(
    bank: PromptBank,
    output: Path,
    pretraining: Stage = PRETRAINING,
    alignment: Stage = ALIGNMENT,
) -> tuple[Path, Path]:
    """Train both checkpoints from scratch.

    The same machine, torch and number of threads give the same bytes. On another machine, training
    amplifies rounding differences; the scores then agree within their sampling error.

    Args:
        bank: The world's prompts.
        output: Folder in which ``pretrained`` and ``aligned`` are written.
        pretraining: The first stage.
        alignment: The second stage.

    Returns:
        Folders of the pre-trained and the aligned checkpoint.
    """
    pretrained, aligned = output / "pretrained", output / "aligned"
    reference = save(train(new_model(bank), bank, pretraining), bank, pretrained)
    policy = LlamaForCausalLM.from_pretrained(pretrained, dtype=torch.float32)
    save(train(policy, bank, alignment, reference.requires_grad_(False)), bank, aligned)
    return pretrained, aligned
