"""Ten thousand mutated files through every reader: each is read, or refused with one sentence, at once."""

import json
import random
import shutil
import tempfile
import time
from functools import cache
from pathlib import Path

import pytest
import yaml
from lm_eval_files import answers, sample_lines, win_lines, write_run
from mutations import changed, mutated_json, mutated_lines, spoilt

from calibtune.errors import UserError
from calibtune.processes import time_limit
from calibtune.reporting import paired
from harness_ext import floor, intervals

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

#: For each of the readers; ten thousand in all.
INPUTS = 590
#: Seconds for one input; what takes longer hangs.
LONGEST = 10
DATE = "2026-01-02T03-04-05.678901"
#: Lines of a samples file, and a results file beside it.
LINES = list(sample_lines("t", *answers(6, letters=3, ragged=True), filters={"none": 1.0, "scaled": 2.0}))


@cache
def made(rows, *filters):
    """A run, made once."""
    folder = Path(tempfile.mkdtemp())
    write_run(folder, {"t": answers(rows, letters=3, ragged=True)}, date=DATE, filters=dict(filters))
    return folder


def artifact():
    recipe = {"model": "m", "method": "temperature", "tasks": ["t"], "apply_chat_template": True, "artifact": "a"}
    temperature = {"temperature": 1.5, "low": 1.0, "high": 2.0, "objective": "nll", "questions": 9, "warnings": ["w"]}
    numbers = {"acc": 0.5, "nll": 1.0, "conf_ece_10": 0.1, "conf_ece_10_low": 0.0, "conf_ece_10_high": 0.2}
    record = {"kind": "temperature", "method": "temperature", "model": "m", "revision": None, "tasks": ["t"], "seed": 0}
    record |= {"recipe": recipe, "documents": {"train": ["a"], "held_out": ["b"]}, "before": numbers, "after": numbers}
    return record | {"versions": {"torch": "2"}, "seconds": 1.0, "peak_memory_gib": None, "temperature": temperature}


def rows():
    return [
        {
            **{"instruction": f"q{i}", "output_1": "a", "output_2": "b", "generator_1": "r", "generator_2": "m"},
            **{"annotator": "j", "preference": 1.2, "preference_reference_first": 1.2, "preference_model_first": 1.7},
        }
        for i in range(4)
    ]


def judged():
    games = [{"score": "A>B", "judgment": {"answer": "..."}}, {"score": "B>A"}]
    return [{"uid": f"u{i}", "model": "m", "baseline": "b", "games": games} for i in range(4)]


@cache
def tiny():
    """A tiny model, made once."""
    from tiny import save_tiny

    return save_tiny(Path(tempfile.mkdtemp()))


