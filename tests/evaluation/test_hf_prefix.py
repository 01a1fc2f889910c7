from unittest.mock import Mock

import numpy as np
import pytest
from harness import evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tiny import save_tiny

from calibtune.evaluation import hf_prefix
from calibtune.evaluation.hf_letters import Cluster, LetterLM, copied, later
from calibtune.evaluation.hf_prefix import PrefixLM, clusters
from calibtune.models.prefix import prefix_cache

pytestmark = pytest.mark.usefixtures("mirror")

OPTIONS = {"device": "cpu", "dtype": "float32", "batch_size": 4}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("model"), context=2048))


def loglikelihoods(lm, **options):
    run = evaluate(["mc_calib_arc"], lm, **options)
    samples = sorted(run["samples"]["mc_calib_arc"], key=lambda sample: sample["doc_id"])
    return [response[0] for sample in samples for response in sample["resps"]]


def request_of(pair):
    return Instance("loglikelihood", {}, pair, idx=0, doc_id=0, task_name="")


MULTITURN = {"num_fewshot": 3, "apply_chat_template": True, "fewshot_as_multiturn": True}


@pytest.mark.parametrize(
    "options",
    [
        *(
            pytest.param(each, marks=pytest.mark.slow)
            for each in ({}, {"apply_chat_template": True}, {"num_fewshot": 3})
        ),
        MULTITURN,
    ],
)
def test_log_likelihoods_equal_the_stock_backends(model, options):
    stock, *ours = (loglikelihoods(lm(pretrained=model, **OPTIONS), **options) for lm in (HFLM, LetterLM, PrefixLM))
    for found in ours:
        np.testing.assert_allclose([v for v, _ in found], [v for v, _ in stock], atol=1e-4)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in stock]
        assert len(found) > 80


def test_shared_few_shot_examples_are_computed_once(model, monkeypatch):
    counted = {}
    for lm in (HFLM, PrefixLM):
        made = lm(pretrained=model, **OPTIONS)
        forward, tokens = type(made.model).forward, []

        def watched(self, input_ids=None, *args, forward=forward, tokens=tokens, **kwargs):
            tokens.append(input_ids.numel())
            return forward(self, input_ids, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(type(made.model), "forward", watched)
            loglikelihoods(made, num_fewshot=5)
        counted[lm] = sum(tokens)
    assert counted[PrefixLM] < counted[HFLM] / 3


def test_continuations_of_several_tokens_and_cut_prompts_equal_the_stock_backends(model):
    shared = "You answer multiple-choice questions. " * 3
    requests = [(f"{shared}Which {n}?", text) for n in range(5) for text in (" A", " option a", " the letter")]
    requests += [(shared * 40 + f" {n}", " B") for n in range(3)]
    instances = [request_of(request) for request in requests]
    found = [lm(pretrained=model, max_length=300, **OPTIONS).loglikelihood(instances) for lm in (HFLM, PrefixLM)]
    np.testing.assert_allclose([v for v, _ in found[1]], [v for v, _ in found[0]], atol=1e-4)


def test_models_of_unknown_code_give_the_same_log_likelihoods(model, monkeypatch):
    known = loglikelihoods(PrefixLM(pretrained=model, **OPTIONS), num_fewshot=2)
    monkeypatch.setattr("calibtune.evaluation.hf_letters.output_layer", lambda model: None)
    unknown = loglikelihoods(PrefixLM(pretrained=model, **OPTIONS), num_fewshot=2)
    np.testing.assert_allclose([v for v, _ in unknown], [v for v, _ in known], atol=1e-5)


REMOTE = """
from transformers import LlamaConfig, LlamaForCausalLM

class Config(LlamaConfig):
    model_type = "remote"

class Remote(LlamaForCausalLM):
    config_class = Config

    def forward(self, input_ids=None, logits_to_keep=0, **kwargs):
        return super().forward(input_ids=input_ids, logits_to_keep=KEPT, **kwargs)
"""


def remote_code(folder, kept):
    """A model that comes with code of its own, which ignores what places it is asked for."""
    import json

    save_tiny(folder, context=2048)
    (folder / "remote.py").write_text(REMOTE.replace("KEPT", kept))
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "remote.Config", "AutoModelForCausalLM": "remote.Remote"}
    config |= {"model_type": "remote", "architectures": ["Remote"], "auto_map": names}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize("backend", [LetterLM, PrefixLM])
