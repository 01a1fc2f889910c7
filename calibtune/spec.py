"""Describe a model and how to load it."""

from __future__ import annotations

from dataclasses import dataclass, field
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
