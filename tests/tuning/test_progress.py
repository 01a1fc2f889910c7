import pytest
from fitting import small_fit

from calibtune.tuning.progress import overtrained

pytestmark = pytest.mark.usefixtures("mirror")


def test_fit_warns_when_the_last_epoch_is_worse(model, tmp_path, caplog):
    artifact = small_fit(model, tmp_path / "far", "cft", epochs=2, learning_rate=0.3)
    assert artifact.after["nll"] > artifact.before["nll"] + 0.02
    assert "a lower --learning-rate may end better" in caplog.text
    caplog.clear()
    small_fit(model, tmp_path / "near", "cft", learning_rate=1e-6)
    assert "may end better" not in caplog.text


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ({0: 1.0, 1: 1.2}, "was 1.000 before training and is 1.500 now: a"),
        ({0: 1.6, 1: 1.2}, "was 1.200 after 1 epoch and is 1.500 now: --epochs 1 or a"),
        ({0: 1.6, 1: 1.49}, None),
        ({}, None),
    ],
)
def test_overtrained_names_the_epoch_with_the_lowest_nll(before, said):
    assert overtrained(before, 1.5) == (said and f"held-out NLL {said} lower --learning-rate may end better")
