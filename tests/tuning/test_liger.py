"""``--liger-kernel`` on a GPU, against the same fit without it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fitting import same_weights

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
#: Its own process, since Liger changes transformers' modules for all models of a process.
FIT = """
import json, sys
from pathlib import Path
from fitting import small_fit
from transformers.models.llama import modeling_llama
from calibtune.tuning.trainer import CalibrationTrainer
model, output, precision, liger = sys.argv[1:]
seen, norm = [], CalibrationTrainer._get_grad_norm

def recorded(self, *args, **options):
    losses = [float(loss) for loss in self._losses]
    value = norm(self, *args, **options)
    seen.append([sum(losses), float(value)])
    return value

CalibrationTrainer._get_grad_norm = recorded
options = {"device": "cuda", "precision": precision, "max_steps": 3, "learning_rate": 1e-4}
small_fit(model, Path(output), "rcft", **options, liger_kernel=liger == "liger")
assert ("liger" in modeling_llama.apply_rotary_pos_emb.__module__) == (liger == "liger")
Path(output, "seen.json").write_text(json.dumps(seen))
"""


@pytest.mark.accelerator
@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_liger_losses_and_gradients_equal_the_plain_model(model, tmp_path, mirror, precision):
    pytest.importorskip("liger_kernel")
    here = Path(__file__).parents[1] / "support"
    paths = os.pathsep.join([str(here), str(here.parents[1]), os.environ.get("PYTHONPATH", "")])
    for name in ("plain", "liger"):
        words = [sys.executable, "-c", FIT, str(model), str(tmp_path / name), precision, name]
        subprocess.run(words, check=True, env={**os.environ, "PYTHONPATH": paths})
    plain, liger = (json.loads((tmp_path / name / "seen.json").read_text()) for name in ("plain", "liger"))
    assert len(plain) == 3
    assert np.allclose(liger, plain, rtol=1e-4 if precision == "fp32" else 0.05)
    if precision == "fp32":
        assert same_weights(tmp_path / "plain", tmp_path / "liger", rtol=1e-2, atol=1e-5)
