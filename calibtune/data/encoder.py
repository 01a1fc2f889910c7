"""Encode prompts and letters, from the tokens of the whole text."""

from __future__ import annotations

import inspect
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.huggingface import HFLM

from calibtune.data.ahead import TextsAhead
from calibtune.data.templates import limited
from calibtune.spec import ModelSpec
from harness_ext.encoding import split_whole


class Encoder(TextsAhead, HFLM):
    """Encode as the harness's hf backend does, without a model: chat template and tokenizer alone."""

    def __init__(self, tokenizer: Any, spec: ModelSpec | None = None) -> None:
        # HFLM's own constructor would load weights; these are all that encoding and templating read.
        self.tokenizer = tokenizer
        self.backend = "causal"
        self.add_bos_token = spec.add_bos_token if spec else None
        self.chat_template_args: dict[str, Any] = spec.chat_template_args if spec else {}
        self.custom_prefix_token_id = None
        # Asked for by the checks of tasks that are being evaluated in the same process.
        self._max_length = tokenizer.model_max_length

    def apply_chat_template(self, *args: Any, **options: Any) -> str:
        """Render a conversation as the harness does, within limits."""
        return limited(super().apply_chat_template)(*args, **options)

    def encode(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Return the token ids of a context and of its continuation, as our tasks split them in the harness."""
        return split_whole(self.tok_encode(context), self.tok_encode(context + continuation))

    def encode_as_harness(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Return token ids as the harness splits them for tasks that are not ours."""
        # Unwrapped: requests of our tasks are split otherwise while they are evaluated in the same process.
        encode = inspect.unwrap(TemplateLM._encode_pair)
        context_ids, continuation_ids = encode(self, context, continuation)
        return context_ids, continuation_ids
