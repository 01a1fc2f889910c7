"""Questions asked in several orders of their options, through the real harness."""

import json

import numpy as np
import pytest
import torch
from harness import TASKS, FakeLM, evaluate, manager, save
from transformers import AutoModelForCausalLM, AutoTokenizer

from calibtune.results.samples import find_samples, read_samples
from harness_ext.calibration import letter_log_softmax
from harness_ext.errors import UserError
from harness_ext.letters import LetterSoftmax
from harness_ext.orders import averaged, by_option, cyclic, read_orders

pytestmark = pytest.mark.usefixtures("mirror")
TASK = "mc_calib_arc_orders"
SYSTEM = "You answer multiple-choice questions. Reply with the letter of the correct option and nothing else."


def prompt_of(question, options):
    shown = "".join(f"{letter}. {text}\n" for letter, text in zip("ABCDE", options, strict=False))
    return f"{SYSTEM}\n\n{question}\nOptions:\n{shown}Answer with only a single letter:"


def letters_said(folder):
    """Return a function that gives a model's log-likelihood of each letter after a prompt, one pass each."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

    def said(prompt, count):
        values = []
        for letter in "ABCDE"[:count]:
            ids = tokenizer(f"{prompt} {letter}", return_tensors="pt")["input_ids"]
            with torch.no_grad():
                logits = model(ids).logits[0, -2]
            values.append(torch.log_softmax(logits.double(), -1)[ids[0, -1]].item())
        return values

    return said


@pytest.mark.parametrize("orders", ["all", 2])
def test_a_plain_loop_over_orders_gives_the_same_numbers(model, tmp_path, orders):
    run = evaluate([TASK], model, metadata={"orders": orders})
    said, chosen = letters_said(model), []
    for sample in run["samples"][TASK]:
        doc = sample["doc"]
        count = len(doc["choices"])
        turns = range(count) if orders == "all" else [0, count // 2]
        raw, probabilities, mass = [], np.zeros(count), 0.0
        for turn in turns:
            options = doc["choices"][turn:] + doc["choices"][:turn]
            values = np.exp(said(prompt_of(doc["question"], options), count))
            raw.append([values[options.index(option)] for option in doc["choices"]])
            probabilities += np.array(raw[-1]) / values.sum() / len(turns)
            mass += values.sum() / len(turns)
        scored = sample["filtered_resps"]
        found = np.exp([[answer[0] for answer in responses] for responses in sample["resps"]]).T
        assert found == pytest.approx(np.array(raw), abs=1e-6)
        assert [letter.probability for letter in scored] == pytest.approx(probabilities, abs=1e-6)
        assert np.exp([letter.loglikelihood for letter in scored]).sum() == pytest.approx(mass, abs=1e-6)
        chosen.append(float(np.argmax(probabilities) == doc["gold"]))
    assert run["results"][TASK]["acc,none"] == pytest.approx(np.mean(chosen))
    assert run["configs"][TASK]["metadata"]["orders"] == orders


def test_one_order_is_the_ordinary_task_to_the_bit(model):
    plain = evaluate(["mc_calib_arc"], model, num_fewshot=1)
    ordered = evaluate([TASK], model, metadata={"orders": 1}, num_fewshot=1)

    def numbers(run, task):
        return {name: value for name, value in run["results"][task].items() if isinstance(value, float)}

    assert numbers(ordered, TASK) == numbers(plain, "mc_calib_arc")
    for mine, theirs in zip(ordered["samples"][TASK], plain["samples"]["mc_calib_arc"], strict=True):
        assert {key: mine[key] for key in theirs} == theirs


def asked(**options):
    """Return the prompts of each question, and the run's samples, of a model that knows nothing."""
    prompts = []

    def answer(context, letter):
        prompts.append(context)
        return -1.0 - len(prompts) % 7, False

    run = evaluate([TASK], FakeLM(answer), **options)
    by_question = {}
    for prompt in dict.fromkeys(prompts):
        by_question.setdefault(prompt.split("(test ")[-1].split(")")[0], []).append(prompt)
    return list(by_question.values()), run["samples"][TASK]


def test_each_question_has_as_many_orders_as_options():
    prompts, samples = asked(limit=4)
    assert [len(each) for each in prompts] == [len(sample["doc"]["choices"]) for sample in samples] == [4, 4, 3, 5]
    assert [len(sample["resps"]) for sample in samples] == [4, 4, 3, 5]
    assert [{len(responses) for responses in sample["resps"]} for sample in samples] == [{4}, {4}, {3}, {5}]
    assert [sample["arguments"][0][0] for sample in samples] == [each[0] for each in prompts]


def test_more_orders_than_options_count_as_all():
    assert [len(each) for each in asked(limit=4, metadata={"orders": 4})[0]] == [4, 4, 3, 4]


@pytest.mark.parametrize("sampler", ["first_n", "default"])
def test_all_orders_of_a_question_have_the_examples_of_the_ordinary_task(tmp_path, sampler):
    # Examples from the evaluated split: the question itself must be none of them in any order.
    (tmp_path / "tasks").mkdir()
    for name, base in (("plain", "mc_calib_arc"), ("turned", TASK)):
        (tmp_path / "tasks" / f"{name}.yaml").write_text(
            f"include: {TASKS / base}.yaml\ntask: {name}\nfewshot_split: test\nfewshot_config: {{sampler: {sampler}}}\n"
        )
    found = {}
    for name in ("plain", "turned"):
        seen = found[name] = {}

        def answer(context, letter, seen=seen):
            examples, question = context.rsplit("\n\n", 1)
            seen.setdefault(question.split("\n")[0], set()).add(examples)
            return -1.0 - len(seen) % 7 - ord(letter[-1]) % 5, False

        evaluate([name], FakeLM(answer), folders=[tmp_path / "tasks"], num_fewshot=3)
    assert found["turned"] == found["plain"]
    assert {len(examples) for examples in found["turned"].values()} == {1}
    assert not any(question in next(iter(examples)) for question, examples in found["turned"].items())


