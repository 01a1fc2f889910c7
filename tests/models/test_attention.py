"""Which attention kernels passes of many shapes take."""

import pytest
import torch
from fitting import small_fit

from calibtune.models.attention import attention_of_any_shape


@pytest.fixture
def cudnn():
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    yield torch.backends.cuda.cudnn_sdp_enabled
    torch.backends.cuda.enable_cudnn_sdp(before)


def test_cudnns_attention_is_left_out_within_the_context_alone(cudnn):
    @attention_of_any_shape()
    def fails():
        raise RuntimeError(cudnn())

    with pytest.raises(RuntimeError, match="False"):
        fails()
    assert cudnn()
    torch.backends.cuda.enable_cudnn_sdp(False)
    with attention_of_any_shape():
        pass
    assert not cudnn()


@pytest.fixture
def flags(monkeypatch, cudnn):
    """Whether cuDNN's attention was on, in each attention of a model."""
    found = []
    attention = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *args, **options: found.append(cudnn()) or attention(*args, **options),
    )
    return found


def test_a_fit_trains_and_scores_without_cudnns_attention(model, mirror, tmp_path, flags, cudnn):
    small_fit(model, tmp_path / "out", "cft", max_steps=1)
    assert flags
    assert not any(flags)
    assert cudnn()


def test_an_evaluation_scores_without_cudnns_attention(model, mirror, tmp_path, flags, cudnn):
    import calibtune

    calibtune.evaluate(model, tasks="mc_calib_arc", limit=2, output=tmp_path / "out", device="cpu")
    assert flags
    assert not any(flags)
    assert cudnn()
