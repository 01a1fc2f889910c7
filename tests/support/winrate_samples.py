"""Samples files of `ultrafeedback_winrate`, made up."""

import json

import numpy as np


def write(path, wins, prompt="p", first=0):
    lines = [
        {
            "doc_id": i,
            "doc": {"instruction": f"q{i + first}"},
            "doc_hash": f"hash{i + first}",
            "prompt_hash": f"{prompt}{i + first}",
            "target": "0",
            "resps": [[[-1.0 if win else -3.0, False, 4, False]], [[-2.0, False, 4, False]]],
            "filtered_resps": [[-1.0 if win else -3.0, False, 4, False], [-2.0, False, 4, False]],
            "filter": "none",
        }
        for i, win in enumerate(wins)
    ]
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def wins(share, count=1000, seed=0):
    return np.random.default_rng(seed).permutation(np.arange(count) < share * count)