def test_a_model_that_always_answers_a_is_at_chance_in_all_orders():
    found = evaluate([TASK], FakeLM(lambda _, letter: (-0.1 if letter == " A" else -4.0 - ord(letter[-1]) / 99, False)))
    for sample in found["samples"][TASK]:
        values = [letter.probability for letter in sample["filtered_resps"]]
        assert values == pytest.approx([1 / len(values)] * len(values))


def test_files_give_the_averages_back(model, tmp_path):
    run = evaluate([TASK], model)
    expected = [[letter.loglikelihood for letter in sample["filtered_resps"]] for sample in run["samples"][TASK]]
    (path,) = find_samples(save(run, tmp_path / "out"))
    rows = read_samples(path)
    assert [row[~np.isnan(row)].tolist() for row in rows.log_probs] == expected
    assert rows.orders == "all"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda context, letter: (-9999.0 if "A. option 9" in context else -1.0 - ord(letter[-1]) % 5, False), "-9999"),
        (lambda context, letter: (-1.0 - "ABBCD".index(letter[-1]) if letter[-1] in "ABD" else -2.0, False), "B and C"),
        (lambda context, letter: (-1.0, False), "same log-likelihood"),
    ],
)
def test_letters_that_were_not_scored_or_are_alike_in_any_order_are_refused(answer, message):
    with pytest.raises(UserError, match=message):
        evaluate([TASK], FakeLM(answer))


def test_files_with_letters_that_are_alike_are_refused(tmp_path):
    run = evaluate([TASK], FakeLM(lambda context, letter: (-1.0 - ord(letter[-1]) % 5 - len(context) / 1e4, False)))
    (path,) = find_samples(save(run, tmp_path / "out"))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line["resps"][2][0] = line["resps"][1][0]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match="letters B and C have the same"):
        read_samples(path)


def test_a_prompt_that_does_not_show_the_order_is_refused(tmp_path):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "fixed.yaml").write_text(
        f"include: {TASKS / TASK}.yaml\ntask: fixed\ndoc_to_text: '{{{{question}}}}'\n"
    )
    with pytest.raises(UserError, match="fixed: the prompt stays the same in another order"):
        evaluate(["fixed"], FakeLM(lambda *_: pytest.fail("the model was asked")), folders=[tmp_path / "tasks"])


@pytest.mark.parametrize("orders", [0, -1, 1.5, True, "some", None, "²"])
def test_numbers_of_orders_that_cannot_be_used_are_refused(orders):
    with pytest.raises(UserError, match=f"metadata's orders is {orders!r}; give a number from 1 up, or all"):
        manager(orders=orders).load([TASK])


def test_orders_are_read_from_flags_and_yaml():
    assert [read_orders(value, "--orders") for value in ("all", "3", 3, "03")] == ["all", 3, 3, 3]


@pytest.mark.parametrize("orders", ["all", *range(1, 9)])
def test_cyclic_orders_are_distinct_and_begin_with_the_own(orders):
    for options in range(2, 8):
        found = cyclic(options, orders)
        assert len({tuple(order) for order in found}) == len(found)
        assert len(found) == (options if orders == "all" else min(orders, options))
        assert found[0] == list(range(options))
        for order in found:
            start = order.index(0)
            assert order[start:] + order[:start] == found[0]


def test_by_option_undoes_the_order():
    orders = cyclic(4, 2)
    shown = [["wxyz"[option] for option in order] for order in orders]
    assert by_option(shown, orders) == [list("wxyz")] * 2


def test_averages_hold_mean_probabilities_and_mean_mass():
    rows = np.log([[0.5, 0.2, 0.1], [0.1, 0.1, 0.2], [0.3, 0.3, 0.3]])
    found = np.exp(averaged(rows))
    mean = np.mean([row / row.sum() for row in np.exp(rows)], axis=0)
    assert found / found.sum() == pytest.approx(mean)
    assert found.sum() == pytest.approx(np.exp(rows).sum(axis=1).mean())
    assert averaged(rows[:1]).tolist() == rows[0].tolist()


def test_the_scaled_average_is_the_average_divided_by_t():
    doc = {"question": "q"}
    rows = [[(-0.5, True), (-1.5, False)], [(-2.0, False), (-0.7, True)], [(-3.0, False), (-2.5, False)]]
    raw, scaled = (LetterSoftmax(t).apply(rows, [doc] * 3) for t in (1.0, 2.5))
    mean = np.array([[letter.loglikelihood for letter in raw]])
    assert [letter.loglikelihood for letter in scaled] == mean[0].tolist()
    assert [letter.log_probability for letter in scaled] == pytest.approx(letter_log_softmax(mean, 2.5)[0])


def test_a_repeated_last_letter_is_no_order():
    # Where several processes evaluate, the harness repeats the last request of the shorter ones.
    doc = {"question": "q"}
    rows = [[(-0.5, True)], [(-2.0, False), (-2.0, False)]]
    assert [letter.loglikelihood for letter in LetterSoftmax().apply(rows, [doc] * 2)] == [-0.5, -2.0]