class Readers:
    """For each file the bytes of a mutated one, and what is done with it."""

    def samples(self, folder, rng):
        from calibtune.api import load_samples
        from calibtune.metrics import summary

        (folder / f"samples_t_{DATE}.jsonl").write_bytes(mutated_lines(LINES, rng))
        for found in load_samples(folder):
            summary(found.log_probs, found.labels, further=True)
            assert len(found.documents) == len(found.labels)

    def prompts(self, folder, rng):
        from calibtune.results.samples import read_prompts

        (folder / "s.jsonl").write_bytes(mutated_lines(LINES, rng))
        read_prompts(folder / "s.jsonl")

    def report(self, folder, rng):
        from calibtune.reporting.build import build

        shutil.copytree(made(6, ("none", 1.0), ("scaled", 2.0)), folder / "made")
        path = next((folder / "made").rglob("results_*.json"))
        path.write_bytes(mutated_json(json.loads(path.read_text()), rng))
        build([folder / "made"])

    def report_of_win_rates(self, folder, rng):
        from calibtune.reporting.build import build

        others = {"ultrafeedback_winrate": win_lines(rows=5)}
        made = [write_run(folder / n, {}, {"pretrained": n}, date=DATE, others=others) for n in ("a", "b")]
        path = next(made[1].glob(rng.choice(["results_*.json", "samples_*.jsonl"])))
        if path.suffix == ".json":
            path.write_bytes(mutated_json(json.loads(path.read_text()), rng))
        else:
            path.write_bytes(mutated_lines([json.loads(line) for line in path.read_text().splitlines()], rng))
        build([folder / "a", folder / "b"])

    def report_of_other_files(self, folder, rng):
        from calibtune.reporting.build import build
        from calibtune.reporting.formats import latex, markdown

        shutil.copytree(made(5, ("none", 1.0)), folder / "made")
        (run,) = (folder / "made").iterdir()
        win = {"benchmark": "b", "model": "m", "baseline": "x", "win_rate": 0.5, "low": 0.4, "high": 0.6, "n": 9}
        name, value = rng.choice(
            [
                ("winrate_b.json", {**win, "note": "n", "standard_error": 0.1}),
                ("temperature.json", artifact()["temperature"]),
                ("calibtune.json", artifact()),
            ]
        )
        (run / name).write_bytes(mutated_json(value, rng))
        found = build([folder / "made"])
        markdown(found), latex(found), json.dumps(found)

    def manifest(self, folder, rng):
        from calibtune.artifacts.card import model_card, summary, usage
        from calibtune.artifacts.manifest import read_artifact

        (folder / "calibtune.json").write_bytes(mutated_json(artifact(), rng))
        found = read_artifact(folder)
        json.dumps(found.record()), found.spec, found.adapter, usage(found)
        model_card(found), summary(found, folder)

    def adapter(self, folder, rng):
        from calibtune.artifacts.manifest import read_artifact

        config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "m", "revision": None}
        (folder / "adapter_config.json").write_bytes(mutated_json(config, rng))
        read_artifact(folder)

    def recipe(self, folder, rng):
        from calibtune.recipe import load_recipe, make_recipe, recipe_values

        values = {"method": "rcft", "model": "m", "tasks": "t,u", "rank": 4, "epochs": 1.5, "lambda": 2}
        values |= {"chat_template_args": {"a": [1]}, "learning_rate": 1e-4, "chat_template": "x.jinja"}
        text = yaml.safe_dump(changed(values, rng), allow_unicode=True) if rng.random() < 0.7 else json.dumps(values)
        (folder / "r.yaml").write_bytes(spoilt(text.encode("utf-8", "surrogatepass"), rng))
        json.dumps(recipe_values(make_recipe(load_recipe(folder / "r.yaml"), {})))

    def started(self, folder, rng):
        from calibtune.recipe import Recipe, recipe_values
        from calibtune.tuning.fit import STARTED, check_output

        recipe = Recipe(method="cft", model="m", tasks=("t",))
        (folder / STARTED).write_bytes(mutated_json(recipe_values(recipe), rng))
        check_output(recipe, folder, True, False)

    def checkpoint(self, folder, rng):
        from calibtune.tuning.checkpoints import WHOLE, last_checkpoint, seal

        made = folder / "checkpoint-3"
        made.mkdir()
        (made / "weights").write_bytes(b"1")
        seal(made, 3)
        (made / WHOLE).write_bytes(mutated_json(json.loads((made / WHOLE).read_text()), rng))
        last_checkpoint(folder)

    def annotations(self, folder, rng):
        from calibtune.winrate import alpaca, pairs

        mutate = rng.choice([mutated_json, mutated_lines])
        (folder / "a.json").write_bytes(mutate(rows(), rng))
        found = alpaca.read_annotations(folder / "a.json")
        pairs.position_bias(found.rows), json.dumps(found.rows)

    def outputs(self, folder, rng):
        from calibtune.winrate.answers import Settings
        from calibtune.winrate.runs import read_instructions, reference_outputs

        outputs = [{"instruction": f"q{i}", "output": "a", "generator": "g"} for i in range(4)]
        (folder / "o.json").write_bytes(rng.choice([mutated_json, mutated_lines])(outputs, rng))
        read_instructions(folder / "o.json")
        reference_outputs(str(folder / "o.json"), outputs, folder, Settings(), ())

    def arena(self, folder, rng):
        from calibtune.winrate.arena import open_bench, read_verdicts, write_answers

        questions = [{"uid": f"u{i}", "prompt": "p", "category": "c"} for i in range(4)]
        (folder / "model_judgment" / "j").mkdir(parents=True)
        (folder / "model_answer").mkdir()
        which = rng.randrange(3)
        answered = [{"uid": f"u{i}", "messages": [{"content": "p"}, {"content": {"answer": "a"}}]} for i in range(4)]
        for number, (name, each) in enumerate(
            [("question", questions), ("model_judgment/j/m", judged()), ("model_answer/m", answered)]
        ):
            data = "".join(json.dumps(row) + "\n" for row in each).encode()
            (folder / f"{name}.jsonl").write_bytes(mutated_lines(each, rng) if number == which else data)
        bench = open_bench(folder)
        read_verdicts(bench, "m", "j")
        write_answers(bench, "m", ["a"] * len(bench.questions))

    def journal(self, folder, rng):
        from calibtune.endpoints.journal import Journal
        from calibtune.winrate.judge import Reply

        entries = [{"key": f"k{i}", "value": {"text": "m", "total_tokens": 1}} for i in range(4)]
        (folder / "j.jsonl").write_bytes(mutated_lines(entries, rng))
        with Journal(folder / "j.jsonl", Reply) as journal:
            journal.put("new", {"text": "m"})

    def answers(self, folder, rng):
        from calibtune.reading import read_json
        from calibtune.winrate.answers import Answers

        kept = {"outputs": ["a", "b"], "cut": 0, "chat_template": True, "model": "m"}
        (folder / "a.json").write_bytes(mutated_json(kept, rng))
        assert all(isinstance(text, str) for text in read_json(folder / "a.json", Answers).outputs)

    def model(self, folder, rng):
        from calibtune.models.loading import context_length, load_base, load_config, load_tokenizer
        from calibtune.spec import ModelSpec

        shutil.copytree(tiny(), folder, dirs_exist_ok=True)
        name = rng.choice(["config.json", "tokenizer_config.json", "generation_config.json", "tokenizer.json"])
        (folder / name).write_bytes(mutated_json(json.loads((folder / name).read_text()), rng))
        spec = ModelSpec(str(folder), device="cpu", precision="fp32")
        context_length(load_config(spec), load_tokenizer(spec))
        load_base(spec)

    def lock(self, folder, rng):
        from calibtune.files import LOCK
        from calibtune.locks import held

        (folder / LOCK).write_bytes(mutated_json({"process": 1, "host": "h", "since": "s"}, rng))
        with held(folder):
            pass


