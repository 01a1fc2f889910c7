import json

import pytest

from calibtune.errors import UserError
from calibtune.reproduce.plan import IN, OUT, Options, plan
from calibtune.steps import check_plan


def names(folder, **options):
    return [step.name for step in plan(Options("M", folder, **options))]


def test_table_2_has_the_base_four_methods_and_a_report(tmp_path):
    found = names(tmp_path, tables=(2,), seeds=(3,))
    assert found[0] == f"eval base on {IN}, {OUT}"
    assert found[1::2] == [f"fit {name}, seed 3" for name in ("temperature", "label-smoothing", "cft", "rcft")] + [
        "report"
    ]
    assert len(found) == 10


def test_table_5_needs_nothing_that_table_2_has_not(tmp_path):
    assert names(tmp_path, tables=(2, 5)) == names(tmp_path, tables=(2,)) == names(tmp_path, tables=(5,))


def test_table_4_has_the_papers_lambdas_and_l_ece_alone(tmp_path):
    fits = [step for step in plan(Options("M", tmp_path, tables=(4,))) if step.words[0] == "fit"]
    lambdas = [step.words[step.words.index("--lambda") + 1] for step in fits if "--lambda" in step.words]
    assert lambdas == ["0", "0.4", "1", "1.8"]
    assert sum("--no-sft" in step.words for step in fits) == 1
    assert len(fits) == 6  # and RCFT itself


def test_papers_recipe_has_lambda_1_already(tmp_path):
    assert not any("lambda-1," in name for name in names(tmp_path, tables=(4,), config="paper"))


def test_every_seed_is_fitted_and_evaluated(tmp_path):
    found = names(tmp_path, tables=(2, 3), seeds=(0, 1, 2))
    assert sum(name.startswith("fit rcft") for name in found) == 3
    assert sum(name.startswith("eval rcft") for name in found) == 6


def test_paper_config_evaluates_the_base_as_it_is_fitted(tmp_path):
    steps = plan(Options("M", tmp_path, config="paper", learning_rate=5e-4))
    assert "nf4" in steps[0].words
    fits = {step.name: step.words for step in steps if step.words[0] == "fit"}
    assert fits["fit rcft, seed 0"][1:3] == ("--config", "paper/rcft")
    assert "0.0005" in fits["fit rcft, seed 0"]
    assert "--learning-rate" not in fits["fit temperature, seed 0"]


def test_judges_are_asked_about_the_models_of_table_3(tmp_path):
    options = Options("M", tmp_path, tables=(3,), alpaca=("--judge", "J"), arena=tmp_path / "bench")
    steps = [step for step in plan(options) if step.words[0] == "winrate"]
    assert [step.name for step in steps] == [
        "arena-hard base",
        "alpaca-eval cft-0",
        "arena-hard cft-0",
        "alpaca-eval rcft-0",
        "arena-hard rcft-0",
    ]


def evaluation(folder, task, samples, said, filters=("none",)):
    folder.mkdir(parents=True)
    numbers = {"alias": task, **{f"acc,{name}": 0.5 for name in filters}}
    record = {"results": {task: numbers}, "n-samples": {task: {"effective": said}}}
    (folder / "results_2026-01-01T00-00-00.json").write_text(json.dumps(record))
    (folder / f"samples_{task}_2026-01-01T00-00-00.jsonl").write_text("{}\n" * samples)


@pytest.mark.parametrize(("samples", "done"), [(6, True), (5, False)])
def test_an_evaluation_is_done_when_all_its_samples_are_there(tmp_path, samples, done):
    step = plan(Options("M", tmp_path, tables=(2,)))[0]
    evaluation(step.output / "M", IN, 3, 3)
    evaluation(step.output / "N", f"{OUT}_scaled", samples, 3, ("none", "scaled"))
    assert step.done() == done


def test_a_fit_is_done_when_its_manifest_is_there(tmp_path):
    step = plan(Options("M", tmp_path, tables=(2,)))[1]
    step.output.mkdir(parents=True)
    (step.output / "adapter_model.safetensors").write_text("")
    assert not step.done()
    (step.output / "calibtune.json").write_text("{}")
    assert step.done()


def test_other_options_need_another_folder_and_more_seeds_do_not(tmp_path):
    check_plan(plan(Options("M", tmp_path, tables=(2,))), tmp_path)
    check_plan(plan(Options("M", tmp_path, seeds=(0, 1))), tmp_path)
    with pytest.raises(UserError, match=r"holds `fit label-smoothing, seed 0` of another command"):
        check_plan(plan(Options("M", tmp_path, learning_rate=1e-5)), tmp_path)
