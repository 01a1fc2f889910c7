"""How the two checkpoints come about: pre-training by cross-entropy, then alignment by DPO; from the seed alone."""

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
    """One stage of training: AdamW, cosine schedule, fresh questions in every step."""

    steps: int
    #: Questions with options in a step; pre-training has as many without.
    questions: int
    learning_rate: float
    #: Added to the world's own seed, so that the stages see other questions.
    seed: int
    warmup_steps: int = 0


PRETRAINING = Stage(steps=3000, questions=64, learning_rate=2e-3, seed=1, warmup_steps=100)
ALIGNMENT = Stage(steps=150, questions=128, learning_rate=2e-4, seed=2)
#: DPO's beta, the price of leaving the reference model.
BETA = 0.1
#: Another number of threads sums in another order, and the weights then differ; one is as fast as two at this size.
THREADS = 1


def new_model(bank: PromptBank, seed: int = 0) -> LlamaForCausalLM:
    """An untrained Llama for the world's tokenizer, about half a million parameters, tied embeddings."""
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
    """The questions of each step of a stage; step i's depend on the seed and i alone."""

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
    """Log-probabilities of the whole vocabulary right after each prompt, shape (B, V)."""
    rows = torch.arange(len(logits))
    return functional.log_softmax(logits[rows, inputs["lengths"] - 1].float(), dim=-1)


def pretraining_loss(logits: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Cross-entropy of the answer, plus the mean cross-entropy of the prompt's own tokens, in nats.

    The answer has a weight of its own: as one token of thirty it would be learned last.

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
    """Direct preference optimization (Rafailov et al. 2023, Eq 7), for responses of one token.

    Args:
        policy: Log-probabilities under the model that is trained, shape (B, V).
        reference: Under the model that it started from, shape (B, V).
        chosen: Token ids of the preferred responses, shape (B,).
        rejected: Token ids of the others, shape (B,).
        beta: Weight of the distance to the reference, above 0.

    Returns:
        The mean loss in nats, ln 2 where the policy is the reference.
    """
    moved = policy - reference
    margin = moved.gather(1, chosen[:, None]) - moved.gather(1, rejected[:, None])
    return -functional.logsigmoid(beta * margin).mean()


class StepTrainer(Trainer):
    """The Trainer on batches that are drawn whole; its dataset's items are steps.

    Args:
        reference: With it, DPO against this model; without, pre-training.
        **kwargs: Passed on.
    """

    def __init__(self, reference: LlamaForCausalLM | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.reference = reference

    def compute_loss(
        self, model: Any, inputs: dict[str, torch.Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The stage's loss. Prompts are padded on the right, so that causal attention needs no mask."""
        logits = model(input_ids=inputs["input_ids"]).logits
        if self.reference is None:
            # Facts are learned without options first, as from text; letters alone stay at ln 4 for much longer.
            asked = {name.removeprefix("open_"): value for name, value in inputs.items() if name.startswith("open_")}
            open_logits = model(input_ids=asked["input_ids"]).logits
            return pretraining_loss(logits, inputs) + pretraining_loss(open_logits, asked)
        with torch.no_grad():
            before = at_answer(self.reference(input_ids=inputs["input_ids"]).logits, inputs)
        return dpo_loss(at_answer(logits, inputs), before, inputs["answer"], inputs["other"], BETA)


def train(
    model: LlamaForCausalLM, bank: PromptBank, stage: Stage, reference: LlamaForCausalLM | None = None
) -> LlamaForCausalLM:
    """Run one stage on the CPU, in float32.

    Args:
        model: Changed in place.
        bank: The world's prompts.
        stage: How long and with what.
        reference: The model that DPO starts from; pre-training where not given.

    Returns:
        The model.
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
    """Write a checkpoint with weights in float16, which the config asks to load as float32.

    Args:
        model: The model to write; it is not changed.
        bank: For its tokenizer.
        folder: Where to.

    Returns:
        The model as it is loaded from there, so that what follows starts from the very weights that were written.
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
    """Make both checkpoints again.

    The same machine, torch and number of threads give the same bytes; another machine, weights that differ by rounding
    which training then magnifies, and scores that agree within their sampling error.

    Args:
        bank: The world's prompts.
        output: The folder to write ``pretrained`` and ``aligned`` into.
        pretraining: The first stage.
        alignment: The second.

    Returns:
        Both folders.
    """
    pretrained, aligned = output / "pretrained", output / "aligned"
    reference = save(train(new_model(bank), bank, pretraining), bank, pretrained)
    policy = LlamaForCausalLM.from_pretrained(pretrained, dtype=torch.float32)
    save(train(policy, bank, alignment, reference.requires_grad_(False)), bank, aligned)
    return pretrained, aligned
