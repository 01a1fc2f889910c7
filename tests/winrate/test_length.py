from pathlib import Path

import numpy as np
import pytest

from calibtune.winrate import alpaca, length
from calibtune.winrate.length import FILE, REPOSITORY, instructions_digest, length_controlled

RECORDED = Path(__file__).resolve().parents[3] / "shared" / "data" / "alpaca_eval" / "annotations.json"


needs_recorded = pytest.mark.skipif(not RECORDED.is_file(), reason=f"no recorded annotations at {RECORDED}")


@pytest.fixture
def longer_preferred(monkeypatch):
    """Make judgments of 805 instructions, which replace AlpacaEval's."""
    pairs = prefer_longer()
    monkeypatch.setattr(length, "INSTRUCTIONS", instructions_digest(pairs))
    return pairs


def prefer_longer(count=805):
    generator = np.random.default_rng(0)
    longer = generator.integers(0, 2, count)
    # The judge simply prefers the longer answer: all of the raw advantage is length.
    return alpaca.judged(
        [
            {
                "instruction": f"q{i}",
                "preference": 1.9 if more else 1.4,
                "output_1": "word " * 20,
                "output_2": "word " * (60 if more else 15),
            }
            for i, more in enumerate(longer)
        ],
        "here",
    )


def test_length_controlled_rate_needs_alpaca_evals_instructions():
    pairs = prefer_longer(2)
    result = alpaca.result(pairs, length_controlled(pairs))
    assert result.summary()["length_controlled_win_rate"] is None
    assert "no length-controlled rate: it needs AlpacaEval's 805" in result.note


def test_length_controlled_rate_needs_the_regression_data(tmp_path, monkeypatch, longer_preferred):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = length_controlled(longer_preferred)
    assert found.win_rate is None
    assert "hf download tatsu-lab/alpaca_eval df_gamed.csv" in found.said


def test_length_controlled_rate_uses_alpaca_evals_regression(tmp_path, monkeypatch, longer_preferred):
    import pandas as pd

    generator = np.random.default_rng(0)
    gamed = [
        {
            "model": name,
            "index": i,
            "preference": 0.5 + shift / 4,
            "std_delta_len": -shift + generator.normal() / 4,
            "instruction_difficulty": generator.normal() / 10,
            "not_gamed_baseline": False,
        }
        for name, shift in (("concise", -1), ("verbose", 1))
        for i in range(805)
    ]
    folder = tmp_path / f"datasets--{REPOSITORY.replace('/', '--')}"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    pd.DataFrame(gamed).to_csv(snapshot / FILE, index=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    pairs = longer_preferred
    found = length_controlled(pairs)
    assert alpaca.published_rate(pairs).win_rate > 0.6
    assert found.win_rate is not None
    assert found.win_rate < alpaca.published_rate(pairs).win_rate - 0.02
    assert "by alpaca-eval's regression" in found.said


@needs_recorded
def test_recorded_instructions_match_the_regressions():
    pairs = alpaca.read_annotations(RECORDED)
    assert instructions_digest(pairs) == length.INSTRUCTIONS
    shuffled = alpaca.judged([*pairs.rows[1:], pairs.rows[0]], "here")
    assert "it needs AlpacaEval's 805" in length_controlled(shuffled).said