READERS = [name for name in vars(Readers) if not name.startswith("_")]


def test_all_readers_together_take_ten_thousand_inputs():
    assert INPUTS * len(READERS) >= 10_000


@pytest.mark.parametrize("name", READERS)
def test_mutated_files_are_read_or_refused_at_once(name, tmp_path, monkeypatch):
    # What is drawn for intervals and floors is not tested here.
    monkeypatch.setattr(floor, "DRAWS", 20)
    for function in (intervals.ece_interval, intervals.paired_difference, paired.paired_differences):
        (draws,) = {1000, 2000} & set(function.__defaults__)
        monkeypatch.setattr(function, "__defaults__", tuple(20 if d == draws else d for d in function.__defaults__))
    slowest, refused = 0.0, 0
    for seed in range(INPUTS):
        folder = tmp_path / str(seed)
        folder.mkdir()
        started = time.perf_counter()
        try:
            with time_limit(LONGEST):
                getattr(Readers(), name)(folder, random.Random(f"{name} {seed}"))
        except UserError:
            refused += 1
        except BaseException as error:
            raise AssertionError(f"{name}, seed {seed}: {type(error).__name__}") from error
        slowest = max(slowest, time.perf_counter() - started)
    assert refused or name in ("checkpoint", "lock")  # which are passed over
    assert slowest < LONGEST
