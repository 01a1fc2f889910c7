"""Prompts whose last newline shares a token with what stands before it: every way must feed the whole prompt."""

import json

import numpy as np
import pytest
from commands import run_command
from fitting import words
from harness import evaluate
from lm_eval.models.huggingface import HFLM
from merging import merging_tokenizer, plain_log_likelihoods, save_merging

from calibtune.__main__ import main
from calibtune.data.encoder import Encoder
from calibtune.results.samples import find_samples
from calibtune.tuning import fit as fitting
from harness_ext.encoding import letter_tokens, split_whole
from harness_ext.errors import UserError

pytestmark = pytest.mark.usefixtures("mirror")
#: With the first, the harness drops the newline; with the second, it finds no letters at all.
ENDS = [">\n", "|>\n"]


def assert_whole(folder, samples):
    """The letters' log-likelihoods in samples equal a plain pass over the whole rendered prompt."""
    assert len(samples) > 5
    for sample in samples[:6]:
        arguments = sample["arguments"]
        pairs = list(arguments.values()) if isinstance(arguments, dict) else arguments
        pairs = [(pair["arg_0"], pair["arg_1"]) if isinstance(pair, dict) else tuple(pair[:2]) for pair in pairs]
        assert pairs[0][0].endswith("<|assistant|>\n")
        expected = plain_log_likelihoods(folder, pairs[0][0], [letter for _, letter in pairs])
        found = [float(response[0][0]) for response in sample["resps"]]
        assert found == pytest.approx(expected, abs=1e-4)


def samples_below(folder):
    (path,) = find_samples(folder)
    return [json.loads(line) for line in path.read_text().splitlines()]


def eval_words(folder, output, *more):
    words = ["eval", "--model", folder, "--tasks", "mc_calib_arc", "--output", output, "--device", "cpu"]
    return [str(word) for word in (*words, "--precision", "fp32", "--apply-chat-template", *more)]


@pytest.mark.parametrize("backend", ["hf", "hf-prefix"])
@pytest.mark.parametrize("end", ENDS)
def test_eval_feeds_the_whole_prompt(tmp_path, end, backend):
    folder = save_merging(tmp_path / "model", end)
    assert main(eval_words(folder, tmp_path / "out", "--backend", backend)) == 0
    assert_whole(folder, samples_below(tmp_path / "out"))


@pytest.mark.parametrize("end", ENDS)
def test_the_harness_own_backend_feeds_the_whole_prompt(tmp_path, end):
    folder = save_merging(tmp_path / "model", end)
    assert_whole(folder, evaluate(["mc_calib_arc"], folder, apply_chat_template=True)["samples"]["mc_calib_arc"])


@pytest.mark.slow
def test_lm_evals_command_feeds_the_whole_prompt(tmp_path, mirror):
    folder = save_merging(tmp_path / "model")
    words = ("--model", "hf", "--model_args", f"pretrained={folder},dtype=float32", "--tasks", "mc_calib_arc")
    more = ("--apply_chat_template", "--log_samples", "--output_path", tmp_path / "out", "--limit", "8")
    run = run_command(mirror, tmp_path / "cache", *words, *more)
    assert run.returncode == 0, run.stderr
    assert_whole(folder, samples_below(tmp_path / "out"))


@pytest.mark.parametrize("end", ENDS)
def test_fit_feeds_the_whole_prompt(tmp_path, monkeypatch, end):
    folder, seen = save_merging(tmp_path / "model", end), []
    score = fitting.score

    def noted(model, examples, *args):
        seen.append((examples, score(model, examples, *args)))
        return seen[-1][1]

    monkeypatch.setattr(fitting, "score", noted)
    contexts, read = [], fitting.read_inputs
    monkeypatch.setattr(fitting, "read_inputs", lambda recipe: contexts.append(read(recipe)) or contexts[-1])
    assert main([*words(folder, tmp_path / "out", max_steps=1), "--apply-chat-template"]) == 0
    ((examples, scores), *_), (inputs, *_) = seen, contexts
    for row, (example, question) in enumerate(zip(examples, inputs.examples.held_out, strict=True)):
        letters = len(example.letter_ids)
        expected = plain_log_likelihoods(folder, question.context, question.letters)
        np.testing.assert_allclose(scores[row, :letters], expected, atol=1e-4)


def test_a_task_that_asks_a_question_twice_feeds_the_whole_prompt_twice(tmp_path, mirror):
    path = mirror / "allenai/ai2_arc/ARC-Challenge/test.jsonl"
    first = path.read_text().splitlines()[1]
    path.write_text(path.read_text() + first + "\n")
    folder = save_merging(tmp_path / "model")
    samples = evaluate(["mc_calib_arc"], folder, apply_chat_template=True)["samples"]["mc_calib_arc"]
    twice = [s for s in samples if s["doc"]["question"] == json.loads(first)["question"]]
    assert len(twice) == 2
    assert_whole(folder, twice * 3)


