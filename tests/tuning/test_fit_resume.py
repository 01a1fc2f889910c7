import re

import pytest
from fitting import same_weights, small_fit, small_recipe

from calibtune.artifacts.manifest import MANIFEST
from calibtune.errors import UserError
from calibtune.files import write_json
from calibtune.recipe import recipe_values
from calibtune.tuning.checkpoints import last_checkpoint
from calibtune.tuning.fit import CHECKPOINTS, STARTED
from calibtune.tuning.trainer import CalibrationTrainer

pytestmark = pytest.mark.usefixtures("mirror")


def stop_after(monkeypatch, steps):
    """Make training stop with an error after some steps, like a kill."""
    original = CalibrationTrainer.compute_loss
    done = []

    def dies(self, *args, **kwargs):
        done.append(1)
        if len(done) > steps:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(CalibrationTrainer, "compute_loss", dies)


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("rcft", {}),
        pytest.param("cft", {}, marks=pytest.mark.slow),
        pytest.param("rcft", {"e_step": "epoch"}, marks=pytest.mark.slow),
        pytest.param(
            "rcft", {"e_step_rows": "train", "gradient_accumulation": 2, "batch_size": 2}, marks=pytest.mark.slow
        ),
    ],
)
def test_stopped_fit_resumes_to_the_identical_adapter(model, tmp_path, method, changes, monkeypatch):
    options = {"epochs": 2, "save_every": 1, "lora_dropout": 0.05, **changes}
    small_fit(model, tmp_path / "whole", method, **options)
    with monkeypatch.context() as patch:
        stop_after(patch, 11 if "gradient_accumulation" in changes else 6)
        with pytest.raises(KeyboardInterrupt):
            small_fit(model, tmp_path / "cut", method, **options)
    assert last_checkpoint(tmp_path / "cut" / CHECKPOINTS) is not None
    small_fit(model, tmp_path / "cut", method, resume=True, **options)
    assert same_weights(tmp_path / "whole", tmp_path / "cut")
    assert not (tmp_path / "cut" / CHECKPOINTS).exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.pt", "trainer_state.json", "estep.npz"])
def test_resume_skips_a_damaged_checkpoint(model, tmp_path, monkeypatch, caplog, name):
    caplog.set_level("INFO", logger="calibtune")
    options = {"save_every": 1, "lora_dropout": 0.05}
    small_fit(model, tmp_path / "whole", "rcft", **options)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            small_fit(model, tmp_path / "cut", "rcft", **options)
    last = last_checkpoint(tmp_path / "cut" / CHECKPOINTS)
    assert last.name == "checkpoint-3"
    if name == "optimizer.pt":
        (last / name).unlink()
    elif name == "estep.npz":
        (last / name).write_bytes(bytes((last / name).stat().st_size))
    else:
        (last / name).write_bytes((last / name).read_bytes()[:-9])
    small_fit(model, tmp_path / "cut", "rcft", resume=True, **options)
    assert re.search("resuming from .*checkpoint-2", caplog.text)
    assert same_weights(tmp_path / "whole", tmp_path / "cut")


def test_resume_with_another_recipe_names_the_difference(model, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            small_fit(model, tmp_path / "out", "cft")
    assert (tmp_path / "out" / STARTED).is_file()
    with pytest.raises(UserError, match=r"learning_rate 0\.01 -> 0\.001"):
        small_fit(model, tmp_path / "out", "cft", resume=True, learning_rate=1e-3)


def test_resume_assumes_defaults_for_options_added_later(model, tmp_path):
    recipe = small_recipe(model, "cft", max_steps=1)
    before = {key: value for key, value in recipe_values(recipe).items() if key not in ("orders", "split_seed")}
    write_json(tmp_path / STARTED, before)
    with pytest.raises(UserError, match="split_seed None -> 7"):
        small_fit(model, tmp_path, "cft", max_steps=1, split_seed=7, resume=True)
    assert small_fit(model, tmp_path, "cft", max_steps=1, resume=True).method == "cft"


def test_resume_takes_what_computes_the_same_otherwise(model, tmp_path):
    recipe = small_recipe(model, "cft", max_steps=1, cuda_graphs=True, liger_kernel=True)
    write_json(tmp_path / STARTED, recipe_values(recipe))
    artifact = small_fit(model, tmp_path, "cft", max_steps=1, cuda_graphs=False, liger_kernel=False, resume=True)
    assert artifact.recipe["cuda_graphs"] is False


def test_resume_of_a_finished_fit_changes_nothing_and_refuses_another_recipe(model, tmp_path):
    first = small_fit(model, tmp_path / "out", "cft", max_steps=1)
    before = (tmp_path / "out" / MANIFEST).read_bytes()
    assert small_fit(model, tmp_path / "out", "cft", max_steps=1, resume=True) == first
    with pytest.raises(UserError, match=r"started with another recipe \(max_steps 1 -> 2\).*--overwrite"):
        small_fit(model, tmp_path / "out", "cft", max_steps=2, resume=True)
    assert (tmp_path / "out" / MANIFEST).read_bytes() == before
    finished = small_fit(model, tmp_path / "auto", "cft", max_steps=1, auto_batch=True)
    assert small_fit(model, tmp_path / "auto", "cft", max_steps=1, auto_batch=True, resume=True) == finished