def test_remote_code_that_ignores_the_places_asked_for_gives_the_stock_backends_numbers(tmp_path, backend):
    folder = remote_code(tmp_path / "model", "0")
    stock, ours = (
        loglikelihoods(lm(pretrained=folder, trust_remote_code=True, **OPTIONS), num_fewshot=2)
        for lm in (HFLM, backend)
    )
    np.testing.assert_allclose([v for v, _ in ours], [v for v, _ in stock], atol=1e-4)


@pytest.mark.parametrize("backend", ["hf", "hf-prefix"])
def test_remote_code_that_gives_other_places_is_refused_by_eval(tmp_path, capsys, backend):
    from calibtune.__main__ import main

    folder = remote_code(tmp_path / "model", "1")
    words = ["eval", "--model", folder, "--trust-remote-code", "--tasks", "mc_calib_arc", "--device", "cpu"]
    assert main([*words, "--backend", backend, "--output", str(tmp_path / "out")]) == 2
    assert "the model's own code gave logits of shape" in capsys.readouterr().err


@pytest.mark.parametrize("backend", ["hf", "hf-prefix"])
def test_eval_reads_the_letters_of_a_bfloat16_model_in_float32(tmp_path, backend, capsys):
    import json

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from calibtune.__main__ import main
    from calibtune.results.samples import find_samples

    folder = str(save_tiny(tmp_path / "model", context=2048))
    words = ["eval", "--model", folder, "--tasks", "mc_calib_arc", "--device", "cpu", "--precision", "bf16"]
    # One prompt at a time, as below: in bfloat16 a batch's states are others.
    assert main([*words, "--batch-size", "1", "--backend", backend, "--output", str(tmp_path / "out")]) == 0
    assert "tied for first place" not in capsys.readouterr().err
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    seen = []
    model.lm_head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    (path,) = find_samples(tmp_path / "out")
    apart = []
    for sample in map(json.loads, path.read_text().splitlines()[:8]):
        pairs = [(pair["arg_0"], pair["arg_1"]) for pair in sample["arguments"].values()]
        with torch.no_grad():
            rounded = model(**tokenizer(pairs[0][0], return_tensors="pt")).logits[0, -1].float().log_softmax(-1)
        precise = (seen[-1][0, -1].float() @ model.lm_head.weight.float().T).log_softmax(-1)
        ids = [tokenizer(letter)["input_ids"][0] for _, letter in pairs]
        found = torch.tensor([float(response[0][0]) for response in sample["resps"]])
        if backend == "hf":
            torch.testing.assert_close(found, precise[ids], rtol=0, atol=1e-4)
        apart.append([(found - values[ids]).abs().mean().item() for values in (precise, rounded)])
    precise, rounded = np.mean(apart, axis=0)
    assert precise < rounded


@pytest.mark.slow
@pytest.mark.parametrize("size", ["auto", "auto:2"])
def test_the_largest_batch_is_found_for_letters_too(model, size):
    lm = LetterLM(pretrained=model, **{**OPTIONS, "batch_size": size}, max_batch_size=8)
    known = loglikelihoods(LetterLM(pretrained=model, **OPTIONS))
    np.testing.assert_allclose([v for v, _ in loglikelihoods(lm)], [v for v, _ in known], atol=1e-4)
    assert list(lm.batch_sizes.values()) == [8]


@pytest.mark.parametrize("options", [{"add_bos_token": True}, {"add_bos_token": False}])
def test_texts_are_encoded_ahead_as_the_stock_backend_encodes_them(model, monkeypatch, options):
    bos = HFLM(pretrained=model, **OPTIONS).tokenizer.bos_token or "<s>"
    pairs = [("Which? ", "A"), ("Which? ", "B"), (f"{bos}Which?", " A"), ("", "A B"), ("Why?\n\n", " C")]
    instances = [request_of(pair) for pair in pairs]
    seen, encoded = [], []
    for lm in (HFLM, LetterLM):
        made = lm(pretrained=model, **OPTIONS, **options)
        monkeypatch.setattr(made, "_loglikelihood_tokens", lambda requests, **_: seen.append(requests))
        one_by_one = Mock(wraps=made.tokenizer.encode)
        monkeypatch.setattr(made.tokenizer, "encode", one_by_one)
        made.loglikelihood(instances)
        encoded.append(one_by_one.call_count)
    assert [(request, context + letter) for request, context, letter in seen[1]] == [
        (request, context + letter) for request, context, letter in seen[0]
    ]
    assert seen[1][:4] == seen[0][:4]
    # The blank lines before " C" are the context's here.
    assert len(seen[1][4][2]) < len(seen[0][4][2])
    # The empty prompt's continuation, and whether the tokenizer appends anything.
    assert encoded == [9, 3]