def test_a_newline_with_a_token_of_its_own_leaves_letter_probabilities_and_joins_the_prompt(model):
    from lm_eval.api.model import TemplateLM

    from calibtune.evaluation.hf_letters import LetterLM

    lm = HFLM(pretrained=str(model), device="cpu", dtype="float32")
    ours = LetterLM(pretrained=str(model), device="cpu", dtype="float32")
    context = "Which of these is the right one?<|end|>\n<|assistant|>\n"
    pairs = [(context, letter) for letter in "ABCD"]
    harness = [TemplateLM._encode_pair(lm, *pair) for pair in pairs]
    whole = [ours._encode_pair(*pair) for pair in pairs]
    assert [start + end for start, end in whole] == [start + end for start, end in harness]
    assert {len(letters) for _, letters in whole} == {1}
    values = [
        np.array([value for value, _ in backend._loglikelihood_tokens([(None, *e) for e in encoded], True)])
        for backend, encoded in ((lm, harness), (ours, whole))
    ]
    np.testing.assert_allclose(values[0] - values[0][0], values[1] - values[1][0], atol=1e-4)
    assert (values[1] > values[0]).all()


def test_letters_that_merge_with_the_prompts_end_are_read_there():
    assert split_whole([5, 6], [5, 9]) == ([5], [9])
    encoded = {letter: (1, (token,)) for letter, token in zip("AB", (9, 10), strict=True)}
    assert letter_tokens(encoded) == ((), (9, 10))


@pytest.mark.parametrize(
    ("encoded", "cause"),
    [
        ({"A": (2, (7,)), "B": (1, (8,))}, "merges some of the letters, and not others"),
        ({"A": (2, (7,)), "B": (2, (8, 9))}, "splits some of the letters, and not others"),
        ({"A": (2, (7,)), "B": (2, (7,))}, "has one token for several letters"),
        ({"A": (2, (7, 1)), "B": (2, (8, 2))}, "splits the options into several tokens"),
    ],
)
def test_a_refusal_names_what_the_tokenizer_does(encoded, cause):
    with pytest.raises(UserError, match=f"not one of their own each: its tokenizer {cause}"):
        letter_tokens(encoded)


@pytest.mark.parametrize("chat", [True, False])
def test_a_tokenizer_that_appends_a_token_is_named_by_eval_fit_and_doctor(tmp_path, capsys, chat):
    folder = save_merging(tmp_path / "model", bos="<bos>", eos="<eos>")
    flag = "--apply-chat-template" if chat else "--no-apply-chat-template"
    base = ["--model", str(folder), "--tasks", "mc_calib_arc", "--device", "cpu", "--precision", "fp32"]
    said = "its tokenizer appends <eos> to every text"
    assert main(["eval", *base, "--output", str(tmp_path / "out"), flag]) == 2
    assert said in capsys.readouterr().err
    assert main([*words(folder, tmp_path / "fit"), flag]) == 2
    assert said in capsys.readouterr().err
    assert main(["doctor", *base, *([flag] if chat else [])]) == 1
    assert said in capsys.readouterr().out


def test_a_beginning_of_text_token_is_fed_once():
    tokenizer = merging_tokenizer(">\n", bos="<bos>")
    encoder = Encoder(tokenizer)
    bos = tokenizer.bos_token_id
    for context in ("Which?", "<bos>Which?"):
        ids, letter = encoder.encode(context, " A")
        assert ids.count(bos) == 1
        assert ids[0] == bos
        assert letter == tokenizer(" A", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("command", ["eval", "fit", "doctor"])
def test_a_context_of_minus_one_tokens_is_the_configurations(tmp_path, capsys, command):
    import transformers

    tokenizer, folder = merging_tokenizer(">\n"), tmp_path / "xlnet"
    small = {"vocab_size": len(tokenizer), "d_model": 32, "n_layer": 1, "n_head": 4, "d_inner": 64}
    transformers.XLNetLMHeadModel(transformers.XLNetConfig(**small)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    base = ["--model", str(folder), "--tasks", "mc_calib_arc", "--device", "cpu", "--precision", "fp32"]
    output = ["--output", str(tmp_path / "out")]
    given = {"eval": ["eval", *base, *output], "fit": words(folder, tmp_path / "out"), "doctor": ["doctor", *base]}
    assert main(given[command]) == 2
    assert "configuration of this xlnet model gives its context as -1 tokens" in capsys.readouterr().err
    if command == "eval":
        with pytest.raises(UserError, match="gives its context as -1 tokens"):
            evaluate(["mc_calib_arc"], folder)
