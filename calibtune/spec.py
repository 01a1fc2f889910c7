"""Name a model and how it is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Quantization = Literal["none", "nf4"]
Precision = Literal["auto", "bf16", "fp32"]


@dataclass(frozen=True)
class ModelSpec:
    """Name a model and how it is loaded; fit, eval, merge, bake, doctor and winrate share it."""

    #: Hub id or folder.
    name: str
    #: Branch, tag or commit on the hub.
    revision: str | None = None
    #: "nf4" holds the linear layers in 4-bit NormalFloat (QLoRA).
    quantization: Quantization = "none"
    #: Of the weights and of the forward pass; "auto": bf16 on an accelerator that has it, else fp32.
    precision: Precision = "auto"
    #: "cuda", "cpu", "mps"; None: found by itself.
    device: str | None = None
    #: Whether prompts are rendered with the tokenizer's chat template.
    apply_chat_template: bool = False
    #: File of a Jinja chat template, for a tokenizer that has none.
    chat_template: str | None = None
    #: Further arguments of the chat template, such as ``enable_thinking``.
    chat_template_args: dict[str, Any] = field(default_factory=dict)
    #: Run code that comes with the model.
    trust_remote_code: bool = False