def test_a_batch_has_no_more_to_compute_or_to_keep_than_a_stock_one(model):
    lm = PrefixLM(pretrained=model, **OPTIONS)
    cluster = Cluster(shared=90, prompts=((1,) * 100,) * 200)
    cache = prefix_cache(lm._forward, (1,) * 90, lm.device, keeps_logits=True)
    kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers) / 90
    made = lm.model.config.vocab_size * 4
    assert (kept, made) == (256, 1556)  # a token's keys and values take .165 of its log-probabilities, more than .1
    assert [len(batch) for batch in lm._batches(cluster, cache, 8)] == [800 // 17] * 4 + [12]
    lm.model.config.vocab_size *= 10  # .0165 of them: now computing decides, ten tokens of a hundred
    assert [len(batch) for batch in lm._batches(cluster, cache, 8)] == [80, 80, 40]
    assert {len(batch) for batch in lm._batches(cluster, None, 8)} == {8}
    lm.model.config.vocab_size = int(kept / 4 / 2)  # keys and values of a token take two tokens' log-probabilities
    assert {len(batch) for batch in lm._batches(cluster, cache, 8)} == {8}


def test_a_batch_is_waited_for_when_the_next_one_is_under_way(model, monkeypatch):
    events, start = [], LetterLM._answers

    def noted(self, prompts, *more):
        events.append(f"start {len(prompts)}")
        finish = start(self, prompts, *more)
        return lambda: events.append(f"wait {len(prompts)}") or finish()

    monkeypatch.setattr(LetterLM, "_answers", noted)
    lm = LetterLM(pretrained=model, **{**OPTIONS, "batch_size": 3})
    pairs = [(f"Which of these is the right one? {n}", f" {letter}") for n in range(8) for letter in "AB"]
    found = lm.loglikelihood([request_of(pair) for pair in pairs])
    assert events == ["start 3", "start 3", "wait 3", "start 2", "wait 3", "wait 2"]
    events.clear()
    alone = lm.loglikelihood([request_of(pair) for pair in pairs[-2:]])
    assert events == ["start 1", "wait 1"]
    np.testing.assert_allclose([v for v, _ in alone], [v for v, _ in found[-2:]], atol=1e-5)


@pytest.mark.accelerator
def test_nothing_waits_for_a_gpu_between_a_batchs_numbers_and_its_answers():
    import torch

    torch.cuda.set_sync_debug_mode("error")
    try:
        numbers = copied([[1, 2], [3, 4]], torch.device("cuda"))
        wait = later(numbers.double().sum(0))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert wait() == [4.0, 6.0]


def test_long_responses_take_the_stock_way(model, monkeypatch):
    monkeypatch.setattr(PrefixLM, "_answers", lambda *_: pytest.fail("took the short way"))
    request = request_of(("Which?", " option" * 30))
    ((value, _),) = PrefixLM(pretrained=model, **OPTIONS).loglikelihood([request])
    assert value < 0


@pytest.mark.parametrize("backend", [LetterLM, PrefixLM])
def test_long_responses_change_no_letters_answer(model, backend):
    lm = backend(pretrained=model, **{**OPTIONS, "dtype": "bfloat16"})
    letters = [request_of((f"Which of these is the right one? {n}", f" {letter}")) for n in range(6) for letter in "AB"]
    alone = lm.loglikelihood(letters)
    response = request_of(("Which?", " option" * 30))
    beside = lm.loglikelihood([*letters[:5], response, *letters[5:]])
    assert beside[:5] + beside[6:] == alone
    assert [beside[5]] == HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, **OPTIONS).loglikelihood([response])


