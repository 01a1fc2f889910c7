import pytest
from harness import evaluate

from calibtune.demo import ALIGNED, CHECKPOINTS, PRETRAINED
from calibtune.reading import read_json

TASKS = ["mc_calib_world", "mc_calib_world_ood"]


def test_checkpoints_are_under_5_mb_and_float32():
    assert sum(path.stat().st_size for path in CHECKPOINTS.rglob("*") if path.is_file()) < 5e6
    for folder in (PRETRAINED, ALIGNED):
        assert read_json(folder / "config.json")["dtype"] == "float32"


@pytest.fixture(scope="module")
def results():
    return {
        folder.name: evaluate(TASKS, folder, apply_chat_template=True, batch_size=128)["results"]
        for folder in (PRETRAINED, ALIGNED)
    }


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_pretrained_model_is_calibrated_and_near_acc_star(results, task):
    found = results["pretrained"][task]
    assert found["conf_ece_10,none"] < 0.04
    assert found["acc_true,none"] > found["acc_star,none"] - 0.04
    assert found["tce,none"] < 0.25
    assert found["letter_mass,none"] > 0.99


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_aligned_model_keeps_accuracy_and_loses_calibration(results, task):
    before, after = results["pretrained"][task], results["aligned"][task]
    assert after["acc_true,none"] > before["acc_true,none"] - 0.04
    assert after["conf_ece_10_low,none"] > before["conf_ece_10_high,none"] + 0.1
    assert after["conf_ece_10,none"] > 0.2
    assert after["nll,none"] > before["nll,none"] + 0.2
    assert after["tce,none"] > 2 * before["tce,none"]
