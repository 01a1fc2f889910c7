"""Describe a model and how to load it, and questions and where they come from."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Quantization = Literal["none", "nf4"]
Precision = Literal["auto", "bf16", "fp32"]


@dataclass(frozen=True)
class ModelSpec:
    """Describe a model and how to load it, for fit, eval, merge, bake, doctor and winrate."""

    #: Hub id or local folder.
    name: str
    #: Branch, tag or commit on the hub.
    revision: str | None = None
    #: "nf4" stores the linear layers in 4-bit NormalFloat (QLoRA).
    quantization: Quantization = "none"
    #: Precision of the weights and of the forward pass; "auto" is bf16 on an accelerator that has it, else fp32.
    precision: Precision = "auto"
    #: "cuda", "cpu" or "mps"; None selects the accelerator or the CPU.
    device: str | None = None
    #: Whether prompts are rendered with the tokenizer's chat template.
    apply_chat_template: bool = False
    #: File with a Jinja chat template, for a tokenizer without one.
    chat_template: str | None = None
    #: Additional arguments of the chat template, such as ``enable_thinking``.
    chat_template_args: dict[str, Any] = field(default_factory=dict)
    #: Whether prompts begin with the tokenizer's token for the beginning of a text; None: as the tokenizer does it.
    add_bos_token: bool | None = None
    #: Run code that comes with the model.
    trust_remote_code: bool = False


@dataclass(frozen=True)
class QuestionSpec:
    """Name the questions to fit on or to evaluate, for fit, eval and doctor."""

    #: Harness tasks.
    tasks: tuple[str, ...] = ()
    #: Folder of further task YAMLs.
    include_path: str | None = None
    #: A file or data set of one's own; see :func:`calibtune.data.rows.read_questions`.
    data: str | None = None
    #: Its columns, as :func:`calibtune.data.rows.parse_columns` reads them.
    columns: str = ""
    #: Leave out rows of ``data`` that cannot be used.
    skip_bad_rows: bool = False
    #: Ask the harness's tasks with our prompt and letters.
    as_letters: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the tasks, of which one is made from ``data``."""
        return (*self.tasks, *([data_name(self.data)] if self.data else []))


def data_name(data: str) -> str:
    """Return the name of the task that is made from a file or data set.

    Example:
        >>> data_name("my data/quiz 1.jsonl"), data_name("allenai/ai2_arc:ARC-Easy")
        ('quiz_1', 'ai2_arc_ARC-Easy')
    """
    name = re.sub(r"\.(jsonl|csv|parquet)$", "", data.rstrip("/"), flags=re.IGNORECASE)
    return re.sub(r"[^\w.-]+", "_", Path(name).name)