@pytest.mark.parametrize("seed", range(20))
def test_every_prompt_is_in_one_cluster_and_begins_as_it_says(seed):
    rng = np.random.default_rng(seed)
    heads = [tuple(rng.integers(9, size=n).tolist()) for n in (0, 5, 30, 31, 60)]
    prompts = list(
        {heads[rng.integers(5)] + tuple(rng.integers(9, size=1 + rng.integers(8)).tolist()) for _ in range(60)}
    )
    found = list(clusters(prompts, 1))
    assert sorted(p for cluster in found for p in cluster.prompts) == sorted(prompts)
    for cluster in found:
        assert {p[: cluster.shared] for p in cluster.prompts} == {cluster.prompts[0][: cluster.shared]}
        assert all(len(p) > cluster.shared for p in cluster.prompts)
        assert cluster.shared == 0 or cluster.shared >= 16
    assert any(cluster.shared >= 30 and len(cluster.prompts) > 2 for cluster in found)


def test_clusters_that_save_too_little_are_put_together_again():
    system = tuple(range(20))
    questions = [(*system, *(100 * n + i for i in range(40)), order) for n in range(10) for order in range(4)]
    assert [(c.shared, len(c.prompts)) for c in clusters(questions, 1)] == [(60, 4)] * 10
    assert [(c.shared, len(c.prompts)) for c in clusters(questions, 1, least=181)] == [(20, 40)]
    assert [(c.shared, len(c.prompts)) for c in clusters(questions, 1, least=1000)] == [(0, 40)]


def test_a_small_models_prompts_share_what_saves_more_than_two_passes_take(model, monkeypatch):
    lm = PrefixLM(pretrained=model, **OPTIONS)
    weights = lm.model.num_parameters()
    questions = [(*range(20), *(100 * n + i for i in range(40)), order) for n in range(10) for order in range(4)]
    monkeypatch.setattr(hf_prefix, "CPU_LEAST", 64)
    for launched, found in ((0, 60), (116 * weights, 60), (117 * weights, 20), (780 * weights, 0)):
        monkeypatch.setattr(hf_prefix, "LAUNCHED", launched)
        assert {c.shared for c in lm._clusters(questions, 1)} == {found}


@pytest.mark.parametrize("shared", [0, 90])
def test_a_batch_of_one_is_one_question(model, shared):
    lm = PrefixLM(pretrained=model, **OPTIONS)
    lm.least_tokens = 2500
    prompts = tuple((1,) * n for n in (100, 95, 95, 95))
    cache = prefix_cache(lm._forward, (1,) * shared, lm.device, keeps_logits=True) if shared else None
    assert lm._batches(Cluster(shared, prompts), cache, 1) == [[0], [1], [2], [3]]


def test_batches_of_short_prompts_are_filled_up_to_the_least_tokens(model):
    lm = PrefixLM(pretrained=model, **OPTIONS)
    cluster = Cluster(shared=0, prompts=((1,) * 100,) * 50)
    assert [len(batch) for batch in lm._batches(cluster, None, 8)] == [8] * 6 + [2]
    lm.least_tokens = 2500
    assert [len(batch) for batch in lm._batches(cluster, None, 8)] == [25, 25]
    assert [len(batch) for batch in lm._batches(cluster, None, 40)] == [40, 10]


def test_eval_takes_the_backend_by_name(model, tmp_path):
    import json

    from calibtune.__main__ import main

    tables = []
    for backend in ("hf", "hf-prefix"):
        words = [
            "eval",
            "--model",
            model,
            "--tasks",
            "mc_calib_arc",
            "--num-fewshot",
            "2",
            "--device",
            "cpu",
            "--precision",
            "fp32",
            "--backend",
            backend,
            "--output",
            str(tmp_path / backend),
        ]
        assert main(words) == 0
        (path,) = (tmp_path / backend).rglob("results_*.json")
        results = json.loads(path.read_text())
        tables.append({k: v for k, v in results["results"]["mc_calib_arc"].items() if isinstance(v, float)})
        assert results["config"]["model"] == backend
    assert tables[1] == pytest.approx(tables[0], abs=1e-4)
