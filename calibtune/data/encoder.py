"""Encode prompts and letters as the harness encodes them."""

from __future__ import annotations

from typing import Any

from lm_eval.models.huggingface import HFLM


class Encoder(HFLM):
    """The harness's HF backend without a model: its chat templating and its encoding, and nothing else."""

    def __init__(self, tokenizer: Any) -> None:
        # HFLM's own constructor would load weights; these are all that encoding and templating read.
        self.tokenizer = tokenizer
        self.backend = "causal"
        self.add_bos_token = None
        self.chat_template_args: dict[str, Any] = {}
        self.custom_prefix_token_id = None
        # Asked for by the checks of tasks that are being evaluated in the same process.
        self._max_length = tokenizer.model_max_length

    def encode(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Token ids of a context and of its continuation, split as the harness splits them."""
        return self._encode_pair(context, continuation)
