from pathlib import Path

import pytest
import yaml
from harness import TASKS, FakeLM, enter_mirror, evaluate, manager
from tiny import NO_SYSTEM_TEMPLATE, build_tokenizer, save_tiny, write_arc_mirror

SYSTEM = "You answer multiple-choice questions. Reply with the letter of the correct option and nothing else."
METRICS = {"acc", "nll", "brier", "letter_mass"} | {
    f"{ece}_{bins}{end}" for ece in ("conf_ece", "cw_ece") for bins in (10, 14) for end in ("", "_low", "_high")
}


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
    return write_arc_mirror(tmp_path_factory.mktemp("hub"))


def prompts(mirror, monkeypatch, model=None, **options):
    enter_mirror(mirror, monkeypatch)
    model = model or FakeLM(lambda context, letter: (-float(ord(letter[-1]) % 7) - 3, False))
    if isinstance(model, FakeLM):
        tokenizer = build_tokenizer()
        model.apply_chat_template = lambda messages, add_generation_prompt=True: tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    samples = evaluate(["mc_calib_arc"], model, limit=3, **options)["samples"]["mc_calib_arc"]
    return [sample["arguments"] for sample in samples], samples


def test_task_manager_finds_every_yaml_file():
    names = [yaml.safe_load(p.read_text().replace("!function", "")) for p in TASKS.glob("**/*.yaml")]
    tasks = {config["task"] for config in names if "group" not in config}
    groups = {config["group"] for config in names if "group" in config}
    found = manager()
    assert set(found.all_subtasks) == tasks
    assert set(found.all_groups) == groups == {"mc_calib", "mc_calib_orders", "mc_calib_mmlu_subjects"}
    assert len([name for name in tasks if name.startswith("mc_calib_mmlu_")]) == 58
    members = {name for config in names if "group" in config for name in config["task"]}
    assert members <= tasks


def test_every_function_named_in_yaml_exists():
    from lm_eval.tasks._yaml_loader import load_yaml

    for path in TASKS.glob("**/*.yaml"):
        load_yaml(path, resolve_func=True)


def test_tasks_have_the_documented_metrics_and_directions(mirror, monkeypatch):
    enter_mirror(mirror, monkeypatch)
    task = manager().load(["mc_calib_arc"])["tasks"]["mc_calib_arc"]
    better = task.higher_is_better()
    assert set(better) == METRICS
    assert {name for name, higher in better.items() if higher} == {"acc", "letter_mass"}


def test_plain_prompt_has_system_text_question_and_options(mirror, monkeypatch):
    arguments, samples = prompts(mirror, monkeypatch)
    doc = samples[0]["doc"]
    shown = "".join(f"{letter}. {text}\n" for letter, text in zip("ABCDE", doc["choices"], strict=False))
    prompt = f"{SYSTEM}\n\n{doc['question']}\nOptions:\n{shown}Answer with only a single letter:"
    assert arguments[0] == [(prompt, f" {letter}") for letter in "ABCDE"[: len(doc["choices"])]]


def test_every_option_is_scored_for_three_to_five_options(mirror, monkeypatch):
    arguments, samples = prompts(mirror, monkeypatch)
    assert [len(pairs) for pairs in arguments] == [len(s["doc"]["choices"]) for s in samples] == [4, 4, 3]


def test_chat_prompt_has_system_and_user_turns_and_no_delimiter(mirror, monkeypatch):
    arguments, samples = prompts(mirror, monkeypatch, apply_chat_template=True)
    context, letter = arguments[0][0]
    question = samples[0]["doc"]["question"]
    assert context.startswith(f"<|system|>\n{SYSTEM}<|end|>\n<|user|>\n{question}\nOptions:\nA. ")
    assert context.endswith("Answer with only a single letter:<|end|>\n<|assistant|>\n")
    assert letter == "A"


def test_few_shot_examples_are_answered_training_questions(mirror, monkeypatch):
    context = prompts(mirror, monkeypatch, num_fewshot=2)[0][0][0][0]
    assert context.count("(train ") == 2
    assert context.count("(test ") == context.count(SYSTEM) == 1
    answers = [block[-1] for block in context.split("\n\n")[1:-1]]
    assert len(answers) == 2
    assert set(answers) <= set("ABCDE")


def test_fewshot_as_multiturn_makes_letters_assistant_turns(mirror, monkeypatch):
    options = {"num_fewshot": 2, "apply_chat_template": True}
    turns = prompts(mirror, monkeypatch, fewshot_as_multiturn=True, **options)[0][0][0][0]
    assert turns.count("<|user|>") == 3
    assert turns.count("<|assistant|>") == 3
    assert turns.split("<|assistant|>\n")[1][:8] in {f"{letter}<|end|>" for letter in "ABCDE"}
    flat = prompts(mirror, monkeypatch, fewshot_as_multiturn=False, **options)[0][0][0][0]
    assert flat.count("<|user|>") == flat.count("<|assistant|>") == 1
    assert flat.count("Options:") == 3


def test_system_instruction_precedes_the_tasks_own(mirror, monkeypatch):
    context = prompts(mirror, monkeypatch, system_instruction="Be brief.", apply_chat_template=True)[0][0][0][0]
    assert context.startswith(f"<|system|>\nBe brief.\n\n{SYSTEM}<|end|>\n<|user|>\nWhich")


def test_template_without_system_role_puts_system_text_into_the_user_turn(mirror, monkeypatch, tmp_path):
    model = save_tiny(tmp_path / "model", chat_template=NO_SYSTEM_TEMPLATE)
    context = prompts(mirror, monkeypatch, model, apply_chat_template=True)[0][0][0][0]
    assert context.startswith(f"<|user|>\n{SYSTEM}\n\nWhich")
    assert context.count(SYSTEM) == 1


@pytest.mark.real
@pytest.mark.skipif(
    not (Path(TASKS).parents[1] / "shared/data/hub").is_dir(), reason="needs the data mirror ../shared/data/hub"
)
def test_every_task_loads_from_the_mirror_and_renders_a_prompt(monkeypatch):
    monkeypatch.chdir(Path(TASKS).parents[1] / "shared/data/hub")
    names = [name for name in manager().all_subtasks if name != "ultrafeedback_winrate"]
    loaded = manager().load(names)["tasks"]
    assert len(loaded) == 73
    for task in loaded.values():
        shot = 0 if task.config.task == "mc_calib_arc" else 1
        task.set_fewshot_seed(0)
        context = task.fewshot_context(task.eval_docs[0], num_fewshot=shot)
        assert context.count("Options:") == shot + 1
    assert loaded["mc_calib_medmcqa"].config.test_split is None
