"""``vllm``: letters scored by vLLM, one request a question.

lm_eval's own vLLM backend sends each question once for each letter and asks for the log-probabilities of the whole
prompt, for which vLLM leaves its prefix cache. Here a question is sent once, and vLLM gives the log-probabilities of
the letters as its next token. Prompts are encoded as the hf backend encodes them.

lm_eval 0.4.13 finds backends only in its own list, so `lm_eval --model vllm-letters` does not know this one;
`calibtune eval --backend vllm` does, and so does Python after ``import calibtune.evaluation.vllm_letters``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.registry import register_model
from vllm import SamplingParams

from calibtune.evaluation.vllm_checks import named_vllm
from calibtune.evaluation.whole_prompts import Tokens, WholePrompts

with named_vllm():
    from lm_eval.models.vllm_causallms import VLLM

#: Tokens that vLLM takes in one request's ``logprob_token_ids``.
MOST_TOKENS = 128


@register_model("vllm-letters")
class VllmLM(WholePrompts, VLLM):
    """Score short continuations with one request for each place that is read; otherwise lm_eval's ``vllm``.

    Takes the arguments of lm_eval's ``vllm``, which hands on those that are vLLM's own, and names an adapter as the hf
    backend does.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        peft: str | None = None,
        chat_template_args: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        engine = {
            "enable_prefix_caching": True,
            # Pickles would run code; the tokenizer is transformers', as in the hf backend.
            "load_format": "safetensors",
            "tokenizer_mode": "hf",
            # Letters in float32 where this version of vLLM can, as in the hf backend.
            "hf_overrides": {"head_dtype": "float32"},
        }
        super().__init__(pretrained, lora_local_path=peft, **engine | options)
        # lm_eval's constructor takes `enable_thinking` out of them.
        self.chat_template_args = chat_template_args or {}

    def _score_letters(self, requests: list[Any], disable_tqdm: bool) -> list[tuple[float, bool]]:
        #: Numbers of the prompts, each with a place to read at its end, and the tokens to read there.
        prompts: dict[Tokens, int] = {}
        wanted: list[set[int]] = []
        places: list[list[tuple[int, int]]] = []
        for _, context, continuation in requests:
            # vLLM keeps a place for the token that it generates.
            whole = (context + continuation)[1 - self.max_length :]
            places.append([])
            for token, end in zip(continuation, range(len(whole) - len(continuation), len(whole)), strict=True):
                number = prompts.setdefault(tuple(whole[:end]), len(prompts))
                if number == len(wanted):
                    wanted.append(set())
                wanted[number].add(token)
                places[-1].append((number, token))
        found = self._next_tokens(list(prompts), wanted)
        answers: list[tuple[float, bool]] = []
        for (key, _, _), read in zip(requests, places, strict=True):
            answers.append(
                (sum(found[n][0][token] for n, token in read), all(found[n][1] == token for n, token in read))
            )
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, answers[-1])
        return answers

    def _next_tokens(self, prompts: Sequence[Tokens], wanted: Sequence[set[int]]) -> list[tuple[dict[int, float], int]]:
        """Return the log-probabilities of the wanted next tokens of each prompt, and the likeliest token of all."""
        # Sorted, so that prompts that begin alike follow each other while the cache holds their beginning.
        asked = [
            (number, tokens[start : start + MOST_TOKENS])
            for number in sorted(range(len(prompts)), key=prompts.__getitem__)
            for tokens in [sorted(wanted[number])]
            for start in range(0, len(tokens), MOST_TOKENS)
        ]
        outputs = self._model_generate(
            requests=[list(prompts[number]) for number, _ in asked],
            generate=True,
            sampling_params=[
                SamplingParams(temperature=0, max_tokens=1, detokenize=False, logprob_token_ids=tokens)
                for _, tokens in asked
            ],
        )
        found: list[tuple[dict[int, float], int]] = [({}, -1)] * len(prompts)
        for (number, tokens), output in zip(asked, outputs, strict=True):
            (given,) = output.outputs[0].logprobs
            values = found[number][0] | {token: given[token].logprob for token in tokens}
            found[number] = values, output.outputs[0].token_ids[0]
        return found
